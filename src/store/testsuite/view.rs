//! What a directory tree looks like, for comparison.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

/// One file as a program inside would see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Not of directories: where writes go, they change on their own.
    pub(crate) mtime: Option<(i64, i64)>,
    pub(crate) size: u64,
    /// Of what is not a directory.
    pub(crate) links: u64,
    pub(crate) device: (u32, u32),
    pub(crate) content: Content,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Content {
    None,
    Link(Vec<u8>),
    /// Short content itself, so that failures can be read; else its digest.
    Bytes(Vec<u8>),
    Digest(crate::Digest),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => write!(f, "none"),
            Self::Link(target) => write!(f, "-> {}", target.escape_ascii()),
            Self::Bytes(bytes) => write!(f, "{}", bytes.escape_ascii()),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

pub(crate) type Tree = BTreeMap<String, Seen>;

/// Everything below a directory, by path; the directory itself is `.`.
pub(crate) fn look(root: &impl AsFd) -> Tree {
    let mut tree = Tree::new();
    let top = fs::openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    tree.insert(".".to_owned(), seen(top.as_fd(), c"."));
    descend(top.as_fd(), "", &mut tree);
    tree
}

fn descend(dir: BorrowedFd<'_>, path: &str, tree: &mut Tree) {
    for (name, listed) in crate::dir::list(dir).unwrap() {
        let file = seen(dir, &name);
        assert!(listed == file.kind || listed == FileType::Unknown, "{path}{name:?}: d_type is {listed:?}");
        let below = format!("{path}{}", name.to_bytes().escape_ascii());
        if file.kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let sub = fs::openat(dir, &name, flags, Mode::empty()).unwrap();
            descend(sub.as_fd(), &format!("{below}/"), tree);
        }
        assert_eq!(tree.insert(below, file), None, "{name:?} is listed twice");
    }
}

fn seen(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Seen {
    let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = u64::try_from(stat.st_size).unwrap();
    let is_directory = kind == FileType::Directory;
    let content = match kind {
        FileType::Symlink => Content::Link(fs::readlinkat(dir, name, Vec::new()).unwrap().into_bytes()),
        FileType::RegularFile => bytes(dir, name, size),
        _ => Content::None,
    };
    let handle = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
    Seen {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (!is_directory).then_some((stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap())),
        size: if is_directory { 0 } else { size },
        links: if is_directory { 0 } else { stat.st_nlink },
        device: (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)),
        content,
        xattrs: xattrs(handle.as_fd()),
    }
}

fn bytes(dir: BorrowedFd<'_>, name: &std::ffi::CStr, size: u64) -> Content {
    let mut file = std::fs::File::from(fs::openat(dir, name, OFlags::RDONLY, Mode::empty()).unwrap());
    if size <= 256 {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, size);
        return Content::Bytes(bytes);
    }
    let mut hasher = crate::Hasher::new(crate::Algorithm::Sha256);
    // A huge file is all hole but for its ends and every place that is a multiple of 64 MiB off.
    if size > 1 << 30 {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; 1 << 16];
        for position in (0..size).step_by(64 << 20).chain([size - (1 << 16)]) {
            let count = file.read_at(&mut buffer, position).unwrap();
            hasher.update(&buffer[..count]);
        }
    } else {
        std::io::copy(&mut file, &mut hasher).unwrap();
    }
    Content::Digest(hasher.finish())
}

fn xattrs(handle: BorrowedFd<'_>) -> BTreeMap<String, Vec<u8>> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mut names = vec![0_u8; 1 << 16];
    let length = fs::listxattr(&path, &mut names[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::str::from_utf8(name).unwrap();
        // What the file system below adds by itself.
        if name == "security.selinux" {
            continue;
        }
        let mut value = vec![0_u8; 1 << 16];
        let length = fs::getxattr(&path, name, &mut value[..]).unwrap();
        value.truncate(length);
        found.insert(name.to_owned(), value);
    }
    found
}

/// Asserts that two trees are the same, saying where they differ.
pub(crate) fn assert_same(actual: &Tree, expected: &Tree, what: &str) {
    let mut differences = Vec::new();
    for (path, wanted) in expected {
        match actual.get(path) {
            None => differences.push(format!("{path}: missing, should be {wanted:?}")),
            Some(found) if found != wanted => {
                differences.push(format!("{path}:\n  is        {found:?}\n  should be {wanted:?}"));
            }
            Some(_) => {}
        }
    }
    differences
        .extend(actual.keys().filter(|path| !expected.contains_key(*path)).map(|p| format!("{p}: extra")));
    differences.truncate(10);
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
