//! Checking a whole store against the digests, and repairing what can be repaired.
//!
//! Nothing is repaired by guessing. Metadata are made again from the tar that they describe; all else that is damaged
//! goes, together with the images that needed it, so that the next pull brings it back. A damaged layer that a snapshot
//! still uses keeps its files, with the mark `damaged`: no pull takes it for good, and a fresh copy replaces it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs;

use crate::digest::{DiffId, Digest, ImageId};
use crate::error::{Error, Result};
use crate::image::{self, ImageRecord};
use crate::layer::check::LayerCheck;
use crate::layer::ingest::Work;
use crate::layer::{DAMAGED, Layer, META, file_name, parse_file_name};
use crate::{Inner, MAX_BLOB_BYTES, gc};

/// Whether a check changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Report only.
    No,
    /// Make again what can be made again, drop what is damaged otherwise.
    Yes,
}

/// What a check of the store has found.
#[derive(Clone, Debug, Default)]
pub struct FsckReport {
    /// Layers that are proven to be what was taken in.
    pub whole_layers: u64,
    /// Layers of a form that does not allow to tell.
    pub unprovable_layers: u64,
    /// Manifests, indexes and configs that have their digest.
    pub whole_blobs: u64,
    /// Images whose record and parts are there.
    pub whole_images: u64,
    /// Everything else.
    pub findings: Vec<Finding>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// What was done.
    pub outcome: Outcome,
    /// Images that need it.
    pub images: Vec<ImageId>,
    /// Snapshots that use it.
    pub snapshots: Vec<String>,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bytes of a layer are not those of its diffID.
    Layer(DiffId),
    /// The file system metadata of a layer are not those of its tar.
    LayerMetadata(DiffId),
    /// The bytes of a manifest, index or config are not those of its digest, or are gone.
    Blob(Digest),
    /// The record of an image on disk is not the one in memory.
    ImageRecord(ImageId),
    /// An image refers to what is not there.
    ImageParts(ImageId),
    /// A directory among the layers that is none.
    StrayLayer(String),
}

/// What was done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it was not asked for.
    Reported,
    /// It was made again.
    Rebuilt,
    /// It is gone, with the images that needed it: pull these again.
    Dropped,
    /// As dropped, but the files stay until the snapshots that use it are gone or a pull replaces it.
    Condemned,
}

impl Inner {
    pub(crate) fn fsck(self: &Arc<Self>, repair: Repair) -> Result<FsckReport> {
        let mut report = FsckReport::default();
        self.fsck_layers(repair, &mut report)?;
        self.fsck_blobs(repair, &mut report)?;
        self.fsck_images(repair, &mut report)?;
        self.fsck_strays(repair, &mut report)?;
        if repair == Repair::Yes && !report.findings.is_empty() {
            self.collect(&gc::Scope::All)?;
        }
        Ok(report)
    }

    fn fsck_layers(self: &Arc<Self>, repair: Repair, report: &mut FsckReport) -> Result<()> {
        let mut layers: Vec<Arc<Layer>> = self.state().layers.values().cloned().collect();
        layers.sort_unstable_by_key(|layer| layer.info.diff_id);
        for layer in layers {
            let diff_id = layer.info.diff_id;
            let check = self.check_layer(&layer);
            // Removed meanwhile.
            if !self.state().layers.get(&diff_id).is_some_and(|now| Arc::ptr_eq(now, &layer)) {
                continue;
            }
            let check = if layer.is_damaged() { LayerCheck::Damaged } else { check? };
            let fault = match check {
                LayerCheck::Whole => {
                    report.whole_layers += 1;
                    continue;
                }
                LayerCheck::Unknown => {
                    report.unprovable_layers += 1;
                    continue;
                }
                LayerCheck::Damaged => Fault::Layer(diff_id),
                LayerCheck::DamagedMetadata => Fault::LayerMetadata(diff_id),
            };
            let holders = self.holders(&diff_id);
            let outcome = match (repair, &fault) {
                (Repair::No, _) => Outcome::Reported,
                (Repair::Yes, Fault::LayerMetadata(_)) => {
                    self.rebuild_metadata(&layer)?;
                    Outcome::Rebuilt
                }
                (Repair::Yes, _) => {
                    self.condemn(&layer)?;
                    for image in &holders.images {
                        self.forget_image(image)?;
                    }
                    if holders.snapshots.is_empty() { Outcome::Dropped } else { Outcome::Condemned }
                }
            };
            report.findings.push(Finding {
                fault,
                outcome,
                images: holders.images,
                snapshots: holders.snapshots,
            });
        }
        Ok(())
    }

    /// Marks a layer so that nobody takes it for good any more.
    fn condemn(&self, layer: &Layer) -> Result<()> {
        layer.damaged.store(true, Ordering::Release);
        let name = file_name(layer.info.diff_id.digest());
        if !self.layers.contains(&name)? {
            return Ok(());
        }
        let dir = self.layers.open(&name)?;
        dir.mark(DAMAGED)?;
        dir.flush()
    }

