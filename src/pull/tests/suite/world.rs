//! A store, a registry that remembers and may misbehave, and images to pull.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use pinnace_pull::{Error, Options, PullRequest, PulledImage, Puller};
use pinnace_registry::manifest::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use pinnace_registry::server::recorder::Recorder;
pub use pinnace_registry::server::recorder::{End, Seen, frames, part};
use pinnace_registry::server::{Body, Content, Script, Server};
use pinnace_registry::{Client, Descriptor, Reference};
use pinnace_store::{Digest, Store};

pub struct World {
    dir: tempfile::TempDir,
    pub store: Store,
    pub puller: Puller,
    client: Arc<Client>,
    options: Options,
    pub server: Server,
    recorder: Arc<Recorder>,
}

/// The layers' mounts are pinned for the next daemon; here there is none, and the pin would outlive the directory.
impl Drop for World {
    fn drop(&mut self) {
        let _ = self.store.release_pins();
    }
}

impl World {
    pub async fn new(content: Content) -> Self {
        Self::with(content, Options { grace: Duration::ZERO, ..Options::default() }).await
    }

    pub async fn with(content: Content, options: Options) -> Self {
        Self::made(content, options, None).await
    }

    /// A registry that has the other one as its mirror.
    pub async fn mirrored(content: Content, mirror: &Self) -> Self {
        Self::made(content, Options::default(), Some(mirror.server.registry())).await
    }

    async fn made(content: Content, options: Options, mirror: Option<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(pinnace_store::Options::new(dir.path().join("store"), dir.path().join("run")))
                .unwrap();
        let recorder = Arc::new(Recorder::default());
        let server =
            Server::start_with(content, Some(Arc::clone(&recorder) as Arc<dyn Script>)).await.unwrap();
        let hosts = dir.path().join("hosts");
        if let Some(mirror) = mirror {
            let place = hosts.join(server.registry());
            std::fs::create_dir_all(&place).unwrap();
            let text = format!("server = \"http://{}\"\n[host.\"http://{mirror}\"]\n", server.registry());
            std::fs::write(place.join("hosts.toml"), text).unwrap();
        }
        let client = Client::new(pinnace_registry::Options {
            hosts_dirs: vec![hosts],
            registries_files: Vec::new(),
            auth_files: Vec::new(),
            stall_timeout: Duration::from_millis(500),
            attempts: 2,
            backoff: Duration::from_millis(1),
            ..pinnace_registry::Options::default()
        })
        .unwrap();
        let client = Arc::new(client);
        let options = Options { partial_dir: Some(dir.path().join("pull")), ..options };
        let puller = Puller::new(store.clone(), Arc::clone(&client), options.clone());
        Self { dir, store, puller, client, options, server, recorder }
    }

    /// Another program on the same store.
    pub async fn restart(&mut self) {
        let path = self.dir.path().to_owned();
        // A store is locked until its last reference is gone: those of tasks that end now.
        let options = pinnace_store::Options::new(path.join("store"), path.join("run"));
        let spare = tempfile::tempdir().unwrap();
        let other = pinnace_store::Options::new(spare.path().join("store"), spare.path().join("run"));
        self.store = Store::open(other).unwrap();
        self.puller = Puller::new(self.store.clone(), Arc::clone(&self.client), Options::default());
        let mut attempts = 0;
        self.store = loop {
            match Store::open(options.clone()) {
                Ok(store) => break store,
                Err(_) if attempts < 500 => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
            attempts += 1;
        };
        self.puller = Puller::new(self.store.clone(), Arc::clone(&self.client), self.options.clone());
    }

    /// Where the beginnings of layers are.
    pub fn partial_files(&self) -> Vec<std::path::PathBuf> {
        let dir = self.dir.path().join("pull");
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    pub fn rule(&self, rule: impl Fn(&str) -> Option<Response<Body>> + Send + Sync + 'static) {
        self.recorder.rule(move |seen| rule(&seen.path));
    }

    /// Like [`World::rule`], with all of a request.
    pub fn rule_of_requests(&self, rule: impl Fn(&Seen) -> Option<Response<Body>> + Send + Sync + 'static) {
        self.recorder.rule(rule);
    }

    pub fn obey(&self) {
        self.recorder.obey();
    }

    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.server.registry()).parse().unwrap()
    }

    pub fn request(&self, rest: &str) -> PullRequest {
        PullRequest::new(self.reference(rest))
    }

    pub async fn pull(&self, rest: &str) -> Result<PulledImage, Arc<Error>> {
        self.puller.pull(self.request(rest)).await
    }

    /// How often something was asked for.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.recorder.count(method, part)
    }

    pub fn forget_counts(&self) {
        self.recorder.forget();
    }

    /// What has arrived, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.recorder.seen()
    }

    /// Waits until nothing unfinished is left, and no layer that is not of an image.
    pub async fn expect_clean(&self) {
        let work = self.dir.path().join("store/work");
        let mut left = Vec::new();
        for _ in 0..500 {
            left = names(&work);
            let layers = self.store.layers();
            let of_images: Vec<_> =
                self.store.images().iter().flat_map(|image| image.layers.clone()).collect();
            let stray = layers.iter().filter(|layer| !of_images.contains(&layer.diff_id)).count();
            if left.is_empty() && stray == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("left behind: {left:?} {:?}", self.store.layers());
    }
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A tar with one file of so many bytes that do not compress to nothing.
pub fn tar(name: &str, size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32 ^ u32::try_from(name.len() + size).unwrap();
    let data: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24).to_le_bytes()[0] & 0x3f
        })
        .collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_mtime(1);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, data.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap().into()
}

/// A layer: its tar's digest and its blob.
pub type Layer = (Digest, Bytes);

pub fn gzip_layer(name: &str, size: usize) -> Layer {
    let tar = tar(name, size);
    (Digest::sha256(&tar), gzip(&tar))
}

/// Adds an image and tags it; returns the digests of manifest and config.
pub fn add_image(content: &mut Content, tag: &str, layers: &[Layer]) -> (Digest, Digest) {
    let diff_ids: Vec<String> = layers.iter().map(|(diff_id, _)| diff_id.to_string()).collect();
    let config = serde_json::json!({
        "architecture": pinnace_registry::Platform::host().architecture,
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"User": "1000", "Labels": {"tag": tag}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let descriptors: Vec<Descriptor> = layers
        .iter()
        .map(|(_, blob)| {
            content.add_blob(blob.clone());
            Descriptor::of(OCI_LAYER_GZIP, blob)
        })
        .collect();
    let config_descriptor = Descriptor::of(OCI_CONFIG, config.as_bytes());
    let config_digest = content.add_blob(config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config_descriptor, "layers": descriptors,
    });
    let manifest = content.add_manifest(OCI_MANIFEST, manifest.to_string());
    let (repository, tag) = tag.split_once(':').unwrap_or((tag, "latest"));
    content.tag(repository, tag, manifest);
    (manifest, config_digest)
}

/// A body of these bytes that then hangs, or breaks off.
pub fn unfinished(bytes: Bytes, hang: bool) -> Response<Body> {
    Response::new(frames(vec![bytes], Duration::ZERO, if hang { End::Hang } else { End::Cut }))
}

/// The whole chain of an error.
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
