//! Taking in a layer: one pass over the uncompressed tar.
//!
//! Bytes that are written to a [`LayerIngest`] are hashed, parsed and stored as they pass. Nothing
//! is visible before [`LayerIngest::finish`] has verified the diffID; dropping the ingest removes
//! every trace.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs;

use super::directory::{self, Attributes, Objects};
use super::erofs;
use super::tree::{Content, ROOT, Tree, TreeBuilder};
use super::{INFO, INFO_VERSION, LayerForm, LayerInfo, META, Ownership, TAR, TREE};
use crate::archive::split::{self, SPLIT, SplitWriter};
use crate::digest::{Algorithm, DiffId, Digest, Hasher};
use crate::dir::{Dir, unique};
use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::tar::{Entry, Parser, Visitor};
use crate::{Inner, Limits};

/// Pieces smaller than this are collected before they are written.
const BUFFER_BYTES: usize = 256 << 10;
/// Dirty pages are handed to the disk in steps of this size, so that the final flush is short.
const WRITEBACK_BYTES: u64 = 8 << 20;
/// Free space is looked at in steps of this size.
const SPACE_CHECK_BYTES: u64 = 64 << 20;
const OBJECTS: &str = "objects";

/// A layer on its way into the store. Write the uncompressed tar to it, then finish it.
#[derive(Debug)]
pub struct LayerIngest {
    work: Work,
    lease: Lease,
    limits: Limits,
    hasher: Hasher,
    parser: Parser,
    tree: TreeBuilder,
    sink: Sink,
    bytes: u64,
    next_space_check: u64,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    Going,
    /// The error that stopped the stream, unless the caller has it already.
    Failed(Option<Error>),
}

/// A directory under `work/` that goes away unless it is taken over.
#[derive(Debug)]
pub(crate) struct Work {
    inner: Arc<Inner>,
    name: String,
    pub(crate) dir: Dir,
}

impl Work {
    pub(crate) fn new(inner: &Arc<Inner>) -> Result<Self> {
        let name = unique();
        let dir = inner.work.create(&name)?;
        Ok(Self { inner: Arc::clone(inner), name, dir })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = self.inner.work.remove_tree(&self.name) {
            tracing::warn!(error = &error as &dyn std::error::Error, "removing a work directory");
        }
    }
}

#[derive(Debug)]
enum Sink {
    Tar { out: BufWriter<File>, written_back: u64 },
    Objects { objects: Objects, split: Box<SplitWriter> },
}

impl LayerIngest {
    pub(crate) fn new(lease: Lease, algorithm: Algorithm) -> Result<Self> {
        let inner = Arc::clone(lease.inner());
        let work = Work::new(&inner)?;
        let limits = inner.options.limits;
        let sink = match inner.form {
            LayerForm::TarErofs => Sink::Tar {
                out: BufWriter::with_capacity(BUFFER_BYTES, work.dir.create_file(TAR)?),
                written_back: 0,
            },
            LayerForm::Directory => Sink::Objects {
                objects: Objects::new(work.dir.create(OBJECTS)?),
                split: Box::new(SplitWriter::new(&work.dir)?),
            },
        };
        Ok(Self {
            work,
            lease,
            limits,
            hasher: Hasher::new(algorithm),
            parser: Parser::new(limits.header()),
            tree: TreeBuilder::new(limits.tree()),
            sink,
            bytes: 0,
            next_space_check: 0,
            progress: Progress::Going,
        })
    }

