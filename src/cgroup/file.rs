//! Interface files below a mount's directory descriptor: one open, one read or write, closed again.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, read, retry_on_intr, write};

/// Larger than any file that is read whole here (`memory.stat` is about 2 KiB, `cgroup.procs` may be larger).
const CHUNK_BYTES: usize = 4096;
/// `cgroup.procs` of a cgroup with a hundred thousand processes.
const MOST_BYTES: usize = 1 << 20;

pub(crate) fn open(dir: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(dir, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// Reads a file whole.
pub(crate) fn read_text(dir: BorrowedFd<'_>, path: &str) -> Result<String, Errno> {
    let file = open(dir, path, OFlags::RDONLY)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let count = retry_on_intr(|| read(&file, &mut chunk))?;
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&chunk[..count]);
        if bytes.len() > MOST_BYTES {
            return Err(Errno::FBIG);
        }
    }
    String::from_utf8(bytes).map_err(|_| Errno::ILSEQ)
}

/// Writes a value in one write(2), which is what gives it its meaning.
pub(crate) fn write_text(dir: BorrowedFd<'_>, path: &str, value: &str) -> Result<(), Errno> {
    let file = open(dir, path, OFlags::WRONLY)?;
    let count = retry_on_intr(|| write(&file, value.as_bytes()))?;
    if count == value.len() { Ok(()) } else { Err(Errno::IO) }
}
