//! Opening a store: the lock, the choice of the form, and the index rebuilt from disk.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::digest::DiffId;
use crate::dir::{Dir, unique};
use crate::error::{Error, Result};
use crate::layer::{self, Layer, LayerForm, TAR, parse_file_name};
use crate::overlay::Method;
use crate::{Inner, MAX_BLOB_BYTES, Options, Recovered, State, image, probe};

/// Takes the lock of a store, which ends with the file.
pub(crate) fn lock(root: &Dir) -> Result<File> {
    if !root.contains("lock")? {
        match root.create_file("lock") {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => drop(other?),
        }
    }
    let file = root.open_file("lock")?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::Locked { root: root.path().to_owned() }),
        Err(errno) => Err(Error::io("lock", root.entry("lock"))(errno)),
    }
}

/// What the self-test has found.
#[derive(Debug)]
pub(crate) struct Choice {
    /// The form of new layers.
    pub(crate) form: LayerForm,
    /// How overlays are made, whatever the form.
    pub(crate) method: Method,
    /// Why.
    pub(crate) reason: String,
}

/// Runs the self-test.
pub(crate) fn choose(work: &Dir, options: &Options) -> Result<Choice> {
    let name = unique();
    let attempt = |test: fn(&Dir, Method) -> Result<()>, method| {
        let result = work.create(&name).and_then(|dir| test(&dir, method));
        work.remove_tree(&name)?;
        result
    };
    let mut refused = Vec::new();
    let works = options.methods().into_iter().find(|method| match attempt(probe::directory, *method) {
        Ok(()) => true,
        Err(error) => {
            refused.push(format!("no overlay from {method}: {}", chain_text(&error)));
            false
        }
    });
    let Some(method) = works else { return Err(Error::Unsupported { reason: refused.join("; ") }) };
    let (form, reason) = match options.form {
        Some(LayerForm::Directory) => (LayerForm::Directory, "configured".to_owned()),
        wanted => match attempt(probe::tar_erofs, method) {
            Ok(()) => (LayerForm::TarErofs, "file-backed EROFS under overlay works".to_owned()),
            Err(error) if wanted.is_some() => return Err(error),
            Err(error) => (LayerForm::Directory, format!("no file-backed EROFS: {}", chain_text(&error))),
        },
    };
    let reasons: Vec<String> =
        [reason, format!("overlays from {method}")].into_iter().chain(refused).collect();
    Ok(Choice { form, method, reason: reasons.join("; ") })
}

/// An error with its causes, in one line.
fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Rebuilds the index from the file system.
pub(crate) struct Loading<'a> {
    pub(crate) blobs: &'a Dir,
    pub(crate) layers: &'a Dir,
    pub(crate) run_layers: &'a Dir,
    pub(crate) images: &'a Dir,
    pub(crate) trash: &'a Dir,
    pub(crate) verify: bool,
    pub(crate) state: State,
    pub(crate) recovered: Recovered,
}

impl Loading<'_> {
    pub(crate) fn layers(&mut self) -> Result<()> {
        for name in self.layers.names()? {
            let Some(diff_id) = parse_file_name(&name).map(DiffId::new) else {
                self.layers.rename(&name, self.trash, &unique())?;
                continue;
            };
            match self.layer(&name, diff_id) {
                Ok(Some(layer)) => {
                    for blob in layer.blobs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                        self.state.layers_by_blob.insert(*blob, diff_id);
                    }
                    self.state.layers.insert(diff_id, Arc::new(layer));
                }
                Err(error @ Error::RecordVersion { .. }) => return Err(error),
                unusable => {
                    if let Err(error) = unusable {
                        tracing::warn!(layer = %diff_id, error = &error as &dyn std::error::Error, "reading a layer");
                    }
                    tracing::warn!(layer = %diff_id, "removing a layer that is not durable");
                    self.layers.rename(&name, self.trash, &unique())?;
                    self.run_layers.remove_file(&name)?;
                    self.recovered.removed_layers.push(diff_id);
                }
            }
        }
        Ok(())
    }

    fn layer(&self, name: &str, diff_id: DiffId) -> Result<Option<Layer>> {
        let dir = self.layers.open(name)?;
        let Some(layer) = layer::load(&dir, diff_id)? else { return Ok(None) };
        if !layer.is_durable() && !self.run_layers.contains(name)? {
            return Ok(None);
        }
        if self.verify && layer.info.form == LayerForm::TarErofs {
            let tar = dir.open_file(TAR)?;
            let length =
                tar.metadata().map_err(|source| Error::Io { op: "look at", path: dir.entry(TAR), source })?;
            if length.len() != layer.info.tar_bytes {
                return Ok(None);
            }
        }
        Ok(Some(layer))
    }

    pub(crate) fn blobs(&mut self) -> Result<()> {
        for name in self.blobs.names()? {
            let Some(digest) = parse_file_name(&name) else {
                // A temporary file of an interrupted write.
                self.blobs.remove_tree(&name)?;
                continue;
            };
            let size = if self.verify {
                let bytes = self.blobs.read(&name, MAX_BLOB_BYTES as u64)?.unwrap_or_default();
                (digest.same_algorithm_of(&bytes) == digest).then_some(bytes.len() as u64)
            } else {
                let stat = rustix::fs::statat(self.blobs, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(Error::io("look at", self.blobs.entry(&name)))?;
                u64::try_from(stat.st_size).ok()
            };
            match size {
                Some(size) => drop(self.state.blobs.insert(digest, size)),
                None => {
                    tracing::warn!(%digest, "removing a damaged blob");
                    self.blobs.remove_tree(&name)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn images(&mut self) -> Result<()> {
        let (index, changed) = Inner::load_images(self.images)?;
        self.state.images = index;
        for record in changed {
            image::write(self.images, &record)?;
        }
        for record in self.state.images.list() {
            let blobs = record.manifests.iter().map(|manifest| manifest.digest).chain([*record.id.digest()]);
            let whole = record.layers.iter().all(|layer| self.state.layers.contains_key(layer))
                && blobs.into_iter().all(|blob| self.state.blobs.contains_key(&blob));
            if !whole {
                tracing::warn!(image = %record.id, "removing an image that is not whole");
                image::remove(self.images, &record.id)?;
                self.state.images.drop_record(&record.id);
                self.recovered.removed_images.push(record);
            }
        }
        Ok(())
    }
}
