//! A writer of tar streams as images have them: ustar headers, PAX records for what does not fit.
//!
//! What it writes depends on its arguments alone: the same entries give the same bytes. Sub-second times are not
//! written, as every builder of images leaves them out. References: POSIX.1-2017 `pax`; image-spec, layer.md.

use std::io::{self, Read, Write};

const BLOCK: usize = 512;
const COPY_BYTES: usize = 128 << 10;
/// Two blocks of zeros end an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A regular file with that many bytes, which follow.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link to that path.
    Symlink(&'a [u8]),
    /// One more name of the file at that path.
    HardLink(&'a [u8]),
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry of a tar stream.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Relative, without a slash at the end.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permissions and set-id bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Extended attributes: names with their namespace, and values; sorted.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Writes a tar stream.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    /// Bytes of the current file that are still to come.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Begins a stream.
    pub fn new(out: W) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// Writes an entry. After a file its content follows, by [`Writer::data`].
    pub fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.close()?;
        let (typeflag, link, size, device) = match entry.kind {
            EntryKind::File { size } => (b'0', &b""[..], size, (0, 0)),
            EntryKind::Directory => (b'5', &b""[..], 0, (0, 0)),
            EntryKind::Symlink(target) => (b'2', target, 0, (0, 0)),
            EntryKind::HardLink(target) => (b'1', target, 0, (0, 0)),
            EntryKind::Char { major, minor } => (b'3', &b""[..], 0, (major, minor)),
            EntryKind::Block { major, minor } => (b'4', &b""[..], 0, (major, minor)),
            EntryKind::Fifo => (b'6', &b""[..], 0, (0, 0)),
        };
        let mut path = entry.path.to_vec();
        if typeflag == b'5' {
            path.push(b'/');
        }
        let mut records = Vec::new();
        let plain = |text: &[u8]| text.is_ascii();
        let split = plain(&path).then(|| split(&path)).flatten();
        if split.is_none() {
            record(&mut records, b"path", &path);
        }
        if link.len() > 100 || !plain(link) {
            record(&mut records, b"linkpath", link);
        }
        for (key, value, digits) in
            [("size", size, 11), ("uid", entry.uid.into(), 7), ("gid", entry.gid.into(), 7)]
        {
            if value >= 1 << (3 * digits) {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        if !(0..1 << 33).contains(&entry.mtime) {
            record(&mut records, b"mtime", entry.mtime.to_string().as_bytes());
        }
        for (name, value) in entry.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let name = pax_name(&path);
            let block = Block { name: &name, prefix: b"", size: records.len() as u64, ..Block::new(b'x') };
            self.out.write_all(&block.bytes())?;
            self.out.write_all(&records)?;
            self.pad(records.len())?;
        }
        let (prefix, name) = split.unwrap_or((b"", path.get(..100).unwrap_or(&path)));
        let block = Block {
            name,
            prefix,
            link: link.get(..100).unwrap_or(link),
            mode: entry.mode & 0o7777,
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            size,
            mtime: u64::try_from(entry.mtime).unwrap_or(0),
            device,
            ..Block::new(typeflag)
        };
        self.out.write_all(&block.bytes())?;
        self.left = size;
        self.padding = padding(size);
        Ok(())
    }

    /// The next bytes of the current file; not more than its entry announced.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len() as u64;
        if count > self.left {
            return Err(io::Error::other("more data than the tar entry announced"));
        }
        self.out.write_all(bytes)?;
        self.left -= count;
        Ok(())
    }

    /// A file with its content. A source that is longer is cut, one that is shorter is filled up with zeros: what is
    /// archived may still be written to.
    pub fn file(&mut self, entry: &Entry<'_>, content: impl Read) -> io::Result<()> {
        self.entry(entry)?;
        let mut content = content.take(self.left);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.data(buffer.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends the stream.
    pub fn finish(mut self) -> io::Result<W> {
        self.close()?;
        self.out.write_all(&END)?;
        Ok(self.out)
    }

    /// Ends the current file.
    fn close(&mut self) -> io::Result<()> {
        while self.left > 0 {
            let count = usize::try_from(self.left).map_or(END.len(), |left| left.min(END.len()));
            self.out.write_all(END.get(..count).unwrap_or_default())?;
            self.left -= count as u64;
        }
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(END.get(..padding).unwrap_or_default())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(END.get(..padding(length as u64)).unwrap_or_default())
    }
}

fn padding(size: u64) -> usize {
    let used = size % BLOCK as u64;
    usize::try_from((BLOCK as u64 - used) % BLOCK as u64).unwrap_or(0)
}

/// Prefix and name of a path that fits a ustar header.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The slash between the two is not stored. One at the very end belongs to the name.
    let slash = (1..path.len().saturating_sub(1))
        .find(|at| path.get(*at) == Some(&b'/') && path.len() - at - 1 <= 100)?;
    (slash <= 155).then(|| (path.get(..slash).unwrap_or_default(), path.get(slash + 1..).unwrap_or_default()))
}

/// The name of an extended header: nobody reads it, but it should be of the entry.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let base = path.split(|byte| *byte == b'/').rfind(|part| !part.is_empty()).unwrap_or(b"entry");
    let base: Vec<u8> = base.iter().copied().filter(u8::is_ascii_graphic).take(80).collect();
    [b"PaxHeaders.0/", base.as_slice()].concat()
}

