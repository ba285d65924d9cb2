//! The directory form: an unpacked layer that overlayfs can use as it is.
//!
//! While the tar passes by, the content of every regular file goes into a file of its own in one
//! flat directory, already with its owner, attributes, mode and times. When the tree is finished
//! and the digest verified, these files are moved to their places. Directories are made in a tree
//! that nobody else sees, and every name in it is made exactly once, so no link of the layer is
//! ever followed.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tree::{Content, Inode, InodeId, Node, ROOT, Tree};
use crate::archive::split::Piece;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::tar::{Segment, Xattr};

const PATH_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Writes the contents of files while the tar passes by.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) dir: Dir,
    next: u64,
    current: Option<Current>,
    /// What has been written since this was last taken.
    pub(crate) pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Current {
    file: File,
    /// Regions still to be written; data that arrive go to the first one.
    segments: std::collections::VecDeque<Segment>,
    inode: InodeId,
}

impl Objects {
    pub(crate) fn new(dir: Dir) -> Self {
        Self { dir, next: 0, current: None, pieces: Vec::new() }
    }

    /// The number that the next file will get.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Starts the content of a file.
    pub(crate) fn begin(&mut self, inode: InodeId, size: u64, sparse: Option<Vec<Segment>>) -> Result<()> {
        let name = object_name(self.next);
        let file = self.dir.create_file(&name)?;
        if sparse.is_some() {
            fs::ftruncate(&file, size).map_err(Error::io("set the length of", self.dir.entry(&name)))?;
        }
        self.next += 1;
        let whole = || vec![Segment { offset: 0, length: size }];
        let segments = sparse.unwrap_or_else(whole).into();
        self.current = Some(Current { file, segments, inode });
        Ok(())
    }

    /// The next bytes of the current file; none is wanted if there is no current file.
    pub(crate) fn data(&mut self, mut bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        while !bytes.is_empty() {
            let Some(segment) = current.segments.front_mut() else { return Ok(()) };
            let count = usize::try_from(segment.length).map_or(bytes.len(), |left| left.min(bytes.len()));
            let (piece, rest) = bytes.split_at(count);
            current.file.write_all_at(piece, segment.offset).map_err(|source| Error::Io {
                op: "write a file of a layer below",
                path: self.dir.path().to_owned(),
                source,
            })?;
            self.pieces.push(Piece {
                address: piece.as_ptr().addr(),
                length: count,
                object: self.next - 1,
                offset: segment.offset,
            });
            segment.offset += count as u64;
            segment.length -= count as u64;
            if segment.length == 0 {
                current.segments.pop_front();
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Ends the current file and gives it its attributes.
    pub(crate) fn end(&mut self, inode: impl FnOnce(InodeId) -> Option<Attributes>) -> Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        match inode(current.inode) {
            Some(attributes) => attributes
                .apply(current.file.as_fd())
                .map_err(Error::io("set the attributes of a file of a layer below", self.dir.path())),
            None => Ok(()),
        }
    }
}

pub(crate) fn object_name(number: u64) -> String {
    format!("{number:x}")
}

/// What is set on a file besides its content.
#[derive(Debug)]
pub(crate) struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    times: Timestamps,
    xattrs: Vec<Xattr>,
    opaque: bool,
}

impl Attributes {
    pub(crate) fn of(inode: &Inode) -> Self {
        let time = Timespec { tv_sec: inode.mtime.seconds, tv_nsec: i64::from(inode.mtime.nanoseconds) };
        Self {
            mode: Mode::from_raw_mode(inode.mode),
            uid: Uid::from_raw(inode.uid),
            gid: Gid::from_raw(inode.gid),
            times: Timestamps { last_access: time, last_modification: time },
            xattrs: inode.xattrs.to_vec(),
            opaque: matches!(&inode.node, Node::Directory(directory) if directory.opaque),
        }
    }

    /// The order matters: chown(2) clears capabilities and set-id bits.
    pub(crate) fn apply(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        fs::fchown(file, Some(self.uid), Some(self.gid))?;
        for xattr in &self.xattrs {
            let name = CString::new(&*xattr.name).map_err(|_| Errno::INVAL)?;
            tolerate(fs::fsetxattr(file, &name, &xattr.value, XattrFlags::empty()))?;
        }
        if self.opaque {
            fs::fsetxattr(file, c"trusted.overlay.opaque", b"y", XattrFlags::empty())?;
        }
        fs::fchmod(file, self.mode)?;
        fs::futimens(file, &self.times)
    }

