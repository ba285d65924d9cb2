//! The root: away from the monitor's, into the container's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_sys::clone::NEWIPC;
use pinnace_sys::mount::{Attributes, PRIVATE, RDONLY, Reach, change, change_at};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::errno;
use crate::failure::{At, Failure};
use crate::monitor::room;
use crate::plan::{LaunchPlan, MountSource};

/// Detached clones of what the monitor keeps in its own root.
#[derive(Debug)]
pub(super) struct Held {
    /// The pod's `/dev/shm`, once per mount that wants it.
    pub shm: Vec<OwnedFd>,
    /// A `/dev/null` that only we have made.
    pub null: Option<OwnedFd>,
    /// An empty directory.
    pub empty: Option<OwnedFd>,
}

/// Clones them while their paths still exist, i.e. before [`enter`]. `namespaces` are those that the pod has of its own.
pub(super) fn take_from_monitor(plan: &LaunchPlan, namespaces: u64) -> Result<Held, Failure> {
    let clone = |path: &str| {
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).at(
            "mount",
            "open_tree",
            path,
        )
    };
    let mut shm = Vec::new();
    for mount in &plan.mounts {
        if matches!(mount.source, Some(MountSource::PodShm(_))) {
            if namespaces & NEWIPC == 0 {
                return Err(Failure::refused("mount", &mount.target, "the pod has no shm of its own"));
            }
            shm.push(clone(room::SHM)?);
        }
    }
    let masks = !plan.masked_paths.is_empty();
    Ok(Held {
        shm,
        null: masks.then(|| clone(room::NULL)).transpose()?,
        empty: masks.then(|| clone(room::EMPTY)).transpose()?,
    })
}

/// Makes the detached mount the root and lets go of the old one.
///
/// Every mount of the monitor's namespace is private, and so are the copies here: nothing propagates to the host. With
/// `.` for both places the old root ends on top of the new one and is taken off from there (pivot_root(2), "NOTES").
pub(super) fn enter(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let stage = "rootfs";
    // pivot_root(2) refuses a shared root, as a bind mount of a host directory would be.
    change(root, Reach::Mount, &Attributes::propagating(PRIVATE)).at(stage, "mount_setattr", "/")?;
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(stage, "move_mount", "/")?;
    fchdir(root).at(stage, "fchdir", "/")?;
    pivot_root(".", ".").at("pivot_root", "pivot_root", "/")?;
    unmount(".", UnmountFlags::DETACH).at("pivot_root", "umount2", "/")?;
    chdir("/").at(stage, "chdir", "/")
}

/// Mounts the root in a copy of the host's mounts, for hooks to find it there.
pub(super) fn put_on_stage(
    root: BorrowedFd<'_>,
    host_mounts: BorrowedFd<'_>,
    path: &[u8],
) -> Result<(), Failure> {
    let stage = "rootfs";
    change(root, Reach::Mount, &Attributes::propagating(PRIVATE)).at(stage, "mount_setattr", "/")?;
    setns(host_mounts, CloneFlags::CLONE_NEWNS).map_err(errno).at(stage, "setns", "mount")?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(errno).at(stage, "unshare", "mount")?;
    // Nothing that is mounted from here on comes to the host.
    change_at(c"/", Reach::Tree, &Attributes::propagating(PRIVATE)).at(stage, "mount_setattr", "/")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root, "", CWD, path, flags).at(stage, "move_mount", path)
}

/// Makes it the root, after the hooks.
pub(super) fn leave_stage(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let stage = "rootfs";
    fchdir(root).at(stage, "fchdir", "/")?;
    pivot_root(".", ".").at("pivot_root", "pivot_root", "/")?;
    unmount(".", UnmountFlags::DETACH).at("pivot_root", "umount2", "/")?;
    chdir("/").at(stage, "chdir", "/")
}

/// The root of the container that this process has just joined.
pub(super) fn current() -> Result<OwnedFd, Failure> {
    openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("rootfs", "openat", "/")
}

/// Propagation and the read-only flag, when every mount point exists.
pub(super) fn finish(root: BorrowedFd<'_>, plan: &LaunchPlan) -> Result<(), Failure> {
    let propagation = plan.rootfs_propagation;
    if propagation != 0 && propagation != PRIVATE {
        change(root.as_fd(), Reach::Mount, &Attributes::propagating(propagation)).at(
            "rootfs",
            "mount_setattr",
            "/",
        )?;
    }
    if plan.rootfs_read_only {
        change(root.as_fd(), Reach::Mount, &Attributes::setting(RDONLY)).at(
            "rootfs",
            "mount_setattr",
            "/",
        )?;
    }
    Ok(())
}
