//! Keys of steps: digests of everything that a step is a function of.

use pinnace_store::{Algorithm, Hasher};

/// Collects what a step is a function of. Parts are framed, so that no two lists of them look the same.
pub(crate) struct Key(Hasher);

impl Key {
    /// Begins with what came before, and with what kind of step it is.
    pub(crate) fn new(before: &str, kind: &str) -> Self {
        let mut key = Self(Hasher::new(Algorithm::Sha256));
        key.add(b"pinnace step 1");
        key.text(before);
        key.text(kind);
        key
    }

    /// A part.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// A part that is text.
    pub(crate) fn text(&mut self, text: &str) {
        self.add(text.as_bytes());
    }

    /// As hex.
    pub(crate) fn finish(self) -> String {
        self.0.finish().hex()
    }
}
