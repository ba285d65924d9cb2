//! A node for one test: a world with a registry and the daemon in it, and the kubelet's side of the work.

use std::fmt::Debug;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pinnace_cri_api::v1::{ContainerConfig, ContainerStatus, PodSandboxConfig};
use tokio::net::TcpListener;

use crate::cri::{Answer, Cri, container_config, pod_config};
use crate::daemon::Daemon;
use crate::images::{Layout, catalog};
use crate::leak::{Ledger, Scope};
use crate::log;
use crate::registry::{PLAIN, Registry};
use crate::skip;
use crate::world::World;

/// How long things that may be taken down after the answer may take.
const SETTLE: Duration = Duration::from_secs(10);

/// How long nothing changes on a node that has come to rest.
const QUIET: Duration = Duration::from_millis(400);

/// A node. Fields are dropped in this order: the world goes last.
#[derive(Debug)]
pub struct Node {
    /// The client.
    pub cri: Cri,
    /// The program.
    pub daemon: Daemon,
    /// The registry of the world.
    pub registry: Registry,
    /// The images that can be pushed to it.
    pub images: Layout,
    /// The machine.
    pub world: Arc<World>,
    restarted: bool,
}

/// A pod in which containers are run one after the other.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Id of the sandbox.
    pub id: String,
    /// As it was run.
    pub config: PodSandboxConfig,
}

/// How a container ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Id of the container.
    pub container: String,
    /// Its last state.
    pub status: ContainerStatus,
    /// What it wrote to its standard output, from its log.
    pub stdout: String,
    /// What it wrote to its standard error, from its log.
    pub stderr: String,
}

/// A pod with one started container.
#[derive(Clone, Debug)]
pub struct Running {
    /// Id of the sandbox.
    pub pod: String,
    /// Id of the container.
    pub container: String,
    /// Its log.
    pub log: PathBuf,
}

impl Node {
    /// Starts one with the default configuration; where that is impossible says so, and the test is skipped.
    pub fn start() -> Option<Node> {
        Node::start_changed(|config| config)
    }

    /// Starts one; `change` is made to the configuration that all tests have.
    pub fn start_changed(change: impl FnOnce(String) -> String) -> Option<Node> {
        Node::start_in(|_, config| change(config))
    }

    /// Starts one; `change` is made to the configuration that all tests have, for what it needs of the world's places.
    pub fn start_in(change: impl FnOnce(&World, String) -> String) -> Option<Node> {
        let world = match World::new() {
            Ok(world) => Arc::new(world),
            Err(reason) => {
                skip(std::thread::current().name().unwrap_or("test"), &reason);
                return None;
            }
        };
        let registry = Registry::start(world.clone());
        let daemon = Daemon::start(world.clone(), &change(&world, Node::config(&world)));
        let cri = Cri::new(&daemon.socket);
        Some(Node { cri, daemon, registry, images: catalog::layout(), world, restarted: false })
    }

    /// A node of parts that a test has made in its own way.
    pub fn of(cri: Cri, daemon: Daemon, registry: Registry, images: Layout, world: Arc<World>) -> Node {
        Node { cri, daemon, registry, images, world, restarted: false }
    }

    /// What every test needs.
    pub fn config(world: &World) -> String {
        let certs = world.dir().join("certs.d");
        let (registries, auth) = (world.dir().join("registries.conf"), world.dir().join("auth.json"));
        format!(
            "[daemon]\nlog_level = \"debug\"\nlog_format = \"text\"\n\
             [image]\nregistry_config_dirs = [{certs:?}]\nregistries_files = [{registries:?}]\n\
             registry_auth_files = [{auth:?}]\n\
             [cni]\nmode = \"built-in\"\n\
             [network]\npool_size = 2\n",
        )
    }

    /// Pushes an image of the catalogue to the plain registry; the reference under which it can be pulled.
    pub fn push(&self, name: &str) -> String {
        self.registry.push(&self.images, name, name, "1");
        format!("{PLAIN}/{name}:1")
    }

