//! The channel protocols, and the tunnel's client end.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::spdy_client::Spdy;
use crate::{Ground, http};

async fn connect(url: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(http::split(url).0).await.unwrap();
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

/// A SPDY client whose bytes go through messages.
pub async fn tunnel(url: &str) -> Spdy {
    let (mut sink, mut messages) = connect(url, "SPDY/3.1+portforward.k8s.io").await.split();
    let (inner, outer) = tokio::io::duplex(1 << 20);
    let (mut from, mut to) = tokio::io::split(outer);
    tokio::spawn(async move {
        let incoming = async {
            while let Some(Ok(message)) = messages.next().await {
                if let Message::Binary(bytes) = message {
                    to.write_all(&bytes).await.unwrap();
                }
            }
        };
        let outgoing = async {
            let mut buffer = vec![0; 3000];
            loop {
                match from.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => sink.send(Message::binary(buffer[..count].to_vec())).await.unwrap(),
                }
            }
        };
        tokio::select! { () = incoming => {} () = outgoing => {} }
    });
    Spdy::over(inner)
}

/// What came on each channel until the server closed, the channels in order of their first message.
async fn collect(
    socket: &mut WebSocketStream<TcpStream>,
    base64: bool,
) -> (Vec<Vec<u8>>, Vec<usize>, Option<CloseCode>) {
    let (mut channels, mut order, mut close) = (vec![Vec::new(); 5], Vec::new(), None);
    let all = async {
        while let Some(Ok(message)) = socket.next().await {
            let (channel, bytes) = match message {
                Message::Binary(bytes) => {
                    assert!(!base64);
                    (usize::from(bytes[0]), bytes.slice(1..).to_vec())
                }
                Message::Text(text) => {
                    assert!(base64);
                    let bytes = STANDARD.decode(&text.as_bytes()[1..]).unwrap();
                    (usize::from(text.as_bytes()[0] - b'0'), bytes)
                }
                Message::Close(frame) => {
                    close = frame.map(|frame| frame.code);
                    continue;
                }
                _ => continue,
            };
            channels[channel].extend(bytes);
            order.push(channel);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("an end in time");
    (channels, order, close)
}

fn message(base64: bool, channel: u8, bytes: &[u8]) -> Message {
    if base64 {
        Message::text(format!("{channel}{}", STANDARD.encode(bytes)))
    } else {
        Message::binary([&[channel], bytes].concat())
    }
}

#[tokio::test]
async fn commands_run_in_every_protocol() {
    let ground = Ground::new().await;
    for protocol in [
        "",
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "v5.channel.k8s.io",
    ] {
        let (base64, json) = (protocol.contains("base64"), protocol.starts_with('v'));
        let mut socket = connect(&ground.exec("both", "oe"), protocol).await;
        let (channels, order, close) = collect(&mut socket, base64).await;
        assert_eq!((&channels[1][..], &channels[2][..]), (&b"out"[..], &b"err"[..]), "{protocol}");
        assert_eq!(order[0], 1, "the first message is empty and on stdout");
        let success = r#"{"metadata":{},"status":"Success"}"#;
        assert_eq!(channels[3], if json { success.as_bytes() } else { b"" });
        assert_eq!(close, Some(CloseCode::Normal));

        let mut socket = connect(&ground.exec("exit 9", "e"), protocol).await;
        let (channels, order, _) = collect(&mut socket, base64).await;
        assert_eq!(order, [2, 3]);
        let text = String::from_utf8(channels[3].clone()).unwrap();
        assert!(text.contains(if json { r#""message":"9""# } else { "exit status 9" }), "{text}");

        let mut socket = connect(&ground.exec("size 1", "iot"), protocol).await;
        socket.send(message(base64, 4, br#"{"Width":3,"Height":4}"#)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        socket.send(message(base64, 9, b"no such channel")).await.unwrap();
        socket.send(message(base64, 1, b"not for the client to write")).await.unwrap();
        socket.send(message(base64, 4, br#"{"Width":5,"Height":6}"#)).await.unwrap();
        let (channels, _, _) = collect(&mut socket, base64).await;
        assert_eq!(channels[1], b"3x4\n5x6\n");
    }
    ground.quiet().await;
    assert_eq!(ground.hung_up(), 0);
}

#[tokio::test]
async fn v5_closes_standard_input_alone() {
    let ground = Ground::new().await;
    let mut socket = connect(&ground.exec("count", "io"), "v5.channel.k8s.io").await;
    for _ in 0..40 {
        socket.send(message(false, 0, &[7; 50_000])).await.unwrap();
    }
    socket.send(message(false, 255, &[0])).await.unwrap();
    let (channels, _, _) = collect(&mut socket, false).await;
    assert_eq!(channels[1], b"2000000");
}

#[tokio::test]
async fn pings_are_answered_and_a_lost_client_hangs_up() {
    let ground = Ground::new().await;
    let mut socket = connect(&ground.exec("sleep", "io"), "v4.channel.k8s.io").await;
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    loop {
        match tokio::time::timeout(Duration::from_secs(5), socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Pong(payload) => {
                assert_eq!(payload, "there?");
                break;
            }
            other => assert_eq!(other, Message::binary(vec![1])),
        }
    }
    drop(socket);
    ground.quiet().await;
    assert_eq!(ground.hung_up(), 1);
    // A close message is a loss, too.
    let mut socket = connect(&ground.exec("sleep", "io"), "v5.channel.k8s.io").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    socket.close(None).await.unwrap();
    ground.quiet().await;
    assert_eq!(ground.hung_up(), 2);
}

#[tokio::test]
async fn messages_are_bounded() {
    let ground = Ground::new().await;
    let mut socket = connect(&ground.exec("count", "io"), "v4.channel.k8s.io").await;
    let sent = socket.send(Message::binary(vec![0; (4 << 20) + 1])).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(Ok(_)) = socket.next().await {}
    });
    assert!(sent.is_err() || ended.await.is_ok());
    ground.quiet().await;
}

#[tokio::test]
async fn ports_of_the_request_have_two_channels_each() {
    let ground = Ground::new().await;
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
        let base64 = protocol.contains("base64");
        let mut socket = connect(&ground.port_forward(&[7, 1]), protocol).await;
        socket.send(message(base64, 0, b"hello")).await.unwrap();
        let mut channels = vec![Vec::new(); 4];
        while channels[0].len() < 7 || channels[3].len() < 30 {
            let next = tokio::time::timeout(Duration::from_secs(10), socket.next()).await;
            let (channel, bytes) = match next.unwrap().unwrap().unwrap() {
                Message::Binary(bytes) => (usize::from(bytes[0]), bytes.slice(1..).to_vec()),
                Message::Text(text) => {
                    let text = text.as_bytes();
                    (usize::from(text[0] - b'0'), STANDARD.decode(&text[1..]).unwrap())
                }
                other => panic!("{other:?}"),
            };
            channels[channel].extend(bytes);
        }
        assert_eq!(channels[0], b"\x07\0hello");
        assert_eq!(channels[1], b"\x07\0");
        assert_eq!(channels[2], b"\x01\0");
        assert_eq!(channels[3], b"\x01\0connect to port 1: connection refused");
        drop(socket);
        ground.quiet().await;
    }
}
