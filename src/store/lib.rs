//! Content, layers, snapshots and images on disk.

pub mod digest;

pub use digest::{Algorithm, ChainId, DiffId, Digest, Hasher, ImageId};
