//! Exec and attach over SPDY.

use std::time::{Duration, Instant};

use pinnace_streaming::Options;
use pinnace_streaming::spdy::frame;
use pinnace_streaming::spdy::header_block::HeaderEncoder;
use tokio::io::AsyncWriteExt;

use crate::spdy_client::Spdy;
use crate::{Ground, http};

const V4: &str = "v4.channel.k8s.io";

fn status(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// The exit code that a status tells.
fn code(text: &str) -> i32 {
    let status = status(text);
    match status["status"].as_str() {
        Some("Success") => 0,
        _ => status["details"]["causes"][0]["message"].as_str().unwrap().parse().unwrap(),
    }
}

#[tokio::test]
async fn input_comes_back_and_half_close_ends_it() {
    let ground = Ground::new().await;
    for url in [ground.exec("cat", "io"), ground.attach()] {
        let mut client = Spdy::connect(&url, V4).await;
        let error = client.open_type("error").await;
        let stdin = client.open_type("stdin").await;
        let stdout = client.open_type("stdout").await;
        client.until("replies", |c| c.streams.values().all(|stream| stream.replied)).await;
        client.data(stdin, b"hello", false).await;
        client.until("echo", |c| c.streams[&stdout].data == b"hello").await;
        client.send(&frame::ping(1)).await;
        client.send(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1]).await; // WINDOW_UPDATE
        client.send(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0]).await; // SETTINGS
        client.until("ping", |c| c.pings == [1]).await;
        client.data(stdin, b" world", true).await;
        client.until_closed().await;
        assert_eq!(client.text(stdout), "hello world");
        assert!(client.streams[&stdout].finished && client.streams[&error].finished && client.went_away);
        assert_eq!(client.text(error), r#"{"metadata":{},"status":"Success"}"#);
    }
    ground.quiet().await;
    assert_eq!(ground.hung_up(), 0);
}

#[tokio::test]
async fn outputs_and_exit_codes_arrive_in_every_version() {
    let ground = Ground::new().await;
    for version in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", V4] {
        let mut client = Spdy::connect(&ground.exec("both", "oe"), version).await;
        let (error, stdout, stderr) = (
            client.open_type("error").await,
            client.open_type("stdout").await,
            client.open_type("stderr").await,
        );
        client.until_closed().await;
        assert_eq!((client.text(stdout), client.text(stderr)), ("out".into(), "err".into()));
        assert_eq!(client.text(error).is_empty(), version != V4);

        let mut client = Spdy::connect(&ground.exec("exit 7", "o"), version).await;
        let error = client.open_type("error").await;
        client.open_type("stdout").await;
        client.until_closed().await;
        if version == V4 {
            assert_eq!(code(&client.text(error)), 7);
        } else {
            let text = "command terminated with non-zero exit code: exit status 7";
            assert_eq!(client.text(error), text);
        }

        let mut client = Spdy::connect(&ground.exec("fail", "o"), version).await;
        let error = client.open_type("error").await;
        client.open_type("stdout").await;
        client.until_closed().await;
        let text = client.text(error);
        let text = if version == V4 { status(&text)["message"].as_str().unwrap().to_owned() } else { text };
        assert_eq!(text, "Internal error occurred: no such program");
    }
}

#[tokio::test]
async fn bytes_right_behind_the_request_belong_to_spdy() {
    let ground = Ground::new().await;
    let mut encoder = HeaderEncoder::new();
    let mut behind = Vec::new();
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        behind.extend(frame::syn_stream(id, false, &encoder.encode(&[("streamtype", kind)])));
    }
    behind.extend(frame::data_header(3, 5, true));
    behind.extend(b"early");
    let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", V4)];
    let (stream, response) = http::request(&ground.exec("cat", "io"), "POST", &headers, &behind).await;
    assert_eq!(response.status, 101);
    let (mut replay, wire) = tokio::io::duplex(1 << 20);
    let (mut from, mut to) = stream.into_split();
    tokio::spawn(async move {
        replay.write_all(&response.rest).await.unwrap();
        let (mut read, mut write) = tokio::io::split(replay);
        let _ = tokio::join!(tokio::io::copy(&mut from, &mut write), tokio::io::copy(&mut read, &mut to));
    });
    let mut client = Spdy::over(wire);
    client
        .until("echo", |c| c.streams.get(&5).is_some_and(|stream| stream.data == b"early" && stream.finished))
        .await;
}

