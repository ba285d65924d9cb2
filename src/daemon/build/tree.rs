//! Files of a tree that nobody can write to: found, looked at, read, by descriptor.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use pinnace_build::pattern::Pattern;
use pinnace_store::archive::{self, Xattrs};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::Error;

/// Links that are followed on the way to a path.
const LINKS_MAX: usize = 40;

/// Opens a path as a process whose root is the tree would: links lead nowhere else.
pub(crate) fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = path.trim_start_matches('/');
    let path = if path.is_empty() { "." } else { path };
    fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

fn fault(op: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::io(op, path)(errno.into())
}

/// What lies at a path, all links on the way followed; `None` if nothing does.
pub(crate) fn look(root: BorrowedFd<'_>, path: &str) -> Result<Option<Stat>, Error> {
    match open(root, path, OFlags::PATH) {
        Ok(found) => fs::fstat(&found).map(Some).map_err(fault("look at", path)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(fault("open", path)(errno)),
    }
}

/// The path without links, relative to the root: what exists is resolved, the rest stays as it is.
pub(crate) fn real_path(root: BorrowedFd<'_>, path: &str) -> Result<String, Error> {
    let mut done: Vec<String> = Vec::new();
    let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        let here = [done.join("/"), part.clone()]
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join("/");
        let found = open(root, &here, OFlags::PATH | OFlags::NOFOLLOW);
        let is_link = match &found {
            Ok(found) => {
                FileType::from_raw_mode(fs::fstat(found).map_err(fault("look at", &here))?.st_mode)
                    == FileType::Symlink
            }
            Err(_) => false,
        };
        let Some(link) = found.ok().filter(|_| is_link) else {
            done.push(part);
            continue;
        };
        links += 1;
        if links > LINKS_MAX {
            return Err(fault("follow the links of", path)(Errno::LOOP));
        }
        let target = fs::readlinkat(&link, "", Vec::new()).map_err(fault("read the link", &here))?;
        let target = target.to_string_lossy().into_owned();
        if target.starts_with('/') {
            done.clear();
        }
        rest.extend(target.split('/').rev().map(str::to_owned));
    }
    Ok(done.join("/"))
}

/// The paths that a pattern means, relative to the root; those below a path that matches are not listed.
pub(crate) fn glob(root: BorrowedFd<'_>, pattern: &str) -> Result<Vec<String>, Error> {
    let cleaned = pinnace_build::ignore::clean(pattern.trim_start_matches('/'));
    let parsed = Pattern::parse(&cleaned).map_err(|reason| Error::invalid("pattern", reason))?;
    if !parsed.is_wild() {
        let plain = cleaned.replace('\\', "");
        return Ok(if look(root, &plain)?.is_some() { vec![plain] } else { Vec::new() });
    }
    let mut found = Vec::new();
    let mut pending = vec![String::new()];
    while let Some(dir) = pending.pop() {
        for name in names(root, &dir)? {
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            if parsed.is_match(&path) {
                found.push(path);
            } else if parsed.may_be_below(&path)
                && look(root, &path)?
                    .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
            {
                pending.push(path);
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Names in a directory, sorted; those that are not UTF-8 cannot be meant by a pattern.
fn names(root: BorrowedFd<'_>, path: &str) -> Result<Vec<String>, Error> {
    let dir = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fault("open", path))?;
    let names = list(dir.as_fd()).map_err(fault("list", path))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

fn list(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// One file on the way through a tree.
pub(crate) struct Found<'a> {
    /// Below where the walk began; empty for that itself.
    pub(crate) path: &'a [u8],
    pub(crate) stat: Stat,
    pub(crate) kind: FileType,
    pub(crate) xattrs: Xattrs,
    /// Of a symbolic link.
    pub(crate) target: Vec<u8>,
    /// Of a regular file.
    pub(crate) content: Option<File>,
}

/// Walks a file or directory that `root` has at `path`, parents before children, in the order of names.
pub(crate) fn walk(
    root: BorrowedFd<'_>,
    path: &str,
    excludes: &[Pattern],
    visit: &mut dyn FnMut(Found<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let top = open(root, path, OFlags::PATH).map_err(fault("open", path))?;
    let stat = fs::fstat(&top).map_err(fault("look at", path))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Directory {
        let mut found =
            Found { path: b"", stat, kind, xattrs: Xattrs::new(), target: Vec::new(), content: None };
        if kind == FileType::RegularFile {
            let file = open(root, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(fault("open", path))?;
            found.xattrs = archive::xattrs(file.as_fd()).map_err(fault("read attributes of", path))?;
            found.content = Some(File::from(file));
        }
        return visit(found);
    }
    let dir = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(fault("open", path))?;
    let xattrs = archive::xattrs(dir.as_fd()).map_err(fault("read attributes of", path))?;
    visit(Found { path: b"", stat, kind, xattrs, target: Vec::new(), content: None })?;
    descend(dir.as_fd(), b"", path, excludes, visit)
}

fn descend(
    dir: BorrowedFd<'_>,
    at: &[u8],
    top: &str,
    excludes: &[Pattern],
    visit: &mut dyn FnMut(Found<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    for name in list(dir).map_err(fault("list", top))? {
        let path =
            if at.is_empty() { name.as_bytes().to_vec() } else { [at, b"/", name.as_bytes()].concat() };
        let shown = format!("{top}/{}", String::from_utf8_lossy(&path));
        if std::str::from_utf8(&path).is_ok_and(|text| excludes.iter().any(|pattern| pattern.covers(text))) {
            continue;
        }
        let stat = fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(fault("look at", &shown))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut found =
            Found { path: &path, stat, kind, xattrs: Xattrs::new(), target: Vec::new(), content: None };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match kind {
            FileType::Directory => {
                let below = fs::openat(dir, &name, flags | OFlags::DIRECTORY, Mode::empty())
                    .map_err(fault("open", &shown))?;
                found.xattrs = archive::xattrs(below.as_fd()).map_err(fault("read attributes of", &shown))?;
                visit(found)?;
                descend(below.as_fd(), &path, top, excludes, visit)?;
                continue;
            }
            FileType::RegularFile => {
                let file = fs::openat(dir, &name, flags, Mode::empty()).map_err(fault("open", &shown))?;
                found.xattrs = archive::xattrs(file.as_fd()).map_err(fault("read attributes of", &shown))?;
                found.content = Some(File::from(file));
            }
            FileType::Symlink => {
                let target =
                    fs::readlinkat(dir, &name, Vec::new()).map_err(fault("read the link", &shown))?;
                found.target = target.into_bytes();
            }
            _ => {}
        }
        visit(found)?;
    }
    Ok(())
}

/// A name from bytes, for messages.
pub(crate) fn shown(path: &[u8]) -> String {
    OsStr::from_bytes(path).to_string_lossy().into_owned()
}
