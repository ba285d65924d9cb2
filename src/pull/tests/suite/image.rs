//! What a pull leaves in the store.

use std::os::fd::AsFd;

use pinnace_pull::{Phase, PullRequest};
use pinnace_registry::server::Content;
use pinnace_store::{Digest, MountOptions};

use crate::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_ends_as_the_same_files() {
    let mut content = Content::default();
    let tars: Vec<Vec<u8>> = (0..5).map(|i| tar(&format!("file{i}"), 3_000_000 + i)).collect();
    let id = |i: usize| Digest::sha256(&tars[i]);
    let halves = tars[2].split_at(1_234_567);
    let members = [gzip(halves.0), gzip(halves.1)].concat();
    let layers = [
        (id(0), gzip(&tars[0])),
        (id(1), zstd::encode_all(tars[1].as_slice(), 3).unwrap().into()),
        (id(2), members.into()),
        (id(3), tars[3].clone().into()),
        gzip_layer("small", 10),
    ];
    let (manifest, config) = add_image(&mut content, "app:1", &layers);
    let world = World::new(content).await;
    let pull = world.puller.start(world.request("app:1"));
    let progress = pull.progress();
    let pulled = pull.finish().await.unwrap();
    assert_eq!(pulled.image_id.digest(), &config);
    assert_eq!(pulled.repo_digest, manifest);
    assert_eq!(pulled.fetched_bytes, layers.iter().map(|(_, blob)| blob.len() as u64).sum::<u64>());
    let record = &pulled.record;
    assert_eq!((record.user.as_str(), record.labels["tag"].as_str()), ("1000", "app:1"));
    assert_eq!(record.tags().collect::<Vec<_>>(), [world.reference("app:1").to_string()]);
    assert_eq!(record.digests().collect::<Vec<_>>(), [world.reference("app:1").repo_digest(&manifest)]);
    let progress = progress.borrow().clone();
    assert_eq!(progress.layers.len(), 5);
    assert!(progress.layers.iter().all(|layer| layer.phase == Phase::Done));
    assert_eq!(progress.done_bytes(), progress.total_bytes());
    world.store.prepare("container", &record.layers).unwrap();
    let rootfs = world.store.mount("container", &MountOptions::default()).unwrap();
    for (name, size) in [
        ("file0", 3_000_000),
        ("file1", 3_000_001),
        ("file2", 3_000_002),
        ("file3", 3_000_003),
        ("small", 10),
    ] {
        let stat = rustix::fs::statat(rootfs.as_fd(), name, rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(stat.st_size, size, "{name}");
    }
    drop(rootfs);
    assert!(world.store.remove("container").unwrap());
    world.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_only_asks() {
    let mut content = Content::default();
    add_image(&mut content, "app:1", &[gzip_layer("a", 100)]);
    let world = World::new(content).await;
    let first = world.pull("app:1").await.unwrap();
    world.forget_counts();
    let second = world.pull("app:1").await.unwrap();
    assert_eq!((second.image_id, second.repo_digest), (first.image_id, first.repo_digest));
    assert_eq!(second.fetched_bytes, 0);
    assert_eq!((world.count("HEAD", ""), world.count("GET", "")), (1, 0));
    let by_digest = world.pull(&format!("app@{}", first.repo_digest)).await.unwrap();
    assert_eq!(by_digest.image_id, first.image_id);
    assert_eq!((world.count("HEAD", ""), world.count("GET", "")), (2, 0));
    // Somebody who may not have it does not get it from the store either.
    world.rule(|_| {
        Some(hyper::Response::builder().status(403).body(pinnace_registry::server::empty()).unwrap())
    });
    assert!(world.pull("app:1").await.is_err());
    assert!(world.pull(&format!("app@{}", first.repo_digest)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_pull_names_no_tag_and_a_tag_moves() {
    let mut content = Content::default();
    let (old, _) = add_image(&mut content, "app:1", &[gzip_layer("a", 100)]);
    let world = World::new(content).await;
    let pinned = world.pull(&format!("app:1@{old}")).await.unwrap();
    assert_eq!(pinned.record.tags().count(), 0);
    assert_eq!(pinned.record.digests().count(), 1);
    let tagged = world.pull("app:1").await.unwrap();
    assert_eq!((tagged.image_id, tagged.fetched_bytes), (pinned.image_id, 0));
    assert_eq!(tagged.record.tags().count(), 1);

    world.server.edit(|content| add_image(content, "app:1", &[gzip_layer("a", 100), gzip_layer("bb", 100)]));
    world.forget_counts();
    let moved = world.pull("app:1").await.unwrap();
    assert_ne!(moved.image_id, tagged.image_id);
    assert_eq!(world.count("GET", "/blobs/"), 2, "config and the new layer only");
    let old = world.store.image(&tagged.image_id.to_string()).unwrap();
    assert_eq!((old.tags().count(), old.digests().count()), (0, 1));
    let name = world.reference("app:1").to_string();
    assert_eq!(world.store.image(&name).unwrap().id, moved.image_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_repeat_come_once_and_many_are_fine() {
    let mut content = Content::default();
    let twice = gzip_layer("twice", 100);
    let mut layers: Vec<Layer> = (0..120).map(|i| gzip_layer(&format!("f{i}"), i)).collect();
    layers.insert(0, twice.clone());
    layers.push(twice.clone());
    add_image(&mut content, "app:1", &layers);
    add_image(&mut content, "empty:1", &[]);
    let world = World::new(content).await;
    let pulled = world.pull("app:1").await.unwrap();
    assert_eq!(pulled.record.layers.len(), 122);
    assert_eq!(world.count("GET", &Digest::sha256(&twice.1).to_string()), 1);
    assert_eq!(world.pull("empty:1").await.unwrap().record.layers.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_given_to_an_image_that_is_there() {
    let mut content = Content::default();
    add_image(&mut content, "app:1", &[gzip_layer("a", 100)]);
    let world = World::new(content).await;
    assert!(!world.pull("app:1").await.unwrap().record.pinned);
    let request = PullRequest { pinned: true, ..world.request("app:1") };
    assert!(world.puller.pull(request).await.unwrap().record.pinned);
    assert!(world.pull("app:1").await.unwrap().record.pinned);
}
