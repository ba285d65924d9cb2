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

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
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
    /// Makes both directories (0700: what is in them is root's alone) where they are missing, and locks them.
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
        std::os::unix::fs::symlink(&victim, root.join("lock")).unwrap();
        assert!(matches!(StateLock::acquire(&root, &run), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }
}
