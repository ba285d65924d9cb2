//! mount_setattr(2), which rustix lacks.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::last_errno;

/// `MOUNT_ATTR_RDONLY`
pub const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`
pub const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`
pub const NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`
pub const NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR__ATIME`: the bits that choose how access times are kept; to set one, all are cleared.
pub const ATIME: u64 = 0x70;
/// `MOUNT_ATTR_IDMAP`
pub const IDMAP: u64 = 0x10_0000;

/// `MS_PRIVATE`
pub const PRIVATE: u64 = 1 << 18;
/// `MS_SLAVE`
pub const SLAVE: u64 = 1 << 19;
/// `MS_SHARED`
pub const SHARED: u64 = 1 << 20;

/// How far a change reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// That mount alone.
    Mount,
    /// That mount and everything below it.
    Tree,
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct Attributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` or 0.
    pub propagation: u64,
    /// User namespace descriptor with [`IDMAP`], otherwise 0.
    userns: u64,
}

impl Attributes {
    /// Sets attributes; a choice of access time replaces the one before.
    pub fn setting(set: u64) -> Self {
        let clear = if set & ATIME != 0 { ATIME } else { 0 };
        Self { set, clear, ..Self::default() }
    }

    /// Changes the propagation.
    pub fn propagating(propagation: u64) -> Self {
        Self { propagation, ..Self::default() }
    }

    /// Maps owners through a user namespace; for a mount that nobody has used yet.
    pub fn mapped(mut self, namespace: BorrowedFd<'_>) -> Self {
        self.set |= IDMAP;
        self.userns = u64::from(namespace.as_raw_fd().unsigned_abs());
        self
    }
}

/// Changes the mount whose root `mount` is open on.
pub fn change(mount: BorrowedFd<'_>, reach: Reach, attributes: &Attributes) -> Result<(), Errno> {
    setattr(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, reach, attributes)
}

/// Changes the mount at a path of this process's own mount namespace.
pub fn change_at(path: &CStr, reach: Reach, attributes: &Attributes) -> Result<(), Errno> {
    setattr(libc::AT_FDCWD, path, 0, reach, attributes)
}

fn setattr(directory: i32, path: &CStr, at: i32, reach: Reach, attributes: &Attributes) -> Result<(), Errno> {
    let at = at | if reach == Reach::Tree { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is a terminated string and `attributes` a `struct mount_attr` of the size given; both live across
    // the call and are only read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            at,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

    #[test]
    fn a_detached_mount_becomes_read_only() {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(context.as_fd()).unwrap();
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        rustix::fs::mkdirat(&mount, "before", 0o755.into()).unwrap();
        change(mount.as_fd(), Reach::Mount, &Attributes::setting(RDONLY | NOEXEC)).unwrap();
        assert_eq!(rustix::fs::mkdirat(&mount, "after", 0o755.into()).err(), Some(Errno::ROFS));
        assert_eq!(
            change(mount.as_fd(), Reach::Mount, &Attributes::propagating(PRIVATE | SHARED)).err(),
            Some(Errno::INVAL)
        );
    }
}
