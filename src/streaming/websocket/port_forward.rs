//! Port-forward over channels: the request's ports in order, each with channel 2i for data and 2i + 1 for errors, whose
//! first message is the port as a little-endian number. Channels have no half-close.

use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::Dialect;
use super::connection::{Connection, stream};
use crate::link::{Link, Outbound, Outgoing};
use crate::port_forward::carry;
use crate::queue::queue;
use crate::runtime::{PortForwardRequest, Runtime};
use crate::socket::Socket;

/// Most ports that channel numbers have room for, in any encoding.
pub(crate) fn most_ports(dialect: Dialect) -> usize {
    match dialect.encoding {
        super::Encoding::Base64 => 5,
        super::Encoding::Binary | super::Encoding::BinaryWithClose => 127,
    }
}

/// Serves one session and closes the connection.
pub(crate) async fn serve(
    io: Socket,
    buffered: Vec<u8>,
    (link, outbound): (Link, mpsc::Receiver<Outbound>),
    request: PortForwardRequest,
    dialect: Dialect,
    runtime: &dyn Runtime,
) {
    let mut incoming = Vec::new();
    let mut forwards = Vec::new();
    for (channel, port) in (0u32..).step_by(2).zip(&request.ports) {
        let (sender, receiver) = queue();
        incoming.extend([Some(sender), None]);
        let outgoing = |stream| Outgoing { stream, link: link.clone() };
        forwards.push((*port, receiver, outgoing(channel), outgoing(channel + 1)));
    }
    let probe = io.probe();
    let connection =
        Connection::open(stream(io, buffered).await, probe, dialect.encoding, incoming, link, outbound);
    let lost = connection.link.lost.clone();
    let sandbox = request.sandbox_id.as_str();
    let all = join_all(forwards.into_iter().map(|(port, receiver, data, error)| async move {
        let port_bytes = port.to_le_bytes();
        if data.text(&port_bytes).await.is_ok() && error.text(&port_bytes).await.is_ok() {
            carry(runtime, sandbox, port, receiver, data, error).await;
        }
    }));
    tokio::select! {
        _ = all => {}
        () = lost.cancelled() => {}
    }
    connection.close().await;
}
