//! Manifests, indexes and configs, by digest.
//!
//! They are verified on the way in and on the way out, so a file that a power cut has torn is the
//! same as no file.

use std::sync::Arc;

use crate::Inner;
use crate::digest::Digest;
use crate::dir::Flush;
use crate::error::{Error, Result};
use crate::layer::file_name;

/// The size that the image and distribution specifications set for manifests.
pub const MAX_BLOB_BYTES: usize = 4 << 20;

impl Inner {
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_BLOB_BYTES {
            return Err(Error::BlobTooLarge { digest: *digest, size: bytes.len(), limit: MAX_BLOB_BYTES });
        }
        let actual = digest.same_algorithm_of(bytes);
        if actual != *digest {
            return Err(Error::DigestMismatch { expected: Box::new(*digest), actual: Box::new(actual) });
        }
        if self.state().blobs.contains_key(digest) {
            return Ok(());
        }
        let name = file_name(digest);
        self.blobs.replace(&name, bytes, self.options.flush())?;
        if self.options.flush() == Flush::No {
            let blobs = Arc::clone(&self.blobs);
            self.flusher.run(move || {
                let flushed = blobs.open_file(&name).and_then(|file| {
                    rustix::fs::fdatasync(&file).map_err(Error::io("flush", blobs.entry(&name)))?;
                    blobs.flush()
                });
                match flushed {
                    Ok(()) => {}
                    // Removed before its turn came.
                    Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => {
                        tracing::error!(
                            blob = name,
                            error = &error as &dyn std::error::Error,
                            "flushing a blob"
                        );
                    }
                }
            });
        }
        self.state().blobs.insert(*digest, bytes.len() as u64);
        Ok(())
    }

    pub(crate) fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.blobs.read(&file_name(digest), MAX_BLOB_BYTES as u64)?;
        let bytes = bytes.ok_or(Error::BlobNotFound(*digest))?;
        if digest.same_algorithm_of(&bytes) != *digest {
            // Torn by a power cut: gone, so that the next pull brings it back.
            tracing::warn!(%digest, "removing a damaged blob");
            self.state().blobs.remove(digest);
            self.blobs.remove_file(&file_name(digest))?;
            return Err(Error::BlobNotFound(*digest));
        }
        Ok(bytes)
    }
}
