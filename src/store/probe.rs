//! The start-up self-test: which layer form works on this kernel, and how overlays are made.
//!
//! Documentation and version numbers say little about a distribution's kernel, so the store does
//! once, small, what it will do for every container: a two-device EROFS with 512-byte blocks whose
//! data stay in a tar, as lower layer of an overlay.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{self, Mode, OFlags};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::layer::erofs::{self, Device, Identity};
use crate::layer::tree::{Content, TreeBuilder};
use crate::layer::{META, TAR};
use crate::mounts::Mounts;
use crate::overlay::{self, Lower, Method, Overlay, Place, Upper};
use crate::tar::{Entry, Kind, Mtime};
use crate::{Limits, mounts};

const TEXT: &[u8] = b"pinnace self-test\n";

/// Whether EROFS layers work here; an error says why not.
pub(crate) fn tar_erofs(work: &Dir, method: Method) -> Result<()> {
    let block = |text: &[u8]| {
        let mut block = text.to_vec();
        block.resize(512, 0);
        block
    };
    let write_fault = |source| Error::Io { op: "write", path: work.entry(TAR), source };
    let mut tar = work.create_file(TAR)?;
    // The data do not start at byte 0, so a kernel that ignores the position fails the test.
    tar.write_all(&block(b"header")).map_err(write_fault)?;
    tar.write_all(&block(TEXT)).map_err(write_fault)?;
    let mut tree = TreeBuilder::new(Limits::default().tree());
    let entry = Entry {
        name: b"self-test",
        link: b"",
        kind: Kind::Regular,
        mode: 0o444,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        size: TEXT.len() as u64,
        data_offset: 512,
        sparse: None,
        xattrs: Vec::new(),
    };
    tree.insert(entry, Content::Whole(512)).map_err(Error::Tar)?;
    let tree = tree.finish().map_err(Error::Tar)?;
    let meta = work.create_file(META)?;
    let identity =
        Identity { uuid: [0; 16], devices: vec![Device { tag: "self-test".to_owned(), bytes: 1024 }] };
    erofs::write(&tree, &identity, &[&tar], &meta).map_err(|error| error.at(work.entry(META)))?;
    let layer = mounts::mount_erofs("self-test", &meta, &[tar])?;
    match method {
        Method::Descriptors => {
            overlay_over(work, Lower { root: Arc::new(layer), place: Place::Nowhere }, None)
        }
        Method::Paths => {
            let mounts = Mounts::unpinned()?;
            let root = Arc::new(mounts.attach("self-test", layer)?);
            overlay_over(work, Lower { root, place: Place::Mounts("self-test".to_owned()) }, Some(&mounts))
        }
    }
}

/// Whether directories can be stacked that way here; an error says why not.
pub(crate) fn directory(work: &Dir, method: Method) -> Result<()> {
    let layer = work.create("layer")?;
    layer.replace("self-test", TEXT, crate::dir::Flush::No)?;
    // A mount that is attached nowhere, as for a container with a user namespace.
    let root = Arc::new(overlay::detached_clone("self-test", layer.as_fd())?);
    let mounts = match method {
        Method::Descriptors => None,
        Method::Paths => Some(Mounts::unpinned()?),
    };
    overlay_over(work, Lower { root, place: Place::Nowhere }, mounts.as_ref())
}

/// With mounts by path, else by descriptor.
fn overlay_over(work: &Dir, lower: Lower, mounts: Option<&Mounts>) -> Result<()> {
    let snapshot = work.ensure("snapshot")?;
    let (upper, scratch) = (snapshot.ensure("upper")?, snapshot.ensure("work")?);
    let overlay = Overlay {
        subject: "self-test",
        lowers: &[lower],
        upper: Some(Upper {
            upper: upper.as_fd(),
            work: scratch.as_fd(),
            upper_path: "snapshot/upper".to_owned(),
            work_path: "snapshot/work".to_owned(),
            volatile: true,
        }),
        read_only: false,
        selinux_context: None,
    };
    let root = match mounts {
        Some(mounts) => overlay.mount_paths(mounts, work)?,
        None => overlay.mount_descriptors()?,
    };
    let fault = |op| Error::io(op, "self-test");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = fs::openat(&root, "self-test", flags, Mode::empty()).map_err(fault("open"))?;
    let mut text = [0; 64];
    let count = rustix::io::read(&file, &mut text).map_err(fault("read"))?;
    if text.get(..count) != Some(TEXT) {
        return Err(Error::Unsupported { reason: "the self-test read wrong bytes".to_owned() });
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    fs::openat(&root, "written", flags, Mode::from_raw_mode(0o600)).map_err(fault("create")).map(drop)
}
