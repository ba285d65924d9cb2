//! Blobs over connections that break.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use pinnace_registry::{BlobStream, Client, Descriptor, ErrorKind, Options};
use pinnace_store::Digest;

use crate::world::*;

const SIZE: usize = 3 << 20;

async fn stream(registry: &Registry, layer: &Descriptor) -> BlobStream {
    client().repository(&registry.reference("test/image"), None).unwrap().fetch_blob(layer, 0)
}

fn bytes() -> Bytes {
    (0..SIZE).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<u8>>().into()
}

fn is_blob(seen: &Seen) -> bool {
    seen.uri.contains("/blobs/")
}

fn from(seen: &Seen) -> usize {
    let range = seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    range.map_or(0, |start| start.parse().unwrap())
}

/// The rest of the blob from where the request says, cut after `count` bytes.
fn part(start: usize, count: usize, end: End) -> Response<pinnace_registry::server::Body> {
    let all = bytes();
    let chunks: Vec<Bytes> =
        all.slice(start..(start + count).min(SIZE)).chunks(100_000).map(Bytes::copy_from_slice).collect();
    let mut response = Response::new(frames(chunks, Duration::ZERO, end));
    if start > 0 {
        *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        response = with_header(response, "content-range", &format!("bytes {start}-{}/{SIZE}", SIZE - 1));
    }
    response
}

#[tokio::test]
async fn cuts_are_resumed_where_they_happened() {
    let (content, image) = one_layer(SIZE);
    let registry =
        Registry::start(content, |seen| is_blob(seen).then(|| part(from(seen), 1_100_000, End::Cut))).await;
    let received = collect(stream(&registry, &image.layers[0]).await).await.unwrap();
    assert_eq!(Digest::sha256(&received), image.layers[0].digest);
    let starts: Vec<usize> = registry.seen().iter().map(from).collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
}

#[tokio::test]
async fn a_server_without_ranges_is_endured() {
    let (content, image) = one_layer(SIZE);
    let cuts = AtomicUsize::new(0);
    let registry = Registry::start(content, move |seen| {
        // Always from the start, whatever was asked for; whole only the second time.
        let turn = cuts.fetch_add(1, Ordering::SeqCst);
        is_blob(seen).then(|| part(0, if turn == 0 { 1_500_000 } else { SIZE }, End::Cut))
    })
    .await;
    let received = collect(stream(&registry, &image.layers[0]).await).await.unwrap();
    assert_eq!(Digest::sha256(&received), image.layers[0].digest);
    assert_eq!(registry.seen().len(), 2);
}

#[tokio::test]
async fn cuts_without_progress_end() {
    let (content, image) = one_layer(SIZE);
    let registry =
        Registry::start(content, |seen| is_blob(seen).then(|| part(from(seen), 1000, End::Cut))).await;
    let result = collect(stream(&registry, &image.layers[0]).await).await;
    expect_kind(result, ErrorKind::Unavailable, "transfer ended after");
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn a_wrong_range_is_refused() {
    let (content, image) = one_layer(SIZE);
    let registry = Registry::start(content, |seen| {
        let start = from(seen);
        is_blob(seen).then(|| match start {
            0 => part(0, 1_500_000, End::Cut),
            start => with_header(
                {
                    let mut response = part(start, SIZE, End::Clean);
                    response.headers_mut().remove("content-range");
                    response
                },
                "content-range",
                &format!("bytes {}-{}/{SIZE}", start - 1, SIZE - 1),
            ),
        })
    })
    .await;
    let result = collect(stream(&registry, &image.layers[0]).await).await;
    expect_kind(result, ErrorKind::Unavailable, "which was not asked for");
}

#[tokio::test]
async fn the_length_must_be_right() {
    for (length, named) in [(SIZE - 1, true), (SIZE + 1, true), (SIZE + 1, false)] {
        let (content, image) = one_layer(SIZE);
        let registry = Registry::start(content, move |seen| {
            is_blob(seen).then(|| {
                let mut all = bytes().to_vec();
                all.resize(length, 0);
                if named {
                    Response::new(pinnace_registry::server::full(all.into()))
                } else {
                    Response::new(frames(vec![all.into()], Duration::ZERO, End::Clean))
                }
            })
        })
        .await;
        let result = collect(stream(&registry, &image.layers[0]).await).await;
        expect_kind(result, ErrorKind::DataLoss, "bytes, not");
        assert_eq!(registry.seen().len(), 1);
    }
}

#[tokio::test]
async fn absurd_sizes_cost_nothing() {
    let (content, image) = one_layer(1000);
    let registry = Registry::plain(content).await;
    for size in [u64::MAX, i64::MAX.unsigned_abs(), 0] {
        let layer = Descriptor { size, ..image.layers[0].clone() };
        let result = collect(stream(&registry, &layer).await).await;
        match size {
            0 => assert!(result.unwrap().is_empty()),
            _ => expect_kind(result, ErrorKind::DataLoss, "has 1000 bytes, not"),
        }
    }
}

#[tokio::test]
async fn stalls_and_trickles_are_given_up_and_resumed() {
    for trickle in [false, true] {
        let (content, image) = one_layer(SIZE);
        let turn = AtomicUsize::new(0);
        let registry = Registry::start(content, move |seen| {
            if !is_blob(seen) || turn.fetch_add(1, Ordering::SeqCst) > 0 {
                return None;
            }
            Some(if trickle {
                let body =
                    frames(vec![Bytes::from_static(b"\0"); 10_000], Duration::from_millis(50), End::Hang);
                Response::new(body)
            } else {
                part(0, 2_000_000, End::Hang)
            })
        })
        .await;
        // The first bytes of a trickle are wrong on purpose: they are what the blob starts with.
        let started = Instant::now();
        let mut stream = stream(&registry, &image.layers[0]).await;
        let mut count = 0;
        while let Some(chunk) = stream.chunk().await.unwrap() {
            count += chunk.len();
        }
        assert_eq!(count, SIZE);
        assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(from(&registry.seen()[1]) > 0);
    }
    let (content, image) = one_layer(SIZE);
    let registry = Registry::start(content, |seen| is_blob(seen).then(|| part(0, 0, End::Hang))).await;
    let result = collect(stream(&registry, &image.layers[0]).await).await;
    expect_kind(result, ErrorKind::Timeout, "no progress for");
}

#[tokio::test]
async fn dropping_a_stream_closes_its_connection() {
    let (content, image) = one_layer(SIZE);
    let registry = Registry::start(content, |seen| is_blob(seen).then(|| part(0, 200_000, End::Hang))).await;
    let options = Options { stall_timeout: Duration::from_secs(60), ..options() };
    let client = Client::new(options).unwrap();
    let mut stream =
        client.repository(&registry.reference("test/image"), None).unwrap().fetch_blob(&image.layers[0], 0);
    stream.chunk().await.unwrap().unwrap();
    drop(stream);
    // A server that is stopped while nothing is in flight lets its port go.
    let address = registry.server.address();
    drop(registry);
    for _ in 0..100 {
        if tokio::net::TcpStream::connect(address).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server still listens");
}

#[tokio::test]
async fn a_content_encoding_changes_nothing() {
    let (content, image) = one_layer(SIZE);
    let registry = Registry::start(content, |seen| {
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        is_blob(seen).then(|| with_header(part(0, SIZE, End::Clean), "content-encoding", "gzip"))
    })
    .await;
    let received = collect(stream(&registry, &image.layers[0]).await).await.unwrap();
    assert_eq!(Digest::sha256(&received), image.layers[0].digest);
}
