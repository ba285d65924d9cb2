//! From the writable layer of a snapshot to a layer, and from a mounted snapshot to one flat archive.

use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::archive::tree::{self, Options};
use crate::archive::{LayerTar, Writer};
use crate::dir::unique;
use crate::error::{Error, Result};
use crate::layer::ingest::LayerIngest;
use crate::layer::{LayerForm, TAR, file_name};
use crate::lease::Lease;
use crate::{Algorithm, DiffId, Inner, LayerInfo, MountOptions, SnapshotKind};

const BUFFER_BYTES: usize = 256 << 10;

/// How a snapshot becomes a layer.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// Absolute paths in the container on which something was mounted. What had to be made there is no content: an empty
    /// file or directory at such a path that no layer below has is left out.
    pub mount_targets: Vec<Vec<u8>>,
    /// Later times are set back to this one, in seconds since the epoch (reproducible-builds.org, `SOURCE_DATE_EPOCH`).
    pub mtime_max: Option<i64>,
}

impl Inner {
    /// See [`crate::Store::commit_snapshot`].
    pub(crate) fn commit_snapshot(
        self: &Arc<Self>,
        lease: &Lease,
        key: &str,
        options: &CommitOptions,
    ) -> Result<LayerInfo> {
        let record = self.snapshot(key)?;
        let upper = self.upper(key)?;
        let below = format!("commit-{}", unique());
        self.prepare(&below, &record.layers, SnapshotKind::View)?;
        let committed = self.commit_upper(lease, upper.as_fd(), &below, options);
        let removed = self.remove_snapshot(&below);
        let info = committed?;
        removed?;
        Ok(info)
    }

    fn commit_upper(
        self: &Arc<Self>,
        lease: &Lease,
        upper: BorrowedFd<'_>,
        below: &str,
        options: &CommitOptions,
    ) -> Result<LayerInfo> {
        let lower = self.mount(below, &MountOptions::default())?;
        let relative = |path: &Vec<u8>| {
            let path = path.strip_prefix(b"/").unwrap_or(path);
            path.strip_suffix(b"/").unwrap_or(path).to_vec()
        };
        let walk = Options {
            lower: Some(lower.as_fd()),
            mount_targets: options.mount_targets.iter().map(relative).collect(),
            mtime_max: options.mtime_max,
        };
        let ingest = LayerIngest::new(lease.clone(), Algorithm::Sha256)?;
        let mut out = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, ingest));
        let archived = tree::write(upper, &mut out, &walk);
        finish(archived, out)
    }
}

/// Ends the archive and the ingest it went into; what the ingest refused counts before what the archive says of it.
fn finish(archived: Result<()>, out: Writer<BufWriter<LayerIngest>>) -> Result<LayerInfo> {
    let ended =
        out.finish().and_then(|buffer| buffer.into_inner().map_err(std::io::IntoInnerError::into_error));
    match (archived, ended) {
        (Ok(()), Ok(ingest)) => ingest.finish_new(),
        (Err(error), _) => Err(error),
        (Ok(()), Err(source)) => Err(Error::Io { op: "archive", path: "/".into(), source }),
    }
}

/// Writes a whole file system, as it is seen below `root`, as a tar stream: no whiteouts, and nothing of what is mounted in it.
pub fn export(root: BorrowedFd<'_>, out: impl Write) -> Result<()> {
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, out));
    tree::write(root, &mut writer, &Options::default())?;
    let flushed = writer.finish().and_then(|mut buffer| buffer.flush());
    flushed.map_err(|source| Error::Io { op: "archive", path: "/".into(), source })
}

impl Inner {
    /// See [`crate::Store::layer_reader`].
    pub(crate) fn layer_reader(&self, diff_id: &DiffId) -> Result<LayerTar> {
        let form = self.layers_of(&[*diff_id])?.first().map(|layer| layer.info.form);
        let dir = self.layers.open(&file_name(diff_id.digest()))?;
        match form {
            Some(LayerForm::TarErofs) => dir.open_file(TAR).map(LayerTar::whole),
            Some(LayerForm::Directory) => LayerTar::split(dir)?.ok_or(Error::NoTar(*diff_id)),
            None => Err(Error::LayerNotFound(*diff_id)),
        }
    }
}
