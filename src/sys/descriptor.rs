//! Ranges of descriptors: close_range(2).

#![allow(unsafe_code)]

use rustix::io::Errno;

use crate::last_errno;

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Marks every descriptor from `first` up as close-on-exec.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    close_range(first, u32::MAX, CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor above 2. Only for the first lines of `main`, before anything in the process owns one, and for
/// a cloned child that never returns to what its parent owned.
pub fn close_inherited() -> Result<(), Errno> {
    close_range(3, u32::MAX, 0)
}

pub(crate) fn close_range(first: u32, last: u32, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: takes plain numbers and no pointer. Closing is reached only where no owner of a closed number is used
    // again: see `close_inherited` and `clone::close_all_but`.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Puts a copy of a descriptor at a number, open across execve. Only for a process about to execute another program:
/// whoever owned that number loses it.
pub fn place(descriptor: std::os::fd::BorrowedFd<'_>, number: u32) -> Result<(), Errno> {
    let number = i32::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: takes plain numbers and no pointer; the owner of what is closed here is not used again, see above.
    let answer = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&descriptor), number) };
    if answer == number { Ok(()) } else { Err(last_errno()) }
}

/// A copy of a descriptor that this process was started with and that nothing in it owns.
pub fn inherited(number: u32) -> Result<std::os::fd::OwnedFd, Errno> {
    let number = i32::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: takes plain numbers and no pointer; a number that is not open is refused with EBADF.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(last_errno());
    }
    // SAFETY: fcntl has just made this descriptor, and nobody else knows it.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(copy) })
}
