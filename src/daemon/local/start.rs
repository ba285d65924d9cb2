//! Start: a sandbox and a container of the local container's id, made by the same code as the kubelet's.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::{Mount as OciMount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use pinnace_network::PortMapping;
use pinnace_spec::{defaults, image, signal};

use super::record::{MountKind, NetworkMode, Port, Record, State};
use super::{LocalContainer, create, health, life, logs, volumes};
use crate::apparmor::DefaultProfile;
use crate::container::attach::{Attachment, Wanted};
use crate::container::exec::Streams;
use crate::container::record::{ContainerName, ImageView, Status};
use crate::container::request::{
    Access, ContainerRequest, DeviceRequest, ImageMount, Kept, MountRequest, Profile, Propagation, Security,
    UserRequest,
};
use crate::container::{self, Container};
use crate::error::Error;
use crate::id::SandboxId;
use crate::node::Node;
use crate::record as disk;
use crate::sandbox::record::{Dns, LocalPod, NamespaceMode, Namespaces, SandboxConfig, SandboxName};
use crate::sandbox::{self, Sandbox};

/// Digits of an id that people see.
pub const SHORT_ID: usize = 12;

/// The host's resolver configuration, and where systemd-resolved keeps the servers that it asks itself.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Joined streams of a container that was started with them.
pub type Joined = (Attachment, Streams);

/// Starts a container that does not run; one that runs is started already, and then there is nothing to join. With
/// `wanted` its streams are joined before its program is executed.
pub async fn start(
    node: &Node,
    local: Arc<LocalContainer>,
    wanted: Option<Wanted>,
) -> Result<Option<Joined>, Error> {
    node.mutation(|node| async move {
        let _turn = local.turn.lock().await;
        if local.state().is_running() {
            return Ok(None);
        }
        if *local.follow_removal().borrow() {
            return Err(Error::NoSuchContainer { name: local.id.to_string(), hint: String::new() });
        }
        let what = format!("start container {}", local.record().name);
        let by_hand = Arc::clone(&local);
        node.blocking(move |_| {
            by_hand.change(|record| {
                record.stopped_by_hand = false;
                record.restarts = 0;
            })
        })
        .await?;
        // The restart policy that waits has nothing to wait for any more.
        local.wake.notify_waiters();
        match Box::pin(begin(&node, &local, wanted)).await {
            Ok((container, joined)) => {
                life::follow(&node, &local, container);
                Ok(joined)
            }
            Err(error) => {
                let error = error.within(what);
                let code = exit_code(&error);
                local.observe(|record| {
                    let text = error.chain();
                    match &mut record.state {
                        State::Exited(ended) | State::Restarting(ended) => {
                            let mut ended = ended.clone();
                            (ended.code, ended.error) = (code, text);
                            record.state = State::Exited(ended);
                        }
                        state => *state = State::Created { code, error: text },
                    }
                });
                if local.with(|record| record.settings.auto_remove) {
                    life::remove_by_itself(&node, &local);
                }
                Err(error)
            }
        }
    })
    .await
}

/// Docker's code for a program that could not be executed: 127 is not found, 126 not executable, 125 all else.
pub fn exit_code(error: &Error) -> i32 {
    let failure = match error {
        Error::In { source, .. } => return exit_code(source),
        Error::Launch(failure) if failure.stage == "exec" => failure,
        _ => return 125,
    };
    match std::io::Error::from_raw_os_error(failure.errno).kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => 127,
        _ => 126,
    }
}

