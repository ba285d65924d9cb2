//! What a client cannot do to the server.

use std::time::{Duration, Instant};

use pinnace_streaming::spdy::frame;
use pinnace_streaming::spdy::header_block::HeaderEncoder;
use pinnace_streaming::{Options, TokenError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::spdy_client::Spdy;
use crate::{Ground, http};

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn hostile_bytes_end_the_connection_and_nothing_else() {
    let ground = Ground::new().await;
    let oversized = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
    let even = frame::syn_stream(2, false, &HeaderEncoder::new().encode(&[]));
    let garbage = frame::syn_stream(1, false, b"no compressed block");
    for bytes in [&oversized[..], &even, &garbage, &[0; 16]] {
        let mut client = Spdy::connect(&ground.exec("cat", "io"), V4).await;
        client.send(bytes).await;
        client.until_closed().await;
    }
    let mut client = Spdy::connect(&ground.exec("exit 0", "o"), V4).await;
    client.open_type("error").await;
    client.open_type("stdout").await;
    client.until_closed().await;
}

#[tokio::test]
async fn streams_of_a_connection_are_bounded() {
    let ground = Ground::new().await;
    let mut client = Spdy::connect(&ground.port_forward(&[]), "portforward.k8s.io").await;
    for id in 0..520 {
        let id = id.to_string();
        client.open(&[("streamtype", "error"), ("port", "7"), ("requestid", &id)]).await;
    }
    client.until("refusals", |c| c.streams.values().filter(|s| s.reset == Some(3)).count() == 8).await;
    assert_eq!(client.streams.values().filter(|stream| stream.replied).count(), 512);
}

#[tokio::test]
async fn a_client_that_opens_no_streams_is_told_and_let_go() {
    let options = Options { stream_creation_timeout: Duration::from_millis(200), ..Options::default() };
    let ground = Ground::with(options).await;
    let mut client = Spdy::connect(&ground.exec("cat", "io"), V4).await;
    let error = client.open_type("error").await;
    client.until_closed().await;
    assert!(client.text(error).contains("timed out waiting for the client to open its streams"));
    let mut client = Spdy::connect(&ground.exec("cat", "io"), V4).await;
    client.until_closed().await;
}

#[tokio::test]
async fn idle_sessions_end() {
    let options = Options { idle_timeout: Duration::from_millis(300), ..Options::default() };
    let ground = Ground::with(options).await;
    let begun = Instant::now();
    let mut client = Spdy::connect(&ground.exec("cat", "io"), V4).await;
    client.open_type("error").await;
    let (stdin, stdout) = (client.open_type("stdin").await, client.open_type("stdout").await);
    for count in 1..=5 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        client.data(stdin, b"x", false).await;
        client.until("echo", |c| c.streams[&stdout].data.len() == count).await;
    }
    client.until_closed().await;
    assert!(begun.elapsed() > Duration::from_millis(1000));
    ground.quiet().await;
    assert_eq!(ground.hung_up(), 1);
}

#[tokio::test]
async fn connections_and_urls_are_bounded() {
    let options = Options { max_connections: 2, max_tokens: 3, ..Options::default() };
    let ground = Ground::with(options).await;
    let (first, second, third) =
        (ground.exec("cat", "i"), ground.exec("cat", "i"), ground.exec("exit 0", "o"));
    let request = pinnace_streaming::PortForwardRequest { sandbox_id: String::new(), ports: vec![] };
    assert_eq!(ground.server.port_forward_url(request), Err(TokenError::TooMany { limit: 3 }));
    let one = Spdy::connect(&first, V4).await;
    let _two = Spdy::connect(&second, V4).await;
    let mut refused = TcpStream::connect(http::split(&third).0).await.unwrap();
    let mut answer = Vec::new();
    let _ = refused.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 503 "), "{answer:?}");
    drop(one);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut client = Spdy::connect(&third, V4).await;
    client.open_type("error").await;
    client.open_type("stdout").await;
    client.until_closed().await;
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off() {
    let ground = Ground::new().await;
    let url = ground.exec("cat", "i");
    let mut endless = TcpStream::connect(http::split(&url).0).await.unwrap();
    endless.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut long = TcpStream::connect(http::split(&url).0).await.unwrap();
    let _ = long.write_all(format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(100_000)).as_bytes()).await;
    let ended = |mut stream: TcpStream| async move {
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut answer))
            .await
            .expect("an end");
    };
    tokio::join!(ended(endless), ended(long));
}

/// Peak of this process's memory in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn memory_stays_flat_while_much_flows_to_a_slow_client() {
    let ground = Ground::new().await;
    let size = 256usize << 20;
    let mut client = Spdy::connect(&ground.exec(&format!("write {size}"), "o"), V4).await;
    client.open_type("error").await;
    let stdout = client.open_type("stdout").await;
    client.until("start", |c| !c.streams[&stdout].data.is_empty()).await;
    // Nothing is read for a while: what the server may hold is bounded.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = peak_kib();
    let mut total = 0;
    while !client.closed {
        client.until("more", |c| c.closed || c.streams[&stdout].data.len() > (1 << 20) || c.went_away).await;
        let received = client.streams.get_mut(&stdout).unwrap();
        total += received.data.len();
        received.data.clear();
        client.heard.clear();
        if client.went_away {
            break;
        }
    }
    assert_eq!(total, size);
    let grown = peak_kib().saturating_sub(before);
    // Other tests of this process run at the same time.
    assert!(grown < 100 << 10, "peak memory grew by {grown} KiB for {size} bytes");
}
