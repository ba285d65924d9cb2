//! `registries.conf` and auth files as pulls see them: who is asked for what, and who sees which secret.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use pinnace_registry::explain::Credentials;
use pinnace_registry::{Client, ErrorKind, Options};

use crate::world::*;

fn configured(dir: &Path, registries: &str) -> Client {
    fs::write(dir.join("registries.conf"), registries).unwrap();
    Client::new(Options {
        hosts_dirs: vec![dir.join("certs.d")],
        registries_files: vec![dir.join("registries.conf")],
        auth_files: vec![dir.join("auth.json")],
        ..options()
    })
    .unwrap()
}

fn table(upstream: &Registry, mirrors: &[String], rest: &str) -> String {
    let mut text = format!("[[registry]]\nlocation = \"{}\"\n{rest}\n", upstream.server.registry());
    for mirror in mirrors {
        text.push_str(&format!("[[registry.mirror]]\nlocation = \"{mirror}\"\n"));
    }
    text
}

/// Passwords for keys, in the form of Docker's `config.json`.
fn passwords(dir: &Path, entries: &[(&str, &str)]) {
    let entries: serde_json::Map<String, serde_json::Value> = entries
        .iter()
        .map(|(key, password)| {
            let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
            ((*key).to_owned(), serde_json::json!({ "auth": auth }))
        })
        .collect();
    fs::write(dir.join("auth.json"), serde_json::json!({ "auths": entries }).to_string()).unwrap();
}

fn basic(password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}")))
}

#[tokio::test]
async fn a_mirror_serves_under_its_own_path() {
    let dir = tempfile::tempdir().unwrap();
    let (content, image) = one_layer(1000);
    let upstream = Registry::plain(Default::default()).await;
    let mut moved = content.clone();
    moved.tag("cache/hub/test/image", "latest", image.manifest);
    let mirror = Registry::plain(moved).await;
    let place = format!("{}/cache/hub", mirror.server.registry());
    let client = configured(dir.path(), &table(&upstream, &[place], ""));
    let reference = upstream.reference("test/image");
    let resolved = client.resolve(&reference, Some(&auth())).await.unwrap();
    assert_eq!(resolved.reference, reference, "the image keeps its name");
    assert!(upstream.seen().is_empty());
    let seen = mirror.seen();
    assert!(seen.iter().all(|seen| seen.uri.starts_with("/v2/cache/hub/test/image/") && !has_secret(seen)));
    assert!(seen.iter().all(|seen| !seen.uri.contains("ns=")), "{}", seen[0].uri);
}

#[tokio::test]
async fn a_location_replaces_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (content, _) = one_layer(1000);
    let real = Registry::plain(content).await;
    let text = format!(
        "[[registry]]\nprefix = \"nowhere.test/team\"\nlocation = \"{}/test\"\n",
        real.server.registry()
    );
    let client = configured(dir.path(), &text);
    let reference = "nowhere.test/team/image".parse().unwrap();
    let resolved = client.resolve(&reference, Some(&auth())).await.unwrap();
    assert_eq!(resolved.reference, reference);
    assert!(!real.seen().iter().any(has_secret), "the secret is for nowhere.test");
}

