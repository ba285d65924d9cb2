//! Save, Load, Import: images as files.
//!
//! What comes in is written to a file without a name first, for an archive is read in any order; it goes with the call, or
//! with the daemon.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::sync::Arc;

use pinnace_admin_api::v1;
use pinnace_archive::{Loading, Saved, decoder};
use pinnace_image::{Config, History, RootFs};
use pinnace_registry::Platform;
use pinnace_store::Algorithm;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::clock;
use crate::error::{Error, Within as _};
use crate::image::{familiar, find};
use crate::node::Node;

/// A piece on its way.
pub const CHUNK_BYTES: usize = 1 << 20;
/// How much more must have been done before it is told.
const TOLD_BYTES: u64 = 4 << 20;

/// Sends what is written to it.
pub struct Sender<T> {
    to: mpsc::Sender<Result<T, Status>>,
    wrap: fn(Vec<u8>) -> T,
}

impl<T> Sender<T> {
    /// A writer for this channel; blocks, so it is for threads that may.
    pub fn new(to: mpsc::Sender<Result<T, Status>>, wrap: fn(Vec<u8>) -> T) -> Self {
        Self { to, wrap }
    }
}

impl<T> Write for Sender<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = bytes.get(..CHUNK_BYTES).unwrap_or(bytes);
        let gone = |_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the caller went away");
        self.to.blocking_send(Ok((self.wrap)(piece.to_vec()))).map_err(gone)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Images as one archive.
pub fn save(
    node: &Node,
    request: v1::SaveRequest,
) -> Result<ReceiverStream<Result<v1::Chunk, Status>>, Error> {
    let mut images: Vec<Saved> = Vec::new();
    if request.images.is_empty() {
        return Err(Error::invalid("images", "is empty"));
    }
    for text in request.images {
        let image = find(node, &text).ok_or_else(|| Error::ImageNotFound(text.clone()))?;
        let reference = node.registry.reference(&text).ok();
        let name = reference.and_then(|reference| reference.repo_tag());
        let name = name.filter(|name| image.tags().any(|tag| tag == name));
        let names = name.map(|name| (name.clone(), familiar(&name)));
        match images.iter_mut().find(|saved| saved.image.id == image.id) {
            Some(saved) => saved.names.extend(names),
            None => images.push(Saved { image, names: names.into_iter().collect() }),
        }
    }
    let (sender, stream) = mpsc::channel(4);
    let node = node.shared()?;
    tokio::task::spawn_blocking(move || {
        let out = Sender::new(sender.clone(), |data| v1::Chunk { data });
        let saved = pinnace_archive::save(&node.store, &images, BufWriter::with_capacity(CHUNK_BYTES, out));
        if let Err(error) = saved {
            let error: Error = Error::from(error).within("save images");
            let _ = sender.blocking_send(Err(error.into()));
        }
    });
    Ok(ReceiverStream::new(stream))
}

