//! Collection: what nothing refers to goes away.
//!
//! Roots are images, snapshots, remembered steps of builds and leases. A layer or blob that no root reaches is taken out of
//! the index and moved to `trash/` while the index is locked, then unlinked; nobody can find it in
//! between. Layer mounts end first, or the kernel would keep the blocks. The few large files of an
//! EROFS layer are unlinked in the background and count until they are ([`crate::dying`]); the many
//! of an unpacked one take longer than anybody should be kept in the dark, so they go first.

use std::collections::HashSet;
use std::sync::Arc;

use crate::Inner;
use crate::digest::{DiffId, Digest};
use crate::dir::unique;
use crate::error::{Error, Result};
use crate::image::ImageRecord;
use crate::layer::{Layer, LayerForm, TAR, file_name};
use crate::usage::Usage;

/// What a collection has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers removed.
    pub layers: u64,
    /// Manifests, indexes and configs removed.
    pub blobs: u64,
    /// Space and inodes given back.
    pub freed: Usage,
}

/// What a collection looks at.
pub(crate) enum Scope<'a> {
    /// Everything in the store.
    All,
    /// What one removed image referred to.
    Image(&'a ImageRecord),
}

impl Inner {
    pub(crate) fn collect(&self, scope: &Scope<'_>) -> Result<Collected> {
        let mut collected = Collected::default();
        let (mut trash, mut dying) = (Vec::new(), Vec::new());
        let mut state = self.state();
        let mut layers: HashSet<DiffId> = HashSet::new();
        let mut blobs: HashSet<Digest> = HashSet::new();
        for image in state.images.iter() {
            layers.extend(&image.layers);
            blobs.extend(image.manifests.iter().map(|manifest| manifest.digest));
            blobs.insert(*image.id.digest());
        }
        for snapshot in state.snapshots.values() {
            layers.extend(&snapshot.layers);
        }
        layers.extend(state.cache.values().filter_map(|step| step.layer));
        for held in state.leases.values() {
            layers.extend(&held.layers);
            blobs.extend(&held.blobs);
        }
        let (mut dead_layers, mut dead_blobs): (Vec<DiffId>, Vec<Digest>) = match scope {
            Scope::All => (state.layers.keys().copied().collect(), state.blobs.keys().copied().collect()),
            Scope::Image(image) => (
                image.layers.clone(),
                image.manifests.iter().map(|m| m.digest).chain([*image.id.digest()]).collect(),
            ),
        };
        dead_layers.retain(|layer| !layers.contains(layer));
        dead_blobs.retain(|blob| !blobs.contains(blob));
        let mut first_error = None;
        for diff_id in dead_layers {
            let Some(layer) = state.layers.remove(&diff_id) else { continue };
            for blob in layer.blobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
                state.layers_by_blob.remove(blob);
            }
            match self.discard_layer(&layer) {
                Ok(name) => {
                    let usage = Usage { bytes: layer.info.disk_bytes, inodes: layer.info.disk_inodes };
                    match layer.info.form {
                        LayerForm::TarErofs => dying.push((name, self.dying.add(usage))),
                        LayerForm::Directory => trash.push(name),
                    }
                    collected.layers += 1;
                    collected.freed += usage;
                }
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        for digest in dead_blobs {
            let Some(size) = state.blobs.remove(&digest) else { continue };
            match self.blobs.remove_file(&file_name(&digest)) {
                Ok(_) => {
                    collected.blobs += 1;
                    collected.freed += Usage { bytes: size, inodes: 1 };
                }
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        if matches!(scope, Scope::All) {
            let used = state
                .snapshots
                .values()
                .flat_map(|s| [s.fixup.clone(), s.merged.clone()])
                .flatten()
                .collect();
            if let Err(error) = self.discard_fixups(&used, &mut trash) {
                first_error.get_or_insert(error);
            }
        }
        drop(state);
        for (name, part) in dying {
            let trash = Arc::clone(&self.trash);
            self.unlinker.run(move || {
                if let Err(error) = trash.remove_tree(&name) {
                    tracing::error!(name, error = &error as &dyn std::error::Error, "unlinking a layer");
                }
                drop(part);
            });
        }
        for name in trash {
            if let Err(error) = self.trash.remove_tree(&name) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(collected), Err)
    }

    /// Ends the mount of a layer and moves its directory to the trash; answers its name there.
    fn discard_layer(&self, layer: &Arc<Layer>) -> Result<String> {
        let name = file_name(layer.info.diff_id.digest());
        self.release_layer(layer)?;
        self.run_layers.remove_file(&name)?;
        let doomed = unique();
        match self.layers.rename(&name, &self.trash, &doomed) {
            // Somebody has removed it behind our back: what was wanted.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            moved => moved?,
        }
        Ok(doomed)
    }

    /// Ends the mount of a layer, if there is one.
    pub(crate) fn release_layer(&self, layer: &Layer) -> Result<()> {
        let mut root = layer.root.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *root = None;
        if layer.info.form == LayerForm::TarErofs
            && let Some(mounts) = self.mounts_if_open()?
        {
            mounts.detach(&file_name(layer.info.diff_id.digest()))?;
        }
        Ok(())
    }

    /// Moves the directories of chains that no snapshot uses to the trash.
    fn discard_fixups(&self, used: &HashSet<String>, trash: &mut Vec<String>) -> Result<()> {
        let mut known = self.fixups.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.retain(|name, _| used.contains(name));
        let mut merged = self.merged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for name in self.chains.names()? {
            if !used.contains(&name) {
                if merged.remove(&name).is_some()
                    && let Some(mounts) = self.mounts_if_open()?
                {
                    mounts.detach(&name)?;
                }
                let doomed = unique();
                self.chains.rename(&name, &self.trash, &doomed)?;
                trash.push(doomed);
            }
        }
        Ok(())
    }

    /// Drops the cached pages of the tars that snapshots are made of; EROFS keeps its own.
    pub(crate) fn drop_double_pages(&self) {
        let state = self.state();
        let used: HashSet<DiffId> = state.snapshots.values().flat_map(|s| s.layers.iter().copied()).collect();
        let layers: Vec<Arc<Layer>> =
            used.iter().filter_map(|diff_id| state.layers.get(diff_id).cloned()).collect();
        drop(state);
        for layer in
            layers.iter().filter(|layer| layer.info.form == LayerForm::TarErofs && layer.is_durable())
        {
            // Only advice: where it cannot be given, memory is used twice.
            let advised = self
                .layer_file(layer, TAR)
                .map(|tar| rustix::fs::fadvise(&tar, 0, None, rustix::fs::Advice::DontNeed));
            if !matches!(advised, Ok(Ok(()))) {
                tracing::debug!(layer = %layer.info.diff_id, "pages of the tar stay cached");
            }
        }
    }

    /// Releases the mounts of layers that no snapshot uses; answers how many.
    pub(crate) fn release_idle(&self) -> Result<usize> {
        let Some(mounts) = self.mounts_if_open()? else { return Ok(0) };
        let state = self.state();
        let used: HashSet<String> = state
            .snapshots
            .values()
            .flat_map(|snapshot| snapshot.layers.iter())
            .map(|layer| file_name(layer.digest()))
            .chain(state.snapshots.values().filter_map(|snapshot| snapshot.merged.clone()))
            .collect();
        let mut released = 0;
        for name in mounts.names()? {
            if used.contains(&name) {
                continue;
            }
            let diff_id = crate::layer::parse_file_name(&name).map(DiffId::new);
            if let Some(layer) = diff_id.and_then(|diff_id| state.layers.get(&diff_id)) {
                let mut root = layer.root.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *root = None;
            }
            self.merged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&name);
            mounts.detach(&name)?;
            released += 1;
        }
        Ok(released)
    }

    pub(crate) fn check_space(&self) -> Result<()> {
        let stat = rustix::fs::fstatvfs(&self.root)
            .map_err(Error::io("look at the file system of", self.root.path()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve_bytes = self.options.limits.reserve_bytes;
        if free_bytes < reserve_bytes {
            return Err(Error::NoSpace { root: self.root.path().to_owned(), free_bytes, reserve_bytes });
        }
        Ok(())
    }
}
