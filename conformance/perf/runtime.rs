//! The runtimes that are compared, each in a private machine of its own.
//!
//! ```text
//! World ─ docker-registry ─ store: fresh ext4 with a journal, on a loop device over tmpfs
//!       └ pinnace serve: built-in network, or a conflist, natively or by programs
//!         or Debian's containerd + runc, the same conflist and the same programs
//! ```
//! All have the same subnet, the same masquerading bridge, cgroupfs and the same registry. The store is mounted so,
//! because on a file system without a journal inodes are not used again for minutes and each search for a free one
//! is paid by whoever comes next.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pinnace_conformance::cri::Cri;
use pinnace_conformance::daemon::Daemon;
use pinnace_conformance::images::{Layout, debian};
use pinnace_conformance::process::{Process, poll};
use pinnace_conformance::registry::{PLAIN, Registry};
use pinnace_conformance::world::World;
use rustix::process::Signal;

use crate::content::WORKLOAD;

const SUBNET: &str = "10.88.0.0/16";
const STORE_MIB: u64 = 6 << 10;

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours, with its built-in network.
    Pinnace,
    /// Ours, with a conflist that it executes itself.
    Native,
    /// Ours, with a conflist that the plugins' programs execute.
    Plugins,
    /// The peer, as Debian has it.
    Containerd,
    /// The peer at its best in pulling: ISA-L inflates, and more layers are fetched at a time.
    Tuned,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Pinnace, Kind::Native, Kind::Plugins, Kind::Containerd, Kind::Tuned];

    /// As it is called in the report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pinnace => "pinnace",
            Kind::Native => "pinnace, native conflist",
            Kind::Plugins => "pinnace, plugin programs",
            Kind::Containerd => "containerd + runc",
            Kind::Tuned => "containerd, tuned",
        }
    }

    /// As it is called on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Pinnace => "pinnace",
            Kind::Native => "native",
            Kind::Plugins => "plugins",
            Kind::Containerd => "containerd",
            Kind::Tuned => "containerd-tuned",
        }
    }

    /// Whether it is measured in a part of the benchmark.
    pub fn is_in(self, part: &str) -> bool {
        match self {
            Kind::Pinnace | Kind::Containerd => true,
            Kind::Native | Kind::Plugins => ["pods", "crowd"].contains(&part),
            Kind::Tuned => part == "pull",
        }
    }

    /// Whether it differs from [`Kind::Pinnace`] by its network alone.
    pub fn is_of_networks(self) -> bool {
        matches!(self, Kind::Native | Kind::Plugins)
    }
}

/// One that runs.
#[derive(Debug)]
pub struct Runtime {
    /// Which.
    pub kind: Kind,
    /// The client.
    pub cri: Cri,
    /// Id of the small image.
    pub image: String,
    /// What its program says of its version.
    pub version: String,
    daemon: Option<Daemon>,
    peer: Option<(Child, Process)>,
    store: Store,
    /// The registry that it pulls from.
    pub registry: Registry,
    /// The private machine.
    pub world: Arc<World>,
}

impl Runtime {
    /// Starts one with the small image pulled.
    pub async fn start(kind: Kind, small: &Layout) -> Runtime {
        let world = Arc::new(World::new().unwrap_or_else(|reason| panic!("no private machine: {reason}")));
        let store = Store::mount(&world);
        let registry = Registry::start(world.clone());
        registry.push(small, WORKLOAD, WORKLOAD, "1");
        let (daemon, peer, socket) = match kind {
            Kind::Pinnace | Kind::Native | Kind::Plugins => {
                let daemon = Daemon::start(world.clone(), &pinnace_config(kind, &world));
                let socket = daemon.socket.clone();
                (Some(daemon), None, socket)
            }
            Kind::Containerd | Kind::Tuned => {
                let (child, process, socket) = containerd(&world, kind == Kind::Tuned);
                (None, Some((child, process)), socket)
            }
        };
        let cri = Cri::new(&socket);
        let version = cri.runtime().version(tonic::Request::new(Default::default())).await;
        let version =
            version.unwrap_or_else(|status| panic!("{}: Version: {status:?}", kind.name())).into_inner();
        let reference = format!("{PLAIN}/{WORKLOAD}:1");
        let image = cri.pull(&reference).await.unwrap_or_else(|status| panic!("{}: {status:?}", kind.name()));
        let version = format!("{} {}", version.runtime_name, version.runtime_version);
        Runtime { kind, cri, image, version, daemon, peer, store, registry, world }
    }

