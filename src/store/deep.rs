//! Chains deeper than overlayfs stacks.
//!
//! Layers in EROFS form become one file system over all their tars ([`crate::layer::merge`]):
//!
//! ```text
//! chains/merged-<hex of the chain>     its metadata, made when first needed and again after a boot
//! ```
//!
//! Unpacked layers are stacked in two steps: the lower half of the chain is an overlay of its own, which is one layer of
//! the other. EROFS on files counts as one step of stacking already and the kernel allows two, hence the difference.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use crate::chain::Stack;
use crate::error::{Error, Result};
use crate::layer::erofs::{self, Device, Identity};
use crate::layer::ingest::Work;
use crate::layer::merge::Merge;
use crate::layer::{LayerForm, META};
use crate::overlay::{Lower, MAX_LOWERS, Method, Overlay, Place};
use crate::{Inner, mounts};

/// One place is for a fixup.
pub(crate) const MAX_STACKED: usize = MAX_LOWERS - 1;
/// Two overlays of that many, one place of the upper one being for the lower one.
const MAX_DIRECTORIES: usize = 2 * MAX_STACKED - 1;
/// EROFS numbers its devices with 16 bits, and finds its root within 2 MiB, behind the table of devices.
const MAX_MERGED: usize = 16_000;

/// The merged file systems that are open, by name.
pub(crate) type Merged = HashMap<String, Arc<OwnedFd>>;

/// How a chain is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Assembly {
    /// One overlay of all layers.
    Stacked,
    /// One EROFS of all layers.
    Merged,
    /// An overlay in an overlay.
    Nested,
}

impl Assembly {
    pub(crate) fn of(stack: &Stack) -> Result<Self> {
        let count = stack.layers.len();
        if count <= MAX_STACKED {
            return Ok(Self::Stacked);
        }
        let all = |form| stack.layers.iter().all(|layer| layer.info.form == form);
        if all(LayerForm::TarErofs) && count <= MAX_MERGED {
            return Ok(Self::Merged);
        }
        if all(LayerForm::Directory) && count <= MAX_DIRECTORIES {
            return Ok(Self::Nested);
        }
        let limit = if all(LayerForm::TarErofs) {
            MAX_MERGED
        } else if all(LayerForm::Directory) {
            MAX_DIRECTORIES
        } else {
            MAX_STACKED
        };
        Err(Error::TooManyLayers { count, limit })
    }
}

/// The name of the merged file system of a stack.
pub(crate) fn merged_name(stack: &Stack) -> String {
    format!("merged-{}", stack.name())
}

impl Inner {
    /// The root of the merged file system of a stack, made and mounted if it is not yet.
    pub(crate) fn merged_root(self: &Arc<Self>, stack: &Stack) -> Result<Arc<OwnedFd>> {
        let name = merged_name(stack);
        let mut known = self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = known.get(&name) {
            return Ok(Arc::clone(root));
        }
        let mounts = self.mounts()?;
        let root = match mounts.clone_of(&name)? {
            Some(mount) => mount,
            None => {
                let (meta, tars) = self.merged_files(&name, stack)?;
                mounts.attach(&name, mounts::mount_erofs(&name, &meta, &tars)?)?
            }
        };
        let root = Arc::new(root);
        known.insert(name, Arc::clone(&root));
        Ok(root)
    }

    /// A clone of it whose attributes the caller may change.
    pub(crate) fn merged_clone(self: &Arc<Self>, stack: &Stack) -> Result<OwnedFd> {
        self.merged_root(stack)?;
        self.mounts()?.clone_of(&merged_name(stack))?.ok_or(Error::MountThread)
    }

    fn merged_files(self: &Arc<Self>, name: &str, stack: &Stack) -> Result<(File, Vec<File>)> {
        let base_first = || stack.layers.iter().rev();
        if self.chains.contains(name)? {
            let tars = base_first().map(|layer| self.layer_file(layer, crate::layer::TAR));
            return Ok((self.chains.open_file(name)?, tars.collect::<Result<_>>()?));
        }
        let mut merge = Merge::new();
        let (mut tars, mut devices) = (Vec::new(), Vec::new());
        for (number, layer) in base_first().enumerate() {
            let diff_id = layer.info.diff_id;
            let (tree, tar) = self.parsed(layer)?.ok_or(Error::LayerNotFound(diff_id))?;
            merge.put(tree, u16::try_from(number).unwrap_or(u16::MAX));
            tars.push(tar);
            devices.push(Device { tag: diff_id.hex(), bytes: layer.info.tar_bytes });
        }
        let work = Work::new(self)?;
        let meta = work.dir.create_file(META)?;
        // The first half of the chain's digest.
        let hex = name.trim_start_matches("merged-");
        let mut uuid = [0; 16];
        for (byte, digits) in uuid.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte =
                std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 16).ok()).unwrap_or(0);
        }
        let handles: Vec<&File> = tars.iter().collect();
        erofs::write(&merge.finish(), &Identity { uuid, devices }, &handles, &meta)
            .map_err(|error| error.at(work.dir.entry(META)))?;
        work.dir.rename(META, &self.chains, name)?;
        Ok((self.chains.open_file(name)?, tars))
    }

    /// Stacks the lower half of a chain by itself, so that the rest fits. The fixup is the top of both: directories in it
    /// are there in the whole chain too, and whiteouts are hidden only where overlayfs merges directories.
    pub(crate) fn nested(&self, key: &str, lowers: &mut Vec<Lower>, fixup: Option<&Lower>) -> Result<()> {
        let mut below = lowers.split_off(MAX_STACKED - 1);
        if let Some(fixup) = fixup {
            below.insert(0, fixup.clone());
        }
        let overlay =
            Overlay { subject: key, lowers: &below, upper: None, read_only: true, selinux_context: None };
        let mount = match self.method {
            Method::Descriptors => overlay.mount_descriptors()?,
            Method::Paths => overlay.mount_paths(&*self.mounts()?, &self.root)?,
        };
        lowers.push(Lower { root: Arc::new(mount), place: Place::Nowhere });
        Ok(())
    }
}
