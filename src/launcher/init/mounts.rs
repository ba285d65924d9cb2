//! The mounts of a plan, in its order: sources are descriptors or fresh instances, targets are descriptors (rule R2).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pinnace_sys::mount::{Attributes, Reach, change};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::process::fchdir;

use super::target::{self, Kind, Links};
use crate::copy_tree;
use crate::failure::{At, Failure};
use crate::plan::{LaunchPlan, Mount, MountSource, NewFilesystem};
use crate::slots::Slots;

const STAGE: &str = "mount";

/// Instances of procfs and sysfs, by the number of their mount, for a container in a user namespace: its root may make them
/// only while it sees others, those in the monitor's root.
pub(super) fn make_early(plan: &LaunchPlan) -> Result<BTreeMap<usize, OwnedFd>, Failure> {
    let mut made = BTreeMap::new();
    if plan.namespaces.as_ref().is_some_and(|namespaces| namespaces.pod_user) {
        for (number, mount) in plan.mounts.iter().enumerate() {
            match &mount.source {
                Some(MountSource::New(new)) if matches!(new.fstype.as_str(), "proc" | "sysfs") => {
                    made.insert(number, instance(new, mount)?);
                }
                _ => {}
            }
        }
    }
    Ok(made)
}

/// Mounts everything; `shm` holds one clone of the pod's shm per mount that asks for it, `early` what
/// [`make_early`] made.
pub(super) fn mount_all(
    plan: &LaunchPlan,
    root: BorrowedFd<'_>,
    slots: &Slots,
    shm: Vec<OwnedFd>,
    mut early: BTreeMap<usize, OwnedFd>,
) -> Result<(), Failure> {
    let mut shm = shm.into_iter();
    for (number, mount) in plan.mounts.iter().enumerate() {
        match mount_one(mount, root, slots, &mut shm, early.remove(&number)) {
            Err(failure) if mount.optional && is_unsupported(failure.errno) => {}
            other => other?,
        }
    }
    Ok(())
}

fn is_unsupported(errno: i32) -> bool {
    [Errno::NOENT, Errno::PERM, Errno::NODEV].map(Errno::raw_os_error).contains(&errno)
}

fn mount_one(
    mount: &Mount,
    root: BorrowedFd<'_>,
    slots: &Slots,
    shm: &mut impl Iterator<Item = OwnedFd>,
    early: Option<OwnedFd>,
) -> Result<(), Failure> {
    let made;
    let source = match &mount.source {
        Some(MountSource::Tree(slot)) => slots.at(*slot)?,
        Some(MountSource::New(new)) => {
            made = match early {
                Some(early) => early,
                None => instance(new, mount)?,
            };
            made.as_fd()
        }
        Some(MountSource::PodShm(_)) => {
            made = shm.next().ok_or_else(|| super::missing("shm"))?;
            made.as_fd()
        }
        None => return Err(super::missing("mount source")),
    };
    let part;
    let source = if mount.sub_path.is_empty() {
        source
    } else {
        part = sub_mount(source, root, mount)?;
        part.as_fd()
    };
    if !matches!(mount.source, Some(MountSource::New(_))) && mount.attributes != 0 {
        let reach = if mount.recursive { Reach::Tree } else { Reach::Mount };
        change(source, reach, &Attributes::setting(mount.attributes)).at(
            STAGE,
            "mount_setattr",
            &mount.target,
        )?;
    }
    if mount.propagation != 0 {
        change(source, Reach::Tree, &Attributes::propagating(mount.propagation)).at(
            STAGE,
            "mount_setattr",
            &mount.target,
        )?;
    }
    let kind = match target::is_directory(source).at(STAGE, "fstat", &mount.target)? {
        true => Kind::Directory,
        false => Kind::File,
    };
    let target = mount_point(root, mount, kind)?;
    if mount.copy_up {
        copy_tree::copy(target.as_fd(), source).at(STAGE, "copy_up", &mount.target)?;
    }
    attach(source, target.as_fd()).at(STAGE, "move_mount", &mount.target)
}

