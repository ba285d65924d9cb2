//! The unix socket that clients dial.
//!
//! It comes from systemd (sd_listen_fds(3)) or is bound here. Whoever can connect is root in effect, so it is 0600 from
//! the first moment on: it is bound under a name of its own, given its mode, and renamed to its place, which also
//! replaces a stale socket without a gap. A socket that still answers belongs to a living server and is left alone.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// Why nobody can be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A server answers there.
    #[error("{} is served by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something stands there that is not ours to remove.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// What stands in the way.
        path: PathBuf,
    },
    /// What systemd passed is not one listening unix stream socket.
    #[error("socket activation: {reason}")]
    Activation {
        /// What it is instead.
        reason: String,
    },
    /// The kernel refused.
    #[error("{}: bind the socket", path.display())]
    Io {
        /// The socket or its directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The socket from systemd if there is one, else one bound at `path`. Call it once, early: it takes descriptors over
/// that the environment names.
pub fn listen(path: &Path) -> Result<Listening, SocketError> {
    match activated()? {
        Some(listener) => Ok(Listening { listener, bound: None }),
        None => bind(path).map(|listener| Listening { listener, bound: Some(path.to_owned()) }),
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub listener: UnixListener,
    /// Where we bound it, to be removed at the end; `None` if systemd passed it in and keeps it.
    pub bound: Option<PathBuf>,
}

fn activated() -> Result<Option<UnixListener>, SocketError> {
    let refuse = |reason: String| SocketError::Activation { reason };
    let mut fds = pinnace_sys::activation::take().map_err(|error| refuse(error.to_string()))?;
    let Some(fd) = fds.pop() else { return Ok(None) };
    if !fds.is_empty() {
        return Err(refuse(format!("{} sockets were passed, one is served", fds.len() + 1)));
    }
    let is_listener = sockopt::socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && sockopt::socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_acceptconn(&fd).is_ok_and(|listens| listens);
    if is_listener {
        Ok(Some(UnixListener::from(fd)))
    } else {
        Err(refuse("what was passed is not a listening unix stream socket".into()))
    }
}

fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| SocketError::Io { path, source }
    };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(at(parent))?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.into() });
        }
        Ok(_) => match dial(path) {
            // EAGAIN: a living server whose backlog is full (connect(2)).
            Ok(()) | Err(Errno::AGAIN) => return Err(SocketError::InUse { path: path.into() }),
            Err(Errno::CONNREFUSED) => {}
            Err(errno) => return Err(at(path)(errno.into())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(path)(error)),
    }
    // Short, so that it fits wherever `path` fits: the name's length counts, not only the path's.
    let unborn = path.with_file_name(format!(".{:x}", std::process::id()));
    let bound = (|| {
        match fs::remove_file(&unborn) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unborn)?;
        fs::set_permissions(&unborn, Permissions::from_mode(0o600))?;
        fs::rename(&unborn, path)?;
        Ok(listener)
    })();
    bound.map_err(|error| {
        let _ = fs::remove_file(&unborn);
        at(path)(error)
    })
}

/// Whether a server answers, without waiting for one that hangs.
fn dial(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn is_private_and_reachable_from_its_first_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/pinnace.sock");
        let listener = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o711);
        let client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(client);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing but the socket is left"
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind(&path).unwrap());
        assert!(path.exists(), "a dropped listener leaves its file, as a killed daemon does");
        let second = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
        // Nor does one that hangs with a full backlog, and finding that out does not hang.
        rustix::net::listen(&second, 0).unwrap();
        while dial(&path).is_ok() {}
        assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
    }

    #[test]
    fn files_and_symlinks_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(matches!(bind(&file), Err(SocketError::NotASocket { .. })));
        assert!(matches!(bind(&link), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
}
