//! The files of one layer, in memory, while its tar passes by.
//!
//! The tree gives a tar stream its meaning: duplicates (the last one wins), parents that have no
//! entry, hard links, links on the way to an entry, whiteouts. Both layer forms are made from the
//! finished tree, so they cannot differ; and as no host path is touched before the tree is
//! finished and the digest verified, no order of entries can lead outside of it.
//!
//! - A link on the way to an entry is followed inside the layer, as if the layer were the whole
//!   root file system. What it would meet in *lower* layers is not known and does not count: a
//!   directory here replaces a link there, which is what overlayfs does.
//! - A whiteout hides lower layers only, wherever it stands among the entries. A whiteout and a
//!   directory of the same name make the directory opaque.
//! - A directory without entry is `implicit`: it should look like the same directory further
//!   down, which only the chain can tell (see [`crate::chain`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::tar::{Entry, Error, Kind, Mtime, Segment, Xattr, printable};

/// The longest symbolic link chase, as in path_resolution(7).
const MAX_LINKS: u32 = 40;
/// NAME_MAX and PATH_MAX.
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;
/// What listxattr(2) and setxattr(2) allow for one file.
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// Far beyond any real file, and within what every file system can address.
const MAX_FILE_BYTES: u64 = 8 << 40;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

pub(crate) type InodeId = u32;
pub(crate) const ROOT: InodeId = 0;

#[derive(Clone, Copy, Debug)]
pub(crate) struct TreeLimits {
    pub(crate) entries: u64,
    pub(crate) path_bytes: usize,
    pub(crate) depth: usize,
    /// Names, link targets, attributes and sparse maps together.
    pub(crate) metadata_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Inode {
    /// Permission bits only.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Mtime,
    pub(crate) nlink: u32,
    pub(crate) xattrs: Box<[Xattr]>,
    pub(crate) node: Node,
}

#[derive(Debug)]
pub(crate) enum Node {
    Directory(Box<Directory>),
    Regular { size: u64, content: Content },
    Symlink(Box<[u8]>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// Where the bytes of a regular file are.
#[derive(Debug)]
pub(crate) enum Content {
    Empty,
    /// In the tar, as a whole, at this offset.
    Whole(u64),
    /// In the tar, packed from this offset on.
    Sparse(u64, Box<[Segment]>),
    /// In a file of its own, by number.
    Object(u64),
}

#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, InodeId>,
    pub(crate) opaque: bool,
    pub(crate) implicit: bool,
    whiteouts: BTreeSet<Box<[u8]>>,
    pub(super) parent: InodeId,
    depth: usize,
    path_bytes: usize,
}

impl Directory {
    pub(super) fn empty(parent: InodeId, implicit: bool) -> Self {
        Self { parent, implicit, ..Self::default() }
    }
}

/// A tree under construction.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    inodes: Vec<Inode>,
    limits: TreeLimits,
    entries: u64,
    metadata_bytes: u64,
    /// The last parent path as written, and the directory it led to.
    recent: Option<(Vec<u8>, InodeId)>,
}

/// A finished tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) entries: u64,
    /// Which tar has the data of an inode; empty if there is only one.
    pub(crate) sources: Vec<u16>,
}

impl TreeBuilder {
    pub(crate) fn new(limits: TreeLimits) -> Self {
        let root = Inode {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            nlink: 1,
            xattrs: Box::default(),
            node: Node::Directory(Box::new(Directory { implicit: true, ..Directory::default() })),
        };
        Self { inodes: vec![root], limits, entries: 0, metadata_bytes: 0, recent: None }
    }

