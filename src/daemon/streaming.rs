//! The runtime behind the streaming server: exec, attach and port-forward as sessions.
//!
//! A client that is lost hangs its session up: with a terminal the kernel tells the program so (SIGHUP) when its line is
//! closed, without one the daemon does. Who ignores that is killed with everything that the session started after
//! `streaming.hang_up_grace`; a session whose program ends leaves its background children alone.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use pinnace_streaming::{
    AttachRequest, Control, Duplex, ExecRequest, ExitStatus, Failure, Options, Runtime, Server, Session,
    TerminalSize, TlsFiles, TokenError,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Config;
use crate::container::attach::{Attachment, Wanted};
use crate::container::exec::{Command, Exec, Streams, Terminal, Window};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::port_forward;

/// On shutdown, how long sessions have that are about to end by themselves.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// The server, until it is shut down.
#[derive(Debug)]
pub struct Streaming {
    server: RwLock<Option<Server>>,
}

impl Streaming {
    /// Listens and serves.
    pub async fn bind(node: &Arc<Node>) -> Result<Self, pinnace_streaming::Error> {
        let server =
            Server::bind(options(&node.config), Arc::new(Sessions { node: Arc::clone(node) })).await?;
        tracing::info!(address = %server.address(), "serving streams");
        Ok(Self { server: RwLock::new(Some(server)) })
    }

    /// A URL from the server.
    pub fn url(&self, of: impl FnOnce(&Server) -> Result<String, TokenError>) -> Result<String, Error> {
        let server = self.server.read().unwrap_or_else(PoisonError::into_inner);
        Ok(of(server.as_ref().ok_or(Error::ShuttingDown)?)?)
    }

    /// Ends every session, after a moment for those that end by themselves.
    pub async fn shutdown(&self) {
        let server = self.server.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(server) = server {
            server.shutdown(SHUTDOWN_GRACE).await;
        }
    }
}

fn options(config: &Config) -> Options {
    let streaming = &config.streaming;
    let tls = streaming.tls_certificate.clone().zip(streaming.tls_key.clone());
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Options {
        listen: streaming.listen,
        public_host: streaming.public_host.clone(),
        tls: tls.map(|(certificate, key)| TlsFiles {
            certificate,
            key,
            client_authorities: streaming.tls_client_ca.clone(),
        }),
        token_life: streaming.token_life,
        max_tokens: count(streaming.max_tokens),
        stream_creation_timeout: streaming.stream_creation_timeout,
        idle_timeout: streaming.idle_timeout,
        max_connections: count(streaming.max_connections),
        drain: config.container.exec_drain_timeout,
        ..Options::default()
    }
}

/// What the server asks.
struct Sessions {
    node: Arc<Node>,
}

impl Runtime for Sessions {
    fn exec(
        &self,
        request: ExecRequest,
        initial_size: Option<TerminalSize>,
    ) -> BoxFuture<'_, Result<Session, Failure>> {
        exec(&self.node, request, initial_size).map(|done| done.map_err(failure)).boxed()
    }

    fn attach(
        &self,
        request: AttachRequest,
        initial_size: Option<TerminalSize>,
    ) -> BoxFuture<'_, Result<Session, Failure>> {
        attach(&self.node, request, initial_size).map(|done| done.map_err(failure)).boxed()
    }

    fn port_forward<'a>(
        &'a self,
        sandbox_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, Failure>> {
        async move {
            let sandbox = self.node.sandbox(sandbox_id).map_err(failure)?;
            let connection = port_forward::connect(&sandbox, port).await.map_err(failure)?;
            Ok(Box::new(connection) as Box<dyn Duplex>)
        }
        .boxed()
    }
}

fn failure(error: Error) -> Failure {
    Failure::new(error.chain())
}

