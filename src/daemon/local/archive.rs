//! Files of a container as a tar archive, out of it and into it.
//!
//! Everything is walked by descriptor below the container's root (rule R1): a link leads where it leads in the container.
//! What is mounted in a running container is seen as it sees it, but for an export, which stays on the root's own mount.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use pinnace_store::{Access, MountOptions, Persistence};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, StatxFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::LocalContainer;
use super::record::{MountKind, Record, State};
use super::volumes;
use crate::container::exec::root_of;
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::run::open_directory;

/// Largest value of an extended attribute (xattr(7)).
const XATTR_BYTES: usize = 65536;

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A path in a container: a root directory, and the rest below it.
#[derive(Debug)]
pub struct Place {
    root: OwnedFd,
    path: PathBuf,
}

/// What is at a path.
#[derive(Debug)]
pub struct Found {
    /// Its last part.
    pub name: String,
    /// Its status.
    pub stat: Stat,
    /// Where a symbolic link leads.
    pub link: Option<String>,
}

impl Place {
    /// Finds the root: that of the running program, or the writable layer mounted for a while. For the latter the caller
    /// has the container's turn. Blocks.
    pub fn of(node: &Node, local: &LocalContainer, path: &str, access: Access) -> Result<Self, Error> {
        let path = cleaned(path);
        if let (Some(_), State::Running { pid, .. }) = (local.live(), local.state()) {
            return Ok(Self { root: root_of(pid)?, path });
        }
        let record = local.record();
        if let Some((source, rest)) = mounted_at(node, &record, &path) {
            return Ok(Self { root: open_directory(&source)?, path: Path::new("/").join(rest) });
        }
        if access == Access::ReadWrite && record.settings.read_only {
            return Err(Error::State {
                subject: format!("the root of container {}", record.name),
                state: "read-only".to_owned(),
                hint: "only its volumes can be written to".to_owned(),
            });
        }
        Ok(Self { root: rootfs(node, local, access)?, path })
    }

