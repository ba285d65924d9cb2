//! Directories of the store, held by descriptor.
//!
//! Everything that the store does on disk goes through a [`Dir`]: a descriptor plus the path it
//! was opened at, the latter for error texts only. Names are single components; there is no way
//! to walk upwards, to follow a link or to leave the root.

use std::ffi::{CStr, CString};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::{fs::File, str};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Whether written bytes have to survive a power cut before the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Flush the file and the directory.
    Yes,
    /// Leave it to the kernel.
    No,
}

/// An open directory of the store.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens a root of the store, making it if needed, and sets its mode to 0700.
    pub(crate) fn root(path: &Path) -> Result<Self> {
        // The administrator's path: links above the root are his business, the root itself is ours.
        let mut built = PathBuf::new();
        for component in path.components() {
            built.push(component);
            match fs::mkdir(&built, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create", built)(errno)),
            }
        }
        let fd = fs::open(path, DIRECTORY, Mode::empty()).map_err(Error::io("open", path))?;
        fs::fchmod(&fd, Mode::from_raw_mode(0o700)).map_err(Error::io("set the mode of", path))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry, for error texts.
    pub(crate) fn entry(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a subdirectory.
    pub(crate) fn open(&self, name: &str) -> Result<Self> {
        let fd =
            open_beneath(self.fd.as_fd(), name, DIRECTORY).map_err(Error::io("open", self.entry(name)))?;
        Ok(Self { fd, path: self.entry(name) })
    }

    /// Opens a subdirectory, making it with mode 0700 if needed.
    pub(crate) fn ensure(&self, name: &str) -> Result<Self> {
        match fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => self.open(name),
            Err(errno) => Err(Error::io("create", self.entry(name))(errno)),
        }
    }

    /// Makes and opens a subdirectory that must not exist.
    pub(crate) fn create(&self, name: &str) -> Result<Self> {
        fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700))
            .map_err(Error::io("create", self.entry(name)))?;
        self.open(name)
    }

    /// Makes a file that must not exist, readable and writable by the store only.
    pub(crate) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(Error::io("create", self.entry(name)))
    }

    /// Makes an empty file whose being there is all it says; one system call, so no crash leaves half of it.
    pub(crate) fn mark(&self, name: &str) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600));
        made.map(drop).map_err(Error::io("mark", self.entry(name)))
    }

    /// Removes the marks that say something about what is not there any more.
    pub(crate) fn retain_marks(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        for name in self.names()?.into_iter().filter(|name| !keep(name)) {
            self.remove_file(&name)?;
        }
        Ok(())
    }

    /// Opens a file for reading.
    pub(crate) fn open_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        open_beneath(self.fd.as_fd(), name, flags)
            .map(File::from)
            .map_err(Error::io("open", self.entry(name)))
    }

    /// Reads a whole file of at most `limit` bytes; `None` if there is none.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let file = match self.open_file(name) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|source| Error::Io {
            op: "read",
            path: self.entry(name),
            source,
        })?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
            return Err(Error::Limit { what: "size in bytes of a stored record", limit });
        }
        Ok(Some(bytes))
    }

    /// Puts a file in place as a whole or not at all.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8], flush: Flush) -> Result<()> {
        let temporary = format!(".{name}.{}", unique());
        let written = self.create_file(&temporary).and_then(|mut file| {
            file.write_all(bytes).map_err(|source| Error::Io {
                op: "write",
                path: self.entry(&temporary),
                source,
            })?;
            if flush == Flush::Yes {
                fs::fdatasync(&file).map_err(Error::io("flush", self.entry(&temporary)))?;
            }
            self.rename(&temporary, self, name)
        });
        if written.is_err() {
            let _: Result<bool> = self.remove_file(&temporary);
        }
        written?;
        if flush == Flush::Yes { self.flush() } else { Ok(()) }
    }

    /// Flushes the entries of this directory.
    pub(crate) fn flush(&self) -> Result<()> {
        fs::fsync(&self.fd).map_err(Error::io("flush", &self.path))
    }

    /// Moves an entry to another directory of the same file system, replacing a file there.
    pub(crate) fn rename(&self, name: &str, to: &Self, new_name: &str) -> Result<()> {
        fs::renameat(&self.fd, name, &to.fd, new_name).map_err(Error::io("move", self.entry(name)))
    }

    /// Removes a file; tells whether it was there.
    pub(crate) fn remove_file(&self, name: &str) -> Result<bool> {
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::io("remove", self.entry(name))(errno)),
        }
    }

    /// Whether an entry of that name exists.
    pub(crate) fn contains(&self, name: &str) -> Result<bool> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::io("look up", self.entry(name))(errno)),
        }
    }

    /// The names in this directory, sorted, without `.` and `..`.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, _) in list(self.fd.as_fd()).map_err(Error::io("list", &self.path))? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = str::from_utf8(name.as_bytes()) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes an entry and everything below it, without following links or crossing mounts.
    pub(crate) fn remove_tree(&self, name: &str) -> Result<()> {
        let name = CString::new(name).map_err(|_| Error::io("remove", self.entry(name))(Errno::INVAL))?;
        remove_tree(self.fd.as_fd(), &name)
            .map_err(|errno| Error::io("remove", self.entry(&name.to_string_lossy()))(errno))
    }
}

