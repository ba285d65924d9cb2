//! What can be wrong with an archive.

use std::io;

use pinnace_store::{DiffId, Digest};

/// Why an archive cannot be read or written. Every variant names its subject.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or is no tar.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// The output does not take it.
    #[error("write the archive")]
    Write(#[source] io::Error),
    /// It is compressed in a way that we do not read.
    #[error(
        "the archive is compressed by {0}: decompress it first, for example with `{0} -dc FILE | pinnace load`"
    )]
    Compression(&'static str),
    /// It is neither of the known formats.
    #[error(
        "the archive has neither index.json nor manifest.json: it is no image (a root file system is taken by `import`)"
    )]
    NoImage,
    /// It refers to what it does not have.
    #[error("{name} is not in the archive")]
    Missing {
        /// Path in the archive.
        name: String,
    },
    /// A document is not the JSON that was expected.
    #[error("malformed {what}")]
    Json {
        /// Which document.
        what: String,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A document is malformed in other ways.
    #[error("{what}")]
    Document {
        /// Which document.
        what: String,
        /// What is wrong.
        #[source]
        source: pinnace_registry::manifest::Error,
    },
    /// Content is not what its name says.
    #[error("{name} has digest {actual}")]
    Digest {
        /// Path in the archive.
        name: String,
        /// The digest found.
        actual: Box<Digest>,
    },
    /// Numbers of layers differ.
    #[error("image {config} has {diff_ids} layers, the archive lists {layers}")]
    LayerCount {
        /// The config.
        config: String,
        /// In the config.
        diff_ids: usize,
        /// In the archive.
        layers: usize,
    },
    /// A layer cannot be taken in.
    #[error("layer {diff_id}")]
    Layer {
        /// Which.
        diff_id: DiffId,
        /// Why not.
        #[source]
        source: Box<pinnace_store::Error>,
    },
    /// There is nothing for this machine.
    #[error("the archive has no image for {platform}")]
    Platform {
        /// What was looked for.
        platform: String,
    },
    /// More than anybody needs.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What grew too large.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] pinnace_store::Error),
}

/// The result of an operation on an archive.
pub type Result<T, E = Error> = std::result::Result<T, E>;