    /// What is there. `follow` follows a symbolic link at its end.
    pub fn find(&self, follow: bool) -> Result<Found, Error> {
        let failed = |errno: Errno| Error::io("find", &self.path)(errno.into());
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let flags = if follow { flags } else { flags | OFlags::NOFOLLOW };
        let found = rustix::fs::openat2(&self.root, below(&self.path), flags, Mode::empty(), INSIDE)
            .map_err(failed)?;
        let stat = rustix::fs::fstat(&found).map_err(failed)?;
        let link = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(failed)?;
                Some(String::from_utf8_lossy(link.as_bytes()).into_owned())
            }
            _ => None,
        };
        let name = self.path.file_name().unwrap_or_else(|| OsStr::new("/"));
        Ok(Found { name: name.to_string_lossy().into_owned(), stat, link })
    }

    /// Writes an archive of what is there, under the name of its last part.
    pub fn pack(&self, follow: bool, to: impl Write) -> Result<(), Error> {
        let failed = |errno: Errno| Error::io("read", &self.path)(errno.into());
        let mut packer = Packer { builder: Builder::new(to), links: HashMap::new(), mount: None };
        let name = self.path.file_name().unwrap_or_else(|| OsStr::new("."));
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let flags = if follow { flags } else { flags | OFlags::NOFOLLOW };
        let found = rustix::fs::openat2(&self.root, below(&self.path), flags, Mode::empty(), INSIDE)
            .map_err(failed)?;
        let stat = rustix::fs::fstat(&found).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let directory = reopen(&found).map_err(failed)?;
            packer.directory(&directory, &stat, Path::new(name))?;
        } else {
            let parent = self.path.parent().unwrap_or_else(|| Path::new("/"));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::openat2(&self.root, below(parent), flags, Mode::empty(), INSIDE)
                .map_err(failed)?;
            // A link that was followed is packed as what it leads to.
            let file = (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(&found);
            packer.entry(parent.as_fd(), name, &stat, Path::new(name), file)?;
        }
        packer.finish()
    }

    /// Unpacks an archive in the directory that is there. Without `keep_owners` all of it is root's.
    pub fn unpack(&self, from: impl Read, keep_owners: bool) -> Result<(), Error> {
        let found = self.find(true)?;
        if FileType::from_raw_mode(found.stat.st_mode) != FileType::Directory {
            return Err(Error::invalid("path", format!("{} is not a directory", self.path.display())));
        }
        let mut archive = tar::Archive::new(from);
        let entries = archive.entries().map_err(Error::io("read", "archive"))?;
        let mut directories = Vec::new();
        for entry in entries {
            let mut entry = entry.map_err(Error::io("read", "archive"))?;
            if let Some(done) = self.unpack_one(&mut entry, keep_owners)? {
                directories.push(done);
            }
        }
        // What was made in them has changed their times.
        for (directory, times) in directories.iter().rev() {
            rustix::fs::futimens(directory, times)
                .map_err(|errno| Error::io("set times", &self.path)(errno.into()))?;
        }
        Ok(())
    }

    fn unpack_one<R: Read>(
        &self,
        entry: &mut tar::Entry<'_, R>,
        keep_owners: bool,
    ) -> Result<Option<(OwnedFd, Timestamps)>, Error> {
        let path = entry.path().map_err(Error::io("read", "archive"))?.into_owned();
        let shown = self.path.join(&path);
        let failed = |errno: Errno| Error::io("unpack", &shown)(errno.into());
        let mut inside = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(part) => inside.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::invalid("archive", format!("{} leads out of it", path.display())));
                }
            }
        }
        let header = entry.header().clone();
        let kind = header.entry_type();
        let wrong = |error: std::io::Error| Error::io("read", "archive")(error);
        let mode = Mode::from_raw_mode(header.mode().map_err(wrong)? & 0o7777);
        let owner = if keep_owners {
            let id =
                |id: u64| u32::try_from(id).map_err(|_| Error::invalid("archive", format!("owner {id}")));
            (id(header.uid().map_err(wrong)?)?, id(header.gid().map_err(wrong)?)?)
        } else {
            (0, 0)
        };
        let seconds = i64::try_from(header.mtime().map_err(wrong)?).unwrap_or(0);
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let Some(name) = inside.file_name() else {
            // The directory itself; it is there.
            return Ok(None);
        };
        let parent = self.directory(inside.parent().unwrap_or_else(|| Path::new("")))?;
        let parent = parent.as_fd();
        let existing = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_directory =
            existing.as_ref().is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if existing.is_ok() && is_directory != (kind == EntryType::Directory) {
            let reason = if is_directory { "a directory is there" } else { "what is there is no directory" };
            return Err(Error::invalid("path", format!("{}: {reason}", shown.display())));
        }
        if existing.is_ok() && !is_directory {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed)?;
        }
        let target = || -> Result<PathBuf, Error> {
            let link = entry.link_name().map_err(Error::io("read", "archive"))?;
            Ok(link.ok_or_else(|| Error::invalid("archive", "a link without a target"))?.into_owned())
        };
        let (uid, gid) = (Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)));
        match kind {
            EntryType::Directory => {
                if !is_directory {
                    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
                rustix::fs::fchown(&made, uid, gid).map_err(failed)?;
                rustix::fs::fchmod(&made, mode).map_err(failed)?;
                return Ok(Some((made, times)));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let attributes = attributes(entry)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
                let mut file = std::fs::File::from(file);
                std::io::copy(entry, &mut file).map_err(Error::io("unpack", &shown))?;
                rustix::fs::fchown(&file, uid, gid).map_err(failed)?;
                rustix::fs::fchmod(&file, mode).map_err(failed)?;
                for (key, value) in attributes {
                    rustix::fs::fsetxattr(&file, &key, &value, XattrFlags::empty()).map_err(failed)?;
                }
                rustix::fs::futimens(&file, &times).map_err(failed)?;
            }
            EntryType::Link => {
                let linked = target()?;
                let from = self.directory(linked.parent().unwrap_or_else(|| Path::new("")))?;
                let linked =
                    linked.file_name().ok_or_else(|| Error::invalid("archive", "a link to nothing"))?;
                rustix::fs::linkat(&from, linked, parent, name, AtFlags::empty()).map_err(failed)?;
            }
            EntryType::Symlink => {
                let to = target()?;
                rustix::fs::symlinkat(to.as_os_str(), parent, name).map_err(failed)?;
                rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0).map_err(failed)?;
                rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            }
            other => {
                let reason = format!("{}: entries of kind {other:?} are not unpacked", path.display());
                return Err(Error::invalid("archive", reason));
            }
        }
        Ok(None)
    }

    /// A directory below the one that is there, made where it is missing.
    fn directory(&self, inside: &Path) -> Result<OwnedFd, Error> {
        let failed = |errno: Errno| Error::io("open", self.path.join(inside))(errno.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::openat2(&self.root, below(path), flags, Mode::empty(), INSIDE);
        let mut path = self.path.clone();
        let mut directory = open(&path).map_err(failed)?;
        for part in inside.components() {
            let Component::Normal(part) = part else { continue };
            path.push(part);
            directory = match open(&path) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o755)).map_err(failed)?;
                    open(&path).map_err(failed)?
                }
                found => found.map_err(failed)?,
            };
        }
        Ok(directory)
    }
}

