//! From references to verified documents.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use pinnace_registry::manifest::{OCI_INDEX, OCI_MANIFEST};
use pinnace_registry::server::Content;
use pinnace_registry::{Descriptor, ErrorKind, Platform};

use crate::world::*;

fn index(entries: &[Descriptor]) -> String {
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string()
}

fn for_platform(media_type: &str, bytes: &[u8], platform: &str) -> Descriptor {
    Descriptor { platform: Platform::parse(platform), ..Descriptor::of(media_type, bytes) }
}

#[tokio::test]
async fn a_tag_and_a_digest_lead_to_the_same_image() {
    let (content, image) = one_layer(1000);
    let registry = Registry::plain(content).await;
    let client = client();
    for rest in ["test/image", "test/image:latest", &format!("test/image@{}", image.manifest)] {
        let found = client.resolve(&registry.reference(rest), None).await.unwrap();
        assert_eq!(found.target.digest, image.manifest);
        assert_eq!(found.manifest.config.digest, image.config.digest);
        assert_eq!(found.manifest.layers, image.layers);
        assert_eq!(found.config.rootfs.diff_ids.len(), 1);
        assert_eq!(found.documents.len(), 1);
    }
    let repository = client.repository(&registry.reference("test/image"), None).unwrap();
    assert_eq!(repository.claimed_digest().await.unwrap(), Some(image.manifest));
    let missing = client.resolve(&registry.reference("test/image:nope"), None).await;
    expect_kind(missing, ErrorKind::NotFound, "MANIFEST_UNKNOWN: manifest unknown");
    let bytes = collect(repository.fetch_blob(&image.layers[0], 0)).await.unwrap();
    assert_eq!(pinnace_store::Digest::sha256(&bytes), image.layers[0].digest);
    let tail = collect(repository.fetch_blob(&image.layers[0], 900)).await.unwrap();
    assert_eq!(tail, bytes[900..]);
}

#[tokio::test]
async fn an_index_gives_the_image_of_this_machine() {
    let (mut content, image) = one_layer(10);
    let host = Platform::host().to_string();
    let ours = for_platform(OCI_MANIFEST, image.manifest_text.as_bytes(), &host);
    let inner = index(&[for_platform(OCI_MANIFEST, b"other", "linux/s390x"), ours]);
    let inner_digest = content.add_manifest(OCI_INDEX, inner.clone());
    content.tag("test/image", "multi", inner_digest);
    let outer = index(&[Descriptor::of(OCI_INDEX, inner.as_bytes())]);
    let outer_digest = content.add_manifest(OCI_INDEX, outer);
    content.tag("test/image", "nested", outer_digest);
    let foreign = index(&[for_platform(OCI_MANIFEST, b"x", "linux/s390x")]);
    let foreign_digest = content.add_manifest(OCI_INDEX, foreign);
    content.tag("test/image", "foreign", foreign_digest);
    let registry = Registry::plain(content).await;
    let client = client();
    let found = client.resolve(&registry.reference("test/image:multi"), None).await.unwrap();
    assert_eq!(found.target.digest, inner_digest);
    assert_eq!(found.documents.len(), 2);
    assert_eq!(found.documents[1].0.digest, image.manifest);
    let found = client.resolve(&registry.reference("test/image:nested"), None).await.unwrap();
    assert_eq!((found.target.digest, found.documents.len()), (outer_digest, 3));
    let none = client.resolve(&registry.reference("test/image:foreign"), None).await;
    expect_kind(none, ErrorKind::NotFound, "among linux/s390x");
}

#[tokio::test]
async fn nested_indexes_end() {
    let mut content = Content::default();
    let mut text = index(&[Descriptor::of(OCI_MANIFEST, b"absent")]);
    for _ in 0..10 {
        content.add_manifest(OCI_INDEX, text.clone());
        text = index(&[Descriptor::of(OCI_INDEX, text.as_bytes())]);
    }
    let digest = content.add_manifest(OCI_INDEX, text);
    content.tag("deep", "latest", digest);
    let registry = Registry::plain(content).await;
    expect_kind(
        client().resolve(&registry.reference("deep"), None).await,
        ErrorKind::InvalidImage,
        "nested more than 4 deep",
    );
    assert!(registry.seen().len() <= 6);
}

#[tokio::test]
async fn what_is_served_must_be_what_was_asked_for() {
    let (content, image) = one_layer(10);
    let other = Descriptor::of(OCI_MANIFEST, b"{}").digest;
    let lie = image.manifest_text.clone();
    let registry = Registry::start(content, move |seen| {
        let is_pinned = seen.uri.contains("/manifests/sha256");
        is_pinned.then(|| with_header(json(lie.clone()), "docker-content-digest", &other.to_string()))
    })
    .await;
    let pinned = registry.reference(&format!("test/image@{other}"));
    expect_kind(client().resolve(&pinned, None).await, ErrorKind::DataLoss, "content has digest");
}

