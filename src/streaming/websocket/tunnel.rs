//! A byte stream in binary messages.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_util::sync::CancellationToken;

use super::connection::stream;
use crate::socket::Socket;

/// Bytes under way in each direction, and in a message.
const SIZE: usize = 64 * 1024;

/// The stream inside, and a task that carries it until both directions ended or `lost`.
pub(crate) async fn open(
    io: Socket,
    buffered: Vec<u8>,
    lost: CancellationToken,
) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (inner, outer) = tokio::io::duplex(SIZE);
    let (mut from_inner, mut to_inner) = tokio::io::split(outer);
    let (mut sink, mut messages) = stream(io, buffered).await.split();
    let carrier = tokio::spawn(async move {
        let incoming = async {
            while let Some(message) = messages.next().await {
                let bytes: Bytes = match message {
                    Ok(Message::Binary(bytes)) => bytes,
                    Ok(Message::Text(text)) => text.into(),
                    Ok(_) => continue,
                    Err(_) => break,
                };
                if to_inner.write_all(&bytes).await.is_err() {
                    // Nobody listens any more; the client's close is still awaited.
                    continue;
                }
            }
            let _ = to_inner.shutdown().await;
        };
        let outgoing = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(SIZE);
                if from_inner.read_buf(&mut buffer).await? == 0 {
                    break;
                }
                sink.send(Message::Binary(buffer.split().freeze())).await.map_err(io::Error::other)?;
            }
            let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            sink.send(Message::Close(Some(close))).await.map_err(io::Error::other)
        };
        tokio::select! {
            ended = async { tokio::join!(incoming, outgoing).1 } => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "streaming tunnel ends");
                }
            }
            () = lost.cancelled() => {}
        }
    });
    (inner, carrier)
}
