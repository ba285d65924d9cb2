//! The tar of an unpacked layer, byte for byte, without keeping it.
//!
//! A layer that lies as a directory has the contents of its files, but not how its tar looked: the order and form of the
//! headers, the padding. That is kept beside it (the idea of tar-split), compressed, a few per cent of the layer:
//!
//! ```text
//! layer.split   0 length bytes            bytes of the tar as they are
//!               1 object offset length    that many bytes of a file's content
//! layer.objects 0 length path             where the content of the next object is, below dir/
//!               1                         it was overwritten within the layer: stray-<number>
//! ```
//! Numbers are little endian, 8 bytes each. An object is the content of one regular file of the tar, counted from 0.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use rustix::fs::{self, Mode, OFlags, ResolveFlags};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::layer::TREE;
use crate::layer::tree::{Content, Node, ROOT, Tree};

pub(crate) const SPLIT: &str = "layer.split";
const OBJECTS: &str = "layer.objects";
const LITERAL: u8 = 0;
const CONTENT: u8 = 1;
const PLACED: u8 = 0;
const STRAY: u8 = 1;
/// Longest path and longest run of literal bytes that is believed.
const PATH_MAX: u64 = 1 << 16;

/// Bytes of the stream that became content of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Where they stood in memory; compared with the address of what was fed.
    pub(crate) address: usize,
    pub(crate) length: usize,
    pub(crate) object: u64,
    pub(crate) offset: u64,
}

/// Notes how the tar looks while it passes.
#[derive(Debug)]
pub(crate) struct SplitWriter {
    out: GzEncoder<BufWriter<File>>,
    run: Option<(u64, u64, u64)>,
}

impl SplitWriter {
    pub(crate) fn new(work: &Dir) -> Result<Self> {
        let file = BufWriter::new(work.create_file(SPLIT)?);
        Ok(Self { out: GzEncoder::new(file, Compression::fast()), run: None })
    }

    /// Takes the next bytes of the tar, of which these pieces are contents, in order.
    pub(crate) fn push(&mut self, bytes: &[u8], pieces: &[Piece]) -> io::Result<()> {
        let start = bytes.as_ptr().addr();
        let mut done = 0;
        for piece in pieces {
            let at = piece.address.saturating_sub(start);
            self.literal(bytes.get(done..at).unwrap_or_default())?;
            self.content(piece)?;
            done = at + piece.length;
        }
        self.literal(bytes.get(done..).unwrap_or_default())
    }

    fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.end_run()?;
        self.out.write_all(&[LITERAL])?;
        number(&mut self.out, bytes.len() as u64)?;
        self.out.write_all(bytes)
    }

    fn content(&mut self, piece: &Piece) -> io::Result<()> {
        if let Some((object, offset, length)) = &mut self.run
            && *object == piece.object
            && *offset + *length == piece.offset
        {
            *length += piece.length as u64;
            return Ok(());
        }
        self.end_run()?;
        self.run = Some((piece.object, piece.offset, piece.length as u64));
        Ok(())
    }

    fn end_run(&mut self) -> io::Result<()> {
        let Some((object, offset, length)) = self.run.take() else { return Ok(()) };
        self.out.write_all(&[CONTENT])?;
        for value in [object, offset, length] {
            number(&mut self.out, value)?;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.end_run()?;
        self.out.finish()?.flush()
    }
}

/// Writes down where the contents of `count` objects ended up, and saves those that nobody shows.
pub(crate) fn settle(tree: &Tree, count: u64, objects: &Dir, work: &Dir) -> Result<()> {
    let fault = |source| Error::Io { op: "write", path: work.entry(OBJECTS), source };
    let mut places: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut pending = vec![(ROOT, Vec::<u8>::new())];
    while let Some((id, path)) = pending.pop() {
        let Some(directory) = tree.directory(id) else { continue };
        for (name, child) in &directory.children {
            let below = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
            match tree.inode(*child).map(|inode| &inode.node) {
                Some(Node::Directory(_)) => pending.push((*child, below)),
                Some(Node::Regular { content: Content::Object(number), .. }) => {
                    places.entry(*number).or_insert(below);
                }
                _ => {}
            }
        }
    }
    let file = BufWriter::new(work.create_file(OBJECTS)?);
    let mut out = GzEncoder::new(file, Compression::fast());
    for object in 0..count {
        let written = match places.get(&object) {
            Some(path) => out
                .write_all(&[PLACED])
                .and_then(|()| number(&mut out, path.len() as u64))
                .and_then(|()| out.write_all(path)),
            None => {
                objects.rename(&crate::layer::directory::object_name(object), work, &stray(object))?;
                out.write_all(&[STRAY])
            }
        };
        written.map_err(fault)?;
    }
    out.finish().and_then(|mut file| file.flush()).map_err(fault)
}

