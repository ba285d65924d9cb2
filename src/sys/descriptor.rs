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