/// Makes a life; what it has made is taken back if it fails. The caller has the turn.
pub(super) async fn begin(
    node: &Arc<Node>,
    local: &Arc<LocalContainer>,
    wanted: Option<Wanted>,
) -> Result<(Arc<Container>, Option<Joined>), Error> {
    life::clear(node, local).await?;
    let record = local.record();
    let ports = ports(&record)?;
    let config = sandbox_config(node, local, &record, &ports)?;
    let id: SandboxId = record.id.as_str().parse().map_err(|_| Error::invalid("id", record.id.as_str()))?;
    sandbox::run::run_as(node, id.clone(), config).await?;
    let sandbox = node.sandboxes.exact(id.as_str()).ok_or_else(|| Error::SandboxNotFound(id.to_string()))?;
    let begun = Box::pin(begin_in(node, local, &record, &sandbox, wanted)).await;
    match begun {
        Ok((container, joined)) => {
            let Status::Running { pid, started_at_ns } = container.status() else {
                // It has ended already, and what follows it will say so.
                return Ok(begun_with(local, container, joined, 0, crate::clock::realtime_ns(), ports));
            };
            Ok(begun_with(local, container, joined, pid, started_at_ns, ports))
        }
        Err(error) => {
            if let Err(problem) = life::clear(node, local).await {
                tracing::error!(container_id = %local.id, error = problem.chain(), "undo a failed start");
            }
            Err(error)
        }
    }
}

fn begun_with(
    local: &Arc<LocalContainer>,
    container: Arc<Container>,
    joined: Option<Joined>,
    pid: i32,
    started_at_ns: i64,
    ports: Vec<Port>,
) -> (Arc<Container>, Option<Joined>) {
    local.set_live(Some(Arc::clone(&container)));
    local.observe(|record| {
        record.state = State::Running { pid, started_at_ns, paused: false };
        record.ports = ports.clone();
    });
    (container, joined)
}

async fn begin_in(
    node: &Arc<Node>,
    local: &Arc<LocalContainer>,
    record: &Record,
    sandbox: &Arc<Sandbox>,
    wanted: Option<Wanted>,
) -> Result<(Arc<Container>, Option<Joined>), Error> {
    let hosts = hosts(record, sandbox);
    disk::write_file(&sandbox.directory.join("hosts"), hosts.as_bytes(), 0o644)?;
    let own = record.clone();
    let request = node.blocking(move |node| request(node, &own)).await?;
    let container = container::create::create_as(node, sandbox, request, record.id.clone()).await?;
    let joined = container::start::start_container(node, &container, wanted).await?;
    local.tell(&node.local, "start", &[]);
    health::watch(node, local, &container);
    Ok((container, joined))
}

/// What is published, with a port for each that has none.
fn ports(record: &Record) -> Result<Vec<Port>, Error> {
    let settings = &record.settings;
    if settings.network != NetworkMode::Bridge {
        return Ok(Vec::new());
    }
    let mut ports = settings.ports.clone();
    if settings.publish_all {
        let exposed = record.image_config.pointer("/config/ExposedPorts").and_then(|ports| ports.as_object());
        for name in exposed.into_iter().flat_map(|ports| ports.keys()) {
            let Some((container_port, protocol)) = super::inspect::exposed(name) else { continue };
            let known = |port: &Port| port.container_port == container_port && port.protocol == protocol;
            if !ports.iter().any(known) {
                ports.push(Port { protocol, container_port, host_port: 0, host_address: None });
            }
        }
    }
    for port in &mut ports {
        port.host_port = free_port(port)?;
    }
    Ok(ports)
}

/// Finds out whether the host has the port free, or which one it has. Between this and the rules that lead to the
/// container another program may take it; then the rules win.
fn free_port(port: &Port) -> Result<u16, Error> {
    use pinnace_network::Protocol;
    let address = port.host_address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let bound = match port.protocol {
        Protocol::Tcp => {
            std::net::TcpListener::bind((address, port.host_port)).and_then(|listener| listener.local_addr())
        }
        Protocol::Udp => {
            std::net::UdpSocket::bind((address, port.host_port)).and_then(|socket| socket.local_addr())
        }
        // No socket of the standard library is SCTP's: what is asked for is taken.
        Protocol::Sctp => return Ok(port.host_port),
    };
    let address = bound.map_err(|error| {
        let subject = format!("port {} of {address}", port.host_port);
        Error::State { subject, state: "not free".to_owned(), hint: format!("{error}; publish another one") }
    })?;
    Ok(address.port())
}

