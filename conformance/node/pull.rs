//! PullImage from a real registry: every transport, every form of layer, every refusal.

use std::fs;
use std::path::Path;

use pinnace_conformance::cri::failure;
use pinnace_conformance::images::catalog::menagerie_check;
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::{DOWN, PASSWORD, PASSWORD_TEXT, PLAIN, TLS, USERNAME};
use pinnace_cri_api::v1::AuthConfig;
use tonic::Code;

#[tokio::test]
async fn plain_http_gives_the_image_id() {
    let Some(node) = Node::start() else { return };
    let reference = node.push("busybox");
    let id = node.cri.pull(&reference).await.unwrap();
    assert_eq!(id, node.images.image_id("busybox"));
    assert_eq!(node.cri.pull(&reference).await.unwrap(), id, "a second pull gives another id");
    let image = node.cri.image(&reference).await.unwrap().expect("the image is there");
    let digest = node.images.find("busybox").digest;
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, [reference]);
    assert_eq!(image.repo_digests, [format!("{PLAIN}/busybox@{digest}")]);
    assert!(image.size > 0);
}

#[tokio::test]
async fn every_form_of_a_layer_gives_the_same_image() {
    let Some(node) = Node::start() else { return };
    let mut ids = Vec::new();
    for name in ["busybox", "busybox-zstd", "busybox-plain", "busybox-index"] {
        ids.push(node.image(name).await);
    }
    ids.dedup();
    assert_eq!(ids, [node.images.image_id("busybox")]);
    let images = node.cri.list_images().await.unwrap();
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(images[0].repo_tags.len(), 4);
    assert_eq!(images[0].repo_digests.len(), 4);
    let index = node.images.find("busybox-index").digest;
    let of_index = format!("{PLAIN}/busybox-index@{index}");
    assert!(images[0].repo_digests.contains(&of_index), "{:?}", images[0].repo_digests);
}

#[tokio::test]
async fn zstd_and_plain_layers_run() {
    let Some(node) = Node::start() else { return };
    for name in ["busybox-zstd", "busybox-plain"] {
        let image = node.image(name).await;
        let pod = node.run_pod(name, |_| {}).await;
        let config = node.container(&pod.config, "main", &image, &["cat", "/volume/from-image"]);
        let ended = node.run_to_end(&pod, config, |_| {}).await;
        assert_eq!((ended.status.exit_code, &*ended.stdout), (0, "kept by the image\n"), "{name}");
        node.remove(&pod.id).await;
        node.cri.remove_image(&image).await.unwrap();
    }
}

#[tokio::test]
async fn digest_alone_gives_no_tag() {
    let Some(node) = Node::start() else { return };
    node.push("busybox");
    let reference = format!("{PLAIN}/busybox@{}", node.images.find("busybox").digest);
    node.cri.pull(&reference).await.unwrap();
    let image = node.cri.image(&reference).await.unwrap().expect("the image is there");
    assert_eq!(image.repo_tags, [""; 0]);
    assert_eq!(image.repo_digests, [reference]);
}

#[tokio::test]
async fn tls_trusts_the_configured_ca_and_no_other() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_tls();
    node.push("busybox");
    let reference = format!("{TLS}/busybox:1");
    let (_, text) = failure(node.cri.pull(&reference).await);
    assert!(text.contains(TLS), "the registry is not named: {text}");
    assert_eq!(node.cri.image(&reference).await.unwrap(), None);
    // Read anew for every pull: no restart in between.
    let certs = node.world.dir().join("certs.d").join(TLS);
    fs::create_dir_all(&certs).unwrap();
    fs::copy(node.registry.ca(), certs.join("ca.crt")).unwrap();
    assert_eq!(node.cri.pull(&reference).await.unwrap(), node.images.image_id("busybox"));
}

fn reader(password: &str) -> AuthConfig {
    AuthConfig { username: USERNAME.into(), password: password.into(), ..AuthConfig::default() }
}

#[tokio::test]
async fn password_is_needed_used_and_told_nobody() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_password();
    node.push("busybox");
    let reference = format!("{PASSWORD}/busybox:1");
    node.assert_fails(node.cri.pull(&reference).await, Code::Unauthenticated, PASSWORD);
    let wrong = node.cri.pull_as(&reference, Some(reader("wrong"))).await;
    node.assert_fails(wrong, Code::Unauthenticated, PASSWORD);
    let id = node.images.image_id("busybox");
    assert_eq!(node.cri.pull_as(&reference, Some(reader(PASSWORD_TEXT))).await.unwrap(), id);
    // "reader:correct-horse"
    let encoded = "cmVhZGVyOmNvcnJlY3QtaG9yc2U=";
    node.cri.remove_image(&id).await.unwrap();
    let auth = AuthConfig { auth: encoded.into(), ..AuthConfig::default() };
    assert_eq!(node.cri.pull_as(&reference, Some(auth)).await.unwrap(), id);
    // One pull's password is not another one's.
    node.cri.remove_image(&id).await.unwrap();
    node.assert_fails(node.cri.pull(&reference).await, Code::Unauthenticated, PASSWORD);
    for secret in [PASSWORD_TEXT, encoded] {
        let log = fs::read_to_string(&node.daemon.log).unwrap();
        assert!(!log.contains(secret), "a secret is in the log");
        for place in [&node.daemon.root, &node.daemon.run] {
            assert_eq!(files_with(place, secret), Vec::<String>::new(), "a secret is on disk");
        }
    }
}

