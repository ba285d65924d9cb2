//! Early writeback of a file that is being written.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::last_errno;

/// Starts writing a range of dirty pages to disk without waiting for it, sync_file_range(2), so
/// that a later flush finds only the tail. It orders nothing and promises nothing by itself.
pub fn start(file: BorrowedFd<'_>, offset: u64, length: u64) -> Result<(), Errno> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
    let length = libc::off64_t::try_from(length).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the call takes a borrowed, hence open, descriptor and plain numbers; it touches no
    // memory of ours. JUSTIFICATION: neither rustix nor nix offers it.
    let answer =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn files_are_written_back_and_pipes_refused() {
        let file = memfd_create("writeback", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 100_000).unwrap();
        start(file.as_fd(), 0, 100_000).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(start(reader.as_fd(), 0, 1), Err(Errno::SPIPE));
        assert_eq!(start(file.as_fd(), u64::MAX, 1), Err(Errno::OVERFLOW));
    }
}
