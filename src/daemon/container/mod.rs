//! Containers: a snapshot, a spec, a record, and at most one life of a program.

pub mod attach;
pub mod create;
pub mod exec;
pub mod exec_sync;
pub mod exit;
pub mod external;
mod profile_file;
pub mod record;
pub mod remove;
pub mod request;
pub mod spec;
pub mod start;
pub mod stop;
pub mod stuck;
pub mod update;
pub mod volumes;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use pinnace_spec::process::Template;
use tokio::sync::watch;

use crate::events::Happened;
use crate::id::ContainerId;
use crate::record as disk;
use crate::sandbox::Sandbox;
use crate::stats;
use crate::table::lock;
use record::{ContainerRecord, Status};

/// A container in memory.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: Arc<Sandbox>,
    /// Its directory below the run directory.
    pub directory: PathBuf,
    /// One start, update or remove at a time; stopping needs no turn.
    pub operation: tokio::sync::Mutex<()>,
    /// Whether a caller has received the id; a retry may take over one that nobody received.
    pub delivered: AtomicBool,
    /// Its root file system, mounted at creation and handed over at start. Lost with the daemon; then mounted anew.
    pub rootfs: Mutex<Option<OwnedFd>>,
    /// The earliest deadline of a stop, so that a second one cannot extend the first.
    pub stop_deadline: Mutex<Option<tokio::time::Instant>>,
    /// What exec sessions have in common, once there was one.
    pub sessions: OnceLock<Template>,
    /// Groups of ended exec sessions that have left something running.
    pub leftover_sessions: Mutex<Vec<pinnace_cgroup::Session>>,
    /// What statistics remember.
    pub stats: stats::Memory,
    record: Mutex<ContainerRecord>,
    status: watch::Sender<Status>,
}

impl Container {
    /// From its record.
    pub fn new(record: ContainerRecord, sandbox: Arc<Sandbox>, directory: PathBuf) -> Self {
        Self {
            id: record.id.clone(),
            sandbox,
            directory,
            operation: tokio::sync::Mutex::new(()),
            delivered: AtomicBool::new(false),
            rootfs: Mutex::new(None),
            stop_deadline: Mutex::new(None),
            sessions: OnceLock::new(),
            leftover_sessions: Mutex::default(),
            stats: stats::Memory::default(),
            status: watch::Sender::new(record.status.clone()),
            record: Mutex::new(record),
        }
    }

    /// Where the record lies below a container's directory.
    pub fn record_path(directory: &Path) -> PathBuf {
        directory.join("container.json")
    }

    /// Where the OCI runtime spec lies below a container's directory.
    pub fn spec_path(directory: &Path) -> PathBuf {
        directory.join("config.json")
    }

    /// A copy of the record.
    pub fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows where it stands.
    pub fn follow(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Changes the record, on disk first, and tells the followers.
    pub fn change(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<(), disk::Error> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        change(&mut next);
        disk::write(&Self::record_path(&self.directory), &next)?;
        if next.status != record.status {
            self.tell_status(&record.status, &next.status);
        }
        *record = next;
        Ok(())
    }

    /// Tells the listeners of something that has happened to it.
    pub fn tell(&self, happened: Happened) {
        self.sandbox.events.tell(self.id.as_str(), &self.sandbox.id, happened);
    }

    /// An end that overtakes the news of the start is told after it.
    fn tell_status(&self, before: &Status, now: &Status) {
        self.status.send_replace(now.clone());
        match now {
            Status::Created | Status::Starting => {}
            Status::Running { .. } => self.tell(Happened::Started),
            Status::Exited(exit) => {
                if !matches!(before, Status::Running { .. }) && exit.started_at_ns != 0 {
                    self.tell(Happened::Started);
                }
                self.tell(Happened::Stopped);
            }
        }
    }

    /// Records something that has happened whether or not the disk takes it; says whether it did.
    pub fn observe(&self, change: impl Fn(&mut ContainerRecord)) -> Result<(), disk::Error> {
        let written = self.change(&change);
        if written.is_err() {
            let mut record = lock(&self.record);
            let before = record.status.clone();
            change(&mut record);
            self.tell_status(&before, &record.status);
        }
        written
    }
}
