//! Every key once: its name, type, default, parser and documentation.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::document::Document;
use super::values::*;

/// A section as data, for the reference and for spelling hints.
#[derive(Debug)]
pub struct Section {
    /// The word in brackets.
    pub name: &'static str,
    /// What the section is about, a line per element.
    pub doc: &'static [&'static str],
    /// Its keys in the order of the reference.
    pub keys: &'static [Key],
}

/// A key as data.
#[derive(Debug)]
pub struct Key {
    /// The word before the equals sign.
    pub name: &'static str,
    /// The default as TOML text.
    pub default: &'static str,
    /// What it does, a line per element.
    pub doc: &'static [&'static str],
}

/// Makes, for every section, the struct with its fields, the function that reads it from a document, and the table
/// from which the reference is written. A field is `/// doc`, `name: Type = "default as TOML text", parser;`.
macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])+
        [$section:literal] $struct:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $type:ty = $default:literal, $parser:expr;
            )+
        }
    )+) => {
        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq)]
            #[non_exhaustive]
            pub struct $struct {
                $( $(#[doc = $doc])+ pub $field: $type, )+
            }

            impl $struct {
                pub(super) fn read(document: &mut Document<'_>) -> $struct {
                    $struct { $( $field: document.take($section, stringify!($field), $default, $parser), )+ }
                }
            }
        )+

        /// All sections in the order of the reference.
        pub(super) const SECTIONS: &[Section] = &[$(
            Section {
                name: $section,
                doc: &[$($section_doc),+],
                keys: &[$( Key { name: stringify!($field), default: $default, doc: &[$($doc),+] }, )+],
            },
        )+];
    };
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

