//! Paths inside the container (rules R1 and R4): resolved by openat2(2) below the root's descriptor, made where missing.
//!
//! The root has been pivoted to and the host's tree detached before any of this runs, so that even a path that could be
//! talked out of the root would not find a host file. `RESOLVE_IN_ROOT` reads links as the container would,
//! `RESOLVE_NO_MAGICLINKS` keeps /proc's links from leading anywhere, and the descriptor that comes back is what is
//! used: no path is looked up twice.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Links followed while making a missing target; as many as the kernel follows.
const LINKS: u32 = 40;

/// What a target must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Whether links are part of the bargain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// Followed inside the root.
    Follow,
    /// Refused with ELOOP anywhere in the path (`/proc`, `/sys`).
    Refuse,
}

/// An `O_PATH` descriptor of an existing path.
pub(super) fn open(root: BorrowedFd<'_>, path: &[u8], links: Links) -> Result<OwnedFd, Errno> {
    open_with(root, path, OFlags::PATH, links)
}

/// A descriptor of an existing path, opened with the flags given.
pub(super) fn open_with(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    links: Links,
) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if links == Links::Refuse {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename raced with the walk, and the kernel cannot tell whether `..` stayed inside: once more.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// As [`open`], but makes the path, with its parents, when it does not exist.
pub(super) fn open_or_make(
    root: BorrowedFd<'_>,
    path: &[u8],
    kind: Kind,
    links: Links,
) -> Result<OwnedFd, Errno> {
    make(root, path, kind, links, LINKS)
}

fn make(root: BorrowedFd<'_>, path: &[u8], kind: Kind, links: Links, budget: u32) -> Result<OwnedFd, Errno> {
    match open(root, path, links) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let path = path.trim_ascii_end_matches(b'/');
    let (parent_path, name) = split(path);
    if matches!(name, b"" | b"." | b"..") {
        // Such a name cannot be made, only its parent can: with that in place it exists.
        make(root, parent_path, Kind::Directory, links, budget.checked_sub(1).ok_or(Errno::LOOP)?)?;
        return open(root, path, links);
    }
    let parent = make(root, parent_path, Kind::Directory, links, budget)?;
    let made = match kind {
        Kind::Directory => mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) => open(root, path, links),
        // Either somebody else was quicker, or it is a link to nowhere: make what the link names, as images rely on it
        // (/etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf).
        Err(Errno::EXIST) => match open(root, path, links) {
            Err(Errno::NOENT) if links == Links::Follow => {
                let link = readlinkat(&parent, name, Vec::new())?.into_bytes();
                let mut pointed = if link.starts_with(b"/") { Vec::new() } else { parent_path.to_vec() };
                pointed.push(b'/');
                pointed.extend(link);
                make(root, &pointed, kind, links, budget.checked_sub(1).ok_or(Errno::LOOP)?)
            }
            other => other,
        },
        Err(errno) => Err(errno),
    }
}

/// An `O_PATH` descriptor of the directory that holds the path's last part, made if missing, and that part.
pub(super) fn parent<'path>(
    root: BorrowedFd<'_>,
    path: &'path [u8],
) -> Result<(OwnedFd, &'path [u8]), Errno> {
    let (parent, name) = split(path.trim_ascii_end_matches(b'/'));
    if matches!(name, b"" | b"." | b"..") {
        return Err(Errno::INVAL);
    }
    Ok((open_or_make(root, parent, Kind::Directory, Links::Follow)?, name))
}

/// Everything before the last slash, and what follows it.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) | None => (b"/", path.strip_prefix(b"/").unwrap_or(path)),
        Some(at) => path
            .split_at_checked(at)
            .map_or((b"/", path), |(parent, name)| (parent, name.strip_prefix(b"/").unwrap_or(name))),
    }
}

/// Whether the descriptor is a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory)
}

/// Slices without a trailing byte.
trait TrimEnd {
    fn trim_ascii_end_matches(&self, byte: u8) -> &Self;
}

impl TrimEnd for [u8] {
    fn trim_ascii_end_matches(&self, byte: u8) -> &Self {
        let mut rest = self;
        while rest.len() > 1 {
            match rest.strip_suffix(&[byte]) {
                Some(shorter) => rest = shorter,
                None => break,
            }
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, symlinkat};

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let fd = openat(CWD, directory.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (directory, fd)
    }

    #[test]
    fn makes_missing_parents_and_the_right_kind() {
        let (directory, root) = root();
        open_or_make(root.as_fd(), b"/a/b/c", Kind::Directory, Links::Follow).unwrap();
        open_or_make(root.as_fd(), b"/a/b/f", Kind::File, Links::Follow).unwrap();
        open_or_make(root.as_fd(), b"/x/y/../z/", Kind::Directory, Links::Follow).unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
        assert!(directory.path().join("a/b/f").is_file());
        assert!(directory.path().join("x/z").is_dir());
    }

    #[test]
    fn a_dangling_link_is_made_inside_the_root() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().unwrap();
        let path = |name: &str| outside.path().join(name);
        mkdirat(&root, "etc", 0o755.into()).unwrap();
        symlinkat("../run/resolve/stub.conf", &root, "etc/resolv.conf").unwrap();
        symlinkat(path("escaped"), &root, "etc/hosts").unwrap();
        symlinkat("../../../../../../../../up", &root, "etc/up").unwrap();
        symlinkat("loop", &root, "loop").unwrap();
        open_or_make(root.as_fd(), b"/etc/resolv.conf", Kind::File, Links::Follow).unwrap();
        assert!(directory.path().join("run/resolve/stub.conf").is_file());
        open_or_make(root.as_fd(), b"/etc/hosts", Kind::File, Links::Follow).unwrap();
        assert!(!path("escaped").exists(), "an absolute link led out of the root");
        open_or_make(root.as_fd(), b"/etc/up", Kind::Directory, Links::Follow).unwrap();
        assert!(directory.path().join("up").is_dir());
        let errno = open_or_make(root.as_fd(), b"/loop", Kind::File, Links::Follow).err();
        assert_eq!(errno, Some(Errno::LOOP));
    }

    #[test]
    fn links_can_be_refused() {
        let (_directory, root) = root();
        mkdirat(&root, "real", 0o755.into()).unwrap();
        symlinkat("real", &root, "proc").unwrap();
        symlinkat("nowhere", &root, "sys").unwrap();
        for path in [&b"/proc"[..], b"/proc/below", b"/sys"] {
            let errno = open_or_make(root.as_fd(), path, Kind::Directory, Links::Refuse).err();
            assert_eq!(errno, Some(Errno::LOOP), "{}", String::from_utf8_lossy(path));
        }
    }

    #[test]
    fn paths_split_at_the_last_slash() {
        assert_eq!(split(b"/a/b"), (&b"/a"[..], &b"b"[..]));
        assert_eq!(split(b"/a"), (&b"/"[..], &b"a"[..]));
        assert_eq!(split(b"a"), (&b"/"[..], &b"a"[..]));
        assert_eq!(split(b"/"), (&b"/"[..], &b""[..]));
    }
}
