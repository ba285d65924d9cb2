//! Container Device Interface: devices of third parties, described by files on this machine.
//!
//! ```text
//! /etc/cdi/*.{json,yaml} ─┐ priority 0                        per file: kind, its own edits
//! /var/run/cdi/*…        ─┴ priority 1, wins ──► index ──► "vendor.com/class=name" ──► edits of the device
//!                                                                 │
//!                            env, device nodes, mounts, groups ◄──┘ ──► OCI spec
//! ```
//! The directories are looked at whenever a container asks for such a device; a file is read again when its inode, size or
//! times have changed. Names, files and precedence are those of the CDI specification 1.1.0
//! (<https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>).

mod document;
mod edits;
mod name;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

pub use name::{ANNOTATION_PREFIX, Name, annotated};

use crate::Code;
use document::Document;

/// Most bytes of one file.
const FILE_BYTES: u64 = 4 << 20;

/// Most files of one directory.
const FILES: usize = 1024;

/// Why a device cannot be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not `vendor/class=name`.
    #[error("CDI device {name:?}: {reason}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An annotation that should name devices.
    #[error("annotation {key:?}: {source}")]
    Annotation {
        /// Its key.
        key: String,
        /// What is wrong with its value.
        source: Box<Error>,
    },
    /// No directory is configured.
    #[error("CDI device {device}: container.cdi_spec_dirs is empty, which turns CDI off")]
    Off {
        /// The device.
        device: String,
    },
    /// No file has it.
    #[error("CDI device {device}: no file in {directories} has it{broken}")]
    Unknown {
        /// The device.
        device: String,
        /// Where it was looked for.
        directories: String,
        /// Files that could not be read; empty, or begins with a semicolon.
        broken: String,
    },
    /// Two files of the same directory have it.
    #[error("CDI device {device}: both {} and {} have it, and neither goes before the other", first.display(), second.display())]
    Conflict {
        /// The device.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The file asks for what cannot be done.
    #[error("CDI device {device} of {}: {reason}", file.display())]
    Edit {
        /// The device.
        device: String,
        /// The file that describes it.
        file: PathBuf,
        /// What cannot be done.
        reason: String,
    },
}

impl Error {
    /// Class of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Name { .. } | Self::Annotation { .. } => Code::InvalidArgument,
            Self::Unknown { .. } => Code::NotFound,
            Self::Off { .. } | Self::Conflict { .. } | Self::Edit { .. } => Code::FailedPrecondition,
        }
    }
}

/// The files of some directories, as last seen.
#[derive(Debug)]
pub struct Registry {
    /// From the lowest priority to the highest.
    directories: Vec<PathBuf>,
    seen: Mutex<HashMap<PathBuf, (Stamp, Read)>>,
}

/// A file, or why it cannot be used.
type Read = Result<Arc<File>, Arc<str>>;

#[derive(Debug)]
struct File {
    path: PathBuf,
    document: Document,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        let nanos = |nanos: u64| i64::try_from(nanos).unwrap_or(0);
        Self {
            file: (stat.st_dev, stat.st_ino),
            bytes: stat.st_size,
            modified: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
        }
    }
}

/// Where a device was found.
#[derive(Clone, Debug)]
enum Found {
    One { priority: usize, file: Arc<File>, device: usize },
    Several { priority: usize, first: PathBuf, second: PathBuf },
}

impl Found {
    fn priority(&self) -> usize {
        match self {
            Self::One { priority, .. } | Self::Several { priority, .. } => *priority,
        }
    }
}

#[derive(Debug, Default)]
struct Index {
    devices: BTreeMap<Name, Found>,
    broken: Vec<(PathBuf, Arc<str>)>,
}

