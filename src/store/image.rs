//! Images: one record per image, its names inside.
//!
//! ```text
//! images/sha256-<hex>.json     the record of the image with that config digest
//! ```
//!
//! The file system is the truth, the index in memory is rebuilt from it. A name belongs to one
//! image. Every name carries the sequence number of the write that gave it, so when a tag moves the
//! new record is written first and the old one is cleaned after; if that is interrupted, the higher
//! number wins at the next start. An image that has lost its last name stays until it is removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Inner;
use crate::digest::{DiffId, Digest, ImageId};
use crate::dir::{Dir, Flush};
use crate::error::{Error, Result};
use crate::layer::{file_name, parse_file_name};
use crate::lease::Lease;

const RECORD_VERSION: u32 = 1;
const RECORD_BYTES: u64 = 16 << 20;

/// A manifest or index that led to an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// Its digest; the bytes are among the blobs.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
}

/// What is recorded about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    version: u32,
    /// The image: the digest of its config, whose bytes are among the blobs.
    pub id: ImageId,
    /// The manifests, and indexes above them, that it was pulled through.
    pub manifests: Vec<ManifestRecord>,
    /// Its layers, base first.
    pub layers: Vec<DiffId>,
    /// What it takes on disk, in bytes; layers that it shares are included.
    pub size_bytes: u64,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// The user of its config.
    pub user: String,
    /// The labels of its config.
    pub labels: BTreeMap<String, String>,
    /// Must not be collected by anybody but its owner.
    pub pinned: bool,
    names: BTreeMap<String, u64>,
}

impl ImageRecord {
    /// All names, `host/repository:tag` and `host/repository@digest`, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The names with a tag.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| !name.contains('@'))
    }

    /// The names with a digest.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.names().filter(|name| name.contains('@'))
    }
}

/// An image to be recorded. Its config, manifests and layers must be in the store.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The digest of its config.
    pub id: ImageId,
    /// The manifests, and indexes above them.
    pub manifests: Vec<ManifestRecord>,
    /// Its layers, base first.
    pub layers: Vec<DiffId>,
    /// Normalised names: `host/repository:tag` and `host/repository@digest`.
    pub names: Vec<String>,
    /// When it was made, as its config says.
    pub created: Option<String>,
    /// The user of its config.
    pub user: String,
    /// The labels of its config.
    pub labels: BTreeMap<String, String>,
    /// Must not be collected by anybody but its owner.
    pub pinned: bool,
}

/// The images in memory.
#[derive(Debug, Default)]
pub(crate) struct ImageIndex {
    images: BTreeMap<ImageId, Arc<ImageRecord>>,
    names: HashMap<String, ImageId>,
    sequence: u64,
}

impl ImageIndex {
    pub(crate) fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.images.values().cloned().collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ImageRecord>> {
        self.images.values()
    }

    pub(crate) fn by_id(&self, id: &ImageId) -> Option<&Arc<ImageRecord>> {
        self.images.get(id)
    }

    /// By name, by id with or without algorithm, or by an unambiguous beginning of the id.
    pub(crate) fn find(&self, reference: &str) -> Option<&Arc<ImageRecord>> {
        if let Some(id) = self.names.get(reference) {
            return self.images.get(id);
        }
        if let Ok(id) = reference.parse() {
            return self.images.get(&id);
        }
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        if hex.is_empty() || hex.len() > 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        // Ids are sorted by algorithm, then value: those with a common beginning stand together.
        let start: ImageId = format!("sha256:{hex:0<64}").parse().ok()?;
        let mut found = self.images.range(start..).map(|(_, record)| record);
        let first =
            found.next().filter(|record| record.id.to_string()["sha256:".len()..].starts_with(hex))?;
        let second = found.next();
        let ambiguous =
            second.is_some_and(|record| record.id.to_string()["sha256:".len()..].starts_with(hex));
        (!ambiguous).then_some(first)
    }

