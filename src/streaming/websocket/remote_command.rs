//! Exec and attach over channels: 0 is standard input, 1 output, 2 error output, 3 the status, 4 the terminal's sizes.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Dialect;
use super::connection::{Connection, stream};
use crate::link::{Link, Outbound, Outgoing, frame};
use crate::queue::queue;
use crate::remote_command::{Command, Ends, run};
use crate::runtime::Runtime;
use crate::socket::Socket;

const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;

/// Serves one session and closes the connection.
pub(crate) async fn serve(
    io: Socket,
    buffered: Vec<u8>,
    (link, outbound): (Link, mpsc::Receiver<Outbound>),
    command: Command,
    dialect: Dialect,
    runtime: &dyn Runtime,
    drain: Duration,
) {
    let (stdin_sender, stdin) = command.stdin().then(queue).unzip();
    let (resize_sender, resize) = command.tty().then(queue).unzip();
    let incoming = vec![stdin_sender, None, None, None, resize_sender];
    let outgoing = |stream| Outgoing { stream, link: link.clone() };
    let ends = Ends {
        stdin,
        stdout: command.stdout().then(|| outgoing(STDOUT)),
        stderr: command.stderr().then(|| outgoing(STDERR)),
        error: outgoing(ERROR),
        resize,
        format: dialect.format,
    };
    let probe = io.probe();
    let connection =
        Connection::open(stream(io, buffered).await, probe, dialect.encoding, incoming, link, outbound);
    // Clients take the first message, an empty one, for the sign that they are connected.
    let first = ends.stdout.as_ref().or(ends.stderr.as_ref()).unwrap_or(&ends.error);
    if first.send(frame()).await.is_ok() {
        run(command, ends, runtime, &connection.link, drain).await;
    }
    connection.close().await;
}