/// A file without a name, on the store's file system.
pub fn spool(node: &Node) -> Result<File, Error> {
    use rustix::fs::{Mode, OFlags};
    let dir = node.spool_directory();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(&dir, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(|errno| Error::io("create a file in", dir)(errno.into()))
}

/// Writes what arrives to a file. Waits for the disk on a thread that may.
pub struct Spooling {
    file: Arc<File>,
    dir: std::path::PathBuf,
}

impl Spooling {
    /// An empty file.
    pub async fn begin(node: &Node) -> Result<Self, Error> {
        let file = node.blocking(spool).await?;
        Ok(Self { file: Arc::new(file), dir: node.spool_directory() })
    }

    /// Adds bytes at the end.
    pub async fn push(&self, bytes: Vec<u8>) -> Result<(), Error> {
        let (file, dir) = (Arc::clone(&self.file), self.dir.clone());
        tokio::task::spawn_blocking(move || (&*file).write_all(&bytes).map_err(Error::io("write to", dir)))
            .await?
    }

    /// The file, at its beginning, as it was before compression.
    pub fn plain(self, node: &Node) -> Result<File, Error> {
        let fault = || Error::io("read in", self.dir.clone());
        let mut file = self.file.try_clone().map_err(fault())?;
        file.seek(SeekFrom::Start(0)).map_err(fault())?;
        let (mut reader, compressed) = decoder(BufReader::with_capacity(CHUNK_BYTES, &file))?;
        if !compressed {
            drop(reader);
            file.seek(SeekFrom::Start(0)).map_err(fault())?;
            return Ok(file);
        }
        let mut plain = spool(node)?;
        let mut piece = vec![0; CHUNK_BYTES];
        loop {
            let count = reader.read(&mut piece).map_err(pinnace_archive::Error::Read)?;
            if count == 0 {
                break;
            }
            plain.write_all(piece.get(..count).unwrap_or_default()).map_err(fault())?;
        }
        plain.seek(SeekFrom::Start(0)).map_err(fault())?;
        Ok(plain)
    }
}

/// The images of an archive.
pub async fn load(
    node: &Node,
    mut input: Streaming<v1::Chunk>,
) -> Result<ReceiverStream<Result<v1::LoadEvent, Status>>, Error> {
    let spooling = Spooling::begin(node).await?;
    while let Some(chunk) = input.next().await {
        let Ok(chunk) = chunk else { return Err(Error::CallerGone) };
        spooling.push(chunk.data).await.within(|| "load images".to_owned())?;
    }
    let (sender, stream) = mpsc::channel(16);
    let node = node.shared()?;
    node.tasks.clone().spawn_blocking(move || {
        if let Err(error) = load_now(&node, spooling, &sender) {
            let error = error.within("load images");
            let _ = sender.blocking_send(Err(error.into()));
        }
    });
    Ok(ReceiverStream::new(stream))
}

fn load_now(
    node: &Node,
    spooling: Spooling,
    sender: &mpsc::Sender<Result<v1::LoadEvent, Status>>,
) -> Result<(), Error> {
    use v1::load_event::Event;
    let file = spooling.plain(node)?;
    let lease = node.store.lease();
    let mut told = (None, 0);
    let mut tell = |loading: Loading| {
        let is_new = told.0 != Some(loading.diff_id);
        if is_new || loading.done_bytes >= told.1 + TOLD_BYTES || loading.done_bytes == loading.total_bytes {
            told = (Some(loading.diff_id), loading.done_bytes);
            let progress = v1::LoadProgress {
                layer: loading.diff_id.to_string(),
                done_bytes: loading.done_bytes,
                total_bytes: loading.total_bytes,
            };
            // Whoever does not listen any more gets the images all the same.
            let _ = sender.blocking_send(Ok(v1::LoadEvent { event: Some(Event::Progress(progress)) }));
        }
    };
    let images = pinnace_archive::load(&node.store, &lease, file, node.registry.platform(), &mut tell)?;
    for loaded in images {
        let image = v1::LoadedImage {
            id: loaded.image.id.to_string(),
            tags: loaded.names.iter().map(|name| familiar(name)).collect(),
        };
        tracing::info!(image_id = image.id, names = ?loaded.names, "image loaded");
        let _ = sender.blocking_send(Ok(v1::LoadEvent { event: Some(Event::Image(image)) }));
    }
    Ok(())
}

/// An image with one layer.
pub async fn import(node: &Node, mut input: Streaming<v1::ImportInput>) -> Result<v1::ImportResponse, Error> {
    use v1::import_input::Input;
    let mut start = None;
    let spooling = Spooling::begin(node).await?;
    while let Some(message) = input.next().await {
        let Ok(message) = message else { return Err(Error::CallerGone) };
        match message.input {
            Some(Input::Start(first)) if start.is_none() => start = Some(first),
            Some(Input::Data(bytes)) if start.is_some() => spooling.push(bytes).await?,
            _ => return Err(Error::invalid("input", "begins with its start, which comes once")),
        }
    }
    let start = start.ok_or_else(|| Error::invalid("input", "is empty"))?;
    let made = node.mutation(move |node| async move {
        node.blocking(move |node| import_now(node, spooling, &start)).await
    });
    made.await.within(|| "import".to_owned())
}

fn import_now(node: &Node, spooling: Spooling, start: &v1::ImportStart) -> Result<v1::ImportResponse, Error> {
    let name = (!start.name.is_empty()).then(|| super::images::tag_name(&start.name)).transpose()?;
    let platform = match start.platform.as_str() {
        "" => Platform::host(),
        text => Platform::parse(text).ok_or_else(|| {
            Error::invalid("platform", format!("{text:?} is not os/architecture[/variant]"))
        })?,
    };
    let mut file = spooling.plain(node)?;
    let lease = node.store.lease();
    let mut ingest = node.store.ingest_layer(&lease, Algorithm::Sha256)?;
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut piece).map_err(pinnace_archive::Error::Read)?;
        if count == 0 {
            break;
        }
        ingest.push(piece.get(..count).unwrap_or_default())?;
    }
    let layer = ingest.finish_new()?;
    let created = clock::timestamp();
    let config = Config {
        created: Some(created.clone()),
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        rootfs: RootFs { diff_ids: vec![layer.diff_id], ..RootFs::default() },
        history: vec![History {
            created: Some(created),
            comment: start.message.clone(),
            ..History::default()
        }],
        ..Config::default()
    };
    let bytes = config
        .bytes()
        .map_err(|source| crate::record::Error::Json { path: "image config".into(), source })?;
    let names = name.into_iter().collect();
    let image = pinnace_archive::record(&node.store, &lease, &bytes, Vec::new(), names)?;
    Ok(v1::ImportResponse { id: image.id.to_string() })
}