    /// The same for what cannot be opened: links, devices and pipes.
    fn apply_at(&self, parent: BorrowedFd<'_>, name: &CString, is_link: bool) -> Result<(), Errno> {
        fs::chownat(parent, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if !self.xattrs.is_empty() {
            // There is no setxattrat(2) before Linux 6.13. The magic link leads to the file that
            // the descriptor stands for, link or not, and no further.
            let file = fs::openat(parent, name, PATH_ONLY, Mode::empty())?;
            let magic = format!("/proc/self/fd/{}", file.as_raw_fd());
            for xattr in &self.xattrs {
                let name = CString::new(&*xattr.name).map_err(|_| Errno::INVAL)?;
                tolerate(fs::setxattr(&magic, &name, &xattr.value, XattrFlags::empty()))?;
            }
        }
        if !is_link {
            fs::chmodat(parent, name, self.mode, AtFlags::empty())?;
        }
        fs::utimensat(parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Attributes that this file system cannot hold are left out: the layer works without them, except
/// for capabilities, which every file system that can be an upper layer holds.
fn tolerate(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Builds the tree `name` in `work` from the finished tree and the contents in `objects`.
pub(crate) fn build(tree: &Tree, objects: &Objects, work: &Dir, name: &str) -> Result<()> {
    let top = work.create(name)?;
    let mut first_names: Vec<Option<CString>> = vec![None; tree.inodes.len()];
    let fault = |path: &[u8]| {
        let path = top.path().join(String::from_utf8_lossy(path).as_ref());
        Error::io("unpack", path)
    };
    // Directories to fill, by path: descriptors stay few however deep the tree is.
    let mut pending = vec![(ROOT, Vec::<u8>::new())];
    while let Some((id, path)) = pending.pop() {
        let (Some(inode), Some(directory)) = (tree.inode(id), tree.directory(id)) else { continue };
        let dir = open_at(top.as_fd(), &path).map_err(fault(&path))?;
        for (child_name, child) in &directory.children {
            let Some(child_inode) = tree.inode(*child) else { continue };
            let entry = CString::new(&**child_name).map_err(|_| fault(&path)(Errno::INVAL))?;
            let place = Place { dir: dir.as_fd(), name: &entry, objects: objects.dir.as_fd() };
            let linked = first_names.get_mut(*child as usize);
            place.make(child_inode, *child, linked).map_err(|errno| {
                let mut full = path.clone();
                full.push(b'/');
                full.extend_from_slice(child_name);
                fault(&full)(errno)
            })?;
            if tree.directory(*child).is_some() {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(child_name);
                pending.push((*child, below));
            }
        }
        // All entries are made, so the times stay; what happens in subdirectories changes theirs.
        Attributes::of(inode).apply(dir.as_fd()).map_err(fault(&path))?;
    }
    Ok(())
}

fn open_at(top: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    fs::openat2(top, path, flags, Mode::empty(), resolve)
}

/// Where one name of the tree goes.
struct Place<'a> {
    dir: BorrowedFd<'a>,
    name: &'a CString,
    objects: BorrowedFd<'a>,
}

impl Place<'_> {
    fn make(&self, inode: &Inode, id: InodeId, first: Option<&mut Option<CString>>) -> Result<(), Errno> {
        let shared = inode.nlink > 1 && !matches!(inode.node, Node::Directory(_));
        if !shared {
            if let Node::Regular { content: Content::Object(number), .. } = &inode.node {
                return fs::renameat(self.objects, object_name(*number), self.dir, self.name);
            }
            return self.create(self.dir, self.name, inode);
        }
        // A file with several names is kept in the flat directory and linked from there.
        let Some(first) = first else { return Err(Errno::INVAL) };
        let source = match first {
            Some(source) => source,
            None => {
                let source = match &inode.node {
                    Node::Regular { content: Content::Object(number), .. } => object_name(*number),
                    _ => format!("shared-{id:x}"),
                };
                let source = CString::new(source).map_err(|_| Errno::INVAL)?;
                if !matches!(&inode.node, Node::Regular { content: Content::Object(_), .. }) {
                    self.create(self.objects, &source, inode)?;
                }
                first.insert(source)
            }
        };
        fs::linkat(self.objects, &*source, self.dir, self.name, AtFlags::empty())
    }

    /// Makes a file without content of its own.
    fn create(&self, dir: BorrowedFd<'_>, name: &CString, inode: &Inode) -> Result<(), Errno> {
        let attributes = Attributes::of(inode);
        let special = |kind, device| -> Result<(), Errno> {
            fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), device)?;
            attributes.apply_at(dir, name, false)
        };
        match &inode.node {
            Node::Directory(_) => fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)),
            Node::Regular { .. } => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
                attributes.apply(file.as_fd())
            }
            Node::Symlink(target) => {
                fs::symlinkat(&**target, dir, name)?;
                attributes.apply_at(dir, name, true)
            }
            Node::Char { major, minor } => special(FileType::CharacterDevice, fs::makedev(*major, *minor)),
            Node::Block { major, minor } => special(FileType::BlockDevice, fs::makedev(*major, *minor)),
            Node::Fifo => special(FileType::Fifo, 0),
        }
    }
}
