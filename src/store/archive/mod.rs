//! The way out: layers, snapshots and whole file systems as tar streams.
//!
//! ```text
//! writable layer of a snapshot ──[tree]──► tar ──► ingest ──► a layer like any other      commit
//! root of a mounted snapshot   ──[tree]──► tar                                            export
//! layer.tar, or dir/ + what tells how its tar looked ──[split]──► the very same tar       save, push
//! ```

pub(crate) mod split;
pub(crate) mod tree;
mod writer;

pub use split::LayerTar;
pub use tree::{Xattrs, xattrs};
pub use writer::{Entry, EntryKind, Writer};
