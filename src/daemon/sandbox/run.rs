//! RunPodSandbox: record, namespaces, network, monitor; all of it or nothing.
//!
//! The record is on disk, as [`Phase::Starting`], before anything exists that could leak; a daemon that finds it so at
//! start-up undoes the rest ([`undo`] works from the id alone).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pinnace_cgroup::{Cgroup, CgroupError, CgroupPath, Driver};
use pinnace_launcher::namespaces::{Made, Wanted};
use pinnace_launcher::protocol::{Ready, Reply, Request, Setup};
use pinnace_spec::sysctl::{OwnedNamespaces, sysctls};

use super::record::{NamespaceMode, Phase, RECORD_VERSION, SandboxConfig, SandboxNetwork, SandboxRecord};
use super::remove::remove_cgroup;
use super::{Sandbox, files};
use crate::clock;
use crate::config::CgroupDriver;
use crate::error::{Error, Within as _};
use crate::events::Happened;
use crate::id::SandboxId;
use crate::monitor::Monitor;
use crate::network;
use crate::node::Node;
use crate::owner_map::OwnerMap;
use crate::record as disk;
use crate::selinux::Labels;

/// Sysctls that a pod with its own network gets unless it says otherwise: any user may bind low ports and ping, as the
/// peers have it.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), (PING_GROUPS, "0 2147483647")];

const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// oom_score_adj of a shared PID namespace's init: it goes after the pod's containers.
const INIT_OOM_SCORE_ADJ: i32 = -998;

