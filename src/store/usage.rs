//! Space and inodes: of one tree, of the images, of the writable layers.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::dir::list;

/// What something takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// Counts a directory and everything below it that is on the same file system, each file with
/// several names once. What vanishes meanwhile is not counted: containers go on writing.
pub(crate) fn below(top: BorrowedFd<'_>) -> Result<Usage, Errno> {
    let mut usage = Usage::default();
    let mut linked = std::collections::HashSet::new();
    let stat = fs::fstat(top)?;
    let device = stat.st_dev;
    count(&mut usage, &stat);
    let mut pending: Vec<Vec<u8>> = vec![b".".to_vec()];
    while let Some(path) = pending.pop() {
        let dir = match open(top, &path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => continue,
            Err(errno) => return Err(errno),
        };
        for (name, kind) in list_or_gone(&dir)? {
            let stat = match fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            if stat.st_dev != device {
                continue;
            }
            if kind == FileType::Directory {
                let mut below = path.clone();
                below.push(b'/');
                below.extend(name.as_bytes());
                pending.push(below);
            } else if stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            count(&mut usage, &stat);
        }
    }
    Ok(usage)
}

fn open(top: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    fs::openat2(top, path, flags, Mode::empty(), resolve)
}

fn list_or_gone(dir: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    use std::os::fd::AsFd;
    match list(dir.as_fd()) {
        Err(Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}

fn count(usage: &mut Usage, stat: &fs::Stat) {
    usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    usage.inodes += 1;
}
