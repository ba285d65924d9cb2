//! What the server asks of a container runtime: the door to whatever starts and joins processes.

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A process to start in a container, with the streams that the client will open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container, as the caller names it.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client takes standard output.
    pub stdout: bool,
    /// The client takes standard error; never with a terminal.
    pub stderr: bool,
    /// The process gets a terminal.
    pub tty: bool,
}

/// Joining the streams of a container's own process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container, as the caller names it.
    pub container_id: String,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client takes standard output.
    pub stdout: bool,
    /// The client takes standard error; never with a terminal.
    pub stderr: bool,
    /// The container has a terminal.
    pub tty: bool,
}

/// Connections into a sandbox's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// The sandbox, as the caller names it.
    pub sandbox_id: String,
    /// Ports of the WebSocket channels, in their order. SPDY clients name a port with every connection.
    pub ports: Vec<u16>,
}

/// A terminal's size in characters; neither side is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// The exit code: 0 to 255, 128 + n after signal n.
    pub code: i32,
}

/// Why the runtime could not do what a client asked. The message reaches the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What failed and why, in one line.
    pub message: String,
}

impl Failure {
    /// A failure with a message for the client.
    pub fn new(message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string() }
    }
}

/// Both directions of one connection; `shutdown` closes the writing half alone.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Duplex for T {}

/// What can be done to a running session from outside of its streams.
pub trait Control: Send + Sync {
    /// The client's window has another size. Called in order, one at a time.
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()>;

    /// The client is gone, or the server shuts down: nobody will read or write any more. Called at most once, after
    /// the session's streams were dropped. Not called when the session ended by itself.
    fn hang_up(&self) -> BoxFuture<'_, ()>;
}

/// A started or joined process: its streams, its controls and its end.
pub struct Session {
    /// Standard input. Shut down and dropped when the client closes its side; with a terminal the runtime decides
    /// what a shutdown means (a terminal has no half-close). When absent, input is thrown away.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output, or the terminal's output.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Standard error.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Resizing and hanging up.
    pub control: Box<dyn Control>,
    /// Resolves when the process ended, or when an attachment is over (code 0). Output that comes later is still
    /// sent, until both outputs end or stay silent for [`Options::drain`](crate::Options::drain).
    pub exit: BoxFuture<'static, Result<ExitStatus, Failure>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .finish_non_exhaustive()
    }
}

/// The runtime behind the server.
///
/// The futures of `exec` and `attach` are polled to their end even when the client is lost meanwhile; the session
/// is then hung up at once. They should have a time limit of their own. The future of `port_forward` is dropped
/// when the client is lost.
pub trait Runtime: Send + Sync + 'static {
    /// Starts a process in a running container. `initial_size` is the terminal's, if the client has told it.
    fn exec(
        &self,
        request: ExecRequest,
        initial_size: Option<TerminalSize>,
    ) -> BoxFuture<'_, Result<Session, Failure>>;

    /// Joins the streams of a container's process.
    fn attach(
        &self,
        request: AttachRequest,
        initial_size: Option<TerminalSize>,
    ) -> BoxFuture<'_, Result<Session, Failure>>;

    /// Connects to a port of the loopback interface inside the sandbox.
    fn port_forward<'a>(
        &'a self,
        sandbox_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, Failure>>;
}
