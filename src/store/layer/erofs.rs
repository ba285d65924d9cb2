//! Writes the EROFS metadata of a layer, whose file data stay where they are in the tar.
//!
//! The file system has two devices: this file (superblock, inodes, directories, long link
//! targets) and the tar, whose 512-byte blocks the inodes of regular files point into. Nothing of
//! it comes from outside: the kernel parses only what is generated here.
//!
//! ```text
//! byte 0     1024        1152         1280            meta_end             end
//! │ zeros    │ superblock │ device slot │ inodes, one   │ directory blocks,  │
//! │          │            │ (the tar)   │ after another │ long link targets, │
//! │          │            │             │ at 32-byte    │ blocks of sparse   │
//! │          │            │             │ slots         │ files that the tar │
//! │          │            │             │               │ has not aligned    │
//! ```
//!
//! An inode is followed by its attributes, then by its chunk table (regular files) or the tail of
//! its data (directories, links) if that fits into the rest of the 512-byte block. The output is a
//! function of the tree and the identity alone: same layer, same bytes.
//!
//! Field layout: Linux `fs/erofs/erofs_fs.h`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::tree::{Content, Directory, Inode, InodeId, Node, ROOT, Tree};
use crate::digest::DiffId;
use crate::error::Error;
use crate::tar::{Mtime, Segment};

/// Block size of the file system and of tar.
pub(crate) const BLOCK: u64 = 512;
const BLOCK_BITS: u32 = 9;
const SUPER_OFFSET: u64 = 1024;
const SUPER_MAGIC: u32 = 0xE0F5_E1E2;
const DEVICE_SLOT: u64 = 128;
const DEVICE_OFFSET: u64 = SUPER_OFFSET + 128;
const SLOT: u64 = 32;
const INODE: u64 = 64;
const DIRENT: usize = 12;
const CHUNK_INDEX: u64 = 8;
const XATTR_HEADER: usize = 12;

const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;
const CHUNK_INDEXES: u16 = 0x20;
/// Five bits of the chunk format hold the chunk size.
const MAX_CHUNK_BITS: u32 = BLOCK_BITS + 0x1f;
const HOLE: u32 = u32::MAX;
/// Device ids in chunk tables: this file, then the tars.
const OWN: u16 = 0;
const FIRST_TAR: u16 = 1;

const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

/// Tables and copied blocks that the sparse files of one layer may cost, in bytes.
const MAX_SPARSE_COST: u64 = 256 << 20;

/// Who this file system is.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) uuid: [u8; 16],
    /// The tars, one for a layer, several for layers that are merged.
    pub(crate) devices: Vec<Device>,
}

/// A tar that has file data.
#[derive(Debug)]
pub(crate) struct Device {
    /// Names it, for people; at most 64 bytes count.
    pub(crate) tag: String,
    /// Its length in bytes.
    pub(crate) bytes: u64,
}

impl Identity {
    /// The identity of a layer's file system.
    pub(crate) fn of(diff_id: &DiffId, tar_bytes: u64) -> Self {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&diff_id.digest().as_bytes()[..16]);
        Self { uuid, devices: vec![Device { tag: diff_id.hex(), bytes: tar_bytes }] }
    }

    fn inodes_offset(&self) -> u64 {
        DEVICE_OFFSET + DEVICE_SLOT * self.devices.len() as u64
    }
}

/// Why no file system could be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{what} exceeds the limit of {limit}")]
    Limit { what: &'static str, limit: u64 },
}

impl Fault {
    pub(crate) fn at(self, path: PathBuf) -> Error {
        match self {
            Self::Io(source) => Error::Io { op: "write", path, source },
            Self::Limit { what, limit } => Error::Limit { what, limit },
        }
    }
}