#[tokio::test]
async fn status_comes_after_the_last_byte_of_output() {
    let ground = Ground::new().await;
    let size = 3 << 20;
    let mut client = Spdy::connect(&ground.exec(&format!("exit-first {size}"), "o"), V4).await;
    let error = client.open_type("error").await;
    let stdout = client.open_type("stdout").await;
    client.until("first output", |c| !c.streams[&stdout].data.is_empty()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.until_closed().await;
    assert_eq!(client.streams[&stdout].data.len(), size);
    assert_eq!(code(&client.text(error)), 5);
    let last = |stream| client.heard.iter().rposition(|heard| *heard == stream).unwrap();
    let first = client.heard.iter().enumerate().filter(|(_, heard)| **heard == error).nth(1).unwrap().0;
    assert!(first > last(stdout), "the status came at {first}, output until {}", last(stdout));
}

#[tokio::test]
async fn output_that_a_grandchild_holds_open_is_given_up() {
    let options = Options { drain: Duration::from_millis(200), ..Options::default() };
    let ground = Ground::with(options).await;
    let begun = Instant::now();
    let mut client = Spdy::connect(&ground.exec("grandchild", "o"), V4).await;
    let error = client.open_type("error").await;
    let stdout = client.open_type("stdout").await;
    client.until_closed().await;
    assert_eq!((client.text(stdout).as_str(), code(&client.text(error))), ("done", 0));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn sizes_arrive_before_and_during() {
    let ground = Ground::new().await;
    let mut client = Spdy::connect(&ground.exec("size 2", "iot"), V4).await;
    let error = client.open_type("error").await;
    client.open_type("stdin").await;
    let resize = client.open_type("resize").await;
    client.data(resize, br#"{"Width":1,"Height":2}{"Width":80,"Height":24}"#, false).await;
    let stdout = client.open_type("stdout").await;
    client.until("first size", |c| c.text(stdout) == "80x24\n").await;
    client.data(resize, br#"{"Width":0,"Height":24}{"Width":100,"Hei"#, false).await;
    client.data(resize, br#"ght":30}"#, false).await;
    client.until("second size", |c| c.text(stdout) == "80x24\n100x30\n").await;
    client.data(resize, br#"{"Width":65535,"Height":1}"#, false).await;
    client.until_closed().await;
    assert_eq!(client.text(stdout), "80x24\n100x30\n65535x1\n");
    assert_eq!(code(&client.text(error)), 0);
    // A size that comes right after the streams still precedes the start.
    let mut client = Spdy::connect(&ground.exec("size 0", "iot"), V4).await;
    for kind in ["error", "stdin"] {
        client.open_type(kind).await;
    }
    let stdout = client.open_type("stdout").await;
    let resize = client.open_type("resize").await;
    client.until("replies", |c| c.streams.values().all(|stream| stream.replied)).await;
    client.data(resize, br#"{"Width":7,"Height":8}"#, false).await;
    client.until_closed().await;
    assert_eq!(client.text(stdout), "7x8\n");
}

#[tokio::test]
async fn a_lost_client_hangs_its_process_up() {
    let ground = Ground::new().await;
    for command in ["sleep", "cat", "write 100000000"] {
        let before = ground.hung_up();
        let mut client = Spdy::connect(&ground.exec(command, "io"), V4).await;
        for kind in ["error", "stdin", "stdout"] {
            client.open_type(kind).await;
        }
        client.until("replies", |c| c.streams.values().all(|stream| stream.replied)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(client);
        ground.quiet().await;
        assert_eq!(ground.hung_up(), before + 1, "{command}");
    }
    // Even while more input waits than the process takes.
    let before = ground.hung_up();
    let mut client = Spdy::connect(&ground.exec("sleep", "i"), V4).await;
    client.open_type("error").await;
    let stdin = client.open_type("stdin").await;
    client.data(stdin, &vec![0; 400 * 1024], false).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(client);
    ground.quiet().await;
    assert_eq!(ground.hung_up(), before + 1);
}

#[tokio::test]
async fn shutdown_lets_sessions_end_and_hangs_up_the_rest() {
    let ground = Ground::new().await;
    let mut client = Spdy::connect(&ground.exec("sleep", "o"), V4).await;
    client.open_type("error").await;
    client.open_type("stdout").await;
    client.until("replies", |c| c.streams.values().all(|stream| stream.replied)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let url = ground.exec("cat", "o");
    let Ground { server, runtime } = ground;
    server.shutdown(Duration::from_millis(100)).await;
    assert_eq!(runtime.hung_up.load(std::sync::atomic::Ordering::SeqCst), 1);
    client.until_closed().await;
    assert!(tokio::net::TcpStream::connect(http::split(&url).0).await.is_err());
}

#[tokio::test]
async fn streams_that_were_not_asked_for_are_refused() {
    let ground = Ground::new().await;
    let mut client = Spdy::connect(&ground.exec("count", "io"), V4).await;
    let stderr = client.open_type("stderr").await;
    let other = client.open_type("other").await;
    let nothing = client.open(&[]).await;
    let error = client.open_type("error").await;
    let again = client.open_type("error").await;
    client
        .until("resets", |c| {
            [stderr, other, nothing, again].iter().all(|stream| c.streams[stream].reset == Some(1))
        })
        .await;
    let stdin = client.open_type("stdin").await;
    let stdout = client.open_type("stdout").await;
    let bytes = vec![1; 5 << 20];
    client.data(stdin, &bytes, true).await;
    client.until_closed().await;
    assert_eq!(client.text(stdout), bytes.len().to_string());
    assert_eq!(code(&client.text(error)), 0);
}