/// Writes an archive of all files of a container; what is mounted in it is left out. The caller has the turn of one that
/// does not run.
pub fn export(node: &Node, local: &LocalContainer, to: impl Write) -> Result<(), Error> {
    let root = match (local.live(), local.state()) {
        (Some(_), State::Running { pid, .. }) => root_of(pid)?,
        _ => rootfs(node, local, Access::ReadOnly)?,
    };
    let failed = |errno: Errno| Error::io("read", "/")(errno.into());
    let root = reopen(&root).map_err(failed)?;
    let mount = mount_id(root.as_fd(), OsStr::new("")).map_err(failed)?;
    let mut packer = Packer { builder: Builder::new(to), links: HashMap::new(), mount: Some(mount) };
    packer.children(&root, Path::new(""))?;
    packer.finish()
}

/// The writable layer on the layers below it.
pub fn rootfs(node: &Node, local: &LocalContainer, access: Access) -> Result<OwnedFd, Error> {
    let options = MountOptions { access, persistence: Persistence::Durable, ..MountOptions::default() };
    Ok(node.store.mount(local.id.as_str(), &options)?)
}

/// An absolute path without `.` and `..`.
fn cleaned(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Relative to the root that it is opened in.
fn below(path: &Path) -> &Path {
    match path.strip_prefix("/") {
        Ok(rest) if rest.as_os_str().is_empty() => Path::new("."),
        Ok(rest) => rest,
        Err(_) => path,
    }
}

/// The directory of the host that a stopped container would have mounted there, and what is left of the path.
fn mounted_at(node: &Node, record: &Record, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let of_record =
        record.volumes.iter().map(|(target, name)| (PathBuf::from(target), volumes::data(node, name)));
    let of_settings = record.settings.mounts.iter().filter_map(|mount| {
        let source = match mount.kind {
            MountKind::Bind => PathBuf::from(&mount.source),
            MountKind::Volume if !mount.source.is_empty() => volumes::data(node, &mount.source),
            MountKind::Volume | MountKind::Tmpfs | MountKind::Image => return None,
        };
        source.is_dir().then(|| (PathBuf::from(&mount.target), source))
    });
    let above = of_record.chain(of_settings).filter(|(target, _)| path.starts_with(target));
    let (target, source) = above.max_by_key(|(target, _)| target.components().count())?;
    Some((source, path.strip_prefix(target).ok()?.to_owned()))
}

/// For reading a directory that is open as a path.
fn reopen(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, ".", flags, Mode::empty())
}