    fn insert(&mut self, record: ImageRecord) -> Arc<ImageRecord> {
        self.sequence = self.sequence.max(record.names.values().copied().max().unwrap_or(0));
        if let Some(old) = self.images.get(&record.id) {
            for name in old.names.keys() {
                if self.names.get(name) == Some(&record.id) {
                    self.names.remove(name);
                }
            }
        }
        for name in record.names.keys() {
            self.names.insert(name.clone(), record.id);
        }
        let record = Arc::new(record);
        self.images.insert(record.id, Arc::clone(&record));
        record
    }

    pub(crate) fn drop_record(&mut self, id: &ImageId) -> Option<Arc<ImageRecord>> {
        let record = self.images.remove(id)?;
        self.names.retain(|_, owner| owner != id);
        Some(record)
    }
}

fn record_name(id: &ImageId) -> String {
    format!("{}.json", file_name(id.digest()))
}

/// Writes a record in place as a whole. It is always flushed: a rename may overtake the data, and
/// what it replaces was durable.
pub(crate) fn write(images: &Dir, record: &ImageRecord) -> Result<()> {
    let name = record_name(&record.id);
    let bytes =
        serde_json::to_vec(record).map_err(|source| Error::Record { path: images.entry(&name), source })?;
    images.replace(&name, &bytes, Flush::Yes)
}

/// Reads a record from disk.
pub(crate) fn read(images: &Dir, id: &ImageId) -> Result<Option<ImageRecord>> {
    let name = record_name(id);
    let Some(bytes) = images.read(&name, RECORD_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| Error::Record { path: images.entry(&name), source })
}

/// Removes a record. It need not be flushed before the layers go: a record that a power cut brings back without them is
/// removed at the next start.
pub(crate) fn remove(images: &Dir, id: &ImageId) -> Result<()> {
    images.remove_file(&record_name(id)).map(drop)
}

impl Inner {
    /// Reads all records; those that cannot be read are reported and left alone. Returns the
    /// index and the records that lost a name to another one.
    pub(crate) fn load_images(images: &Dir) -> Result<(ImageIndex, Vec<ImageRecord>)> {
        let mut records: Vec<ImageRecord> = Vec::new();
        for name in images.names()? {
            let Some(digest) = name.strip_suffix(".json").and_then(parse_file_name) else {
                // A temporary file of an interrupted write.
                images.remove_file(&name)?;
                continue;
            };
            let bytes = images.read(&name, RECORD_BYTES)?.unwrap_or_default();
            match serde_json::from_slice::<ImageRecord>(&bytes) {
                Ok(record) if record.version > RECORD_VERSION => {
                    return Err(Error::RecordVersion { path: images.entry(&name), version: record.version });
                }
                Ok(record) if record.id == ImageId::new(digest) => records.push(record),
                Ok(_) => {
                    tracing::warn!(image = %digest, "removing a record that is of another image");
                    images.remove_file(&name)?;
                }
                Err(error) => {
                    tracing::warn!(image = %digest, %error, "removing a damaged image record");
                    images.remove_file(&name)?;
                }
            }
        }
        let mut owners: HashMap<String, (u64, ImageId)> = HashMap::new();
        for record in &records {
            for (name, sequence) in &record.names {
                let owner = owners.entry(name.clone()).or_insert((*sequence, record.id));
                if *sequence > owner.0 {
                    *owner = (*sequence, record.id);
                }
            }
        }
        let mut index = ImageIndex::default();
        let mut changed = Vec::new();
        for mut record in records {
            let before = record.names.len();
            let id = record.id;
            record.names.retain(|name, _| owners.get(name).is_none_or(|(_, owner)| *owner == id));
            if record.names.len() != before {
                changed.push(record.clone());
            }
            index.insert(record);
        }
        Ok((index, changed))
    }

