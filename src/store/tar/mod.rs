//! A streaming reader of the tar dialects that occur in images.
//!
//! The reader is pushed: [`Parser::feed`] takes the bytes as they arrive, in pieces of any size,
//! and calls a [`Visitor`] for every entry. It copies only headers; file data is either passed on
//! as slices of the caller's buffer or skipped.
//!
//! ```text
//!          ┌────────────┐ x L K  ┌──────┐
//!  ┌──────►│   Header   ├───────►│ Meta ├──┐   (payload of an extension header)
//!  │       └─┬────────┬─┘        └──────┘  │
//!  │   zeros │        │ file               │
//!  │  ┌──────▼───┐ ┌──▼───────┐            │
//!  │  │ ZeroSeen │ │ sparse   │            │
//!  │  └──────┬───┘ │ maps     │            │
//!  │   zeros │     └──┬───────┘            │
//!  │  ┌──────▼───┐ ┌──▼───┐   ┌─────────┐  │
//!  │  │   End    │ │ Data ├──►│ Padding ├──┤
//!  │  └──────────┘ └──────┘   └─────────┘  │
//!  └───────────────────────────────────────┘
//! ```
//!
//! Where dialects or readers disagree, the behaviour of Go's `archive/tar` is followed, because
//! that is what image tools write and test with; what it tolerates by accident is an error here.
//! References: POSIX.1-2017 `pax`, section "Extended Description"; GNU tar manual, appendix D.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use header::{BLOCK, Header, TypeFlag};
use pax::Pax;
pub(crate) use sparse::Segment;

/// A malformed or unacceptable tar stream.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A header block does not have the checksum it claims.
    #[error("header at byte {offset}: wrong checksum")]
    Checksum {
        /// Position of the header in the stream.
        offset: u64,
    },
    /// A numeric field is not a number or out of range.
    #[error("header at byte {offset}: field {field} is not a valid number")]
    Number {
        /// Position of the header in the stream.
        offset: u64,
        /// The field.
        field: &'static str,
    },
    /// The entry type is none that an image may contain.
    #[error("entry {name:?}: type {typeflag:?} is not supported")]
    Type {
        /// The entry.
        name: String,
        /// The type byte.
        typeflag: char,
    },
    /// An extended header is malformed.
    #[error("extended header at byte {offset}: {reason}")]
    Pax {
        /// Position of the header in the stream.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A sparse map is malformed or disagrees with the data.
    #[error("sparse map of {name:?}: {reason}")]
    Sparse {
        /// The entry.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A name is not acceptable.
    #[error("entry {name:?}: {reason}")]
    Name {
        /// The entry.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A hard link cannot be made.
    #[error("hard link {name:?} to {target:?}: {reason}")]
    Link {
        /// The entry.
        name: String,
        /// What it points to.
        target: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A limit was exceeded.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What grew too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The stream ends inside an entry.
    #[error("stream ends at byte {offset}, inside an entry")]
    Truncated {
        /// Where the stream ended.
        offset: u64,
    },
    /// One zero block is followed by something else than a second one.
    #[error("single zero block before byte {offset}")]
    LoneZeroBlock {
        /// Position of the block after the zero block.
        offset: u64,
    },
}

/// How much a header may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderLimits {
    /// Payload of one extension header in bytes.
    pub(crate) extension_bytes: u64,
    /// Data regions of one sparse file.
    pub(crate) sparse_segments: usize,
}

/// Seconds and nanoseconds since the epoch; the nanoseconds always count forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mtime {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Directory,
    Fifo,
}

/// An extended attribute as it stands in the stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// One entry, names as written.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Mtime,
    /// Logical size of a regular file in bytes.
    pub(crate) size: u64,
    /// Where the data starts in the stream.
    pub(crate) data_offset: u64,
    /// Regions of a sparse file that have data, in order; their data is packed.
    pub(crate) sparse: Option<Vec<Segment>>,
    pub(crate) xattrs: Vec<Xattr>,
}

/// Receives what the parser finds.
pub(crate) trait Visitor {
    /// Why the visitor may refuse.
    type Error: From<Error>;

