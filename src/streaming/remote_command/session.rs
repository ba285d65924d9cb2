//! A session, from the moment when all of the client's streams exist.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::resize::{ResizeError, SizeDecoder};
use super::status::StatusFormat;
use crate::link::{HEADROOM, Link, Lost, Outgoing, frame};
use crate::queue::Receiver;
use crate::runtime::{
    AttachRequest, Control, ExecRequest, ExitStatus, Failure, Runtime, Session, TerminalSize,
};

/// Clients open the streams and then tell their terminal's size: this long a start waits for it, so that programs
/// do not first see a terminal of 0 by 0.
const FIRST_SIZE_TIMEOUT: Duration = Duration::from_millis(50);

/// What the client asked for.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Command {
    pub fn stdin(&self) -> bool {
        match self {
            Command::Exec(request) => request.stdin,
            Command::Attach(request) => request.stdin,
        }
    }

    pub fn stdout(&self) -> bool {
        match self {
            Command::Exec(request) => request.stdout,
            Command::Attach(request) => request.stdout,
        }
    }

    /// A terminal has one output.
    pub fn stderr(&self) -> bool {
        !self.tty()
            && match self {
                Command::Exec(request) => request.stderr,
                Command::Attach(request) => request.stderr,
            }
    }

    pub fn tty(&self) -> bool {
        match self {
            Command::Exec(request) => request.tty,
            Command::Attach(request) => request.tty,
        }
    }

    async fn start(self, runtime: &dyn Runtime, size: Option<TerminalSize>) -> Result<Session, Failure> {
        match self {
            Command::Exec(request) => runtime.exec(request, size).await,
            Command::Attach(request) => runtime.attach(request, size).await,
        }
    }
}

/// The client's streams.
#[derive(Debug)]
pub(crate) struct Ends {
    pub stdin: Option<Receiver>,
    pub stdout: Option<Outgoing>,
    pub stderr: Option<Outgoing>,
    pub error: Outgoing,
    pub resize: Option<Receiver>,
    pub format: StatusFormat,
}

/// Runs a session to its end: the client has its status, or is gone and the process was hung up.
pub(crate) async fn run(command: Command, ends: Ends, runtime: &dyn Runtime, link: &Link, drain: Duration) {
    let Ends { stdin, stdout, stderr, error, resize, format } = ends;
    let mut sizes = resize.map(Sizes::new);
    let first = match &mut sizes {
        Some(sizes) => sizes.first().await,
        None => None,
    };
    if link.lost.is_cancelled() {
        return;
    }
    let outcome = match command.start(runtime, first).await {
        Ok(session) => {
            let Session { stdin: input, stdout: output, stderr: errors, control, exit } = session;
            let carried = {
                let ended = CancellationToken::new();
                let outputs = async {
                    tokio::join!(send(output, stdout, &ended, drain), send(errors, stderr, &ended, drain));
                };
                let exit = async {
                    let outcome = exit.await;
                    ended.cancel();
                    outcome
                };
                let both = async { tokio::join!(exit, outputs).0 };
                let inputs = async {
                    tokio::join!(receive(stdin, input), resizes(sizes, &*control));
                };
                tokio::select! {
                    biased;
                    () = link.lost.cancelled() => Err(Lost),
                    outcome = both => Ok(outcome),
                    () = async { inputs.await; std::future::pending().await } => Err(Lost),
                }
            };
            match carried {
                Ok(outcome) => outcome,
                Err(Lost) => return control.hang_up().await,
            }
        }
        Err(failure) => Err(failure),
    };
    let _ = tell(&error, format, &outcome).await;
}

/// Writes the status and ends the error stream.
pub(crate) async fn tell(
    error: &Outgoing,
    format: StatusFormat,
    outcome: &Result<ExitStatus, Failure>,
) -> Result<(), Lost> {
    let status = format.bytes(outcome);
    if !status.is_empty() {
        error.text(&status).await?;
    }
    error.finish().await
}

/// Sends a process's output to the client, until it ends or has been silent for `drain` after the process.
async fn send(
    source: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: Option<Outgoing>,
    ended: &CancellationToken,
    drain: Duration,
) {
    let Some(to) = to else { return };
    if let Some(mut source) = source {
        loop {
            let mut frame = frame();
            let read = if ended.is_cancelled() {
                tokio::time::timeout(drain, source.read_buf(&mut frame)).await.unwrap_or(Ok(0))
            } else {
                tokio::select! {
                    biased;
                    read = source.read_buf(&mut frame) => read,
                    () = ended.cancelled() => continue,
                }
            };
            // A terminal's end is an error of reading (EIO).
            if read.is_err() || frame.len() == HEADROOM || to.send(frame).await.is_err() {
                break;
            }
        }
    }
    let _ = to.finish().await;
}

/// Writes the client's input to a process. What comes when nobody takes it any more is thrown away.
async fn receive(from: Option<Receiver>, to: Option<Box<dyn AsyncWrite + Send + Unpin>>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    let mut chunk = Vec::new();
    while let Ok(true) = from.read(&mut chunk).await {
        if to.write_all(&chunk).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn resizes(sizes: Option<Sizes>, control: &dyn Control) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.next().await {
        control.resize(size).await;
    }
}

/// The sizes that a client sends.
struct Sizes {
    from: Receiver,
    decoder: SizeDecoder,
    chunk: Vec<u8>,
    failed: bool,
}

impl Sizes {
    fn new(from: Receiver) -> Sizes {
        Sizes { from, decoder: SizeDecoder::new(), chunk: Vec::new(), failed: false }
    }

    /// The last size that is there, or the first that comes in time.
    async fn first(&mut self) -> Option<TerminalSize> {
        let first = tokio::time::timeout(FIRST_SIZE_TIMEOUT, self.next()).await.ok()??;
        let mut last = first;
        while let Some(Ok(true)) = self.from.try_read(&mut self.chunk) {
            match self.decode() {
                Ok(size) => last = size.unwrap_or(last),
                Err(_) => break,
            }
        }
        Some(last)
    }

    async fn next(&mut self) -> Option<TerminalSize> {
        while !self.failed && self.from.read(&mut self.chunk).await == Ok(true) {
            if let Some(size) = self.decode().ok()? {
                return Some(size);
            }
        }
        None
    }

    fn decode(&mut self) -> Result<Option<TerminalSize>, ResizeError> {
        self.decoder.decode(&self.chunk).inspect_err(|error| {
            self.failed = true;
            tracing::debug!(%error, "streaming client's resizing ends");
        })
    }
}
