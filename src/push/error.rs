//! Why an image was not pushed.

use std::path::PathBuf;

use pinnace_store::DiffId;

/// A push failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry, or the way there.
    #[error(transparent)]
    Registry(#[from] pinnace_registry::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] pinnace_store::Error),
    /// A layer could not be compressed.
    #[error("compress layer {diff_id} in {}", dir.display())]
    Compress {
        /// Which.
        diff_id: DiffId,
        /// Where.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A layer is not what it was when it was taken in.
    #[error("layer {0} is damaged: `pinnace system fsck --repair`, then pull or build the image again")]
    Damaged(DiffId),
    /// A manifest could not be written.
    #[error("write the manifest")]
    Manifest(#[source] serde_json::Error),
    /// A reference by digest can only be what has that digest.
    #[error("an image is pushed by tag, not by digest")]
    ByDigest,
    /// The daemon goes down.
    #[error("the push was cancelled")]
    Cancelled,
}

/// What a caller can do about it.
pub use pinnace_registry::ErrorKind;
