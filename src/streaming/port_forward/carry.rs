//! One connection: the client's two streams on one side, the application's on the other.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::link::{HEADROOM, Lost, Outgoing, frame};
use crate::queue::{Receiver, Reset};
use crate::runtime::Runtime;
use crate::spdy::frame::CANCEL;

/// After the application has ended its side, how long the client may stay silent before its side ends, too.
const LINGER: Duration = Duration::from_secs(1);

/// How the client's direction ended.
enum Upward<'a> {
    /// The client closed its side and the application knows. It can still give the connection up.
    Finished(&'a Receiver),
    /// The application takes nothing more.
    Refused,
    /// The client gave the whole connection up.
    Reset,
}

/// Connects and carries both directions until both ended. Dropping this drops the application's connection.
pub(crate) async fn carry(
    runtime: &dyn Runtime,
    sandbox: &str,
    port: u16,
    mut incoming: Receiver,
    data: Outgoing,
    error: Outgoing,
) {
    let outcome = forward(runtime, sandbox, port, &mut incoming, &data, &error).await;
    if outcome.is_ok() {
        let _ = error.finish().await;
    }
}

async fn forward(
    runtime: &dyn Runtime,
    sandbox: &str,
    port: u16,
    incoming: &mut Receiver,
    data: &Outgoing,
    error: &Outgoing,
) -> Result<(), Lost> {
    let application = match runtime.port_forward(sandbox, port).await {
        Ok(application) => application,
        Err(failure) => {
            error.text(failure.message.as_bytes()).await?;
            error.finish().await?;
            data.reset(CANCEL).await?;
            return Err(Lost);
        }
    };
    let (from, to) = tokio::io::split(application);
    let moved = AtomicU64::new(0);
    let ended = {
        let upward = upward(incoming, to, &moved);
        let downward = downward(from, data);
        tokio::pin!(upward, downward);
        tokio::select! {
            biased;
            ended = &mut downward => {
                match ended {
                    Ok(()) => {
                        data.finish().await?;
                        linger(upward, &moved).await;
                        Ok(())
                    }
                    Err(end) => Err(end),
                }
            }
            ended = &mut upward => match ended {
                Upward::Reset => return Ok(()),
                // The application's answer to all of it is still to come, however long it takes.
                Upward::Finished(incoming) => tokio::select! {
                    ended = downward => finish(ended, data).await,
                    () = incoming.until_reset() => return Ok(()),
                },
                Upward::Refused => finish(downward.await, data).await,
            },
        }
    };
    match ended {
        Ok(()) if incoming.is_finished() => Ok(()),
        // The client still sends: it is told to stop.
        Ok(()) => data.reset(CANCEL).await,
        Err(Downward::Lost) => Err(Lost),
        Err(Downward::Broken(reason)) => {
            tracing::debug!(error = %reason, sandbox_id = sandbox, port, "forwarded connection breaks");
            data.reset(CANCEL).await
        }
    }
}

/// Carries the client's bytes to the application.
async fn upward<'a>(
    incoming: &'a mut Receiver,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    moved: &AtomicU64,
) -> Upward<'a> {
    let mut chunk = Vec::new();
    loop {
        match incoming.read(&mut chunk).await {
            Ok(true) => {
                moved.fetch_add(1, Ordering::Relaxed);
                if to.write_all(&chunk).await.is_err() || to.flush().await.is_err() {
                    return Upward::Refused;
                }
            }
            Ok(false) => {
                return if to.shutdown().await.is_ok() {
                    Upward::Finished(incoming)
                } else {
                    Upward::Refused
                };
            }
            Err(Reset) => return Upward::Reset,
        }
    }
}

/// Why the application's direction ended before its end.
enum Downward {
    Broken(io::Error),
    Lost,
}

/// Tells the client that the application has ended its side.
async fn finish(ended: Result<(), Downward>, data: &Outgoing) -> Result<(), Downward> {
    ended?;
    data.finish().await.map_err(|Lost| Downward::Lost)
}

/// Carries the application's bytes to the client.
async fn downward(mut from: impl tokio::io::AsyncRead + Unpin, data: &Outgoing) -> Result<(), Downward> {
    loop {
        let mut frame = frame();
        from.read_buf(&mut frame).await.map_err(Downward::Broken)?;
        if frame.len() == HEADROOM {
            return Ok(());
        }
        data.send(frame).await.map_err(|Lost| Downward::Lost)?;
    }
}

/// Waits for the client's end, as long as it keeps sending.
async fn linger<'a>(mut upward: impl Future<Output = Upward<'a>> + Unpin, moved: &AtomicU64) {
    loop {
        let before = moved.load(Ordering::Relaxed);
        if tokio::time::timeout(LINGER, &mut upward).await.is_ok() || moved.load(Ordering::Relaxed) == before
        {
            return;
        }
    }
}
