//! Proof that a layer is what it should be.
//!
//! The tar is hashed again, and the metadata are made from it again and compared: both are
//! functions of the layer, so any flipped bit shows.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::erofs::{self, Identity};
use super::ingest::{Unpack, Work};
use super::tree::{Tree, TreeBuilder};
use super::{Layer, LayerForm, META, TAR, file_name};
use crate::Inner;
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::tar::Parser;

const BUFFER_BYTES: usize = 1 << 20;

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCheck {
    /// Every byte is as it was taken in.
    Whole,
    /// The layer differs from what was taken in: pull it again.
    Damaged,
    /// The tar is whole, but the file system metadata made from it are damaged: they can be made
    /// again.
    DamagedMetadata,
    /// The form does not allow to tell.
    Unknown,
}

impl Inner {
    pub(crate) fn check_layer(self: &Arc<Self>, layer: &Layer) -> Result<LayerCheck> {
        if layer.info.form == LayerForm::Directory {
            return Ok(LayerCheck::Unknown);
        }
        let work = Work::new(self)?;
        let Some((fresh, length)) = self.remade_metadata(layer, &work)? else {
            return Ok(LayerCheck::Damaged);
        };
        let dir = self.layers.open(&file_name(layer.info.diff_id.digest()))?;
        let meta = match dir.open_file(META) {
            Ok(meta) => meta,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(LayerCheck::DamagedMetadata);
            }
            Err(error) => return Err(error),
        };
        let same = match same_bytes(&fresh, &meta, length) {
            Ok(same) => same,
            Err(error) if is_unreadable(&error) => false,
            Err(source) => return Err(Error::Io { op: "check", path: dir.entry(META), source }),
        };
        Ok(if same { LayerCheck::Whole } else { LayerCheck::DamagedMetadata })
    }

    /// The metadata of a layer made again from its tar, and their length; `None` if the tar is not that of the layer.
    pub(crate) fn remade_metadata(&self, layer: &Layer, work: &Work) -> Result<Option<(File, u64)>> {
        let Some((tree, tar)) = self.parsed(layer)? else { return Ok(None) };
        let fresh = work.dir.create_file(META)?;
        let identity = Identity::of(&layer.info.diff_id, layer.info.tar_bytes);
        let length = erofs::write(&tree, &identity, &[&tar], &fresh)
            .map_err(|error| error.at(work.dir.entry(META)))?;
        Ok(Some((fresh, length)))
    }

    /// The files of a layer, read from its tar; `None` if the tar is not that of the layer.
    pub(crate) fn parsed(&self, layer: &Layer) -> Result<Option<(Tree, File)>> {
        let diff_id = layer.info.diff_id;
        let opened =
            self.layers.open(&file_name(diff_id.digest())).and_then(|dir| Ok((dir.open_file(TAR)?, dir)));
        let (mut tar, dir) = match opened {
            Ok(opened) => opened,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut hasher = Hasher::new(diff_id.digest().algorithm());
        let mut parser = Parser::new(self.options.limits.header());
        let mut tree = TreeBuilder::new(self.options.limits.tree());
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut tar_bytes = 0;
        loop {
            let count = match tar.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if is_unreadable(&error) => return Ok(None),
                Err(source) => return Err(Error::Io { op: "check", path: dir.entry(TAR), source }),
            };
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            hasher.update(bytes);
            tar_bytes += bytes.len() as u64;
            if parser.feed(bytes, &mut Unpack::of_tar(&mut tree)).is_err() {
                return Ok(None);
            }
        }
        if hasher.finish() != *diff_id.digest() || tar_bytes != layer.info.tar_bytes {
            return Ok(None);
        }
        Ok(Some((tree.finish().map_err(Error::Tar)?, tar)))
    }
}

/// Whether the disk cannot give the bytes back: damage like any other.
fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        let errno = rustix::io::Errno::from_raw_os_error(code);
        // EUCLEAN and EBADMSG: the file system's own checksums fail.
        matches!(errno, rustix::io::Errno::IO | rustix::io::Errno::UCLEAN | rustix::io::Errno::BADMSG)
    })
}

fn same_bytes(a: &File, b: &File, length: u64) -> std::io::Result<bool> {
    if b.metadata()?.len() != length {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut position = 0;
    while position < length {
        let count = usize::try_from(length - position).map_or(BUFFER_BYTES, |rest| rest.min(BUFFER_BYTES));
        a.read_exact_at(&mut left[..count], position)?;
        b.read_exact_at(&mut right[..count], position)?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
        position += count as u64;
    }
    Ok(true)
}
