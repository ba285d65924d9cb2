//! How far a pull has come.

use pinnace_store::Digest;

/// What is happening to a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Waiting,
    /// Its bytes arrive and are unpacked.
    Fetching,
    /// All bytes are here; the last of them are being unpacked and verified.
    Finishing,
    /// It is in the store.
    Done,
    /// It was in the store before.
    Present,
}

/// How far one layer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer's blob.
    pub digest: Digest,
    /// Compressed bytes that have arrived.
    pub done_bytes: u64,
    /// Compressed bytes that there are.
    pub total_bytes: u64,
    /// What is happening.
    pub phase: Phase,
}

/// How far a pull has come; no layers before the manifest is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The layers, base first, each blob once.
    pub layers: Vec<LayerProgress>,
}

impl Progress {
    /// Compressed bytes that have arrived or were here before.
    pub fn done_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.done_bytes).sum()
    }

    /// Compressed bytes of the image.
    pub fn total_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.total_bytes).sum()
    }
}
