//! What has arrived of unfinished layers, so that the next attempt asks for the rest only: also after a restart.
//!
//! ```text
//! <dir>, 0700
//!   <hex of the blob's digest>.part      its first bytes, as they came
//! ```
//!
//! They are read through the same stages as bytes from the network, so a damaged file (a power cut may leave zeros) shows
//! in the blob's digest: then it is dropped, and the layer fetched as a whole. Nothing here is ever flushed.
//!
//! Writing them down costs about a twentieth of a pull that nothing else slows down. So where the network is fast, a layer
//! is kept this way only if it is large; fetching a small one again takes no time there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use pinnace_registry::Descriptor;
use pinnace_store::Digest;

/// Layers below this are not worth a file.
const LAYER_BYTES_MIN: u64 = 256 << 10;
/// Layers from this on are kept however fast they come.
const ALWAYS_BYTES: u64 = 256 << 20;
/// Smaller ones that come faster than this are not kept.
const FAST_BYTES_PER_SECOND: u64 = 64 << 20;
/// How often that is looked at.
const LOOK_BYTES: u64 = 8 << 20;
/// A file takes at most this part of the free space.
const SPACE_SHARE: u64 = 4;
/// Who has not continued by then will not.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The directory.
#[derive(Debug)]
pub(crate) struct Partials {
    dir: PathBuf,
}

/// The beginning of one layer, ours until it is dropped.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    length: u64,
}

/// Adds to the beginning of a layer while it passes.
#[derive(Debug)]
pub(crate) struct Spool {
    partial: Option<Partial>,
    /// Bytes to come that the file has already.
    known: u64,
    fresh: u64,
    next_look: u64,
    started: Instant,
    is_large: bool,
}

impl Partials {
    /// Makes the directory, and removes what nobody continued.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let partials = Self { dir };
        partials.expire();
        Ok(partials)
    }

    /// The beginning of a layer; nothing if it is not to be kept or somebody else has it.
    pub(crate) fn take(&self, layer: &Descriptor) -> Option<Partial> {
        if layer.size < LAYER_BYTES_MIN || !self.has_space(layer.size) {
            return None;
        }
        let path = self.path(&layer.digest);
        match open(&path, layer.size) {
            Ok(partial) => partial,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "an unfinished layer cannot be kept");
                None
            }
        }
    }

    /// Drops the beginning of a layer.
    pub(crate) fn forget(&self, blob: &Digest) {
        remove(&self.path(blob));
    }

    /// Drops what is old.
    pub(crate) fn expire(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age > AGE_MAX) {
                remove(&entry.path());
            }
        }
    }

    fn path(&self, blob: &Digest) -> PathBuf {
        self.dir.join(format!("{}.part", blob.hex()))
    }

    fn has_space(&self, bytes: u64) -> bool {
        rustix::fs::statvfs(&self.dir)
            .is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) / SPACE_SHARE > bytes)
    }
}

fn open(path: &Path, size: u64) -> io::Result<Option<Partial>> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.try_lock().is_err() {
        return Ok(None);
    }
    let mut length = file.metadata()?.len();
    if length > size {
        file.set_len(0)?;
        length = 0;
    }
    Ok(Some(Partial { file, path: path.to_owned(), length }))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "an unfinished layer stays"),
    }
}

impl Partial {
    /// Bytes that are here.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// The bytes that are here, from the first on.
    pub(crate) fn reader(&self) -> io::Result<impl Read + Send + use<>> {
        let mut file = self.file.try_clone()?;
        // The position is shared with the writer, which seeks before it begins.
        file.seek(SeekFrom::Start(0))?;
        Ok(file.take(self.length))
    }
}

impl Spool {
    pub(crate) fn new(partial: Option<Partial>, layer_bytes: u64) -> Self {
        let known = partial.as_ref().map_or(0, Partial::length);
        Self {
            partial,
            known,
            fresh: 0,
            next_look: LOOK_BYTES,
            started: Instant::now(),
            is_large: layer_bytes >= ALWAYS_BYTES,
        }
    }

    /// Takes the next bytes of the layer.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let Some(partial) = &mut self.partial else { return };
        if self.known > 0 {
            self.known = self.known.saturating_sub(bytes.len() as u64);
            if self.known == 0 {
                self.started = Instant::now();
            }
            return;
        }
        if self.fresh == 0
            && let Err(error) = partial.file.seek(SeekFrom::Start(partial.length))
        {
            return self.give_up(&error);
        }
        if let Err(error) = partial.file.write_all(bytes) {
            return self.give_up(&error);
        }
        self.fresh += bytes.len() as u64;
        if self.fresh >= self.next_look && !self.is_large {
            self.next_look = self.fresh + LOOK_BYTES;
            let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let speed = self.fresh.saturating_mul(1000).checked_div(millis).unwrap_or(u64::MAX);
            if speed > FAST_BYTES_PER_SECOND {
                self.end();
            }
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::debug!(%error, "an unfinished layer is not kept any further");
        self.end();
    }

    fn end(&mut self) {
        if let Some(partial) = self.partial.take() {
            remove(&partial.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(size: u64) -> Descriptor {
        let mut layer = Descriptor::of("x", b"some blob");
        layer.size = size;
        layer
    }

    fn content(partial: &Partial) -> Vec<u8> {
        let mut bytes = Vec::new();
        partial.reader().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_beginning_grows_over_attempts() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path().join("partial")).unwrap();
        let layer = layer(4 << 20);
        let mut expected = Vec::new();
        for attempt in 0..3_u8 {
            let partial = partials.take(&layer).unwrap();
            assert_eq!(partial.length(), expected.len() as u64);
            assert_eq!(content(&partial), expected);
            assert!(partials.take(&layer).is_none(), "one at a time");
            let mut spool = Spool::new(Some(partial), layer.size);
            for piece in expected.chunks(1000) {
                spool.add(piece);
            }
            let fresh = vec![attempt; 5000];
            spool.add(&fresh[..1234]);
            spool.add(&fresh[1234..]);
            expected.extend(fresh);
        }
        partials.forget(&layer.digest);
        assert_eq!(partials.take(&layer).unwrap().length(), 0);
    }

    #[test]
    fn what_is_longer_than_the_layer_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path().to_owned()).unwrap();
        let layer = layer(2 << 20);
        fs::write(partials.path(&layer.digest), vec![0; 3 << 20]).unwrap();
        assert_eq!(partials.take(&layer).unwrap().length(), 0);
    }

    #[test]
    fn fast_small_layers_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let partials = Partials::open(dir.path().to_owned()).unwrap();
        for (size, kept) in [(20 << 20, false), (ALWAYS_BYTES, true)] {
            let layer = layer(size);
            let mut spool = Spool::new(partials.take(&layer), size);
            // As if it had taken next to no time.
            spool.started = Instant::now();
            spool.next_look = 1;
            spool.add(&[1; 1 << 20]);
            assert_eq!(partials.path(&layer.digest).exists(), kept, "{size}");
            partials.forget(&layer.digest);
        }
    }

    #[test]
    fn old_beginnings_go() {
        let dir = tempfile::tempdir().unwrap();
        for (name, age) in [("old.part", 2), ("new.part", 0)] {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - AGE_MAX * age).unwrap();
        }
        Partials::open(dir.path().to_owned()).unwrap();
        assert!(!dir.path().join("old.part").exists() && dir.path().join("new.part").exists());
    }
}
