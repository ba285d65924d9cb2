//! The node: everything that the daemon's operations work on.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use oci_spec::runtime::LinuxSeccomp;
use pinnace_cgroup::{Driver, Hierarchy, Systemd};
use pinnace_pull::Puller;
use pinnace_push::Pusher;
use pinnace_registry::Client;
use pinnace_seccomp::{KernelVersion, ProgramCache};
use pinnace_spec::Facts;
use pinnace_spec::cdi;
use pinnace_spec::process::{Host, SeccompProgram};
use pinnace_store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apparmor::DefaultProfile;
use crate::config::Config;
use crate::container::Container;
use crate::container::record::ContainerName;
use crate::error::Error;
use crate::events::Events;
use crate::handlers::Handlers;
use crate::id::{ContainerId, SandboxId};
use crate::local::Local;
use crate::network::PodNetworks;
use crate::operation::Operations;
use crate::sandbox::Sandbox;
use crate::sandbox::record::{SandboxConfig, SandboxName};
use crate::selinux::Selinux;
use crate::table::{Lookup, Table};

/// What the daemon holds; shared by all operations.
#[derive(Debug)]
pub struct Node {
    /// For operations that go on after the call that began them.
    this: Weak<Node>,
    /// As loaded.
    pub config: Config,
    /// Content, layers, snapshots, images.
    pub store: Store,
    /// Registries to store.
    pub puller: Puller,
    /// The registries themselves.
    pub registry: Arc<Client>,
    /// Store to registries.
    pub pusher: Pusher,
    /// Pod networks.
    pub network: PodNetworks,
    /// The machine's cgroups.
    pub hierarchy: Hierarchy,
    /// systemd, if it is the driver of cgroups.
    pub systemd: Option<Systemd>,
    /// What the kernel and this process can do.
    pub facts: Arc<Facts>,
    /// Whether containers can have the default AppArmor profile.
    pub apparmor: DefaultProfile,
    /// Devices of the Container Device Interface.
    pub cdi: cdi::Registry,
    /// Labels.
    pub selinux: Selinux,
    /// For the seccomp profile.
    pub kernel: KernelVersion,
    /// Compiled filters, one per distinct profile.
    pub programs: Arc<ProgramCache>,
    /// The monitor's program, sealed (rule R6, CVE-2019-5736).
    pub monitor_program: OwnedFd,
    /// Where sandboxes and containers tell what happens to them.
    pub events: Events,
    /// Whether pods can have user namespaces, as found out at start.
    pub user_namespaces: bool,
    /// Pod sandboxes.
    pub sandboxes: Table<SandboxName, Sandbox>,
    /// Containers.
    pub containers: Table<(SandboxId, ContainerName), Container>,
    /// Containers of the command line.
    pub local: Local,
    /// Handlers beside pinnace itself.
    pub handlers: Handlers,
    /// RunPodSandbox calls under way.
    pub sandbox_runs: Operations<SandboxName, SandboxId>,
    /// CreateContainer calls under way.
    pub container_creations: Operations<(SandboxId, ContainerName), ContainerId>,
    /// All operations; shutdown waits for them.
    pub tasks: TaskTracker,
    /// Cancelled when the daemon begins to go down.
    pub closing: CancellationToken,
}

/// The parts that are opened before a node is made of them.
#[derive(Debug)]
pub struct Parts {
    /// As loaded.
    pub config: Config,
    /// Content, layers, snapshots, images.
    pub store: Store,
    /// Registries to store.
    pub puller: Puller,
    /// The registries themselves.
    pub registry: Arc<Client>,
    /// Store to registries.
    pub pusher: Pusher,
    /// Pod networks.
    pub network: PodNetworks,
    /// The machine's cgroups.
    pub hierarchy: Hierarchy,
    /// systemd, if it is the driver of cgroups.
    pub systemd: Option<Systemd>,
    /// What the kernel and this process can do.
    pub facts: Facts,
    /// Whether containers can have the default AppArmor profile.
    pub apparmor: DefaultProfile,
    /// For the seccomp profile.
    pub kernel: KernelVersion,
    /// The monitor's program, sealed.
    pub monitor_program: OwnedFd,
    /// Whether pods can have user namespaces.
    pub user_namespaces: bool,
}

