//! What can go wrong in the store, and how a caller may react to it.

use std::io;
use std::path::PathBuf;

use crate::digest::{DiffId, Digest, ImageId};
use crate::tar;

/// A failure of the store. Every variant names its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a path of the store failed.
    #[error("{op} {}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A mount API call failed.
    #[error("{step} for {subject}{}", bracketed(kernel))]
    Mount {
        /// The step of the mount that failed.
        step: &'static str,
        /// The layer, snapshot or namespace it was for.
        subject: String,
        /// The text that the kernel left on the context descriptor, if any.
        kernel: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another store has this root open.
    #[error("{} is in use by another process", root.display())]
    Locked {
        /// The root of the store.
        root: PathBuf,
    },
    /// Writable layers are to be limited where the file system cannot do it.
    #[error(
        "writable layers cannot be limited: {} is on a file system with {found}; ext4 needs \
         mkfs -O quota,project, and it and XFS need the mount option prjquota", root.display()
    )]
    NoQuota {
        /// The root of the store.
        root: PathBuf,
        /// What the file system has.
        found: &'static str,
    },
    /// This kernel can run neither layer form.
    #[error("no layer form works on this kernel: {reason}")]
    Unsupported {
        /// What the self-test found.
        reason: String,
    },
    /// A layer's tar stream is malformed or beyond the limits.
    #[error("layer tar")]
    Tar(#[from] tar::Error),
    /// An ingest was to be finished after it had failed.
    #[error("the layer was refused before")]
    Refused,
    /// A limit was exceeded.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What grew too large.
        what: &'static str,
        /// The limit, in the unit that `what` names.
        limit: u64,
    },
    /// The file system of the store has too little space left.
    #[error("{} has {free_bytes} bytes free, {reserve_bytes} are reserved", root.display())]
    NoSpace {
        /// The root of the store.
        root: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What has to stay free.
        reserve_bytes: u64,
    },
    /// Content does not have the digest it should have.
    #[error("content has digest {actual}, not {expected}")]
    DigestMismatch {
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest found.
        actual: Box<Digest>,
    },
    /// A blob is not in the store.
    #[error("blob {0} not found")]
    BlobNotFound(Digest),
    /// A layer is not in the store.
    #[error("layer {0} not found")]
    LayerNotFound(DiffId),
    /// Nothing tells how the tar of an unpacked layer looked: an older version has taken it in.
    #[error("layer {0} was unpacked without a record of its tar; pull its image again")]
    NoTar(DiffId),
    /// An image is not in the store.
    #[error("image {0} not found")]
    ImageNotFound(ImageId),
    /// A snapshot does not exist.
    #[error("snapshot {0} not found")]
    SnapshotNotFound(String),
    /// A snapshot exists already.
    #[error("snapshot {0} exists")]
    SnapshotExists(String),
    /// A key cannot name a snapshot.
    #[error("{0:?} is not a snapshot key: 1 to 128 of [A-Za-z0-9_.-], not starting with a dot")]
    BadKey(String),
    /// A chain has more layers than the kernel stacks.
    #[error("{count} layers exceed the {limit} that overlay can stack")]
    TooManyLayers {
        /// Layers after removal of duplicates.
        count: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// The writable layer was mounted without durability in an earlier boot.
    #[error("snapshot {0} was mounted volatile before the last boot: its content is not trustworthy")]
    StaleVolatile(String),
    /// A record of the store cannot be read.
    #[error("record {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A record of the store was written by a newer version.
    #[error("record {} has version {version}", path.display())]
    RecordVersion {
        /// The file.
        path: PathBuf,
        /// The unknown version.
        version: u32,
    },
    /// The thread that owns the layer mounts has ended.
    #[error("the mount thread has ended")]
    MountThread,
    /// A blob is larger than manifests and configs may be.
    #[error("blob {digest} has {size} bytes, the limit is {limit}")]
    BlobTooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// How a caller may react to an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The thing does not exist.
    NotFound,
    /// The thing exists already.
    AlreadyExists,
    /// The input is wrong; trying again does not help.
    InvalidArgument,
    /// The state of the store or of the node forbids it.
    FailedPrecondition,
    /// A limit or the disk is full.
    ResourceExhausted,
    /// What was stored is damaged.
    DataLoss,
    /// Everything else.
    Internal,
}

impl Error {
    /// The class of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::BlobNotFound(_)
            | Self::LayerNotFound(_)
            | Self::ImageNotFound(_)
            | Self::SnapshotNotFound(_) => Code::NotFound,
            Self::SnapshotExists(_) => Code::AlreadyExists,
            Self::BadKey(_) | Self::DigestMismatch { .. } | Self::Refused => Code::InvalidArgument,
            Self::Tar(tar::Error::Limit { .. })
            | Self::Limit { .. }
            | Self::NoSpace { .. }
            | Self::TooManyLayers { .. }
            | Self::BlobTooLarge { .. } => Code::ResourceExhausted,
            Self::Tar(_) => Code::InvalidArgument,
            Self::Locked { .. } | Self::NoQuota { .. } | Self::Unsupported { .. } | Self::NoTar(_) => {
                Code::FailedPrecondition
            }
            Self::StaleVolatile(_) | Self::Record { .. } | Self::RecordVersion { .. } => Code::DataLoss,
            Self::Io { source, .. } | Self::Mount { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    Code::ResourceExhausted
                }
                _ => Code::Internal,
            },
            Self::MountThread => Code::Internal,
        }
    }

    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { op, path, source: errno.into() }
    }
}

fn bracketed(kernel: &str) -> String {
    if kernel.is_empty() { String::new() } else { format!(" ({kernel})") }
}

/// The result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;