/// Files below a directory that contain a text.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files_with(&path, text));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test]
async fn credentials_for_another_server_stay_here() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_password();
    node.push("busybox");
    let auth = AuthConfig { server_address: "https://elsewhere.test".into(), ..reader(PASSWORD_TEXT) };
    let answer = node.cri.pull_as(&format!("{PASSWORD}/busybox:1"), Some(auth)).await;
    node.assert_fails(answer, Code::Unauthenticated, PASSWORD);
}

#[tokio::test]
async fn concurrent_pulls_agree() {
    let Some(node) = Node::start() else { return };
    let (nginx, busybox) = (node.push("nginx"), node.push("busybox"));
    let pull = async |reference: String| node.cri.pull(&reference).await;
    let pulls = tokio::join!(
        pull(nginx.clone()),
        pull(nginx.clone()),
        pull(busybox.clone()),
        pull(nginx.clone()),
        pull(busybox)
    );
    for id in [pulls.0, pulls.1, pulls.3] {
        assert_eq!(id.unwrap(), node.images.image_id("nginx"));
    }
    for id in [pulls.2, pulls.4] {
        assert_eq!(id.unwrap(), node.images.image_id("busybox"));
    }
    assert_eq!(node.cri.list_images().await.unwrap().len(), 2);
}

#[tokio::test]
async fn menagerie_is_as_its_layers_say() {
    let Some(node) = Node::start() else { return };
    let image = node.image("menagerie").await;
    let pod = node.run_pod("menagerie", |_| {}).await;
    let script = menagerie_check() + "\necho checked; sleep 4241";
    let config = node.container(&pod.config, "main", &image, &["sh", "-euc", &script]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let log = || fs::read_to_string(&running.log).unwrap_or_default();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !log().contains("checked") {
        let status = node.cri.status(&running.container).await.unwrap();
        assert_eq!(status.finished_at, 0, "{}", log());
        assert!(std::time::Instant::now() < end, "{}", log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    // Extended attributes, through the root of the container's process: busybox has no tool for them.
    let pid = node.world.sh("grep -lzx 424[1] /proc/[0-9]*/cmdline | tail -1");
    let kinds = format!("{}/root/m/kinds", pid.trim().trim_end_matches("/cmdline"));
    let attribute = |file: &str, name: &str| {
        let mut value = vec![0; 100];
        let path = node.world.inside(format!("{kinds}/{file}"));
        let size =
            rustix::fs::lgetxattr(&path, name, &mut value).unwrap_or_else(|e| panic!("{file} {name}: {e}"));
        value.truncate(size);
        value
    };
    assert_eq!(attribute("file", "user.colour"), b"blue\0binary\xff");
    assert_eq!(attribute("hard", "user.colour"), b"blue\0binary\xff");
    assert_eq!(attribute("capable", "security.capability")[..4], [1, 0, 0, 2]);
    node.remove(&pod.id).await;
}

#[tokio::test]
async fn wrong_content_is_refused_and_leaves_nothing() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let reference = node.push("nginx");
    let layer = node.images.children(&node.images.manifest("nginx")).remove(0);
    node.registry.corrupt(&layer.digest);
    node.assert_fails(node.cri.pull(&reference).await, Code::DataLoss, &layer.digest);
    assert_eq!(node.cri.image(&reference).await.unwrap(), None);
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn what_cannot_be_pulled_says_why_and_leaves_nothing() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let absent = format!("sha256:{}", "0".repeat(64));
    for (reference, code, subject) in [
        (format!("{PLAIN}/no/such:1"), Code::NotFound, "no/such"),
        (format!("{PLAIN}/busybox:no-such-tag"), Code::NotFound, "no-such-tag"),
        (format!("{PLAIN}/busybox@{absent}"), Code::NotFound, &*absent),
        (format!("{DOWN}/busybox:1"), Code::Unavailable, DOWN),
        (format!("{PLAIN}/UPPER/case:1"), Code::InvalidArgument, "UPPER/case:1"),
        ("a//b".into(), Code::InvalidArgument, "a//b"),
        (format!("{PLAIN}/busybox@sha256:123"), Code::InvalidArgument, "sha256:123"),
        (format!("{PLAIN}/../etc/passwd:1"), Code::InvalidArgument, "passwd"),
        ("with space".into(), Code::InvalidArgument, "with space"),
        (String::new(), Code::InvalidArgument, "image"),
    ] {
        node.assert_fails(node.cri.pull(&reference).await, code, subject);
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn pull_that_nobody_waits_for_ends_whole_or_not_at_all() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let reference = node.push("nginx");
    let call = tokio::time::timeout(std::time::Duration::from_millis(30), node.cri.pull(&reference)).await;
    if call.is_err() {
        // It may go on to its end; then there is an image like any other.
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let image = node.cri.image(&reference).await.unwrap();
        assert!(image.is_none_or(|image| image.id == node.images.image_id("nginx") && image.size > 0));
    }
    assert_eq!(node.cri.pull(&reference).await.unwrap(), node.images.image_id("nginx"));
    node.cri.remove_image(&reference).await.unwrap();
    node.assert_nothing_left(&before);
}
