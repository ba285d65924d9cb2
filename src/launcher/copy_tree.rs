//! Fills an empty directory with what another one has: a fresh tmpfs with what the image has at the mount point (OCI
//! `tmpcopyup`), and a volume that the image declares.
//!
//! Directories, regular files, symbolic links, nodes; with owner, mode and extended attributes. Nothing is followed, and
//! nothing of the container runs yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chmodat, chownat, copy_file_range,
    fgetxattr, flistxattr, fsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

/// Most bytes of all names, and of one value, of a file's attributes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTE_BYTES: usize = 64 << 10;

/// Deepest directory; a path cannot be longer than this many parts anyway.
const DEPTH: u32 = 2048;

/// Copies the content of directory `from` into directory `to`; the directory itself lends its owner and mode.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(from)?;
    directory(from, to, DEPTH)?;
    own(to, c".", &stat)?;
    attributes(&open_directory(from, c".")?, &open_directory(to, c".")?)
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
        let pair = match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let (source, copy) = (open_directory(from, name)?, open_directory(to, name)?);
                directory(source.as_fd(), copy.as_fd(), depth)?;
                Some((source, copy))
            }
            FileType::RegularFile => Some(file(from, to, name, &stat)?),
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                None
            }
            _ => {
                mknodat(to, name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?;
                None
            }
        };
        own(to, name, &stat)?;
        // After the owner: chown(2) takes file capabilities off.
        if let Some((source, copy)) = pair {
            attributes(&source, &copy)?;
        }
    }
    Ok(())
}

/// Extended attributes, those aside that belong to where a file is: labels and what overlayfs keeps for itself.
fn attributes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut names = vec![0u8; ATTRIBUTE_BYTES];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        other => other?,
    };
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
        let foreign = name.starts_with(b"trusted.overlay.") || name == b"security.selinux";
        if name.is_empty() || foreign {
            continue;
        }
        let mut value = vec![0u8; ATTRIBUTE_BYTES];
        let length = match fgetxattr(from, name, &mut value[..]) {
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        match fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty()) {
            // A tmpfs may have no place for them.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn open_directory(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
) -> Result<(OwnedFd, OwnedFd), Errno> {
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
                read_and_write(&source, &copy)?;
                break;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok((source, copy))
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
