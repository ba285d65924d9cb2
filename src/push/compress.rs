//! Layers as blobs: gzip, the same bytes every time.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use flate2::{Compression, GzBuilder};
use pinnace_store::{Algorithm, DiffId, Digest, Hasher, Store};
use rustix::fs::{Mode, OFlags};

use crate::error::Error;

const PIECE_BYTES: usize = 256 << 10;
/// "Unknown" (RFC 1952 §2.3.1): where it was compressed does not matter.
const NO_SYSTEM: u8 = 255;

/// A compressed layer.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) file: Arc<File>,
}

/// Compresses a layer into a file without a name in `dir`, and proves it on the way.
pub(crate) fn compress(
    store: &Store,
    diff_id: &DiffId,
    dir: &Path,
    told: &dyn Fn(u64),
) -> Result<Blob, Error> {
    let fault = |source| Error::Compress { diff_id: *diff_id, dir: dir.to_owned(), source };
    let mut tar = store.layer_reader(diff_id)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(dir, flags, Mode::from_raw_mode(0o600)).map_err(|errno| fault(errno.into()))?;
    let file = Arc::new(File::from(file));
    let out = Counted {
        inner: BufWriter::with_capacity(PIECE_BYTES, Arc::clone(&file)),
        hasher: Hasher::new(Algorithm::Sha256),
        size: 0,
    };
    let mut out = GzBuilder::new().mtime(0).operating_system(NO_SYSTEM).write(out, Compression::new(6));
    let mut hasher = Hasher::new(diff_id.digest().algorithm());
    let mut piece = vec![0; PIECE_BYTES];
    let mut done = 0;
    loop {
        let count = tar.read(&mut piece).map_err(fault)?;
        let bytes = piece.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        out.write_all(bytes).map_err(fault)?;
        done += count as u64;
        told(done);
    }
    if hasher.finish() != *diff_id.digest() {
        return Err(Error::Damaged(*diff_id));
    }
    let mut out = out.finish().map_err(fault)?;
    out.flush().map_err(fault)?;
    let Counted { inner, hasher, size } = out;
    drop(inner);
    let digest = hasher.finish();
    Ok(Blob { digest, size, file })
}

struct Counted<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
