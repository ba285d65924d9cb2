//! What a session holds of its client's connection, whichever protocol that speaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Room before the payload of [`Outbound::Data`], for the frame's header.
pub(crate) const HEADROOM: usize = 8;

/// Bytes that are read at once from a process or an application.
pub(crate) const READ_SIZE: usize = 32 * 1024;

/// What may wait for a connection's writer.
const OUTBOUND_LIMIT: usize = 16;

/// What a connection's writer puts on the wire, in order.
#[derive(Debug)]
pub(crate) enum Outbound {
    /// `HEADROOM` bytes of any content, then the payload.
    Data { stream: u32, frame: BytesMut },
    /// No more data of ours in the stream.
    Finish { stream: u32 },
    /// The stream is accepted.
    Reply { stream: u32 },
    /// The stream ends in both directions.
    Reset { stream: u32, status: u32 },
    /// A ping is answered.
    Pong { id: u32 },
    /// Nothing follows.
    End,
}

/// The client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

/// A connection, to its sessions.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    outbound: mpsc::Sender<Outbound>,
    /// Cancelled when the client is gone, or is to be given up.
    pub lost: CancellationToken,
    pub activity: Activity,
}

impl Link {
    pub fn new(lost: CancellationToken) -> (Link, mpsc::Receiver<Outbound>) {
        let (outbound, queue) = mpsc::channel(OUTBOUND_LIMIT);
        (Link { outbound, lost, activity: Activity::new() }, queue)
    }

    pub async fn send(&self, item: Outbound) -> Result<(), Lost> {
        tokio::select! {
            sent = self.outbound.send(item) => sent.map_err(|_| Lost),
            () = self.lost.cancelled() => Err(Lost),
        }
    }
}

/// Our direction of one stream.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub stream: u32,
    pub link: Link,
}

impl Outgoing {
    /// Sends a frame that was read behind `HEADROOM` bytes.
    pub async fn send(&self, frame: BytesMut) -> Result<(), Lost> {
        self.link.send(Outbound::Data { stream: self.stream, frame }).await
    }

    /// Sends a short text.
    pub async fn text(&self, text: &[u8]) -> Result<(), Lost> {
        let mut frame = frame();
        frame.extend_from_slice(text);
        self.send(frame).await
    }

    /// Ends our direction.
    pub async fn finish(&self) -> Result<(), Lost> {
        self.link.send(Outbound::Finish { stream: self.stream }).await
    }

    /// Ends both directions.
    pub async fn reset(&self, status: u32) -> Result<(), Lost> {
        self.link.send(Outbound::Reset { stream: self.stream, status }).await
    }
}

/// An empty frame with its headroom, to be read into.
pub(crate) fn frame() -> BytesMut {
    let mut frame = BytesMut::with_capacity(HEADROOM + READ_SIZE);
    frame.resize(HEADROOM, 0);
    frame
}

/// When a connection last moved a byte.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Activity {
    fn new() -> Activity {
        Activity { start: Instant::now(), last_ms: Arc::default() }
    }

    pub fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for `limit`.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let idle = self.start.elapsed().saturating_sub(last);
            match limit.checked_sub(idle) {
                Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
                _ => return,
            }
        }
    }
}