    /// A complete header. Data follows if the kind is regular and there is any.
    fn entry(&mut self, entry: Entry<'_>) -> Result<(), Self::Error>;

    /// The next bytes of the (packed) data of the last entry.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// All data of the last entry has been passed.
    fn entry_end(&mut self) -> Result<(), Self::Error>;
}

#[derive(Clone, Copy, Debug)]
enum Extension {
    Pax,
    Ignored,
    LongName,
    LongLink,
}

#[derive(Debug)]
enum State {
    Header,
    Meta {
        extension: Extension,
        left: u64,
        padding: u64,
    },
    /// Continuation blocks of an old GNU sparse header.
    OldSparse,
    /// A GNU 1.0 map at the start of the data; `left` is what is left of the data.
    DataMap {
        left: u64,
    },
    Data {
        left: u64,
        padding: u64,
    },
    Padding {
        left: u64,
    },
    ZeroSeen,
    End,
}

/// The reader.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    limits: HeaderLimits,
    /// Bytes consumed so far.
    offset: u64,
    block: Box<[u8; BLOCK]>,
    block_len: usize,
    /// Payload of the extension header or sparse map being read.
    meta: Vec<u8>,
    /// Newlines in `meta`, if that is a sparse map.
    newlines: usize,
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pending: Option<Pending>,
}

/// A sparse file whose map is not complete yet.
#[derive(Debug)]
struct Pending {
    header: Header,
    pax: Pax,
    segments: Vec<Segment>,
    packed: u64,
}

impl Parser {
    pub(crate) fn new(limits: HeaderLimits) -> Self {
        Self {
            state: State::Header,
            limits,
            offset: 0,
            block: Box::new([0; BLOCK]),
            block_len: 0,
            meta: Vec::new(),
            newlines: 0,
            pax: None,
            long_name: None,
            long_link: None,
            pending: None,
        }
    }

