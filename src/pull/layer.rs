//! One layer from the network into the store.
//!
//! Three stages, each with a bounded queue before it. When a stage fails it drops its ends of the
//! queues, the others notice and stop, and the error that caused it is the one reported. The store
//! removes what an ingest has written unless it was finished.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;

use bytes::{Buf, Bytes, BytesMut};
use pinnace_registry::{Descriptor, Repository};
use pinnace_store::{DiffId, Digest, Hasher, LayerInfo, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::compression::{Decoder, MAGIC_BYTES};
use crate::error::{Error, LayerProblem};
use crate::keep::{Keep, Keeper};
use crate::partial::{Partial, Partials, Spool};
use crate::progress::{LayerProgress, Phase};
use crate::ranges::Fetch;

/// Pieces between inflate and store: the store passes pieces of this size on without a copy.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that may wait there.
const PIECES: usize = 4;
/// Pieces of the body that may wait before inflate; their bytes come out of the memory budget.
const CHUNKS: usize = 16;
/// Layers up to this size are not worth a second thread.
const SMALL_BYTES: u64 = 1 << 20;
/// The unit of the memory budget.
const MEMORY_UNIT: usize = 1 << 10;
/// Pieces in which the beginning of a layer is read back.
const KNOWN_BYTES: u64 = 256 << 10;

/// A layer that is in the store, and stays there while this exists.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) info: LayerInfo,
    pub(crate) keep: Arc<Keep>,
}

/// What all layers of a node share.
#[derive(Debug)]
pub(crate) struct Intake {
    store: Store,
    keeper: Arc<Keeper>,
    /// For what waits in a queue before inflate.
    memory: Arc<Semaphore>,
    memory_units: usize,
    /// For what arrives ahead of its turn; of its own, or those whose turn it is would wait for memory of those who wait
    /// for them.
    ahead: Arc<Semaphore>,
    partials: Option<Partials>,
}

/// Where unpacking gets its bytes from, and where they are kept for another attempt.
struct Chunks {
    chunks: mpsc::Receiver<Chunk>,
    spool: Spool,
}

/// What the network hands over.
enum Chunk {
    /// Bytes, with their share of the budget.
    Bytes(Bytes, OwnedSemaphorePermit),
    /// All bytes have been handed over. Without this, the end of the queue is a failure.
    End,
}

impl Intake {
    pub(crate) fn new(
        store: Store,
        keeper: Arc<Keeper>,
        memory_bytes: usize,
        partials: Option<Partials>,
    ) -> Self {
        let memory_units = (memory_bytes / 2 / MEMORY_UNIT).clamp(1 << 10, Semaphore::MAX_PERMITS);
        let semaphore = || Arc::new(Semaphore::new(memory_units));
        Self { store, keeper, memory: semaphore(), memory_units, ahead: semaphore(), partials }
    }

    /// Drops what was kept of a layer before it was whole.
    pub(crate) fn forget_partial(&self, blob: &Digest) {
        if let Some(partials) = &self.partials {
            partials.forget(blob);
        }
    }

    /// Fetches, verifies and stores a layer, from another server if one delivers rubbish.
    pub(crate) async fn take(
        self: Arc<Self>,
        repository: Repository,
        layer: Descriptor,
        diff_id: DiffId,
        progress: watch::Sender<LayerProgress>,
    ) -> Result<Held, Arc<Error>> {
        loop {
            let kept = self.partials.as_ref().filter(|_| !self.keeper.is_hopeless(&layer.digest));
            let partial = kept.and_then(|partials| partials.take(&layer));
            let known = partial.as_ref().map_or(0, Partial::length);
            let ahead = Arc::clone(&self.ahead);
            let mut fetch = Fetch::new(repository.clone(), layer.clone(), known, ahead);
            let taken = self.take_once(&mut fetch, &layer, diff_id, partial, &progress).await;
            let is_over = match &taken {
                Ok(_) => true,
                Err(error) => error.is_rubbish(),
            };
            if let Some(partials) = self.partials.as_ref().filter(|_| is_over) {
                partials.forget(&layer.digest);
                partials.expire();
            }
            match taken {
                Ok(held) => return Ok(held),
                Err(error) if error.is_rubbish() && known > 0 => {
                    tracing::warn!(
                        blob = %layer.digest,
                        error = &error as &dyn std::error::Error,
                        "what was kept of a layer is damaged: fetching it as a whole"
                    );
                }
                Err(error) if error.is_rubbish() && repository.distrust(fetch.server()) => {
                    tracing::warn!(
                        server = fetch.server(),
                        error = &error as &dyn std::error::Error,
                        "server delivered something else"
                    );
                }
                Err(error) => return Err(Arc::new(error)),
            }
        }
    }