impl Node {
    /// A node with nothing on it yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let tasks = TaskTracker::new();
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            cdi: cdi::Registry::new(parts.config.container.cdi_spec_dirs.clone()),
            selinux: Selinux::new(parts.facts.selinux, parts.config.container.selinux),
            local: Local::new(&parts.config),
            handlers: Handlers::new(&parts.config.runtimes, &parts.config.daemon.run),
            config: parts.config,
            store: parts.store,
            puller: parts.puller,
            registry: parts.registry,
            pusher: parts.pusher,
            network: parts.network,
            hierarchy: parts.hierarchy,
            systemd: parts.systemd,
            facts: Arc::new(parts.facts),
            apparmor: parts.apparmor,
            kernel: parts.kernel,
            programs: Arc::new(ProgramCache::new()),
            monitor_program: parts.monitor_program,
            events: Events::default(),
            user_namespaces: parts.user_namespaces,
            sandboxes: Table::default(),
            containers: Table::default(),
            sandbox_runs: Operations::new(tasks.clone()),
            container_creations: Operations::new(tasks.clone()),
            tasks,
            closing: CancellationToken::new(),
        })
    }

    /// Itself, for a task.
    pub fn shared(&self) -> Result<Arc<Self>, Error> {
        self.this.upgrade().ok_or(Error::ShuttingDown)
    }

    /// The sandbox with this id or unique prefix.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        self.sandboxes.find_among(id, |sandbox| sandbox.config.local.is_none()).map_err(|lookup| match lookup
        {
            Lookup::Missing => Error::SandboxNotFound(id.to_owned()),
            Lookup::Ambiguous => Error::AmbiguousId { kind: "sandbox", prefix: id.to_owned() },
        })
    }

    /// The container with this id or unique prefix.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let of_pod = |container: &Container| container.sandbox.config.local.is_none();
        self.containers.find_among(id, of_pod).map_err(|lookup| match lookup {
            Lookup::Missing => Error::ContainerNotFound(id.to_owned()),
            Lookup::Ambiguous => Error::AmbiguousId { kind: "container", prefix: id.to_owned() },
        })
    }

    /// The containers of a sandbox.
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let mut containers = self.containers.all();
        containers.retain(|container| container.sandbox.id == *sandbox);
        containers
    }

    /// The sandboxes that the CRI shows: all but those of containers of the command line.
    pub fn pods(&self) -> Vec<Arc<Sandbox>> {
        let mut pods = self.sandboxes.all();
        pods.retain(|sandbox| sandbox.config.local.is_none());
        pods
    }

    /// The containers that the CRI shows.
    pub fn pod_containers(&self) -> Vec<Arc<Container>> {
        let mut containers = self.containers.all();
        containers.retain(|container| container.sandbox.config.local.is_none());
        containers
    }

    /// Where a sandbox tells what happens to it. Who listens to the CRI does not hear of containers of the command line.
    pub fn events_of(&self, config: &SandboxConfig) -> Events {
        match &config.local {
            None => self.events.clone(),
            Some(_) => Events::default(),
        }
    }

    /// All containers that the CRI shows by their sandboxes.
    pub fn containers_by_sandbox(&self) -> HashMap<SandboxId, Vec<Arc<Container>>> {
        let mut sandboxes = HashMap::<_, Vec<_>>::new();
        for container in self.pod_containers() {
            sandboxes.entry(container.sandbox.id.clone()).or_default().push(container);
        }
        sandboxes
    }

    /// Runs what blocks (mounts, cgroups, files) off the reactor.
    pub async fn blocking<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Node) -> Result<T, Error> + Send + 'static,
    {
        let node = self.shared()?;
        tokio::task::spawn_blocking(move || work(&node)).await?
    }

    /// Runs a mutation to its end even if the caller goes away (a handler's future is dropped with its client).
    pub async fn mutation<T, F, Fut>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Node>) -> Fut,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let node = self.shared()?;
        self.tasks.spawn(work(node)).await?
    }

    /// Compiles seccomp profiles for the lowering of a spec, each distinct one once.
    pub fn with_host<T>(&self, work: impl FnOnce(Host<'_>) -> T) -> T {
        let programs = Arc::clone(&self.programs);
        let hook = move |profile: &LinuxSeccomp| {
            let program = programs.compile(profile)?;
            Ok(SeccompProgram { bytes: program.bytes(), flags: program.flags() })
        };
        work(Host { facts: &self.facts, seccomp: &hook })
    }

    /// Who makes cgroups. The kubelet follows it, so it is what this program does, whatever runs the machine.
    pub fn cgroup_driver(&self) -> Driver {
        if self.systemd.is_some() { Driver::Systemd } else { Driver::Cgroupfs }
    }

    /// Directory of a sandbox's record and sockets.
    pub fn sandbox_directory(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes_directory().join(id.as_str())
    }

    /// Directory of a container's record.
    pub fn container_directory(&self, id: &ContainerId) -> PathBuf {
        self.containers_directory().join(id.as_str())
    }

    /// Where what is on its way to a registry, or from an archive, lies as files without names.
    pub fn spool_directory(&self) -> PathBuf {
        self.config.daemon.root.join("spool")
    }

    /// Where all sandboxes are.
    pub fn sandboxes_directory(&self) -> PathBuf {
        self.config.daemon.run.join("sandboxes")
    }

    /// Where all containers are.
    pub fn containers_directory(&self) -> PathBuf {
        self.config.daemon.run.join("containers")
    }

    /// Source by which a spec names the pod's `/dev/shm`; the monitor holds it, no such path exists.
    pub fn pod_shm_source(&self) -> &'static Path {
        Path::new("/run/pinnace/pod-shm")
    }
}