/// Runs a sandbox, or joins the call that is running it.
pub async fn run(node: &Node, mut config: SandboxConfig) -> Result<SandboxId, Error> {
    if config.namespaces.network == NamespaceMode::Pod && config.hostname.is_empty() {
        config.hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    let what = format!("run sandbox {}", config.name);
    let operation = start(node.shared()?, SandboxId::random(), config.clone());
    let id = node.sandbox_runs.run(config.name, operation).await.within(|| what)?;
    if let Some(sandbox) = node.sandboxes.exact(id.as_str()) {
        sandbox.delivered.store(true, Ordering::Relaxed);
    }
    Ok(id)
}

/// Runs a sandbox under an id of the caller's choice.
pub(crate) async fn run_as(node: &Arc<Node>, id: SandboxId, config: SandboxConfig) -> Result<(), Error> {
    let what = format!("run sandbox {}", config.name);
    Box::pin(start(Arc::clone(node), id.clone(), config)).await.within(|| what)?;
    if let Some(sandbox) = node.sandboxes.exact(id.as_str()) {
        sandbox.delivered.store(true, Ordering::Relaxed);
    }
    Ok(())
}

async fn start(node: Arc<Node>, id: SandboxId, config: SandboxConfig) -> Result<SandboxId, Error> {
    if let Err(holder) = node.sandboxes.reserve(&config.name, id.as_str()) {
        return taken(&node, &config, &holder);
    }
    let name = config.name.clone();
    let built = Box::pin(build(&node, &id, config)).await;
    match built {
        Ok(sandbox) => {
            sandbox.follow_monitor(&node);
            node.sandboxes.insert(id.as_str(), Arc::clone(&sandbox));
            sandbox.tell(Happened::Created);
            sandbox.tell(Happened::Started);
            tracing::info!(sandbox_id = %id, name = %name, "sandbox ready");
            Ok(id)
        }
        Err(error) => {
            undo(&node, &id).await;
            node.sandboxes.release(&name, id.as_str());
            Err(error)
        }
    }
}

/// A sandbox of that name whose id nobody received, because the caller's deadline had passed, is what a retry wants.
fn taken(node: &Node, config: &SandboxConfig, holder: &str) -> Result<SandboxId, Error> {
    match node.sandboxes.exact(holder) {
        Some(sandbox)
            if !sandbox.delivered.load(Ordering::Relaxed)
                && sandbox.config == *config
                && sandbox.phase() == Phase::Ready =>
        {
            Ok(sandbox.id.clone())
        }
        _ => Err(Error::SandboxNameTaken { name: config.name.to_string(), holder: holder.to_owned() }),
    }
}

async fn build(node: &Arc<Node>, id: &SandboxId, config: SandboxConfig) -> Result<Arc<Sandbox>, Error> {
    assemble_labelled(node, id, config, Phase::Ready).await
}

/// A sandbox that is on no list. Its record says that it is being started: a daemon that finds it undoes it, as the caller
/// does in the end ([`undo`]).
pub(crate) async fn build_unlisted(
    node: &Arc<Node>,
    id: &SandboxId,
    config: SandboxConfig,
) -> Result<Arc<Sandbox>, Error> {
    assemble_labelled(node, id, config, Phase::Starting).await
}

async fn assemble_labelled(
    node: &Arc<Node>,
    id: &SandboxId,
    config: SandboxConfig,
    phase: Phase,
) -> Result<Arc<Sandbox>, Error> {
    let mut setup = setup(node, id, &config)?;
    let labels = node.selinux.of_pod(&config.selinux)?;
    setup.file_label = labels.as_ref().map(|labels| labels.file.clone()).unwrap_or_default();
    let kept = labels.clone();
    let built = assemble(node, id, config, phase, setup, labels).await;
    if let (Err(_), Some(labels)) = (&built, &kept) {
        node.selinux.release(labels);
    }
    built
}

async fn assemble(
    node: &Arc<Node>,
    id: &SandboxId,
    config: SandboxConfig,
    phase: Phase,
    setup: Setup,
    labels: Option<Labels>,
) -> Result<Arc<Sandbox>, Error> {
    let own_network = config.namespaces.network == NamespaceMode::Pod;
    let record = SandboxRecord {
        version: RECORD_VERSION,
        id: id.clone(),
        created_at_ns: clock::realtime_ns(),
        own_cgroup: own_cgroup(node, id, config.cgroup_parent.as_deref())?,
        config,
        phase: Phase::Starting,
        network: if own_network { SandboxNetwork::Detached } else { SandboxNetwork::Host },
        monitor_pid: 0,
        monitor_start_ticks: 0,
        init_pid: 0,
        labels,
    };
    let (sandbox, lease, descriptors) = node
        .blocking(move |node| {
            let directory = node.sandbox_directory(&record.id);
            let mut owned = made_for(node, &record.config)?;
            let netns = owned.as_mut().and_then(|made| made.network.take());
            let lease = own_network.then(|| node.network.lease(&record.id, &record.config, netns));
            let lease = lease.transpose()?;
            prepare(&directory, &record)?;
            let mut descriptors = vec![open_directory(&directory)?];
            descriptors.extend(lease.as_ref().map(|lease| duplicate(lease.fd())).transpose()?);
            let events = node.events_of(&record.config);
            let sandbox = Sandbox::new(record, directory, events);
            if let Some(made) = owned {
                descriptors.push(duplicate(made.user.as_fd())?);
                descriptors.extend(made.ipc);
                descriptors.extend(made.uts);
                sandbox.set_user_namespace(made.user);
            }
            Ok((sandbox, lease, descriptors))
        })
        .await?;
    let sandbox = Arc::new(sandbox);

    // The built-in network needs the namespace but not the monitor; both are waited for whatever becomes of the other, so
    // that nothing is still being made when a failure is undone.
    let (connected, monitor) =
        tokio::join!(network::connect(node, &sandbox, lease), monitor(node, &sandbox, setup, descriptors));
    let (monitor, ready) = monitor?;
    sandbox.set_monitor(Some(monitor));
    let attaching = async { node.network.complete(connected?, ready.pid).await };
    let network = attaching.await.within(|| "attach network".to_owned())?;
    sandbox.change(|record| {
        record.phase = phase;
        record.monitor_pid = ready.pid;
        record.init_pid = ready.init_pid;
        record.network = network;
    })?;
    Ok(sandbox)
}

/// The namespaces of a pod that has a user namespace: that has to own them.
fn made_for(node: &Node, config: &SandboxConfig) -> Result<Option<Made>, Error> {
    let Some(map) = &config.user_namespace else { return Ok(None) };
    let own_network = config.namespaces.network == NamespaceMode::Pod;
    let ipc = config.namespaces.ipc == NamespaceMode::Pod;
    let wanted = Wanted { network: own_network, ipc, uts: own_network };
    map.namespaces(node.monitor_program.as_fd(), wanted).map(Some)
}

fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    descriptor.try_clone_to_owned().map_err(Error::io("duplicate", "namespace"))
}