fn hostname(record: &Record) -> String {
    match (record.settings.hostname.as_str(), record.settings.network) {
        (_, NetworkMode::Host) => String::new(),
        ("", _) => record.id.as_str()[..SHORT_ID].to_owned(),
        (name, _) => name.to_owned(),
    }
}

fn sandbox_config(
    node: &Node,
    local: &LocalContainer,
    record: &Record,
    ports: &[Port],
) -> Result<SandboxConfig, Error> {
    let settings = &record.settings;
    let mode = |host: bool| if host { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (settings.host_pid, settings.init) {
        (true, _) => NamespaceMode::Node,
        // The pod's init reaps what the program leaves behind, and the program is not PID 1.
        (false, true) => NamespaceMode::Pod,
        (false, false) => NamespaceMode::Container,
    };
    Ok(SandboxConfig {
        name: SandboxName {
            name: record.name.clone(),
            namespace: String::new(),
            uid: record.id.to_string(),
            attempt: 0,
        },
        hostname: hostname(record),
        log_directory: local.directory.display().to_string(),
        dns: dns(record)?,
        port_mappings: ports.iter().map(PortMapping::from).collect(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: None,
        sysctls: settings.sysctls.clone(),
        namespaces: Namespaces {
            network: mode(settings.network == NetworkMode::Host),
            ipc: mode(settings.host_ipc),
            pid,
        },
        user_namespace: None,
        privileged: settings.privileged,
        selinux: Default::default(),
        runtime_handler: String::new(),
        overhead: None,
        resources: None,
        local: Some(LocalPod {
            isolated: settings.network == NetworkMode::None,
            shm_bytes: Some(settings.shm_bytes)
                .filter(|bytes| *bytes != 0)
                .unwrap_or(node.config.container.shm_size),
        }),
    })
}

/// `None` leaves the host's as it is. A server on the host's loopback cannot be reached from a container's.
fn dns(record: &Record) -> Result<Option<Dns>, Error> {
    let settings = &record.settings;
    let asked = !settings.dns_servers.is_empty()
        || !settings.dns_searches.is_empty()
        || !settings.dns_options.is_empty();
    let host = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let mut dns = parse_resolv_conf(&host);
    let is_loopback = |server: &String| server.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let unreachable = settings.network != NetworkMode::Host
        && !dns.servers.is_empty()
        && dns.servers.iter().all(is_loopback);
    if unreachable {
        let resolved = parse_resolv_conf(&std::fs::read_to_string(RESOLVED_CONF).unwrap_or_default());
        dns.servers = resolved.servers.into_iter().filter(|server| !is_loopback(server)).collect();
    }
    if !asked && !unreachable {
        return Ok(None);
    }
    for (own, host) in [
        (&settings.dns_servers, &mut dns.servers),
        (&settings.dns_searches, &mut dns.searches),
        (&settings.dns_options, &mut dns.options),
    ] {
        if !own.is_empty() {
            // `.` is docker's word for none.
            *host = own.iter().filter(|value| *value != ".").cloned().collect();
        }
    }
    Ok(Some(dns))
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(ToOwned::to_owned)),
            Some("search" | "domain") => dns.searches = words.map(ToOwned::to_owned).collect(),
            Some("options") => dns.options = words.map(ToOwned::to_owned).collect(),
            _ => {}
        }
    }
    dns
}

