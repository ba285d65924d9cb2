//! A server in this process, behind a socket that may be anywhere in a world.

use std::io;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A server that stops, with all of its connections, when this is dropped.
#[derive(Debug)]
pub struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Does `each` with every connection, all at once. A connection that fails concerns its client alone.
pub fn serve<F>(listener: TcpListener, each: impl Fn(TcpStream) -> F + Send + 'static) -> Serving
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    Serving(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    connections.spawn(each(stream));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }))
}
