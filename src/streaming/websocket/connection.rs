//! One WebSocket with channels: a task that reads, a task that writes.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::channel::{self, ChannelMessage, Encoding};
use crate::link::{HEADROOM, Link, Outbound};
use crate::queue::Sender;
use crate::socket::{Probe, Socket};

/// Longest message that is taken.
pub(crate) const MAX_MESSAGE_LENGTH: usize = 4 << 20;

const BUFFER_SIZE: usize = 64 * 1024;
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Stream = WebSocketStream<Socket>;

/// The server's end of an upgraded connection.
pub(crate) async fn stream(io: Socket, buffered: Vec<u8>) -> Stream {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_SIZE)
        .write_buffer_size(BUFFER_SIZE)
        .max_message_size(Some(MAX_MESSAGE_LENGTH))
        .max_frame_size(Some(MAX_MESSAGE_LENGTH));
    WebSocketStream::from_partially_read(io, buffered, Role::Server, Some(config)).await
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub link: Link,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Connection {
    /// Starts reading and writing. `incoming` are the channels that the client may write to, by number.
    pub fn open(
        stream: Stream,
        probe: Probe,
        encoding: Encoding,
        incoming: Vec<Option<Sender>>,
        link: Link,
        outbound: mpsc::Receiver<Outbound>,
    ) -> Connection {
        let (sink, messages) = stream.split();
        let reader = tokio::spawn(read(messages, probe, encoding, incoming, link.clone()));
        let writer = tokio::spawn(write(sink, encoding, outbound, link.clone()));
        Connection { link, reader, writer }
    }

    /// Sends what is on its way and a close message, then waits a little for the client's.
    pub async fn close(mut self) {
        if self.link.send(Outbound::End).await.is_ok() {
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

async fn read(
    mut messages: SplitStream<Stream>,
    probe: Probe,
    encoding: Encoding,
    incoming: Vec<Option<Sender>>,
    link: Link,
) {
    let reading = async {
        while let Some(message) = messages.next().await {
            link.activity.touch();
            let bytes: Bytes = match message? {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                _ => continue,
            };
            match channel::decode(encoding, &bytes) {
                Ok(ChannelMessage::Data { channel, bytes }) => {
                    if let Some(Some(sender)) = incoming.get(usize::from(channel))
                        && !pass(sender, &bytes, &probe, &link).await
                    {
                        break;
                    }
                }
                Ok(ChannelMessage::Close { channel }) => {
                    if let Some(Some(sender)) = incoming.get(usize::from(channel)) {
                        sender.finish();
                    }
                }
                Ok(ChannelMessage::Empty) => {}
                Err(error) => {
                    tracing::debug!(%error, "streaming connection ends");
                    break;
                }
            }
        }
        Ok::<(), Error>(())
    };
    let outcome = tokio::select! {
        outcome = reading => outcome,
        () = link.lost.cancelled() => Ok(()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "streaming connection cannot be read");
    }
    link.lost.cancel();
}

/// Passes bytes on as fast as they are taken; `false` when the client leaves meanwhile.
async fn pass(sender: &Sender, mut bytes: &[u8], probe: &Probe, link: &Link) -> bool {
    loop {
        let taken = sender.push(bytes);
        bytes = &bytes[taken..];
        if bytes.is_empty() {
            return true;
        }
        if taken > 0 {
            link.activity.touch();
        }
        if tokio::time::timeout(PROBE_INTERVAL, sender.room()).await.is_err() && probe.is_gone() {
            return false;
        }
    }
}

async fn write(
    mut sink: SplitSink<Stream, Message>,
    encoding: Encoding,
    outbound: mpsc::Receiver<Outbound>,
    link: Link,
) {
    let outcome = tokio::select! {
        outcome = write_all(&mut sink, encoding, outbound, &link) => outcome,
        () = link.lost.cancelled() => Ok(()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "streaming connection cannot be written to");
        link.lost.cancel();
    }
}

async fn write_all(
    sink: &mut SplitSink<Stream, Message>,
    encoding: Encoding,
    mut outbound: mpsc::Receiver<Outbound>,
    link: &Link,
) -> Result<(), Error> {
    let mut batch = Vec::with_capacity(8);
    while outbound.recv_many(&mut batch, 8).await > 0 {
        for item in batch.drain(..) {
            match item {
                Outbound::Data { stream, mut frame } => {
                    let channel = u8::try_from(stream).unwrap_or(u8::MAX);
                    let message = match encoding {
                        Encoding::Base64 => {
                            Message::text(channel::base64_message(channel, &frame[HEADROOM..]))
                        }
                        Encoding::Binary | Encoding::BinaryWithClose => {
                            frame[HEADROOM - 1] = channel;
                            Message::Binary(frame.freeze().slice(HEADROOM - 1..))
                        }
                    };
                    sink.feed(message).await?;
                    link.activity.touch();
                }
                Outbound::End => {
                    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    return sink.send(Message::Close(Some(close))).await;
                }
                // Channels are neither opened nor ended by the server.
                Outbound::Finish { .. }
                | Outbound::Reply { .. }
                | Outbound::Reset { .. }
                | Outbound::Pong { .. } => {}
            }
        }
        sink.flush().await?;
    }
    Ok(())
}