/// One PAX record with its own length in front.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    records.extend(length.to_string().as_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

struct Block<'a> {
    name: &'a [u8],
    prefix: &'a [u8],
    link: &'a [u8],
    typeflag: u8,
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    device: (u32, u32),
}

impl Block<'_> {
    fn new(typeflag: u8) -> Self {
        Self {
            name: b"",
            prefix: b"",
            link: b"",
            typeflag,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            device: (0, 0),
        }
    }

    fn bytes(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        text(&mut block[..100], self.name);
        octal(&mut block[100..108], self.mode.into());
        octal(&mut block[108..116], self.uid);
        octal(&mut block[116..124], self.gid);
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], self.mtime);
        block[148..156].fill(b' ');
        block[156] = self.typeflag;
        text(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        text(&mut block[345..500], self.prefix);
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block[148..155], sum);
        block[155] = b' ';
        block
    }
}

fn text(field: &mut [u8], text: &[u8]) {
    let count = text.len().min(field.len());
    if let (Some(field), Some(text)) = (field.get_mut(..count), text.get(..count)) {
        field.copy_from_slice(text);
    }
}

/// Octal digits and a NUL; a number that does not fit is in a PAX record and reads as zero here.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let value = if value < 1 << (3 * digits) { value } else { 0 };
    let digits = format!("{value:0digits$o}\0");
    text(field, digits.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{HeaderLimits, Kind, Parser, Visitor};

    #[derive(Default)]
    struct Seen(Vec<Line>);

    type Line = (Vec<u8>, Vec<u8>, Kind, u32, i64, u64, Vec<u8>);

    impl Visitor for Seen {
        type Error = crate::TarError;

        fn entry(&mut self, entry: crate::tar::Entry<'_>) -> Result<(), crate::TarError> {
            let xattrs =
                entry.xattrs.iter().flat_map(|xattr| [&*xattr.name, &*xattr.value].concat()).collect();
            let name = entry.name.to_vec();
            self.0.push((
                name,
                entry.link.to_vec(),
                entry.kind,
                entry.uid,
                entry.mtime.seconds,
                entry.size,
                xattrs,
            ));
            Ok(())
        }

        fn data(&mut self, _: &[u8]) -> Result<(), crate::TarError> {
            Ok(())
        }

        fn entry_end(&mut self) -> Result<(), crate::TarError> {
            Ok(())
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(
            path in proptest::collection::vec("[a-zé.]{1,120}", 1..5),
            link in "[a-z/]{1,150}",
            (uid, mtime, size) in (proptest::prelude::any::<u32>(), -9i64..1 << 40, 0u64..2000),
            xattr in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..20),
        ) {
            let path = path.join("/").into_bytes();
            let xattrs = [(b"user.x".to_vec(), xattr.clone())];
            let entry = |kind| Entry { path: &path, kind, mode: 0o755, uid, gid: 7, mtime, xattrs: &xattrs };
            let mut writer = Writer::new(Vec::new());
            writer.file(&entry(EntryKind::File { size }), &b"short"[..]).unwrap();
            writer.entry(&entry(EntryKind::Directory)).unwrap();
            writer.entry(&entry(EntryKind::Symlink(link.as_bytes()))).unwrap();
            let bytes = writer.finish().unwrap();
            proptest::prop_assert_eq!(bytes.len() % BLOCK, 0);
            let mut seen = Seen::default();
            let limits = HeaderLimits { extension_bytes: 1 << 20, sparse_segments: 1 };
            Parser::new(limits).feed(&bytes, &mut seen).unwrap();
            let attributes = [b"user.x".as_slice(), &xattr].concat();
            let directory = [path.as_slice(), b"/"].concat();
            let link = link.into_bytes();
            proptest::prop_assert_eq!(seen.0, vec![
                (path.clone(), vec![], Kind::Regular, uid, mtime, size, attributes.clone()),
                (directory, vec![], Kind::Directory, uid, mtime, 0, attributes.clone()),
                (path.clone(), link, Kind::Symlink, uid, mtime, 0, attributes),
            ]);
        }
    }
}