    async fn take_once(
        &self,
        fetch: &mut Fetch,
        layer: &Descriptor,
        diff_id: DiffId,
        partial: Option<Partial>,
        progress: &watch::Sender<LayerProgress>,
    ) -> Result<Held, Error> {
        let keep = Arc::new(self.keeper.hold(vec![layer.digest]));
        let (chunks_tx, chunks_rx) = mpsc::channel(CHUNKS);
        let unpack = Unpack {
            store: self.store.clone(),
            keep: Arc::clone(&keep),
            blob: layer.digest,
            diff_id,
            pipelined: layer.size > SMALL_BYTES,
        };
        let known = partial.as_ref().map(Partial::reader).transpose();
        let spool = Spool::new(partial, layer.size);
        let unpacking = tokio::task::spawn_blocking(move || unpack.run(Chunks { chunks: chunks_rx, spool }));
        let downloaded = match known {
            Ok(known) => self.download(known, fetch, chunks_tx, progress).await,
            Err(source) => Err(Error::Partial { digest: layer.digest, source }),
        };
        progress.send_modify(|progress| progress.phase = Phase::Finishing);
        let unpacked = unpacking.await.map_err(|_| Error::Cancelled)?;
        let info = match (downloaded, unpacked) {
            // A cut download stops the unpacking, and not the other way round.
            (Err(error), _) => return Err(error),
            (Ok(()), Err(Stop::Problem(source))) => {
                return Err(Error::Layer { digest: layer.digest, source });
            }
            (Ok(()), Err(Stop::Elsewhere)) => return Err(Error::Cancelled),
            (Ok(()), Ok(info)) => info,
        };
        progress.send_modify(|progress| progress.phase = Phase::Done);
        Ok(Held { info, keep })
    }

    async fn download(
        &self,
        known: Option<impl Read + Send + 'static>,
        fetch: &mut Fetch,
        chunks: mpsc::Sender<Chunk>,
        progress: &watch::Sender<LayerProgress>,
    ) -> Result<(), Error> {
        progress.send_modify(|progress| progress.phase = Phase::Fetching);
        if let Some(mut known) = known {
            loop {
                let (rest, bytes) = tokio::task::spawn_blocking(move || {
                    let mut bytes = Vec::new();
                    let read = known.by_ref().take(KNOWN_BYTES).read_to_end(&mut bytes);
                    (known, read.map(|_| Bytes::from(bytes)))
                })
                .await
                .map_err(|_| Error::Cancelled)?;
                known = rest;
                let bytes =
                    bytes.map_err(|source| Error::Partial { digest: progress.borrow().digest, source })?;
                let length = bytes.len() as u64;
                if length == 0 {
                    break;
                }
                if !self.hand_over(bytes, &chunks).await {
                    return Ok(());
                }
                progress.send_modify(|progress| progress.done_bytes += length);
            }
        }
        while let Some(bytes) = fetch.chunk().await? {
            if !self.hand_over(bytes, &chunks).await {
                return Ok(());
            }
            progress.send_modify(|progress| progress.done_bytes = fetch.received());
        }
        // If nobody listens any more, they know why.
        let _: Result<(), _> = chunks.send(Chunk::End).await;
        Ok(())
    }

    /// Waits for memory and a place; tells whether unpacking goes on. If not, it knows why.
    async fn hand_over(&self, bytes: Bytes, chunks: &mpsc::Sender<Chunk>) -> bool {
        let units = bytes.len().div_ceil(MEMORY_UNIT).min(self.memory_units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.memory).acquire_many_owned(units).await else { return false };
        chunks.send(Chunk::Bytes(bytes, permit)).await.is_ok()
    }
}

/// Why a stage stopped.
enum Stop {
    /// Something is wrong here.
    Problem(LayerProblem),
    /// Another stage stopped first.
    Elsewhere,
}

