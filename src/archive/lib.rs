//! Images as files: what `docker save` writes and `docker load` reads.
//!
//! ```text
//! written: one tar that is both                      read: either, plain, gzip or zstd
//!   oci-layout, index.json      OCI layout             index.json ─► index? ─► manifest ─► config, layers
//!   manifest.json, repositories Docker's               manifest.json         ─► config, layers
//!   blobs/sha256/<hex>          config, manifest, layers (not compressed)
//! ```
//! Only what is in the archive is referred to by what we write, so it can be loaded anywhere. What is read is believed
//! when its digest is right: blobs of a layout by their names, layers by the config, which is the image.

mod decode;
mod error;
mod load;
mod members;
mod save;

pub use decode::{Reader, decoder};
pub use error::{Error, Result};
pub use load::{Loaded, Loading, load};
pub use save::{Saved, save};

use pinnace_image::Config;
use pinnace_store::{Digest, ImageId, ImageRecord, Lease, ManifestRecord, NewImage, Store};
use std::sync::Arc;

/// Puts an image into the store that was made here or came in an archive: config and manifests as blobs, then the record.
pub fn record(
    store: &Store,
    lease: &Lease,
    config: &[u8],
    manifests: Vec<ManifestRecord>,
    names: Vec<String>,
) -> Result<Arc<ImageRecord>> {
    let digest = Digest::sha256(config);
    let parsed =
        Config::parse(config).map_err(|source| Error::Json { what: "image config".to_owned(), source })?;
    lease.put_blob(&digest, config)?;
    let image = NewImage {
        id: ImageId::new(digest),
        manifests,
        layers: parsed.rootfs.diff_ids,
        names,
        created: parsed.created,
        user: parsed.config.user,
        labels: parsed.config.labels,
        pinned: false,
    };
    Ok(store.commit_image(lease, image)?)
}
