//! Content, layers, snapshots and images on disk.
//!
//! ```text
//! <root>, 0700                       e.g. /var/lib/pinnace/store
//!   lock                             held while a store is open
//!   blobs/sha256-<hex>               manifests, indexes, configs             [`blob`]
//!   layers/sha256-<hex>/             one layer, keyed by diffID              [`layer`]
//!   images/sha256-<hex>.json         one image with its names                [`image`]
//!   snapshots/<key>/                 the file system of one container        [`snapshot`]
//!   cache/<key>                      what a step of a build has made         [`cache`]
//!   chains/<hex>/                    what a chain needs beyond its layers    [`chain`]
//!   empty/ empty-too/                lower layers with nothing in them
//!   work/                            unfinished; emptied at start
//!   trash/                           being removed; emptied at start
//! <run>, 0700, gone after a boot     e.g. /run/pinnace/store
//!   layers/sha256-<hex>              not durable yet, but whole: of this boot
//!   volatile/<key>                   snapshots that were mounted volatile in this boot
//!   verified                         the content was checked in this boot
//!   pin/                             pins the mount namespace of the layers  [`mounts`]
//! ```
//!
//! Invariants:
//! 1. Nothing is visible before it is complete and verified: it is made under `work/` and renamed.
//! 2. The file system is the truth; what is in memory can be rebuilt from it at any time.
//! 3. A layer exists if it has its durable marker or is registered in the run directory. After a
//!    power cut it is whole or absent, never torn ([`durable`]).
//! 4. Nothing is mounted where other processes see it, except the one pin.
//!
//! All calls block and may be made from any thread. Lock order: image writer, index, layer root,
//! fixups or merged; the index is held for lookups, renames and requests to the mount thread only.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests look at files as anybody does"))]

mod accounts;
pub mod archive;
mod assembly;
mod blob;
mod cache;
mod chain;
mod commit;
mod deep;
pub mod digest;
mod dir;
mod durable;
mod dying;
mod error;
mod fsck;
mod gc;
mod image;
mod layer;
mod lease;
mod load;
mod mounts;
mod overlay;
mod probe;
mod quota;
mod snapshot;
mod tar;
mod usage;

#[cfg(test)]
mod testsuite;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use accounts::{Accounts, Holders, ImageAccount, SnapshotAccount};
pub use archive::LayerTar;
pub use blob::MAX_BLOB_BYTES;
pub use cache::CachedStep;
pub use commit::{CommitOptions, export};
pub use digest::{Algorithm, ChainId, DiffId, Digest, Hasher, ImageId};
pub use error::{Code, Error, Result};
pub use fsck::{Fault, Finding, FsckReport, Outcome, Repair};
pub use gc::Collected;
pub use image::{ImageRecord, ManifestRecord, NewImage};
pub use layer::check::LayerCheck;
pub use layer::ingest::LayerIngest;
pub use layer::{LayerForm, LayerInfo};
pub use lease::Lease;
pub use snapshot::{Access, MountOptions, Persistence, SnapshotKind};
pub use tar::Error as TarError;
pub use usage::Usage;

use crate::dir::{Dir, Flush, unique};
use crate::durable::Background;
use crate::dying::Dying;
use crate::image::ImageIndex;
use crate::layer::ingest::Work;
use crate::layer::{Layer, TAR, file_name, parse_file_name};
use crate::lease::Held;
use crate::load::{Choice, Loading};
use crate::mounts::Mounts;
use crate::overlay::Method;
use crate::quota::Projects;
use crate::snapshot::SnapshotRecord;

const LAYERS: &str = "layers";
const SNAPSHOTS: &str = "snapshots";
const CHAINS: &str = "chains";
const CACHE: &str = "cache";
/// How long a question about usage waits for files that are being unlinked.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(500);
const EMPTY: [&str; 2] = ["empty", "empty-too"];

