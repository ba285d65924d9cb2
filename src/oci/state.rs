//! A container as it is on disk and in the kernel: record, lock, status; the verbs state, pause and resume.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use pinnace_cgroup::{Cgroup, CgroupPath, Hierarchy};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::runtime::Runtime;

/// Largest config.json or record that is read.
const FILE_BYTES: u64 = 16 << 20;

pub(crate) const START_SOCKET: &str = "start.sock";
const RECORD: &str = "state.json";
pub(crate) const CONFIG: &str = "config.json";

/// Names one container.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Container id
    id: String,
}

/// What is remembered of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub oci_version: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// Path inside the cgroup hierarchies.
    pub cgroup: String,
    /// RFC 3339.
    pub created: String,
    pub annotations: HashMap<String, String>,
    /// Of the container's first process; none while it is being created.
    pub process: Option<ProcessId>,
    pub started: bool,
    /// The container's own user namespace.
    pub user: Option<UserNamespace>,
}

/// A process that no later one of the same number is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub pid: i32,
    /// When it was started, in clock ticks since boot.
    pub start_ticks: u64,
}

/// Root of a user namespace, outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserNamespace {
    /// `CLONE_NEW*` that it owns.
    pub own: u64,
    pub uid: u32,
    pub gid: u32,
}

/// The lifecycle of the runtime spec, with `paused` as runc has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container that exists.
#[derive(Debug)]
pub(crate) struct Container {
    pub directory: PathBuf,
    pub record: Record,
}

/// Held while something is changed.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code, reason = "held, not used")] File);

impl Container {
    /// Finds it by its id.
    pub fn find(runtime: &Runtime, id: &str) -> anyhow::Result<Self> {
        let directory = runtime.directory(id)?;
        match read_json(&directory.join(RECORD)) {
            Ok(record) => Ok(Self { directory, record }),
            Err(error) if is_not_found(&error) && directory.is_dir() => {
                bail!(
                    "container {id} is being created, or its creation was interrupted: delete --force removes it"
                )
            }
            Err(error) if is_not_found(&error) => bail!("container {id} does not exist"),
            Err(error) => Err(error).with_context(|| format!("container {id}")),
        }
    }

    /// Finds it and keeps others from changing it meanwhile.
    pub fn find_locked(runtime: &Runtime, id: &str) -> anyhow::Result<(Self, Lock)> {
        let found = Self::find(runtime, id)?;
        let lock = found.lock()?;
        // Whoever had the lock may have changed or removed it.
        Ok((Self::find(runtime, id)?, lock))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.directory.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).with_context(|| format!("lock {}", path.display())),
            }
        }
    }

    /// Writes the record: readers see the old one or the new one.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = self.directory.join(RECORD);
        let temporary = self.directory.join(format!(".{RECORD}"));
        let bytes = serde_json::to_vec(&self.record)?;
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// The configuration that it was created with.
    pub fn spec(&self) -> anyhow::Result<Spec> {
        read_json(&self.directory.join(CONFIG))
    }

    /// What it does now.
    pub fn status(&self) -> anyhow::Result<Status> {
        let Some(process) = self.record.process else { return Ok(Status::Creating) };
        if !process.is_alive() {
            return Ok(Status::Stopped);
        }
        if !self.record.started {
            return Ok(Status::Created);
        }
        match self.cgroup() {
            Ok(cgroup) if cgroup.is_frozen() => Ok(Status::Paused),
            _ => Ok(Status::Running),
        }
    }

    /// Its cgroup, which exists.
    pub fn cgroup(&self) -> anyhow::Result<Cgroup> {
        let path = CgroupPath::try_from(self.record.cgroup.as_str())?;
        Ok(Cgroup::open(&Hierarchy::detect()?, &path)?)
    }

    /// A descriptor of its first process, which lives.
    pub fn pidfd(&self) -> anyhow::Result<OwnedFd> {
        let process = self.record.process.filter(ProcessId::is_alive);
        let gone = || anyhow::anyhow!("container {} has no process", self.record.id);
        let process = process.ok_or_else(gone)?;
        let pidfd = pidfd_open(Pid::from_raw(process.pid).ok_or_else(gone)?, PidfdFlags::empty())?;
        // Still the same one: its number was not given to another before the descriptor was open.
        if process.is_alive() { Ok(pidfd) } else { Err(gone()) }
    }

    /// The state as the runtime spec has it.
    pub fn state(&self, status: Status) -> serde_json::Value {
        let record = &self.record;
        let pid = record.process.filter(|_| status != Status::Stopped).map_or(0, |process| process.pid);
        let mut state = state_json(record, status, pid);
        if let Some(map) = state.as_object_mut() {
            map.insert("rootfs".to_owned(), record.rootfs.display().to_string().into());
            map.insert("created".to_owned(), record.created.clone().into());
            map.insert("owner".to_owned(), "".into());
        }
        state
    }

    /// An error that says what the container is, unless it is one of these.
    pub fn expect(&self, allowed: &[Status], what: &str) -> anyhow::Result<Status> {
        let status = self.status()?;
        if !allowed.contains(&status) {
            let wanted = allowed.iter().map(|status| status.name()).collect::<Vec<_>>().join(" or ");
            bail!("cannot {what} container {}: it is {}, not {wanted}", self.record.id, status.name());
        }
        Ok(status)
    }
}

/// The fields that hooks get, too.
pub(crate) fn state_json(record: &Record, status: Status, pid: i32) -> serde_json::Value {
    let mut state = serde_json::json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status.name(),
        "bundle": record.bundle,
    });
    if let Some(map) = state.as_object_mut() {
        // Zero for runc's callers, which expect the field.
        map.insert("pid".to_owned(), pid.into());
        if !record.annotations.is_empty() {
            map.insert("annotations".to_owned(), serde_json::json!(record.annotations));
        }
    }
    state
}

impl ProcessId {
    /// The process of that number as it is now.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        let (_, start_ticks) = stat(pid).ok_or_else(|| anyhow::anyhow!("process {pid} ended"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it has not ended; one that waits to be reaped has.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, ticks)| ticks == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }
}

/// State and start time (proc_pid_stat(5)). The name before them may hold anything, a bracket too.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    // The state is the third field, the start time the twenty-second.
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Reads a file of bounded size.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES {
        bail!("{} is larger than 16 MiB", path.display());
    }
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

impl Arguments {
    /// `state`.
    pub fn print(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let container = Container::find(runtime, &self.id)?;
        let state = container.state(container.status()?);
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&state)?)?;
        Ok(())
    }

    /// `pause`.
    pub fn pause(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let (container, _lock) = Container::find_locked(runtime, &self.id)?;
        container.expect(&[Status::Created, Status::Running], "pause")?;
        Ok(container.cgroup()?.freeze()?)
    }

    /// `resume`.
    pub fn resume(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let (container, _lock) = Container::find_locked(runtime, &self.id)?;
        container.expect(&[Status::Paused], "resume")?;
        Ok(container.cgroup()?.thaw()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_number_and_its_start() {
        let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start_ticks: own.start_ticks + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        child.kill().unwrap();
        // Not reaped, but over.
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        rustix::event::poll(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None)
            .unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