    /// Takes the next bytes of the stream. After an error the parser must not be fed again.
    pub(crate) fn feed<V: Visitor>(&mut self, mut input: &[u8], visitor: &mut V) -> Result<(), V::Error> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header => {
                    if self.take_block(&mut input) {
                        self.header(visitor)?;
                    }
                }
                State::Meta { extension, left, padding } => {
                    let (extension, piece) = (*extension, take(&mut input, left));
                    if !matches!(extension, Extension::Ignored) {
                        self.meta.extend_from_slice(piece);
                    }
                    self.offset += len(piece);
                    if *left == 0 {
                        let padding = *padding;
                        self.extension_end(extension).map_err(V::Error::from)?;
                        self.state = State::Padding { left: padding };
                    }
                }
                State::OldSparse => {
                    if self.take_block(&mut input) {
                        self.old_sparse_block(visitor)?;
                    }
                }
                State::DataMap { .. } => {
                    if self.take_block(&mut input) {
                        self.data_map_block(visitor)?;
                    }
                }
                State::Data { left, padding } => {
                    let piece = take(&mut input, left);
                    self.offset += len(piece);
                    let ended = (*left == 0).then_some(*padding);
                    visitor.data(piece)?;
                    if let Some(padding) = ended {
                        visitor.entry_end()?;
                        self.state = State::Padding { left: padding };
                    }
                }
                State::Padding { left } => {
                    let piece = take(&mut input, left);
                    self.offset += len(piece);
                }
                State::ZeroSeen => {
                    if self.take_block(&mut input) {
                        if self.block.iter().any(|byte| *byte != 0) {
                            return Err(
                                Error::LoneZeroBlock { offset: self.offset - len(&*self.block) }.into()
                            );
                        }
                        self.state = State::End;
                    }
                }
                State::End => {
                    self.offset += len(input);
                    return Ok(());
                }
            }
            if matches!(self.state, State::Padding { left: 0 }) {
                self.state = State::Header;
            }
        }
        Ok(())
    }

    /// The stream has ended: is the archive whole?
    ///
    /// A missing end marker and missing padding after the last entry are tolerated, as they are
    /// by every reader.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        let dangling = self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some();
        match self.state {
            State::End | State::Padding { .. } if !dangling => Ok(()),
            State::Header | State::ZeroSeen if self.block_len == 0 && !dangling => Ok(()),
            _ => Err(Error::Truncated { offset: self.offset }),
        }
    }

    /// Collects one block; true once it is complete.
    fn take_block(&mut self, input: &mut &[u8]) -> bool {
        let count = input.len().min(BLOCK - self.block_len);
        let (piece, rest) = input.split_at(count);
        self.block[self.block_len..self.block_len + count].copy_from_slice(piece);
        *input = rest;
        self.block_len += count;
        self.offset += len(piece);
        if self.block_len == BLOCK {
            self.block_len = 0;
            return true;
        }
        false
    }

    fn header<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), V::Error> {
        let offset = self.offset - len(&*self.block);
        if self.block.iter().all(|byte| *byte == 0) {
            if self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some() {
                return Err(Error::Truncated { offset }.into());
            }
            self.state = State::ZeroSeen;
            return Ok(());
        }
        let header = Header::parse(&self.block, offset)?;
        let extension = match header.typeflag {
            TypeFlag::Pax => Extension::Pax,
            // Global headers carry comments in practice; archive/tar hands them up and image
            // tools skip them.
            TypeFlag::PaxGlobal => Extension::Ignored,
            TypeFlag::LongName => Extension::LongName,
            TypeFlag::LongLink => Extension::LongLink,
            _ => return self.file(header, visitor),
        };
        if header.size > self.limits.extension_bytes {
            let limit = self.limits.extension_bytes;
            return Err(Error::Limit { what: "size in bytes of a tar extension header", limit }.into());
        }
        self.meta.clear();
        if header.size == 0 {
            self.extension_end(extension)?;
        } else {
            self.state = State::Meta { extension, left: header.size, padding: padding(header.size) };
        }
        Ok(())
    }

    fn extension_end(&mut self, extension: Extension) -> Result<(), Error> {
        match extension {
            Extension::Ignored => {}
            Extension::Pax => {
                let limit = self.limits.sparse_segments;
                self.pax = Some(Pax::parse(&self.meta, self.offset - len(&self.meta), limit)?);
            }
            Extension::LongName => self.long_name = Some(until_nul(&self.meta).to_vec()),
            Extension::LongLink => self.long_link = Some(until_nul(&self.meta).to_vec()),
        }
        Ok(())
    }

    fn file<V: Visitor>(&mut self, mut header: Header, visitor: &mut V) -> Result<(), V::Error> {
        let mut pax = self.pax.take().unwrap_or_default();
        if let Some(name) = pax.path.take() {
            header.name = name;
        }
        if let Some(link) = pax.linkpath.take() {
            header.link = link;
        }
        // The long-name headers win over PAX, as in archive/tar.
        if let Some(name) = self.long_name.take() {
            header.name = name;
        }
        if let Some(link) = self.long_link.take() {
            header.link = link;
        }
        if let Some(size) = pax.size {
            header.size = size;
        }
        header.uid = pax.uid.unwrap_or(header.uid);
        header.gid = pax.gid.unwrap_or(header.gid);
        header.mtime = pax.mtime.unwrap_or(header.mtime);
        for (field, text) in [("name", &header.name), ("link", &header.link)] {
            if text.contains(&0) {
                let name = printable(&header.name);
                let reason = if field == "name" { "name contains NUL" } else { "link contains NUL" };
                return Err(Error::Name { name, reason }.into());
            }
        }
        if let TypeFlag::Unknown(byte) = header.typeflag {
            return Err(Error::Type { name: printable(&header.name), typeflag: char::from(byte) }.into());
        }
        if header.typeflag == TypeFlag::OldSparse {
            let (segments, more) = sparse::old_header(&self.block, &printable(&header.name))?;
            let packed = header.size;
            header.size = sparse::old_real_size(&self.block, self.offset - len(&*self.block))?;
            self.pending = Some(Pending { header, pax, segments, packed });
            if more {
                self.state = State::OldSparse;
                return Ok(());
            }
            return self.sparse_entry(visitor);
        }
        let packed = if header.typeflag.has_data() { header.size } else { 0 };
        match pax.sparse.take() {
            Some(map) if header.typeflag == TypeFlag::Regular => {
                if let Some(name) = map.name {
                    header.name = name;
                }
                header.size = map.size.ok_or_else(|| Error::Sparse {
                    name: printable(&header.name),
                    reason: "logical size is missing",
                })?;
                let in_data = map.segments.is_none();
                let segments = map.segments.unwrap_or_default();
                self.pending = Some(Pending { header, pax, segments, packed });
                if in_data {
                    self.meta.clear();
                    self.newlines = 0;
                    self.state = State::DataMap { left: packed };
                    if packed == 0 {
                        return self.sparse_entry(visitor);
                    }
                    return Ok(());
                }
                self.sparse_entry(visitor)
            }
            _ => {
                if header.typeflag != TypeFlag::Regular && header.typeflag != TypeFlag::RegularV7 {
                    header.size = 0;
                }
                self.emit(header, pax, packed, None, visitor)
            }
        }
    }

    fn old_sparse_block<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), V::Error> {
        let Some(pending) = &mut self.pending else {
            return Err(Error::Truncated { offset: self.offset }.into());
        };
        let name = printable(&pending.header.name);
        let more = sparse::old_extension(&self.block, &mut pending.segments, &name)?;
        if pending.segments.len() > self.limits.sparse_segments {
            let limit = u64::try_from(self.limits.sparse_segments).unwrap_or(u64::MAX);
            return Err(Error::Limit { what: "number of regions of a sparse file", limit }.into());
        }
        if more { Ok(()) } else { self.sparse_entry(visitor) }
    }

    /// One more block of a map that precedes the data (GNU format 1.0).
    fn data_map_block<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), V::Error> {
        let State::DataMap { left } = &mut self.state else {
            return Err(Error::Truncated { offset: self.offset }.into());
        };
        let name = self.pending.as_ref().map(|pending| printable(&pending.header.name)).unwrap_or_default();
        let fault = |reason| Error::Sparse { name: name.clone(), reason };
        *left = left.checked_sub(len(&*self.block)).ok_or_else(|| fault("map is longer than the data"))?;
        let left = *left;
        self.meta.extend_from_slice(&*self.block);
        self.newlines += self.block.iter().filter(|byte| **byte == b'\n').count();
        match sparse::map_in_data(&self.meta, self.newlines, self.limits.sparse_segments, &name)? {
            None if left == 0 => Err(fault("map is longer than the data").into()),
            None => Ok(()),
            Some(segments) => {
                if let Some(pending) = &mut self.pending {
                    pending.segments = segments;
                    pending.packed = left;
                }
                self.sparse_entry(visitor)
            }
        }
    }

    fn sparse_entry<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), V::Error> {
        let Some(Pending { header, pax, segments, packed }) = self.pending.take() else {
            return Err(Error::Truncated { offset: self.offset }.into());
        };
        let segments = sparse::checked(segments, header.size, packed, &printable(&header.name))?;
        self.emit(header, pax, packed, Some(segments), visitor)
    }

    fn emit<V: Visitor>(
        &mut self,
        header: Header,
        pax: Pax,
        packed: u64,
        sparse: Option<Vec<Segment>>,
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let names_directory = header.name.ends_with(b"/");
        let (major, minor) = (header.major, header.minor);
        let kind = match header.typeflag {
            TypeFlag::RegularV7 | TypeFlag::Regular if names_directory && packed == 0 => Kind::Directory,
            TypeFlag::RegularV7 if names_directory => Kind::Directory,
            TypeFlag::HardLink => Kind::HardLink,
            TypeFlag::Symlink => Kind::Symlink,
            TypeFlag::Char => Kind::Char { major, minor },
            TypeFlag::Block => Kind::Block { major, minor },
            TypeFlag::Directory => Kind::Directory,
            TypeFlag::Fifo => Kind::Fifo,
            _ => Kind::Regular,
        };
        let size = if kind == Kind::Regular { header.size } else { 0 };
        // Data under a V7 directory is passed over, never handed to the visitor.
        let wanted = if kind == Kind::Regular { packed } else { 0 };
        visitor.entry(Entry {
            name: &header.name,
            link: &header.link,
            kind,
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            size,
            data_offset: self.offset,
            sparse,
            xattrs: pax.xattrs,
        })?;
        self.state = if wanted == 0 {
            visitor.entry_end()?;
            let skipped = packed
                .checked_add(padding(packed))
                .ok_or(Error::Number { offset: self.offset, field: "size" })?;
            State::Padding { left: skipped }
        } else {
            State::Data { left: packed, padding: padding(packed) }
        };
        if matches!(self.state, State::Padding { left: 0 }) {
            self.state = State::Header;
        }
        Ok(())
    }
}

/// Splits off at most `left` bytes and lowers `left` by as many.
fn take<'a>(input: &mut &'a [u8], left: &mut u64) -> &'a [u8] {
    let count = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    let (piece, rest) = input.split_at(count);
    *input = rest;
    *left -= len(piece);
    piece
}

fn len(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A name for an error text: bounded and without control characters.
pub(crate) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(256)]).into_owned()
}