impl Registry {
    /// Over these directories, of which a later one goes before an earlier one; none turns CDI off.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories, seen: Mutex::default() }
    }

    /// Gives a container devices: all of them or none. A device that is named twice is given once; what a file says for all
    /// of its devices is done once, before the first of them.
    pub fn inject(&self, spec: &mut Spec, names: &[String]) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        let mut wanted: Vec<Name> = Vec::new();
        for name in names {
            let name: Name = name.parse()?;
            if !wanted.contains(&name) {
                wanted.push(name);
            }
        }
        let index = self.index();
        let mut edited = spec.clone();
        let mut begun = HashSet::new();
        for name in wanted {
            let (file, device) = self.find(&index, &name)?;
            let Some(device) = file.document.devices.get(device) else { continue };
            let failed = |reason| Error::Edit { device: name.to_string(), file: file.path.clone(), reason };
            if begun.insert(file.path.clone()) {
                edits::apply(&mut edited, &file.document.container_edits).map_err(failed)?;
            }
            edits::apply(&mut edited, &device.container_edits).map_err(failed)?;
        }
        *spec = edited;
        Ok(())
    }

    fn find(&self, index: &Index, name: &Name) -> Result<(Arc<File>, usize), Error> {
        let device = name.to_string();
        if self.directories.is_empty() {
            return Err(Error::Off { device });
        }
        match index.devices.get(name) {
            Some(Found::One { file, device, .. }) => Ok((Arc::clone(file), *device)),
            Some(Found::Several { first, second, .. }) => {
                Err(Error::Conflict { device, first: first.clone(), second: second.clone() })
            }
            None => {
                let directories: Vec<_> =
                    self.directories.iter().map(|path| path.display().to_string()).collect();
                let broken = index.broken.iter().map(|(path, why)| format!("; {}: {why}", path.display()));
                Err(Error::Unknown {
                    device,
                    directories: directories.join(" or "),
                    broken: broken.collect(),
                })
            }
        }
    }

    /// What the directories hold now.
    fn index(&self) -> Index {
        let mut index = Index::default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        for (priority, directory) in self.directories.iter().enumerate() {
            let paths = match files(directory) {
                Ok(paths) => paths,
                Err(Errno::NOENT) => continue,
                Err(errno) => {
                    index.broken.push((directory.clone(), errno.to_string().into()));
                    continue;
                }
            };
            for path in paths {
                let (stamp, read) = match look(&path, seen.remove(&path)) {
                    Ok(looked) => looked,
                    // Gone since it was listed.
                    Err(Errno::NOENT) => continue,
                    Err(errno) => {
                        index.broken.push((path, errno.to_string().into()));
                        continue;
                    }
                };
                match &read {
                    Ok(file) => index.add(priority, file),
                    Err(why) => index.broken.push((path.clone(), Arc::clone(why))),
                }
                now.insert(path, (stamp, read));
            }
        }
        *seen = now;
        index
    }
}

impl Index {
    fn add(&mut self, priority: usize, file: &Arc<File>) {
        for (number, device) in file.document.devices.iter().enumerate() {
            let name = Name { kind: file.document.kind.clone(), device: device.name.clone() };
            let found = Found::One { priority, file: Arc::clone(file), device: number };
            let found = match self.devices.get(&name) {
                Some(other) if other.priority() == priority => match other {
                    Found::One { file: other, .. } => {
                        Found::Several { priority, first: other.path.clone(), second: file.path.clone() }
                    }
                    several @ Found::Several { .. } => several.clone(),
                },
                // Directories come in the order of their priorities.
                _ => found,
            };
            self.devices.insert(name, found);
        }
    }
}

/// The files of a directory, in the order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let mut paths = Vec::new();
    for entry in Dir::new(opened)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let extension = Path::new(name).extension();
        if extension.is_some_and(|extension| extension == "json" || extension == "yaml") {
            paths.push(directory.join(name));
        }
        if paths.len() > FILES {
            return Err(Errno::TOOBIG);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The file as it is now; one that has not changed is not read again.
fn look(path: &Path, before: Option<(Stamp, Read)>) -> Result<(Stamp, Read), Errno> {
    // A pipe must not hold up who opens it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let stamp = Stamp::of(&stat);
    if let Some((stamp_before, read)) = before
        && stamp_before == stamp
    {
        return Ok((stamp, read));
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok((stamp, Err("is not a regular file".into())));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(FILE_BYTES + 1).read_to_end(&mut bytes);
    let document = match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() as u64 > FILE_BYTES => Err("is larger than 4 MiB".to_owned()),
        Ok(_) => Document::parse(&bytes, path.extension().is_some_and(|extension| extension == "json")),
    };
    let read = document.map(|document| Arc::new(File { path: path.to_owned(), document }));
    Ok((stamp, read.map_err(Into::into)))
}

#[cfg(test)]
mod tests;
