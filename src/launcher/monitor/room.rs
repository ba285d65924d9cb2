//! The monitor's own place: a fresh process, and a mount namespace with nothing of the host in it.
//!
//! ```text
//! /          tmpfs, read-only once it is furnished
//! ├── null   our own /dev/null: hides masked files
//! ├── empty  hides masked directories
//! ├── shm    the pod's /dev/shm, a tmpfs of its own, when the pod has an IPC namespace
//! ├── proc   and
//! └── sys    a procfs and a sysfs, when the pod has a user namespace: the kernel lets its root mount others only where it
//!            sees one already (`mount_too_revealing` of fs/namespace.c). Init leaves them behind with this root.
//! ```
//! A copy of the host's mounts would keep every one of them busy for as long as the pod lives, and each container would
//! begin with a copy of that copy. This way a container's namespace starts with these three mounts.

use std::iter;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use pinnace_sys::mount::{Attributes, PRIVATE, Reach, change_at};
use pinnace_sys::{descriptor, process};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat, statat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount,
    unmount,
};
use rustix::process::{
    DumpableBehavior, chdir, chroot, fchdir, pivot_root, set_child_subreaper, set_dumpable_behavior, setsid,
};
use rustix::stdio::{dup2_stdin, stdin};

use crate::failure::{At, Failure};
use crate::init::errno;

/// See the module.
pub(crate) const NULL: &str = "/null";
/// See the module.
pub(crate) const EMPTY: &str = "/empty";
/// See the module.
pub(crate) const SHM: &str = "/shm";
/// See the module.
const KERNEL: [&str; 2] = ["/proc", "/sys"];

const STAGE: &str = "monitor";

/// Takes the process over from its start and returns the socket that was its stdin.
pub(super) fn enter() -> Result<OwnedFd, Failure> {
    descriptor::close_inherited().at(STAGE, "close_range", "")?;
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin(), 3).at(STAGE, "fcntl", "stdin")?;
    // The daemon may have been started with signals blocked or ignored, and execve keeps that.
    process::default_dispositions();
    process::ignore_broken_pipes();
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_set_mask().map_err(errno).at(STAGE, "sigprocmask", "")?;
    // It fails for a process group leader, which may have been made one on purpose.
    match setsid() {
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return Err(Failure::syscall(STAGE, "setsid", errno, "")),
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Nobody may trace us or look at our memory and descriptors, init on its way into a container least of all.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(STAGE, "PR_SET_DUMPABLE", "")?;
    // Orphans of exec sessions and of containers without a PID namespace come to us and not to the host's PID 1.
    set_child_subreaper(rustix::process::Pid::from_raw(1)).at(STAGE, "PR_SET_CHILD_SUBREAPER", "")?;
    rustix::thread::set_name(c"pinnace-monitor").at(STAGE, "PR_SET_NAME", "")?;
    furnish()?;
    Ok(socket)
}

/// Makes the private root and moves in.
fn furnish() -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(errno).at(STAGE, "unshare", "mount")?;
    // Before anything is unmounted here: in a namespace just copied, that would propagate to the host.
    change_at(c"/", Reach::Tree, &Attributes::propagating(PRIVATE)).at(STAGE, "mount_setattr", "/")?;

    let root = tmpfs(&[("size", "64k"), ("mode", "755")], MountAttrFlags::MOUNT_ATTR_NOSUID)
        .at(STAGE, "fsmount", "/")?;
    let at = |name: &'static str| name.trim_start_matches('/');
    mknodat(&root, at(NULL), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
        .and_then(|()| rustix::fs::chmodat(&root, at(NULL), 0o666.into(), rustix::fs::AtFlags::empty()))
        .at(STAGE, "mknodat", NULL)?;
    mkdirat(&root, at(EMPTY), Mode::from_raw_mode(0o555)).at(STAGE, "mkdirat", EMPTY)?;
    for name in [SHM].into_iter().chain(KERNEL) {
        mkdirat(&root, at(name), Mode::from_raw_mode(0o755)).at(STAGE, "mkdirat", name)?;
    }
    let null =
        openat(&root, at(NULL), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at(STAGE, "openat", NULL)?;
    let stat = statat(&root, at(NULL), rustix::fs::AtFlags::SYMLINK_NOFOLLOW).at(STAGE, "fstatat", NULL)?;
    if stat.st_rdev != makedev(1, 3) {
        return Err(Failure::refused(STAGE, NULL, "not the null device"));
    }
    dup2_stdin(&null).at(STAGE, "dup2", "stdin")?;
    // Read-only as a file system, so that no container can leave another one something under a mask, even with the right
    // to remount its view of it.
    let context = fspick(&root, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)
        .at(STAGE, "fspick", "/")?;
    fsconfig_set_flag(context.as_fd(), "ro").at(STAGE, "fsconfig", "ro")?;
    fsconfig_reconfigure(context.as_fd()).at(STAGE, "fsconfig", "/")?;

    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(STAGE, "move_mount", "/")?;
    fchdir(&root).at(STAGE, "fchdir", "/")?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).at(STAGE, "umount2", "/")?,
        // The initial ramfs cannot be pivoted away from (pivot_root(2)): it stays below, out of sight.
        Err(Errno::INVAL) => chroot(".").at(STAGE, "chroot", "/")?,
        Err(errno) => return Err(Failure::syscall(STAGE, "pivot_root", errno, "/")),
    }
    chdir("/").at(STAGE, "chdir", "/")
}

/// Puts the pod's `/dev/shm` where containers find it.
pub(super) fn mount_shm(bytes: u64, uid: u32, gid: u32, label: &str) -> Result<(), Failure> {
    let (size, uid, gid) = (bytes.to_string(), uid.to_string(), gid.to_string());
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mut options =
        vec![("source", "shm"), ("size", &*size), ("mode", "1777"), ("uid", &uid), ("gid", &gid)];
    if !label.is_empty() {
        options.push(("context", label));
    }
    let shm = tmpfs(&options, attributes).at("shm", "fsmount", "/dev/shm")?;
    move_mount(&shm, "", CWD, SHM, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("shm", "move_mount", SHM)
}

/// Mounts a procfs and a sysfs; see the module.
pub(super) fn show_kernel() -> Result<(), Failure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    for (place, fstype) in iter::zip(KERNEL, ["proc", "sysfs"]) {
        let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).at(STAGE, "fsopen", fstype)?;
        fsconfig_create(context.as_fd()).at(STAGE, "fsconfig", fstype)?;
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .at(STAGE, "fsmount", fstype)?;
        move_mount(&mount, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(
            STAGE,
            "move_mount",
            place,
        )?;
    }
    Ok(())
}

fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
