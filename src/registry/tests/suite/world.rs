//! A scriptable registry that remembers what it was sent, and images to put into it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use pinnace_registry::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use pinnace_registry::server::recorder::{self, Recorder};
pub use pinnace_registry::server::recorder::{End, Seen, frames, with_header};
use pinnace_registry::server::{Body, Content, Script, Server, full};
use pinnace_registry::{Auth, Client, Descriptor, Error, ErrorKind, Options, Reference};
use pinnace_store::Digest;

/// A string that must only ever be seen by the registry that it is for.
pub const SECRET: &str = "marker-s3cr3t";
pub const USER: &str = "someone";

/// Whether any part of a request carries the secret, plain or in base64.
pub fn has_secret(seen: &Seen) -> bool {
    use base64::Engine;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{SECRET}"));
    let headers = seen.headers.values().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let text: String = headers.chain([seen.uri.clone()]).collect();
    text.contains(SECRET) || text.contains(&basic)
}

/// A registry with an image in it.
pub struct Registry {
    pub server: Server,
    recorder: Arc<Recorder>,
}

impl Registry {
    pub async fn start(
        content: Content,
        rule: impl Fn(&Seen) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let recorder = Arc::new(Recorder::default());
        recorder.rule(rule);
        let server =
            Server::start_with(content, Some(Arc::clone(&recorder) as Arc<dyn Script>)).await.unwrap();
        Self { server, recorder }
    }

    pub async fn plain(content: Content) -> Self {
        Self::start(content, |_| None).await
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.recorder.seen()
    }

    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.server.registry()).parse().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.registry())
    }
}

/// An image of uncompressed layers, tagged `test/image:latest`.
pub struct Image {
    pub manifest: Digest,
    pub manifest_text: String,
    pub config_text: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

pub fn add_image(content: &mut Content, layers: &[Bytes]) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", Digest::sha256(layer))).collect();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        pinnace_registry::Platform::host().architecture,
        diff_ids.join(",")
    );
    let layers: Vec<Descriptor> = layers
        .iter()
        .map(|layer| {
            content.add_blob(layer.clone());
            Descriptor::of(OCI_LAYER, layer)
        })
        .collect();
    let config_descriptor = Descriptor::of(OCI_CONFIG, config.as_bytes());
    content.add_blob(config.clone());
    let manifest_text = manifest_text(&config_descriptor, &layers);
    let manifest = content.add_manifest(OCI_MANIFEST, manifest_text.clone());
    content.tag("test/image", "latest", manifest);
    Image { manifest, manifest_text, config_text: config, config: config_descriptor, layers }
}

pub fn manifest_text(config: &Descriptor, layers: &[Descriptor]) -> String {
    serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
    })
    .to_string()
}

/// A registry with one image of one layer of `size` bytes.
pub fn one_layer(size: usize) -> (Content, Image) {
    let mut content = Content::default();
    let layer: Bytes = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect::<Vec<u8>>().into();
    let image = add_image(&mut content, &[layer]);
    (content, image)
}

pub fn auth() -> Auth {
    Auth::basic(USER, SECRET)
}

/// Short limits, so that failures are quick.
pub fn options() -> Options {
    Options {
        hosts_dirs: Vec::new(),
        registries_files: Vec::new(),
        auth_files: Vec::new(),
        connect_timeout: Duration::from_secs(5),
        reply_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_millis(400),
        attempts: 3,
        backoff: Duration::from_millis(1),
        ..Options::default()
    }
}

pub fn client() -> Client {
    Client::new(options()).unwrap()
}

pub fn status(code: u16) -> Response<Body> {
    recorder::status(StatusCode::from_u16(code).unwrap())
}

pub fn redirect(to: &str) -> Response<Body> {
    with_header(status(307), "location", to)
}

pub fn json(text: String) -> Response<Body> {
    with_header(Response::new(full(text.into())), "content-type", "application/json")
}

/// All bytes of a blob.
pub async fn collect(mut stream: pinnace_registry::BlobStream) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The whole chain of an error, which must not show the secret.
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    assert!(!text.contains(SECRET) && !format!("{error:?}").contains(SECRET), "{text}");
    text
}

pub fn expect_kind<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind, part: &str) {
    let error = result.unwrap_err();
    let text = chain(&error);
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(part), "{text:?} does not contain {part:?}");
}
