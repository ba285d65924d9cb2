//! The node's configuration of registries, and what its verbs say of it: `registries.conf` beside `certs.d`, auth files,
//! certificates on both sides, `pinnace image explain`, `pinnace pull`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pinnace_conformance::cri::image_spec;
use pinnace_conformance::images::{Compression, Image, Layer, Layout};
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::{DOWN, MUTUAL, PASSWORD, PLAIN, TLS};
use pinnace_cri_api::v1::PullImageRequest;
use tonic::Code;

fn configure(node: &Node, name: &str, text: &str) {
    let path = node.world.dir().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn run(node: &Node, arguments: &[&str]) -> Output {
    let mut command = node.daemon.command(arguments[0]);
    command.args(&arguments[1..]).arg("--socket").arg(&node.daemon.socket);
    command.output().unwrap()
}

fn said(node: &Node, arguments: &[&str]) -> String {
    let output = run(node, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn mirrors_of_both_formats_serve_an_unreachable_registry() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_tls();
    node.push("busybox");
    let id = node.images.image_id("busybox");
    let reference = format!("{DOWN}/busybox:1");
    node.assert_fails(node.cri.pull(&reference).await, Code::Unavailable, DOWN);
    // The mirror's certificate is vouched for by certs.d.
    configure(
        &node,
        "registries.conf",
        &format!("[[registry]]\nlocation = \"{DOWN}\"\n[[registry.mirror]]\nlocation = \"{TLS}\"\n"),
    );
    node.assert_fails(node.cri.pull(&reference).await, Code::Unavailable, DOWN);
    let certs = format!("certs.d/{TLS}/ca.crt");
    configure(&node, &certs, &fs::read_to_string(node.registry.ca()).unwrap());
    assert_eq!(node.cri.pull(&reference).await.unwrap(), id);
    let image = node.cri.image(&reference).await.unwrap().expect("the image is there");
    assert_eq!(
        image.repo_tags,
        std::slice::from_ref(&reference),
        "it keeps the name that it was asked for by"
    );
    let explained = said(&node, &["image", "explain", &reference]);
    let positions: Vec<_> = [format!("https://{TLS}/v2"), format!("http://{DOWN}/v2")]
        .iter()
        .map(|url| explained.find(url).unwrap_or_else(|| panic!("{url} is not in {explained}")))
        .collect();
    assert!(positions.is_sorted(), "{explained}");
    assert!(explained.contains("registries.conf") && explained.contains("1 configured"), "{explained}");
}

#[tokio::test]
async fn blocked_and_ambiguous_names_are_refused_without_a_restart() {
    let Some(node) = Node::start() else { return };
    let reference = node.push("busybox");
    let id = node.cri.pull(&reference).await.unwrap();
    configure(&node, "registries.conf", &format!("[[registry]]\nlocation = \"{PLAIN}\"\nblocked = true\n"));
    node.assert_fails(node.cri.pull(&reference).await, Code::PermissionDenied, "blocked");
    let drop_in = format!("[[registry]]\nlocation = \"{PLAIN}\"\n");
    configure(&node, "registries.conf.d/50-open.conf", &drop_in);
    assert_eq!(node.cri.pull(&reference).await.unwrap(), id);
    configure(
        &node,
        "registries.conf.d/60-short.conf",
        "unqualified-search-registries = [\"a.io\", \"b.io\"]\n",
    );
    node.assert_fails(node.cri.pull("busybox:1").await, Code::InvalidArgument, "a.io, b.io");
    configure(
        &node,
        "registries.conf.d/70-alias.conf",
        &format!("[aliases]\nbusybox = \"{PLAIN}/busybox\"\n"),
    );
    assert_eq!(node.cri.pull("busybox:1").await.unwrap(), id);
    assert_eq!(node.cri.image("busybox:1").await.unwrap().map(|image| image.id), Some(id));
    configure(&node, "registries.conf.d/80-damaged.conf", "[[registry]");
    node.assert_fails(node.cri.pull(&reference).await, Code::FailedPrecondition, "80-damaged.conf");
}

#[tokio::test]
async fn passwords_of_the_node_are_used_and_not_shown() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_password();
    node.push("busybox");
    let reference = format!("{PASSWORD}/busybox:1");
    let encoded = "cmVhZGVyOmNvcnJlY3QtaG9yc2U=";
    let entry = |key: &str| format!("{{\"auths\": {{\"{key}\": {{\"auth\": \"{encoded}\"}}}}}}");
    configure(&node, "auth.json", &entry(&format!("{PASSWORD}/other")));
    node.assert_fails(node.cri.pull(&reference).await, Code::Unauthenticated, PASSWORD);
    configure(&node, "auth.json", &entry(&format!("{PASSWORD}/busybox")));
    assert_eq!(node.cri.pull(&reference).await.unwrap(), node.images.image_id("busybox"));
    let explained = said(&node, &["image", "explain", &reference]);
    assert!(explained.contains(&format!("{PASSWORD}/busybox of ")), "{explained}");
    let log = fs::read_to_string(&node.daemon.log).unwrap();
    assert!(!explained.contains(encoded) && !log.contains(encoded) && !log.contains("correct-horse"));
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_its_registry() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_tls();
    node.registry.start_mutual();
    node.push("busybox");
    let reference = format!("{MUTUAL}/busybox:1");
    let (certificate, key) = node.registry.client();
    let hosts = |rest: &str| format!("server = \"https://{MUTUAL}\"\nca = {:?}\n{rest}", node.registry.ca());
    configure(&node, &format!("certs.d/{MUTUAL}/hosts.toml"), &hosts(""));
    node.assert_fails(node.cri.pull(&reference).await, Code::Unavailable, MUTUAL);
    let client = format!("client = [[{certificate:?}, {key:?}]]\n");
    configure(&node, &format!("certs.d/{MUTUAL}/hosts.toml"), &hosts(&client));
    assert_eq!(node.cri.pull(&reference).await.unwrap(), node.images.image_id("busybox"));
    assert!(said(&node, &["image", "explain", &reference]).contains("ours is shown"));
}

#[tokio::test]
async fn the_pull_verb_prints_the_id_or_the_reason() {
    let Some(node) = Node::start() else { return };
    let reference = node.push("nginx");
    assert_eq!(said(&node, &["pull", &reference]).trim(), node.images.image_id("nginx"));
    assert_eq!(said(&node, &["pull", "--quiet", &reference]).trim(), node.images.image_id("nginx"));
    let output = run(&node, &["pull", &format!("{PLAIN}/no/such:1")]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("no/such") && error.contains("NotFound"), "{error}");
}

/// Between the daemon and the plain registry: about 3 MB a second, counted.
struct Narrow {
    passed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

const NARROW: &str = "127.0.0.1:5002";
const NARROW_BYTES: usize = 32 << 10;
const NARROW_PAUSE: Duration = Duration::from_millis(10);

impl Narrow {
    fn start(node: &Node) -> Narrow {
        let (passed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let listener = node.world.in_network(|| TcpListener::bind(NARROW).unwrap());
        listener.set_nonblocking(true).unwrap();
        let (world, count, stopped) = (node.world.clone(), passed.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                client.set_nonblocking(false).unwrap();
                let server = world.connect(PLAIN.parse().unwrap()).unwrap();
                let (mut asking, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut asking, &mut asked);
                    let _ = asked.shutdown(Shutdown::Both);
                });
                let (count, stopped) = (count.clone(), stopped.clone());
                std::thread::spawn(move || pass(server, client, &count, &stopped));
            }
        });
        Narrow { passed, stop }
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64, stopped: &AtomicBool) {
    let mut buffer = vec![0; NARROW_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if stopped.load(Ordering::Relaxed) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
        std::thread::sleep(NARROW_PAUSE);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Pushes an image of one layer that does not compress, so that every byte counts; its compressed size and its id.
fn push_noise(node: &Node) -> (u64, String) {
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let noise: Vec<u8> = noise.take(1 << 20).flatten().collect();
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path());
    let layer = Layer::new().file("noise", 0o644, noise);
    let image = layout.image(&Image::new(vec![(layer, Compression::Gzip)], serde_json::json!({})));
    layout.tag("noise", &image);
    node.registry.push(&layout, "noise", "noise", "1");
    (layout.children(&image).iter().map(|blob| blob.size).sum(), layout.image_id("noise"))
}

#[tokio::test]
async fn a_pull_goes_on_where_a_killed_daemon_was() {
    let Some(mut node) = Node::start() else { return };
    let (size, id) = push_noise(&node);
    let narrow = Narrow::start(&node);
    let reference = format!("{NARROW}/noise:1");
    for part in 1..=3 {
        let cri = node.cri.clone();
        let name = reference.clone();
        let pull = tokio::spawn(async move { cri.pull(&name).await });
        while narrow.passed() < size * part / 4 {
            assert!(!pull.is_finished(), "{:?}", pull.await);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        node.daemon.kill();
        pull.abort();
        node.restart();
        assert_eq!(node.cri.image(&reference).await.unwrap(), None);
    }
    assert_eq!(node.cri.pull(&reference).await.unwrap(), id);
    let passed = narrow.passed();
    // Each time what was in buffers and queues is lost; beginning anew would take more than twice the size.
    assert!(passed <= size + size / 2, "{passed} bytes for {size}: it began anew");
    drop(narrow);
}

#[tokio::test]
async fn pulls_of_the_kubelet_can_be_watched() {
    let Some(node) = Node::start() else { return };
    let (size, id) = push_noise(&node);
    let idle = said(&node, &["image", "pulls"]);
    assert_eq!(idle, "0 under way; since the start 0 begun, 0 done, 0 failed, 0 B fetched\n");
    let narrow = Narrow::start(&node);
    let reference = format!("{NARROW}/noise:1");
    let (cri, name) = (node.cri.clone(), reference.clone());
    let pull = tokio::spawn(async move { cri.pull(&name).await });
    while narrow.passed() < size / 4 {
        assert!(!pull.is_finished(), "{:?}", pull.await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let busy = said(&node, &["image", "pulls"]);
    assert!(busy.starts_with(&format!("{reference}  0/1 layers   [##")), "{busy}");
    assert!(busy.contains("1 under way; since the start 1 begun, 0 done"), "{busy}");
    assert_eq!(pull.await.unwrap().unwrap(), id);
    let done = said(&node, &["image", "pulls"]);
    assert!(done.starts_with("0 under way; since the start 1 begun, 1 done, 0 failed, 8.3 MB"), "{done}");
    drop(narrow);
}

#[tokio::test]
async fn a_deadline_ends_the_pull_and_says_so() {
    let Some(node) = Node::start() else { return };
    let (_, id) = push_noise(&node);
    let narrow = Narrow::start(&node);
    let reference = format!("{NARROW}/noise:1");
    let image = Some(image_spec(&reference));
    let mut request = tonic::Request::new(PullImageRequest { image, ..Default::default() });
    request.set_timeout(Duration::from_secs(2));
    let answer = node.cri.images().pull_image(request).await;
    node.assert_fails(answer, Code::DeadlineExceeded, "noise:1");
    assert_eq!(node.cri.image(&reference).await.unwrap(), None);
    assert_eq!(node.cri.pull(&reference).await.unwrap(), id);
    drop(narrow);
}