#[tokio::test]
async fn a_config_that_differs_is_refused() {
    for (body, kind, part) in [
        ("x".repeat(5), ErrorKind::DataLoss, "bytes, not"),
        ("x".repeat(5000), ErrorKind::DataLoss, "bytes, not"),
    ] {
        let (content, image) = one_layer(10);
        let config = format!("/blobs/{}", image.config.digest);
        let registry =
            Registry::start(content, move |seen| seen.uri.ends_with(&config).then(|| json(body.clone())))
                .await;
        expect_kind(client().resolve(&registry.reference("test/image"), None).await, kind, part);
    }
    let (content, image) = one_layer(10);
    let config = format!("/blobs/{}", image.config.digest);
    let same_length = "x".repeat(usize::try_from(image.config.size).unwrap());
    let registry =
        Registry::start(content, move |seen| seen.uri.ends_with(&config).then(|| json(same_length.clone())))
            .await;
    expect_kind(
        client().resolve(&registry.reference("test/image"), None).await,
        ErrorKind::DataLoss,
        "content has digest",
    );
}

#[tokio::test]
async fn an_endless_manifest_is_cut() {
    let (content, _) = one_layer(10);
    let registry = Registry::start(content, |seen| {
        seen.uri.contains("/manifests/").then(|| {
            let chunk = Bytes::from(vec![b' '; 64 << 10]);
            Response::new(frames(vec![chunk; 1 << 12], Duration::ZERO, End::Hang))
        })
    })
    .await;
    let started = Instant::now();
    let result = client().resolve(&registry.reference("test/image"), None).await;
    expect_kind(result, ErrorKind::InvalidImage, "manifest is larger than 4194304 bytes");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_manifest_that_trickles_is_given_up() {
    let (content, _) = one_layer(10);
    let registry = Registry::start(content, |seen| {
        seen.uri.contains("/manifests/").then(|| {
            let body = frames(vec![Bytes::from_static(b" "); 1000], Duration::from_millis(20), End::Hang);
            Response::new(body)
        })
    })
    .await;
    let options =
        pinnace_registry::Options { reply_timeout: Duration::from_millis(200), attempts: 2, ..options() };
    let client = pinnace_registry::Client::new(options).unwrap();
    let started = Instant::now();
    let result = client.resolve(&registry.reference("test/image"), None).await;
    expect_kind(result, ErrorKind::Timeout, "no manifest for");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn ambiguous_and_ancient_documents_are_refused() {
    for (media_type, text, part) in [
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            "schema 1",
        ),
        (OCI_MANIFEST, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "both"),
        (OCI_MANIFEST, r#"{"schemaVersion":2,"manifests":[]}"#, "does not match"),
        (OCI_MANIFEST, "<html>", "malformed manifest"),
        (OCI_MANIFEST, "", "malformed manifest"),
    ] {
        let mut content = Content::default();
        let digest = content.add_manifest(media_type, text);
        content.tag("bad", "latest", digest);
        let registry = Registry::plain(content).await;
        let result = client().resolve(&registry.reference("bad"), None).await;
        expect_kind(result, ErrorKind::InvalidImage, part);
    }
}

#[tokio::test]
async fn failures_that_pass_are_outlived() {
    for code in [408, 429, 500, 502, 503, 504] {
        let (content, _) = one_layer(10);
        let failures = AtomicUsize::new(2);
        let registry = Registry::start(content, move |_| {
            let left = failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            left.is_ok().then(|| with_header(status(code), "retry-after", "0"))
        })
        .await;
        client().resolve(&registry.reference("test/image"), None).await.unwrap();
        assert_eq!(registry.seen().len(), 4, "{code}");
    }
}

#[tokio::test]
async fn failures_that_stay_are_reported() {
    for (code, kind, requests) in [
        (400, ErrorKind::Unavailable, 1),
        (401, ErrorKind::Unauthorized, 1),
        (403, ErrorKind::Forbidden, 1),
        (404, ErrorKind::NotFound, 1),
        (429, ErrorKind::RateLimited, 3),
        (503, ErrorKind::Unavailable, 3),
    ] {
        let registry = Registry::start(Content::default(), move |_| Some(status(code))).await;
        let result = client().resolve(&registry.reference("test/image"), None).await;
        expect_kind(result, kind, "");
        assert_eq!(registry.seen().len(), requests, "{code}");
    }
    // A server that wants an hour gets it from somebody else.
    let registry =
        Registry::start(Content::default(), |_| Some(with_header(status(429), "retry-after", "3600"))).await;
    let started = Instant::now();
    expect_kind(client().resolve(&registry.reference("a"), None).await, ErrorKind::RateLimited, "429");
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(registry.seen().len(), 1);
    // Nobody listens.
    let gone = Registry::plain(Content::default()).await;
    let reference = gone.reference("a");
    drop(gone);
    expect_kind(client().resolve(&reference, None).await, ErrorKind::Unavailable, "connection failed");
}