    /// Where the kubelet has the logs of pods, as the runtime is told.
    pub fn logs(&self) -> PathBuf {
        self.world.dir().join("logs")
    }

    /// Memory of all that the runtime needs besides the workload: proportional set sizes in kB, of everything in this
    /// private machine that is not the machine's, the registry's or the workload's.
    pub fn pss_kb(&self) -> u64 {
        let name =
            self.world.cgroups()[0].dir.file_name().expect("a cgroup's name").to_string_lossy().into_owned();
        let mine = format!("/{name}");
        let processes = fs::read_dir("/proc").expect("read /proc").flatten().map(|entry| entry.path());
        processes
            .filter(|proc| {
                proc.file_name().is_some_and(|pid| pid.as_encoded_bytes().iter().all(u8::is_ascii_digit))
            })
            .filter(|proc| fs::read_to_string(proc.join("cgroup")).is_ok_and(|text| text.contains(&mine)))
            .filter(|proc| {
                let comm = fs::read_to_string(proc.join("comm")).unwrap_or_default();
                !["sh", "cat", "nsenter", "unshare", "docker-registry", "workload"].contains(&comm.trim())
            })
            .filter_map(|proc| pss_kb(&proc))
            .sum()
    }

    /// The daemon's process, by its id out here.
    fn pid(&self) -> u32 {
        let peer = self.peer.as_ref().map(|(_, process)| process.pid);
        peer.or_else(|| self.daemon.as_ref().map(|daemon| daemon.process().pid)).expect("a daemon")
    }

    /// CPU time of the daemon and of the programs that it has run to their end.
    pub fn cpu(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("read the daemon's times");
        // utime, stime, cutime, cstime, in hundredths of a second; fields are counted behind the name, which may hold
        // anything.
        let behind = text.rsplit_once(") ").map_or("", |(_, behind)| behind);
        let ticks: u64 =
            behind.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Begins to look for the daemon's peak anew.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("reset the peak");
    }

    /// The most memory that the daemon has had resident, in kB.
    pub fn peak_kb(&self) -> u64 {
        let text =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("read the daemon's status");
        let peak = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        peak.expect("a peak")
    }