    /// Makes the metadata of a layer from its tar. Mounts that are in use go on with the old ones.
    fn rebuild_metadata(self: &Arc<Self>, layer: &Layer) -> Result<()> {
        let work = Work::new(self)?;
        let fresh: File = match self.remade_metadata(layer, &work)? {
            Some((fresh, _)) => fresh,
            None => return Ok(()),
        };
        fs::fdatasync(&fresh).map_err(Error::io("flush", work.dir.entry(META)))?;
        let dir = self.layers.open(&file_name(layer.info.diff_id.digest()))?;
        work.dir.rename(META, &dir, META)?;
        dir.flush()?;
        self.release_layer(layer)
    }

    fn fsck_blobs(&self, repair: Repair, report: &mut FsckReport) -> Result<()> {
        let mut digests: Vec<Digest> = self.state().blobs.keys().copied().collect();
        digests.sort_unstable();
        for digest in digests {
            let bytes = self.blobs.read(&file_name(&digest), MAX_BLOB_BYTES as u64);
            let whole = matches!(&bytes, Ok(Some(bytes)) if digest.same_algorithm_of(bytes) == digest);
            if whole {
                report.whole_blobs += 1;
                continue;
            }
            let images: Vec<ImageId> = {
                let state = self.state();
                if !state.blobs.contains_key(&digest) {
                    continue;
                }
                state.images.iter().filter(|image| needs_blob(image, &digest)).map(|image| image.id).collect()
            };
            let mut outcome = Outcome::Reported;
            if repair == Repair::Yes {
                self.state().blobs.remove(&digest);
                self.blobs.remove_file(&file_name(&digest))?;
                for image in &images {
                    self.forget_image(image)?;
                }
                outcome = Outcome::Dropped;
            }
            report.findings.push(Finding {
                fault: Fault::Blob(digest),
                outcome,
                images,
                snapshots: Vec::new(),
            });
        }
        Ok(())
    }

    fn fsck_images(&self, repair: Repair, report: &mut FsckReport) -> Result<()> {
        let images = self.state().images.list();
        for record in images {
            // Records change only under this lock, so file and memory are one.
            let writer = self.image_writer();
            let state = self.state();
            if !state.images.by_id(&record.id).is_some_and(|now| Arc::ptr_eq(now, &record)) {
                continue;
            }
            let whole = record.layers.iter().all(|layer| state.layers.contains_key(layer))
                && blobs_of(&record).all(|blob| state.blobs.contains_key(&blob));
            drop(state);
            let on_disk = image::read(&self.images, &record.id);
            let same = matches!(&on_disk, Ok(Some(stored)) if *stored == *record);
            let (fault, outcome) = match (whole, same, repair) {
                (true, true, _) => {
                    report.whole_images += 1;
                    continue;
                }
                (true, false, Repair::Yes) => {
                    image::write(&self.images, &record)?;
                    (Fault::ImageRecord(record.id), Outcome::Rebuilt)
                }
                (true, false, Repair::No) => (Fault::ImageRecord(record.id), Outcome::Reported),
                (false, _, Repair::No) => (Fault::ImageParts(record.id), Outcome::Reported),
                (false, _, Repair::Yes) => {
                    drop(writer);
                    self.forget_image(&record.id)?;
                    (Fault::ImageParts(record.id), Outcome::Dropped)
                }
            };
            let images = vec![record.id];
            report.findings.push(Finding { fault, outcome, images, snapshots: Vec::new() });
        }
        Ok(())
    }

    fn fsck_strays(&self, repair: Repair, report: &mut FsckReport) -> Result<()> {
        // Layers come and go while the index is locked.
        let state = self.state();
        for name in self.layers.names()? {
            let known = parse_file_name(&name).map(DiffId::new);
            if known.is_some_and(|diff_id| state.layers.contains_key(&diff_id)) {
                continue;
            }
            let mut outcome = Outcome::Reported;
            if repair == Repair::Yes {
                let doomed = crate::dir::unique();
                self.layers.rename(&name, &self.trash, &doomed)?;
                self.sweep(doomed);
                outcome = Outcome::Dropped;
            }
            let fault = Fault::StrayLayer(name);
            report.findings.push(Finding { fault, outcome, images: Vec::new(), snapshots: Vec::new() });
        }
        Ok(())
    }
}

/// The manifests, indexes and the config of an image.
pub(crate) fn blobs_of(image: &ImageRecord) -> impl Iterator<Item = Digest> {
    image.manifests.iter().map(|manifest| manifest.digest).chain([*image.id.digest()])
}

fn needs_blob(image: &ImageRecord, digest: &Digest) -> bool {
    blobs_of(image).any(|blob| blob == *digest)
}