/// The cgroup of a pod whose client names no parent; the kubelet makes the parent that it names.
fn own_cgroup(node: &Node, id: &SandboxId, parent: Option<&str>) -> Result<Option<String>, Error> {
    if let Some(parent) = parent {
        let slice = parent.ends_with(".slice");
        if node.config.container.cgroup_driver == CgroupDriver::Systemd && !slice {
            let problem = format!("{parent:?} is no slice, and the cgroup driver is systemd");
            return Err(Error::invalid("linux.cgroup_parent", problem));
        }
        CgroupPath::of_parent(parent)?;
        return Ok(None);
    }
    let parent = match (node.config.container.cgroup_parent.as_str(), node.cgroup_driver()) {
        ("", Driver::Systemd) => "pinnace.slice",
        ("", Driver::Cgroupfs) => "/pinnace",
        (parent, _) => parent,
    };
    Ok(Some(CgroupPath::group_below(parent, id.as_str())?.to_string()))
}

fn prepare(directory: &Path, record: &SandboxRecord) -> Result<(), Error> {
    disk::make_directory(directory)?;
    disk::write(&Sandbox::record_path(directory), record)?;
    let hostname = match record.config.hostname.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    files::write(directory, &record.config, &hostname)?;
    if let Some(labels) = &record.labels {
        files::label(directory, &labels.file)?;
    }
    Ok(())
}

/// A directory as a descriptor that the monitor is given.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Error::io("open directory", path)(error.into()))
}

/// What the monitor is to become; everything that the caller can have got wrong is found here, before anything is made.
fn setup(node: &Node, id: &SandboxId, config: &SandboxConfig) -> Result<Setup, Error> {
    let own_network = config.namespaces.network == NamespaceMode::Pod;
    let owned = OwnedNamespaces {
        network: own_network,
        ipc: config.namespaces.ipc == NamespaceMode::Pod,
        uts: own_network,
    };
    let own_user = config.user_namespace.is_some();
    let defaults = DEFAULT_SYSCTLS.into_iter().filter(|(key, _)| {
        // The range names groups that a user namespace need not have.
        own_network && !config.sysctls.contains_key(*key) && !(own_user && *key == PING_GROUPS)
    });
    // In the order in which the descriptors are made: the run directory, then what there is of these.
    let mut slots = 1..;
    let mut slot = |there: bool| if there { slots.next() } else { None };
    let network = slot(own_network);
    let (user, ipc_namespace) = (slot(own_user), slot(own_user && owned.ipc));
    let uts_namespace = slot(own_user && owned.uts);
    let (root_uid, root_gid) = config.user_namespace.as_ref().map_or((0, 0), OwnerMap::root);
    let given = config.sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let floor = node.facts.oom_score_adj_floor.unwrap_or(INIT_OOM_SCORE_ADJ);
    Ok(Setup {
        sandbox_id: id.to_string(),
        run_directory: 0,
        network,
        ipc: owned.ipc,
        hostname: config.hostname.clone(),
        shm_bytes: config.local.as_ref().map_or(node.config.container.shm_size, |local| local.shm_bytes),
        sysctls: sysctls(defaults.chain(given), owned)?,
        share_pid: config.namespaces.pid == NamespaceMode::Pod,
        cgroup: None,
        oom_score_adj: Some(INIT_OOM_SCORE_ADJ.max(floor)),
        user,
        ipc_namespace,
        uts_namespace,
        root_uid,
        root_gid,
        file_label: String::new(),
        leaves: false,
    })
}

