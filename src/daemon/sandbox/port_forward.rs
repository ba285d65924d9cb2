//! Connecting to a port inside of a pod.
//!
//! The monitor, which lives in the pod's network namespace, makes the sockets; they stay in that namespace whoever connects
//! them. So the daemon reaches the pod's loopback interface and no thread of its runtime enters a namespace. For a pod on
//! the host's network the same monitor makes sockets of the host's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Sandbox;
use super::record::Phase;
use crate::error::Error;

/// For a connection over loopback to be made: its SYN can be dropped by a firewall of the pod's own.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Refuses a sandbox into which nobody can connect.
pub fn ready(sandbox: &Sandbox) -> Result<(), Error> {
    if sandbox.phase() == Phase::Ready && !sandbox.closing.load(Ordering::SeqCst) {
        return Ok(());
    }
    Err(Error::State {
        subject: format!("sandbox {}", sandbox.id),
        state: "not ready".to_owned(),
        hint: "ports are forwarded to ready sandboxes".to_owned(),
    })
}

/// Connects to a port of the pod's loopback interface: 127.0.0.1, else ::1.
pub async fn connect(sandbox: &Sandbox, port: u16) -> Result<Forwarded, Error> {
    ready(sandbox)?;
    let monitor = sandbox.monitor().ok_or_else(|| Error::MonitorGone(sandbox.id.clone()))?;
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut refusals = Vec::new();
    for (address, socket) in addresses.into_iter().zip(monitor.sockets().await?) {
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        let connecting = socket.connect(SocketAddr::new(address, port));
        let connected = match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match connected {
            Ok(stream) => {
                // Or every keystroke would wait for the acknowledgement of the one before.
                let _ = stream.set_nodelay(true);
                let gone = Box::pin(monitor.gone().cancelled_owned());
                return Ok(Forwarded { stream, gone });
            }
            Err(error) => refusals.push((address, error)),
        }
    }
    Err(Error::NotConnected { sandbox: sandbox.id.clone(), port, refusals })
}

/// A connection into a pod; it ends with the pod, whose network would not tell.
#[derive(Debug)]
pub struct Forwarded {
    stream: TcpStream,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Forwarded {
    fn poll_gone(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.gone.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => {
                self.poll_gone(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending)
            }
            ready => ready,
        }
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => {
                self.poll_gone(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending)
            }
            ready => ready,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
