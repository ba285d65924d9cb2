//! A layer as a list of entries, and the tar that it becomes.
//!
//! The writer is our own so that a test can choose what other writers choose for it: how a long name is
//! carried (POSIX.1-2001 `pax` records or GNU `././@LongLink` entries), which of two equal directories wins,
//! and what is repeated.

use std::io::{Read as _, Write as _};

/// How a name that does not fit into a header is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LongName {
    /// An extended header (POSIX.1-2001).
    #[default]
    Pax,
    /// An entry of type `L` or `K` before it.
    Gnu,
}

/// How a layer's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Media type of a layer in this form.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// Compresses.
    pub fn apply(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Compression::None => tar.to_vec(),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                gzip.write_all(tar).and_then(|()| gzip.finish()).expect("compress in memory")
            }
            Compression::Zstd => zstd::bulk::compress(tar, 3).expect("compress in memory"),
        }
    }
}

/// What an entry is.
#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    Hardlink(String),
    Device { kind: u8, major: u32, minor: u32 },
    Fifo,
}

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    node: Node,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    xattrs: Vec<(String, Vec<u8>)>,
    long_name: LongName,
}

/// Entries in the order in which they will be in the tar. Methods that say `last` change the entry that was
/// added last.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

/// 2026-01-01, the time of every entry that says no other.
const MTIME: u64 = 1_767_225_600;

impl Layer {
    /// A layer without entries, which is legal.
    pub fn new() -> Layer {
        Layer::default()
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Layer {
        self.entry(path, mode, Node::File(content.as_ref().to_vec()))
    }

    /// A directory.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Layer {
        self.entry(path, mode, Node::Directory)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(path, 0o777, Node::Symlink(target.into()))
    }

    /// Another name for a file of this layer.
    #[must_use]
    pub fn hardlink(self, path: &str, target: &str) -> Layer {
        self.entry(path, 0o644, Node::Hardlink(target.into()))
    }

    /// A character (`b'c'`) or block (`b'b'`) device.
    #[must_use]
    pub fn device(self, path: &str, mode: u32, kind: u8, major: u32, minor: u32) -> Layer {
        self.entry(path, mode, Node::Device { kind, major, minor })
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(self, path: &str, mode: u32) -> Layer {
        self.entry(path, mode, Node::Fifo)
    }

    /// Removes what layers below have at a path (OCI image spec, "Whiteouts").
    #[must_use]
    pub fn whiteout(self, path: &str) -> Layer {
        let (parent, name) =
            path.rsplit_once('/').map_or((String::new(), path), |(p, n)| (format!("{p}/"), n));
        self.file(&format!("{parent}.wh.{name}"), 0o644, "")
    }

    /// Hides everything that layers below have in a directory.
    #[must_use]
    pub fn opaque(self, directory: &str) -> Layer {
        self.file(&format!("{directory}/.wh..wh..opq"), 0o644, "")
    }

    /// Owner of the last entry.
    #[must_use]
    pub fn last_owner(mut self, uid: u32, gid: u32) -> Layer {
        let entry = self.entries.last_mut().expect("there is an entry");
        (entry.uid, entry.gid) = (uid, gid);
        self
    }

    /// Modification time of the last entry, in seconds.
    #[must_use]
    pub fn last_mtime(mut self, mtime: u64) -> Layer {
        self.entries.last_mut().expect("there is an entry").mtime = mtime;
        self
    }

    /// An extended attribute of the last entry.
    #[must_use]
    pub fn last_xattr(mut self, name: &str, value: &[u8]) -> Layer {
        self.entries.last_mut().expect("there is an entry").xattrs.push((name.into(), value.into()));
        self
    }

    /// How the last entry carries its name if it is long.
    #[must_use]
    pub fn last_long_name(mut self, form: LongName) -> Layer {
        self.entries.last_mut().expect("there is an entry").long_name = form;
        self
    }

    /// All entries of another layer after these.
    #[must_use]
    pub fn append(mut self, other: Layer) -> Layer {
        self.entries.extend(other.entries);
        self
    }

    /// The entries of a tar, of which `rename` gives the new path or leaves one out.
    pub fn from_tar(tar: &[u8], rename: impl Fn(&str) -> Option<String>) -> Layer {
        let mut layer = Layer::new();
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries().expect("read a tar") {
            let mut entry = entry.expect("read a tar entry");
            let path = String::from_utf8_lossy(&entry.path_bytes()).trim_matches(['.', '/']).to_string();
            let Some(path) = rename(&path) else { continue };
            let link = |entry: &tar::Entry<'_, _>| {
                String::from_utf8_lossy(&entry.link_name_bytes().expect("a link has a target")).into_owned()
            };
            let node = match entry.header().entry_type() {
                tar::EntryType::Directory => Node::Directory,
                tar::EntryType::Symlink => Node::Symlink(link(&entry)),
                tar::EntryType::Link => {
                    let target = link(&entry).trim_matches(['.', '/']).to_string();
                    Node::Hardlink(rename(&target).expect("the target of a hard link stays"))
                }
                tar::EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).expect("read a file");
                    Node::File(content)
                }
                other => panic!("{path}: entry of type {other:?}"),
            };
            let mode = entry.header().mode().expect("mode") & 0o7777;
            layer = layer.entry(&path, mode, node);
        }
        layer
    }

    /// The tar.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        self.entries.iter().for_each(|entry| entry.write(&mut tar));
        tar.resize(tar.len() + 2 * BLOCK, 0);
        tar
    }

    fn entry(mut self, path: &str, mode: u32, node: Node) -> Layer {
        let xattrs = Vec::new();
        let long_name = LongName::default();
        self.entries.push(Entry {
            path: path.into(),
            node,
            mode,
            uid: 0,
            gid: 0,
            mtime: MTIME,
            xattrs,
            long_name,
        });
        self
    }
}

