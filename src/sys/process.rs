//! Children and signals: waitid(2) with every signal number, pidfd_send_signal(2), dispositions, session keyring.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::last_errno;

/// Which child to wait for.
#[derive(Debug, Clone, Copy)]
pub enum Child<'fd> {
    /// The process of a pidfd.
    Of(BorrowedFd<'fd>),
    /// A process id that has not been waited for, and so cannot have been used again.
    Unreaped(Pid),
    /// Any; the child stays a zombie, so that its owner can still wait for it.
    Peek,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// In the caller's PID namespace.
    pub pid: Pid,
    /// Exit status, or 128 + the signal.
    pub code: i32,
    /// Signal that killed it.
    pub signal: Option<i32>,
}

/// The end of a child if it has ended; never blocks. ECHILD when there is no such child.
pub fn ended(child: Child<'_>) -> Result<Option<Ended>, Errno> {
    let (kind, id, more) = match child {
        Child::Of(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd().unsigned_abs(), 0),
        Child::Unreaped(pid) => (libc::P_PID, pid.as_raw_nonzero().get().unsigned_abs(), 0),
        Child::Peek => (libc::P_ALL, 0, libc::WNOWAIT),
    };
    // SAFETY: all-zero bytes are a valid siginfo_t, a plain C struct of numbers and pointers.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: `info` is a live siginfo_t that the call fills.
        let answer = unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | libc::WNOHANG | more) };
        if answer == 0 {
            break;
        }
        match last_errno() {
            Errno::INTR => {}
            errno => return Err(errno),
        }
    }
    // SAFETY: waitid fills the SIGCHLD members, or leaves the zeroes when nothing has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    Ok(Some(match info.si_code {
        libc::CLD_EXITED => Ended { pid, code: status, signal: None },
        _ => Ended { pid, code: 128 + status, signal: Some(status) },
    }))
}

/// pidfd_send_signal(2); any number that the kernel knows, real-time ones included.
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: no siginfo is passed; the rest are numbers.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Puts every signal's disposition back to its default, those that libc keeps for itself included: execve keeps what is
/// ignored.
pub fn default_dispositions() {
    for number in 1..=64 {
        default_disposition(number);
    }
}

/// Lets writes to a closed pipe fail with EPIPE instead of killing the process.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN installs no code that could run.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Undoes [`ignore_broken_pipes`], which execve would keep.
pub fn default_broken_pipes() {
    default_disposition(libc::SIGPIPE);
}

fn default_disposition(number: libc::c_int) {
    // `struct sigaction` of the kernel: handler, flags, restorer and an eight-byte mask, in some order. SIG_DFL is 0.
    let default = [0u64; 4];
    // SAFETY: `default` is as large as the structure that the kernel reads, and installs no code that could run. SIGKILL
    // and SIGSTOP are refused with EINVAL, for they have no other disposition.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            number,
            std::ptr::from_ref(&default),
            std::ptr::null_mut::<u8>(),
            size_of::<u64>(),
        );
    }
}

/// setrlimit(2) by number; `u64::MAX` is infinity. EINVAL for a number that the kernel does not know.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let new = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: pid 0 is the caller; `new` is a live rlimit64 that is only read, and no old value is asked for.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::from_ref(&new),
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Gives the process a new anonymous session keyring, so that it does not possess its parent's keys (keyctl(2)).
pub fn join_new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let answer = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    if answer >= 0 { Ok(()) } else { Err(last_errno()) }
}

/// Gives free heap pages back to the kernel (malloc_trim(3)).
pub fn trim_heap() {
    // SAFETY: allocator bookkeeping only; live allocations do not move.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes the pages of this program's code out of its memory; those that are needed come back from the page cache, where
/// they stay. What only the start has used counts for this process no longer. Answers how many bytes were looked at.
pub fn release_text() -> std::io::Result<usize> {
    let here = release_text as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some((start, end)) =
        maps.lines().filter_map(text_range).find(|(start, end)| (*start..*end).contains(&here))
    else {
        return Ok(0);
    };
    // SAFETY: the range is a mapping of the program's file that is executable and cannot be written to (`r-xp`), so every
    // page of it is what the file has there, and is read from it again when it is touched, also by the code that runs now.
    // The file cannot change while it is executed (ETXTBSY).
    let answer = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    if answer == 0 { Ok(end - start) } else { Err(std::io::Error::last_os_error()) }
}

/// Where a line of proc_pid_maps(5) is code that nobody writes to.
fn text_range(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let parse = |number| usize::from_str_radix(number, 16).ok();
    rest.starts_with("r-xp ").then_some((parse(start)?, parse(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::Command;

    #[test]
    fn code_runs_on_after_it_was_released() {
        assert_eq!(text_range("7f00-8000 r-xp 00000000 00:01 7 /bin/x"), Some((0x7f00, 0x8000)));
        assert_eq!(text_range("7f00-8000 r--p 00000000 00:01 7 /bin/x"), None);
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(2).unwrap().parse::<usize>().unwrap()
        };
        let before = resident();
        assert!(release_text().unwrap() > 100_000);
        assert!(resident() < before, "{before}");
        assert_eq!(text_range(""), None);
    }

    #[test]
    fn death_by_a_real_time_signal_is_reported() {
        // Waited for by its pidfd below.
        #[allow(clippy::zombie_processes)]
        let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert_eq!(ended(Child::Of(pidfd.as_fd())).unwrap(), None);
        signal(pidfd.as_fd(), 40).unwrap();
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        let end = ended(Child::Of(pidfd.as_fd())).unwrap().unwrap();
        assert_eq!(end, Ended { pid, code: 168, signal: Some(40) });
        assert_eq!(ended(Child::Of(pidfd.as_fd())).err(), Some(Errno::CHILD));
        assert_eq!(signal(pidfd.as_fd(), 0).err(), Some(Errno::SRCH));
    }
}
