//! Where containers are, and the machine.

use std::fs;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use oci_spec::runtime::LinuxSeccomp;
use pinnace_spec::Facts;
use pinnace_spec::process::{Host, SeccompProgram};
use rustix::fs::{Mode, OFlags};

/// The options that every command shares.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub root: PathBuf,
    pub systemd_cgroup: bool,
}

impl Runtime {
    /// Directory of a container's state, whether or not it exists.
    pub fn directory(&self, id: &str) -> anyhow::Result<PathBuf> {
        check_id(id)?;
        Ok(self.root.join(id))
    }

    /// Makes the directory of a new container's state; that is what reserves the id.
    pub fn reserve(&self, id: &str) -> anyhow::Result<PathBuf> {
        let directory = self.directory(id)?;
        let mut builder = fs::DirBuilder::new();
        builder
            .mode(0o700)
            .recursive(true)
            .create(&self.root)
            .with_context(|| self.root.display().to_string())?;
        match builder.recursive(false).create(&directory) {
            Ok(()) => Ok(directory),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("container {id} exists already")
            }
            Err(error) => Err(error).with_context(|| format!("make {}", directory.display())),
        }
    }
}

/// Letters, digits and `_ + - .`, as with the other runtimes; it is the name of a directory.
fn check_id(id: &str) -> anyhow::Result<()> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.len() > 255 || matches!(id, "." | "..") || !id.bytes().all(known) {
        bail!("container id {id:?}: 1 to 255 letters, digits and _ + - . are allowed");
    }
    Ok(())
}

/// Calls with what lowering needs to know of this machine.
pub(crate) fn with_host<T>(work: impl FnOnce(Host<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let facts = Facts::detect()?;
    let seccomp = |profile: &LinuxSeccomp| {
        let program = pinnace_seccomp::compile(profile)?;
        Ok(SeccompProgram { bytes: program.as_bytes().into(), flags: program.flags() })
    };
    work(Host { facts: &facts, seccomp: &seccomp })
}

/// Opens a directory.
pub(crate) fn open_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

/// A path to what a descriptor is open on; unlike that one's own path it always fits into a socket's address.
pub(crate) fn path_of(descriptor: BorrowedFd<'_>, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_directories() {
        for good in ["a", "A-b_c.d+1", &"x".repeat(255)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
