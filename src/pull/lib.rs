//! From a reference to an image in the store, in one streaming pass.
//!
//! ```text
//! registry ──► bytes ──► sha256(blob) ──► inflate ──► sha256(diffID), tar parser, disk
//!  async      bounded    └── one thread ──────────┘   └── another thread (store) ────┘
//!             memory
//! ```
//!
//! Layers of an image run side by side, the largest first; each has two threads while it is on
//! its way, so that one fat layer uses two cores too. What waits between network and inflate comes
//! out of one budget for the node ([`Options::memory_bytes`]). Nothing is written twice and nothing
//! is read again.
//!
//! A layer that comes slowly is fetched over several connections ([`ranges`]). What has arrived of a layer when its
//! pull fails, is cancelled or dies with the program is where the next attempt begins ([`partial`]).
//!
//! A layer is fetched unless this very blob was unpacked and verified here before. Pulls of the
//! same reference with the same credentials are one operation, pulls that share a layer share its
//! transfer ([`flight`]). Who stops waiting leaves; the last one to leave cancels, and the store
//! drops what was unfinished. Layers that were finished stay for [`Options::grace`], so that the
//! next attempt continues.

mod compression;
mod error;
mod flight;
mod keep;
mod layer;
mod partial;
mod progress;
mod puller;
mod ranges;
mod running;

pub use error::{Error, ErrorKind};
pub use progress::{LayerProgress, Meter, Phase, Progress};
pub use puller::{Options, Pull, PullRequest, PulledImage, Puller};
pub use running::{Running, Totals};
