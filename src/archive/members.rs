//! The members of a tar file, found by name and read in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Members that one archive may have.
const MEMBERS_MAX: usize = 200_000;
/// Links from one member to the next.
const LINKS_MAX: usize = 8;
/// Longest document (both specifications).
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;

/// Where the members are.
#[derive(Debug)]
pub(crate) struct Members {
    file: Arc<File>,
    places: HashMap<String, Place>,
}

#[derive(Debug)]
enum Place {
    Data {
        offset: u64,
        size: u64,
    },
    /// Older archives link layers that several images have.
    Link(String),
}

impl Members {
    /// Reads the headers.
    pub(crate) fn read(mut file: File) -> Result<Self> {
        file.seek(SeekFrom::Start(0)).map_err(Error::Read)?;
        let mut places = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::new(&file));
        for entry in archive.entries_with_seek().map_err(Error::Read)? {
            let entry = entry.map_err(Error::Read)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = normal(&path);
            let kind = entry.header().entry_type();
            let place = if kind.is_file() {
                Place::Data { offset: entry.raw_file_position(), size: entry.size() }
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                let full = if kind.is_symlink() { format!("{parent}/{target}") } else { target };
                Place::Link(normal(&full))
            } else {
                continue;
            };
            if places.len() >= MEMBERS_MAX {
                return Err(Error::Limit {
                    what: "members of the archive".to_owned(),
                    limit: MEMBERS_MAX as u64,
                });
            }
            places.insert(name, place);
        }
        Ok(Self { file: Arc::new(file), places })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_ok()
    }

    fn find(&self, name: &str) -> Result<(u64, u64)> {
        let mut current = normal(name);
        for _ in 0..LINKS_MAX {
            match self.places.get(&current) {
                Some(Place::Data { offset, size }) => return Ok((*offset, *size)),
                Some(Place::Link(target)) => current.clone_from(target),
                None => break,
            }
        }
        Err(Error::Missing { name: name.to_owned() })
    }

    /// A member as a stream.
    pub(crate) fn open(&self, name: &str) -> Result<Member> {
        let (offset, left) = self.find(name)?;
        Ok(Member { file: Arc::clone(&self.file), offset, left })
    }

    pub(crate) fn size(&self, name: &str) -> Result<u64> {
        self.find(name).map(|(_, size)| size)
    }

    /// A document as a whole.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut member = self.open(name)?;
        if member.left > DOCUMENT_MAX {
            return Err(Error::Limit { what: format!("size of {name}"), limit: DOCUMENT_MAX });
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).map_err(Error::Read)?;
        Ok(bytes)
    }
}

/// A member that is being read.
#[derive(Debug)]
pub(crate) struct Member {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(buffer.get_mut(..most).unwrap_or_default(), self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A path without `.`, `..` and double slashes; it names a member and nothing else.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