async fn monitor(
    node: &Arc<Node>,
    sandbox: &Sandbox,
    setup: Setup,
    descriptors: Vec<OwnedFd>,
) -> Result<(Arc<Monitor>, Ready), Error> {
    let monitor = Monitor::spawn(node, &sandbox.id).await?;
    let slots: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    match monitor.request(Request::Setup(setup), &slots).await {
        Ok(Reply::Ready(ready)) => Ok((monitor, ready)),
        Ok(other) => Err(Error::unexpected(&sandbox.id, &other)),
        Err(error) => {
            monitor.shutdown().await;
            Err(error)
        }
    }
}

/// The cgroup of what runs in a sandbox that is on no list; its container has the sandbox's id, so that [`undo`] finds it.
pub(crate) fn build_cgroup(parent: &str, id: &SandboxId) -> Result<CgroupPath, Error> {
    Ok(CgroupPath::for_container(parent, "pinnace", id.as_str())?)
}

/// Takes back whatever a run that failed or was cut short has made. Problems are logged: the caller already has one.
pub async fn undo(node: &Node, id: &SandboxId) {
    let directory = node.sandbox_directory(id);
    node.network.undo_plugins(id).await;
    let own = own_cgroup_recorded(&directory);
    if let Some(own) = own.clone() {
        // A monitor stays as long as something runs.
        let own_id = id.clone();
        let killed = node.blocking(move |node| match open(node, &build_cgroup(&own, &own_id)?)? {
            Some(cgroup) => Ok(cgroup.kill_all()?),
            None => Ok(()),
        });
        if let Err(error) = killed.await {
            tracing::error!(sandbox_id = %id, error = error.chain(), "kill what runs in a failed sandbox");
        }
    }
    match Monitor::connect(node, id, &directory).await {
        Ok((monitor, _)) => monitor.shutdown().await,
        Err(error) => tracing::debug!(sandbox_id = %id, error = error.chain(), "no monitor to end"),
    }
    if let Err(error) = take_back(node, id, own).await {
        tracing::error!(sandbox_id = %id, error = error.chain(), "undo a failed sandbox");
    }
}

async fn take_back(node: &Node, id: &SandboxId, own_cgroup: Option<String>) -> Result<(), Error> {
    let slice = own_cgroup.as_deref().map(CgroupPath::try_from).transpose()?;
    if let (Some(systemd), Some(slice)) = (&node.systemd, &slice) {
        systemd.stop_slice(slice).await?;
    }
    let id = id.clone();
    node.blocking(move |node| {
        if let (Some(own), Some(slice)) = (own_cgroup, slice) {
            remove_cgroup(node, &build_cgroup(&own, &id)?)?;
            remove_cgroup(node, &slice)?;
        }
        node.network.detach_built_in(&id, None)?;
        Ok(disk::remove_directory(&node.sandbox_directory(&id))?)
    })
    .await
}

/// The pod's cgroup, as the record says if there is one: without it nothing was run.
fn own_cgroup_recorded(directory: &Path) -> Option<String> {
    disk::read::<SandboxRecord>(&Sandbox::record_path(directory)).ok()?.own_cgroup
}

fn open(node: &Node, path: &CgroupPath) -> Result<Option<Cgroup>, Error> {
    match Cgroup::open(&node.hierarchy, path) {
        Err(CgroupError::NotFound { .. }) => Ok(None),
        found => Ok(Some(found?)),
    }
}
