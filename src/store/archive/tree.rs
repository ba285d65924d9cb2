//! A directory tree as a tar stream, in an order that only its names decide.
//!
//! Two kinds of trees: the writable layer of a snapshot, whose whiteouts and opaque directories become those of the
//! image specification (layer.md, "Whiteouts"), and a tree as a process sees it. Every path is walked by descriptor,
//! nothing but regular files and directories is opened, what is mounted below is left out, and so are sockets, which no
//! archive can hold.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::writer::{Entry, EntryKind, Writer};
use crate::dir::list;
use crate::error::{Error, Result};

const XATTR_LIST_BYTES: usize = 64 << 10;
const XATTR_VALUE_BYTES: usize = 64 << 10;
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// What is archived, and how.
#[derive(Debug, Default)]
pub(crate) struct Options<'a> {
    /// What is below: then the tree is a writable layer in overlayfs form, and directories that only lead to something
    /// are told from those that were changed.
    pub(crate) lower: Option<BorrowedFd<'a>>,
    /// Relative paths on which something was mounted: made for that, they are nobody's content.
    pub(crate) mount_targets: HashSet<Vec<u8>>,
    /// Later times are set back to this one, in seconds since the epoch.
    pub(crate) mtime_max: Option<i64>,
}

/// Extended attributes: names with their namespace, and values; sorted.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

struct Walk<'a, W: Write> {
    top: BorrowedFd<'a>,
    out: &'a mut Writer<W>,
    options: &'a Options<'a>,
    /// Directories above a mount target.
    above_targets: HashSet<&'a [u8]>,
    /// First names of files with several. An overlay shows files with the devices of its layers.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories on the way to here that are written when something below them is.
    pending: Vec<(Vec<u8>, Stat, Xattrs)>,
}

