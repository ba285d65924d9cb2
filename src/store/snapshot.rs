//! Snapshots: the file system of one container, made of a chain of layers and a writable layer.
//!
//! ```text
//! snapshots/<key>/
//!   snapshot.json   the chain
//!   upper/          what the container wrote, in overlayfs form; not in a view
//!   work/           overlayfs's own
//!                   both in a project of their own, where the file system has such ([`crate::quota`])
//! ```
//!
//! [`Store::prepare`](crate::Store::prepare) makes an active snapshot, [`Store::view`](crate::Store::view)
//! one without writable layer; [`Store::mount`](crate::Store::mount) answers a mount that is attached
//! nowhere. Nothing here is flushed unless it is mounted [`Persistence::Durable`]: the containers of
//! a kubelet do not survive a boot.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::{self, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::chain::Stack;
use crate::deep::{Assembly, merged_name};
use crate::digest::DiffId;
use crate::dir::{Dir, Flush, unique};
use crate::error::{Error, Result};
use crate::layer::ingest::Work;
use crate::layer::{Layer, LayerForm, META, TAR, TREE, file_name};
use crate::overlay::{self, Lower, Method, Overlay, Place, Upper};
use crate::usage::{self, Usage};
use crate::{CHAINS, EMPTY, Inner, LAYERS, SNAPSHOTS, mounts};

const RECORD: &str = "snapshot.json";
const RECORD_BYTES: u64 = 1 << 20;
const RECORD_VERSION: u32 = 1;
const UPPER: &str = "upper";
const SCRATCH: &str = "work";
const MAX_KEY: usize = 128;

/// Whether a snapshot has a writable layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// It has one.
    Active,
    /// It has none.
    View,
}

/// What is recorded about a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    version: u32,
    pub(crate) kind: SnapshotKind,
    pub(crate) layers: Vec<DiffId>,
    pub(crate) fixup: Option<String>,
    /// The merged file system that stands for layers too many to stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) merged: Option<String>,
    /// The project that the writable layer is counted under ([`crate::quota`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<u32>,
}

/// Whether a mount can be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Writes go to the writable layer. A view is read-only all the same.
    #[default]
    ReadWrite,
    /// The mount refuses writes.
    ReadOnly,
}

/// Whether what a container writes has to survive a power cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persistence {
    /// fsync(2) inside the container does nothing; after the next boot the content counts as
    /// lost. Right for containers of a kubelet, which makes new ones then.
    #[default]
    Volatile,
    /// fsync(2) means what it says.
    Durable,
}

/// How to mount a snapshot.
#[derive(Clone, Debug, Default)]
pub struct MountOptions<'a> {
    /// Whether the mount can be written to.
    pub access: Access,
    /// Whether writes have to survive a power cut.
    pub persistence: Persistence,
    /// Show owners as this user namespace maps them; the image itself stays as it is.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// SELinux label of everything in the mount.
    pub selinux_context: Option<&'a str>,
}

fn check_key(key: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if key.is_empty() || key.len() > MAX_KEY || key.starts_with('.') || !key.bytes().all(valid) {
        return Err(Error::BadKey(key.chars().take(MAX_KEY).collect()));
    }
    Ok(())
}

/// Reads the snapshots; directories that are none are moved to the trash.
pub(crate) fn load(snapshots: &Dir, trash: &Dir) -> Result<Vec<(String, Arc<SnapshotRecord>)>> {
    let mut found = Vec::new();
    for key in snapshots.names()? {
        let record = check_key(&key)
            .and_then(|()| snapshots.open(&key))
            .and_then(|dir| dir.read(RECORD, RECORD_BYTES));
        let record = match record {
            Ok(bytes) => bytes.and_then(|bytes| serde_json::from_slice::<SnapshotRecord>(&bytes).ok()),
            Err(error) => {
                tracing::warn!(
                    snapshot = key,
                    error = &error as &dyn std::error::Error,
                    "reading a snapshot"
                );
                None
            }
        };
        match record {
            Some(record) if record.version > RECORD_VERSION => {
                let path = snapshots.entry(&key).join(RECORD);
                return Err(Error::RecordVersion { path, version: record.version });
            }
            Some(record) => found.push((key, Arc::new(record))),
            None => {
                tracing::warn!(snapshot = key, "removing a damaged snapshot");
                snapshots.rename(&key, trash, &unique())?;
            }
        }
    }
    Ok(found)
}

