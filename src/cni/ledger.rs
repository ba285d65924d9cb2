//! What DELs are owed: a file per attachment, there from before its ADD until its DEL has succeeded.
//!
//! The files have the fields of the reference library's cache, so that its tools can read them. One without `result` is of
//! an ADD that was cut short or failed, and is owed a DEL all the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::list::{ListError, NetworkList, check_name};
use crate::plugin::Invocation;
use crate::result::{CniResult, ResultError};

/// The name of the form in the reference library.
const KIND: &str = "cniCacheV1";

/// Largest file: a list and a result, each of which is bounded.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// The ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not of this form.
    #[error("read {}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file is of another kind or damaged.
    #[error("{} is no entry of the ledger", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The network in a file.
    #[error("network in {}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ListError,
    },
    /// The result in a file.
    #[error("result in {}", path.display())]
    Result {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ResultError,
    },
    /// A name that cannot be that of a file.
    #[error("entry of the ledger")]
    Name(#[from] ListError),
}

/// A network namespace by its number, so that a path that has come to name another one is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsIdentity {
    /// Device of nsfs.
    pub device: u64,
    /// Number of the namespace.
    pub inode: u64,
}

impl NetnsIdentity {
    /// That of the namespace at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }
}

/// An attachment that a DEL is owed.
#[derive(Debug, Clone, PartialEq)]
pub struct Owed {
    /// The network as it was at ADD; DEL gets the same.
    pub list: NetworkList,
    /// What ADD was told.
    pub invocation: Invocation,
    /// The namespace that its path named at ADD.
    pub netns: Option<NetnsIdentity>,
    /// What ADD has returned, if it did.
    pub result: Option<CniResult>,
}

impl Owed {
    /// As DEL is to be told: without a path if that does not name the pod's namespace any more.
    #[must_use]
    pub fn invocation_now(&self) -> Invocation {
        let mut now = self.invocation.clone();
        now.netns = now.netns.filter(|path| {
            NetnsIdentity::of(path).is_ok_and(|found| self.netns.is_none_or(|then| then == found))
        });
        now
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    kind: String,
    #[serde(rename = "containerId")]
    container_id: String,
    config: String,
    #[serde(rename = "ifName")]
    ifname: String,
    #[serde(rename = "networkName")]
    network_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(rename = "cniArgs", default)]
    args: Vec<(String, String)>,
    #[serde(rename = "capabilityArgs", default)]
    capability_args: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Map<String, Value>>,
    #[serde(rename = "netnsIdentity", default, skip_serializing_if = "Option::is_none")]
    identity: Option<NetnsIdentity>,
    #[serde(rename = "configFile", default)]
    source: PathBuf,
}

/// The directory of what is owed.
#[derive(Debug, Clone)]
pub struct Ledger {
    dir: PathBuf,
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    move |source| LedgerError::Io { operation, path: path.to_owned(), source }
}

