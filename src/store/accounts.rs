//! Who holds what, and what it takes: the answer to "where has the disk gone".

use std::collections::HashMap;

use crate::Inner;
use crate::digest::{DiffId, ImageId};
use crate::error::{Error, Result};
use crate::fsck::blobs_of;
use crate::snapshot::SnapshotKind;
use crate::usage::Usage;

/// What keeps a layer from being collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Images that consist of it.
    pub images: Vec<ImageId>,
    /// Snapshots that are made of it.
    pub snapshots: Vec<String>,
    /// Running pulls and builds that have it in hand.
    pub leases: usize,
}

/// What the store takes, each byte once.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// By image.
    pub images: Vec<ImageAccount>,
    /// By snapshot: its writable layer.
    pub snapshots: Vec<SnapshotAccount>,
    /// Layers and blobs of images, each once.
    pub images_total: Usage,
    /// Layers and blobs that belong to no image: of snapshots whose image is gone, of running pulls, or garbage.
    pub without_image: Usage,
    /// What the next collection would give back.
    pub reclaimable: Usage,
}

/// What one image takes.
#[derive(Clone, Debug)]
pub struct ImageAccount {
    /// The image.
    pub id: ImageId,
    /// Its names, sorted.
    pub names: Vec<String>,
    /// What only this image has: its removal gives this back if no snapshot uses it.
    pub own: Usage,
    /// What other images have as well.
    pub shared: Usage,
    /// Snapshots made of exactly its layers.
    pub snapshots: Vec<String>,
}

/// What one snapshot takes.
#[derive(Clone, Debug)]
pub struct SnapshotAccount {
    /// Its key.
    pub key: String,
    /// Its writable layer.
    pub usage: Usage,
}

impl Inner {
    /// What holds a layer.
    pub(crate) fn holders(&self, diff_id: &DiffId) -> Holders {
        let state = self.state();
        let images = state.images.iter().filter(|image| image.layers.contains(diff_id)).map(|image| image.id);
        let snapshots = state.snapshots.iter().filter(|(_, snapshot)| snapshot.layers.contains(diff_id));
        Holders {
            images: images.collect(),
            snapshots: snapshots.map(|(key, _)| key.clone()).collect(),
            leases: state.leases.values().filter(|held| held.layers.contains(diff_id)).count(),
        }
    }

    pub(crate) fn accounts(&self) -> Result<Accounts> {
        let mut accounts = Accounts::default();
        let mut writable = Vec::new();
        {
            let state = self.state();
            // How many images have it; what it takes. Layers and blobs alike, by digest.
            let mut parts: HashMap<String, (u64, Usage, bool)> = HashMap::new();
            for (diff_id, layer) in &state.layers {
                let usage = Usage { bytes: layer.info.disk_bytes, inodes: layer.info.disk_inodes };
                let held = state.snapshots.values().any(|snapshot| snapshot.layers.contains(diff_id))
                    || state.leases.values().any(|held| held.layers.contains(diff_id))
                    || state.cache.values().any(|step| step.layer.as_ref() == Some(diff_id));
                parts.insert(format!("layer {diff_id}"), (0, usage, held));
            }
            for (digest, size) in &state.blobs {
                let held = state.leases.values().any(|held| held.blobs.contains(digest));
                parts.insert(format!("blob {digest}"), (0, Usage { bytes: *size, inodes: 1 }, held));
            }
            let parts_of = |image: &crate::ImageRecord| {
                let mut names: Vec<String> =
                    image.layers.iter().map(|layer| format!("layer {layer}")).collect();
                names.extend(blobs_of(image).map(|blob| format!("blob {blob}")));
                names.sort_unstable();
                names.dedup();
                names
            };
            for image in state.images.iter() {
                for name in parts_of(image) {
                    if let Some((images, _, _)) = parts.get_mut(&name) {
                        *images += 1;
                    }
                }
            }
            for image in state.images.iter() {
                let (mut own, mut shared) = (Usage::default(), Usage::default());
                for name in parts_of(image) {
                    match parts.get(&name) {
                        Some((1, usage, _)) => own += *usage,
                        Some((_, usage, _)) => shared += *usage,
                        None => {}
                    }
                }
                let used = state.snapshots.iter().filter(|(_, snapshot)| snapshot.layers == image.layers);
                accounts.images.push(ImageAccount {
                    id: image.id,
                    names: image.names().map(str::to_owned).collect(),
                    own,
                    shared,
                    snapshots: used.map(|(key, _)| key.clone()).collect(),
                });
            }
            for (images, usage, held) in parts.into_values() {
                match (images, held) {
                    (0, false) => {
                        accounts.without_image += usage;
                        accounts.reclaimable += usage;
                    }
                    (0, true) => accounts.without_image += usage,
                    _ => accounts.images_total += usage,
                }
            }
            let active = state.snapshots.iter().filter(|(_, record)| record.kind == SnapshotKind::Active);
            writable.extend(active.map(|(key, _)| key.clone()));
        }
        for key in writable {
            match self.snapshot_usage(&key) {
                Ok(usage) => accounts.snapshots.push(SnapshotAccount { key, usage }),
                // Removed meanwhile.
                Err(Error::SnapshotNotFound(_)) => {}
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(accounts)
    }
}