    /// Pushes and pulls an image of the catalogue; its id.
    pub async fn image(&self, name: &str) -> String {
        let reference = self.push(name);
        self.cri.pull(&reference).await.unwrap_or_else(|status| panic!("pull {reference}: {status:?}"))
    }

    /// A pod of the kubelet, which has made the pod's log directory and cgroup by then.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let config = pod_config(name, &self.logs());
        self.make_log_directory(Path::new(&config.log_directory));
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        for cgroup in self.world.cgroups() {
            let mut dir = cgroup.dir.clone();
            for part in parent.split('/').filter(|part| !part.is_empty()) {
                make_cgroup(&dir, part, cgroup.v1_options.is_empty());
                dir.push(part);
            }
        }
        config
    }

    /// A container of the kubelet, which has made its log directory by then.
    pub fn container(
        &self,
        pod: &PodSandboxConfig,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> ContainerConfig {
        self.make_log_directory(&Path::new(&pod.log_directory).join(name));
        container_config(name, image, command)
    }

    /// Where a container's log will be.
    pub fn log_path(&self, pod: &PodSandboxConfig, container: &ContainerConfig) -> PathBuf {
        Path::new(&pod.log_directory).join(&container.log_path)
    }

    /// Runs a pod with one container.
    pub async fn run(&self, pod: &PodSandboxConfig, container: &ContainerConfig) -> Answer<Running> {
        let id = self.cri.run_pod(pod).await?;
        self.run_in(&id, pod, container).await
    }

    /// Runs a container in a pod that is there.
    pub async fn run_in(
        &self,
        id: &str,
        pod: &PodSandboxConfig,
        container: &ContainerConfig,
    ) -> Answer<Running> {
        let created = self.cri.create(id, pod, container).await?;
        self.cri.start(&created).await?;
        Ok(Running { pod: id.into(), container: created, log: self.log_path(pod, container) })
    }

    /// Runs a pod with one busybox container that runs a shell script.
    pub async fn run_script(&self, name: &str, script: &str) -> Running {
        let image = self.image("busybox").await;
        let pod = self.pod(name);
        let container = self.container(&pod, "main", &image, &["sh", "-euc", script]);
        self.run(&pod, &container).await.unwrap_or_else(|status| panic!("run {name}: {status:?}"))
    }

    /// Runs a pod without containers; `change` is made to what the kubelet would send.
    pub async fn run_pod(&self, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod {
        let mut config = self.pod(name);
        change(&mut config);
        let id = self.cri.run_pod(&config).await.unwrap_or_else(|status| panic!("run {name}: {status:?}"));
        Pod { id, config }
    }

    /// Runs a container in a pod to its end; `change` is made to what the kubelet would send.
    pub async fn run_to_end(
        &self,
        pod: &Pod,
        config: ContainerConfig,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Ended {
        let mut config = config;
        change(&mut config);
        let started = self.run_in(&pod.id, &pod.config, &config).await;
        let started = started.unwrap_or_else(|status| panic!("run a container: {status:?}\n{config:?}"));
        let status = self.cri.exited(&started.container).await;
        let entries = log::read(&started.log).unwrap_or_else(|error| panic!("log: {error}"));
        let text = |stream: &str| String::from_utf8_lossy(&log::stream(&entries, stream)).into_owned();
        Ended { container: started.container, status, stdout: text("stdout"), stderr: text("stderr") }
    }

    /// Runs a shell script in a new busybox container of a pod, changed as the test wants it; it must succeed.
    pub async fn script(&self, pod: &Pod, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("script-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let image = self.images.image_id("busybox");
        let config = self.container(&pod.config, &name, &image, &["sh", "-euc", script]);
        let ended = self.run_to_end(pod, config, change).await;
        assert_eq!(
            ended.status.exit_code, 0,
            "{script}\n{}{}\n{:?}",
            ended.stdout, ended.stderr, ended.status
        );
        ended.stdout
    }

    /// Listens on a port of 127.0.0.1 in the network namespace of a container, from this process: what the
    /// application does with its connections is up to the test.
    pub async fn listen_in(&self, container: &str, port: u16) -> TcpListener {
        let namespace = self.cri.sh(container, "readlink /proc/self/ns/net").await;
        let listener = self.world.in_network_named(namespace.trim(), || {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
            listener.set_nonblocking(true).map(|()| listener)
        });
        listener.and_then(TcpListener::from_std).unwrap_or_else(|error| panic!("listen on {port}: {error}"))
    }

    /// Stops and removes a pod.
    pub async fn remove(&self, pod: &str) {
        self.cri.stop_pod(pod).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status:?}"));
        self.cri.remove_pod(pod).await.unwrap_or_else(|status| panic!("RemovePodSandbox: {status:?}"));
    }

    /// What the node holds now, once everything is there that the first pod brings: a pod was run and removed.
    pub async fn baseline(&self) -> Ledger {
        let first = self.run_script("baseline", "exit 0").await;
        self.cri.exited(&first.container).await;
        self.remove(&first.pod).await;
        self.remove_pod_cgroups();
        // While counts differ, the first pod is still being taken down and pools are being filled.
        let end = tokio::time::Instant::now() + SETTLE;
        let mut ledger = Ledger::take(&self.scope());
        loop {
            tokio::time::sleep(QUIET).await;
            let now = Ledger::take(&self.scope());
            let difference = ledger.difference(&now);
            if difference.is_empty() {
                return ledger;
            }
            assert!(tokio::time::Instant::now() < end, "the node does not come to rest:\n{difference}");
            ledger = now;
        }
    }

    /// Fails unless the node holds what it held before.
    #[track_caller]
    pub fn assert_nothing_left(&self, before: &Ledger) {
        self.remove_pod_cgroups();
        let mut scope = self.scope();
        let mut before = before.clone();
        if self.restarted {
            scope.daemon = None;
            before = before.without_daemon();
        }
        if let Err(difference) = before.settled(&scope, SETTLE) {
            panic!("left behind:\n{difference}");
        }
    }

    /// Fails unless a call failed with a code and a text that names its subject.
    #[track_caller]
    pub fn assert_fails<T: Debug>(&self, answer: Answer<T>, code: tonic::Code, subject: &str) {
        let (got, text) = crate::cri::failure(answer);
        assert_eq!(got, code, "{text}");
        assert!(text.contains(subject), "{subject:?} is not named in {text:?}");
    }

    /// Starts the daemon after it has ended, with a new connection, as the kubelet makes one.
    pub fn restart(&mut self) {
        self.daemon.start_again();
        self.cri = Cri::new(&self.daemon.socket);
        self.restarted = true;
    }

    /// What is counted: everything, with the store and the state of the daemon.
    pub fn scope(&self) -> Scope<'_> {
        Scope {
            world: &self.world,
            daemon: Some(self.daemon.process().pid),
            places: vec![self.daemon.root.clone(), self.daemon.run.clone()],
            except: Vec::new(),
        }
    }

    /// Where the kubelet has the logs of pods.
    pub fn logs(&self) -> PathBuf {
        self.world.dir().join("logs")
    }

    /// What the kubelet does after its pods are gone: a cgroup that is not empty stays, and shows.
    fn remove_pod_cgroups(&self) {
        for cgroup in self.world.cgroups() {
            for parent in ["kubepods/besteffort", "kubepods"] {
                let dir = cgroup.dir.join(parent);
                let pods = fs::read_dir(&dir).into_iter().flatten().flatten();
                for pod in pods.filter(|entry| entry.file_name().to_string_lossy().starts_with("pod")) {
                    let _ = fs::remove_dir(pod.path());
                }
                let _ = fs::remove_dir(&dir);
            }
        }
    }

    fn make_log_directory(&self, path: &Path) {
        fs::create_dir_all(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Makes a cgroup as the kubelet does, with everything its parent may use.
fn make_cgroup(parent: &Path, name: &str, v2: bool) {
    let dir = parent.join(name);
    if dir.exists() {
        return;
    }
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    if v2 {
        for controller in read(parent.join("cgroup.controllers")).split_whitespace() {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !v2 && dir.join(file).exists() {
            let value = read(parent.join(file));
            fs::write(dir.join(file), value.trim())
                .unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        }
    }
}
