//! One suite for both layer forms: whatever holds for one must hold for the other.
//!
//! Every test gets a store of its own in a temporary directory and works on the real kernel, so
//! the suite needs root.

pub(crate) mod archive;
mod chain;
mod fsck;
mod gnu;
mod happy;
mod hostile;
mod life;
mod method;
mod out;
mod view;

use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::overlay::Method;
use crate::{Algorithm, DiffId, LayerForm, LayerInfo, MountOptions, Options, Result, Store};

/// Runs a test of the suite with each form, with overlays as the self-test finds it best and with
/// overlays by path.
macro_rules! both_forms {
    ($($name:ident),* $(,)?) => {
        mod tar_erofs {
            $(#[test] fn $name() { super::$name($crate::LayerForm::TarErofs); })*
        }
        mod directory {
            $(#[test] fn $name() { super::$name($crate::LayerForm::Directory); })*
        }
        mod tar_erofs_by_path {
            $(#[test] fn $name() { $crate::testsuite::by_path(super::$name, $crate::LayerForm::TarErofs); })*
        }
        mod directory_by_path {
            $(#[test] fn $name() { $crate::testsuite::by_path(super::$name, $crate::LayerForm::Directory); })*
        }
    };
}
pub(crate) use both_forms;

thread_local! {
    /// Every test has a thread of its own.
    static METHOD: Cell<Option<Method>> = const { Cell::new(None) };
}

pub(crate) fn by_path(test: fn(LayerForm), form: LayerForm) {
    METHOD.set(Some(Method::Paths));
    test(form);
}

/// A store in a temporary directory, removed with its pin.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) options: Options,
    place: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new(form: LayerForm) -> Self {
        Self::with(form, |_| {})
    }

    pub(crate) fn with(form: LayerForm, change: impl FnOnce(&mut Options)) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this suite mounts file systems: run it as root");
        let place = tempfile::tempdir().unwrap();
        let mut options = Options::new(place.path().join("root"), place.path().join("run"));
        options.form = Some(form);
        options.method = METHOD.get();
        change(&mut options);
        let store = Store::open(options.clone()).unwrap();
        Self { store, options, place }
    }

    /// The daemon ends and starts again.
    pub(crate) fn reopen(&mut self) {
        self.close();
        self.store = Store::open(self.options.clone()).unwrap();
    }

    /// The same with an empty run directory.
    pub(crate) fn reboot(&mut self) {
        self.store.release_pins().unwrap();
        self.close();
        std::fs::remove_dir_all(&self.options.run).unwrap();
        self.store = Store::open(self.options.clone()).unwrap();
    }

    /// Replaces the store by one elsewhere, so that the last handle of this one goes.
    pub(crate) fn close(&mut self) {
        let mut options = self.options.clone();
        let parked = format!("parked-{}", crate::dir::unique());
        options.root = self.place.path().join(&parked).join("root");
        options.run = self.place.path().join(&parked).join("run");
        self.store = Store::open(options).unwrap();
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.options.root.clone()
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.place.path().to_owned()
    }

    pub(crate) fn ingest(&self, tar: &[u8]) -> Result<LayerInfo> {
        // In odd pieces, so that nothing depends on how the stream is cut.
        let mut ingest = self.store.ingest_layer(&self.store.lease(), Algorithm::Sha256)?;
        for piece in tar.chunks(7001) {
            ingest.push(piece)?;
        }
        ingest.finish(&DiffId::new(crate::Digest::sha256(tar)))
    }

    /// Ingests layers, base first, and mounts them with a writable layer.
    pub(crate) fn mount(&self, key: &str, tars: &[&[u8]]) -> OwnedFd {
        let layers: Vec<DiffId> = tars.iter().map(|tar| self.ingest(tar).unwrap().diff_id).collect();
        self.store.prepare(key, &layers).unwrap();
        self.store.mount(key, &MountOptions::default()).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Unless the pin goes, the directory cannot.
        self.store.release_pins().unwrap();
    }
}

pub(crate) fn read(root: &impl AsFd, path: &str) -> Vec<u8> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(root, path, flags, Mode::empty()).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).unwrap();
    bytes
}