/// `/etc/hosts`: loopback, itself, and what was asked for. On the host's network it is the host's with that.
fn hosts(record: &Record, sandbox: &Sandbox) -> String {
    let settings = &record.settings;
    let network = sandbox.network();
    let mut text = match settings.network {
        NetworkMode::Host => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        NetworkMode::Bridge | NetworkMode::None => {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
                .to_owned()
        }
    };
    for (name, address) in &settings.extra_hosts {
        let gateway = network.gateways().into_iter().next().map(|gateway| gateway.to_string());
        let address = match address.as_str() {
            "host-gateway" => gateway.unwrap_or_else(|| "127.0.0.1".to_owned()),
            address => address.to_owned(),
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    let hostname = &sandbox.config.hostname;
    if !hostname.is_empty() {
        for address in network.addresses() {
            let _ = writeln!(text, "{address}\t{hostname}");
        }
    }
    text
}

/// What the container code is asked for.
fn request(node: &Node, record: &Record) -> Result<ContainerRequest, Error> {
    let settings = &record.settings;
    let image_config = create::image_part(&record.image_config)?;
    let (entrypoint, command) = create::argv(settings, image_config.as_ref());
    let mut config = image_config.clone().unwrap_or_default();
    config.set_entrypoint(Some(entrypoint).filter(|list| !list.is_empty()));
    config.set_cmd(Some(command).filter(|list| !list.is_empty()));
    // They are volumes of the container's record.
    config.set_volumes(None);
    if !settings.user.is_empty() {
        config.set_user(Some(settings.user.clone()));
    }
    let stop_signal = match settings.stop_signal.as_str() {
        "" => image::stop_signal(image_config.as_ref())?,
        text => signal::parse(text).map_err(|error| Error::invalid("stop_signal", error.to_string()))?,
    };
    let envs = settings.env.iter().map(|entry| {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        (key.to_owned(), value.as_bytes().to_vec())
    });
    let mut resources = settings.resources.clone();
    resources.oom_score_adj = settings.oom_score_adj;
    Ok(ContainerRequest {
        name: ContainerName { name: record.name.clone(), attempt: 0 },
        image: settings.image.clone(),
        user_specified_image: settings.image.clone(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: settings.working_dir.clone(),
        envs: envs.collect(),
        mounts: mounts(node, record)?,
        // What is no path is a name of the Container Device Interface.
        cdi_devices: settings
            .devices
            .iter()
            .map(|(name, ..)| name.clone())
            .filter(|it| !it.starts_with('/'))
            .collect(),
        devices: settings
            .devices
            .iter()
            .filter(|(host, ..)| host.starts_with('/'))
            .map(|(host, inside, access)| DeviceRequest {
                container_path: inside.clone(),
                host_path: host.clone(),
                permissions: access.clone(),
            })
            .collect(),
        labels: settings.labels.clone(),
        annotations: Default::default(),
        log_path: logs::NAME.to_owned(),
        stdin: settings.stdin,
        // A terminal is not closed; who leaves it can come back.
        stdin_once: settings.stdin_once && !settings.terminal,
        tty: settings.terminal,
        resources,
        security: security(node, record)?,
        stop_signal: Some(stop_signal),
        kept: Some(Box::new(Kept {
            image: ImageView {
                id: record.image_id.clone(),
                name: settings.image.clone(),
                user_specified: settings.image.clone(),
                reference: record.image_id.clone(),
            },
            layers: record.layers.clone(),
            config: Some(config),
            rlimits: settings.ulimits.iter().map(rlimit).collect::<Result<_, _>>()?,
            pids: settings.pids,
            mounts: settings
                .mounts
                .iter()
                .filter(|mount| mount.kind == MountKind::Tmpfs)
                .map(tmpfs)
                .collect::<Result<_, _>>()?,
        })),
    })
}

fn security(node: &Node, record: &Record) -> Result<Security, Error> {
    let settings = &record.settings;
    let options = &settings.security;
    let mode = |host: bool| if host { NamespaceMode::Node } else { NamespaceMode::Pod };
    let shown = settings.privileged || options.unmask;
    Ok(Security {
        privileged: settings.privileged,
        add_capabilities: settings.add_capabilities.clone(),
        drop_capabilities: settings.drop_capabilities.clone(),
        add_ambient_capabilities: Vec::new(),
        // As the sandbox has it.
        pid: NamespaceMode::Pod,
        target: String::new(),
        network: mode(settings.network == NetworkMode::Host),
        ipc: mode(settings.host_ipc),
        user_namespace: None,
        user: UserRequest { groups: settings.groups.clone(), ..UserRequest::default() },
        read_only_rootfs: settings.read_only,
        no_new_privileges: options.no_new_privileges,
        masked_paths: if shown { Vec::new() } else { defaults::masked_paths(&node.facts) },
        read_only_paths: if shown { Vec::new() } else { defaults::readonly_paths() },
        seccomp: match options.seccomp.as_str() {
            "" | "builtin" => Profile::RuntimeDefault,
            "unconfined" => Profile::Unconfined,
            path => Profile::Localhost(path.to_owned()),
        },
        apparmor: match (options.apparmor.as_str(), &node.apparmor) {
            ("", DefaultProfile::Loaded) => Some(Profile::RuntimeDefault),
            ("", _) | ("unconfined", _) => None,
            (profile, _) => Some(Profile::Localhost(profile.to_owned())),
        },
        selinux: Default::default(),
    })
}

fn mounts(node: &Node, record: &Record) -> Result<Vec<MountRequest>, Error> {
    let mut mounts = Vec::new();
    let mut push = |target: &str, host_path: String, image: Option<ImageMount>, access, propagation| {
        mounts.push(MountRequest {
            container_path: target.to_owned(),
            host_path,
            image,
            owners: None,
            options: Vec::new(),
            access,
            selinux_relabel: false,
            propagation,
        });
    };
    for (target, name) in &record.volumes {
        let path = volumes::existing(node, name)?;
        let read_only = record.settings.mounts.iter().any(|mount| mount.target == *target && mount.read_only);
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        push(target, path, None, access, Propagation::Private);
    }
    for mount in &record.settings.mounts {
        let access = if mount.read_only { Access::ReadOnly } else { Access::ReadWrite };
        match mount.kind {
            MountKind::Tmpfs => {}
            MountKind::Volume if mount.source.is_empty() => {}
            MountKind::Volume => {
                push(
                    &mount.target,
                    volumes::existing(node, &mount.source)?,
                    None,
                    access,
                    Propagation::Private,
                );
            }
            MountKind::Bind => {
                if mount.make_source && !Path::new(&mount.source).exists() {
                    std::fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o755)
                        .create(&mount.source)
                        .map_err(Error::io("create", &mount.source))?;
                }
                let propagation = match mount.propagation.trim_start_matches('r') {
                    "shared" => Propagation::Bidirectional,
                    "slave" => Propagation::HostToContainer,
                    _ => Propagation::Private,
                };
                push(&mount.target, mount.source.clone(), None, access, propagation);
            }
            MountKind::Image => {
                let image = ImageMount {
                    image: mount.source.clone(),
                    user_specified: mount.source.clone(),
                    sub_path: mount.sub_path.clone(),
                };
                push(&mount.target, String::new(), Some(image), Access::ReadOnly, Propagation::Private);
            }
        }
    }
    Ok(mounts)
}

fn tmpfs(mount: &super::record::Mount) -> Result<OciMount, Error> {
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec"].map(ToOwned::to_owned).to_vec();
    for option in &mount.options {
        // The last word counts.
        options.retain(|known| known.trim_start_matches("no") != option.trim_start_matches("no"));
        options.push(option.clone());
    }
    if mount.read_only {
        options.push("ro".to_owned());
    }
    MountBuilder::default()
        .destination(&mount.target)
        .typ("tmpfs")
        .source("tmpfs")
        .options(options)
        .build()
        .map_err(|error| Error::invalid("mounts", error.to_string()))
}

fn rlimit((name, soft, hard): &(String, u64, u64)) -> Result<PosixRlimit, Error> {
    let wrong = |reason: String| Error::invalid(format!("ulimits {name}"), reason);
    let kind: PosixRlimitType = serde_json::from_value(format!("RLIMIT_{}", name.to_uppercase()).into())
        .map_err(|error| wrong(error.to_string()))?;
    PosixRlimitBuilder::default()
        .typ(kind)
        .soft(*soft)
        .hard(*hard)
        .build()
        .map_err(|error| wrong(error.to_string()))
}