impl Inner {
    pub(crate) fn prepare(
        self: &Arc<Self>,
        key: &str,
        diff_ids: &[DiffId],
        kind: SnapshotKind,
    ) -> Result<()> {
        check_key(key)?;
        let layers = {
            // From here on the layers are in use, so no collection takes them.
            let mut state = self.state();
            if state.snapshots.contains_key(key) {
                return Err(Error::SnapshotExists(key.to_owned()));
            }
            if let Some(missing) = diff_ids.iter().find(|layer| !state.layers.contains_key(layer)) {
                return Err(Error::LayerNotFound(*missing));
            }
            let layers: Vec<Arc<Layer>> =
                diff_ids.iter().filter_map(|layer| state.layers.get(layer).cloned()).collect();
            let record = SnapshotRecord {
                version: RECORD_VERSION,
                kind,
                layers: diff_ids.to_vec(),
                fixup: None,
                merged: None,
                project: None,
            };
            state.snapshots.insert(key.to_owned(), Arc::new(record));
            layers
        };
        let prepared = self.prepare_directory(key, &layers, kind);
        if prepared.is_err()
            && let Some(record) = self.state().snapshots.remove(key)
        {
            self.give_back_project(&record);
        }
        prepared
    }

    fn prepare_directory(
        self: &Arc<Self>,
        key: &str,
        layers: &[Arc<Layer>],
        kind: SnapshotKind,
    ) -> Result<()> {
        let stack = Stack::of(layers);
        if kind == SnapshotKind::Active
            && let Some(project) = self.projects.take(&self.root)?
        {
            self.settle(key, |record| record.project = Some(project)).inspect_err(|_| {
                self.projects.give_back(&self.root, project);
            })?;
        }
        let record = match Assembly::of(&stack)? {
            Assembly::Merged => self.settle(key, |record| record.merged = Some(merged_name(&stack)))?,
            Assembly::Stacked | Assembly::Nested => self.settle_fixup(key, &stack)?,
        };
        let work = Work::new(self)?;
        let path = || work.dir.entry(RECORD);
        let bytes = serde_json::to_vec(&*record).map_err(|source| Error::Record { path: path(), source })?;
        work.dir.replace(RECORD, &bytes, Flush::No)?;
        if kind == SnapshotKind::Active {
            let upper = work.dir.create(UPPER)?;
            let scratch = work.dir.create(SCRATCH)?;
            if let Some(project) = record.project {
                self.projects.join(&upper, project)?;
                self.projects.join(&scratch, project)?;
            }
            let (_, root) = stack.root();
            fs::fchown(&upper, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))
                .and_then(|()| fs::fchmod(&upper, Mode::from_raw_mode(root.mode)))
                .map_err(Error::io("set the owner of", upper.path()))?;
        }
        // The directory gets its name as a whole.
        let from = work.name();
        match fs::renameat_with(&self.work, from, &self.snapshots, key, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(Error::SnapshotExists(key.to_owned())),
            Err(errno) => Err(Error::io("create", self.snapshots.entry(key))(errno)),
        }
    }

    /// Enters the fixup of the stack into the record, so that no collection takes it.
    fn settle_fixup(self: &Arc<Self>, key: &str, stack: &Stack) -> Result<Arc<SnapshotRecord>> {
        loop {
            let roots = self.roots(stack)?;
            let fixup = self.fixup(stack, &roots)?.map(|(name, _)| name);
            let mut state = self.state();
            if let Some(name) = &fixup
                && !self.fixups.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
            {
                // A collection came in between.
                continue;
            }
            let record = state.snapshots.get(key).ok_or_else(|| Error::SnapshotNotFound(key.to_owned()))?;
            let record = Arc::new(SnapshotRecord { fixup, ..(**record).clone() });
            state.snapshots.insert(key.to_owned(), Arc::clone(&record));
            return Ok(record);
        }
    }

    /// Changes the record of a snapshot: what it names is safe from collections then.
    fn settle(&self, key: &str, change: impl FnOnce(&mut SnapshotRecord)) -> Result<Arc<SnapshotRecord>> {
        let mut state = self.state();
        let record = state.snapshots.get(key).ok_or_else(|| Error::SnapshotNotFound(key.to_owned()))?;
        let mut record = (**record).clone();
        change(&mut record);
        let record = Arc::new(record);
        state.snapshots.insert(key.to_owned(), Arc::clone(&record));
        Ok(record)
    }

    fn give_back_project(&self, record: &SnapshotRecord) {
        if let Some(project) = record.project {
            self.projects.give_back(&self.root, project);
        }
    }

    /// A file of a layer.
    pub(crate) fn layer_file(&self, layer: &Layer, name: &str) -> Result<std::fs::File> {
        self.layers.open(&file_name(layer.info.diff_id.digest()))?.open_file(name)
    }

    /// The roots of the layers of a stack; nothing is opened unless the stack may need a fixup.
    fn roots(&self, stack: &Stack) -> Result<Vec<Arc<OwnedFd>>> {
        if !stack.may_need_fixup() {
            return Ok(Vec::new());
        }
        stack.layers.iter().map(|layer| self.layer_root(layer)).collect()
    }

    /// The root of a layer: mounted once per node, opened once per process.
    pub(crate) fn layer_root(&self, layer: &Layer) -> Result<Arc<OwnedFd>> {
        let mut root = layer.root.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = &*root {
            return Ok(Arc::clone(root));
        }
        let name = file_name(layer.info.diff_id.digest());
        let opened = match layer.info.form {
            LayerForm::Directory => {
                let tree = self.layers.open(&name)?.open(TREE)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                fs::openat(&tree, ".", flags, Mode::empty()).map_err(Error::io("open", tree.path()))?
            }
            LayerForm::TarErofs => {
                let mounts = self.mounts()?;
                match mounts.clone_of(&name)? {
                    Some(mount) => mount,
                    None => {
                        let dir = self.layers.open(&name)?;
                        let mount =
                            mounts::mount_erofs(&name, &dir.open_file(META)?, &[dir.open_file(TAR)?])?;
                        mounts.attach(&name, mount)?
                    }
                }
            }
        };
        Ok(Arc::clone(root.insert(Arc::new(opened))))
    }

    /// A clone of a layer's root that belongs to the caller, so that its attributes can be changed.
    ///
    /// A mount that is attached nowhere can be cloned only in the namespace that it comes from
    /// (`may_copy_tree` of fs/namespace.c), hence by the mount thread.
    pub(crate) fn layer_clone(&self, layer: &Layer) -> Result<OwnedFd> {
        let root = self.layer_root(layer)?;
        let name = file_name(layer.info.diff_id.digest());
        match layer.info.form {
            LayerForm::Directory => overlay::detached_clone(&name, root.as_fd()),
            LayerForm::TarErofs => self.mounts()?.clone_of(&name)?.ok_or(Error::MountThread),
        }
    }

    pub(crate) fn mount(self: &Arc<Self>, key: &str, options: &MountOptions<'_>) -> Result<OwnedFd> {
        let record = self.snapshot(key)?;
        let stack = Stack::of(&self.layers_of(&record.layers)?);
        let assembly = Assembly::of(&stack)?;
        let mut lowers = Vec::with_capacity(stack.layers.len() + 1);
        if assembly == Assembly::Merged {
            lowers.push(match options.user_namespace {
                None => Lower { root: self.merged_root(&stack)?, place: Place::Mounts(merged_name(&stack)) },
                Some(user_namespace) => {
                    let clone = self.merged_clone(&stack)?;
                    overlay::map_owners(key, clone.as_fd(), user_namespace)?;
                    Lower { root: Arc::new(clone), place: Place::Nowhere }
                }
            });
        }
        let stacked = if assembly == Assembly::Merged { &[][..] } else { &stack.layers };
        for layer in stacked {
            lowers.push(match options.user_namespace {
                None => Lower { root: self.layer_root(layer)?, place: place_of(layer) },
                Some(user_namespace) => {
                    let clone = self.layer_clone(layer)?;
                    overlay::map_owners(key, clone.as_fd(), user_namespace)?;
                    Lower { root: Arc::new(clone), place: Place::Nowhere }
                }
            });
        }
        // Any layer without an entry for its root shows it with the default owner.
        let root_layer = if assembly == Assembly::Merged { 0 } else { stack.root().0.unwrap_or(0) };
        let mut mapped_root = options.user_namespace.and_then(|_| lowers.get(root_layer).cloned());
        if record.fixup.is_some()
            && let Some((name, fixup)) = self.fixup(&stack, &self.roots(&stack)?)?
        {
            let place = Place::Store(format!("{CHAINS}/{name}"));
            let fixup = mapped(key, Lower { root: fixup, place }, options.user_namespace)?;
            if assembly == Assembly::Nested {
                self.nested(key, &mut lowers, Some(&fixup))?;
            }
            lowers.insert(0, fixup);
        } else if assembly == Assembly::Nested {
            self.nested(key, &mut lowers, None)?;
        }
        // overlayfs wants a lower layer in any case, two where there is no upper one, and none twice.
        let wanted: usize = if record.kind == SnapshotKind::Active { 1 } else { 2 };
        let missing = EMPTY.iter().zip(&self.empty).take(wanted.saturating_sub(lowers.len()));
        for (name, empty) in missing {
            lowers.push(empty_lower(key, name, empty, options.user_namespace)?);
        }
        if options.user_namespace.is_some() && mapped_root.is_none() {
            mapped_root = lowers.first().cloned();
        }
        let dir = self.snapshots.open(key)?;
        let mut parts = None;
        if record.kind == SnapshotKind::Active {
            let volatile = options.persistence == Persistence::Volatile;
            self.clear_volatile(key, &dir)?;
            if !volatile {
                self.keep_snapshot(&dir, &record)?;
            } else if !self.run_volatile.contains(key)? {
                self.run_volatile.mark(key)?;
            }
            let upper = dir.open(UPPER)?;
            if let Some(mapped) = mapped_root {
                take_owner(&upper, mapped.root.as_fd(), stack.root().1)?;
            }
            parts = Some((upper, dir.open(SCRATCH)?, volatile));
        }
        let overlay = Overlay {
            subject: key,
            lowers: &lowers,
            upper: parts.as_ref().map(|(upper, work, volatile)| Upper {
                upper: upper.as_fd(),
                work: work.as_fd(),
                upper_path: format!("{SNAPSHOTS}/{key}/{UPPER}"),
                work_path: format!("{SNAPSHOTS}/{key}/{SCRATCH}"),
                volatile: *volatile,
            }),
            read_only: options.access == Access::ReadOnly || record.kind == SnapshotKind::View,
            selinux_context: options.selinux_context,
        };
        match self.method {
            Method::Descriptors => overlay.mount_descriptors(),
            Method::Paths => overlay.mount_paths(&*self.mounts()?, &self.root),
        }
    }

    /// Makes the snapshot itself as durable as what will be written to it.
    fn keep_snapshot(&self, dir: &Dir, record: &SnapshotRecord) -> Result<()> {
        let bytes =
            serde_json::to_vec(record).map_err(|source| Error::Record { path: dir.entry(RECORD), source })?;
        dir.replace(RECORD, &bytes, Flush::Yes)?;
        dir.open(UPPER)?.flush()?;
        self.snapshots.flush()
    }

    /// Removes the mark that overlayfs leaves in a volatile upper directory, if it was made in
    /// this boot: then all that was written is in the page cache or on disk.
    fn clear_volatile(&self, key: &str, dir: &Dir) -> Result<()> {
        let scratch = dir.open(SCRATCH)?;
        if !scratch.contains("work")? {
            return Ok(());
        }
        let inner = scratch.open("work")?;
        if !inner.contains("incompat")? {
            return Ok(());
        }
        if !self.run_volatile.contains(key)? {
            return Err(Error::StaleVolatile(key.to_owned()));
        }
        inner.remove_tree("incompat")
    }

    pub(crate) fn snapshot(&self, key: &str) -> Result<Arc<SnapshotRecord>> {
        self.state().snapshots.get(key).cloned().ok_or_else(|| Error::SnapshotNotFound(key.to_owned()))
    }

    pub(crate) fn snapshot_usage(&self, key: &str) -> Result<Usage> {
        let record = self.snapshot(key)?;
        if record.kind == SnapshotKind::View {
            return Ok(Usage::default());
        }
        if let Some(project) = record.project {
            match self.projects.usage(self.root.as_fd(), project) {
                Ok(usage) => return Ok(usage),
                // Quota was switched off since.
                Err(Errno::SRCH | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(Error::io("read the quota of", self.root.path())(errno)),
            }
        }
        let upper = self.snapshots.open(key)?.open(UPPER)?;
        usage::below(upper.as_fd()).map_err(Error::io("measure", upper.path()))
    }

    /// The writable layer itself.
    pub(crate) fn upper(&self, key: &str) -> Result<OwnedFd> {
        self.snapshot(key)?;
        let upper = self.snapshots.open(key)?.open(UPPER)?;
        fs::openat(&upper, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::io("open", upper.path()))
    }

    pub(crate) fn remove_snapshot(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        let doomed = unique();
        let removed = {
            let mut state = self.state();
            if !state.snapshots.contains_key(key) {
                return Ok(false);
            }
            self.snapshots.rename(key, &self.trash, &doomed)?;
            state.snapshots.remove(key)
        };
        if let Some(record) = removed {
            self.give_back_project(&record);
        }
        self.run_volatile.remove_file(key)?;
        // The caller has a container to remove and need not wait for its files.
        self.sweep(doomed);
        Ok(true)
    }
}

