//! Many layers as one file system: what overlayfs would show, worked out beforehand.
//!
//! The kernel stacks 500 layers at most. A deeper chain becomes one EROFS whose inodes point into the tars of all its
//! layers, so nothing is copied. Whiteouts and opaque directories have done their work then, and a directory without
//! entry has the look of the one that it stands for.

use std::collections::HashMap;

use super::tree::{Directory, Inode, InodeId, Node, ROOT, Tree};
use crate::tar::Mtime;

/// A tree under construction, base layer first.
#[derive(Debug)]
pub(crate) struct Merge {
    inodes: Vec<Inode>,
    sources: Vec<u16>,
    entries: u64,
}

impl Merge {
    pub(crate) fn new() -> Self {
        let root = Inode {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            nlink: 2,
            xattrs: Box::default(),
            node: Node::Directory(Box::new(Directory::empty(ROOT, true))),
        };
        Self { inodes: vec![root], sources: vec![0], entries: 0 }
    }

    /// Puts a layer on top; its data are in the tar of that number.
    pub(crate) fn put(&mut self, layer: Tree, source: u16) {
        self.entries = self.entries.saturating_add(layer.entries);
        let mut inodes: Vec<Option<Inode>> = layer.inodes.into_iter().map(Some).collect();
        // Files with several names come once.
        let mut taken: HashMap<InodeId, InodeId> = HashMap::new();
        let mut take = |id: InodeId| inodes.get_mut(id as usize).and_then(Option::take);
        let mut pending: Vec<(Inode, InodeId)> = Vec::new();
        if let Some(root) = take(ROOT) {
            self.assume(ROOT, &root);
            pending.push((root, ROOT));
        }
        while let Some((from, to)) = pending.pop() {
            let Node::Directory(from) = from.node else { continue };
            for (name, child) in from.children {
                if let Some(known) = taken.get(&child) {
                    self.link(to, name, *known);
                    continue;
                }
                let Some(inode) = take(child) else { continue };
                match &inode.node {
                    Node::Char { major: 0, minor: 0 } => {
                        if let Some(directory) = self.directory_mut(to) {
                            directory.children.remove(&name);
                        }
                    }
                    Node::Directory(directory) => {
                        let below = self.child_directory(to, &name).filter(|_| !directory.opaque);
                        let target = match below {
                            Some(target) => {
                                self.assume(target, &inode);
                                target
                            }
                            None => {
                                let fresh = Inode {
                                    xattrs: inode.xattrs.clone(),
                                    node: Node::Directory(Box::new(Directory::empty(to, directory.implicit))),
                                    ..inode
                                };
                                let Some(target) = self.add(fresh, source) else { return };
                                self.link(to, name, target);
                                target
                            }
                        };
                        pending.push((inode, target));
                    }
                    _ => {
                        let Some(target) = self.add(inode, source) else { return };
                        taken.insert(child, target);
                        self.link(to, name, target);
                    }
                }
            }
        }
    }

    /// The finished tree: link counts are those of the names that are left.
    pub(crate) fn finish(mut self) -> Tree {
        for inode in &mut self.inodes {
            inode.nlink = 0;
        }
        let mut pending = vec![ROOT];
        while let Some(id) = pending.pop() {
            let Some(Node::Directory(directory)) = self.inodes.get(id as usize).map(|inode| &inode.node)
            else {
                continue;
            };
            let children: Vec<InodeId> = directory.children.values().copied().collect();
            let mut links = 2_u32;
            for child in children {
                let Some(inode) = self.inodes.get_mut(child as usize) else { continue };
                if matches!(inode.node, Node::Directory(_)) {
                    links = links.saturating_add(1);
                    pending.push(child);
                } else {
                    inode.nlink = inode.nlink.saturating_add(1);
                }
            }
            if let Some(inode) = self.inodes.get_mut(id as usize) {
                inode.nlink = links;
            }
        }
        Tree { inodes: self.inodes, entries: self.entries, sources: self.sources }
    }

    fn add(&mut self, inode: Inode, source: u16) -> Option<InodeId> {
        let id = InodeId::try_from(self.inodes.len()).ok()?;
        self.inodes.push(inode);
        self.sources.push(source);
        Some(id)
    }

    fn link(&mut self, directory: InodeId, name: Box<[u8]>, id: InodeId) {
        if let Some(directory) = self.directory_mut(directory) {
            directory.children.insert(name, id);
        }
    }

    /// Gives a directory the look of an entry above it.
    fn assume(&mut self, id: InodeId, above: &Inode) {
        let Node::Directory(directory) = &above.node else { return };
        if directory.implicit {
            return;
        }
        if let Some(inode) = self.inodes.get_mut(id as usize) {
            (inode.mode, inode.uid, inode.gid, inode.mtime) = (above.mode, above.uid, above.gid, above.mtime);
            inode.xattrs = above.xattrs.clone();
        }
        if let Some(directory) = self.directory_mut(id) {
            directory.implicit = false;
        }
    }

    fn child_directory(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let Node::Directory(directory) = &self.inodes.get(parent as usize)?.node else { return None };
        let child = *directory.children.get(name)?;
        matches!(self.inodes.get(child as usize)?.node, Node::Directory(_)).then_some(child)
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inodes.get_mut(id as usize)?.node {
            Node::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}
