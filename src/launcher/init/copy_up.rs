//! Fills a fresh tmpfs with what the image has at the mount point (OCI `tmpcopyup`).
//!
//! Directories, regular files, symbolic links, nodes; with owner and mode. Nothing is followed, and nothing of the
//! container runs yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, copy_file_range, mkdirat,
    mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

/// Deepest directory; a path cannot be longer than this many parts anyway.
const DEPTH: u32 = 2048;

/// Copies the content of directory `from` into directory `to`; the directory itself lends its owner and mode.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(from)?;
    directory(from, to, DEPTH)?;
    own(to, c".", &stat)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    for entry in Dir::new(open_directory(from, c".")?)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                directory(open_directory(from, name)?.as_fd(), open_directory(to, name)?.as_fd(), depth)?;
            }
            FileType::RegularFile => file(from, to, name, &stat)?,
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
            _ => mknodat(to, name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?,
        }
        own(to, name, &stat)?;
    }
    Ok(())
}

fn open_directory(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<(), Errno> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(from, name, read, Mode::empty())?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = openat(to, name, write, Mode::from_raw_mode(0o600))?;
    let mut left = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    while left > 0 {
        match copy_file_range(&source, None, &copy, None, left) {
            Ok(0) => break,
            Ok(copied) => left -= copied.min(left),
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return read_and_write(&source, &copy);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read_and_write(source: &OwnedFd, copy: &OwnedFd) -> Result<(), Errno> {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let length = rustix::io::read(source, &mut buffer[..])?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let written = rustix::io::write(copy, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

/// Owner first: chown(2) takes the set-id bits off.
fn own(at: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    chmodat(at, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
}