/// How much one layer may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Uncompressed bytes.
    pub layer_bytes: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Components of one path.
    pub depth: usize,
    /// Payload bytes of one tar extension header.
    pub extension_bytes: u64,
    /// Data regions of one sparse file.
    pub sparse_segments: usize,
    /// Bytes of names, link targets, attributes and sparse maps together: what is kept in memory.
    pub metadata_bytes: u64,
    /// Bytes that have to stay free on the file system.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            entries: 2_000_000,
            path_bytes: 4095,
            depth: 1024,
            extension_bytes: 1 << 20,
            sparse_segments: 64 << 10,
            metadata_bytes: 256 << 20,
            reserve_bytes: 64 << 20,
        }
    }
}

impl Limits {
    pub(crate) fn header(&self) -> tar::HeaderLimits {
        tar::HeaderLimits { extension_bytes: self.extension_bytes, sparse_segments: self.sparse_segments }
    }

    pub(crate) fn tree(&self) -> layer::tree::TreeLimits {
        layer::tree::TreeLimits {
            entries: self.entries,
            path_bytes: self.path_bytes,
            depth: self.depth,
            metadata_bytes: self.metadata_bytes,
        }
    }
}

/// When a new layer has to survive a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the ingest is finished.
    #[default]
    Eager,
    /// Within seconds: a pull does not wait for the disk, and a layer that was not flushed in time
    /// is absent after the power cut.
    Background,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where content lives. Its file system must not be an overlay.
    pub root: PathBuf,
    /// Where traces of this boot live; must be empty after a boot.
    pub run: PathBuf,
    /// The form of new layers; `None` lets the self-test decide.
    pub form: Option<LayerForm>,
    /// What a layer may ask for.
    pub limits: Limits,
    /// When a new layer has to survive a power cut.
    pub durability: Durability,
    /// Bytes that a new writable layer may take; needs project quota on the file system of the root.
    pub writable_limit: Option<u64>,
    /// Tests make overlays in the way that older kernels want.
    #[cfg(test)]
    method: Option<overlay::Method>,
}

impl Options {
    /// Defaults for a store at these two places.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
            form: None,
            limits: Limits::default(),
            durability: Durability::default(),
            writable_limit: None,
            #[cfg(test)]
            method: None,
        }
    }

    /// The methods that the self-test tries, in this order.
    fn methods(&self) -> Vec<Method> {
        #[cfg(test)]
        if let Some(method) = self.method {
            return vec![method];
        }
        vec![Method::Descriptors, Method::Paths]
    }

    fn flush(&self) -> Flush {
        match self.durability {
            Durability::Eager => Flush::Yes,
            Durability::Background => Flush::No,
        }
    }
}

/// What was found and cleaned when the store was opened.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Layers that were neither durable nor of this boot, or damaged.
    pub removed_layers: Vec<DiffId>,
    /// Images that such layers or damaged blobs belonged to, with their names: to be pulled again.
    pub removed_images: Vec<Arc<ImageRecord>>,
}

/// A store. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    options: Options,
    form: LayerForm,
    form_reason: String,
    method: Method,
    recovered: Recovered,
    root: Dir,
    blobs: Arc<Dir>,
    layers: Arc<Dir>,
    images: Arc<Dir>,
    snapshots: Dir,
    chains: Dir,
    cache: Dir,
    empty: [Dir; 2],
    work: Dir,
    trash: Arc<Dir>,
    run: Dir,
    run_layers: Arc<Dir>,
    run_volatile: Dir,
    state: Mutex<State>,
    image_writer: Mutex<()>,
    fixups: Mutex<chain::Fixups>,
    merged: Mutex<deep::Merged>,
    mounts: Mutex<Option<Arc<Mounts>>>,
    flusher: Background,
    sweeper: Background,
    unlinker: Background,
    dying: Arc<Dying>,
    projects: Projects,
    _lock: File,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    layers: HashMap<DiffId, Arc<Layer>>,
    layers_by_blob: HashMap<Digest, DiffId>,
    blobs: HashMap<Digest, u64>,
    images: ImageIndex,
    snapshots: BTreeMap<String, Arc<SnapshotRecord>>,
    cache: cache::Steps,
    leases: HashMap<u64, Held>,
    next_lease: u64,
}