#[tokio::test]
async fn failing_mirrors_are_passed_over_and_both_formats_count() {
    let dir = tempfile::tempdir().unwrap();
    let (content, _) = one_layer(1000);
    let upstream = Registry::plain(Default::default()).await;
    let empty = Registry::plain(Default::default()).await;
    let full = Registry::plain(content).await;
    // The mirror of the prefix has nothing; the mirror of the host, by certs.d, has it.
    let place = dir.path().join("certs.d").join(upstream.server.registry());
    fs::create_dir_all(&place).unwrap();
    let hosts = format!("server = \"{}\"\n[host.\"{}\"]\n", upstream.url(""), full.url(""));
    fs::write(place.join("hosts.toml"), hosts).unwrap();
    let client = configured(dir.path(), &table(&upstream, &[empty.server.registry()], ""));
    client.resolve(&upstream.reference("test/image"), None).await.unwrap();
    assert_eq!(
        (empty.seen().is_empty(), full.seen().is_empty(), upstream.seen().is_empty()),
        (false, false, true)
    );
    let explained = client.explain(&upstream.reference("test/image").to_string(), None).unwrap();
    let urls: Vec<String> = explained.servers.iter().map(|server| server.url.clone()).collect();
    assert_eq!(urls, [empty.url("/v2"), full.url("/v2"), upstream.url("/v2")]);
    let deciders: Vec<_> = explained
        .servers
        .iter()
        .map(|server| server.decided_by.as_ref().unwrap().file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(deciders, ["registries.conf", "hosts.toml", "hosts.toml"]);
}

#[tokio::test]
async fn files_are_read_for_each_pull() {
    let dir = tempfile::tempdir().unwrap();
    let (content, _) = one_layer(1000);
    let upstream = Registry::plain(content).await;
    let client = configured(dir.path(), &table(&upstream, &[], "blocked = true"));
    let reference = upstream.reference("test/image");
    expect_kind(client.resolve(&reference, None).await, ErrorKind::Forbidden, "blocked");
    assert!(upstream.seen().is_empty());
    fs::write(dir.path().join("registries.conf"), "").unwrap();
    client.resolve(&reference, None).await.unwrap();
    fs::write(dir.path().join("registries.conf"), "[[registry]").unwrap();
    expect_kind(client.resolve(&reference, None).await, ErrorKind::Configuration, "registries.conf");
}

#[tokio::test]
async fn each_server_sees_its_own_credentials_only() {
    let dir = tempfile::tempdir().unwrap();
    let (content, image) = one_layer(1000);
    let guarded = |password: &'static str, content| {
        Registry::start(content, move |seen: &Seen| {
            let accepted = seen.header("authorization") == Some(basic(password).as_str());
            (!accepted).then(|| with_header(status(401), "www-authenticate", "Basic realm=\"x\""))
        })
    };
    let upstream = guarded("of-upstream", content.clone()).await;
    let mut moved = content;
    moved.tag("cache/test/image", "latest", image.manifest);
    let mirror = guarded("of-mirror", moved).await;
    let stranger = guarded("unknown", Default::default()).await;
    let place = format!("{}/cache", mirror.server.registry());
    let client = configured(dir.path(), &table(&upstream, &[stranger.server.registry(), place.clone()], ""));
    passwords(
        dir.path(),
        &[
            (&upstream.server.registry(), "of-upstream"),
            (&format!("{place}/test"), "of-mirror"),
            (&format!("{place}/other"), "wrong"),
        ],
    );
    let reference = upstream.reference("test/image");
    let repository = client.repository(&reference, None).unwrap();
    repository.resolve().await.unwrap();
    collect(repository.fetch_blob(&image.layers[0], 0)).await.unwrap();
    assert!(upstream.seen().is_empty());
    let sent = |registry: &Registry| -> Vec<String> {
        let mut all: Vec<String> = registry
            .seen()
            .iter()
            .filter_map(|seen| seen.header("authorization").map(str::to_owned))
            .collect();
        all.dedup();
        all
    };
    assert_eq!(sent(&mirror), [basic("of-mirror")]);
    assert_eq!(sent(&stranger), [""; 0]);
    // The mirror goes; the registry gets what is its own, and the caller's word is above the file's.
    drop(mirror);
    client.resolve(&reference, None).await.unwrap();
    assert_eq!(sent(&upstream), [basic("of-upstream")]);
    let result = client.resolve(&reference, Some(&auth())).await;
    expect_kind(result, ErrorKind::Unauthorized, "not accepted");

    let explained = client.explain(&reference.to_string(), None).unwrap();
    let keys: Vec<_> = explained
        .servers
        .iter()
        .map(|server| match &server.credentials {
            Credentials::File { key, .. } => key.clone(),
            other => other.to_string(),
        })
        .collect();
    assert_eq!(keys, ["none".to_owned(), format!("{place}/test"), upstream.server.registry()]);
    assert!(!format!("{explained:?}").contains("of-"), "no secret is explained");
}

#[tokio::test]
async fn short_names_are_expanded_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let client = configured(
        dir.path(),
        "unqualified-search-registries = [\"a.io\", \"b.io\"]\n[aliases]\nbox = \"quay.io/b/box\"\n",
    );
    assert_eq!(client.reference("box:1").unwrap().to_string(), "quay.io/b/box:1");
    assert_eq!(client.reference("docker.io/box").unwrap().to_string(), "docker.io/library/box:latest");
    let error = client.reference("app").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(chain(&error).contains("a.io, b.io"), "{}", chain(&error));
}

#[tokio::test]
async fn insecure_servers_are_tried_over_tls_first() {
    let dir = tempfile::tempdir().unwrap();
    let client = configured(dir.path(), "[[registry]]\nlocation = \"old.test:5000\"\ninsecure = true\n");
    let explained = client.explain("old.test:5000/x", None).unwrap();
    let shown: Vec<_> =
        explained.servers.iter().map(|server| format!("{} {}", server.url, server.trust)).collect();
    assert_eq!(
        shown,
        ["https://old.test:5000/v2 TLS, any certificate", "http://old.test:5000/v2 plain HTTP"]
    );
}
