//! A blob from the network in order, over several connections when one is too slow.
//!
//! ```text
//!              position      next
//! ├── delivered ──┤█head█│ahead│ahead│ahead│ not asked for yet ──────┤
//! ```
//!
//! It begins as one stream. Once it turns out that the stages behind it wait for the network, the next pieces are fetched
//! side by side. What arrives early waits in memory, which is taken from a budget before a piece is asked for: the window
//! is as wide as the budget allows and no wider. A server that does not serve ranges is read as one stream again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pinnace_registry::{BlobStream, Descriptor, Error, Repository};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

/// Bytes of one piece.
const PIECE_BYTES: u64 = 4 << 20;
/// Pieces of one blob that are under way beside the head.
const PIECES_MAX: usize = 7;
/// A rest below this is left to one stream.
const REST_BYTES_MIN: u64 = 4 * PIECE_BYTES;
/// How long the first stream is watched.
const WATCH: Duration = Duration::from_millis(500);
/// The unit of the budget.
pub(crate) const MEMORY_UNIT: u64 = 1 << 10;

/// A blob on its way.
pub(crate) struct Fetch {
    repository: Repository,
    layer: Descriptor,
    head: Head,
    ahead: VecDeque<Piece>,
    position: u64,
    /// Where the part begins that nobody has asked for; the blob's end while the head is one stream.
    next: u64,
    budget: Arc<Semaphore>,
    may_split: bool,
    server: String,
    watched_since: Instant,
    waited: Duration,
}

enum Head {
    /// To the end of the blob, or until the first piece begins.
    Stream(Box<BlobStream>),
    Piece(Piece),
}

struct Piece {
    start: u64,
    end: u64,
    bytes: mpsc::UnboundedReceiver<Result<(Bytes, String), Error>>,
    task: AbortHandle,
    /// Its share of the window.
    _memory: OwnedSemaphorePermit,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fetch {
    /// From `position` on. The budget is in units of [`MEMORY_UNIT`].
    pub(crate) fn new(
        repository: Repository,
        layer: Descriptor,
        position: u64,
        budget: Arc<Semaphore>,
    ) -> Self {
        let stream = repository.fetch_blob(&layer, position);
        Self {
            server: stream.server().to_owned(),
            head: Head::Stream(Box::new(stream)),
            ahead: VecDeque::new(),
            position,
            next: layer.size,
            budget,
            may_split: true,
            watched_since: Instant::now(),
            waited: Duration::ZERO,
            repository,
            layer,
        }
    }

    /// Bytes that were delivered, with those before the start.
    pub(crate) fn received(&self) -> u64 {
        self.position
    }

    /// The server that delivered last.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// The next bytes, or nothing at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let before = Instant::now();
            let bytes = match &mut self.head {
                Head::Stream(stream) => {
                    let bytes = stream.chunk().await?;
                    self.server.replace_range(.., stream.server());
                    let Some(bytes) = bytes else { return Ok(None) };
                    self.waited += before.elapsed();
                    bytes
                }
                Head::Piece(piece) => match piece.bytes.recv().await {
                    Some(Ok((bytes, server))) => {
                        self.server = server;
                        bytes
                    }
                    // One stream knows how to go on after whatever it was, and where to give up.
                    Some(Err(error)) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "back to one stream");
                        self.join();
                        continue;
                    }
                    None if self.position == self.layer.size => return Ok(None),
                    None if self.position == piece.end => {
                        self.advance();
                        continue;
                    }
                    None => {
                        self.join();
                        continue;
                    }
                },
            };
            let bytes = self.clipped(bytes);
            self.position += bytes.len() as u64;
            self.consider();
            if bytes.is_empty() {
                continue;
            }
            return Ok(Some(bytes));
        }
    }

    /// Without what a piece will bring; goes over to the piece when nothing is left of the stream.
    fn clipped(&mut self, bytes: Bytes) -> Bytes {
        let Some(first) = self.ahead.front().filter(|_| matches!(self.head, Head::Stream(_))) else {
            return bytes;
        };
        let left = first.start.saturating_sub(self.position);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if bytes.len() < left {
            return bytes;
        }
        self.head = match self.ahead.pop_front() {
            Some(piece) => Head::Piece(piece),
            None => return bytes,
        };
        bytes.slice(..left)
    }

    /// The head is used up: the next piece, or one stream for the rest if nothing was asked for.
    fn advance(&mut self) {
        match self.ahead.pop_front() {
            Some(piece) => self.head = Head::Piece(piece),
            None => self.join(),
        }
    }

    /// One stream for all the rest.
    fn join(&mut self) {
        self.ahead.clear();
        self.may_split = false;
        self.next = self.layer.size;
        self.head = Head::Stream(Box::new(self.repository.fetch_blob(&self.layer, self.position)));
    }

    /// Asks for pieces, if the network is what everyone waits for.
    fn consider(&mut self) {
        if !self.may_split {
            return;
        }
        if matches!(self.head, Head::Stream(_)) && self.ahead.is_empty() {
            let watched = self.watched_since.elapsed();
            if watched < WATCH {
                return;
            }
            let is_waiting = self.waited > watched.mul_f64(0.6);
            (self.watched_since, self.waited) = (Instant::now(), Duration::ZERO);
            if !is_waiting || self.layer.size - self.position < REST_BYTES_MIN {
                return;
            }
            // The stream itself brings one more piece.
            self.next = self.position + PIECE_BYTES;
        }
        while self.ahead.len() < PIECES_MAX && self.next < self.layer.size {
            let units = u32::try_from(PIECE_BYTES / MEMORY_UNIT).unwrap_or(u32::MAX);
            let Ok(memory) = Arc::clone(&self.budget).try_acquire_many_owned(units) else { break };
            self.ask(memory);
        }
        if self.ahead.is_empty() && matches!(self.head, Head::Stream(_)) {
            self.next = self.layer.size;
        }
    }

    fn ask(&mut self, memory: OwnedSemaphorePermit) {
        let (start, end) = (self.next, (self.next + PIECE_BYTES).min(self.layer.size));
        let mut stream = self.repository.fetch_range(&self.layer, start..end);
        let (sender, bytes) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let piece = match stream.chunk().await {
                    Ok(Some(bytes)) => Ok((bytes, stream.server().to_owned())),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_over = piece.is_err();
                if sender.send(piece).is_err() || is_over {
                    return;
                }
            }
        });
        self.ahead.push_back(Piece { start, end, bytes, task: task.abort_handle(), _memory: memory });
        self.next = end;
    }
}
