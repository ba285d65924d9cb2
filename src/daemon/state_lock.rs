//! One daemon per state: exclusive locks on the root and run directories.
//!
//! ```text
//! <root>/lock   flock(2), holds the pid of its owner as text
//! <run>/lock    the same
//! ```
//! The kernel drops a flock with the last descriptor of its open file, so a killed daemon leaves no stale lock; the
//! files stay. They are close-on-exec and never passed on: a monitor that outlives its daemon must not keep its
//! successor out.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, fchmod, flock, fstat, openat, statat,
};
use rustix::io::Errno;

/// Why the state is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Someone else has it.
    #[error("{} is in use by {owner}; give this daemon another --root and --run", directory.display())]
    Held {
        /// The directory that is locked.
        directory: PathBuf,
        /// Who holds it, as far as is known.
        owner: String,
    },
    /// The directory was there, open to others, and is not ours.
    #[error(
        "{} is open to other users (mode {mode:o}) and holds what is not of this daemon; give it a directory of its own", directory.display()
    )]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The directory or its lock file cannot be made, opened or written.
    #[error("{}: lock the state", path.display())]
    Io {
        /// The directory or lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Both locks; dropping gives the state free.
#[derive(Debug)]
pub struct StateLock {
    _root: File,
    _run: File,
}

impl StateLock {
    /// Makes both directories where they are missing, closes them to other users, and locks them.
    pub fn acquire(root: &Path, run: &Path) -> Result<StateLock, LockError> {
        Ok(StateLock { _root: lock(root)?, _run: lock(run)? })
    }
}

fn lock(directory: &Path) -> Result<File, LockError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| LockError::Io { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))?;
    close_to_others(directory)?;
    let path = directory.join("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(CWD, &path, flags, Mode::from_raw_mode(0o600)).map_err(|e| at(&path)(e.into()))?;
    let mut file = File::from(file);
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // The owner writes its pid just after it has locked, so the file may be empty for a moment.
            let owner = match (&file).take(32).read_to_string(&mut pid) {
                Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
                _ => "another process".to_owned(),
            };
            return Err(LockError::Held { directory: directory.to_owned(), owner });
        }
        Err(errno) => return Err(at(&path)(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(at(&path))?;
    Ok(file)
}

/// What is in there is root's alone, setuid programs of images among it (rule R15, CVE-2021-41103). A directory that an
/// older version or a service manager left open is closed; one that holds somebody else's files is not ours to close.
fn close_to_others(directory: &Path) -> Result<(), LockError> {
    const OTHERS: u32 = 0o077;
    let at = |errno: Errno| LockError::Io { path: directory.to_owned(), source: errno.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, directory, flags, Mode::empty()).map_err(at)?;
    let mode = fstat(&opened).map_err(at)?.st_mode & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    let locked_before = statat(&opened, "lock", AtFlags::SYMLINK_NOFOLLOW).is_ok();
    // Empty, but for a socket that a service manager listens on for us and what mkfs makes.
    let fresh = || {
        let entries = Dir::read_from(&opened).map_err(at)?;
        Ok(entries.flatten().all(|entry| {
            matches!(entry.file_name().to_bytes(), b"." | b".." | b"lost+found")
                || entry.file_type() == FileType::Socket
        }))
    };
    if !locked_before && !fresh()? {
        return Err(LockError::Foreign { directory: directory.to_owned(), mode });
    }
    fchmod(&opened, Mode::from_raw_mode(mode & !OTHERS)).map_err(at)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("lib/root"), dir.path().join("run"));
        let first = StateLock::acquire(&root, &run).unwrap();
        assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);

        let error = StateLock::acquire(&root, &dir.path().join("run2")).unwrap_err();
        let expected = format!("{} is in use by process {};", root.display(), std::process::id());
        assert!(error.to_string().starts_with(&expected), "{error}");
        let error = StateLock::acquire(&dir.path().join("root2"), &run).unwrap_err();
        assert!(matches!(error, LockError::Held { directory, .. } if directory == run));

        drop(first);
        StateLock::acquire(&root, &run).unwrap();
    }

    #[test]
    fn a_child_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("root"), dir.path().join("run"));
        let lock = StateLock::acquire(&root, &run).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        drop(lock);
        // spawn() may return a moment before the kernel closes the child's close-on-exec descriptors.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let mut again = StateLock::acquire(&root, &run);
        while again.is_err() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
            again = StateLock::acquire(&root, &run);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        again.unwrap();
    }

    #[test]
    fn a_symlink_in_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run, victim) =
            (dir.path().join("root"), dir.path().join("run"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&victim, root.join("lock")).unwrap();
        assert!(matches!(StateLock::acquire(&root, &run), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn an_open_directory_is_closed_if_it_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("root"), dir.path().join("run"));
        let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        // Empty, as a service manager makes it.
        std::fs::create_dir(&run).unwrap();
        open(&run);
        drop(StateLock::acquire(&root, &run).unwrap());
        assert_eq!((mode(&root), mode(&run)), (0o700, 0o700));
        // With what an earlier daemon left.
        open(&root);
        drop(StateLock::acquire(&root, &run).unwrap());
        assert_eq!(mode(&root), 0o700);
        // With what mkfs makes.
        let mounted = dir.path().join("mounted");
        std::fs::create_dir_all(mounted.join("lost+found")).unwrap();
        open(&mounted);
        drop(StateLock::acquire(&root, &mounted).unwrap());
        assert_eq!(mode(&mounted), 0o700);
        // With somebody else's files.
        let foreign = dir.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        open(&foreign);
        std::fs::write(foreign.join("file"), "").unwrap();
        let error = StateLock::acquire(&root, &foreign).unwrap_err();
        assert!(matches!(error, LockError::Foreign { .. }), "{error}");
        assert_eq!(mode(&foreign), 0o755);
    }
}