fn stray(object: u64) -> String {
    format!("stray-{object:x}")
}

fn number(out: &mut impl Write, value: u64) -> io::Result<()> {
    out.write_all(&value.to_le_bytes())
}

fn read_number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The uncompressed tar of a layer: a reader of exactly the bytes that were taken in.
#[derive(Debug)]
pub struct LayerTar {
    form: Form,
}

#[derive(Debug)]
enum Form {
    Whole(File),
    Split(Box<Split>),
}

#[derive(Debug)]
struct Split {
    layer: Dir,
    tree: Dir,
    records: BufReader<GzDecoder<BufReader<File>>>,
    /// Paths of objects; none for one that is a file of its own.
    objects: Vec<Option<Vec<u8>>>,
    open: Option<(u64, File)>,
    now: Now,
}

#[derive(Debug)]
enum Now {
    Between,
    Literal { left: u64 },
    Content { object: u64, offset: u64, left: u64 },
    End,
}

impl LayerTar {
    pub(crate) fn whole(tar: File) -> Self {
        Self { form: Form::Whole(tar) }
    }

    /// Of an unpacked layer; `None` if nothing tells how its tar looked.
    pub(crate) fn split(layer: Dir) -> Result<Option<Self>> {
        if !layer.contains(SPLIT)? {
            return Ok(None);
        }
        let objects =
            objects(&layer).map_err(|source| Error::Io { op: "read", path: layer.entry(OBJECTS), source })?;
        let records = BufReader::new(GzDecoder::new(BufReader::new(layer.open_file(SPLIT)?)));
        let tree = layer.open(TREE)?;
        let split = Split { layer, tree, records, objects, open: None, now: Now::Between };
        Ok(Some(Self { form: Form::Split(Box::new(split)) }))
    }
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.form {
            Form::Whole(tar) => tar.read(buffer),
            Form::Split(split) => split.read(buffer),
        }
    }
}

fn objects(layer: &Dir) -> io::Result<Vec<Option<Vec<u8>>>> {
    let file = layer.open_file(OBJECTS).map_err(io::Error::other)?;
    let mut from = BufReader::new(GzDecoder::new(BufReader::new(file)));
    let mut objects = Vec::new();
    loop {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(objects);
        }
        if kind == [STRAY] {
            objects.push(None);
            continue;
        }
        let length = read_number(&mut from)?;
        if length > PATH_MAX {
            return Err(damaged());
        }
        let mut path = Vec::new();
        from.by_ref().take(length).read_to_end(&mut path)?;
        objects.push(Some(path));
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what tells how the layer's tar looked is damaged")
}

impl Split {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.now {
                Now::End => return Ok(0),
                Now::Between => self.next()?,
                Now::Literal { left: 0 } | Now::Content { left: 0, .. } => self.now = Now::Between,
                Now::Literal { left } => {
                    let most = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
                    let count = self.records.read(buffer.get_mut(..most).unwrap_or_default())?;
                    if count == 0 {
                        return Err(damaged());
                    }
                    *left -= count as u64;
                    return Ok(count);
                }
                Now::Content { object, offset, left } => {
                    let (object, offset, left) = (*object, *offset, *left);
                    let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                    let count =
                        self.file(object)?.read_at(buffer.get_mut(..most).unwrap_or_default(), offset)?;
                    if count == 0 {
                        return Err(damaged());
                    }
                    let count_u64 = count as u64;
                    self.now = Now::Content { object, offset: offset + count_u64, left: left - count_u64 };
                    return Ok(count);
                }
            }
        }
    }

    fn next(&mut self) -> io::Result<()> {
        let mut kind = [0];
        self.now = if self.records.read(&mut kind)? == 0 {
            Now::End
        } else if kind == [LITERAL] {
            Now::Literal { left: read_number(&mut self.records)? }
        } else if kind == [CONTENT] {
            let object = read_number(&mut self.records)?;
            let offset = read_number(&mut self.records)?;
            Now::Content { object, offset, left: read_number(&mut self.records)? }
        } else {
            return Err(damaged());
        };
        Ok(())
    }

    fn file(&mut self, object: u64) -> io::Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != object) {
            let place =
                usize::try_from(object).ok().and_then(|at| self.objects.get(at)).ok_or_else(damaged)?;
            let file = match place {
                None => self.layer.open_file(&stray(object)).map_err(io::Error::other)?,
                Some(path) => {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
                    let path = OsStr::from_bytes(path);
                    File::from(fs::openat2(self.tree.as_fd(), path, flags, Mode::empty(), resolve)?)
                }
            };
            self.open = Some((object, file));
        }
        self.open.as_ref().map(|(_, file)| file).ok_or_else(damaged)
    }
}
