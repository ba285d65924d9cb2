//! One transfer for everyone who wants it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pinnace_pull::{ErrorKind, Options, Phase};
use pinnace_registry::server::Content;
use pinnace_store::Digest;

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pulls_are_one() {
    let mut content = Content::default();
    let layers = [gzip_layer("a", 2_000_000), gzip_layer("b", 100)];
    add_image(&mut content, "app:1", &layers);
    let world = Arc::new(World::new(content).await);
    let pulls: Vec<_> = (0..50)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.pull("app:1").await.unwrap().image_id })
        })
        .collect();
    let mut ids = Vec::new();
    for pull in pulls {
        ids.push(pull.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    for (_, blob) in &layers {
        assert_eq!(world.count("GET", &Digest::sha256(blob).to_string()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_share_a_layer_in_flight() {
    let mut content = Content::default();
    let base = gzip_layer("base", 5_000_000);
    let tags: Vec<String> = (0..8).map(|i| format!("app{i}:1")).collect();
    for (i, tag) in tags.iter().enumerate() {
        add_image(&mut content, tag, &[base.clone(), gzip_layer(&format!("own{i}"), 100 + i)]);
    }
    let world = Arc::new(World::new(content).await);
    let pulls: Vec<_> = tags
        .into_iter()
        .map(|tag| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.pull(&tag).await.unwrap() })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    assert_eq!(world.count("GET", &Digest::sha256(&base.1).to_string()), 1);
    world.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_cancels_only_for_the_last() {
    let mut content = Content::default();
    let layer = gzip_layer("a", 3_000_000);
    add_image(&mut content, "app:1", std::slice::from_ref(&layer));
    add_image(&mut content, "other:1", &[layer.clone(), gzip_layer("own", 5)]);
    let world = Arc::new(World::new(content).await);
    let blob = layer.1.clone();
    let half = blob.len() / 2;
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let name = Digest::sha256(&blob).to_string();
    world.rule(move |path| {
        if !path.ends_with(&name) {
            return None;
        }
        seen.fetch_add(1, Ordering::SeqCst);
        Some(unfinished(blob.slice(..half), true))
    });
    let pulls: Vec<_> =
        ["app:1", "app:1", "other:1"].into_iter().map(|tag| world.puller.start(world.request(tag))).collect();
    let [first, second, other] = <[_; 3]>::try_from(pulls).unwrap();
    // All are under way on the one transfer.
    for pull in [&first, &other] {
        let mut progress = pull.progress();
        let fetching = |p: &pinnace_pull::Progress| {
            p.layers.iter().any(|l| l.done_bytes > 0 && l.phase == Phase::Fetching)
        };
        tokio::time::timeout(Duration::from_secs(5), progress.wait_for(fetching)).await.unwrap().unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    drop(first);
    drop(other);
    world.obey();
    // The remaining one resumes after the stall and finishes.
    second.finish().await.unwrap();
    assert!(world.store.image(&world.reference("other:1").to_string()).is_none());
    world.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_pull_leaves_nothing() {
    let mut content = Content::default();
    let layers = [gzip_layer("a", 3_000_000), gzip_layer("bb", 4_000_000), gzip_layer("c", 10)];
    add_image(&mut content, "app:1", &layers);
    let world = World::new(content).await;
    let blobs: Vec<_> =
        layers.iter().map(|(_, blob)| (Digest::sha256(blob).to_string(), blob.clone())).collect();
    for cut in [0, 1, 100_000, 1_000_000] {
        let blobs = Mutex::new(blobs.clone());
        world.rule(move |path| {
            let blobs = blobs.lock().unwrap();
            let (_, blob) = blobs.iter().find(|(name, _)| path.ends_with(name))?;
            Some(unfinished(blob.slice(..cut.min(blob.len())), true))
        });
        let pull = world.pull("app:1");
        assert!(tokio::time::timeout(Duration::from_millis(150), pull).await.is_err());
        world.expect_clean().await;
        assert!(world.store.images().is_empty());
    }
    world.obey();
    world.pull("app:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_tries_its_own_way_when_the_leader_fails() {
    let mut content = Content::default();
    let layer = gzip_layer("a", 3_000_000);
    add_image(&mut content, "bad:1", std::slice::from_ref(&layer));
    add_image(&mut content, "good:1", std::slice::from_ref(&layer));
    let world = World::new(content).await;
    let half = layer.1.slice(..layer.1.len() / 2);
    world.rule(move |path| path.contains("/bad/blobs/").then(|| unfinished(half.clone(), true)));
    let config_of_bad = world.puller.start(world.request("bad:1"));
    // The config is a blob too: bad fails there or at its layer, good must not care.
    let good = world.pull("good:1").await.unwrap();
    assert_eq!(good.record.layers.len(), 1);
    assert!(config_of_bad.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_layers_wait_for_the_next_attempt() {
    let mut content = Content::default();
    let layers = [gzip_layer("a", 1_000_000), gzip_layer("bb", 1_000_000)];
    add_image(&mut content, "app:1", &layers);
    let options = Options { grace: Duration::from_secs(60), layers_at_once: 1, ..Options::default() };
    let world = World::with(content, options).await;
    let broken = Digest::sha256(&layers[1].1).to_string();
    // Layers of one size are taken in their order: the first is done when the second fails.
    let name = broken.clone();
    let beginning = bytes::Bytes::copy_from_slice(&layers[1].1[..100]);
    world.rule(move |path| path.ends_with(&name).then(|| unfinished(beginning.clone(), false)));
    let error = world.pull("app:1").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Registry(_)), "{}", chain(&error));
    let first = Digest::sha256(&layers[0].1).to_string();
    assert!(world.count("GET", &first) <= 1);
    world.obey();
    world.forget_counts();
    world.pull("app:1").await.unwrap();
    assert_eq!(world.count("GET", &broken), 1);
    let is_known = world.store.layers().len() == 2;
    assert!(is_known);
}
