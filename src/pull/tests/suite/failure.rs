//! Images that must not get in.

use bytes::Bytes;
use http::Response;
use pinnace_pull::ErrorKind;
use pinnace_registry::server::{Content, full};
use pinnace_store::Digest;

use crate::world::*;

async fn expect_refused(world: &World, tag: &str, kind: ErrorKind, part: &str) {
    let error = world.pull(tag).await.unwrap_err();
    let text = chain(&error);
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(part), "{text:?} does not contain {part:?}");
    world.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_layers() {
    for size in [1000, 4_000_000] {
        let tar = tar("a", size);
        let id = Digest::sha256(&tar);
        let whole = gzip(&tar);
        let mut flipped = whole.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let mut content = Content::default();
        let garbage = Bytes::from(vec![0x5a; 100_000]);
        add_image(&mut content, "truncated", &[(id, whole.slice(..whole.len() - 9))]);
        add_image(&mut content, "flipped", &[(id, flipped.into())]);
        add_image(&mut content, "garbage", &[(Digest::sha256(&garbage), garbage)]);
        add_image(&mut content, "bzip2", &[(id, Bytes::from_static(b"BZh91AY&SY"))]);
        add_image(&mut content, "wrong-id", &[(Digest::sha256(b"x"), whole.clone())]);
        add_image(&mut content, "short-tar", &[(Digest::sha256(&tar[..700]), gzip(&tar[..700]))]);
        let trailing = [&whole[..], b"more"].concat();
        add_image(&mut content, "trailing", &[(id, trailing.into())]);
        let world = World::new(content).await;
        for (tag, part) in [
            ("truncated", "decompress gzip"),
            ("flipped", ""),
            ("garbage", "unpack"),
            ("bzip2", "unsupported compression bzip2"),
            ("wrong-id", "content has digest"),
            ("short-tar", "unpack"),
            ("trailing", "decompress gzip"),
        ] {
            expect_refused(&world, tag, ErrorKind::InvalidImage, part).await;
        }
        assert!(world.store.images().is_empty() && world.store.layers().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blob_must_be_the_one_of_the_manifest() {
    for size in [1000, 4_000_000] {
        let mut content = Content::default();
        let layer = gzip_layer("a", size);
        add_image(&mut content, "app:1", std::slice::from_ref(&layer));
        let world = World::new(content).await;
        // The same tar, differently packed: only the blob's digest can tell.
        let length = layer.1.len();
        let mut other = layer.1.to_vec();
        other[9] ^= 1;
        assert_eq!(other.len(), length);
        let name = Digest::sha256(&layer.1).to_string();
        world.rule(move |path| path.ends_with(&name).then(|| Response::new(full(other.clone().into()))));
        expect_refused(&world, "app:1", ErrorKind::DataLoss, "content has digest").await;
        world.obey();
        world.pull("app:1").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_cannot_claim_the_layers_of_others() {
    let mut content = Content::default();
    let victim = gzip_layer("victim", 1000);
    let own = gzip_layer("evil", 1000);
    add_image(&mut content, "victim:1", std::slice::from_ref(&victim));
    // Its own blob under the victim's diff id, and the victim's blob under another diff id.
    add_image(&mut content, "evil:1", &[(victim.0, own.1.clone())]);
    add_image(&mut content, "evil:2", &[(own.0, victim.1.clone())]);
    add_image(&mut content, "evil:3", &[victim.clone(), (own.0, victim.1.clone())]);
    let world = World::new(content).await;
    expect_refused(&world, "evil:1", ErrorKind::InvalidImage, "content has digest").await;
    world.pull("victim:1").await.unwrap();
    expect_refused(&world, "evil:1", ErrorKind::InvalidImage, "content has digest").await;
    expect_refused(&world, "evil:2", ErrorKind::InvalidImage, "as the config claims").await;
    expect_refused(&world, "evil:3", ErrorKind::InvalidImage, "as the config claims").await;
    assert_eq!(world.store.images().len(), 1);
    assert_eq!(world.store.layers().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_at_every_kind_of_place_are_resumed() {
    let layer = gzip_layer("a", 300_000);
    let length = layer.1.len();
    for cut in [0, 1, 2, 10, 11, 4095, length / 2, length - 9, length - 8, length - 1] {
        let mut content = Content::default();
        add_image(&mut content, "app:1", std::slice::from_ref(&layer));
        let world = World::new(content).await;
        let once = std::sync::Once::new();
        let (name, blob) = (Digest::sha256(&layer.1).to_string(), layer.1.clone());
        world.rule(move |path| {
            let mut reply = None;
            if path.ends_with(&name) {
                once.call_once(|| reply = Some(unfinished(blob.slice(..cut), false)));
            }
            reply
        });
        world.pull("app:1").await.unwrap_or_else(|error| panic!("cut at {cut}: {}", chain(&error)));
        world.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_things_are_not_found() {
    let mut content = Content::default();
    let layer = gzip_layer("a", 1000);
    add_image(&mut content, "app:1", std::slice::from_ref(&layer));
    let world = World::new(content).await;
    let not_found = ErrorKind::Registry(pinnace_registry::ErrorKind::NotFound);
    expect_refused(&world, "app:2", not_found, "MANIFEST_UNKNOWN").await;
    let name = Digest::sha256(&layer.1).to_string();
    world.rule(move |path| {
        path.ends_with(&name)
            .then(|| Response::builder().status(404).body(pinnace_registry::server::empty()).unwrap())
    });
    expect_refused(&world, "app:1", not_found, "404").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_delivers_rubbish_is_passed_over() {
    for size in [1000, 4_000_000] {
        let mut content = Content::default();
        let layer = gzip_layer("a", size);
        add_image(&mut content, "app:1", std::slice::from_ref(&layer));
        let mirror = World::new(content.clone()).await;
        let (name, length) = (Digest::sha256(&layer.1).to_string(), layer.1.len());
        mirror.rule(move |path| path.ends_with(&name).then(|| Response::new(full(vec![7; length].into()))));
        let world = World::mirrored(content, &mirror).await;
        let pulled = world.pull("app:1").await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(pulled.record.layers.len(), 1);
        assert_eq!((mirror.count("GET", "/blobs/"), world.count("GET", "/blobs/")), (2, 1));
        world.expect_clean().await;
    }
}