/// Writes everything below `top` to the stream.
pub(crate) fn write<W: Write>(top: BorrowedFd<'_>, out: &mut Writer<W>, options: &Options<'_>) -> Result<()> {
    let at_top = |errno| Error::io("look at", "/")(errno);
    let stat = fs::fstat(top).map_err(at_top)?;
    let above_targets = options
        .mount_targets
        .iter()
        .flat_map(|path| {
            (0..path.len()).filter(|at| path.get(*at) == Some(&b'/')).filter_map(|at| path.get(..at))
        })
        .collect();
    let mut walk = Walk { top, out, options, above_targets, links: HashMap::new(), pending: Vec::new() };
    if let Some(lower) = options.lower {
        let below = fs::fstat(lower).map_err(at_top)?;
        let own = xattrs(top).map_err(at_top)?;
        // A mount that is attached nowhere is a descriptor that only leads somewhere.
        let opened = open(lower, b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(at_top)?;
        if !looks_alike(&stat, &below) || xattrs(opened.as_fd()).map_err(at_top)? != own {
            walk.directory(b".", &stat, &own)?;
        }
        if is_opaque(top).map_err(at_top)? {
            walk.marker(OPAQUE_MARKER, &stat)?;
        }
    }
    walk.children(b"")
}

impl<W: Write> Walk<'_, W> {
    fn children(&mut self, path: &[u8]) -> Result<()> {
        let fault = |op| Error::io(op, shown(path));
        let dir = open(self.top, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fault("open"))?;
        let mut names = list(dir.as_fd()).map_err(fault("list"))?;
        names.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        for (name, _) in names {
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(name.as_bytes());
            match self.entry(&dir, &name, &below) {
                // It went while we looked: a container that runs may do that.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &CString, path: &[u8]) -> Result<()> {
        let fault = |op| Error::io(op, shown(path));
        let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fault("look at"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_layer = self.options.lower.is_some();
        if is_layer && kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return self.whiteout(path, &stat);
        }
        if is_layer && name.as_bytes().starts_with(WHITEOUT_PREFIX) {
            tracing::warn!(path = %shown(path).display(), "a name that means a whiteout cannot be in a layer");
            return Ok(());
        }
        if kind == FileType::Directory {
            return self.enter(path, &stat);
        }
        if self.is_target(path, &stat)? {
            return Ok(());
        }
        if kind == FileType::Socket {
            return Ok(());
        }
        self.flush_pending()?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let first = first.clone();
                return self.write(path, EntryKind::HardLink(&first), &stat, &Vec::new());
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let device = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        match kind {
            FileType::RegularFile => self.file(dir, name, path),
            FileType::Symlink => {
                let target = fs::readlinkat(dir, name, Vec::new()).map_err(fault("read the link"))?;
                let xattrs = xattrs_of_unopened(dir, name).map_err(fault("read attributes of"))?;
                self.write(path, EntryKind::Symlink(target.as_bytes()), &stat, &xattrs)
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                let xattrs = xattrs_of_unopened(dir, name).map_err(fault("read attributes of"))?;
                let kind = match kind {
                    FileType::CharacterDevice => EntryKind::Char { major: device.0, minor: device.1 },
                    FileType::BlockDevice => EntryKind::Block { major: device.0, minor: device.1 },
                    _ => EntryKind::Fifo,
                };
                self.write(path, kind, &stat, &xattrs)
            }
            _ => Ok(()),
        }
    }

    fn enter(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let fault = |op| Error::io(op, shown(path));
        let dir = match open(self.top, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::XDEV) => return Ok(()),
            opened => opened.map_err(fault("open"))?,
        };
        let xattrs = xattrs(dir.as_fd()).map_err(fault("read attributes of"))?;
        let opaque =
            self.options.lower.is_some() && is_opaque(dir.as_fd()).map_err(fault("read attributes of"))?;
        let is_way = !opaque && self.is_only_a_way(path, stat, &xattrs)?;
        let before = self.pending.len();
        if is_way {
            self.pending.push((path.to_vec(), *stat, xattrs));
        } else {
            self.flush_pending()?;
            self.directory(path, stat, &xattrs)?;
        }
        if opaque && self.below(path)?.is_some() {
            self.marker(&[path, b"/", OPAQUE_MARKER].concat(), stat)?;
        }
        drop(dir);
        self.children(path)?;
        // Nothing below it was written, so it is not either.
        self.pending.truncate(before);
        Ok(())
    }

    /// Whether a directory of a writable layer says nothing by itself.
    fn is_only_a_way(&self, path: &[u8], stat: &Stat, own: &Xattrs) -> Result<bool> {
        if self.options.lower.is_none() {
            return Ok(false);
        }
        let Some(below) = self.below(path)? else {
            return Ok(self.options.mount_targets.contains(path) || self.above_targets.contains(path));
        };
        let fault = |op| Error::io(op, shown(path));
        let lower = fs::fstat(&below).map_err(fault("look below"))?;
        Ok(looks_alike(stat, &lower) && xattrs(below.as_fd()).map_err(fault("look below"))? == *own)
    }

    /// The directory that a directory of a writable layer lies on.
    fn below(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        let Some(lower) = self.options.lower else { return Ok(None) };
        match open(lower, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(Error::io("look below", shown(path))(errno)),
        }
    }

    /// Whether an entry is the empty file that something was mounted on.
    fn is_target(&self, path: &[u8], stat: &Stat) -> Result<bool> {
        if stat.st_size != 0 || !self.options.mount_targets.contains(path) {
            return Ok(false);
        }
        let Some(lower) = self.options.lower else { return Ok(true) };
        match open(lower, path, OFlags::PATH) {
            Ok(_) => Ok(false),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(true),
            Err(errno) => Err(Error::io("look below", shown(path))(errno)),
        }
    }

    fn whiteout(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(at);
        self.flush_pending()?;
        self.marker(&[parent, WHITEOUT_PREFIX, name].concat(), stat)
    }

    /// An empty file that means something.
    fn marker(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let entry = Entry {
            path,
            kind: EntryKind::File { size: 0 },
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: self.time(stat),
            xattrs: &[],
        };
        self.out.entry(&entry).map_err(|source| Error::Io { op: "archive", path: shown(path), source })
    }

    fn file(&mut self, dir: &OwnedFd, name: &CString, path: &[u8]) -> Result<()> {
        let fault = |op| Error::io(op, shown(path));
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
        let file = fs::openat(dir, name, flags, Mode::empty()).map_err(fault("open"))?;
        let stat = fs::fstat(&file).map_err(fault("look at"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let xattrs = xattrs(file.as_fd()).map_err(fault("read attributes of"))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let entry = Entry { kind: EntryKind::File { size }, ..self.described(path, &stat, &xattrs) };
        self.out.file(&entry, File::from(file)).map_err(|source| Error::Io {
            op: "archive",
            path: shown(path),
            source,
        })
    }

    fn directory(&mut self, path: &[u8], stat: &Stat, xattrs: &Xattrs) -> Result<()> {
        self.write(path, EntryKind::Directory, stat, xattrs)
    }

    fn write(&mut self, path: &[u8], kind: EntryKind<'_>, stat: &Stat, xattrs: &Xattrs) -> Result<()> {
        let entry = Entry { kind, ..self.described(path, stat, xattrs) };
        self.out.entry(&entry).map_err(|source| Error::Io { op: "archive", path: shown(path), source })
    }

    fn described<'b>(&self, path: &'b [u8], stat: &Stat, xattrs: &'b Xattrs) -> Entry<'b> {
        Entry {
            path,
            kind: EntryKind::Fifo,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: self.time(stat),
            xattrs,
        }
    }

    fn time(&self, stat: &Stat) -> i64 {
        self.options.mtime_max.map_or(stat.st_mtime, |most| stat.st_mtime.min(most))
    }

    fn flush_pending(&mut self) -> Result<()> {
        for (path, stat, xattrs) in std::mem::take(&mut self.pending) {
            self.directory(&path, &stat, &xattrs)?;
        }
        Ok(())
    }
}

fn looks_alike(one: &Stat, other: &Stat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
}

fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from("/").join(OsStr::from_bytes(path))
}

fn open(top: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    fs::openat2(top, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut value = [0; 8];
    match fs::fgetxattr(dir, c"trusted.overlay.opaque", &mut value) {
        Ok(count) => Ok(value.get(..count) == Some(b"y")),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// What a layer may say: not overlayfs's own notes, and no label, which is of this machine.
fn is_content(name: &[u8]) -> bool {
    !name.is_empty() && !name.starts_with(b"trusted.overlay.") && name != b"security.selinux"
}

/// The attributes of an open file that a layer may have: overlayfs's own are not among them, and no label.
pub fn xattrs(file: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    collect(|buffer| fs::flistxattr(file, buffer), |name, buffer| fs::fgetxattr(file, name, buffer))
}

/// Of what must not be opened. The magic link leads to the file that the descriptor stands for, and no further.
fn xattrs_of_unopened(dir: &OwnedFd, name: &CString) -> Result<Xattrs, Errno> {
    let file = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let magic = format!("/proc/self/fd/{}", file.as_raw_fd());
    collect(|buffer| fs::listxattr(&magic, buffer), |name, buffer| fs::getxattr(&magic, name, buffer))
}

fn collect(
    names: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    value: impl Fn(&CString, &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let mut buffer = vec![0_u8; XATTR_LIST_BYTES];
    let length = match names(&mut buffer) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Ok(length) => length,
        Err(errno) => return Err(errno),
    };
    let mut xattrs = Vec::new();
    for name in
        buffer.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| is_content(name))
    {
        let key = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut bytes = vec![0_u8; XATTR_VALUE_BYTES];
        match value(&key, &mut bytes) {
            Ok(length) => {
                bytes.truncate(length);
                xattrs.push((name.to_vec(), bytes));
            }
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}
