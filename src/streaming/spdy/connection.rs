//! One SPDY connection: a task that reads, a task that writes, and the streams that the client opens.
//!
//! Nothing in SPDY as it is spoken here tells a client to hold back one stream. Each stream has a bounded queue; when it
//! is full the connection is not read until there is room, so memory stays flat and TCP slows the client down. A
//! stream that takes nothing for [`Limits::stall`] is reset if others wait behind it. While it waits, the socket is
//! watched, so a client that leaves is noticed though nothing is read.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::frame::{self, Decoder, Frame, FrameError, HEADER_LENGTH};
use super::header_block::{HeaderDecoder, HeaderEncoder, HeaderError, Headers};
use crate::link::{HEADROOM, Link, Lost, Outbound, Outgoing};
use crate::queue::{self, Receiver, Sender};
use crate::socket::Probe;

/// Bytes that are read from the socket at once.
const READ_SIZE: usize = 64 * 1024;

/// Streams that a client may have open at a time.
const MAX_STREAMS: usize = 512;

/// Streams that may wait for the session to look at them.
const UNSEEN_STREAMS: usize = 64;

/// How often the socket is looked at while nothing is read from it.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// After our last byte, how long the client may take to close its side.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What bounds a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How long a stream may hold up the others; `None`: for ever.
    pub stall: Option<Duration>,
}

/// A stream that the client has opened; it waits for [`Stream::accept`] or [`Stream::refuse`].
#[derive(Debug)]
pub(crate) struct Stream {
    pub headers: Headers,
    pub incoming: Receiver,
    pub outgoing: Outgoing,
}

impl Stream {
    pub async fn accept(&self) -> Result<(), Lost> {
        self.outgoing.link.send(Outbound::Reply { stream: self.outgoing.stream }).await
    }

    pub async fn refuse(self) -> Result<(), Lost> {
        self.outgoing.reset(frame::PROTOCOL_ERROR).await
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub link: Link,
    pub streams: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Connection {
    /// Starts reading and writing. `buffered` is what came behind the request; `link` and `outbound` belong together.
    pub fn open<T>(
        io: T,
        buffered: Vec<u8>,
        probe: Probe,
        limits: Limits,
        link: Link,
        outbound: mpsc::Receiver<Outbound>,
    ) -> Connection
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read_half, write_half) = tokio::io::split(io);
        let (opened, streams) = mpsc::channel(UNSEEN_STREAMS);
        let reader = Reader {
            link: link.clone(),
            opened,
            probe,
            limits,
            decoder: Decoder::new(),
            headers: HeaderDecoder::new(),
            streams: HashMap::new(),
            last_stream: 0,
        };
        let reader = tokio::spawn(reader.run(read_half, buffered));
        let writer = tokio::spawn(write(write_half, outbound, link.clone()));
        Connection { link, streams, reader, writer }
    }

    /// Sends what is on its way and `GOAWAY`, then waits a little for the client to close. Whoever still holds a
    /// stream sees it reset.
    pub async fn close(mut self) {
        self.streams.close();
        if self.link.send(Outbound::End).await.is_ok() {
            // A slow client may take its time over what was sent; an idle one is given up by its session.
            let _ = (&mut self.writer).await;
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.reader).await;
        }
        self.link.lost.cancel();
        for task in [self.reader, self.writer] {
            if !task.is_finished() {
                let _ = task.await;
            }
        }
    }
}

/// Why reading ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client is gone")]
    Lost,
    #[error("the client closed the connection")]
    Closed,
    #[error("read: {0}")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("stream {stream} after {last}: a client's streams are odd and ascend")]
    StreamNumber { stream: u32, last: u32 },
}

impl From<Lost> for End {
    fn from(_: Lost) -> End {
        End::Lost
    }
}

struct Reader {
    link: Link,
    opened: mpsc::Sender<Stream>,
    probe: Probe,
    limits: Limits,
    decoder: Decoder,
    headers: HeaderDecoder,
    streams: HashMap<u32, Sender>,
    last_stream: u32,
}

impl Reader {
    async fn run<T: AsyncRead>(mut self, mut half: ReadHalf<T>, buffered: Vec<u8>) {
        let lost = self.link.lost.clone();
        let end = tokio::select! {
            Err(end) = self.read(&mut half, buffered) => end,
            () = lost.cancelled() => End::Lost,
        };
        if !matches!(end, End::Lost | End::Closed) {
            tracing::debug!(error = %end, "streaming connection ends");
        }
        lost.cancel();
    }