    /// Takes the next bytes of the uncompressed tar, all of them. After an error the layer can
    /// only be dropped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if let Progress::Failed(error) = &mut self.progress {
            return Err(error.take().unwrap_or(Error::Refused));
        }
        let taken = self.take(bytes);
        if taken.is_err() {
            self.progress = Progress::Failed(None);
        }
        taken
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let count = bytes.len() as u64;
        if self.bytes.saturating_add(count) > self.limits.layer_bytes {
            return Err(Error::Limit {
                what: "bytes of an uncompressed layer",
                limit: self.limits.layer_bytes,
            });
        }
        if self.bytes >= self.next_space_check {
            self.work.inner.check_space()?;
            self.next_space_check = self.bytes + SPACE_CHECK_BYTES;
        }
        self.hasher.update(bytes);
        if let Sink::Tar { out, .. } = &mut self.sink {
            out.write_all(bytes).map_err(|source| Error::Io {
                op: "write",
                path: self.work.dir.entry(TAR),
                source,
            })?;
        }
        let objects = match &mut self.sink {
            Sink::Tar { .. } => None,
            Sink::Objects { objects, .. } => Some(objects),
        };
        self.parser.feed(bytes, &mut Unpack { tree: &mut self.tree, objects })?;
        if let Sink::Objects { objects, split } = &mut self.sink {
            split.push(bytes, &objects.pieces).map_err(|source| Error::Io {
                op: "write",
                path: self.work.dir.entry(SPLIT),
                source,
            })?;
            objects.pieces.clear();
        }
        self.bytes += count;
        if let Sink::Tar { out, written_back } = &mut self.sink {
            // What still sits in the buffer is not in the file yet, but it never lags that much.
            if self.bytes - *written_back >= 2 * WRITEBACK_BYTES {
                let length = self.bytes - WRITEBACK_BYTES - *written_back;
                // An optimisation only: file systems that cannot do it flush later.
                let _: Result<(), _> =
                    pinnace_sys::writeback::start(out.get_ref().as_fd(), *written_back, length);
                *written_back += length;
            }
        }
        Ok(())
    }

    /// Ends the stream, verifies that it is the layer `expected`, and commits it. The layer is
    /// protected by the lease that the ingest was started with.
    pub fn finish(self, expected: &DiffId) -> Result<LayerInfo> {
        let (this, actual) = self.computed()?;
        if actual != *expected.digest() {
            return Err(Error::DigestMismatch {
                expected: Box::new(*expected.digest()),
                actual: Box::new(actual),
            });
        }
        this.commit(*expected)
    }

    /// Ends the stream and commits it under the diffID that it turns out to have: for layers made
    /// on this node.
    pub fn finish_new(self) -> Result<LayerInfo> {
        let (this, actual) = self.computed()?;
        this.commit(DiffId::new(actual))
    }

    /// The digest of a stream that has not failed.
    fn computed(mut self) -> Result<(Self, Digest)> {
        if let Progress::Failed(error) = &mut self.progress {
            return Err(error.take().unwrap_or(Error::Refused));
        }
        let digest = self.hasher.clone().finish();
        Ok((self, digest))
    }

    fn commit(self, diff_id: DiffId) -> Result<LayerInfo> {
        let Self { work, lease, parser, tree, sink, bytes, .. } = self;
        let inner = Arc::clone(&work.inner);
        parser.finish().map_err(Error::Tar)?;
        if let Some(info) = lease.hold_layer(&diff_id) {
            return Ok(info);
        }
        let tree = tree.finish().map_err(Error::Tar)?;
        let mut info = describe(&tree, diff_id, inner.form, bytes);
        match sink {
            Sink::Tar { out, .. } => {
                let tar = out.into_inner().map_err(|error| Error::Io {
                    op: "write",
                    path: work.dir.entry(TAR),
                    source: error.into_error(),
                })?;
                let meta = work.dir.create_file(META)?;
                let identity = erofs::Identity::of(&diff_id, bytes);
                let meta_bytes = erofs::write(&tree, &identity, &[&tar], &meta)
                    .map_err(|error| error.at(work.dir.entry(META)))?;
                info.disk_bytes = allocated(&tar, bytes) + allocated(&meta, meta_bytes);
                // Two files, their directory and its record.
                info.disk_inodes = 4;
            }
            Sink::Objects { objects, split } => {
                let path = work.dir.entry(SPLIT);
                split.finish().map_err(|source| Error::Io { op: "write", path, source })?;
                directory::build(&tree, &objects, &work.dir, TREE)?;
                split::settle(&tree, objects.next(), &objects.dir, &work.dir)?;
                drop(objects);
                work.dir.remove_tree(OBJECTS)?;
                let usage = crate::usage::below(work.dir.open(TREE)?.as_fd())
                    .map_err(Error::io("measure", work.dir.entry(TREE)))?;
                let split = work.dir.open_file(SPLIT)?;
                info.disk_bytes = usage.bytes + allocated(&split, 0);
                info.disk_inodes = usage.inodes + 4;
            }
        }
        let record = serde_json::to_vec(&info)
            .map_err(|source| Error::Record { path: work.dir.entry(INFO), source })?;
        work.dir.replace(INFO, &record, crate::dir::Flush::No)?;
        inner.commit_layer(work, info, &lease)
    }
}

/// Blocks on disk, or the length where blocks are not allocated yet.
fn allocated(file: &File, length: u64) -> u64 {
    let blocks = fs::fstat(file).ok().and_then(|stat| u64::try_from(stat.st_blocks).ok()).unwrap_or(0);
    (blocks * 512).max(length)
}

fn describe(tree: &Tree, diff_id: DiffId, form: LayerForm, tar_bytes: u64) -> LayerInfo {
    let root = tree.inode(ROOT).zip(tree.directory(ROOT));
    let special = tree.special_directories();
    LayerInfo {
        version: INFO_VERSION,
        diff_id,
        form,
        tar_bytes,
        disk_bytes: 0,
        disk_inodes: 0,
        entries: tree.entries,
        root: root.filter(|(_, directory)| !directory.implicit).map(|(inode, _)| Ownership {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
        }),
        root_opaque: root.is_some_and(|(_, directory)| directory.opaque),
        implicit: special.implicit.iter().map(hex::encode).collect(),
        with_whiteouts: special.with_whiteouts.iter().map(hex::encode).collect(),
    }
}

impl io::Write for LayerIngest {
    /// Never writes a part. The error that stopped the stream is what `finish` reports.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.push(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let shown = io::Error::other(error.to_string());
                self.progress = Progress::Failed(Some(error));
                Err(shown)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts what the parser finds into the tree, and contents where the form keeps them.
pub(super) struct Unpack<'a> {
    tree: &'a mut TreeBuilder,
    objects: Option<&'a mut Objects>,
}

impl<'a> Unpack<'a> {
    /// For contents that stay in the tar.
    pub(super) fn of_tar(tree: &'a mut TreeBuilder) -> Self {
        Self { tree, objects: None }
    }
}

impl Visitor for Unpack<'_> {
    type Error = Error;

    fn entry(&mut self, mut entry: Entry<'_>) -> Result<()> {
        let sparse = entry.sparse.take();
        let size = entry.size;
        match &mut self.objects {
            None => {
                let content = match sparse {
                    Some(segments) => Content::Sparse(entry.data_offset, segments.into()),
                    None => Content::Whole(entry.data_offset),
                };
                self.tree.insert(entry, content)?;
            }
            Some(objects) => {
                if let Some(inode) = self.tree.insert(entry, Content::Object(objects.next()))? {
                    objects.begin(inode, size, sparse)?;
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.objects {
            None => Ok(()),
            Some(objects) => objects.data(bytes),
        }
    }

    fn entry_end(&mut self) -> Result<()> {
        match &mut self.objects {
            None => Ok(()),
            Some(objects) => objects.end(|id| self.tree.inode(id).map(Attributes::of)),
        }
    }
}