    pub(crate) fn commit_image(&self, lease: &Lease, image: NewImage) -> Result<Arc<ImageRecord>> {
        let mut size_bytes = 0;
        let mut counted = BTreeSet::new();
        for layer in &image.layers {
            let info = lease.hold_layer(layer).ok_or(Error::LayerNotFound(*layer))?;
            if counted.insert(*layer) {
                size_bytes += info.disk_bytes;
            }
        }
        for digest in image.manifests.iter().map(|manifest| &manifest.digest).chain([image.id.digest()]) {
            if !lease.hold_blob(digest) {
                return Err(Error::BlobNotFound(*digest));
            }
            size_bytes += self.state().blobs.get(digest).copied().unwrap_or(0);
        }
        let _writer = self.image_writer();
        let state = self.state();
        let sequence = state.images.sequence + 1;
        let known = state.images.by_id(&image.id).cloned();
        let losers: Vec<Arc<ImageRecord>> = state
            .images
            .iter()
            .filter(|other| other.id != image.id && image.names.iter().any(|n| other.names.contains_key(n)))
            .cloned()
            .collect();
        drop(state);
        let mut record = ImageRecord {
            version: RECORD_VERSION,
            id: image.id,
            manifests: image.manifests,
            layers: image.layers,
            size_bytes,
            created: image.created,
            user: image.user,
            labels: image.labels,
            pinned: image.pinned,
            names: BTreeMap::new(),
        };
        if let Some(known) = known {
            record.names = known.names.clone();
            record.pinned |= known.pinned;
            for manifest in &known.manifests {
                if !record.manifests.contains(manifest) {
                    record.manifests.push(manifest.clone());
                }
            }
        }
        record.names.extend(image.names.iter().map(|name| (name.clone(), sequence)));
        write(&self.images, &record)?;
        let record = self.state().images.insert(record);
        for loser in losers {
            let mut loser = (*loser).clone();
            loser.names.retain(|name, _| !image.names.contains(name));
            // The sequence numbers settle it even if this fails, so the image is committed.
            if let Err(error) = write(&self.images, &loser) {
                tracing::warn!(image = %loser.id, error = &error as &dyn std::error::Error, "taking a name from an image");
            }
            self.state().images.insert(loser);
        }
        Ok(record)
    }

    /// Gives an image one more name, taking it from the image that has it.
    pub(crate) fn name_image(&self, lease: &Lease, id: &ImageId, name: &str) -> Result<Arc<ImageRecord>> {
        let known = self.state().images.by_id(id).cloned().ok_or(Error::ImageNotFound(*id))?;
        let known = (*known).clone();
        self.commit_image(
            lease,
            NewImage {
                id: known.id,
                manifests: known.manifests,
                layers: known.layers,
                names: vec![name.to_owned()],
                created: known.created,
                user: known.user,
                labels: known.labels,
                pinned: known.pinned,
            },
        )
    }

    /// Takes one name from the image that has it; the image stays.
    pub(crate) fn unname_image(&self, name: &str) -> Result<Option<Arc<ImageRecord>>> {
        self.change_image(
            |index| index.names.get(name).copied(),
            |record| {
                record.names.remove(name);
            },
        )
    }

    /// Sets or clears the pin of an image.
    pub(crate) fn pin_image(&self, id: &ImageId, pinned: bool) -> Result<Arc<ImageRecord>> {
        self.change_image(|_| Some(*id), |record| record.pinned = pinned)?.ok_or(Error::ImageNotFound(*id))
    }

    fn change_image(
        &self,
        which: impl FnOnce(&ImageIndex) -> Option<ImageId>,
        change: impl FnOnce(&mut ImageRecord),
    ) -> Result<Option<Arc<ImageRecord>>> {
        let _writer = self.image_writer();
        let state = self.state();
        let known = which(&state.images).and_then(|id| state.images.by_id(&id).cloned());
        drop(state);
        let Some(known) = known else { return Ok(None) };
        let mut record = (*known).clone();
        change(&mut record);
        if record != *known {
            write(&self.images, &record)?;
        }
        Ok(Some(self.state().images.insert(record)))
    }

    /// Removes an image with all its names; tells whether it was there.
    pub(crate) fn forget_image(&self, id: &ImageId) -> Result<Option<Arc<ImageRecord>>> {
        let _writer = self.image_writer();
        if self.state().images.by_id(id).is_none() {
            return Ok(None);
        }
        remove(&self.images, id)?;
        let images = Arc::clone(&self.images);
        self.flusher.run(move || {
            if let Err(error) = images.flush() {
                tracing::error!(error = &error as &dyn std::error::Error, "flushing the removal of an image");
            }
        });
        Ok(self.state().images.drop_record(id))
    }
}