/// Writes the metadata of `tree` to `out`; the tars, in the order of the identity's devices, are read
/// only for sparse files whose regions are not aligned. Returns the length in bytes.
pub(crate) fn write(tree: &Tree, identity: &Identity, tars: &[&File], out: &File) -> Result<u64, Fault> {
    let plan = Plan::of(tree, identity)?;
    let mut writer = Writer { out: BufWriter::with_capacity(1 << 20, out), position: 0 };
    writer.superblock(&plan, identity)?;
    let mut scratch = Vec::new();
    for id in &plan.order {
        let (Some(inode), Some(place)) = (tree.inode(*id), plan.places.get(*id as usize)) else { continue };
        writer.inode(tree, &plan, *id, inode, place, &mut scratch)?;
    }
    for id in &plan.order {
        let (Some(inode), Some(place)) = (tree.inode(*id), plan.places.get(*id as usize)) else { continue };
        if place.blocks > 0 {
            writer.pad_to(u64::from(place.first_block) * BLOCK)?;
            let tar = tars
                .get(usize::from(tree.source(*id)))
                .ok_or(Fault::Limit { what: "number of a tar", limit: 0 })?;
            writer.blocks(tree, &plan, *id, inode, place, tar, &mut scratch)?;
        }
    }
    writer.pad_to(u64::from(plan.total_blocks) * BLOCK)?;
    writer.out.flush()?;
    Ok(writer.position)
}

/// Where one inode and its data go.
#[derive(Clone, Debug, Default)]
struct Place {
    /// Byte position of the inode; 0 means not placed yet.
    offset: u64,
    size: u64,
    /// Bytes of data right behind the inode.
    tail: u64,
    /// Data blocks in this file.
    blocks: u32,
    first_block: u32,
    sparse: Option<Box<SparsePlan>>,
}

impl Place {
    fn nid(&self) -> u64 {
        self.offset / SLOT
    }
}

struct Plan {
    order: Vec<InodeId>,
    places: Vec<Place>,
    total_blocks: u32,
}

impl Plan {
    /// Lays out every inode: the children of a directory stand together, in name order.
    fn of(tree: &Tree, identity: &Identity) -> Result<Self, Fault> {
        let mut plan =
            Self { order: Vec::new(), places: vec![Place::default(); tree.inodes.len()], total_blocks: 0 };
        if identity.devices.iter().any(|device| device.bytes.div_ceil(BLOCK) >= u64::from(HOLE)) {
            return Err(Fault::Limit { what: "bytes of a layer", limit: u64::from(HOLE) * BLOCK });
        }
        let mut end = identity.inodes_offset();
        let mut sparse_cost = 0;
        plan.place(tree, ROOT, &mut end, &mut sparse_cost)?;
        let mut pending = vec![ROOT];
        while let Some(id) = pending.pop() {
            let Some(directory) = tree.directory(id) else { continue };
            let first = pending.len();
            for child in directory.children.values() {
                if plan.places.get(*child as usize).is_some_and(|place| place.offset == 0) {
                    plan.place(tree, *child, &mut end, &mut sparse_cost)?;
                    if tree.directory(*child).is_some() {
                        pending.push(*child);
                    }
                }
            }
            pending[first..].reverse();
        }
        let mut block = end.div_ceil(BLOCK);
        for id in &plan.order {
            let Some(place) = plan.places.get_mut(*id as usize) else { continue };
            if place.blocks > 0 {
                place.first_block = block_number(block)?;
                block += u64::from(place.blocks);
            }
        }
        plan.total_blocks = block_number(block)?;
        Ok(plan)
    }

