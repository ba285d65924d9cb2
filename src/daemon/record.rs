//! Records on disk: one JSON file per object below the run directory, replaced atomically.
//!
//! ```text
//! <run>/sandboxes/<id>/sandbox.json     written before the first act of RunPodSandbox
//!                      monitor.sock     bound by the monitor
//!                      exit-<container> written by the monitor when a container ends
//!                      hosts hostname resolv.conf
//! <run>/containers/<id>/container.json  written before the first act of CreateContainer
//!                       config.json     the OCI runtime spec
//! ```
//! Nothing here is flushed: the run directory is a tmpfs, and a reboot ends the pods that it describes. A file is complete
//! or absent because it is renamed into place.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what this version writes.
    #[error("read {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

/// Writes `bytes` to `path` with `mode`, whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    file.write_all(bytes).map_err(io_error("write", &temporary))?;
    drop(file);
    fs::rename(&temporary, path).map_err(io_error("rename to", path))
}

/// Writes a record.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(record).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    write_file(path, &bytes, 0o600)
}

/// Reads a record.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Makes a directory with mode 0700; one that exists is fine.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create directory", path))
}

/// Removes a record's directory and what is in it; one that is gone is fine. Links are removed, never followed.
pub fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("remove", path)),
    }
}
