//! Transfers that break: the next attempt asks for the rest, in the same program and in the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pinnace_registry::server::Content;
use pinnace_store::{Digest, LayerCheck};

use crate::world::*;

const CUTS: usize = 200;

/// A registry with one image of one layer.
async fn world(size: usize) -> (World, Bytes) {
    with_layer(gzip_layer("a", size)).await
}

/// A layer that is large enough for several connections.
async fn large() -> (World, Bytes) {
    let tar = tar("a", 22_000_000);
    with_layer((Digest::sha256(&tar), tar.into())).await
}

async fn with_layer(layer: Layer) -> (World, Bytes) {
    let mut content = Content::default();
    add_image(&mut content, "app:1", std::slice::from_ref(&layer));
    (World::new(content).await, layer.1)
}

/// Serves the blob so that each connection breaks at the next of so many offsets; counts what was sent.
fn cut(world: &World, blob: &Bytes, cuts: usize) -> Arc<AtomicUsize> {
    let (blob, sent) = (blob.clone(), Arc::new(AtomicUsize::new(0)));
    let (name, counter) = (Digest::sha256(&blob).to_string(), Arc::clone(&sent));
    world.rule_of_requests(move |seen| {
        if !seen.path.ends_with(&name) {
            return None;
        }
        let (first, _) = seen.range();
        let step = blob.len() / cuts + 1;
        let end = ((first / step + 1) * step).min(blob.len());
        counter.fetch_add(end - first, Ordering::Relaxed);
        let how = if end == blob.len() { End::Clean } else { End::Cut };
        Some(part(frames(vec![blob.slice(first..end)], Duration::ZERO, how), first, blob.len(), blob.len()))
    });
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cut_everywhere_ends_by_resuming() {
    let (mut world, blob) = world(1_600_000).await;
    let sent = cut(&world, &blob, CUTS);
    let mut failures = 0;
    let pulled = loop {
        match world.pull("app:1").await {
            Ok(pulled) => break pulled,
            Err(error) => {
                failures += 1;
                assert!(chain(&error).contains("transfer ended"), "{}", chain(&error));
                assert!(failures <= CUTS, "it does not get on: {} bytes sent", sent.load(Ordering::Relaxed));
            }
        }
        if failures % 25 == 0 {
            world.restart().await;
        }
    };
    assert_eq!(pulled.record.layers.len(), 1);
    // Two connections an attempt.
    assert!(failures >= CUTS / 2 - 1, "{failures}");
    println!(
        "{CUTS} cuts, {failures} failed attempts, {} bytes sent of {}",
        sent.load(Ordering::Relaxed),
        blob.len()
    );
    // What was on its way when a connection broke may be sent again.
    let (sent, size) = (sent.load(Ordering::Relaxed), blob.len());
    assert!(sent <= size + size / 20, "{sent} bytes for {size}");
    assert_eq!(world.partial_files(), Vec::<std::path::PathBuf>::new());
    let check = world.store.check_layer(&pulled.record.layers[0]).unwrap();
    assert!(matches!(check, LayerCheck::Whole | LayerCheck::Unknown), "{check:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_is_continued() {
    let (world, blob) = world(3_000_000).await;
    let half = blob.slice(..blob.len() / 2);
    let name = Digest::sha256(&blob).to_string();
    world.rule(move |path| path.ends_with(&name).then(|| unfinished(half.clone(), true)));
    let pull = world.puller.start(world.request("app:1"));
    let mut progress = pull.progress();
    let half = blob.len() as u64 / 2;
    progress.wait_for(|progress| progress.done_bytes() == half).await.unwrap();
    // The bytes are through the queue by then.
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(pull);
    world.obey();
    world.forget_counts();
    // Whoever was cancelled holds the file until its thread has noticed.
    world.expect_clean().await;
    world.pull("app:1").await.unwrap();
    let ranges: Vec<_> =
        world.seen().iter().filter_map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [format!("bytes={half}-")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_left_is_found_out() {
    let (world, blob) = world(3_000_000).await;
    cut(&world, &blob, 3);
    world.pull("app:1").await.unwrap_err();
    let files = world.partial_files();
    assert_eq!(files.len(), 1);
    let length = std::fs::metadata(&files[0]).unwrap().len();
    assert!(length > 0 && length < blob.len() as u64, "{length}");
    // Zeros where data was not yet on the disk.
    std::fs::write(&files[0], vec![0; usize::try_from(length).unwrap()]).unwrap();
    world.obey();
    world.pull("app:1").await.unwrap();
    assert!(world.partial_files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_connections_are_joined_by_others() {
    let (world, blob) = large().await;
    let name = Digest::sha256(&blob).to_string();
    let (body, total) = (blob.clone(), blob.len());
    world.rule_of_requests(move |seen| {
        let (first, last) = seen.range();
        let end = last.map_or(total, |last| last + 1);
        let pieces = (first..end).step_by(64 << 10);
        let pieces = pieces.map(|at| body.slice(at..(at + (64 << 10)).min(end))).collect();
        let slow = frames(pieces, Duration::from_millis(10), End::Clean);
        seen.path.ends_with(&name).then(|| part(slow, first, end, total))
    });
    world.pull("app:1").await.unwrap();
    let asked: Vec<_> =
        world.seen().iter().filter(|seen| seen.header("range").is_some()).map(Seen::range).collect();
    assert!(asked.len() >= 4, "{asked:?}");
    let asked_bytes: usize = asked.iter().map(|(first, last)| last.unwrap_or(total - 1) + 1 - first).sum();
    assert!(asked_bytes <= total, "nothing is asked for twice: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_without_ranges_are_read_as_one_stream() {
    let (world, blob) = large().await;
    let name = Digest::sha256(&blob).to_string();
    let body = blob.clone();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    world.rule_of_requests(move |seen| {
        if !seen.path.ends_with(&name) {
            return None;
        }
        // The first is slow enough that others are tried.
        let pause = if count.fetch_add(1, Ordering::Relaxed) == 0 { 10 } else { 0 };
        let pieces = body.chunks(64 << 10).map(|piece| body.slice_ref(piece)).collect();
        Some(http::Response::new(frames(pieces, Duration::from_millis(pause), End::Clean)))
    });
    world.pull("app:1").await.unwrap();
    assert!(requests.load(Ordering::Relaxed) > 1, "ranges were never tried");
}