/// The store does not take it.
fn refused(error: pinnace_store::Error) -> Stop {
    Stop::Problem(LayerProblem::Unpack(Box::new(error)))
}

/// Whether the content is to blame, not the disk.
fn is_malformed(error: &pinnace_store::Error) -> bool {
    matches!(error, pinnace_store::Error::Tar(_))
}

impl From<LayerProblem> for Stop {
    fn from(problem: LayerProblem) -> Self {
        match &problem {
            LayerProblem::Compression { source, .. }
                if source.get_ref().is_some_and(|e| e.is::<CutOff>()) =>
            {
                Self::Elsewhere
            }
            _ => Self::Problem(problem),
        }
    }
}

/// The blocking half of a layer.
struct Unpack {
    store: Store,
    keep: Arc<Keep>,
    blob: Digest,
    diff_id: DiffId,
    pipelined: bool,
}

impl Unpack {
    fn run(self, chunks: Chunks) -> Result<LayerInfo, Stop> {
        let info = if self.pipelined { self.in_two_threads(chunks) } else { self.in_one_thread(chunks) }?;
        self.keep.loosen();
        // Only a blob that was verified to unpack to this layer may stand for it later.
        self.store.record_layer_blob(&self.diff_id, &self.blob).map_err(refused)?;
        Ok(info)
    }

    fn in_one_thread(&self, chunks: Chunks) -> Result<LayerInfo, Stop> {
        let mut ingest =
            self.store.ingest_layer(self.keep.lease(), self.diff_id.digest().algorithm()).map_err(refused)?;
        let mut inflate = Inflate::new(self, chunks)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = match inflate.decoder.fill(&mut piece) {
                Ok(count) => count,
                Err(problem) => return Err(inflate.blame(problem.into())),
            };
            if let Err(error) = ingest.push(&piece[..count]) {
                return Err(if is_malformed(&error) {
                    inflate.blame(refused(error))
                } else {
                    refused(error)
                });
            }
            if count < piece.len() {
                break;
            }
        }
        inflate.finish()?;
        ingest.finish(&self.diff_id).map_err(refused)
    }

    fn in_two_threads(&self, chunks: Chunks) -> Result<LayerInfo, Stop> {
        let (full_tx, full_rx) = blocking::sync_channel::<(Vec<u8>, usize)>(PIECES);
        let (empty_tx, empty_rx) = blocking::channel::<Vec<u8>>();
        let (verified_tx, verified_rx) = blocking::sync_channel::<()>(1);
        let malformed = AtomicBool::new(false);
        let suspect = &malformed;
        std::thread::scope(|scope| {
            let inflating = move || -> Result<(), Stop> {
                let stopped = |inflate: Inflate| match suspect.load(Ordering::Acquire) {
                    true => inflate.blame(Stop::Elsewhere),
                    false => Stop::Elsewhere,
                };
                let mut inflate = Inflate::new(self, chunks)?;
                let mut made = 0;
                loop {
                    // Pieces come back from the store to be filled again.
                    let mut piece = if made < PIECES {
                        made += 1;
                        vec![0; PIECE_BYTES]
                    } else {
                        match empty_rx.recv() {
                            Ok(piece) => piece,
                            Err(_) => return Err(stopped(inflate)),
                        }
                    };
                    let count = match inflate.decoder.fill(&mut piece) {
                        Ok(count) => count,
                        Err(problem) => return Err(inflate.blame(problem.into())),
                    };
                    if full_tx.send((piece, count)).is_err() {
                        return Err(stopped(inflate));
                    }
                    if count < PIECE_BYTES {
                        break;
                    }
                }
                inflate.finish()?;
                verified_tx.send(()).map_err(|_| Stop::Elsewhere)
            };
            let inflating = std::thread::Builder::new()
                .name("inflate".to_owned())
                .spawn_scoped(scope, inflating)
                .map_err(|source| Stop::Problem(LayerProblem::Compression { format: "thread", source }))?;
            let stored = self.store_pieces(full_rx, empty_tx, verified_rx, suspect);
            match inflating.join() {
                Ok(Err(stop @ Stop::Problem(_))) => Err(stop),
                Ok(_) | Err(_) => stored,
            }
        })
    }

    fn store_pieces(
        &self,
        full: blocking::Receiver<(Vec<u8>, usize)>,
        empty: blocking::Sender<Vec<u8>>,
        verified: blocking::Receiver<()>,
        malformed: &AtomicBool,
    ) -> Result<LayerInfo, Stop> {
        let mut ingest =
            self.store.ingest_layer(self.keep.lease(), self.diff_id.digest().algorithm()).map_err(refused)?;
        while let Ok((piece, count)) = full.recv() {
            if let Err(error) = ingest.push(&piece[..count]) {
                // Before the channel closes, so that the other thread sees it when it looks.
                malformed.store(is_malformed(&error), Ordering::Release);
                return Err(refused(error));
            }
            // At the end nobody wants it back.
            let _: Result<(), _> = empty.send(piece);
        }
        // Nothing is committed before the compressed blob is known to be the right one.
        verified.recv().map_err(|_| Stop::Elsewhere)?;
        ingest.finish(&self.diff_id).map_err(refused)
    }
}

