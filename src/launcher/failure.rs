//! A failed step, said once: what was tried, on what, and the errno. The same words travel from init to monitor to daemon.

use std::fmt;
use std::io;

use rustix::io::Errno;

pub use crate::protocol::Failure;

impl Failure {
    /// A system call that failed.
    pub fn syscall(stage: &str, syscall: &str, errno: Errno, path: impl AsRef<[u8]>) -> Self {
        Self {
            stage: stage.to_owned(),
            syscall: syscall.to_owned(),
            errno: errno.raw_os_error(),
            path: path.as_ref().to_vec(),
            message: String::new(),
        }
    }

    /// Something refused without asking the kernel.
    pub fn refused(stage: &str, path: impl AsRef<[u8]>, message: impl Into<String>) -> Self {
        Self {
            stage: stage.to_owned(),
            path: path.as_ref().to_vec(),
            message: message.into(),
            ..Self::default()
        }
    }

    /// Adds what the errno does not say.
    #[must_use]
    pub fn because(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.stage)?;
        if !self.syscall.is_empty() {
            write!(out, ": {}", self.syscall)?;
        }
        if !self.path.is_empty() {
            write!(out, " {}", String::from_utf8_lossy(&self.path))?;
        }
        if !self.message.is_empty() {
            write!(out, ": {}", self.message)?;
        }
        if self.errno != 0 {
            write!(out, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Says which step an errno belongs to.
#[cfg_attr(not(feature = "monitor"), allow(dead_code))]
pub(crate) trait At<T> {
    /// The step and what it worked on.
    fn at(self, stage: &str, syscall: &str, path: impl AsRef<[u8]>) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, stage: &str, syscall: &str, path: impl AsRef<[u8]>) -> Result<T, Failure> {
        self.map_err(|errno| Failure::syscall(stage, syscall, errno, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_line() {
        let failure = Failure::syscall("mount", "move_mount", Errno::NOTDIR, "/proc");
        assert_eq!(failure.to_string(), "mount: move_mount /proc: Not a directory (os error 20)");
        let failure = Failure::refused("container", "c1", "no such container");
        assert_eq!(failure.to_string(), "container c1: no such container");
    }
}
