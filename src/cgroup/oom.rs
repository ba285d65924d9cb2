//! The OOM counter, a file that can be kept open and outlives its cgroup's processes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, pread, retry_on_intr};

use crate::cgroup::Cgroup;
use crate::detect::Mode;
use crate::error::{CgroupError, Result};
use crate::file;
use crate::usage::keyed;

/// systemd needs a moment for each unit that ends.
const ENABLE_ATTEMPTS: usize = 10;

/// How many processes the kernel's OOM killer has taken from a cgroup, as a file that can be read at any
/// time until the cgroup is removed.
#[derive(Debug)]
pub struct OomCounter(OwnedFd);

impl OomCounter {
    /// The count now.
    pub fn read(&self) -> Result<u64> {
        let mut buffer = [0; 1024];
        let count = retry_on_intr(|| pread(&self.0, &mut buffer[..], 0)).unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..count]);
        keyed(&text, "oom_kill").ok_or_else(|| CgroupError::Malformed {
            file: "memory OOM counter".into(),
            line: text.into_owned(),
        })
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
    /// Opens the OOM counter.
    pub fn open_oom_counter(&self) -> Result<OomCounter> {
        let name = match self.hierarchy().mode() {
            Mode::Unified => "memory.events",
            Mode::Legacy | Mode::Hybrid => "memory.oom_control",
        };
        let mut file = self.open_file("memory", name)?;
        for _ in 0..ENABLE_ATTEMPTS {
            if file.is_some() {
                break;
            }
            // systemd has taken the controller from a cgroup that it does not know of yet.
            self.enable_controllers()?;
            file = self.open_file("memory", name)?;
        }
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