    fn place(&mut self, tree: &Tree, id: InodeId, end: &mut u64, sparse_cost: &mut u64) -> Result<(), Fault> {
        let Some(inode) = tree.inode(id) else { return Ok(()) };
        let head = INODE + xattr_bytes(inode) as u64;
        let mut place = Place { offset: end.next_multiple_of(SLOT), ..Place::default() };
        let mut behind = 0;
        match &inode.node {
            Node::Regular { size, content } => {
                place.size = *size;
                match content {
                    Content::Whole(_) => behind = CHUNK_INDEX,
                    Content::Sparse(data, segments) => {
                        let sparse = SparsePlan::of(*data, segments, *size);
                        *sparse_cost = sparse_cost.saturating_add(sparse.cost());
                        if *sparse_cost > MAX_SPARSE_COST {
                            let what = "bytes of block maps of the sparse files of a layer";
                            return Err(Fault::Limit { what, limit: MAX_SPARSE_COST });
                        }
                        behind = sparse.chunks() * CHUNK_INDEX;
                        place.blocks = block_number(sparse.copied_blocks())?;
                        place.sparse = Some(Box::new(sparse));
                    }
                    Content::Empty | Content::Object(_) => {}
                }
            }
            Node::Directory(directory) => {
                let (full, tail) = directory_size(directory);
                place.size = full * BLOCK + tail;
                place.lay_out_data(full, tail, head)?;
            }
            Node::Symlink(target) => {
                let length = target.len() as u64;
                place.size = length;
                // The kernel does not combine blocks and a tail for links.
                if length < BLOCK {
                    place.lay_out_data(0, length, head)?;
                } else {
                    place.blocks = block_number(length.div_ceil(BLOCK))?;
                }
            }
            Node::Char { .. } | Node::Block { .. } | Node::Fifo => {}
        }
        // The chunk table starts at a multiple of its entry size.
        let table = if behind > 0 { head.next_multiple_of(CHUNK_INDEX) - head + behind } else { 0 };
        *end = place.offset + head + table + place.tail;
        self.order.push(id);
        if let Some(slot) = self.places.get_mut(id as usize) {
            *slot = place;
        }
        Ok(())
    }
}

impl Place {
    /// Puts the last partial block behind the inode if it does not cross a block boundary there,
    /// moving the inode to the next block if that helps.
    fn lay_out_data(&mut self, full: u64, tail: u64, head: u64) -> Result<(), Fault> {
        let fits = |offset: u64| (offset + head) % BLOCK + tail <= BLOCK;
        let next = self.offset.next_multiple_of(BLOCK);
        if tail == 0 {
            self.blocks = block_number(full)?;
        } else if fits(self.offset) || fits(next) {
            if !fits(self.offset) {
                self.offset = next;
            }
            self.blocks = block_number(full)?;
            self.tail = tail;
        } else {
            self.blocks = block_number(full + 1)?;
        }
        Ok(())
    }
}

fn block_number(block: u64) -> Result<u32, Fault> {
    u32::try_from(block)
        .ok()
        .filter(|block| *block < HOLE)
        .ok_or(Fault::Limit { what: "blocks of layer metadata", limit: u64::from(HOLE) })
}

/// How a sparse file is mapped: in chunks of one size, each a hole, a run of the tar, or a copy.
#[derive(Clone, Debug)]
struct SparsePlan {
    bits: u32,
    data: u64,
    size: u64,
    segments: Box<[Segment]>,
    copied: u64,
}

enum Chunk {
    Hole,
    Tar(u64),
    Copied,
}

impl SparsePlan {
    /// Chooses the chunk size that costs least: small chunks need long tables, large ones more
    /// copies, because a chunk that is partly hole or not aligned in the tar has to be copied.
    fn of(data: u64, segments: &[Segment], size: u64) -> Self {
        let mut best: Option<Self> = None;
        for bits in BLOCK_BITS..=MAX_CHUNK_BITS {
            let mut plan = Self { bits, data, size, segments: segments.into(), copied: 0 };
            if plan.chunks() * CHUNK_INDEX > MAX_SPARSE_COST {
                continue;
            }
            plan.copied = plan.count_copied();
            if best.as_ref().is_none_or(|best| plan.cost() < best.cost()) {
                best = Some(plan);
            }
            if 1_u64 << bits >= size {
                break;
            }
        }
        best.unwrap_or(Self { bits: BLOCK_BITS, data, size, segments: segments.into(), copied: 0 })
    }

    fn chunk_bytes(&self) -> u64 {
        1 << self.bits
    }

    fn chunks(&self) -> u64 {
        self.size.div_ceil(self.chunk_bytes())
    }

