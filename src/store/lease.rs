//! Leases: what a running pull, build or load has in hand and the collector must not take.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::Inner;
use crate::digest::{DiffId, Digest};
use crate::error::Result;
use crate::layer::LayerInfo;

/// Protects content until it is dropped. Content that an image refers to by then stays.
pub struct Lease {
    inner: Arc<Inner>,
    number: u64,
    /// A lease is shared by its clones and ends with the last one.
    end: Arc<End>,
}

struct End {
    inner: Arc<Inner>,
    number: u64,
}

/// What one lease protects.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) layers: HashSet<DiffId>,
    pub(crate) blobs: HashSet<Digest>,
}

impl Lease {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        let mut state = inner.state();
        state.next_lease += 1;
        let number = state.next_lease;
        state.leases.insert(number, Held::default());
        drop(state);
        let end = Arc::new(End { inner: Arc::clone(inner), number });
        Self { inner: Arc::clone(inner), number, end }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Protects a layer, if the store has it.
    pub fn hold_layer(&self, diff_id: &DiffId) -> Option<LayerInfo> {
        let mut state = self.inner.state();
        let info = state.layers.get(diff_id).filter(|layer| !layer.is_damaged())?.info.clone();
        state.held(self.number).layers.insert(*diff_id);
        Some(info)
    }

    /// Protects the layer that a compressed blob is known to unpack to, if the store has it.
    ///
    /// Only a blob that was itself unpacked and verified counts: an image config that merely
    /// claims the diffID of somebody else's layer proves nothing (CVE-2026-93318).
    pub fn hold_layer_of_blob(&self, blob: &Digest) -> Option<LayerInfo> {
        let mut state = self.inner.state();
        let layer = state.layers_by_blob.get(blob).copied()?;
        let info = state.layers.get(&layer).filter(|layer| !layer.is_damaged())?.info.clone();
        state.held(self.number).layers.insert(layer);
        Some(info)
    }

    /// Protects a blob, if the store has it.
    pub fn hold_blob(&self, digest: &Digest) -> bool {
        let mut state = self.inner.state();
        let found = state.blobs.contains_key(digest);
        if found {
            state.held(self.number).blobs.insert(*digest);
        }
        found
    }

    /// Stores a manifest, index or config under its digest, verified, and protects it.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        self.inner.state().held(self.number).blobs.insert(*digest);
        self.inner.put_blob(digest, bytes)
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), number: self.number, end: Arc::clone(&self.end) }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.inner.state().leases.remove(&self.number);
    }
}