sections! {
    /// The daemon itself: where it keeps what, and what it says.
    ["daemon"] Daemon {
        /// Images, layers and the writable layers of containers. Must survive a reboot, and be on a file system that
        /// can be the upper layer of an overlay. Flag: --root.
        root: PathBuf = r#""/var/lib/pinnace""#, path;
        /// Records of running pods, namespaces and sockets of monitors. Must be emptied by a reboot. Flag: --run.
        run: PathBuf = r#""/run/pinnace""#, path;
        /// The unix socket of the CRI. Empty: pinnace.sock in `run`. A socket that systemd passes in wins.
        /// Flag: --socket.
        socket: Option<PathBuf> = r#""""#, path_or_empty;
        /// off, error, warn, info, debug or trace; or filters by part, "info,pinnace_pull=debug". Flag: --log-level.
        log_level: String = r#""info""#, log_level;
        /// How the log is written to standard error: "text", "json", or "auto", which is text, without time stamps
        /// where the journal reads it.
        log_format: LogFormat = r#""auto""#, log_format;
        /// On SIGTERM, how long operations that are under way may take to end. Containers are not stopped.
        drain_timeout: Duration = r#""10s""#, |v| duration(v, Duration::ZERO..=10 * MINUTE);
    }

    /// Images: how they are fetched and stored.
    ["image"] Image {
        /// How new layers are stored: "tar-erofs" (the tar itself, mounted; needs Linux 6.12), "directory" (unpacked),
        /// or "auto", the first where a self-test at start finds that it works. Layers of both forms can be mixed.
        layer_form: LayerForm = r#""auto""#, layer_form;
        /// How many layers are fetched at the same time, over all pulls.
        max_parallel_downloads: u32 = "6", |v| integer(v, 1..=64);
        /// How much memory all pulls together may use for data between network and disk.
        pull_memory: u64 = r#""32MiB""#, |v| bytes(v, 8 * MIB..=16 * GIB);
        /// A pull that receives no byte for this long is given up, and resumed or tried elsewhere.
        stall_timeout: Duration = r#""60s""#, |v| duration(v, SECOND..=HOUR);
        /// Where mirrors, certificates and CAs of registries are configured: HOST/hosts.toml, HOST/*.crt, HOST/*.cert,
        /// as containerd and Docker read them. For each host the first directory that has it is used.
        registry_config_dirs: Vec<PathBuf> = r#"["/etc/pinnace/certs.d", "/etc/containerd/certs.d"]"#, paths;
        /// Files in the form of containers-registries.conf(5), version 2: mirrors, rewriting by prefix, refusals, short
        /// names. The first that exists is read, with the drop-ins beside it (FILE.d/*.conf), anew for each pull. Its
        /// mirrors come before those of `registry_config_dirs`, which still say how each host is spoken to.
        registries_files: Vec<PathBuf> = r#"["/etc/pinnace/registries.conf", "/etc/containers/registries.conf"]"#, paths;
        /// Files with credentials, in the form of Docker's config.json and containers-auth.json(5), also by repository
        /// and for mirrors. Credentials that come with a pull are used first.
        registry_auth_files: Vec<PathBuf> = r#"["/etc/pinnace/auth.json"]"#, paths;
        /// Hosts, with their port if it is not the usual one, whose certificate is not checked and that may answer
        /// over plain HTTP. Loopback hosts are always allowed plain HTTP.
        insecure_registries: Vec<String> = "[]", hosts;
        /// References in full ("registry.k8s.io/pause:3.10"), or with `*` for anything ("registry.k8s.io/*", "*/pause:*"),
        /// that the kubelet is told never to collect.
        pinned_images: Vec<PinnedImage> = "[]", pinned_images;
    }

    /// The built-in network: a bridge on this machine, addresses from the subnets, no plugin to install.
    ["network"] Network {
        /// The bridge. It is made when the first pod needs it.
        bridge: String = r#""pinnace0""#, interface;
        /// Addresses of pods; the bridge has the first one. Empty: no IPv4.
        ipv4_subnet: Option<Subnet<Ipv4Addr>> = r#""10.88.0.0/16""#, ipv4_subnet;
        /// The same for IPv6. Empty: no IPv6.
        ipv6_subnet: Option<Subnet<Ipv6Addr>> = r#""fd00:88::/64""#, ipv6_subnet;
        /// MTU of the bridge and of pods. 0: that of the interface with the default route.
        mtu: u32 = "0", |v| match integer(v, 0..=65_535)? {
            low @ 1..1_280 => Err(format!("must be 0 or at least 1280, which IPv6 needs, not {low}")),
            mtu => Ok(mtu),
        };
        /// Whether pods reach the world under the address of this machine.
        ip_masq: bool = "true", boolean;
        /// Whether host ports of pods are served.
        host_ports: bool = "true", boolean;
        /// How many network namespaces are kept ready for pods to come.
        pool_size: u32 = "8", |v| integer(v, 0..=256);
    }

    /// Networks that CNI configurations describe and plugins make, in place of the built-in one.
    ["cni"] Cni {
        /// "cni", "built-in", or "auto": "cni" if there is a file in `conf_dirs` when a pod comes, good or bad, and from
        /// then on until the daemon ends; else "built-in".
        mode: CniMode = r#""auto""#, cni_mode;
        /// Where the configurations are: *.conflist, *.conf, *.json. The first good one, in the order of names, is the
        /// network of all pods. Changes count at once, for pods to come.
        conf_dirs: Vec<PathBuf> = r#"["/etc/cni/net.d"]"#, paths;
        /// Where the plugins' programs are.
        bin_dirs: Vec<PathBuf> = r#"["/opt/cni/bin", "/usr/lib/cni"]"#, paths;
        /// How long one call of a plugin may take before it is killed, and how long the stop of a pod waits for all of
        /// them. What could not be taken down by then is tried again later.
        timeout: Duration = r#""60s""#, |v| duration(v, SECOND..=10 * MINUTE);
        /// Whether bridge with host-local, portmap, bandwidth and loopback are executed by the daemon itself, with the
        /// same result, where all plugins of a configuration are among them and have no unknown key.
        native: bool = "true", boolean;
    }

    /// Containers: what holds where neither the pod nor the image says otherwise.
    ["container"] Container {
        /// Who makes cgroups: "cgroupfs", the daemon; "systemd", which then knows containers as scopes, and every pod must
        /// name a slice as its parent; or "auto": systemd where it is process 1 and cgroups are unified, for pods whose
        /// parent is a slice. The kubelet asks and follows.
        cgroup_driver: CgroupDriver = r#""auto""#, cgroup_driver;
        /// The cgroup below which pods go that name no parent: a path or, for the systemd driver, a slice. Empty:
        /// "pinnace.slice" with the systemd driver, else "/pinnace".
        cgroup_parent: String = r#""""#, cgroup_parent;
        /// Limits of processes: "nofile=1024:524288" (soft:hard), "core=0", "memlock=unlimited". What is not listed is
        /// what the daemon itself has.
        rlimits: Vec<Rlimit> = r#"["nofile=1024:524288"]"#, rlimits;
        /// The mask that a container's process starts with.
        umask: u32 = r#""0022""#, umask;
        /// How many processes and threads a container may have, below what its pod may. 0: no limit of its own.
        pids_limit: u32 = "32768", |v| integer(v, 0..=4_194_304);
        /// The seccomp profile that RuntimeDefault means: "builtin", or a file in the JSON form of the OCI spec.
        seccomp_default: SeccompDefault = r#""builtin""#, seccomp_default;
        /// The directory below which files of Localhost profiles must lie, and from which relative names of them count. Empty:
        /// anywhere, by absolute name.
        seccomp_profile_root: Option<PathBuf> = r#""""#, path_or_empty;
        /// SELinux labels of pods and containers. "auto": in force where the kernel runs SELinux, without meaning elsewhere, as
        /// Kubernetes has it. "required": a pod or container that asks for one is refused where the kernel runs without.
        selinux: SelinuxMode = r#""auto""#, selinux;
        /// Whether each container gets a directory of its own for every volume that its image declares, filled with what
        /// the image has there. Otherwise such places are ordinary directories of the container.
        image_volumes: bool = "true", boolean;
        /// Whether a device of the host belongs, in a container, to the user and group that the pod runs it as. Otherwise it
        /// belongs to whom it belongs to on the host.
        device_ownership: bool = "false", boolean;
        /// Where devices of the Container Device Interface are described: *.json and *.yaml. What a later directory says goes
        /// before what an earlier one says. Changes count at once, for containers to come. Empty: no such devices.
        cdi_spec_dirs: Vec<PathBuf> = r#"["/etc/cdi", "/var/run/cdi"]"#, paths;
        /// How much each container may write outside of its volumes: "10GiB". Beyond it a program meets EDQUOT or ENOSPC.
        /// Needs `root` on ext4 made with -O quota,project, or on XFS, mounted with prjquota; elsewhere the daemon does not
        /// start. Counts for containers to come. Empty: no limit.
        writable_layer_limit: Option<u64> = r#""""#, |v| bytes_or_empty(v, MIB..=1024 * 1024 * GIB);
        /// Size of /dev/shm, which the containers of a pod share.
        shm_size: u64 = r#""64MiB""#, |v| bytes(v, 4 * KIB..=64 * GIB);
        /// Longer lines of output are split in the log, with the mark that the CRI has for that.
        max_log_line: u64 = r#""16KiB""#, |v| bytes(v, KIB..=4 * MIB);
        /// A log that would grow beyond this begins anew, and what it held is gone; for nodes whose kubelet does not rotate
        /// logs, or not soon enough. 0B: no limit.
        log_size_limit: u64 = r#""0B""#, |v| match bytes(v, 0..=1024 * GIB)? {
            low @ 1..16_384 => Err(format!("must be 0B or at least 16KiB, not {low} bytes")),
            limit => Ok(limit),
        };
        /// When a pod is stopped whose containers still run: how long they have after their stop signal.
        pod_stop_grace: Duration = r#""0s""#, |v| duration(v, Duration::ZERO..=MINUTE);
        /// How long a killed process may take to be gone before the stop is reported as failed, to be tried again.
        kill_timeout: Duration = r#""20s""#, |v| duration(v, SECOND..=10 * MINUTE);
        /// After the process of an exec has ended: how long output of what it left running is still collected.
        exec_drain_timeout: Duration = r#""500ms""#, |v| duration(v, Duration::ZERO..=MINUTE);
    }

    /// Exec, attach and port-forward: where the kubelet comes for the streams of its clients, over SPDY or WebSocket.
    ["streaming"] Streaming {
        /// Address and port to listen on; port 0 is a free one. Whoever has an unused URL is served, so keep it on
        /// loopback, or give it certificates.
        listen: SocketAddr = r#""127.0.0.1:0""#, socket_address;
        /// Host in the URLs that are given out. Empty: the address that is listened on.
        public_host: Option<String> = r#""""#, host_or_empty;
        /// Certificate chain in PEM. With it the server speaks TLS. The three files are read again when they change.
        tls_certificate: Option<PathBuf> = r#""""#, path_or_empty;
        /// The certificate's key in PEM.
        tls_key: Option<PathBuf> = r#""""#, path_or_empty;
        /// Authorities in PEM, one of which must have signed the certificate of every client. Empty: clients need none.
        tls_client_ca: Option<PathBuf> = r#""""#, path_or_empty;
        /// How long a URL can be used, once, after it was given out.
        token_life: Duration = r#""1m""#, |v| duration(v, SECOND..=HOUR);
        /// How many URLs may be unused at a time.
        max_tokens: u32 = "1000", |v| integer(v, 1..=1_000_000);
        /// How long a client may take to open the streams that it asked for.
        stream_creation_timeout: Duration = r#""30s""#, |v| duration(v, SECOND..=10 * MINUTE);
        /// A session without a byte in either direction ends after this time.
        idle_timeout: Duration = r#""4h""#, |v| duration(v, SECOND..=168 * HOUR);
        /// How many clients there may be at a time.
        max_connections: u32 = "1000", |v| integer(v, 1..=1_000_000);
        /// An exec whose client was lost gets SIGHUP. If its program has not ended after this time, everything that the
        /// exec has started is killed.
        hang_up_grace: Duration = r#""10s""#, |v| duration(v, Duration::ZERO..=24 * HOUR);
    }
}

