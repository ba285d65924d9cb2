//! Layers: what they are on disk and in memory.
//!
//! A layer is keyed by its diffID and never changes. It exists if and only if its directory has
//! the file `durable`, written after everything else was flushed, or it is registered in the run
//! directory, which does not survive a boot.
//!
//! ```text
//! layers/sha256-<hex>/
//!   info.json          sizes, form, what the chain has to know
//!   layer.tar          form tar+EROFS: the layer, byte for byte
//!   meta.erofs                         its file system, pointing into layer.tar
//!   dir/               form directory: its files, whiteouts in overlayfs form
//!   layer.split layer.objects stray-<n>    how its tar looked ([`crate::archive::split`])
//!   blob-sha256-<hex>  empty: a compressed blob that is known to unpack to this layer
//!   durable            empty: all of the above survives a power cut
//!   damaged            empty: a check has found this layer damaged; only snapshots go on using it
//! ```

pub(crate) mod check;
pub(crate) mod directory;
pub(crate) mod erofs;
pub(crate) mod ingest;
pub(crate) mod merge;
pub(crate) mod tree;

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::digest::{DiffId, Digest};
use crate::dir::Dir;
use crate::error::{Error, Result};

pub(crate) const INFO: &str = "info.json";
pub(crate) const TAR: &str = "layer.tar";
pub(crate) const META: &str = "meta.erofs";
pub(crate) const TREE: &str = "dir";
pub(crate) const DURABLE: &str = "durable";
pub(crate) const DAMAGED: &str = "damaged";
const BLOB_PREFIX: &str = "blob-";
/// Records are small; the list of implicit directories is what could grow.
const INFO_BYTES: u64 = 64 << 20;
const INFO_VERSION: u32 = 1;

/// How a layer lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerForm {
    /// The tar as it came, plus EROFS metadata that point into it.
    TarErofs,
    /// An unpacked directory.
    Directory,
}

impl fmt::Display for LayerForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TarErofs => "tar-erofs",
            Self::Directory => "directory",
        })
    }
}

/// Owner and mode of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ownership {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What is recorded about a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    version: u32,
    /// The layer.
    pub diff_id: DiffId,
    /// How it lies on disk.
    pub form: LayerForm,
    /// Length of the uncompressed tar in bytes.
    pub tar_bytes: u64,
    /// What the layer takes on disk, in bytes.
    pub disk_bytes: u64,
    /// What the layer takes on disk, in inodes.
    pub disk_inodes: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// Owner and mode of the root, if the tar has an entry for it.
    pub(crate) root: Option<Ownership>,
    /// The layer hides everything below it.
    pub(crate) root_opaque: bool,
    /// Directories that the tar implies without an entry, as hex of their path.
    pub(crate) implicit: Vec<String>,
    /// Directories that have whiteouts in them, as hex of their path.
    pub(crate) with_whiteouts: Vec<String>,
}

/// A layer of an open store.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) info: LayerInfo,
    pub(crate) durable: AtomicBool,
    /// Found damaged: nobody takes it for good any more.
    pub(crate) damaged: AtomicBool,
    pub(crate) blobs: Mutex<BTreeSet<Digest>>,
    /// The root of the layer, once opened in this process. For EROFS a mount that is attached
    /// nowhere; a clone of it is attached in the private mount namespace.
    pub(crate) root: Mutex<Option<Arc<OwnedFd>>>,
}

impl Layer {
    pub(crate) fn new(info: LayerInfo, durable: bool, blobs: BTreeSet<Digest>) -> Self {
        Self {
            info,
            durable: AtomicBool::new(durable),
            damaged: AtomicBool::new(false),
            blobs: Mutex::new(blobs),
            root: Mutex::new(None),
        }
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }
}

/// The name of a digest as one path component.
pub(crate) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

/// The digest that a path component names.
pub(crate) fn parse_file_name(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.split_once('-')?;
    Digest::from_str(&format!("{algorithm}:{hex}")).ok()
}

pub(crate) fn blob_marker(digest: &Digest) -> String {
    format!("{BLOB_PREFIX}{}", file_name(digest))
}

/// Reads a layer directory. `None` if it holds no layer of that name.
pub(crate) fn load(dir: &Dir, diff_id: DiffId) -> Result<Option<Layer>> {
    let Some(bytes) = dir.read(INFO, INFO_BYTES)? else { return Ok(None) };
    let path = dir.entry(INFO);
    let info: LayerInfo = match serde_json::from_slice(&bytes) {
        Ok(info) => info,
        Err(source) => return Err(Error::Record { path, source }),
    };
    if info.version > INFO_VERSION {
        return Err(Error::RecordVersion { path, version: info.version });
    }
    if info.diff_id != diff_id {
        return Ok(None);
    }
    let names = dir.names()?;
    let blobs = names.iter().filter_map(|name| parse_file_name(name.strip_prefix(BLOB_PREFIX)?)).collect();
    let durable = names.iter().any(|name| name == DURABLE);
    let layer = Layer::new(info, durable, blobs);
    layer.damaged.store(names.iter().any(|name| name == DAMAGED), Ordering::Release);
    Ok(Some(layer))
}