/// A mount of a file or directory inside a detached mount; links in its path do not lead out of that.
///
/// Kernels before 6.15 clone only what is attached somewhere, so for that moment it stands on top of the root.
fn sub_mount(source: BorrowedFd<'_>, root: BorrowedFd<'_>, mount: &Mount) -> Result<OwnedFd, Failure> {
    let path = &mount.sub_path;
    let place = openat2(
        source,
        path.as_slice(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .at(STAGE, "openat2", path)?;
    attach(source, root).at(STAGE, "move_mount", path)?;
    let part = bind(place.as_fd()).at(STAGE, "open_tree", path)?;
    fchdir(source).at(STAGE, "fchdir", path)?;
    unmount(".", UnmountFlags::DETACH).at(STAGE, "umount2", path)?;
    fchdir(root).at(STAGE, "fchdir", "/")?;
    Ok(part)
}

/// Attaches a detached mount to where `target` is open.
pub(super) fn attach(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(source, "", target, "", flags)
}

/// A detached mount of what a descriptor is open on, with everything below it.
pub(super) fn bind(of: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(of, "", flags)
}

/// The place for a mount. `/proc` and `/sys` must be real directories and reached through no link, else what is written
/// below them later might land in a file of the image's choice (CVE-2019-19921, CVE-2023-27561, CVE-2025-62161).
fn mount_point(root: BorrowedFd<'_>, mount: &Mount, kind: Kind) -> Result<OwnedFd, Failure> {
    let path = &mount.target;
    if !path.starts_with(b"/") || path.iter().all(|byte| *byte == b'/') {
        return Err(Failure::refused(STAGE, path, "not an absolute path below the root"));
    }
    let links = if mount.no_symlinks { Links::Refuse } else { Links::Follow };
    let target = target::open_or_make(root, path, kind, links).map_err(|errno| {
        let failure = Failure::syscall(STAGE, "openat2", errno, path);
        match errno {
            Errno::LOOP if mount.no_symlinks => failure.because("symbolic link in the path"),
            _ => failure,
        }
    })?;
    if mount.no_symlinks && !target::is_directory(target.as_fd()).at(STAGE, "fstat", path)? {
        return Err(Failure::syscall(STAGE, "openat2", Errno::NOTDIR, path));
    }
    Ok(target)
}

/// A new instance, in the namespaces of this process.
fn instance(new: &NewFilesystem, mount: &Mount) -> Result<OwnedFd, Failure> {
    let path = &mount.target;
    let context = fsopen(new.fstype.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).at(STAGE, "fsopen", path)?;
    // What /proc/mounts shows as the device.
    if !new.options.iter().any(|option| option.starts_with("source=")) {
        fsconfig_set_string(context.as_fd(), "source", new.fstype.as_str()).at(STAGE, "fsconfig", path)?;
    }
    for option in &new.options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value),
            None => fsconfig_set_flag(context.as_fd(), option.as_str()),
        }
        .map_err(|errno| why(Failure::syscall(STAGE, "fsconfig", errno, path), &context, option))?;
    }
    fsconfig_create(context.as_fd())
        .map_err(|errno| why(Failure::syscall(STAGE, "fsconfig", errno, path), &context, &new.fstype))?;
    let attributes = u32::try_from(mount.attributes)
        .map(MountAttrFlags::from_bits_retain)
        .map_err(|_| Failure::refused(STAGE, path, "unknown mount attributes"))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).at(STAGE, "fsmount", path)
}

/// Adds what the kernel wrote into the context's log, e.g. `e tmpfs: Bad value for 'size'`.
fn why(failure: Failure, context: &OwnedFd, about: &str) -> Failure {
    let mut message = vec![0u8; 512];
    match rustix::io::read(context, &mut message[..]) {
        Ok(length) => {
            message.truncate(length);
            let text = String::from_utf8_lossy(message.trim_ascii_end());
            failure.because(text.strip_prefix("e ").unwrap_or(&text))
        }
        Err(_) => failure.because(about),
    }
}
