//! Diff: what a container has added, changed and deleted, from its writable layer against the layers below.
//!
//! overlayfs marks a deleted name by a character device 0:0 (or, where that cannot be made, a file with the attribute
//! `overlay.whiteout`), and a directory that replaces one by the attribute `overlay.opaque`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use pinnace_store::{Access, MountOptions};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::LocalContainer;
use super::record::Record;
use crate::error::Error;
use crate::node::Node;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is another, or something in it is.
    Modified,
    /// It was not there.
    Added,
    /// It is gone.
    Deleted,
}

/// A path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// Absolute.
    pub path: PathBuf,
}

/// What is only there because something is mounted on it.
pub const PROVIDED: [&str; 6] = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Looks for differences. Blocks.
pub fn diff(node: &Node, local: &LocalContainer) -> Result<Vec<Change>, Error> {
    let record = local.record();
    let upper = node.store.upper(record.id.as_str())?;
    let key = format!("{}-diff-{}", record.id, &crate::id::ContainerId::random().as_str()[..8]);
    node.store.view(&key, &record.layers)?;
    let options = MountOptions { access: Access::ReadOnly, ..MountOptions::default() };
    let changes = node.store.mount(&key, &options).map_err(Error::from).and_then(|lower| {
        let mut walk = Walk { changes: Vec::new() };
        walk.directory(&upper, Some(&lower), Path::new("/")).map(|_| walk.changes)
    });
    node.store.remove(&key)?;
    let mut changes = changes?;
    changes.retain(|change| !is_provided(&record, change));
    // A directory whose only change was that.
    let paths: Vec<_> = changes.iter().map(|change| change.path.clone()).collect();
    changes.retain(|change| {
        change.kind != Kind::Modified
            || change.path != Path::new("/etc")
            || paths.iter().any(|path| path != &change.path && path.starts_with(&change.path))
    });
    changes.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(changes)
}

/// Mount points that were made for what is mounted.
pub fn is_provided(record: &Record, change: &Change) -> bool {
    let targets = record.settings.mounts.iter().map(|mount| mount.target.as_str());
    let targets = targets.chain(record.volumes.keys().map(String::as_str)).chain(PROVIDED);
    change.kind == Kind::Added && targets.into_iter().any(|target| change.path.starts_with(target))
}

struct Walk {
    changes: Vec<Change>,
}

impl Walk {
    /// Whether something in it differs.
    fn directory(&mut self, upper: &OwnedFd, lower: Option<&OwnedFd>, path: &Path) -> Result<bool, Error> {
        let mut differs = false;
        let names = names(upper, path)?;
        if let Some(lower) = lower.filter(|_| is_marked(upper, "opaque")) {
            for name in self::names(lower, path)? {
                if !names.contains(&name) {
                    self.changes.push(Change { kind: Kind::Deleted, path: path.join(name) });
                    differs = true;
                }
            }
        }
        for name in names {
            differs |= self.entry(upper, lower, &name, &path.join(&name))?;
        }
        Ok(differs)
    }

    fn entry(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        name: &OsString,
        path: &Path,
    ) -> Result<bool, Error> {
        let failed = |errno: Errno| Error::io("compare", path)(errno.into());
        let stat_in =
            |directory: &OwnedFd| match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Ok(Some(stat)),
                Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(failed(errno)),
            };
        let Some(own) = stat_in(upper)? else { return Ok(false) };
        let below = lower.map(stat_in).transpose()?.flatten();
        if is_whiteout(upper, name, &own) {
            let was = below.is_some();
            if was {
                self.changes.push(Change { kind: Kind::Deleted, path: path.to_owned() });
            }
            return Ok(was);
        }
        let is_directory = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let kind = if below.is_some() { Kind::Modified } else { Kind::Added };
        let at = self.changes.len();
        self.changes.push(Change { kind, path: path.to_owned() });
        if !is_directory(&own) {
            return Ok(true);
        }
        let open = |directory: &OwnedFd| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(failed)
        };
        let of_lower = match (&below, lower) {
            (Some(stat), Some(lower)) if is_directory(stat) => Some(open(lower)?),
            _ => None,
        };
        let inside = self.directory(&open(upper)?, of_lower.as_ref(), path)?;
        let same = |below: &Stat| {
            is_directory(below)
                && (own.st_mode, own.st_uid, own.st_gid, own.st_mtime)
                    == (below.st_mode, below.st_uid, below.st_gid, below.st_mtime)
        };
        if !inside && below.as_ref().is_some_and(same) {
            // It was copied up, no more.
            self.changes.remove(at);
            return Ok(false);
        }
        Ok(true)
    }
}

fn names(directory: &OwnedFd, path: &Path) -> Result<Vec<OsString>, Error> {
    let failed = |errno: Errno| Error::io("read", path)(errno.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, ".", flags, Mode::empty()).map_err(failed)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

fn is_whiteout(directory: &OwnedFd, name: &OsString, stat: &Stat) -> bool {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == 0,
        FileType::RegularFile if stat.st_size == 0 => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::empty())
                .is_ok_and(|file| is_marked(&file, "whiteout"))
        }
        _ => false,
    }
}

fn is_marked(file: &OwnedFd, mark: &str) -> bool {
    let mut value = [0_u8; 8];
    ["trusted", "user"].iter().any(|class| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // One opened as a path has no attributes to read.
        let readable = rustix::fs::openat(file, ".", flags | OFlags::DIRECTORY, Mode::empty());
        let name = format!("{class}.overlay.{mark}");
        match &readable {
            Ok(directory) => rustix::fs::fgetxattr(directory, &name, value.as_mut_slice()).is_ok(),
            Err(_) => rustix::fs::fgetxattr(file, &name, value.as_mut_slice()).is_ok(),
        }
    })
}
