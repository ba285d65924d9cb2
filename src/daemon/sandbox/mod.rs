//! Pod sandboxes: a monitor that holds the pod's namespaces, its network, and a record.

mod files;
pub mod port_forward;
pub mod record;
pub mod remove;
pub mod run;
pub mod stop;
pub mod update;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::container::exit;
use crate::error::Error;
use crate::events::{Events, Happened};
use crate::id::SandboxId;
use crate::monitor::{Monitor, Told};
use crate::node::Node;
use crate::record as disk;
use crate::stats;
use crate::table::lock;
use record::{Phase, SandboxConfig, SandboxNetwork, SandboxRecord};

/// A pod sandbox in memory.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub config: SandboxConfig,
    /// `CLOCK_REALTIME` ns of the request.
    pub created_at_ns: i64,
    /// Its directory below the run directory.
    pub directory: PathBuf,
    /// Stop and remove take it for writing, creation of a container for reading: none is made in a pod that goes.
    pub operation: tokio::sync::RwLock<()>,
    /// Set when a stop begins. A start sets its container to starting and then looks here, a stop sets this and then looks
    /// at the containers: at least one of them sees the other.
    pub closing: AtomicBool,
    /// Whether a caller has received the id; a retry may take over one that nobody received.
    pub delivered: AtomicBool,
    /// What statistics remember.
    pub stats: stats::Memory,
    /// Where it and its containers tell what happens.
    pub events: Events,
    /// A user namespace like the pod's, for showing the owners of files; made when it is first needed.
    user_namespace: Mutex<Option<Arc<OwnedFd>>>,
    record: Mutex<SandboxRecord>,
    monitor: Mutex<Option<Arc<Monitor>>>,
}

impl Sandbox {
    /// From its record.
    pub fn new(record: SandboxRecord, directory: PathBuf, events: Events) -> Self {
        Self {
            id: record.id.clone(),
            config: record.config.clone(),
            created_at_ns: record.created_at_ns,
            directory,
            operation: tokio::sync::RwLock::new(()),
            closing: AtomicBool::new(false),
            delivered: AtomicBool::new(false),
            stats: stats::Memory::default(),
            events,
            user_namespace: Mutex::new(None),
            record: Mutex::new(record),
            monitor: Mutex::new(None),
        }
    }

    /// Where the record lies below a sandbox's directory.
    pub fn record_path(directory: &Path) -> PathBuf {
        directory.join("sandbox.json")
    }

    /// A copy of the record.
    pub fn record(&self) -> SandboxRecord {
        lock(&self.record).clone()
    }

    /// A user namespace with the pod's mapping; `None` for a pod in the host's. Blocks for milliseconds the first time.
    pub fn user_namespace(&self, node: &Node) -> Result<Option<Arc<OwnedFd>>, Error> {
        let Some(map) = &self.config.user_namespace else { return Ok(None) };
        let mut kept = lock(&self.user_namespace);
        if kept.is_none() {
            *kept = Some(Arc::new(map.user_namespace(node.monitor_program.as_fd())?));
        }
        Ok(kept.clone())
    }

    /// Keeps a user namespace with the pod's mapping.
    pub fn set_user_namespace(&self, namespace: OwnedFd) {
        *lock(&self.user_namespace) = Some(Arc::new(namespace));
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        lock(&self.record).phase
    }

    /// Its network.
    pub fn network(&self) -> SandboxNetwork {
        lock(&self.record).network.clone()
    }

    /// Changes the record, on disk first.
    pub fn change(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), disk::Error> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        change(&mut next);
        disk::write(&Self::record_path(&self.directory), &next)?;
        if next.phase == Phase::Stopped && record.phase != Phase::Stopped {
            self.tell(Happened::Stopped);
        }
        *record = next;
        Ok(())
    }

    /// Tells the listeners of something that has happened to it.
    pub fn tell(&self, happened: Happened) {
        self.events.tell(self.id.as_str(), &self.id, happened);
    }

    /// Its monitor, while there is one.
    pub fn monitor(&self) -> Option<Arc<Monitor>> {
        lock(&self.monitor).clone()
    }

    /// Sets or takes away its monitor.
    pub fn set_monitor(&self, monitor: Option<Arc<Monitor>>) {
        *lock(&self.monitor) = monitor;
    }

    /// Acts on what the monitor tells until it is gone; a monitor that goes without having been told to is a loss.
    pub fn follow_monitor(self: &Arc<Self>, node: &Arc<Node>) {
        let Some(mut told) = self.monitor().and_then(|monitor| monitor.take_told()) else { return };
        let sandbox = Arc::clone(self);
        let node = Arc::clone(node);
        // Not one of the tracked tasks: it lives as long as the pod, and shutdown does not wait for pods.
        tokio::spawn(async move {
            while let Some(Told::Exited(exited)) = told.recv().await {
                if let Some(container) = node.containers.exact(&exited.container_id) {
                    exit::observed(&node, &container, &exited).await;
                }
            }
            if !node.closing.is_cancelled() && sandbox.monitor().is_some() {
                lost(&node, &sandbox).await;
            }
        });
    }
}

/// The monitor has vanished, and with it the output and exit codes of whatever ran: the containers are ended, the pod is
/// not ready any more, and the kubelet makes a new one.
async fn lost(node: &Arc<Node>, sandbox: &Arc<Sandbox>) {
    let _turn = sandbox.operation.write().await;
    // Or it was told to go, and this is only the end of its connection.
    if sandbox.phase() == Phase::Stopped {
        return;
    }
    tracing::error!(sandbox_id = %sandbox.id, "the monitor of this sandbox is gone");
    sandbox.set_monitor(None);
    for container in node.containers_of(&sandbox.id) {
        exit::without_monitor(node, &container).await;
    }
    if let Err(error) = stop::release(node, sandbox).await {
        tracing::error!(sandbox_id = %sandbox.id, error = error.chain(), "release a lost sandbox");
    }
}