/// A name that nobody else gets, not even a later process with the same id.
pub(crate) fn unique() -> String {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static PROCESS: OnceLock<String> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| {
        let mut random = [0; 8];
        // Cannot fail for so few bytes once the system is up; before that, the time will do.
        if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).is_err() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            random = now.map_or(0, |now| now.as_nanos()).to_le_bytes()[..8].try_into().unwrap_or_default();
        }
        hex::encode(random)
    });
    format!("{process}-{:x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Opens `name` below `dir` without following any link or entering any mount.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

/// The entries of a directory with their types.
pub(crate) fn list(dir: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    // A descriptor of our own, so that the read position is too.
    let own = fs::openat(dir, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 32 * 1024];
    let mut entries = RawDir::new(own, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            found.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Removes `name` in `dir` with all content. Absence is success. The depth of the tree costs
/// neither stack nor descriptors: deeper directories are first moved up to the top.
fn remove_tree(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = open_directory(dir, name)?;
    let mut rounds = 0;
    loop {
        empty(top.as_fd())?;
        match fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // A flush that was under way has just put its marker there.
            Err(Errno::NOTEMPTY | Errno::EXIST) if rounds < 8 => rounds += 1,
            Err(errno) => return Err(errno),
        }
    }
}

/// Removes everything below a directory.
fn empty(top: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut serial = 0_u64;
    let mut pending = vec![None::<CString>];
    while let Some(sub) = pending.pop() {
        let opened;
        let current = match &sub {
            None => top,
            Some(sub) => {
                opened = open_directory(top, sub)?;
                opened.as_fd()
            }
        };
        for (entry, kind) in list(current)? {
            let removed = if kind == FileType::Directory {
                fs::unlinkat(current, &entry, AtFlags::REMOVEDIR)
            } else {
                fs::unlinkat(current, &entry, AtFlags::empty())
            };
            match removed {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR | Errno::PERM) => {
                    if sub.is_none() {
                        pending.push(Some(entry));
                    } else {
                        let (lifted, number) = lift(current, &entry, top, serial)?;
                        serial = number;
                        pending.push(Some(lifted));
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        if let Some(sub) = &sub {
            fs::unlinkat(top, sub, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Moves a directory to the top of the tree under removal, under a free name.
fn lift(
    from: BorrowedFd<'_>,
    name: &CStr,
    top: BorrowedFd<'_>,
    mut serial: u64,
) -> Result<(CString, u64), Errno> {
    loop {
        serial += 1;
        let free = CString::new(format!(".lifted-{serial}")).map_err(|_| Errno::INVAL)?;
        match fs::renameat_with(from, name, top, &free, fs::RenameFlags::NOREPLACE) {
            Ok(()) => return Ok((free, serial)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn open_directory(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    fs::openat2(dir, name, DIRECTORY, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::root(&temporary.path().join("root")).unwrap();
        (temporary, dir)
    }

    #[test]
    fn replace_is_all_or_nothing_and_read_is_bounded() {
        let (_temporary, dir) = fresh();
        dir.replace("a", b"one", Flush::Yes).unwrap();
        dir.replace("a", b"two!", Flush::No).unwrap();
        assert_eq!(dir.read("a", 4).unwrap().unwrap(), b"two!");
        assert!(matches!(dir.read("a", 3), Err(Error::Limit { .. })));
        assert_eq!(dir.read("b", 3).unwrap(), None);
        assert_eq!(dir.names().unwrap(), ["a"]);
    }

    #[test]
    fn links_are_neither_followed_nor_entered() {
        let (temporary, dir) = fresh();
        let outside = temporary.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("canary"), "alive").unwrap();
        std::os::unix::fs::symlink(&outside, dir.entry("link")).unwrap();
        std::fs::create_dir(dir.entry("tree")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.entry("tree").join("link")).unwrap();
        assert!(dir.open("link").is_err());
        assert!(dir.open("..").is_err());
        assert!(dir.open_file("link/canary").is_err());
        dir.remove_tree("tree").unwrap();
        dir.remove_tree("link").unwrap();
        dir.remove_tree("absent").unwrap();
        assert_eq!(dir.names().unwrap(), Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "alive");
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let (_temporary, dir) = fresh();
        let name = "d".repeat(200);
        let mut fd = dir.create("deep").unwrap().fd;
        for level in 0..300 {
            drop(fs::openat(&fd, "f", OFlags::CREATE | OFlags::RDWR, Mode::from_raw_mode(0o600)).unwrap());
            fs::mkdirat(&fd, "sibling", Mode::from_raw_mode(0o700)).unwrap();
            fs::mkdirat(&fd, &name, Mode::from_raw_mode(0o700)).unwrap();
            fd = fs::openat(&fd, &name, DIRECTORY, Mode::empty()).unwrap_or_else(|_| panic!("{level}"));
        }
        drop(fd);
        dir.remove_tree("deep").unwrap();
        assert_eq!(dir.names().unwrap(), Vec::<String>::new());
    }
}
