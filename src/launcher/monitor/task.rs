//! A container or an exec session.
//!
//! ```text
//!              ┌─ hold ─► Held ─ Start ─┐       (with hooks: Paused ─ Start ─ before that)
//! Launch ─► Born ───────────────────────┴─► Running ─► Exited ─ Forget ─► gone
//!    │         │
//!    └─ failed ┴─► gone, once it has been reaped          exec sessions go as soon as they have exited
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::process::Pid;

use super::external::Foreign;
use super::pod::SIGHUP;
use super::poller::Interest;
use crate::failure::Failure;
use crate::init::UserNamespace;
use crate::log::{Lines, Log, Origin};
use crate::protocol::{ContainerState, Exited};

/// Whom to answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub connection: u32,
    pub id: u64,
}

/// An init that has not executed its program.
#[derive(Debug)]
pub(super) struct Birth {
    pub control: OwnedFd,
    /// Who waits for the launch or for the start; nobody while held.
    pub caller: Option<Caller>,
    /// When to give it up; none while held.
    pub deadline: Option<Instant>,
    pub hold: bool,
    /// It waits for hooks to have run.
    pub paused: bool,
    pub prepared: bool,
    /// What it said went wrong.
    pub failure: Option<Failure>,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Phase {
    Born(Birth),
    Running,
    Exited(Exited),
}

/// One stream of output.
#[derive(Debug)]
pub(super) struct Output {
    pub fd: OwnedFd,
    pub lines: Lines,
    pub watched: bool,
}

/// The way into stdin.
#[derive(Debug)]
pub(super) struct Input {
    pub fd: OwnedFd,
    /// What did not fit yet.
    pub queue: Vec<u8>,
    /// Close it when the queue is empty.
    pub closing: bool,
    pub interest: Interest,
}

/// Number of OOM kills in the task's cgroup, from an open file.
#[derive(Debug)]
pub(super) struct OomCounter {
    file: OwnedFd,
    before: u64,
    group: Option<Group>,
}

/// The counter of the group above, as it was when nothing of it could be this task's.
#[derive(Debug)]
struct Group {
    file: OwnedFd,
    seen: u64,
}

impl OomCounter {
    pub fn new(file: OwnedFd, group: Option<OwnedFd>) -> Self {
        let before = oom_kills(&file).unwrap_or(0);
        let group = group.map(|file| Group { seen: oom_kills(&file).unwrap_or(0), file });
        Self { file, before, group }
    }

    /// Whether there has been one since the launch. The kernel counts before it kills. When the cgroup is gone already,
    /// it is one of this task if the group has had one that no other task's end explains.
    pub fn has_grown(&self) -> bool {
        match (oom_kills(&self.file), &self.group) {
            (Some(now), _) => now > self.before,
            (None, Some(group)) => oom_kills(&group.file).is_some_and(|now| now > group.seen),
            (None, None) => false,
        }
    }

    /// What the group has had up to now was not this task's end.
    pub fn look_at_group(&mut self) {
        if let Some(group) = &mut self.group {
            group.seen = oom_kills(&group.file).unwrap_or(group.seen);
        }
    }
}

/// None when the cgroup has been removed.
fn oom_kills(file: &OwnedFd) -> Option<u64> {
    let mut bytes = [0u8; 1024];
    let length = rustix::io::pread(file, &mut bytes[..], 0).ok()?;
    Some(count_oom_kills(bytes.get(..length).unwrap_or_default()))
}

/// `oom_kill N` is in `memory.events` (v2) and `memory.oom_control` (v1) alike.
fn count_oom_kills(text: &[u8]) -> u64 {
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"oom_kill "))
        .and_then(|number| std::str::from_utf8(number).ok()?.trim().parse().ok())
        .unwrap_or(0)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Task {
    pub container_id: String,
    /// Empty for the container itself.
    pub exec_id: String,
    /// The pod's user namespace, if it has one.
    pub user: Option<UserNamespace>,
    /// Connection that asked for it.
    pub owner: u32,
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub phase: Phase,
    pub started_at_ns: i64,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub input: Option<Input>,
    /// Whether a terminal, once it comes, is to be written to.
    pub interactive: bool,
    pub stdin_once: bool,
    pub terminal: bool,
    /// Nobody is at the other end of an exec session's terminal any more.
    pub hung_up: bool,
    pub max_line_bytes: u32,
    pub log: Option<Log>,
    pub oom: Option<OomCounter>,
    /// Another runtime's commands that have not made it yet.
    pub foreign: Option<Box<Foreign>>,
}

impl Task {
    pub fn is_container(&self) -> bool {
        self.exec_id.is_empty()
    }

    pub fn is_named(&self, container_id: &str, exec_id: &str) -> bool {
        self.container_id == container_id && self.exec_id == exec_id
    }

    pub fn has_exited(&self) -> bool {
        matches!(self.phase, Phase::Exited(_))
    }

    /// Whether it does not need a monitor: it has its streams, and nobody waits for a word of init's.
    pub fn can_be_left(&self) -> bool {
        let settled = match &self.phase {
            Phase::Born(birth) => birth.prepared && birth.caller.is_none(),
            Phase::Running | Phase::Exited(_) => true,
        };
        settled && self.stdout.is_none() && self.stderr.is_none() && self.input.is_none()
    }

    pub fn output(&mut self, origin: Origin) -> &mut Option<Output> {
        match origin {
            Origin::Stdout => &mut self.stdout,
            Origin::Stderr => &mut self.stderr,
        }
    }

    /// When something is to be done about it if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Born(birth) => birth.deadline,
            Phase::Running | Phase::Exited(_) => None,
        }
    }

    /// Signals its first process.
    pub fn signal(&self, number: i32) -> Result<(), rustix::io::Errno> {
        pinnace_sys::process::signal(self.pidfd.as_fd(), number)
    }

    /// SIGHUP for its process group, as a terminal gives it to the foreground: a shell without one is in the group of
    /// what it waits for. The number is its own as long as it has not been reaped.
    pub fn hang_up(&self) -> Result<(), rustix::io::Errno> {
        match rustix::process::kill_process_group(self.pid, rustix::process::Signal::HUP) {
            // Not yet the leader of a group.
            Err(rustix::io::Errno::SRCH) => self.signal(SIGHUP),
            other => other,
        }
    }

    pub fn state(&self) -> ContainerState {
        let (pid, exit) = match &self.phase {
            Phase::Exited(exited) => (0, Some(exited.clone())),
            _ => (self.pid.as_raw_nonzero().get(), None),
        };
        ContainerState {
            container_id: self.container_id.clone(),
            pid,
            held: matches!(&self.phase, Phase::Born(birth) if birth.hold && birth.prepared),
            started_at_ns: self.started_at_ns,
            exit,
            log_dropped_bytes: self.log.as_ref().map_or(0, Log::dropped_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_read_from_both_hierarchies() {
        assert_eq!(count_oom_kills(b"low 0\nhigh 0\nmax 4\noom 2\noom_kill 3\noom_group_kill 1\n"), 3);
        assert_eq!(count_oom_kills(b"oom_kill_disable 0\nunder_oom 0\noom_kill 12\n"), 12);
        assert_eq!(count_oom_kills(b""), 0);
    }
}
