//! Device nodes and the links of `/dev`.
//!
//! Made after pivot_root, below descriptors, and never by removing what is there: an image's `/dev` may be a link to
//! anywhere (CVE-2026-41579, CVE-2026-47766), but nothing of the host is left to lead to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat, readlinkat,
    symlinkat,
};
use rustix::io::Errno;

use super::{mounts, target};
use crate::failure::{At, Failure};
use crate::plan::{Device, LaunchPlan, Link};
use crate::slots::Slots;

/// Makes all devices, then all links.
pub(super) fn make_all(plan: &LaunchPlan, root: BorrowedFd<'_>, slots: &Slots) -> Result<(), Failure> {
    let mut parents = Parents { root, last: None };
    for device in &plan.devices {
        let (parent, name) = parents.of(&device.path).at("device", "openat2", &device.path)?;
        make(device, parent, name, root, slots)?;
    }
    for link in &plan.links {
        let (parent, name) = parents.of(&link.path).at("link", "openat2", &link.path)?;
        make_link(link, parent, name)?;
    }
    Ok(())
}

/// Nearly all of them share one directory.
struct Parents<'a, 'plan> {
    root: BorrowedFd<'a>,
    last: Option<(&'plan [u8], OwnedFd)>,
}

impl<'plan> Parents<'_, 'plan> {
    fn of(&mut self, path: &'plan [u8]) -> Result<(BorrowedFd<'_>, &'plan [u8]), Errno> {
        let (directory, name) = target::split(path);
        if self.last.as_ref().is_none_or(|(last, _)| *last != directory) {
            self.last = Some((directory, target::parent(self.root, path)?.0));
        }
        match &self.last {
            Some((_, fd)) if !matches!(name, b"" | b"." | b"..") => Ok((fd.as_fd(), name)),
            _ => Err(Errno::INVAL),
        }
    }
}

fn make(
    device: &Device,
    parent: BorrowedFd<'_>,
    name: &[u8],
    root: BorrowedFd<'_>,
    slots: &Slots,
) -> Result<(), Failure> {
    let path = &device.path;
    let kind = FileType::from_raw_mode(device.mode);
    if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) {
        return Err(Failure::refused("device", path, format!("mode {:o} is not a node", device.mode)));
    }
    if device.uid == u32::MAX || device.gid == u32::MAX {
        return Err(Failure::refused("device", path, "owner is not an id"));
    }
    let number = makedev(device.major, device.minor);
    match mknodat(parent, name, kind, Mode::from_raw_mode(device.mode & 0o7777), number) {
        Ok(()) => {
            if device.uid != 0 || device.gid != 0 {
                let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
                chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .at("device", "fchownat", path)?;
            }
        }
        // Same node already there, e.g. in a bind mount of the host's /dev: verified below.
        Err(Errno::EXIST) => {}
        Err(errno @ Errno::PERM) => {
            let Some(slot) = device.fallback else {
                return Err(Failure::syscall("device", "mknodat", errno, path));
            };
            let place = target::open_or_make(root, path, target::Kind::File, target::Links::Follow)
                .at("device", "openat2", path)?;
            mounts::attach(slots.at(slot)?, place.as_fd()).at("device", "move_mount", path)?;
        }
        Err(errno) => return Err(Failure::syscall("device", "mknodat", errno, path)),
    }
    // Rule R4: what is there is what was meant.
    let stat = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .and_then(fstat)
        .at("device", "openat", path)?;
    let same_number = kind == FileType::Fifo || stat.st_rdev == number;
    if FileType::from_raw_mode(stat.st_mode) != kind || !same_number {
        return Err(Failure::refused("device", path, "something else is in its place"));
    }
    Ok(())
}

fn make_link(link: &Link, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failure> {
    match symlinkat(&link.target, parent, name) {
        // devtmpfs and bind mounts of the host's /dev bring their own; anything but a link stays as it is.
        Err(Errno::EXIST) => match readlinkat(parent, name, Vec::new()) {
            Ok(_) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(Failure::syscall("link", "readlinkat", errno, &link.path)),
        },
        other => other.at("link", "symlinkat", &link.path),
    }
}
