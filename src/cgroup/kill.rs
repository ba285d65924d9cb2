//! Processes of a cgroup: list, kill, freeze, thaw.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup::{Cgroup, children};
use crate::detect::{Kind, Mount};
use crate::error::{CgroupError, Result};
use crate::{file, unified};

/// A frozen state takes microseconds, unless a process sits in an uninterruptible wait.
const FREEZE_PATIENCE: Duration = Duration::from_secs(2);
/// Per round of `kill_all`: a process that cannot be frozen cannot fork either.
const KILL_FREEZE_PATIENCE: Duration = Duration::from_millis(20);
/// Rounds of freeze, list and kill; the second one normally finds nothing new.
const KILL_ROUNDS: usize = 64;
/// Trees to list processes by, best first: what v1 freezes is what it lists.
const LISTING: [&str; 4] = ["freezer", "pids", "memory", "devices"];
const STEP: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Ids of the processes in it and in the cgroups below it, as this process's PID namespace numbers them.
    /// Empty when the cgroup is gone.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let mount = self.listing()?;
        let mut pids = BTreeSet::new();
        collect(mount, self.relative(), &mut pids)?;
        Ok(pids.into_iter().filter_map(Pid::from_raw).collect())
    }

    /// Sends SIGKILL to every process in it and below it, however fast they fork, frozen or not. Returns when
    /// all have been signalled, not when all are gone. A cgroup that is gone is success.
    pub fn kill_all(&self) -> Result<()> {
        // One write does it where the v2 tree knows all processes (5.14); on a hybrid the v1 trees decide.
        if let Some(mount) = self.hierarchy().v2() {
            match file::write_text(mount.dir(), &format!("{}/cgroup.kill", self.relative()), "1") {
                Ok(()) if self.freezer().is_none() => return Ok(()),
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(mount.failed("kill", self.relative(), errno)),
            }
        }
        let mut signalled = BTreeSet::new();
        for _ in 0..KILL_ROUNDS {
            if self.pids()?.is_empty() {
                break;
            }
            self.request_freeze(KILL_FREEZE_PATIENCE);
            let outcome = self.kill_listed(&mut signalled);
            // A frozen process dies only when it is thawed, on v1.
            self.thaw()?;
            if outcome? == 0 {
                return Ok(());
            }
        }
        match self.pids()?.iter().find(|pid| !signalled.contains(&pid.as_raw_nonzero().get())) {
            None => self.thaw(),
            Some(pid) => {
                Err(CgroupError::Busy { path: self.relative().into(), pid: Some(pid.as_raw_nonzero().get()) })
            }
        }
    }

    /// Stops every process in it. Waits until the kernel says so, at most two seconds; then everything is
    /// thawed again and the error says that it was not possible.
    pub fn freeze(&self) -> Result<()> {
        if self.request_freeze(FREEZE_PATIENCE) {
            return Ok(());
        }
        if !self.exists()? {
            return Err(CgroupError::NotFound { path: self.path().to_string() });
        }
        self.thaw()?;
        Err(CgroupError::TimedOut { path: self.relative().into(), state: "frozen", waited: FREEZE_PATIENCE })
    }

    /// Whether it is frozen, by its own setting or one above it.
    pub fn is_frozen(&self) -> bool {
        let (mount, file) = match (self.freezer(), self.hierarchy().v2()) {
            (Some(mount), _) => (mount, "freezer.state"),
            (None, Some(mount)) => (mount, "cgroup.events"),
            (None, None) => return false,
        };
        let text = file::read_text(mount.dir(), &format!("{}/{file}", self.relative()));
        text.is_ok_and(|text| text.trim() == "FROZEN" || text.contains("frozen 1"))
    }

    /// Lets every process in it go on.
    pub fn thaw(&self) -> Result<()> {
        let (mount, file, value) = match self.freezer() {
            Some(mount) => (mount, "freezer.state", "THAWED"),
            None => (self.listing()?, "cgroup.freeze", "0"),
        };
        let path = format!("{}/{file}", self.relative());
        match file::write_text(mount.dir(), &path, value) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(errno) => Err(mount.failed("write", &path, errno)),
        }
    }

    /// The v1 freezer, if that is what freezes here.
    fn freezer(&self) -> Option<&Mount> {
        self.hierarchy().v1("freezer")
    }

    fn listing(&self) -> Result<&Mount> {
        LISTING
            .iter()
            .find_map(|controller| self.hierarchy().v1(controller))
            .or_else(|| self.hierarchy().v2())
            .or_else(|| self.hierarchy().mounts().first())
            .ok_or(CgroupError::NoHierarchy)
    }

    /// Whether it is frozen before the time is over.
    fn request_freeze(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let v1 = self.freezer();
        loop {
            // v1 stays FREEZING for good when a process forked at the wrong moment; writing again helps.
            let (mount, file, value, state) = match (v1, self.hierarchy().v2()) {
                (Some(mount), _) => (mount, "freezer.state", "FROZEN", "freezer.state"),
                (None, Some(mount)) => (mount, "cgroup.freeze", "1", "cgroup.events"),
                (None, None) => return false,
            };
            let at = |name: &str| format!("{}/{name}", self.relative());
            if file::write_text(mount.dir(), &at(file), value).is_err() {
                return false;
            }
            match file::read_text(mount.dir(), &at(state)) {
                Ok(text) if text.trim() == "FROZEN" || text.contains("frozen 1") => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match mount.kind {
                Kind::V1 => std::thread::sleep(STEP.min(left)),
                Kind::V2 => unified::wait_for_change(mount, self.relative(), left.min(STEP * 10)),
            }
        }
    }

    /// Kills what is listed and was not signalled before; the number of those.
    fn kill_listed(&self, signalled: &mut BTreeSet<i32>) -> Result<usize> {
        // A pid may be reused between the listing and the opening. It is the right process if the pid is still
        // listed after its descriptor was opened.
        let opened: Vec<_> = self
            .pids()?
            .into_iter()
            .filter(|pid| !signalled.contains(&pid.as_raw_nonzero().get()))
            .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
            .collect();
        let listed: BTreeSet<i32> = self.pids()?.iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let mut count = 0;
        for (pid, pidfd) in opened {
            let pid = pid.as_raw_nonzero().get();
            if listed.contains(&pid) {
                match pidfd_send_signal(&pidfd, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(errno) => {
                        return Err(CgroupError::Io {
                            operation: "kill",
                            controller: "freezer".to_owned(),
                            path: format!("/proc/{pid}").into(),
                            errno,
                        });
                    }
                }
                signalled.insert(pid);
                count += 1;
            }
        }
        Ok(count)
    }
}

fn collect(mount: &Mount, relative: &str, pids: &mut BTreeSet<i32>) -> Result<()> {
    let procs = format!("{relative}/cgroup.procs");
    let text = match file::read_text(mount.dir(), procs.trim_start_matches('/')) {
        Ok(text) => text,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        // A threaded v2 cgroup: its processes are listed at the domain above.
        Err(Errno::OPNOTSUPP) => String::new(),
        Err(errno) => return Err(mount.failed("read", &procs, errno)),
    };
    // 0 is a process of another PID namespace; it has no name here.
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0));
    let children = match children(mount.dir(), if relative.is_empty() { "." } else { relative }) {
        Ok(children) => children,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(mount.failed("list", relative, errno)),
    };
    for child in children {
        collect(mount, &format!("{relative}/{child}"), pids)?;
    }
    Ok(())
}
