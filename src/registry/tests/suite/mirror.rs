//! Mirrors from `hosts.toml`: asked first, told whose image is meant, trusted with nothing.

use std::path::Path;

use pinnace_registry::{Auth, AuthFields, Client, ErrorKind, Options};

use crate::world::*;

/// Configures mirrors of a registry, then the registry itself.
fn configured(dir: &Path, registry: &Registry, mirrors: &str) -> Client {
    let name = registry.server.registry();
    let place = dir.join(name.replace(':', "_") + "_");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("hosts.toml"), format!("server = \"http://{name}\"\n{mirrors}")).unwrap();
    Client::new(Options { hosts_dirs: vec![dir.to_owned()], ..options() }).unwrap()
}

#[tokio::test]
async fn a_mirror_serves_without_the_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (content, image) = one_layer(1000);
    let upstream = Registry::plain(content.clone()).await;
    let mirror = Registry::start(content, |seen| {
        seen.uri.contains("/blobs/sha512").then(|| with_header(status(401), "www-authenticate", "Basic"))
    })
    .await;
    let client = configured(
        dir.path(),
        &upstream,
        &format!("[host.\"{0}\"]\n[host.\"{0}\".header]\nx-mirror = \"yes\"\n", mirror.url("")),
    );
    let reference = upstream.reference("test/image");
    client.resolve(&reference, Some(&auth())).await.unwrap();
    let repository = client.repository(&reference, Some(&auth())).unwrap();
    collect(repository.fetch_blob(&image.layers[0], 0)).await.unwrap();
    assert!(upstream.seen().is_empty());
    let seen = mirror.seen();
    assert_eq!(seen.len(), 3);
    let ns = format!("ns={}", upstream.server.registry().replace(':', "%3A"));
    assert!(seen.iter().all(|seen| seen.uri.ends_with(&ns)), "{}", seen[0].uri);
    assert!(seen.iter().all(|seen| seen.header("x-mirror") == Some("yes") && !has_secret(seen)));
}

#[tokio::test]
async fn a_mirror_that_asks_for_credentials_gets_only_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (content, _) = one_layer(1000);
    let upstream = Registry::plain(content.clone()).await;
    let mirror = Registry::start(content, |seen| {
        seen.header("authorization").is_none().then(|| with_header(status(401), "www-authenticate", "Basic"))
    })
    .await;
    let client = configured(dir.path(), &upstream, &format!("[host.\"{}\"]\n", mirror.url("")));
    let reference = upstream.reference("test/image");
    client.resolve(&reference, Some(&auth())).await.unwrap();
    assert!(!mirror.seen().iter().any(has_secret));
    assert!(!upstream.seen().is_empty(), "the registry itself stepped in");
    let fields = AuthFields {
        username: USER.into(),
        password: SECRET.into(),
        server_address: mirror.server.registry(),
        ..AuthFields::default()
    };
    let its_own = Auth::from_fields(&fields).unwrap().unwrap();
    let before = upstream.seen().len();
    client.resolve(&reference, Some(&its_own)).await.unwrap();
    assert!(mirror.seen().iter().any(has_secret));
    assert_eq!(upstream.seen().len(), before);
}

#[tokio::test]
async fn failing_mirrors_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (content, image) = one_layer(1000);
    let upstream = Registry::plain(content).await;
    let gone = Registry::plain(Default::default()).await;
    let dead = gone.url("");
    drop(gone);
    let empty = Registry::plain(Default::default()).await;
    let broken = Registry::start(Default::default(), |_| Some(status(500))).await;
    let client = configured(
        dir.path(),
        &upstream,
        &format!("[host.\"{dead}\"]\n[host.\"{}\"]\n[host.\"{}\"]\n", empty.url(""), broken.url("")),
    );
    let reference = upstream.reference("test/image");
    let repository = client.repository(&reference, None).unwrap();
    repository.resolve().await.unwrap();
    collect(repository.fetch_blob(&image.layers[0], 0)).await.unwrap();
    assert_eq!(upstream.seen().len(), 3);
    let missing = client.resolve(&upstream.reference("test/none"), None).await;
    expect_kind(missing, ErrorKind::NotFound, &upstream.server.registry());
}

#[tokio::test]
async fn capabilities_are_respected() {
    let dir = tempfile::tempdir().unwrap();
    let (content, _) = one_layer(1000);
    let upstream = Registry::plain(content.clone()).await;
    let mirror = Registry::plain(content).await;
    let client = configured(
        dir.path(),
        &upstream,
        &format!("[host.\"{}\"]\ncapabilities = [\"pull\"]\n", mirror.url("")),
    );
    client.resolve(&upstream.reference("test/image"), None).await.unwrap();
    assert!(upstream.seen().iter().all(|seen| seen.uri.contains("/manifests/latest")));
    assert!(mirror.seen().iter().all(|seen| seen.uri.contains("/blobs/")));
}

#[tokio::test]
async fn the_configuration_is_read_for_every_pull() {
    let dir = tempfile::tempdir().unwrap();
    let (content, _) = one_layer(1000);
    let upstream = Registry::plain(content.clone()).await;
    let mirror = Registry::plain(content).await;
    let reference = upstream.reference("test/image");
    let client = configured(dir.path(), &upstream, "");
    client.resolve(&reference, None).await.unwrap();
    configured(dir.path(), &upstream, &format!("[host.\"{}\"]\n", mirror.url("")));
    let before = upstream.seen().len();
    client.resolve(&reference, None).await.unwrap();
    assert_eq!((upstream.seen().len(), mirror.seen().len()), (before, 2));
    configured(dir.path(), &upstream, "capabilities = [\"fly\"]");
    let result = client.resolve(&reference, None).await;
    expect_kind(result, ErrorKind::Configuration, "is not pull, resolve or push");
}

#[tokio::test]
async fn a_mirror_that_delivers_rubbish_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (content, image) = one_layer(1000);
    let upstream = Registry::plain(content.clone()).await;
    let mirror = Registry::start(content, |seen| {
        (seen.uri.contains("/manifests/sha256") || seen.uri.contains("/blobs/")).then(|| json("{}".into()))
    })
    .await;
    let client = configured(dir.path(), &upstream, &format!("[host.\"{}\"]\n", mirror.url("")));
    let by_digest = upstream.reference(&format!("test/image@{}", image.manifest));
    client.resolve(&by_digest, None).await.unwrap();
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (1, 2));
    // By tag the mirror's manifest is right, and its config is not.
    client.resolve(&upstream.reference("test/image"), None).await.unwrap();
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (3, 3));
}