impl State {
    /// What a lease protects; a lease that has ended gets an entry nobody looks at.
    fn held(&mut self, lease: u64) -> &mut Held {
        self.leases.entry(lease).or_default()
    }
}

impl Store {
    /// Opens the store, making it if there is none, and cleans up what an earlier process left.
    pub fn open(options: Options) -> Result<Self> {
        let root = Dir::root(&options.root)?;
        let run = Dir::root(&options.run)?;
        let lock = load::lock(&root)?;
        let (work, trash) = (root.ensure("work")?, Arc::new(root.ensure("trash")?));
        for leftover in work.names()? {
            work.rename(&leftover, &trash, &unique())?;
        }
        let Choice { form, method, reason: form_reason } = load::choose(&work, &options)?;
        let layers = Arc::new(root.ensure(LAYERS)?);
        let run_layers = Arc::new(run.ensure("layers")?);
        let snapshots = root.ensure(SNAPSHOTS)?;
        let mut loading = Loading {
            blobs: &root.ensure("blobs")?,
            layers: &layers,
            run_layers: &run_layers,
            images: &root.ensure("images")?,
            trash: &trash,
            // Damage comes from power cuts, so once per boot is often enough.
            verify: !run.contains("verified")?,
            state: State::default(),
            recovered: Recovered::default(),
        };
        loading.layers()?;
        loading.blobs()?;
        loading.images()?;
        let chains = root.ensure(CHAINS)?;
        if loading.verify {
            // They are not flushed, and made again when they are needed.
            for fixup in chains.names()? {
                chains.rename(&fixup, &trash, &unique())?;
            }
        }
        loading.state.snapshots = snapshot::load(&snapshots, &trash)?.into_iter().collect();
        let cache = root.ensure(CACHE)?;
        let known = &loading.state.layers;
        loading.state.cache = cache::load(&cache, |layer| known.contains_key(layer))?;
        let Loading { state, recovered, .. } = loading;
        let run_volatile = run.ensure("volatile")?;
        run_volatile.retain_marks(|key| state.snapshots.contains_key(key))?;
        run_layers.retain_marks(|name| {
            parse_file_name(name).is_some_and(|digest| state.layers.contains_key(&DiffId::new(digest)))
        })?;
        let known = state.snapshots.values().filter_map(|snapshot| snapshot.project);
        let projects = Projects::open(&root, options.writable_limit, known)?;
        run.mark("verified")?;
        let start = |name| {
            let path = options.root.clone();
            Background::start(name).map_err(|source| Error::Io { op: "start a thread for", path, source })
        };
        let (flusher, sweeper) = (start("store-flush")?, start("store-sweep")?);
        let unlinker = start("store-unlink")?;
        let inner = Inner {
            blobs: Arc::new(root.open("blobs")?),
            images: Arc::new(root.open("images")?),
            chains,
            cache,
            empty: [root.ensure(EMPTY[0])?, root.ensure(EMPTY[1])?],
            run_volatile,
            options,
            form,
            form_reason,
            method,
            recovered,
            layers,
            snapshots,
            work,
            trash,
            run,
            run_layers,
            root,
            state: Mutex::new(state),
            image_writer: Mutex::new(()),
            fixups: Mutex::default(),
            merged: Mutex::default(),
            mounts: Mutex::default(),
            flusher,
            sweeper,
            unlinker,
            dying: Arc::default(),
            projects,
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner) };
        for leftover in store.inner.trash.names()? {
            store.inner.sweep(leftover);
        }
        let pending: Vec<_> =
            store.inner.state().layers.values().filter(|layer| !layer.is_durable()).cloned().collect();
        for layer in pending {
            store.inner.flush_later(layer);
        }
        Ok(store)
    }

    /// The form of new layers.
    pub fn form(&self) -> LayerForm {
        self.inner.form
    }

    /// Why new layers have that form, and how overlays are made of them.
    pub fn form_reason(&self) -> &str {
        &self.inner.form_reason
    }

    /// What the file system does about the size of writable layers.
    pub fn quota(&self) -> &'static str {
        self.inner.projects.describe()
    }

    /// Whether [`Store::usage`] of a snapshot walks nothing.
    pub fn counts_usage(&self, key: &str) -> bool {
        self.inner.state().snapshots.get(key).is_some_and(|snapshot| snapshot.project.is_some())
    }

    /// What was found and cleaned at the start.
    pub fn recovered(&self) -> &Recovered {
        &self.inner.recovered
    }

    /// The root directory: the mount point or a directory below it, for statfs(2).
    pub fn root(&self) -> &Path {
        self.inner.root.path()
    }

    /// Starts a lease: what is put in or held through it is safe from collection.
    pub fn lease(&self) -> Lease {
        Lease::new(&self.inner)
    }

    /// Reads a manifest, index or config; the bytes are verified.
    pub fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.inner.blob(digest)
    }

    /// Whether a manifest, index or config is there.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.inner.state().blobs.contains_key(digest)
    }

    /// Whether a layer is there. Pulls use [`Lease::hold_layer`], which also keeps it there.
    pub fn has_layer(&self, diff_id: &DiffId) -> bool {
        self.inner.state().layers.contains_key(diff_id)
    }

    /// What is known about a layer.
    pub fn layer(&self, diff_id: &DiffId) -> Result<LayerInfo> {
        let state = self.inner.state();
        state.layers.get(diff_id).map(|layer| layer.info.clone()).ok_or(Error::LayerNotFound(*diff_id))
    }

    /// All layers.
    pub fn layers(&self) -> Vec<LayerInfo> {
        self.inner.state().layers.values().map(|layer| layer.info.clone()).collect()
    }

    /// Starts taking in a layer; the lease protects it when it is finished.
    pub fn ingest_layer(&self, lease: &Lease, algorithm: Algorithm) -> Result<LayerIngest> {
        LayerIngest::new(lease.clone(), algorithm)
    }

    /// Records that a compressed blob was unpacked and verified to be that layer.
    pub fn record_layer_blob(&self, diff_id: &DiffId, blob: &Digest) -> Result<()> {
        self.inner.record_layer_blob(diff_id, blob)
    }

    /// A layer's root as a mount, or a directory, of its own: read-only, attached nowhere. For
    /// the file system of a container use a snapshot.
    pub fn layer_root(&self, diff_id: &DiffId) -> Result<OwnedFd> {
        let layers = self.inner.layers_of(&[*diff_id])?;
        let layer = layers.first().ok_or(Error::LayerNotFound(*diff_id))?;
        self.inner.layer_clone(layer)
    }

    /// The uncompressed tar of a layer, byte for byte, if the layer is kept that way.
    pub fn layer_tar(&self, diff_id: &DiffId) -> Result<Option<File>> {
        let info = self.layer(diff_id)?;
        match info.form {
            LayerForm::Directory => Ok(None),
            LayerForm::TarErofs => {
                self.inner.layers.open(&file_name(diff_id.digest()))?.open_file(TAR).map(Some)
            }
        }
    }

    /// The uncompressed tar of a layer of any form, byte for byte: it hashes to the diffID.
    pub fn layer_reader(&self, diff_id: &DiffId) -> Result<LayerTar> {
        self.inner.layer_reader(diff_id)
    }

    /// Makes a layer of what was written to a snapshot; the lease protects it. Nobody should write meanwhile: what is
    /// being written is taken as it is found.
    pub fn commit_snapshot(&self, lease: &Lease, key: &str, options: &CommitOptions) -> Result<LayerInfo> {
        self.inner.commit_snapshot(lease, key, options)
    }

    /// The compressed blobs that were unpacked and verified to be that layer.
    pub fn layer_blobs(&self, diff_id: &DiffId) -> Result<Vec<Digest>> {
        let layers = self.inner.layers_of(&[*diff_id])?;
        let blobs = layers.iter().flat_map(|layer| {
            layer.blobs.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect::<Vec<_>>()
        });
        Ok(blobs.collect())
    }

    /// A step that a build has done before, its layer held by the lease.
    pub fn cached_step(&self, lease: &Lease, key: &str) -> Option<Arc<CachedStep>> {
        self.inner.cached_step(lease, key)
    }

    /// Remembers a step; its layer stays from now on.
    pub fn remember_step(&self, step: CachedStep) -> Result<()> {
        self.inner.remember_step(step)
    }

    /// All steps that builds have done.
    pub fn cached_steps(&self) -> Vec<Arc<CachedStep>> {
        self.inner.state().cache.values().cloned().collect()
    }

    /// Forgets the steps for which `doomed` says so; answers how many. Their layers go with the next [`Store::gc`].
    pub fn forget_steps(&self, doomed: impl Fn(&CachedStep) -> bool) -> Result<usize> {
        self.inner.forget_steps(doomed)
    }

    /// Proves, by reading all of it, that a layer is what was taken in.
    pub fn check_layer(&self, diff_id: &DiffId) -> Result<LayerCheck> {
        let layers = self.inner.layers_of(&[*diff_id])?;
        let layer = layers.first().ok_or(Error::LayerNotFound(*diff_id))?;
        self.inner.check_layer(layer)
    }

    /// Checks every layer, blob and image record by reading all of it; repairs what is damaged if
    /// that is asked for. Other calls may go on meanwhile.
    pub fn fsck(&self, repair: Repair) -> Result<FsckReport> {
        self.inner.fsck(repair)
    }

    /// What images and snapshots take, shared layers once. Walks the writable layers where the file system does not count.
    pub fn accounts(&self) -> Result<Accounts> {
        self.inner.accounts()
    }

    /// What keeps a layer from being collected.
    pub fn holders(&self, diff_id: &DiffId) -> Result<Holders> {
        self.layer(diff_id)?;
        Ok(self.inner.holders(diff_id))
    }

    /// Waits until every layer and blob is durable and everything removed has given its space back.
    pub fn flush(&self) {
        self.inner.flusher.wait();
        self.inner.sweeper.wait();
        self.inner.unlinker.wait();
    }

    /// Records an image and gives it its names, taking them from the images that have them. Its
    /// config, manifests and layers must be in the store.
    pub fn commit_image(&self, lease: &Lease, image: NewImage) -> Result<Arc<ImageRecord>> {
        self.inner.commit_image(lease, image)
    }

    /// The image of a normalised name, of an id, or of an unambiguous beginning of an id.
    pub fn image(&self, reference: &str) -> Option<Arc<ImageRecord>> {
        self.inner.state().images.find(reference).cloned()
    }

    /// All images, by id.
    pub fn images(&self) -> Vec<Arc<ImageRecord>> {
        self.inner.state().images.list()
    }

    /// Gives an image one more name, taking it from the image that has it.
    pub fn tag(&self, id: &ImageId, name: &str) -> Result<Arc<ImageRecord>> {
        self.inner.name_image(&self.lease(), id, name)
    }

    /// Takes one name away; the image stays, with or without names. `None` if nobody had it.
    pub fn untag(&self, name: &str) -> Result<Option<Arc<ImageRecord>>> {
        self.inner.unname_image(name)
    }

    /// Sets or clears the pin of an image.
    pub fn pin(&self, id: &ImageId, pinned: bool) -> Result<Arc<ImageRecord>> {
        self.inner.pin_image(id, pinned)
    }

    /// Removes an image with all its names, and what only it referred to. The files of its layers
    /// may be unlinked a moment later and count as long ([`Store::images_usage`]). Layers that a snapshot uses stay until [`Store::remove`] and the next [`Store::gc`].
    /// `None` if there was no such image.
    pub fn remove_image(&self, id: &ImageId) -> Result<Option<Collected>> {
        match self.inner.forget_image(id)? {
            Some(record) => self.inner.collect(&gc::Scope::Image(&record)).map(Some),
            None => Ok(None),
        }
    }

    /// Removes everything that no image, snapshot or lease refers to.
    pub fn gc(&self) -> Result<Collected> {
        self.inner.collect(&gc::Scope::All)
    }

    /// Makes a snapshot with a writable layer over the layers, base first. The key is a path
    /// component, such as a container id.
    pub fn prepare(&self, key: &str, layers: &[DiffId]) -> Result<()> {
        self.inner.prepare(key, layers, SnapshotKind::Active)
    }

    /// Makes a read-only snapshot of the layers, base first.
    pub fn view(&self, key: &str, layers: &[DiffId]) -> Result<()> {
        self.inner.prepare(key, layers, SnapshotKind::View)
    }

    /// Mounts a snapshot. The mount is attached nowhere: use it with openat2(2), or attach it with
    /// move_mount(2). There must be one mount at a time.
    pub fn mount(&self, key: &str, options: &MountOptions<'_>) -> Result<OwnedFd> {
        self.inner.mount(key, options)
    }

    /// The writable layer of a snapshot, in overlayfs form.
    pub fn upper(&self, key: &str) -> Result<OwnedFd> {
        self.inner.upper(key)
    }

    /// What the writable layer of a snapshot takes. Where the file system counts projects, that is asked for, and a few
    /// directories of overlayfs's own are among it; elsewhere the layer is walked.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        self.inner.snapshot_usage(key)
    }

    /// The keys of all snapshots, with their kind and layers.
    pub fn snapshots(&self) -> Vec<(String, SnapshotKind, Vec<DiffId>)> {
        let state = self.inner.state();
        state
            .snapshots
            .iter()
            .map(|(key, record)| (key.clone(), record.kind, record.layers.clone()))
            .collect()
    }

    /// Whether a snapshot exists.
    pub fn has_snapshot(&self, key: &str) -> bool {
        self.inner.state().snapshots.contains_key(key)
    }

    /// Removes a snapshot; tells whether it was there. It must not be mounted any more. Its space
    /// comes back in the background.
    pub fn remove(&self, key: &str) -> Result<bool> {
        self.inner.remove_snapshot(key)
    }

    /// What all images take together, each layer once, from records. Files that are being unlinked still count; for
    /// these it waits a moment, so that the effect of a removal shows in the next answer.
    pub fn images_usage(&self) -> Usage {
        let mut usage = self.inner.dying.settle(SETTLE);
        let state = self.inner.state();
        for layer in state.layers.values() {
            usage += Usage { bytes: layer.info.disk_bytes, inodes: layer.info.disk_inodes };
        }
        for size in state.blobs.values() {
            usage += Usage { bytes: *size, inodes: 1 };
        }
        usage
    }

    /// What all writable layers take together. Walks them where the file system does not count.
    pub fn snapshots_usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for (key, _, _) in self.snapshots() {
            match self.usage(&key) {
                Ok(one) => usage += one,
                Err(Error::SnapshotNotFound(_)) => {}
                // Removed meanwhile.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(usage)
    }

    /// Lets go of the layer mounts that no snapshot uses; answers how many. To be called now and
    /// then: a mount costs a little kernel memory and makes the next start of a container faster.
    ///
    /// Of layers that are in use, the pages of the tar are let go of: what was read is cached by
    /// the file system on top, once more would be memory for nothing.
    pub fn release_idle(&self) -> Result<usize> {
        self.inner.drop_double_pages();
        self.inner.release_idle()
    }

    /// Ends the layer mounts and removes the pin of their namespace: for a clean shutdown or an
    /// uninstall when nothing runs. Mounts that were handed out stay valid.
    pub fn release_pins(&self) -> Result<()> {
        for layer in self.inner.state().layers.values() {
            *layer.root.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.inner.merged.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut mounts = self.inner.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        *mounts = None;
        mounts::unpin(&self.inner.run)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the index half-changed, so a panic elsewhere does not
        // make it wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_writer(&self) -> MutexGuard<'_, ()> {
        self.image_writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread with the layer mounts, started on first use.
    fn mounts(&self) -> Result<Arc<Mounts>> {
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounts) = &*mounts {
            return Ok(Arc::clone(mounts));
        }
        Ok(Arc::clone(mounts.insert(Arc::new(Mounts::open(&self.run)?))))
    }

    /// The same, unless there never were any mounts.
    fn mounts_if_open(&self) -> Result<Option<Arc<Mounts>>> {
        let known = self.mounts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(mounts) => Ok(Some(mounts)),
            None if mounts::is_pinned(&self.run)? => self.mounts().map(Some),
            None => Ok(None),
        }
    }

    /// Makes a finished layer part of the store.
    fn commit_layer(&self, work: Work, info: LayerInfo, lease: &Lease) -> Result<LayerInfo> {
        let (diff_id, form) = (info.diff_id, info.form);
        let name = file_name(diff_id.digest());
        let eager = self.options.durability == Durability::Eager;
        if eager {
            durable::make_durable(&work.dir, form)?;
        }
        let layer = Arc::new(Layer::new(info, eager, Default::default()));
        {
            let mut state = self.state();
            match state.layers.get(&diff_id).cloned() {
                // What replaces it is whole; mounts that are in use go on with the old files.
                Some(condemned) if condemned.is_damaged() => self.release_layer(&condemned)?,
                // Somebody else was faster with the same layer; this work is dropped.
                Some(winner) => {
                    state.held(lease.number()).layers.insert(diff_id);
                    return Ok(winner.info.clone());
                }
                None => {}
            }
            // Damaged, or without an entry in the index: left from a failed removal.
            if self.layers.contains(&name)? {
                self.layers.rename(&name, &self.trash, &unique())?;
            }
            self.work.rename(work.name(), &self.layers, &name)?;
            state.layers.insert(diff_id, Arc::clone(&layer));
            state.held(lease.number()).layers.insert(diff_id);
        }
        if eager {
            self.layers.flush()?;
        } else {
            self.run_layers.mark(&name)?;
            self.flush_later(Arc::clone(&layer));
        }
        Ok(layer.info.clone())
    }

    /// Removes an entry of the trash in the background.
    fn sweep(&self, name: String) {
        let trash = Arc::clone(&self.trash);
        self.sweeper.run(move || {
            if let Err(error) = trash.remove_tree(&name) {
                tracing::error!(name, error = &error as &dyn std::error::Error, "emptying the trash");
            }
        });
    }

    fn flush_later(&self, layer: Arc<Layer>) {
        let (layers, run_layers) = (Arc::clone(&self.layers), Arc::clone(&self.run_layers));
        self.flusher.run(move || {
            let name = file_name(layer.info.diff_id.digest());
            let flushed = layers.open(&name).and_then(|dir| {
                durable::make_durable(&dir, layer.info.form)?;
                layers.flush()?;
                run_layers.remove_file(&name)
            });
            match flushed {
                Ok(_) => layer.durable.store(true, Ordering::Release),
                // Removed before its turn came.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::error!(layer = %layer.info.diff_id, error = &error as &dyn std::error::Error, "flushing a layer");
                }
            }
        });
    }

    fn record_layer_blob(&self, diff_id: &DiffId, blob: &Digest) -> Result<()> {
        let layer = self.layers_of(&[*diff_id])?;
        let layer = layer.first().ok_or(Error::LayerNotFound(*diff_id))?;
        let known = layer.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(*blob);
        if known {
            let dir = self.layers.open(&file_name(diff_id.digest()))?;
            // Lost in a power cut, it costs one download.
            dir.mark(&layer::blob_marker(blob))?;
        }
        self.state().layers_by_blob.insert(*blob, *diff_id);
        Ok(())
    }
}