    fn copied_blocks(&self) -> u64 {
        self.copied * (self.chunk_bytes() / BLOCK)
    }

    fn cost(&self) -> u64 {
        (self.chunks() * CHUNK_INDEX).saturating_add(self.copied.saturating_mul(self.chunk_bytes()))
    }

    /// How many chunks have to be copied, without looking at every chunk of a huge file.
    fn count_copied(&self) -> u64 {
        let (mut copied, mut last) = (0_u64, None);
        let mut packed = self.data;
        for segment in &self.segments {
            let first_chunk = segment.offset >> self.bits;
            let last_chunk = (segment.offset + segment.length - 1) >> self.bits;
            let aligned = self.aligned(segment, packed);
            // Only the chunks at both ends can be partly covered.
            if !aligned && last_chunk > first_chunk {
                copied = copied.saturating_add(last_chunk - first_chunk - 1);
            }
            for chunk in [first_chunk, last_chunk] {
                if last != Some(chunk) && (!aligned || self.partial(segment, chunk)) {
                    last = Some(chunk);
                    copied = copied.saturating_add(1);
                }
            }
            packed += segment.length;
        }
        copied
    }

    /// Whether byte 0 of a chunk inside this segment is at a block boundary of the tar.
    fn aligned(&self, segment: &Segment, packed: u64) -> bool {
        segment.offset % BLOCK == packed % BLOCK
    }

    /// Whether the segment leaves a part of the chunk, up to the end of the file, uncovered.
    fn partial(&self, segment: &Segment, chunk: u64) -> bool {
        let start = chunk << self.bits;
        let end = start.saturating_add(self.chunk_bytes()).min(self.size);
        segment.offset > start || segment.offset + segment.length < end
    }

    /// Calls `each` for every chunk in order.
    fn walk(&self, mut each: impl FnMut(u64, Chunk) -> io::Result<()>) -> io::Result<()> {
        let mut index = 0;
        let mut packed = self.data;
        for chunk in 0..self.chunks() {
            let start = chunk << self.bits;
            let end = start.saturating_add(self.chunk_bytes()).min(self.size);
            while let Some(segment) = self.segments.get(index).filter(|s| s.offset + s.length <= start) {
                packed += segment.length;
                index += 1;
            }
            let what = match self.segments.get(index) {
                Some(segment) if segment.offset < end => {
                    if self.aligned(segment, packed) && !self.partial(segment, chunk) {
                        Chunk::Tar((packed + (start - segment.offset)) / BLOCK)
                    } else {
                        Chunk::Copied
                    }
                }
                _ => Chunk::Hole,
            };
            each(chunk, what)?;
        }
        Ok(())
    }

    /// The bytes of a chunk, collected from the tar.
    fn read_chunk(&self, chunk: u64, tar: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
        let start = chunk << self.bits;
        let end = start.saturating_add(self.chunk_bytes());
        buffer.clear();
        buffer.resize(usize::try_from(self.chunk_bytes()).map_err(io::Error::other)?, 0);
        let first = self.segments.partition_point(|segment| segment.offset + segment.length <= start);
        let mut packed = self.data + self.segments[..first].iter().map(|segment| segment.length).sum::<u64>();
        for segment in self.segments[first..].iter().take_while(|segment| segment.offset < end) {
            let from = segment.offset.max(start);
            let to = (segment.offset + segment.length).min(end);
            let place = |position: u64| usize::try_from(position - start).map_err(io::Error::other);
            tar.read_exact_at(&mut buffer[place(from)?..place(to)?], packed + (from - segment.offset))?;
            packed += segment.length;
        }
        Ok(())
    }
}