    /// Bytes that are used on the disk of the store.
    pub fn used_bytes(&self) -> u64 {
        let stat =
            rustix::fs::statvfs(self.world.inside(self.world.dir().join("root"))).expect("ask the disk");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// Waits until nothing of what was written is left to write, so that no one else pays for it.
    pub fn settle(&self) {
        self.world.sh("sync");
    }

    /// Does what the kubelet did before RunPodSandbox: the pod's directories, in the machine, and its cgroups.
    pub fn prepare_pod(&self, log_directory: &str, container: &str, cgroup_parent: &str) {
        let logs = self.world.inside(log_directory).join(container);
        fs::create_dir_all(&logs).unwrap_or_else(|error| panic!("{}: {error}", logs.display()));
        for cgroup in self.world.cgroups() {
            let mut dir = cgroup.dir.clone();
            for part in cgroup_parent.split('/').filter(|part| !part.is_empty()) {
                let parent = dir.clone();
                dir.push(part);
                make_cgroup(&parent, &dir, cgroup.v1_options.is_empty());
            }
        }
    }

    /// Undoes it after the pod is gone.
    pub fn forget_pod(&self, log_directory: &str, cgroup_parent: &str) {
        let _ = fs::remove_dir_all(self.world.inside(log_directory));
        for cgroup in self.world.cgroups() {
            // Fails when the runtime left something in it, which is not what is measured here.
            let _ = fs::remove_dir(cgroup.dir.join(cgroup_parent.trim_start_matches('/')));
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some((child, process)) = &mut self.peer {
            process.signal(Signal::KILL);
            let _ = child.wait();
        }
        let _ = fs::remove_file(&self.store.image);
    }
}

fn pss_kb(proc: &Path) -> Option<u64> {
    let text = fs::read_to_string(proc.join("smaps_rollup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
}

/// The file behind the loop device; the device goes with the last mount of it.
#[derive(Debug)]
struct Store {
    image: PathBuf,
}

impl Store {
    fn mount(world: &World) -> Store {
        let dir = world.dir().display();
        let name = world.dir().file_name().expect("a name").to_string_lossy().into_owned();
        let image = PathBuf::from(format!("/dev/shm/{name}.ext4"));
        let script = format!(
            "mkdir {dir}/root {dir}/run {dir}/logs\n\
             mount -t tmpfs -o mode=0700 tmpfs {dir}/run\n\
             mount -t tmpfs -o mode=0755 tmpfs {dir}/logs\n\
             truncate -s {STORE_MIB}M {image}\n\
             mkfs.ext4 -q -F {image}\n\
             mount -o loop {image} {dir}/root\n\
             rmdir {dir}/root/lost+found\n\
             chmod 0700 {dir}/root\n",
            image = image.display()
        );
        world.sh(&script);
        Store { image }
    }
}

fn pinnace_config(kind: Kind, world: &World) -> String {
    let cni = match kind {
        Kind::Native | Kind::Plugins => {
            let (dirs, plugins) = (conflist(world), plugins());
            let native = kind == Kind::Native;
            format!("mode = \"cni\"\nconf_dirs = [{dirs:?}]\nbin_dirs = [{plugins:?}]\nnative = {native}\n")
        }
        Kind::Pinnace | Kind::Containerd | Kind::Tuned => "mode = \"built-in\"\n".to_owned(),
    };
    format!("[cni]\n{cni}[network]\nipv4_subnet = \"{SUBNET}\"\nipv6_subnet = \"\"\n")
}

/// The reference plugins' programs of Debian.
fn plugins() -> PathBuf {
    debian::unpacked("containernetworking-plugins").join("usr/lib/cni")
}

/// Writes the network of all that have one by configuration; its directory.
fn conflist(world: &World) -> PathBuf {
    let dir = world.dir().join("cni");
    fs::create_dir_all(&dir).expect("make a directory");
    let conflist = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "perf",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni",
                    "ranges": [[{ "subnet": SUBNET }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    fs::write(dir.join("10-perf.conflist"), conflist.to_string()).expect("write the conflist");
    dir
}

/// Debian's packages, unpacked but not installed; the world has an empty /etc/containerd and /etc/cni.
fn containerd(world: &World, tuned: bool) -> (Child, Process, PathBuf) {
    let containerd = debian::unpacked("containerd").join("usr/bin");
    let runc = debian::unpacked("runc").join("usr/sbin/runc");
    let (plugins, cni) = (plugins(), conflist(world));
    let dir = world.dir();
    let downloads = if tuned { 6 } else { 3 };
    // Without CAP_SYS_RESOURCE a negative oom_score_adj cannot be set, and it insists unless told otherwise.
    let config = format!(
        "version = 2\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{PLAIN}/{WORKLOAD}:1\"\n\
         restrict_oom_score_adj = true\n\
         max_concurrent_downloads = {downloads}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = {plugins:?}\n\
         conf_dir = {cni:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n\
         BinaryName = {runc:?}\n"
    );
    let file = dir.join("containerd.toml");
    fs::write(&file, config).expect("write the configuration");
    let socket = dir.join("containerd.sock");
    let log = fs::File::create(dir.join("containerd.log")).expect("create a log");
    let best = dir.join("best");
    if tuned {
        // It runs `unpigz -d -c` where there is one; igzip has the same options.
        fs::create_dir_all(&best).expect("make a directory");
        let igzip =
            ["/usr/bin/igzip", "/usr/local/bin/igzip"].into_iter().find(|path| Path::new(path).exists());
        std::os::unix::fs::symlink(igzip.expect("igzip of the package isal"), best.join("unpigz"))
            .expect("make a link");
    }
    let path = format!(
        "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        best.display(),
        containerd.display()
    );
    let mut command = world.command(containerd.join("containerd"));
    command
        .arg("--config")
        .arg(&file)
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(dir.join("run"));
    command.arg("--address").arg(&socket).env("PATH", path).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("duplicate a file")).stderr(log);
    let (child, process) = world.spawn(&mut command);
    let booted = || fs::read_to_string(dir.join("containerd.log")).unwrap_or_default();
    let started = poll(Duration::from_secs(30), || booted().contains("successfully booted").then_some(()));
    assert!(started.is_some(), "containerd does not start:\n{}", booted());
    (child, process, socket)
}

/// As the kubelet makes them: on v2 with all controllers handed down.
fn make_cgroup(parent: &Path, dir: &Path, v2: bool) {
    if dir.exists() {
        return;
    }
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    if v2 {
        for controller in read(parent.join("cgroup.controllers")).split_whitespace() {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    fs::create_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !v2 && dir.join(file).exists() {
            let value = read(parent.join(file));
            fs::write(dir.join(file), value.trim())
                .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
    }
}
