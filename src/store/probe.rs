//! The start-up self-test: which layer form works on this kernel.
//!
//! Documentation and version numbers say little about a distribution's kernel, so the store does
//! once, small, what it will do for every container: a two-device EROFS with 512-byte blocks whose
//! data stay in a tar, as lower layer of an overlay that is put together from descriptors.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, Mode, OFlags};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::layer::erofs::{self, Identity};
use crate::layer::tree::{Content, TreeBuilder};
use crate::layer::{META, TAR};
use crate::overlay::{Overlay, Upper};
use crate::tar::{Entry, Kind, Mtime};
use crate::{Limits, mounts};

const TEXT: &[u8] = b"pinnace self-test\n";

/// Whether EROFS layers work here; an error says why not.
pub(crate) fn tar_erofs(work: &Dir) -> Result<()> {
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
    let identity = Identity { uuid: [0; 16], tag: "self-test".to_owned(), tar_bytes: 1024 };
    erofs::write(&tree, &identity, &tar, &meta).map_err(|error| error.at(work.entry(META)))?;
    let layer = mounts::mount_erofs("self-test", &meta, &tar)?;
    overlay_over(work, layer.as_fd())
}

/// Whether directories can be stacked by descriptor here; an error says why not.
pub(crate) fn directory(work: &Dir) -> Result<()> {
    let layer = work.create("layer")?;
    layer.replace("self-test", TEXT, crate::dir::Flush::No)?;
    overlay_over(work, layer.as_fd())
}

fn overlay_over(work: &Dir, lower: BorrowedFd<'_>) -> Result<()> {
    let snapshot = work.ensure("snapshot")?;
    let (upper, scratch) = (snapshot.ensure("upper")?, snapshot.ensure("work")?);
    let overlay = Overlay {
        subject: "self-test",
        lowers: &[lower],
        upper: Some(Upper { upper: upper.as_fd(), work: scratch.as_fd(), volatile: true }),
        read_only: false,
        selinux_context: None,
    };
    let root = overlay.mount()?;
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