struct Writer<'a> {
    out: BufWriter<&'a File>,
    position: u64,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let count = (position - self.position).min(ZEROS.len() as u64);
            self.put(&ZEROS[..usize::try_from(count).unwrap_or(0)])?;
        }
        Ok(())
    }

    fn superblock(&mut self, plan: &Plan, identity: &Identity) -> Result<(), Fault> {
        self.pad_to(SUPER_OFFSET)?;
        let root = plan.places.first().map_or(0, Place::nid);
        let root = u16::try_from(root).map_err(io::Error::other)?;
        let mut block = Vec::with_capacity(128);
        block.extend(SUPER_MAGIC.to_le_bytes());
        block.extend(0_u32.to_le_bytes()); // checksum, not used
        block.extend(COMPAT_MTIME.to_le_bytes());
        block.push(u8::try_from(BLOCK_BITS).unwrap_or(9));
        block.push(0); // extension slots
        block.extend(root.to_le_bytes());
        block.extend((plan.order.len() as u64).to_le_bytes());
        block.extend(0_u64.to_le_bytes()); // build time
        block.extend(0_u32.to_le_bytes());
        block.extend(plan.total_blocks.to_le_bytes());
        block.extend(0_u32.to_le_bytes()); // inodes are addressed from byte 0
        block.extend(0_u32.to_le_bytes()); // shared attributes, none
        block.extend(identity.uuid);
        block.extend([0; 16]); // volume name
        block.extend((INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
        block.extend(0_u16.to_le_bytes()); // compression
        block.extend(u16::try_from(identity.devices.len()).map_err(io::Error::other)?.to_le_bytes()); // extra devices
        block.extend(u16::try_from(DEVICE_OFFSET / DEVICE_SLOT).unwrap_or(9).to_le_bytes());
        block.resize(128, 0);
        self.put(&block)?;
        for device in &identity.devices {
            let mut slot = Vec::with_capacity(128);
            slot.extend(device.tag.bytes().take(64));
            slot.resize(64, 0);
            slot.extend(block_number(device.bytes.div_ceil(BLOCK))?.to_le_bytes());
            slot.resize(128, 0);
            self.put(&slot)?;
        }
        Ok(())
    }

    fn inode(
        &mut self,
        tree: &Tree,
        plan: &Plan,
        id: InodeId,
        inode: &Inode,
        place: &Place,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        self.pad_to(place.offset)?;
        let (kind, device) = match &inode.node {
            Node::Directory(_) => (S_IFDIR, 0),
            Node::Regular { .. } => (S_IFREG, 0),
            Node::Symlink(_) => (S_IFLNK, 0),
            Node::Char { major, minor } => (S_IFCHR, encode_device(*major, *minor)),
            Node::Block { major, minor } => (S_IFBLK, encode_device(*major, *minor)),
            Node::Fifo => (S_IFIFO, 0),
        };
        let (layout, union) = match &inode.node {
            Node::Regular { size, content: Content::Whole(_) } => {
                (CHUNK_BASED, chunk_format(bits_for(*size)))
            }
            Node::Regular { content: Content::Sparse(..), .. } => {
                (CHUNK_BASED, chunk_format(place.sparse.as_ref().map_or(BLOCK_BITS, |plan| plan.bits)))
            }
            Node::Char { .. } | Node::Block { .. } => (FLAT_PLAIN, device),
            _ if place.tail > 0 => (FLAT_INLINE, place.first_block),
            _ => (FLAT_PLAIN, place.first_block),
        };
        let xattrs = xattr_bytes(inode);
        let xattr_count = if xattrs == 0 { 0 } else { (xattrs - XATTR_HEADER) / 4 + 1 };
        let permissions = u16::try_from(inode.mode & 0o7777).unwrap_or(0);
        let Mtime { seconds, nanoseconds } = inode.mtime;
        scratch.clear();
        // Bit 0: the 64-byte form.
        scratch.extend((1 | layout << 1).to_le_bytes());
        scratch.extend(u16::try_from(xattr_count).map_err(io::Error::other)?.to_le_bytes());
        scratch.extend((kind | permissions).to_le_bytes());
        scratch.extend(0_u16.to_le_bytes());
        scratch.extend(place.size.to_le_bytes());
        scratch.extend(union.to_le_bytes());
        scratch.extend(id.wrapping_add(1).to_le_bytes());
        scratch.extend(inode.uid.to_le_bytes());
        scratch.extend(inode.gid.to_le_bytes());
        scratch.extend(seconds.to_le_bytes());
        scratch.extend(nanoseconds.to_le_bytes());
        scratch.extend(inode.nlink.to_le_bytes());
        scratch.extend([0; 16]);
        put_xattrs(inode, scratch);
        self.put(scratch)?;
        let device = FIRST_TAR.saturating_add(tree.source(id));
        match (&inode.node, &place.sparse) {
            (Node::Regular { content: Content::Whole(data), .. }, _) => {
                self.pad_to(self.position.next_multiple_of(CHUNK_INDEX))?;
                self.put(&chunk_index(device, block_number(data / BLOCK)?))?;
            }
            (_, Some(sparse)) => {
                self.pad_to(self.position.next_multiple_of(CHUNK_INDEX))?;
                let mut copied = place.first_block;
                let step = u32::try_from(sparse.chunk_bytes() / BLOCK).unwrap_or(u32::MAX);
                sparse.walk(|_, chunk| {
                    self.put(&match chunk {
                        Chunk::Hole => chunk_index(OWN, HOLE),
                        Chunk::Tar(block) => {
                            chunk_index(device, u32::try_from(block).map_err(io::Error::other)?)
                        }
                        Chunk::Copied => {
                            let block = copied;
                            copied = copied.saturating_add(step);
                            chunk_index(OWN, block)
                        }
                    })
                })?;
            }
            (Node::Symlink(target), _) if place.tail > 0 => self.put(target)?,
            (Node::Directory(directory), _) if place.tail > 0 => {
                directory_data(tree, plan, id, directory, scratch);
                let tail = usize::try_from(place.size - place.tail).map_err(io::Error::other)?;
                self.put(&scratch[tail..])?;
            }
            _ => {}
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the two passes share their arguments")]
    fn blocks(
        &mut self,
        tree: &Tree,
        plan: &Plan,
        id: InodeId,
        inode: &Inode,
        place: &Place,
        tar: &File,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match (&inode.node, &place.sparse) {
            (Node::Directory(directory), _) => {
                directory_data(tree, plan, id, directory, scratch);
                let end = usize::try_from(place.size - place.tail).map_err(io::Error::other)?;
                self.put(&scratch[..end])?;
            }
            (Node::Symlink(target), _) => self.put(target)?,
            (_, Some(sparse)) => {
                let mut chunk_bytes = Vec::new();
                sparse.walk(|number, chunk| {
                    if let Chunk::Copied = chunk {
                        sparse.read_chunk(number, tar, &mut chunk_bytes)?;
                        self.put(&chunk_bytes)?;
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        self.pad_to(self.position.next_multiple_of(BLOCK))?;
        Ok(())
    }
}

/// The chunk size, as a power of two, that holds a file in one chunk.
fn bits_for(size: u64) -> u32 {
    (u64::BITS - size.saturating_sub(1).leading_zeros()).clamp(BLOCK_BITS, MAX_CHUNK_BITS)
}

fn chunk_format(bits: u32) -> u32 {
    (bits - BLOCK_BITS) | u32::from(CHUNK_INDEXES)
}

fn chunk_index(device: u16, block: u32) -> [u8; 8] {
    let mut index = [0; 8];
    index[2..4].copy_from_slice(&device.to_le_bytes());
    index[4..].copy_from_slice(&block.to_le_bytes());
    index
}

/// `new_encode_dev` of include/linux/kdev_t.h.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The entries of a directory, `.` and `..` among them, in name order.
fn dirents(directory: &Directory) -> impl Iterator<Item = (&[u8], Option<InodeId>)> {
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    let mut children = directory.children.iter().peekable();
    std::iter::from_fn(move || match (dots.peek(), children.peek()) {
        (Some(dot), Some((name, _))) if **dot > ***name => {
            children.next().map(|(name, id)| (&**name, Some(*id)))
        }
        (Some(_), _) => dots.next().map(|dot| (dot, None)),
        (None, _) => children.next().map(|(name, id)| (&**name, Some(*id))),
    })
}

/// Full blocks, and bytes in the last one, of a directory.
fn directory_size(directory: &Directory) -> (u64, u64) {
    let (mut full, mut used) = (0, 0);
    for (name, _) in dirents(directory) {
        let need = DIRENT as u64 + name.len() as u64;
        if used + need > BLOCK {
            full += 1;
            used = 0;
        }
        used += need;
    }
    if used == BLOCK { (full + 1, 0) } else { (full, used) }
}

/// All data of a directory: in every block first the fixed parts, then the names.
fn directory_data(tree: &Tree, plan: &Plan, id: InodeId, directory: &Directory, out: &mut Vec<u8>) {
    const LIMIT: usize = 512;
    let place = |id: InodeId| plan.places.get(id as usize).map_or(0, Place::nid);
    out.clear();
    let mut block: Vec<(&[u8], u64, u8)> = Vec::new();
    let mut used = 0;
    let flush = |block: &mut Vec<(&[u8], u64, u8)>, out: &mut Vec<u8>| {
        let mut name_offset = block.len() * DIRENT;
        for (name, nid, kind) in block.iter() {
            out.extend(nid.to_le_bytes());
            out.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
            out.extend([*kind, 0]);
            name_offset += name.len();
        }
        for (name, _, _) in block.drain(..) {
            out.extend(name);
        }
    };
    for (name, child) in dirents(directory) {
        let need = DIRENT + name.len();
        if used + need > LIMIT {
            flush(&mut block, out);
            out.resize(out.len().next_multiple_of(LIMIT), 0);
            used = 0;
        }
        used += need;
        let target = match child {
            Some(child) => child,
            None if name == b"." => id,
            None => directory.parent,
        };
        block.push((name, place(target), file_type(tree, target)));
    }
    flush(&mut block, out);
}

/// `FT_*` of include/linux/fs_types.h.
fn file_type(tree: &Tree, id: InodeId) -> u8 {
    match tree.inode(id).map(|inode| &inode.node) {
        Some(Node::Regular { .. }) => 1,
        Some(Node::Directory(_)) => 2,
        Some(Node::Char { .. }) => 3,
        Some(Node::Block { .. }) => 4,
        Some(Node::Fifo) => 5,
        Some(Node::Symlink(_)) => 7,
        None => 0,
    }
}

/// The attribute that makes overlayfs hide everything below a directory.
const OPAQUE: (u8, &[u8], &[u8]) = (4, b"overlay.opaque", b"y");

/// Attributes as name index, rest of the name, value.
fn xattrs(inode: &Inode) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    let opaque = matches!(&inode.node, Node::Directory(directory) if directory.opaque);
    let stored = inode.xattrs.iter().filter_map(|xattr| {
        const PREFIXES: [(u8, &[u8]); 5] = [
            (1, b"user."),
            (2, b"system.posix_acl_access"),
            (3, b"system.posix_acl_default"),
            (4, b"trusted."),
            (6, b"security."),
        ];
        let name = &*xattr.name;
        PREFIXES
            .iter()
            .find_map(|(index, prefix)| name.strip_prefix(*prefix).map(|rest| (*index, rest, &*xattr.value)))
    });
    opaque.then_some(OPAQUE).into_iter().chain(stored)
}

fn xattr_bytes(inode: &Inode) -> usize {
    let entries: usize =
        xattrs(inode).map(|(_, name, value)| (4 + name.len() + value.len()).next_multiple_of(4)).sum();
    if entries == 0 { 0 } else { XATTR_HEADER + entries }
}

fn put_xattrs(inode: &Inode, out: &mut Vec<u8>) {
    let mut header = false;
    for (index, name, value) in xattrs(inode) {
        if !header {
            out.extend([0; XATTR_HEADER]);
            header = true;
        }
        // The tree keeps names up to 255 bytes and values up to 64 KiB.
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.push(index);
        out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(name);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}
