//! A client of the URLs that Exec, Attach and PortForward answer with, over WebSocket.

use std::fmt;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::world::World;

/// How long anything that is waited for may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The protocol of exec and attach that can close standard input.
pub const V5: &str = "v5.channel.k8s.io";

/// The protocol of port-forward.
pub const PORTS: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
/// Channel of standard output.
pub const STDOUT: u8 = 1;
/// Channel of standard error.
pub const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// A client's connection.
pub struct Client {
    /// What it sends.
    pub to: To,
    /// What it receives.
    pub from: From,
}

/// The sending half.
pub struct To(SplitSink<WebSocketStream<TcpStream>, Message>);

/// The receiving half.
pub struct From {
    stream: SplitStream<WebSocketStream<TcpStream>>,
    kept: Vec<Vec<u8>>,
}

/// Everything that a session said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The JSON object of the error channel; null without one.
    pub status: Value,
}

impl Said {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code that the status tells.
    #[track_caller]
    pub fn code(&self) -> i32 {
        if self.status["status"] == "Success" {
            return 0;
        }
        assert_eq!(self.status["reason"], "NonZeroExitCode", "{self:?}");
        let cause = &self.status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode", "{self:?}");
        cause["message"].as_str().and_then(|code| code.parse().ok()).expect("an exit code")
    }
}

/// Opens a URL with a protocol; why not, if it is refused.
pub async fn try_open(world: &World, url: &str, protocol: &str) -> Result<Client, tungstenite::Error> {
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    let address = address.and_then(|address| address.parse().ok());
    let stream = world.connect(address.unwrap_or_else(|| panic!("{url} has no address")))?;
    stream.set_nonblocking(true)?;
    let stream = TcpStream::from_std(stream)?;
    let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
    let value = protocol.parse().expect("a header value");
    request.headers_mut().insert("Sec-WebSocket-Protocol", value);
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let (to, stream) = socket.split();
    Ok(Client { to: To(to), from: From { stream, kept: vec![Vec::new(); 256] } })
}

/// Opens a URL of exec or attach.
pub async fn open(world: &World, url: &str) -> Client {
    try_open(world, url, V5).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Opens a URL of port-forward and takes the port that every channel begins with.
pub async fn open_ports(world: &World, url: &str, ports: &[u16]) -> Client {
    let opened = try_open(world, url, PORTS).await;
    let mut client = opened.unwrap_or_else(|error| panic!("{url}: {error}"));
    for (channel, port) in (0u8..).zip(ports.iter().flat_map(|port| [port, port])) {
        client.from.wait(|kept| kept[usize::from(channel)].len() >= 2).await;
        let told: Vec<u8> = client.from.kept[usize::from(channel)].drain(..2).collect();
        assert_eq!(told, port.to_le_bytes(), "channel {channel}");
    }
    client
}

impl Client {
    /// Receives until the server closes.
    pub async fn finish(mut self) -> Said {
        self.from.finish().await
    }
}

impl To {
    /// Sends bytes to a channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), tungstenite::Error> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.0.send(Message::Binary(message.into())).await
    }

    /// Sends standard input.
    pub async fn input(&mut self, bytes: &[u8]) {
        self.send(STDIN, bytes).await.unwrap_or_else(|error| panic!("send input: {error}"));
    }

    /// Ends standard input.
    pub async fn end_input(&mut self) {
        self.send(CLOSE, &[STDIN]).await.unwrap_or_else(|error| panic!("end input: {error}"));
    }

    /// Changes the size of the terminal.
    pub async fn resize(&mut self, columns: u16, rows: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(RESIZE, size.as_bytes()).await.unwrap_or_else(|error| panic!("resize: {error}"));
    }
}

impl From {
    /// The next message: channel and bytes. `None` at the end.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let next = tokio::time::timeout(LIMIT, self.stream.next()).await.expect("nothing comes");
            match next {
                Some(Ok(Message::Binary(bytes))) => {
                    let (channel, rest) = bytes.split_first().expect("a message without a channel");
                    return Some((*channel, rest.to_vec()));
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Receives until something holds for what has come on the channels, or the server closes.
    pub async fn wait(&mut self, holds: impl Fn(&[Vec<u8>]) -> bool) {
        while !holds(&self.kept) {
            let Some((channel, bytes)) = self.next().await else {
                panic!("closed before it came: {:?}", self.said());
            };
            self.kept[usize::from(channel)].extend_from_slice(&bytes);
        }
    }

    /// Receives until a channel has said a text; everything that it has said so far.
    pub async fn until(&mut self, channel: u8, text: &str) -> String {
        let at = usize::from(channel);
        self.wait(|kept| String::from_utf8_lossy(&kept[at]).contains(text)).await;
        String::from_utf8_lossy(&self.kept[at]).into_owned()
    }

    /// Takes what a channel has said.
    pub fn take(&mut self, channel: u8) -> Vec<u8> {
        std::mem::take(&mut self.kept[usize::from(channel)])
    }

    /// Receives until the server closes.
    pub async fn finish(&mut self) -> Said {
        while let Some((channel, bytes)) = self.next().await {
            self.kept[usize::from(channel)].extend_from_slice(&bytes);
        }
        self.said()
    }

    fn said(&self) -> Said {
        let [stdout, stderr, status] = [STDOUT, STDERR, STATUS].map(|at| self.kept[usize::from(at)].clone());
        let status = serde_json::from_slice(&status).unwrap_or(Value::Null);
        Said { stdout, stderr, status }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl fmt::Debug for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("To").finish_non_exhaustive()
    }
}

impl fmt::Debug for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("From").finish_non_exhaustive()
    }
}