const BLOCK: usize = 512;
const NAME_BYTES: usize = 100;

impl Entry {
    fn write(&self, tar: &mut Vec<u8>) {
        let (link, content): (&str, &[u8]) = match &self.node {
            Node::File(content) => ("", content),
            Node::Symlink(target) | Node::Hardlink(target) => (target, &[]),
            _ => ("", &[]),
        };
        let name =
            if matches!(self.node, Node::Directory) { format!("{}/", self.path) } else { self.path.clone() };
        let fits = |text: &str| text.len() <= NAME_BYTES && text.is_ascii();

        let mut records = Vec::new();
        for (long, key, kind) in [(&*name, "path", b'L'), (link, "linkpath", b'K')] {
            match self.long_name {
                _ if fits(long) => {}
                LongName::Pax => record(&mut records, key, long.as_bytes()),
                LongName::Gnu => {
                    let content = [long.as_bytes(), b"\0"].concat();
                    header(tar, "././@LongLink", "", kind, &self.bare(), content.len());
                    body(tar, &content);
                }
            }
        }
        for (key, value) in &self.xattrs {
            record(&mut records, &format!("SCHILY.xattr.{key}"), value);
        }
        if !records.is_empty() {
            header(tar, "PaxHeaders/entry", "", b'x', &self.bare(), records.len());
            body(tar, &records);
        }
        let kind = match self.node {
            Node::File(_) => b'0',
            Node::Hardlink(_) => b'1',
            Node::Symlink(_) => b'2',
            Node::Device { kind: b'c', .. } => b'3',
            Node::Device { .. } => b'4',
            Node::Directory => b'5',
            Node::Fifo => b'6',
        };
        header(tar, &name, link, kind, self, content.len());
        body(tar, content);
    }

    /// The header fields of an entry that only carries data for the next one.
    fn bare(&self) -> Entry {
        Entry { node: Node::Fifo, mode: 0o644, uid: 0, gid: 0, xattrs: Vec::new(), ..self.clone() }
    }
}

/// A `pax` record: its own length in decimal, a space, key, value, newline.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn body(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// A ustar header; names that do not fit are cut, because an entry before this one has them whole.
fn header(tar: &mut Vec<u8>, name: &str, link: &str, kind: u8, entry: &Entry, size: usize) {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let cut = |text: &str| text.as_bytes()[..text.len().min(NAME_BYTES)].to_vec();
    put(0, &cut(name));
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, format!("{:07o}", entry.uid).as_bytes());
    put(116, format!("{:07o}", entry.gid).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{:011o}", entry.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &cut(link));
    put(257, b"ustar\x0000");
    if let Node::Device { major, minor, .. } = entry.node {
        put(329, format!("{major:07o}").as_bytes());
        put(337, format!("{minor:07o}").as_bytes());
    }
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
}
