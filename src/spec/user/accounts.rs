//! `/etc/passwd` and `/etc/group` of an image, read as hostile text (passwd(5), group(5)).
//!
//! ```text
//! name:password:uid:gid:gecos:home:shell
//! name:password:gid:member,member
//! ```
//! A line that does not have this form belongs to nobody. Of several lines for one name or number the first counts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::io::Errno;

use super::{Error, ID_MAX};
use crate::lower::proc_path;

/// Larger files are refused (rule R10).
const FILE_BYTES: usize = 10 * 1024 * 1024;
/// Longer lines are refused; a group with ten thousand members has about 100 KiB.
const LINE_BYTES: usize = 1024 * 1024;

/// One of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum File {
    Passwd,
    Group,
}

/// A line of passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: Vec<u8>,
}

/// A line of group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) gid: u32,
    members: Vec<u8>,
}

impl File {
    /// Path in the image.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Passwd => "/etc/passwd",
            Self::Group => "/etc/group",
        }
    }
}

impl Group {
    /// Whether a user is one of its members.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member == name.as_bytes())
    }
}

/// The file's text; none when the image has no such file.
pub(crate) fn read(rootfs: BorrowedFd<'_>, file: File) -> Result<Option<Vec<u8>>, Error> {
    let failed = |errno| Error::Read { path: file.path(), errno };
    let pinned = match pin(rootfs, file) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        pinned => pinned.map_err(failed)?,
    };
    // Opening a device has effects and opening a fifo waits: the inode is looked at first.
    let stat = fstat(&pinned).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NotRegular { path: file.path() });
    }
    if usize::try_from(stat.st_size).is_ok_and(|size| size > FILE_BYTES) {
        return Err(Error::TooLarge { path: file.path() });
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let readable = open(proc_path(pinned.as_fd()), flags, Mode::empty()).map_err(failed)?;
    let text = read_bounded(&readable).map_err(failed)?;
    // The size is the file's word; what was read is ours.
    if text.len() > FILE_BYTES {
        return Err(Error::TooLarge { path: file.path() });
    }
    if text.split(|byte| *byte == b'\n').any(|line| line.len() > LINE_BYTES) {
        return Err(Error::LongLine { path: file.path() });
    }
    Ok(Some(text))
}

/// Resolves the path with the image's root as the root: its links lead nowhere else.
fn pin(rootfs: BorrowedFd<'_>, file: File) -> Result<OwnedFd, Errno> {
    const TRIES: u32 = 16;
    let mut tries = 0;
    loop {
        let opened = openat2(
            rootfs,
            file.path(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        tries += 1;
        match opened {
            // A rename somewhere on the machine raced the walk upwards (openat2(2)).
            Err(Errno::AGAIN) if tries < TRIES => {}
            opened => return opened,
        }
    }
}

fn read_bounded(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    while text.len() <= FILE_BYTES {
        match rustix::io::read(file, &mut chunk) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&chunk[..length]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(text)
}

pub(crate) fn accounts(text: &[u8]) -> impl Iterator<Item = Account> {
    lines(text).filter_map(|fields| match fields.as_slice() {
        [name, _, uid, gid, _, home, _] => {
            Some(Account { name: name_of(name)?, uid: id(uid)?, gid: id(gid)?, home: home.to_vec() })
        }
        _ => None,
    })
}

pub(crate) fn groups(text: &[u8]) -> impl Iterator<Item = Group> {
    lines(text).filter_map(|fields| match fields.as_slice() {
        [name, _, gid, members] => {
            Some(Group { name: name_of(name)?, gid: id(gid)?, members: members.to_vec() })
        }
        _ => None,
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    text.split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|byte| *byte == b':').collect())
}

fn name_of(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?;
    (!name.is_empty() && !name.chars().any(char::is_control)).then(|| name.to_owned())
}

/// Digits only, at most [`ID_MAX`].
fn id(bytes: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(bytes).ok().filter(|text| is_digits(text))?;
    digits.parse().ok().filter(|id| *id <= ID_MAX)
}

pub(crate) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