async fn exec(node: &Arc<Node>, request: ExecRequest, size: Option<TerminalSize>) -> Result<Session, Error> {
    let container = node.container(&request.container_id)?;
    let ExecRequest { command: args, stdin, stdout, stderr, tty, .. } = request;
    let terminal = tty.then(|| Terminal { size: size.map(|size| (size.height, size.width)) });
    let command = Command { args, stdin, stdout, stderr, terminal, ..Command::default() };
    let (exec, streams) = Exec::start(node, &container, command).await?;
    let window = exec.window();
    let lost = CancellationToken::new();
    let (outcome, exit) = oneshot::channel();
    // Not one of the tracked tasks: shutdown does not wait for who ignores a hang-up, the next daemon ends it.
    tokio::spawn(keep(Arc::clone(node), exec, lost.clone(), outcome));
    let mut ends = Ends::of(streams)?;
    if tty && !stdout {
        // Whoever has a terminal writes to it, looked at or not.
        ends.discard_stdout(lost.clone());
    }
    Ok(ends.session(
        Line { window: tty.then_some(window), lost: Some(lost.drop_guard()).into() },
        async move { exit.await.unwrap_or_else(|_| Err(failure(Error::ShuttingDown))) }.boxed(),
    ))
}

/// Sees a session to its end, whatever becomes of its client.
async fn keep(
    node: Arc<Node>,
    mut exec: Exec,
    lost: CancellationToken,
    outcome: oneshot::Sender<Result<ExitStatus, Failure>>,
) {
    let ended = tokio::select! {
        ended = exec.ended() => Some(ended),
        () = lost.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => exec.hang_up(&node).await,
    };
    if let Err(error) = &ended {
        tracing::debug!(error = error.chain(), "exec session");
    }
    // Nobody listens when the client is gone.
    let _ = outcome.send(ended.map(|exited| ExitStatus { code: exited.code }).map_err(failure));
    exec.clear(&node).await;
}

async fn attach(
    node: &Arc<Node>,
    request: AttachRequest,
    size: Option<TerminalSize>,
) -> Result<Session, Error> {
    let container = node.container(&request.container_id)?;
    let AttachRequest { stdin, stdout, stderr, tty, .. } = request;
    let (attachment, streams) =
        Attachment::join(node, container, Wanted { stdin, stdout, stderr, lossless: false, size: None })
            .await?;
    let window = (tty && attachment.terminal).then(|| attachment.window());
    if let (Some(window), Some(size)) = (&window, size) {
        window.resize(size.height, size.width).await;
    }
    let over = async move { attachment.over().await.map(|()| ExitStatus { code: 0 }).map_err(failure) };
    Ok(Ends::of(streams)?.session(Line { window, lost: None.into() }, over.boxed()))
}

/// The daemon's ends of a session's pipes, asynchronous.
#[derive(Debug)]
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

    fn discard_stdout(&mut self, lost: CancellationToken) {
        let Some(mut stdout) = self.stdout.take() else { return };
        tokio::spawn(async move {
            let mut nowhere = tokio::io::sink();
            tokio::select! {
                _ = tokio::io::copy(&mut stdout, &mut nowhere) => {}
                () = lost.cancelled() => {}
            }
        });
    }

    fn session(self, line: Line, exit: BoxFuture<'static, Result<ExitStatus, Failure>>) -> Session {
        let read = |end: Option<Receiver>| end.map(|end| Box::new(end) as Box<dyn AsyncRead + Send + Unpin>);
        Session {
            stdin: self.stdin.map(|end| Box::new(end) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout: read(self.stdout),
            stderr: read(self.stderr),
            control: Box::new(line),
            exit,
        }
    }
}

/// What can be done to a session; dropping it hangs up as well.
#[derive(Debug)]
struct Line {
    window: Option<Window>,
    lost: std::sync::Mutex<Option<DropGuard>>,
}

impl Control for Line {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()> {
        async move {
            if let Some(window) = &self.window {
                window.resize(size.height, size.width).await;
            }
        }
        .boxed()
    }

    fn hang_up(&self) -> BoxFuture<'_, ()> {
        // An attachment ends with its streams.
        drop(crate::table::lock(&self.lost).take());
        std::future::ready(()).boxed()
    }
}
