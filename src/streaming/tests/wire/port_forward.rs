//! Port-forward over SPDY, plain and tunnelled.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pinnace_streaming::Options;

use crate::spdy_client::Spdy;
use crate::{Ground, web_socket};

const PROTOCOL: &str = "portforward.k8s.io";

async fn pair(client: &mut Spdy, id: &str, port: &str) -> (u32, u32) {
    let error = client.open(&[("streamtype", "error"), ("port", port), ("requestid", id)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", port), ("requestid", id)]).await;
    (error, data)
}

/// What every transport of port-forward does.
async fn exchange(ground: &Ground, mut client: Spdy) {
    // An echo, with half-close.
    let (error, data) = pair(&mut client, "0", "7").await;
    client.data(data, b"hello", false).await;
    client.until("echo", |c| c.streams[&data].data == b"hello").await;
    client.data(data, b"!", true).await;
    client.until("end", |c| c.streams[&data].finished && c.streams[&error].finished).await;
    assert_eq!((client.text(data), client.text(error)), ("hello!".into(), String::new()));

    // An error leaves the session alive.
    let (error, data) = pair(&mut client, "1", "1").await;
    client.until("refusal", |c| c.streams[&data].reset.is_some() && c.streams[&error].finished).await;
    assert_eq!(client.text(error), "connect to port 1: connection refused");

    // An answer that takes longer than the linger, after the client has closed its side.
    let (error, data) = pair(&mut client, "2", "80").await;
    client.data(data, &[0; 1000], true).await;
    client.until("answer", |c| c.streams[&data].finished && c.streams[&error].finished).await;
    assert_eq!(client.text(data), "1000 bytes");

    // An application that closes first; the client's silence ends it.
    let (error, data) = pair(&mut client, "3", "81").await;
    client.until("banner", |c| c.streams[&data].finished).await;
    client.until("end", |c| c.streams[&error].finished).await;
    assert_eq!(client.text(data), "banner");

    // An old client, without request ids.
    let error = client.open(&[("streamtype", "error"), ("port", "7")]).await;
    let data = client.open(&[("streamtype", "data"), ("port", "7")]).await;
    client.data(data, b"old", true).await;
    client.until("end", |c| c.streams[&data].finished && c.streams[&error].finished).await;
    assert_eq!(client.text(data), "old");

    // What is no pair.
    for headers in [
        &[("streamtype", "data"), ("port", "0"), ("requestid", "4")][..],
        &[("streamtype", "data"), ("port", "65536"), ("requestid", "4")],
        &[("streamtype", "stdin"), ("port", "7"), ("requestid", "4")],
        &[("streamtype", "data"), ("requestid", "4")],
    ] {
        let stream = client.open(headers).await;
        client.until("reset", |c| c.streams[&stream].reset == Some(1)).await;
    }

    // Many at once.
    let mut pairs = Vec::new();
    for id in 0..64 {
        pairs.push(pair(&mut client, &format!("many {id}"), "7").await);
    }
    for round in 0..4 {
        for (index, (_, data)) in pairs.iter().enumerate() {
            let byte = u8::try_from(index).unwrap();
            client.data(*data, &vec![byte; 10_000], round == 3).await;
        }
    }
    client
        .until("all", |c| {
            pairs.iter().all(|(error, data)| c.streams[data].finished && c.streams[error].finished)
        })
        .await;
    for (index, (_, data)) in pairs.iter().enumerate() {
        assert_eq!(client.streams[data].data, vec![u8::try_from(index).unwrap(); 40_000]);
    }
    ground.quiet().await;

    // A client that leaves in the middle.
    let (_, data) = pair(&mut client, "last", "7").await;
    client.data(data, b"x", false).await;
    client.until("echo", |c| c.streams[&data].data == b"x").await;
    assert_eq!(ground.runtime.running.load(Ordering::SeqCst), 1);
    drop(client);
    ground.quiet().await;
}

#[tokio::test]
async fn connections_over_spdy() {
    let ground = Ground::new().await;
    let client = Spdy::connect(&ground.port_forward(&[]), PROTOCOL).await;
    exchange(&ground, client).await;
}

#[tokio::test]
async fn connections_over_spdy_in_a_web_socket() {
    let ground = Ground::new().await;
    let client = web_socket::tunnel(&ground.port_forward(&[])).await;
    exchange(&ground, client).await;
}

#[tokio::test]
async fn half_a_pair_is_given_up() {
    let options = Options { stream_creation_timeout: Duration::from_millis(200), ..Options::default() };
    let ground = Ground::with(options).await;
    let mut client = Spdy::connect(&ground.port_forward(&[]), PROTOCOL).await;
    let error = client.open(&[("streamtype", "error"), ("port", "7"), ("requestid", "a")]).await;
    let data = client.open(&[("streamtype", "data"), ("port", "7"), ("requestid", "b")]).await;
    client.until("time-out", |c| c.streams[&error].reset.is_some() && c.streams[&data].reset.is_some()).await;
    assert_eq!(client.text(error), "timed out waiting for the data stream of request a");
    let (_, data) = pair(&mut client, "c", "7").await;
    client.data(data, b"alive", true).await;
    client.until("end", |c| c.streams[&data].finished).await;
    assert_eq!(client.text(data), "alive");
}

#[tokio::test]
async fn a_connection_that_takes_nothing_does_not_hold_up_the_others_for_ever() {
    let options = Options { stall_timeout: Duration::from_millis(300), ..Options::default() };
    let ground = Ground::with(options).await;
    let mut client = Spdy::connect(&ground.port_forward(&[]), PROTOCOL).await;
    let (_, good) = pair(&mut client, "good", "7").await;
    let (_, stuck) = pair(&mut client, "stuck", "82").await;
    client.until("replies", |c| c.streams[&stuck].replied).await;
    client.data(stuck, &vec![0; 400 * 1024], false).await;
    client.data(good, b"still here", true).await;
    client.until("the other", |c| c.streams[&good].finished).await;
    assert_eq!(client.text(good), "still here");
    assert!(client.streams[&stuck].reset.is_some());
}
