//! From an image in the store to a registry.
//!
//! ```text
//! layer ─► known as a blob (by a manifest of any image here) ─► HEAD there? ──────────────► there already
//!     │                                                         mount from a repository there? ─► mounted
//!     └─► gzip into a file that nobody sees ─► its digest ─► HEAD? ─► mount? ─► upload
//! config ─► HEAD? ─► upload            manifest, last: as it was pulled if every blob is the same, else a new one
//! ```
//! The store keeps layers uncompressed. The same layer always compresses to the same bytes (fixed level, no time, no name), so
//! what was uploaded once is found again by its digest, and what was pulled is found by the digest it had there: unchanged
//! layers are not uploaded again.

mod compress;
mod error;
mod pusher;

pub use error::{Error, ErrorKind};
pub use pusher::{LayerProgress, Phase, Progress, PushRequest, PushedImage, Pusher};