    /// Adds an entry of the tar. `content` is where the data of a regular file will be; the answer
    /// is the file that wants them.
    pub(crate) fn insert(&mut self, entry: Entry<'_>, content: Content) -> Result<Option<InodeId>, Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::Limit { what: "number of entries of a layer", limit: self.limits.entries });
        }
        let name = entry.name;
        let fault = |reason| Error::Name { name: printable(name), reason };
        if entry.name.len() > self.limits.path_bytes {
            let limit = self.limits.path_bytes as u64;
            return Err(Error::Limit { what: "length in bytes of a path", limit });
        }
        let path = cleaned(name, &fault)?;
        let Some((parent_path, base)) = split(&path) else {
            // The root entry sets attributes and nothing else.
            if entry.kind != Kind::Directory {
                return Err(fault("only a directory can be the root"));
            }
            let attributes = self.attributes(entry)?;
            self.assume(ROOT, attributes);
            return Ok(None);
        };
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            if base != OPAQUE && base.starts_with(AUFS) {
                return Ok(None);
            }
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(fault("whiteout of nothing"));
            }
            let parent = self.parent(parent_path, &fault)?;
            let hidden: Option<Box<[u8]>> = (base != OPAQUE).then(|| hidden.into());
            self.charge(hidden.as_ref().map_or(0, |name| name.len() + 32))?;
            let Some(directory) = self.directory_mut(parent) else { return Ok(None) };
            match hidden {
                Some(name) => {
                    directory.whiteouts.insert(name);
                }
                None => directory.opaque = true,
            }
            return Ok(None);
        }
        if entry.kind == Kind::HardLink {
            self.hard_link(&entry, parent_path, base, &fault)?;
            return Ok(None);
        }
        let parent = self.parent(parent_path, &fault)?;
        let existing = self.child(parent, base);
        if entry.kind == Kind::Directory
            && let Some(existing) = existing.filter(|id| self.directory(*id).is_some())
        {
            let attributes = self.attributes(entry)?;
            self.assume(existing, attributes);
            return Ok(None);
        }
        if existing.is_some() {
            self.remove(parent, base);
        }
        let base: Box<[u8]> = base.into();
        let inode = self.attributes_with(entry, content)?;
        let has_content =
            matches!(&inode.node, Node::Regular { content, .. } if !matches!(content, Content::Empty));
        let id = self.attach(parent, base, inode)?;
        Ok(has_content.then_some(id))
    }

    /// Resolves whiteouts and link counts.
    ///
    /// Whiteouts in and below an opaque directory are dropped: there is nothing left to hide, and
    /// overlayfs would list them as broken files, because it looks for whiteouts only where it
    /// merges directories.
    pub(crate) fn finish(mut self) -> Result<Tree, Error> {
        let mut pending = vec![(ROOT, false)];
        while let Some((id, covered)) = pending.pop() {
            let Some(directory) = self.directory_mut(id) else { continue };
            let whiteouts = std::mem::take(&mut directory.whiteouts);
            let covered = covered || directory.opaque;
            for name in whiteouts.into_iter().filter(|_| !covered) {
                match self.child(id, &name) {
                    Some(child) => {
                        if let Some(directory) = self.directory_mut(child) {
                            directory.opaque = true;
                        }
                    }
                    None => {
                        let whiteout = Inode {
                            mode: 0,
                            uid: 0,
                            gid: 0,
                            mtime: Mtime::default(),
                            nlink: 0,
                            xattrs: Box::default(),
                            node: Node::Char { major: 0, minor: 0 },
                        };
                        self.attach(id, name, whiteout)?;
                    }
                }
            }
            let Some(directory) = self.directory(id) else { continue };
            let below = directory.children.values().filter(|child| self.directory(**child).is_some());
            let first = pending.len();
            pending.extend(below.map(|child| (*child, covered)));
            let subdirectories = u32::try_from(pending.len() - first).unwrap_or(u32::MAX);
            if let Some(inode) = self.inode_mut(id) {
                inode.nlink = subdirectories.saturating_add(2);
            }
        }
        Ok(Tree { inodes: self.inodes, entries: self.entries, sources: Vec::new() })
    }

    fn hard_link(
        &mut self,
        entry: &Entry<'_>,
        parent_path: &[u8],
        base: &[u8],
        fault: &dyn Fn(&'static str) -> Error,
    ) -> Result<(), Error> {
        let refuse =
            |reason| Error::Link { name: printable(entry.name), target: printable(entry.link), reason };
        if entry.link.len() > self.limits.path_bytes {
            return Err(refuse("target is too long"));
        }
        let target = cleaned(entry.link, &refuse)?;
        let Some((target_parent, target_base)) = split(&target) else {
            return Err(refuse("target is the root"));
        };
        let target = self
            .resolve(target_parent, Missing::Refuse, &refuse)?
            .and_then(|parent| self.child(parent, target_base))
            .ok_or_else(|| refuse("target does not exist in this layer"))?;
        if self.directory(target).is_some() {
            return Err(refuse("target is a directory"));
        }
        let parent = self.parent(parent_path, fault)?;
        if let Some(existing) = self.child(parent, base) {
            if existing == target {
                return Ok(());
            }
            // The target may be below the directory that is replaced.
            self.keep(target);
            self.remove(parent, base);
            if self.inode_mut(target).is_some_and(|inode| inode.nlink == 1) {
                return Err(refuse("target is replaced by the link"));
            }
            self.release(target);
        }
        self.charge(base.len() + 64)?;
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(base.into(), target);
        }
        self.keep(target);
        Ok(())
    }

    fn keep(&mut self, id: InodeId) {
        if let Some(inode) = self.inode_mut(id) {
            inode.nlink = inode.nlink.saturating_add(1);
        }
    }

    fn release(&mut self, id: InodeId) {
        if let Some(inode) = self.inode_mut(id) {
            inode.nlink = inode.nlink.saturating_sub(1);
        }
    }

    fn parent(&mut self, path: &[u8], fault: &dyn Fn(&'static str) -> Error) -> Result<InodeId, Error> {
        if let Some((known, id)) = &self.recent
            && known == path
        {
            return Ok(*id);
        }
        let id = self.resolve(path, Missing::Create, fault)?.ok_or_else(|| fault("parent is missing"))?;
        self.recent = Some((path.to_vec(), id));
        Ok(id)
    }

    /// Walks to a directory, following links inside the layer.
    fn resolve(
        &mut self,
        path: &[u8],
        missing: Missing,
        fault: &dyn Fn(&'static str) -> Error,
    ) -> Result<Option<InodeId>, Error> {
        let mut links = 0;
        let mut current = ROOT;
        // What is still to walk, last component first; only a path with links owns its text.
        let mut pending: Vec<Cow<'_, [u8]>> = components(path).rev().map(Cow::Borrowed).collect();
        while let Some(name) = pending.pop() {
            let name: &[u8] = &name;
            if name == b".." {
                // Only a link target has one: `split` has cleaned the path itself. At the root it
                // stays there, as in chroot(2).
                current = self.directory(current).map_or(ROOT, |directory| directory.parent);
                continue;
            }
            let Some(child) = self.child(current, name) else {
                if missing == Missing::Refuse {
                    return Ok(None);
                }
                let implicit = Inode {
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    mtime: Mtime::default(),
                    nlink: 0,
                    xattrs: Box::default(),
                    node: Node::Directory(Box::new(Directory { implicit: true, ..Directory::default() })),
                };
                current = self.attach(current, name.into(), implicit)?;
                continue;
            };
            match self.inodes.get(child as usize).map(|inode| &inode.node) {
                Some(Node::Directory(_)) => current = child,
                Some(Node::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(fault("too many symbolic links on the way"));
                    }
                    let target = target.clone();
                    if target.starts_with(b"/") {
                        current = ROOT;
                    }
                    let parts: Vec<_> = components(&target).map(<[u8]>::to_vec).collect();
                    if parts.iter().any(|part| part.len() > MAX_NAME) {
                        return Err(fault("a symbolic link on the way has too long a name"));
                    }
                    pending.extend(parts.into_iter().rev().map(Cow::Owned));
                    if pending.len() > 2 * self.limits.path_bytes {
                        return Err(fault("too many symbolic links on the way"));
                    }
                }
                _ => return Err(fault("parent is not a directory")),
            }
        }
        Ok(Some(current))
    }

    fn attach(&mut self, parent: InodeId, name: Box<[u8]>, mut inode: Inode) -> Result<InodeId, Error> {
        self.charge(name.len() + 64)?;
        let limit = self.limits.entries.saturating_mul(2);
        let id = InodeId::try_from(self.inodes.len())
            .ok()
            .filter(|id| u64::from(*id) <= limit)
            .ok_or(Error::Limit { what: "number of files of a layer", limit })?;
        let limits = self.limits;
        if let Some(directory) = self.directory(parent) {
            let path_bytes = directory.path_bytes + name.len() + 1;
            let depth = directory.depth + 1;
            if path_bytes > limits.path_bytes {
                let limit = limits.path_bytes as u64;
                return Err(Error::Limit { what: "length in bytes of a path", limit });
            }
            if depth > limits.depth {
                return Err(Error::Limit { what: "depth of a path", limit: limits.depth as u64 });
            }
            if let Node::Directory(child) = &mut inode.node {
                (child.parent, child.depth, child.path_bytes) = (parent, depth, path_bytes);
            }
        }
        inode.nlink = 1;
        self.inodes.push(inode);
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name, id);
        }
        Ok(id)
    }

    /// Removes an entry and, if it is a directory, all below it.
    fn remove(&mut self, parent: InodeId, name: &[u8]) {
        self.recent = None;
        let Some(directory) = self.directory_mut(parent) else { return };
        let Some(id) = directory.children.remove(name) else { return };
        let mut doomed = vec![id];
        while let Some(id) = doomed.pop() {
            let Some(inode) = self.inode_mut(id) else { continue };
            inode.nlink = inode.nlink.saturating_sub(1);
            if let Node::Directory(directory) = &mut inode.node {
                directory.whiteouts.clear();
                doomed.extend(std::mem::take(&mut directory.children).into_values());
            }
        }
    }

    /// Gives an existing directory the attributes of an entry.
    fn assume(&mut self, id: InodeId, attributes: Inode) {
        if let Some(inode) = self.inode_mut(id) {
            inode.mode = attributes.mode;
            inode.uid = attributes.uid;
            inode.gid = attributes.gid;
            inode.mtime = attributes.mtime;
            inode.xattrs = attributes.xattrs;
            if let Node::Directory(directory) = &mut inode.node {
                directory.implicit = false;
            }
        }
    }

    fn attributes(&mut self, entry: Entry<'_>) -> Result<Inode, Error> {
        self.attributes_with(entry, Content::Empty)
    }

    fn attributes_with(&mut self, entry: Entry<'_>, content: Content) -> Result<Inode, Error> {
        let name = || printable(entry.name);
        let node = match entry.kind {
            Kind::Directory => Node::Directory(Box::default()),
            Kind::Regular if entry.size == 0 => Node::Regular { size: 0, content: Content::Empty },
            Kind::Regular => {
                if entry.size > MAX_FILE_BYTES {
                    return Err(Error::Limit { what: "bytes of a file", limit: MAX_FILE_BYTES });
                }
                if let Content::Sparse(_, segments) = &content {
                    self.charge(segments.len() * size_of::<Segment>())?;
                }
                Node::Regular { size: entry.size, content }
            }
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > MAX_TARGET {
                    let reason = "symbolic link has no target or too long a one";
                    return Err(Error::Name { name: name(), reason });
                }
                self.charge(entry.link.len())?;
                Node::Symlink(entry.link.into())
            }
            Kind::Char { major, minor } => Node::Char { major, minor },
            Kind::Block { major, minor } => Node::Block { major, minor },
            Kind::Fifo | Kind::HardLink => Node::Fifo,
        };
        let user_allowed = matches!(node, Node::Directory(_) | Node::Regular { .. });
        let mut xattrs: Vec<Xattr> = entry.xattrs;
        xattrs.retain(|xattr| kept(&xattr.name, user_allowed));
        xattrs.sort_unstable();
        let bytes: usize = xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 1).sum();
        if bytes > MAX_XATTR_BYTES {
            let limit = MAX_XATTR_BYTES as u64;
            return Err(Error::Limit { what: "bytes of extended attributes of a file", limit });
        }
        self.charge(bytes)?;
        let mode = if entry.kind == Kind::Symlink { 0o777 } else { entry.mode };
        Ok(Inode {
            mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            nlink: 1,
            xattrs: xattrs.into(),
            node,
        })
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes as u64);
        if self.metadata_bytes > self.limits.metadata_bytes {
            let limit = self.limits.metadata_bytes;
            return Err(Error::Limit { what: "bytes of names and attributes of a layer", limit });
        }
        Ok(())
    }

    pub(crate) fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id as usize)
    }

    fn inode_mut(&mut self, id: InodeId) -> Option<&mut Inode> {
        self.inodes.get_mut(id as usize)
    }

    fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inodes.get(id as usize)?.node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inodes.get_mut(id as usize)?.node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn child(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory(parent)?.children.get(name).copied()
    }
}