/// Where a layer can be found by path.
fn place_of(layer: &Layer) -> Place {
    let name = file_name(layer.info.diff_id.digest());
    match layer.info.form {
        LayerForm::Directory => Place::Store(format!("{LAYERS}/{name}/{TREE}")),
        LayerForm::TarErofs => Place::Mounts(name),
    }
}

fn empty_lower(key: &str, name: &str, empty: &Dir, user_namespace: Option<BorrowedFd<'_>>) -> Result<Lower> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = fs::openat(empty, ".", flags, Mode::empty()).map_err(Error::io("open", empty.path()))?;
    mapped(key, Lower { root: Arc::new(fd), place: Place::Store(name.to_owned()) }, user_namespace)
}

/// A directory of the store as lower layer, with its owners mapped if there is a user namespace.
fn mapped(key: &str, lower: Lower, user_namespace: Option<BorrowedFd<'_>>) -> Result<Lower> {
    let Some(user_namespace) = user_namespace else { return Ok(lower) };
    let clone = overlay::idmapped_clone(key, lower.root.as_fd(), user_namespace)?;
    Ok(Lower { root: Arc::new(clone), place: Place::Nowhere })
}

/// Gives the writable layer's root the owner that the mapped image shows, unless the container
/// has chosen another one since.
fn take_owner(upper: &Dir, mapped: BorrowedFd<'_>, plain: crate::layer::Ownership) -> Result<()> {
    let fault = |op| Error::io(op, upper.path());
    let stat = fs::fstat(upper).map_err(fault("look at"))?;
    let wanted = fs::fstat(mapped).map_err(fault("look at the image below"))?;
    if (stat.st_uid, stat.st_gid) == (plain.uid, plain.gid) {
        let (uid, gid) = (Uid::from_raw(wanted.st_uid), Gid::from_raw(wanted.st_gid));
        fs::fchown(upper, Some(uid), Some(gid)).map_err(fault("set the owner of"))?;
        // chown(2) has cleared set-id bits.
        fs::fchmod(upper, Mode::from_raw_mode(plain.mode)).map_err(fault("set the mode of"))?;
    }
    Ok(())
}
