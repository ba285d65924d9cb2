//! Masked and read-only paths.
//!
//! What hides a file is a `/dev/null` that the monitor made in a file system of its own and that no container has ever
//! seen, not the one in the container's `/dev`, which a racing sibling might have swapped (CVE-2025-31133). Directories
//! are hidden by one empty read-only directory for all of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pinnace_sys::mount::{Attributes, NODEV, NOEXEC, NOSUID, RDONLY, Reach, change};
use rustix::io::Errno;

use super::mounts::{attach, bind};
use super::target::{self, Links};
use crate::failure::{At, Failure};

/// Something that covers paths: detached at first, then cloned from where it was attached (cloning a detached mount
/// takes Linux 6.15).
struct Cover {
    mount: OwnedFd,
    attached: bool,
}

impl Cover {
    fn over(&mut self, target: BorrowedFd<'_>, path: &[u8]) -> Result<(), Failure> {
        if self.attached {
            let clone = bind(self.mount.as_fd()).at("mask", "open_tree", path)?;
            attach(clone.as_fd(), target).at("mask", "move_mount", path)
        } else {
            self.attached = true;
            attach(self.mount.as_fd(), target).at("mask", "move_mount", path)
        }
    }
}

/// Hides the paths that exist.
pub(super) fn hide(
    paths: &[Vec<u8>],
    root: BorrowedFd<'_>,
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
) -> Result<(), Failure> {
    let (Some(null), Some(empty)) = (null, empty) else { return Ok(()) };
    let attributes = |mount: &OwnedFd, set| {
        change(mount.as_fd(), Reach::Mount, &Attributes::setting(set)).at("mask", "mount_setattr", "")
    };
    // Not nodev: reading a hidden file finds it empty.
    attributes(&null, RDONLY | NOSUID | NOEXEC)?;
    attributes(&empty, RDONLY | NOSUID | NOEXEC | NODEV)?;
    let mut null = Cover { mount: null, attached: false };
    let mut empty = Cover { mount: empty, attached: false };
    for path in paths {
        let Some(target) = existing(root, path, "mask")? else { continue };
        match target::is_directory(target.as_fd()).at("mask", "fstat", path)? {
            true => empty.over(target.as_fd(), path)?,
            false => null.over(target.as_fd(), path)?,
        }
    }
    Ok(())
}

/// Makes the paths that exist read-only, with everything mounted below them.
pub(super) fn protect(paths: &[Vec<u8>], root: BorrowedFd<'_>) -> Result<(), Failure> {
    for path in paths {
        let Some(target) = existing(root, path, "read_only")? else { continue };
        let copy = bind(target.as_fd()).at("read_only", "open_tree", path)?;
        change(copy.as_fd(), Reach::Tree, &Attributes::setting(RDONLY)).at(
            "read_only",
            "mount_setattr",
            path,
        )?;
        attach(copy.as_fd(), target.as_fd()).at("read_only", "move_mount", path)?;
    }
    Ok(())
}

fn existing(root: BorrowedFd<'_>, path: &[u8], stage: &str) -> Result<Option<OwnedFd>, Failure> {
    match target::open(root, path, Links::Follow) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Failure::syscall(stage, "openat2", errno, path)),
    }
}