impl Tree {
    pub(crate) fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id as usize)
    }

    pub(crate) fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id)?.node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The number of the tar that has the data of an inode.
    pub(crate) fn source(&self, id: InodeId) -> u16 {
        self.sources.get(id as usize).copied().unwrap_or(0)
    }

    /// The paths of the directories without entry, and of those with whiteouts in them; the root
    /// excepted, sorted.
    pub(crate) fn special_directories(&self) -> Special {
        let mut special = Special::default();
        let mut pending = vec![(ROOT, Vec::new())];
        while let Some((id, path)) = pending.pop() {
            let Some(directory) = self.directory(id) else { continue };
            if directory.implicit && id != ROOT {
                special.implicit.push(path.clone());
            }
            let mut has_whiteout = false;
            for (name, child) in &directory.children {
                match self.inode(*child).map(|inode| &inode.node) {
                    Some(Node::Directory(_)) => {
                        let mut below = path.clone();
                        if !below.is_empty() {
                            below.push(b'/');
                        }
                        below.extend_from_slice(name);
                        pending.push((*child, below));
                    }
                    Some(Node::Char { major: 0, minor: 0 }) => has_whiteout = true,
                    _ => {}
                }
            }
            if has_whiteout && id != ROOT {
                special.with_whiteouts.push(path);
            }
        }
        special.implicit.sort_unstable();
        special.with_whiteouts.sort_unstable();
        special
    }
}

