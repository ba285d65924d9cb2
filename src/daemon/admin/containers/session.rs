//! Attach and Exec: streams of a program over one call.
//!
//! ```text
//! client ── stdin, resize ──► [ incoming ] ──► pipe ──► program (or monitor)
//!        ◄─ stdout, stderr ── [ outgoing ] ◄── pipes ◄──
//! ```
//! Output comes before the exit code, which is the last message. A client that goes away ends what it has started by Exec,
//! as a lost terminal would; an attached container lives on.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pinnace_admin_api::v1;
use pinnace_admin_api::v1::session_input::Input;
use pinnace_admin_api::v1::session_output::Output;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Response, Status, Streaming};

use super::{Answer, refused};
use crate::container::attach::{Attachment, Wanted};
use crate::container::exec::{Command, Exec, Streams, Terminal, Window};
use crate::error::{Error, Within as _};
use crate::local::record::State;
use crate::local::{LocalContainer, start};
use crate::node::Node;

/// Messages that wait for the network.
const QUEUED: usize = 16;

/// Read in one go; a pipe holds as much.
const CHUNK_BYTES: usize = 64 << 10;

/// For the rest of the output of a program that has ended, whose pipe another holds open.
const DRAIN: Duration = Duration::from_secs(2);

type Outgoing = mpsc::Sender<Result<v1::SessionOutput, Status>>;