/// Decompression with the blob's digest computed beneath it.
struct Inflate {
    decoder: Decoder<ChunkReader>,
    blob: Digest,
}

impl Inflate {
    fn new(unpack: &Unpack, chunks: Chunks) -> Result<Self, LayerProblem> {
        // A blob that is not compressed has the layer's own digest, which the store verifies.
        let is_plain = unpack.blob == *unpack.diff_id.digest();
        let hasher = (!is_plain).then(|| Hasher::new(unpack.blob.algorithm()));
        let mut source = ChunkReader { chunks, current: Bytes::new(), permit: None, hasher, ended: false };
        source.begin().map_err(|source| LayerProblem::Compression { format: "plain", source })?;
        let decoder = Decoder::new(source)?;
        Ok(Self { decoder, blob: unpack.blob })
    }

    /// What was wrong with the content of a blob, unless the blob itself is not the one that was asked for: then that is
    /// the cause, and another attempt may help.
    fn blame(self, stop: Stop) -> Stop {
        match self.finish() {
            Err(problem @ LayerProblem::Blob { .. }) => Stop::Problem(problem),
            Ok(()) | Err(_) => stop,
        }
    }

    /// Reads whatever the decoder has left, and verifies the blob.
    fn finish(self) -> Result<(), LayerProblem> {
        let mut source = self.decoder.into_source();
        source.drain().map_err(|source| LayerProblem::Compression { format: "plain", source })?;
        match source.hasher.map(Hasher::finish) {
            Some(actual) if actual != self.blob => Err(LayerProblem::Blob { actual }),
            _ => Ok(()),
        }
    }
}

/// The queue ended without its end mark.
#[derive(Debug, thiserror::Error)]
#[error("stream was cut off")]
struct CutOff;

/// Chunks as a stream to read, hashed as they are taken up.
struct ChunkReader {
    chunks: Chunks,
    current: Bytes,
    permit: Option<OwnedSemaphorePermit>,
    hasher: Option<Hasher>,
    ended: bool,
}

impl ChunkReader {
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let count = self.fill_buf()?.len();
            if count == 0 {
                return Ok(());
            }
            self.consume(count);
        }
    }
}

impl ChunkReader {
    /// The next bytes, hashed and kept; nothing at the end.
    fn next(&mut self) -> io::Result<Option<(Bytes, OwnedSemaphorePermit)>> {
        match self.chunks.chunks.blocking_recv() {
            Some(Chunk::Bytes(bytes, permit)) => {
                self.chunks.spool.add(&bytes);
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&bytes);
                }
                Ok(Some((bytes, permit)))
            }
            Some(Chunk::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(io::Error::other(CutOff)),
        }
    }

    /// Makes the first piece long enough to tell formats apart, however the network cuts it.
    fn begin(&mut self) -> io::Result<()> {
        let mut start = BytesMut::new();
        while start.len() < MAGIC_BYTES && !self.ended {
            if let Some((bytes, permit)) = self.next()? {
                start.extend_from_slice(&bytes);
                self.permit = Some(permit);
            }
        }
        self.current = start.freeze();
        Ok(())
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            self.permit = None;
            if let Some((bytes, permit)) = self.next()? {
                self.current = bytes;
                self.permit = Some(permit);
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