/// Every key with its default and what it does, as a configuration file in which nothing is set.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration of pinnace. Every key is here with its default; uncomment what you change.\n\
         # Times: \"250ms\", \"30s\", \"2m\", \"1h\". Sizes: \"64KiB\", \"32MiB\", \"1GiB\". Check: pinnace serve --check-config\n",
    );
    for section in SECTIONS {
        text.push('\n');
        comment(&mut text, section.doc);
        let _ = writeln!(text, "[{}]", section.name);
        for key in section.keys {
            text.push('\n');
            comment(&mut text, key.doc);
            let _ = writeln!(text, "#{} = {}", key.name, key.default);
        }
    }
    text.push('\n');
    comment(&mut text, RUNTIMES);
    text
}

/// What `[runtimes.NAME]` is; there is no default one.
const RUNTIMES: &[&str] = &[
    " OCI runtimes for RuntimeClass handlers, a section each. A pod whose handler is \"crun\" has its containers made by",
    " that program; \"\" and \"pinnace\" are pinnace itself. It must have runc's command line.",
    " [runtimes.crun]",
    " path = \"/usr/bin/crun\"",
    " type = \"oci\"",
];

fn comment(text: &mut String, doc: &[&str]) {
    for line in doc {
        let _ = writeln!(text, "#{line}");
    }
}
