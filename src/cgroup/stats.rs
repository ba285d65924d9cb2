//! Usage and OOM counts, read from files that can be kept open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, pread, retry_on_intr};

use crate::cgroup::Cgroup;
use crate::detect::Mode;
use crate::error::{CgroupError, Result};
use crate::file;

/// Larger than `memory.stat` of any kernel.
const STAT_BYTES: usize = 16 << 10;

/// Usage of one cgroup at one moment. `None`: the controller is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time used since the cgroup was made, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory charged, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory without inactive page cache: what kubelet evicts by, in bytes.
    pub working_set_bytes: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

/// The open files that [`Stats`] come from.
#[derive(Debug)]
pub struct StatsFiles {
    unified: bool,
    cpu: Option<OwnedFd>,
    memory: Option<OwnedFd>,
    memory_stat: Option<OwnedFd>,
    tasks: Option<OwnedFd>,
}

impl StatsFiles {
    /// Reads all of them now. A file whose cgroup was removed counts as absent.
    pub fn read(&self) -> Stats {
        let mut buffer = vec![0; STAT_BYTES];
        let number = |file: &Option<OwnedFd>, buffer: &mut [u8]| {
            std::str::from_utf8(contents(file.as_ref()?, buffer)?).ok()?.trim().parse::<u64>().ok()
        };
        let keyed = |file: &Option<OwnedFd>, key: &str, buffer: &mut [u8]| {
            value_of(contents(file.as_ref()?, buffer)?, key)
        };
        let cpu_ns = if self.unified {
            keyed(&self.cpu, "usage_usec", &mut buffer).map(|usec| usec.saturating_mul(1000))
        } else {
            number(&self.cpu, &mut buffer)
        };
        let memory_bytes = number(&self.memory, &mut buffer);
        let inactive = if self.unified { "inactive_file" } else { "total_inactive_file" };
        let inactive = keyed(&self.memory_stat, inactive, &mut buffer).unwrap_or(0);
        Stats {
            cpu_ns,
            memory_bytes,
            working_set_bytes: memory_bytes.map(|bytes| bytes.saturating_sub(inactive)),
            tasks: number(&self.tasks, &mut buffer),
        }
    }
}

/// How many processes the kernel's OOM killer has taken from a cgroup, as a file that can be read at any
/// time until the cgroup is removed.
#[derive(Debug)]
pub struct OomCounter(OwnedFd);

impl OomCounter {
    /// The count now.
    pub fn read(&self) -> Result<u64> {
        let malformed = |line: String| CgroupError::Malformed { file: "memory OOM counter".into(), line };
        let mut buffer = [0; 1024];
        let text = contents(&self.0, &mut buffer).ok_or_else(|| malformed(String::new()))?;
        value_of(text, "oom_kill").ok_or_else(|| malformed(String::from_utf8_lossy(text).into_owned()))
    }
}

/// From the descriptor that [`Cgroup::open_oom_counter`] gave, perhaps in another process.
impl From<OwnedFd> for OomCounter {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<OomCounter> for OwnedFd {
    fn from(counter: OomCounter) -> Self {
        counter.0
    }
}

impl AsFd for OomCounter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Cgroup {
    /// Usage now.
    pub fn stats(&self) -> Result<Stats> {
        Ok(self.open_stats()?.read())
    }

    /// Opens the files for [`Stats`].
    pub fn open_stats(&self) -> Result<StatsFiles> {
        let unified = self.hierarchy().mode() == Mode::Unified;
        let names = if unified {
            [
                ("cpu", "cpu.stat"),
                ("memory", "memory.current"),
                ("memory", "memory.stat"),
                ("pids", "pids.current"),
            ]
        } else {
            [
                ("cpuacct", "cpuacct.usage"),
                ("memory", "memory.usage_in_bytes"),
                ("memory", "memory.stat"),
                ("pids", "pids.current"),
            ]
        };
        let [cpu, memory, memory_stat, tasks] =
            names.map(|(controller, name)| self.open_file(controller, name));
        Ok(StatsFiles { unified, cpu: cpu?, memory: memory?, memory_stat: memory_stat?, tasks: tasks? })
    }

    /// Opens the OOM counter.
    pub fn open_oom_counter(&self) -> Result<OomCounter> {
        let name = match self.hierarchy().mode() {
            Mode::Unified => "memory.events",
            Mode::Legacy | Mode::Hybrid => "memory.oom_control",
        };
        let file = self.open_file("memory", name)?;
        file.map(OomCounter).ok_or_else(|| CgroupError::ControllerUnavailable {
            controller: "memory".to_owned(),
            path: format!("{}/{name}", self.relative()).into(),
        })
    }

    /// Processes that the OOM killer has taken; on v2 those of child cgroups included.
    pub fn oom_kills(&self) -> Result<u64> {
        self.open_oom_counter()?.read()
    }

    fn open_file(&self, controller: &str, name: &str) -> Result<Option<OwnedFd>> {
        let Some(mount) = self.mount(controller) else { return Ok(None) };
        let path = format!("{}/{name}", self.relative());
        match file::open(mount.dir(), path.trim_start_matches('/'), OFlags::RDONLY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(mount.failed("open", &path, errno)),
        }
    }
}

/// The file from its beginning, as far as it fits.
fn contents<'a>(file: &OwnedFd, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let count = retry_on_intr(|| pread(file, &mut *buffer, 0)).ok()?;
    buffer.get(..count)
}

/// The number behind a key of a flat-keyed file.
fn value_of(text: &[u8], key: &str) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_keys_only() {
        let text = b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(value_of(text, "oom_kill"), Some(3));
        assert_eq!(value_of(text, "oom"), None);
        assert_eq!(value_of(b"oom_kill x\n", "oom_kill"), None);
    }
}
