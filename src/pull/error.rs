//! Why an image could not be pulled.

use pinnace_store::Digest;

/// What a caller can do about an error; the daemon maps it to a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The registry or the way to it.
    Registry(pinnace_registry::ErrorKind),
    /// What arrived is not an image that can be unpacked.
    InvalidImage,
    /// What arrived is not what was asked for; another attempt may help.
    DataLoss,
    /// A limit or the disk is full.
    ResourceExhausted,
    /// The pull was given up by everyone who waited for it, or the program is ending.
    Cancelled,
    /// The store or the node.
    Internal,
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] pinnace_registry::Error),
    /// A layer's bytes cannot be used.
    #[error("layer {digest}")]
    Layer {
        /// Its blob.
        digest: Digest,
        /// Why.
        #[source]
        source: LayerProblem,
    },
    /// What was kept of a layer cannot be read.
    #[error("unfinished layer {digest}")]
    Partial {
        /// Its blob.
        digest: Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The image's config is not JSON of the right shape.
    #[error("image config {digest}")]
    Config {
        /// The config.
        digest: Digest,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The store could not record the image.
    #[error("record image")]
    Store(#[from] pinnace_store::Error),
    /// The pull ended without a result.
    #[error("pull was cancelled")]
    Cancelled,
}

/// What is wrong with a layer that arrived.
#[derive(Debug, thiserror::Error)]
pub enum LayerProblem {
    /// The compressed bytes are not those of the manifest.
    #[error("content has digest {actual}")]
    Blob {
        /// What came.
        actual: Digest,
    },
    /// The config names another layer for a blob that was unpacked here before.
    #[error("blob unpacks to {actual}, not to {expected} as the config claims")]
    Claim {
        /// By the config.
        expected: Box<Digest>,
        /// By our own doing.
        actual: Box<Digest>,
    },
    /// The compressed stream is damaged.
    #[error("decompress {format}")]
    Compression {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A compression that is not used for images.
    #[error("unsupported compression {0}")]
    Unsupported(&'static str),
    /// The store refuses the layer.
    #[error("unpack")]
    Unpack(#[source] Box<pinnace_store::Error>),
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry(error) => ErrorKind::Registry(error.kind()),
            Self::Layer { source, .. } => match source {
                LayerProblem::Blob { .. } => ErrorKind::DataLoss,
                LayerProblem::Claim { .. }
                | LayerProblem::Compression { .. }
                | LayerProblem::Unsupported(_) => ErrorKind::InvalidImage,
                LayerProblem::Unpack(error) => of_store(error),
            },
            Self::Config { .. } => ErrorKind::InvalidImage,
            Self::Store(error) => of_store(error),
            Self::Partial { .. } => ErrorKind::Internal,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

impl Error {
    /// Whether the bytes were wrong, so that another server may have better ones.
    pub(crate) fn is_rubbish(&self) -> bool {
        match self.kind() {
            ErrorKind::DataLoss | ErrorKind::Registry(pinnace_registry::ErrorKind::DataLoss) => true,
            ErrorKind::InvalidImage => matches!(self, Self::Layer { .. }),
            _ => false,
        }
    }
}

fn of_store(error: &pinnace_store::Error) -> ErrorKind {
    match error.code() {
        pinnace_store::Code::InvalidArgument => ErrorKind::InvalidImage,
        pinnace_store::Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        _ => ErrorKind::Internal,
    }
}