/// Directories whose look depends on the chain.
#[derive(Debug, Default)]
pub(crate) struct Special {
    pub(crate) implicit: Vec<Vec<u8>>,
    pub(crate) with_whiteouts: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Refuse,
}

/// Whether an attribute of an image is taken over.
///
/// overlayfs steers itself by `trusted.overlay.*` and `user.overlay.*`, so an image must not set
/// these; labels are the host's business; what is not in a namespace that any file system of ours
/// can show is dropped; so is `user.*` where the kernel refuses it (xattr(7)).
fn kept(name: &[u8], user_allowed: bool) -> bool {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return false;
    }
    if name == b"security.selinux" {
        return false;
    }
    let has = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    (has(b"user.") && user_allowed)
        || has(b"trusted.")
        || has(b"security.")
        || (matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default") && user_allowed)
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// A path without `..`: a component followed by one is dropped, as every image tool does; what
/// would lead above the root is refused.
fn cleaned<'a>(path: &'a [u8], fault: &dyn Fn(&'static str) -> Error) -> Result<Cow<'a, [u8]>, Error> {
    if path.is_empty() {
        return Err(fault("name is empty"));
    }
    if path.contains(&0) {
        return Err(fault("name contains NUL"));
    }
    let mut parents = false;
    for part in components(path) {
        if part.len() > MAX_NAME {
            return Err(fault("a component is longer than 255 bytes"));
        }
        parents |= part == b"..";
    }
    if !parents {
        return Ok(Cow::Borrowed(path));
    }
    let mut kept = Vec::new();
    for part in components(path) {
        if part == b".." {
            kept.pop().ok_or_else(|| fault("name leads out of the layer"))?;
        } else {
            kept.push(part);
        }
    }
    // An empty text would not be a path.
    kept.insert(0, b".");
    Ok(Cow::Owned(kept.join(&b'/')))
}

/// Splits a clean path into the text before the last component and that component, or `None` for
/// the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let base = components(path).next_back()?;
    let start = base.as_ptr().addr() - path.as_ptr().addr();
    Some((&path[..start], base))
}