/// Answers either, by the first message.
pub async fn answer(
    node: &Node,
    mut incoming: Streaming<v1::SessionInput>,
) -> Answer<BoxStream<v1::SessionOutput>> {
    let first = incoming.message().await?.and_then(|message| message.input);
    let node = node.shared()?;
    let (outgoing, receiver) = mpsc::channel(QUEUED);
    match first {
        Some(Input::Attach(request)) => Box::pin(attach(node, request, incoming, outgoing)).await?,
        Some(Input::Exec(request)) => Box::pin(exec(node, request, incoming, outgoing)).await?,
        _ => {
            Err(Error::invalid("input", "the first message says neither what to attach nor what to execute"))?
        }
    }
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

async fn attach(
    node: Arc<Node>,
    request: v1::AttachStart,
    incoming: Streaming<v1::SessionInput>,
    outgoing: Outgoing,
) -> Result<(), Status> {
    let local = node.local.find(&request.container)?;
    let wanted = Wanted {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        lossless: true,
        size: request.size.and_then(rows_and_columns),
    };
    let what = || format!("attach to container {}", local.record().name);
    let joined = if request.start {
        start::start(&node, Arc::clone(&local), Some(wanted)).await.map_err(refused)?
    } else {
        None
    };
    let (attachment, streams) = match joined {
        Some(joined) => joined,
        None => {
            if let State::Running { paused: true, .. } = local.state() {
                Err(paused(&local)).within(what)?;
            }
            let container = local.running().within(what)?;
            Attachment::join(&node, container, wanted).await.within(what)?
        }
    };
    let window = attachment.terminal.then(|| attachment.window());
    if let (Some(window), Some(size)) = (&window, request.size) {
        resize(window, size).await;
    }
    let begun = v1::SessionBegun { id: local.id.to_string(), terminal: attachment.terminal };
    send(&outgoing, Output::Begun(begun)).await;
    let ends = Ends::of(streams)?;
    tokio::spawn(async move {
        let reading = tokio::spawn(feed(incoming, ends.stdin, window));
        let copying = copy_both(ends.stdout, ends.stderr, outgoing.clone());
        let closing = node.closing.clone();
        let mut state = local.follow();
        let over = async {
            // Both ends: that of the streams, and that of the program as the record has it.
            tokio::join!(copying, attachment.over()).1
        };
        tokio::select! {
            over = over => {
                if let Err(error) = over {
                    let _: Result<_, _> = outgoing.send(Err(error.into())).await;
                } else {
                    let ended = async {
                        let ended = state.wait_for(|state| !state.is_running()).await;
                        ended.map(|state| state.code()).unwrap_or_default()
                    };
                    tokio::select! {
                        code = ended => send(&outgoing, Output::ExitCode(code)).await,
                        () = outgoing.closed() => {}
                        () = closing.cancelled() => {}
                    }
                }
            }
            // The client has left; what it had joined goes on.
            () = outgoing.closed() => {}
            () = closing.cancelled() => {
                let _: Result<_, _> = outgoing.send(Err(Error::ShuttingDown.into())).await;
            }
        }
        reading.abort();
    });
    Ok(())
}

fn paused(local: &LocalContainer) -> Error {
    Error::State {
        subject: format!("container {}", local.record().name),
        state: "paused".to_owned(),
        hint: "unpause it first".to_owned(),
    }
}

async fn exec(
    node: Arc<Node>,
    request: v1::ExecStart,
    incoming: Streaming<v1::SessionInput>,
    outgoing: Outgoing,
) -> Result<(), Status> {
    let local = node.local.find(&request.container)?;
    let what = || format!("exec in container {}", local.record().name);
    if let State::Running { paused: true, .. } = local.state() {
        Err(paused(&local)).within(what)?;
    }
    if request.args.is_empty() {
        Err(Error::invalid("args", "is empty")).within(what)?;
    }
    let container = local.running().within(what)?;
    let size = request.size.and_then(rows_and_columns);
    let detached = request.detach;
    let command = Command {
        args: request.args.clone(),
        stdin: request.stdin && !detached,
        stdout: !detached || request.terminal,
        stderr: !detached,
        terminal: request.terminal.then_some(Terminal { size }),
        env: request.env,
        working_dir: Some(PathBuf::from(request.working_dir)).filter(|path| !path.as_os_str().is_empty()),
        user: Some(request.user).filter(|user| !user.is_empty()),
        privileged: request.privileged,
    };
    let begun = Exec::start(&node, &container, command).await.within(what);
    let (mut exec, streams) = begun.map_err(refused)?;
    local.tell(&node.local, format!("exec_start: {}", request.args.join(" ")), &[]);
    let window = request.terminal.then(|| exec.window());
    let begun = v1::SessionBegun { id: local.id.to_string(), terminal: request.terminal };
    send(&outgoing, Output::Begun(begun)).await;
    let ends = Ends::of(streams)?;
    tokio::spawn(async move {
        if detached {
            // A terminal's output is nobody's, but must be read.
            let (nowhere, mut receiver) = mpsc::channel(QUEUED);
            let discarding = tokio::spawn(async move { while receiver.recv().await.is_some() {} });
            let copying = tokio::spawn(copy_both(ends.stdout, ends.stderr, nowhere));
            send(&outgoing, Output::ExitCode(0)).await;
            drop(outgoing);
            let _ = exec.ended().await;
            copying.abort();
            discarding.abort();
            exec.clear(&node).await;
            return;
        }
        let reading = tokio::spawn(feed(incoming, ends.stdin, window));
        let mut copying = tokio::spawn(copy_both(ends.stdout, ends.stderr, outgoing.clone()));
        let closing = node.closing.clone();
        let ended = tokio::select! {
            ended = exec.ended() => Some(ended),
            () = outgoing.closed() => None,
            () = closing.cancelled() => None,
        };
        match ended {
            Some(Ok(exited)) => {
                // A grandchild may hold a pipe for ever (GHSA-7jxh-36q5-gcqv).
                if tokio::time::timeout(DRAIN, &mut copying).await.is_err() {
                    copying.abort();
                }
                send(&outgoing, Output::ExitCode(exited.code)).await;
            }
            Some(Err(error)) => {
                let _: Result<_, _> = outgoing.send(Err(error.into())).await;
            }
            None => {
                copying.abort();
                reading.abort();
                if let Err(error) = exec.hang_up(&node).await {
                    tracing::debug!(error = error.chain(), "exec session");
                }
            }
        }
        reading.abort();
        exec.clear(&node).await;
    });
    Ok(())
}

async fn send(outgoing: &Outgoing, output: Output) {
    // A client that is gone is noticed by who watches for that.
    let _: Result<_, _> = outgoing.send(Ok(v1::SessionOutput { output: Some(output) })).await;
}

fn rows_and_columns(size: v1::TerminalSize) -> Option<(u16, u16)> {
    match (u16::try_from(size.rows).ok()?, u16::try_from(size.columns).ok()?) {
        (0, _) | (_, 0) => None,
        size => Some(size),
    }
}

async fn resize(window: &Window, size: v1::TerminalSize) {
    if let Some((rows, columns)) = rows_and_columns(size) {
        window.resize(rows, columns).await;
    }
}

/// The daemon's ends of the pipes, asynchronous.
struct Ends {
    stdin: Option<Sender>,
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
}

impl Ends {
    fn of(streams: Streams) -> Result<Self, Error> {
        let failed = || Error::io("register", "pipe of a session");
        let read = |end: Option<OwnedFd>| end.map(Receiver::from_owned_fd).transpose().map_err(failed());
        Ok(Self {
            stdin: streams.stdin.map(Sender::from_owned_fd).transpose().map_err(failed())?,
            stdout: read(streams.stdout)?,
            stderr: read(streams.stderr)?,
        })
    }
}

/// Passes on what the client sends, until it ends.
async fn feed(mut incoming: Streaming<v1::SessionInput>, mut stdin: Option<Sender>, window: Option<Window>) {
    while let Ok(Some(message)) = incoming.message().await {
        match message.input {
            Some(Input::Stdin(bytes)) => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // Nobody reads any more.
                    stdin = None;
                }
            }
            Some(Input::StdinEnd(_)) => stdin = None,
            Some(Input::Resize(size)) => {
                if let Some(window) = &window {
                    resize(window, size).await;
                }
            }
            Some(Input::Attach(_) | Input::Exec(_)) | None => {}
        }
    }
}

async fn copy_both(stdout: Option<Receiver>, stderr: Option<Receiver>, outgoing: Outgoing) {
    tokio::join!(copy(stdout, &outgoing, Output::Stdout), copy(stderr, &outgoing, Output::Stderr));
}

async fn copy(pipe: Option<Receiver>, outgoing: &Outgoing, wrap: fn(Vec<u8>) -> Output) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        let message = v1::SessionOutput { output: Some(wrap(chunk[..count].to_vec())) };
        if outgoing.send(Ok(message)).await.is_err() {
            return;
        }
    }
}