impl Ledger {
    /// Opens or makes it; `dir` must survive a reboot, because what plugins keep may.
    pub fn open(dir: PathBuf) -> Result<Self, LedgerError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(io_error("create directory", &dir))?;
        Ok(Self { dir })
    }

    fn path(&self, owed: &Owed) -> Result<PathBuf, LedgerError> {
        let Invocation { container_id, ifname, .. } = &owed.invocation;
        check_name("network name", &owed.list.name)?;
        check_name("container id", container_id)?;
        check_name("interface name", ifname)?;
        Ok(self.dir.join(format!("{}-{container_id}-{ifname}", owed.list.name)))
    }

    /// Writes an entry, whole or not at all. `durable` waits until it would survive a power cut.
    pub fn write(&self, owed: &Owed, durable: bool) -> Result<(), LedgerError> {
        let path = self.path(owed)?;
        let entry = Entry {
            kind: KIND.to_owned(),
            container_id: owed.invocation.container_id.clone(),
            config: BASE64.encode(Value::Object(owed.list.raw.clone()).to_string()),
            ifname: owed.invocation.ifname.clone(),
            network_name: owed.list.name.clone(),
            netns: owed.invocation.netns.clone(),
            args: owed.invocation.args.clone(),
            capability_args: owed.invocation.capability_args.clone(),
            result: owed.result.as_ref().map(|result| result.to_map(result.cni_version)),
            identity: owed.netns,
            source: owed.list.source.clone(),
        };
        let bytes =
            serde_json::to_vec(&entry).map_err(|source| LedgerError::Json { path: path.clone(), source })?;
        // A name that no attachment has: one of them begins with a letter or digit.
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(path.file_name().unwrap_or_default());
        let temporary = self.dir.join(temporary);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io_error("create", &temporary))?;
        file.write_all(&bytes).map_err(io_error("write", &temporary))?;
        if durable {
            file.sync_data().map_err(io_error("sync", &temporary))?;
        }
        fs::rename(&temporary, &path).map_err(io_error("rename to", &path))?;
        if durable { self.flush_dir() } else { Ok(()) }
    }

    /// Waits until an entry would survive a power cut; one that is gone need not.
    pub fn flush(&self, owed: &Owed) -> Result<(), LedgerError> {
        let path = self.path(owed)?;
        match fs::File::open(&path) {
            Ok(file) => file.sync_data().map_err(io_error("sync", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("open", &path)(error)),
        }
        self.flush_dir()
    }

    fn flush_dir(&self) -> Result<(), LedgerError> {
        let dir = fs::File::open(&self.dir).map_err(io_error("open", &self.dir))?;
        dir.sync_all().map_err(io_error("sync", &self.dir))
    }

    /// Strikes an entry out; one that is gone is fine.
    pub fn clear(&self, owed: &Owed) -> Result<(), LedgerError> {
        let path = self.path(owed)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error("remove", &path)),
        }
    }

    /// What is owed for one container, and what of it cannot be read.
    pub fn of(&self, container_id: &str) -> Result<(Vec<Owed>, Vec<LedgerError>), LedgerError> {
        let within = format!("-{container_id}-");
        let (mut owed, broken) = self.select(|name| name.contains(&within))?;
        owed.retain(|owed| owed.invocation.container_id == container_id);
        Ok((owed, broken))
    }

    /// All that is owed, and what of it cannot be read.
    pub fn read(&self) -> Result<(Vec<Owed>, Vec<LedgerError>), LedgerError> {
        self.select(|_| true)
    }

    fn select(&self, wanted: impl Fn(&str) -> bool) -> Result<(Vec<Owed>, Vec<LedgerError>), LedgerError> {
        let (mut owed, mut broken) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir).map_err(io_error("read directory", &self.dir))? {
            let path = entry.map_err(io_error("read directory", &self.dir))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with('.') || !wanted(&name) {
                continue;
            }
            match read_entry(&path) {
                Ok(entry) => owed.push(entry),
                // Paid while we read.
                Err(LedgerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => broken.push(error),
            }
        }
        Ok((owed, broken))
    }
}

fn read_entry(path: &Path) -> Result<Owed, LedgerError> {
    let form = || LedgerError::Form { path: path.to_owned() };
    let file = fs::File::open(path).map_err(io_error("open", path))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    let json = |source| LedgerError::Json { path: path.to_owned(), source };
    let entry: Entry = serde_json::from_slice(&bytes).map_err(json)?;
    if entry.kind != KIND {
        return Err(form());
    }
    let config = BASE64.decode(&entry.config).map_err(|_| form())?;
    let raw = serde_json::from_slice(&config).map_err(json)?;
    let list = NetworkList::from_map(raw, &entry.source)
        .map_err(|source| LedgerError::List { path: path.to_owned(), source })?;
    let result = entry
        .result
        .map(|result| CniResult::from_map(result, list.cni_version))
        .transpose()
        .map_err(|source| LedgerError::Result { path: path.to_owned(), source })?;
    Ok(Owed {
        list,
        invocation: Invocation {
            container_id: entry.container_id,
            netns: entry.netns,
            ifname: entry.ifname,
            args: entry.args,
            capability_args: entry.capability_args,
        },
        netns: entry.identity,
        result,
    })
}