fn mount_id(directory: BorrowedFd<'_>, name: &OsStr) -> Result<u64, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(directory, name, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Extended attributes that an archive may set: the user's, and file capabilities.
fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<(CString, Vec<u8>)>, Error> {
    let mut attributes = Vec::new();
    let Some(extensions) = entry.pax_extensions().map_err(Error::io("read", "archive"))? else {
        return Ok(attributes);
    };
    for extension in extensions {
        let extension = extension.map_err(Error::io("read", "archive"))?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
        if name.starts_with(b"user.") || name == b"security.capability" {
            let name =
                CString::new(name).map_err(|_| Error::invalid("archive", "an attribute with a NUL"))?;
            attributes.push((name, extension.value_bytes().to_vec()));
        }
    }
    Ok(attributes)
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// Files with several names by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// The only mount that is packed.
    mount: Option<u64>,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, directory: &OwnedFd, stat: &Stat, path: &Path) -> Result<(), Error> {
        let mut header = header(stat, EntryType::Directory);
        self.attributes(directory, path)?;
        self.builder
            .append_data(&mut header, slashed(path), std::io::empty())
            .map_err(Error::io("pack", path))?;
        self.children(directory, path)
    }

    fn children(&mut self, directory: &OwnedFd, path: &Path) -> Result<(), Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| Error::io("read", path)(errno.into())
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed(path))? {
            let name = entry.map_err(failed(path))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        // The same tree is the same archive.
        names.sort();
        for name in names {
            let inside = path.join(&name);
            let stat = match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                // It went while we were on our way.
                Err(Errno::NOENT) => continue,
                found => found.map_err(failed(&inside))?,
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            let foreign = match self.mount {
                Some(own) => mount_id(directory.as_fd(), &name).map_err(failed(&inside))? != own,
                None => false,
            };
            if foreign {
                // A directory that something is mounted on is there all the same; a file is not looked below.
                if kind == FileType::Directory {
                    let mut header = header(&stat, EntryType::Directory);
                    self.builder
                        .append_data(&mut header, slashed(&inside), std::io::empty())
                        .map_err(Error::io("pack", &inside))?;
                }
                continue;
            }
            if kind == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(directory, &name, flags, Mode::empty()) {
                    Err(Errno::NOENT) => {}
                    child => self.directory(&child.map_err(failed(&inside))?, &stat, &inside)?,
                }
            } else {
                self.entry(directory.as_fd(), &name, &stat, &inside, None)?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
        path: &Path,
        opened: Option<&OwnedFd>,
    ) -> Result<(), Error> {
        let failed = |errno: Errno| Error::io("pack", path)(errno.into());
        let packed = Error::io("pack", path);
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let mut header = header(stat, EntryType::Link);
                header.set_size(0);
                return self.builder.append_link(&mut header, path, first).map_err(packed);
            }
            self.links.insert(key, path.to_owned());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = match opened {
                    // By its descriptor, for its name may be that of a link to it.
                    Some(found) => {
                        use std::os::fd::AsRawFd as _;
                        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
                        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                        rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?
                    }
                    None => match rustix::fs::openat(parent, name, flags, Mode::empty()) {
                        Err(Errno::NOENT) => return Ok(()),
                        found => found.map_err(failed)?,
                    },
                };
                let now = rustix::fs::fstat(&file).map_err(failed)?;
                if FileType::from_raw_mode(now.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                self.attributes(&file, path)?;
                let mut header = header(&now, EntryType::Regular);
                let size = u64::try_from(now.st_size).unwrap_or(0);
                header.set_size(size);
                // One that grows or shrinks meanwhile has the size that it had.
                let content = std::fs::File::from(file).take(size).chain(std::io::repeat(0)).take(size);
                self.builder.append_data(&mut header, path, content).map_err(packed)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(failed)?;
                let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                let mut header = header(stat, EntryType::Symlink);
                self.builder.append_link(&mut header, path, target).map_err(packed)
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice) => {
                let entry = if kind == FileType::BlockDevice { EntryType::Block } else { EntryType::Char };
                let mut header = header(stat, entry);
                header.set_device_major(rustix::fs::major(stat.st_rdev)).map_err(Error::io("pack", path))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev)).map_err(Error::io("pack", path))?;
                self.builder.append_data(&mut header, path, std::io::empty()).map_err(packed)
            }
            FileType::Fifo => {
                let mut header = header(stat, EntryType::Fifo);
                self.builder.append_data(&mut header, path, std::io::empty()).map_err(packed)
            }
            // Sockets are nothing without their program.
            _ => Ok(()),
        }
    }

    /// Extended attributes, as PAX records before the entry (star's SCHILY.xattr, which everybody reads).
    fn attributes(&mut self, file: &OwnedFd, path: &Path) -> Result<(), Error> {
        let mut names = vec![0_u8; XATTR_BYTES];
        let length = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
            Err(Errno::NOTSUP) => return Ok(()),
            found => found.map_err(|errno| Error::io("list attributes", path)(errno.into()))?,
        };
        let mut records = Vec::new();
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let (Ok(key), Ok(text)) = (CString::new(name), std::str::from_utf8(name)) else { continue };
            let mut value = vec![0_u8; XATTR_BYTES];
            if let Ok(length) = rustix::fs::fgetxattr(file, &key, value.as_mut_slice()) {
                value.truncate(length);
                records.push((format!("SCHILY.xattr.{text}"), value));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let borrowed = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(borrowed).map_err(Error::io("pack", path))
    }

    fn finish(self) -> Result<(), Error> {
        let mut to = self.builder.into_inner().map_err(Error::io("finish", "archive"))?;
        to.flush().map_err(Error::io("finish", "archive"))
    }
}

fn slashed(path: &Path) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push("/");
    text.into()
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_comes_out_as_it_went_in_and_stays_inside() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("d")).unwrap();
        std::fs::write(tree.join("d/file"), "content").unwrap();
        std::fs::hard_link(tree.join("d/file"), tree.join("d/other")).unwrap();
        std::os::unix::fs::symlink("d/file", tree.join("link")).unwrap();
        let place = |dir: &Path, path: &str| Place { root: open_directory(dir).unwrap(), path: path.into() };
        let mut bytes = Vec::new();
        place(from.path(), "/tree").pack(false, &mut bytes).unwrap();
        // A link in the destination that leads out of it is followed inside it.
        std::fs::create_dir(to.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", to.path().join("tree")).unwrap();
        let error = place(to.path(), "/").unpack(bytes.as_slice(), true).unwrap_err();
        assert!(error.chain().contains("no directory"), "{}", error.chain());
        place(to.path(), "/etc").unpack(bytes.as_slice(), false).unwrap();
        let made = to.path().join("etc/tree");
        assert_eq!(std::fs::read_to_string(made.join("d/other")).unwrap(), "content");
        assert_eq!(std::fs::read_link(made.join("link")).unwrap(), Path::new("d/file"));
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(made.join("d/file").metadata().unwrap().nlink(), 2);
    }

    #[test]
    fn paths_are_cleaned() {
        assert_eq!(cleaned("a/../../b/./c"), Path::new("/b/c"));
        assert_eq!(below(Path::new("/")), Path::new("."));
        assert_eq!(below(Path::new("/a/b")), Path::new("a/b"));
    }
}
