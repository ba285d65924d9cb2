//! The server on a real socket, its protocols byte by byte, in front of a scripted runtime.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod http;
mod limits;
mod negotiation;
mod port_forward;
mod remote_command;
mod scripted;
mod spdy_client;
mod tls;
mod web_socket;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pinnace_streaming::{AttachRequest, ExecRequest, Options, PortForwardRequest, Server};
use scripted::Scripted;

/// A server and the runtime behind it.
struct Ground {
    server: Server,
    runtime: Arc<Scripted>,
}

impl Ground {
    async fn new() -> Ground {
        Ground::with(Options::default()).await
    }

    async fn with(options: Options) -> Ground {
        let runtime = Arc::new(Scripted::default());
        let server = Server::bind(options, runtime.clone()).await.unwrap();
        Ground { server, runtime }
    }

    /// The URL of a command whose `streams` are named by letters: i, o, e and t for a terminal.
    fn exec(&self, command: &str, streams: &str) -> String {
        let request = ExecRequest {
            container_id: "container".into(),
            command: command.split(' ').map(str::to_owned).collect(),
            stdin: streams.contains('i'),
            stdout: streams.contains('o'),
            stderr: streams.contains('e'),
            tty: streams.contains('t'),
        };
        self.server.exec_url(request).unwrap()
    }

    fn attach(&self) -> String {
        let request = AttachRequest {
            container_id: "container".into(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: false,
        };
        self.server.attach_url(request).unwrap()
    }

    fn port_forward(&self, ports: &[u16]) -> String {
        let request = PortForwardRequest { sandbox_id: "sandbox".into(), ports: ports.to_vec() };
        self.server.port_forward_url(request).unwrap()
    }

    /// Waits until nothing runs any more.
    async fn quiet(&self) {
        for _ in 0..1000 {
            if self.runtime.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} processes or connections are left", self.runtime.running.load(Ordering::SeqCst));
    }

    fn hung_up(&self) -> usize {
        self.runtime.hung_up.load(Ordering::SeqCst)
    }
}