    async fn read<T: AsyncRead>(
        &mut self,
        half: &mut ReadHalf<T>,
        buffered: Vec<u8>,
    ) -> Result<std::convert::Infallible, End> {
        self.take(&buffered).await?;
        drop(buffered);
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let count = half.read(&mut buffer).await?;
            if count == 0 {
                return Err(End::Closed);
            }
            self.link.activity.touch();
            self.take(&buffer[..count]).await?;
        }
    }

    async fn take(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        while let Some(frame) = self.decoder.decode(&mut bytes)? {
            match frame {
                Frame::SynStream { stream, finish, unidirectional, block } => {
                    let headers = self.headers.decode(&block)?;
                    self.open(stream, headers, finish, unidirectional).await?;
                }
                Frame::SynReply { block, .. } => {
                    self.headers.decode(&block)?;
                }
                Frame::Headers { stream, finish, block } => {
                    self.headers.decode(&block)?;
                    if finish {
                        self.finish(stream);
                    }
                }
                Frame::Data { stream, bytes, finish } => {
                    if !bytes.is_empty() {
                        self.pass(stream, bytes).await?;
                    }
                    if finish {
                        self.finish(stream);
                    }
                }
                Frame::Reset { stream, .. } => {
                    if let Some(sender) = self.streams.remove(&stream) {
                        sender.reset();
                    }
                }
                // Even numbers would be echoes of pings of ours.
                Frame::Ping { id } if !id.is_multiple_of(2) => self.link.send(Outbound::Pong { id }).await?,
                Frame::Ping { .. } | Frame::GoAway { .. } => {}
            }
        }
        Ok(())
    }

    async fn open(
        &mut self,
        stream: u32,
        headers: Headers,
        finish: bool,
        unidirectional: bool,
    ) -> Result<(), End> {
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            return Err(End::StreamNumber { stream, last: self.last_stream });
        }
        self.last_stream = stream;
        self.streams.retain(|_, sender| !sender.is_over());
        if self.streams.len() >= MAX_STREAMS {
            self.streams.retain(|_, sender| !sender.is_abandoned());
        }
        if unidirectional || self.streams.len() >= MAX_STREAMS {
            return Ok(self.link.send(Outbound::Reset { stream, status: frame::REFUSED_STREAM }).await?);
        }
        let (sender, incoming) = queue::queue();
        if finish {
            sender.finish();
        }
        self.streams.insert(stream, sender);
        let outgoing = Outgoing { stream, link: self.link.clone() };
        if self.opened.send(Stream { headers, incoming, outgoing }).await.is_err() {
            self.streams.remove(&stream);
            self.link.send(Outbound::Reset { stream, status: frame::REFUSED_STREAM }).await?;
        }
        Ok(())
    }

    /// Passes bytes on, as fast as they are taken.
    async fn pass(&mut self, stream: u32, mut bytes: &[u8]) -> Result<(), End> {
        let Some(sender) = self.streams.get(&stream) else { return Ok(()) };
        let mut progress = Instant::now();
        loop {
            let taken = sender.push(bytes);
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                return Ok(());
            }
            if taken > 0 {
                progress = Instant::now();
                self.link.activity.touch();
            }
            if self.limits.stall.is_some_and(|limit| progress.elapsed() > limit) && self.others_wait(stream) {
                sender.reset();
                self.streams.remove(&stream);
                return Ok(self.link.send(Outbound::Reset { stream, status: frame::CANCEL }).await?);
            }
            if tokio::time::timeout(PROBE_INTERVAL, sender.room()).await.is_err() && self.probe.is_gone() {
                return Err(End::Lost);
            }
        }
    }

    /// Streams besides this one and the one that pairs with it are in use.
    fn others_wait(&self, stream: u32) -> bool {
        self.streams.iter().filter(|(other, sender)| **other != stream && !sender.is_over()).count() > 1
    }

    fn finish(&mut self, stream: u32) {
        if let Some(sender) = self.streams.get(&stream) {
            sender.finish();
        }
    }
}

async fn write<T: AsyncWrite>(mut half: WriteHalf<T>, mut outbound: mpsc::Receiver<Outbound>, link: Link) {
    let outcome = tokio::select! {
        outcome = write_all(&mut half, &mut outbound, &link) => outcome,
        () = link.lost.cancelled() => Ok(()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "streaming connection cannot be written to");
        link.lost.cancel();
    }
}

async fn write_all<T: AsyncWrite>(
    half: &mut WriteHalf<T>,
    outbound: &mut mpsc::Receiver<Outbound>,
    link: &Link,
) -> io::Result<()> {
    let mut headers = HeaderEncoder::new();
    let mut last_replied = 0;
    let mut batch = Vec::with_capacity(8);
    while outbound.recv_many(&mut batch, 8).await > 0 {
        for item in batch.drain(..) {
            match item {
                Outbound::Data { stream, mut frame } => {
                    let header = frame::data_header(stream, frame.len() - HEADROOM, false);
                    frame[..HEADER_LENGTH].copy_from_slice(&header);
                    half.write_all(&frame).await?;
                }
                Outbound::Finish { stream } => {
                    half.write_all(&frame::data_header(stream, 0, true)).await?;
                }
                Outbound::Reply { stream } => {
                    last_replied = last_replied.max(stream);
                    half.write_all(&frame::syn_reply(stream, &headers.encode(&[]))).await?;
                }
                Outbound::Reset { stream, status } => half.write_all(&frame::reset(stream, status)).await?,
                Outbound::Pong { id } => half.write_all(&frame::ping(id)).await?,
                Outbound::End => {
                    half.write_all(&frame::go_away(last_replied, 0)).await?;
                    half.flush().await?;
                    return half.shutdown().await;
                }
            }
            link.activity.touch();
        }
        half.flush().await?;
    }
    Ok(())
}
