//! clone3(2): fork a child into fresh namespaces and a cgroup, with a pidfd and a clean descriptor table.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::descriptor::close_range;
use crate::last_errno;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Every `CLONE_NEW*` flag of clone3(2), `CLONE_NEWTIME` included.
pub const NAMESPACES: u64 = NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET;
/// `CLONE_NEWTIME`
pub const NEWTIME: u64 = 0x80;
/// `CLONE_NEWNS`
pub const NEWNS: u64 = 0x2_0000;
/// `CLONE_NEWCGROUP`
pub const NEWCGROUP: u64 = 0x200_0000;
/// `CLONE_NEWUTS`
pub const NEWUTS: u64 = 0x400_0000;
/// `CLONE_NEWIPC`
pub const NEWIPC: u64 = 0x800_0000;
/// `CLONE_NEWUSER`
pub const NEWUSER: u64 = 0x1000_0000;
/// `CLONE_NEWPID`
pub const NEWPID: u64 = 0x2000_0000;
/// `CLONE_NEWNET`
pub const NEWNET: u64 = 0x4000_0000;

/// Status of a child whose closure panicked.
pub const PANICKED: u8 = 101;

/// `struct clone_args` up to `cgroup` (`CLONE_ARGS_SIZE_VER2`, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child as its parent sees it.
#[derive(Debug)]
pub struct Cloned {
    /// In the parent's PID namespace.
    pub pid: Pid,
    /// Close-on-exec.
    pub pidfd: OwnedFd,
}

/// Forks; the child keeps descriptors 0, 1, 2 and `keep`, runs `child` and ends with the status it returns.
///
/// `namespaces` are `CLONE_NEW*` flags, others are refused with EINVAL. `cgroup` is a cgroup v2 directory in which the
/// child is born. EAGAIN when the calling process has a second thread: its locks might be held at the fork for ever.
pub fn clone_process<F>(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    keep: &[BorrowedFd<'_>],
    child: F,
) -> Result<Cloned, Errno>
where
    F: FnOnce() -> u8,
{
    if namespaces & !NAMESPACES != 0 {
        return Err(Errno::INVAL);
    }
    assert_single_threaded()?;
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();

    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: namespaces | CLONE_PIDFD,
        pidfd: std::ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if let Some(directory) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(directory.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `args` and `pidfd` live across the call and are what clone3(2) asks for. Without CLONE_VM the child has a
    // copy of the memory and, `stack` being 0, goes on on a copy of this stack, as after fork(2). The process has one
    // thread (checked above), so no lock of libc or of Rust is held by a thread that the child lacks.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut args), size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(last_errno()),
        0 => {
            close_all_but(&kept);
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            // SAFETY: ends the process at once; neither destructors nor atexit handlers, which belong to the parent, run.
            unsafe { libc::_exit(i32::from(status)) }
        }
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
            // SAFETY: with CLONE_PIDFD a successful clone3 stored a fresh descriptor that nobody else owns.
            Ok(Cloned { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
    }
}

/// Forks a child of the calling process's own parent (`CLONE_PARENT`), with a copy of every descriptor.
///
/// EAGAIN when the calling process has a second thread, as [`clone_process`].
pub fn clone_sibling<F>(child: F) -> Result<Pid, Errno>
where
    F: FnOnce() -> u8,
{
    assert_single_threaded()?;
    // The signal at its end is the one that its parent gets for us, hence 0 (clone(2), `CLONE_PARENT`).
    let mut args = CloneArgs { flags: CLONE_PARENT, ..CloneArgs::default() };
    // SAFETY: as in `clone_process`: a copy of the memory and of the only thread.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_mut(&mut args), size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(last_errno()),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            // SAFETY: ends the process at once, as in `clone_process`.
            unsafe { libc::_exit(i32::from(status)) }
        }
        pid => i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH),
    }
}

/// unshare(2) of `CLONE_THREAD` changes nothing and fails with EINVAL exactly when there is another thread.
fn assert_single_threaded() -> Result<(), Errno> {
    // SAFETY: a pure check, see above; it takes no pointer.
    let answer = unsafe { libc::unshare(libc::CLONE_THREAD) };
    if answer == 0 { Ok(()) } else { Err(Errno::AGAIN) }
}

/// Closes everything above 2 except the numbers in `kept`, which is sorted.
///
/// Owners of the closed numbers still exist in the child's copy of the memory, but the child never returns to the code
/// that holds them: it runs its closure and ends.
fn close_all_but(kept: &[RawFd]) {
    let mut first = 3;
    for &fd in kept.iter().filter(|fd| **fd > 2) {
        if fd > first {
            // Fails only for numbers that cannot be closed, i.e. that are not open.
            let _ = close_range(first.unsigned_abs(), fd.unsigned_abs() - 1, 0);
        }
        first = fd + 1;
    }
    let _ = close_range(first.unsigned_abs(), u32::MAX, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_flags_that_share_memory() {
        const CLONE_VM: u64 = 0x100;
        assert_eq!(clone_process(CLONE_VM, None, &[], || 0).err(), Some(Errno::INVAL));
    }

    #[test]
    fn refuses_to_fork_a_threaded_process() {
        // The test runner has threads; make sure of one that is alive during the call.
        std::thread::scope(|scope| {
            let (stop, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv().ok());
            assert_eq!(clone_process(0, None, &[], || 0).err(), Some(Errno::AGAIN));
            drop(stop);
        });
    }
}
