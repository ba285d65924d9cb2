//! From a reference to a verified manifest and config, over all servers that may have them.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use pinnace_store::Digest;
use url::Url;

use crate::auth::Auth;
use crate::blob::BlobStream;
use crate::error::{Error, ErrorKind, ImageProblem, Problem};
use crate::exchange::{Deadlines, Reply, Request, Session, Span, Transport};
use crate::explain::{Explanation, Note};
use crate::hosts::Hosts;
use crate::manifest::{Config, Descriptor, Document, Manifest};
use crate::origin::Origin;
use crate::plan::{Node, Plan};
use crate::{Platform, Reference, retry};

/// Longest manifest, index or config (R10; both specifications and containerd).
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Indexes that may lead to each other (CVE-2026-53493).
const NESTING_MAX: usize = 4;

const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*";

/// How registries are talked to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directories in the layout of containerd's `certs.d`; the first that knows a registry wins.
    pub hosts_dirs: Vec<PathBuf>,
    /// Files like `registries.conf`; the first that exists counts, with its drop-ins.
    pub registries_files: Vec<PathBuf>,
    /// Files like Docker's `config.json`; the first that knows a server wins.
    pub auth_files: Vec<PathBuf>,
    /// Registries, exactly as `host[:port]`, that may have any certificate or speak plain HTTP. Loopback may do the
    /// latter by itself.
    pub insecure: Vec<String>,
    /// Token services (`https://host[:port]`) that may see the credentials of any registry.
    pub token_realms: Vec<String>,
    /// Whether a registry at a public address may redirect to addresses of the site's network.
    pub private_redirects: bool,
    /// What machine images are for.
    pub platform: Platform,
    /// Sent with every request.
    pub user_agent: String,
    /// To establish a connection.
    pub connect_timeout: Duration,
    /// For a reply's head, and for a small reply as a whole.
    pub reply_timeout: Duration,
    /// For next to nothing of a blob arriving. There is no limit for a whole blob.
    pub stall_timeout: Duration,
    /// Tries of a request that fails for a reason that may pass.
    pub attempts: u32,
    /// Wait before the second try; doubles, with jitter.
    pub backoff: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts_dirs: vec!["/etc/pinnace/certs.d".into(), "/etc/containerd/certs.d".into()],
            registries_files: vec![
                "/etc/pinnace/registries.conf".into(),
                "/etc/containers/registries.conf".into(),
            ],
            auth_files: vec!["/etc/pinnace/auth.json".into()],
            insecure: Vec::new(),
            token_realms: Vec::new(),
            private_redirects: false,
            platform: Platform::host(),
            user_agent: concat!("pinnace/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// Talks to registries; one for the whole program.
pub struct Client {
    shared: Arc<Shared>,
    node: Node,
}

/// What every repository of a client uses.
pub(crate) struct Shared {
    pub(crate) transport: Transport,
    pub(crate) options: Options,
}

/// A repository as one pull sees it: its servers in order, each with what it may be told.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reference: Reference,
    pub(crate) servers: Vec<Server>,
}

pub(crate) struct Server {
    pub(crate) session: Session,
    /// Set after a failure that is likely to happen again; such a server is asked last.
    pub(crate) is_down: AtomicBool,
}

/// An image that was found: its documents, verified and parsed.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What was asked for.
    pub reference: Reference,
    /// What the reference pointed at: an index or a manifest. Its digest is the repo digest.
    pub target: Descriptor,
    /// Index(es) and manifest as they were served, outermost first, manifest last.
    pub documents: Vec<(Descriptor, Bytes)>,
    /// The image for this machine.
    pub manifest: Manifest,
    /// The config as it was served. Its digest, `manifest.config.digest`, is the image id.
    pub config_bytes: Bytes,
    /// The part of the config that a pull needs; as many diff ids as the manifest has layers.
    pub config: Config,
}

impl Client {
    /// A client; nothing is read or contacted yet.
    pub fn new(options: Options) -> Result<Self, crate::hosts::Error> {
        let token_realms = options
            .token_realms
            .iter()
            .map(|realm| {
                let url = Url::parse(realm).ok();
                url.as_ref().and_then(Origin::of).ok_or_else(|| crate::hosts::Error::Host(realm.clone()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let transport = Transport::new(
            options.user_agent.clone(),
            Deadlines { connect: options.connect_timeout, reply: options.reply_timeout },
            options.private_redirects,
            token_realms,
        );
        let node = Node {
            hosts: Hosts { dirs: options.hosts_dirs.clone() },
            registries_files: options.registries_files.clone(),
            auth_files: options.auth_files.clone(),
            insecure: options.insecure.clone(),
        };
        Ok(Self { shared: Arc::new(Shared { transport, options }), node })
    }

    /// What a name means on this node: names without a registry by the aliases and search lists of `registries.conf`,
    /// and Docker Hub's where there are none. Reads files.
    pub fn reference(&self, name: &str) -> Result<Reference, Error> {
        let invalid = |source| Error::Name { name: name.to_owned(), source };
        // What is no name at all is not worth a look at files.
        let plain: Reference = name.parse()?;
        if !crate::reference::is_short(name) {
            return Ok(plain);
        }
        match self.node.expand(name).map_err(invalid)? {
            Some((long, _)) => Ok(long.parse()?),
            None => Ok(plain),
        }
    }

    /// What would decide a pull of this name now, and which servers would be asked. Contacts none.
    pub fn explain(&self, name: &str, auth: Option<&Auth>) -> Result<Explanation, Error> {
        let mut notes = Vec::new();
        let reference = self.reference(name)?;
        if let Ok(Some((long, file))) = self.node.expand(name) {
            notes.push(Note::file(&file, format!("{name} is a short name for {long}")));
        }
        let plan = self.plan(&reference, auth)?;
        notes.extend(plan.notes);
        let servers = plan.servers.iter().map(crate::explain::Server::of).collect();
        Ok(Explanation { name: name.to_owned(), reference, notes, servers })
    }

    fn plan(&self, reference: &Reference, auth: Option<&Auth>) -> Result<Plan, Error> {
        self.node
            .plan(reference, auth)
            .map_err(|source| Error::Hosts { registry: reference.registry().to_owned(), source })
    }

    /// The repository of a reference, with the node's present configuration of its registry.
    pub fn repository(&self, reference: &Reference, auth: Option<&Auth>) -> Result<Repository, Error> {
        let servers = self
            .plan(reference, auth)?
            .servers
            .into_iter()
            .map(|planned| Server {
                session: Session {
                    secret: planned.credentials.map(|credentials| credentials.secret),
                    path: planned.path,
                    endpoint: planned.endpoint,
                },
                is_down: AtomicBool::new(false),
            })
            .collect();
        let inner = Inner { shared: Arc::clone(&self.shared), reference: reference.clone(), servers };
        Ok(Repository { inner: Arc::new(inner) })
    }

    /// Finds the image that a reference means for this machine.
    pub async fn resolve(&self, reference: &Reference, auth: Option<&Auth>) -> Result<Resolved, Error> {
        self.repository(reference, auth)?.resolve().await
    }

    /// What machine images are chosen for.
    pub fn platform(&self) -> &Platform {
        &self.shared.options.platform
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("reference", &self.inner.reference).finish_non_exhaustive()
    }
}

/// What a server is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Pull,
    Resolve,
}

impl Inner {
    /// Servers that can do something, working ones first.
    pub(crate) fn servers(&self, need: Need) -> Vec<&Server> {
        let able = |server: &&Server| {
            let capabilities = server.session.endpoint.capabilities;
            match need {
                Need::Pull => capabilities.pull,
                Need::Resolve => capabilities.resolve,
            }
        };
        let is_down = |server: &&Server| server.is_down.load(Ordering::Relaxed);
        let (down, up): (Vec<&Server>, Vec<&Server>) = self.servers.iter().filter(able).partition(is_down);
        up.into_iter().chain(down).collect()
    }

    /// Sends a request to one server after another; the last one is tried more than once.
    pub(crate) async fn ask(
        &self,
        need: Need,
        method: &Method,
        kind: &str,
        name: &str,
        accept: &'static str,
        span: Span,
    ) -> Result<Reply, Error> {
        let servers = self.servers(need);
        let mut failure = None;
        for (position, server) in servers.iter().enumerate() {
            let endpoint = &server.session.endpoint;
            let request = Request {
                method: method.clone(),
                url: endpoint.url(&server.session.path, kind, name),
                accept,
                span,
            };
            let options = &self.shared.options;
            let attempts = if position + 1 == servers.len() { options.attempts } else { 1 };
            let send = || self.shared.transport.send(&server.session, &request);
            match retry::with_backoff(attempts, options.backoff, send).await {
                Ok(reply) => return Ok(reply),
                Err(problem) => {
                    if matches!(problem, Problem::Connection(_) | Problem::Timeout { .. }) {
                        server.is_down.store(true, Ordering::Relaxed);
                    }
                    if position + 1 < servers.len() {
                        tracing::debug!(
                            server = %endpoint.origin,
                            error = &problem as &dyn std::error::Error,
                            "server passed over"
                        );
                    }
                    // The registry's own word is the one to report.
                    if failure.is_none() || endpoint.is_upstream {
                        failure =
                            Some(Error::exchange(&self.reference, &endpoint.origin.authority(), problem));
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::Hosts {
            registry: self.reference.registry().to_owned(),
            source: crate::hosts::Error::Incapable,
        }))
    }
}

impl Repository {
    /// What the repository was opened for.
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// The digest that the registry claims for the reference now: one cheap request, which Docker
    /// Hub does not count as a pull. Nothing if the registry does not say. Success also means that
    /// the credentials may have the image.
    pub async fn claimed_digest(&self) -> Result<Option<Digest>, Error> {
        let reference = &self.inner.reference;
        let need = if reference.digest().is_some() { Need::Pull } else { Need::Resolve };
        let reply = self
            .inner
            .ask(need, &Method::HEAD, "manifests", &reference.target(), ACCEPT_MANIFEST, Span::default())
            .await;
        let reply = match reply {
            Ok(reply) => reply,
            // Some registries do not know HEAD.
            Err(Error::Exchange { source: Problem::Status { status: 405 | 501, .. }, .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Some(digest) = reference.digest() {
            return Ok(Some(*digest));
        }
        let claim = reply.response.headers().get("docker-content-digest");
        Ok(claim.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok()))
    }

    /// Finds the image that the reference means for this machine.
    pub async fn resolve(&self) -> Result<Resolved, Error> {
        let reference = &self.inner.reference;
        let platform = &self.inner.shared.options.platform;
        let image = |problem: ImageProblem| Error::image(reference, problem);
        let (target, bytes, mut document) =
            self.document(&reference.target(), reference.digest().copied(), None).await?;
        let mut documents = vec![(target.clone(), bytes)];
        let manifest = loop {
            match document {
                Document::Manifest(manifest) => break *manifest,
                Document::Index(index) => {
                    if documents.len() > NESTING_MAX {
                        return Err(image(ImageProblem::Nesting { limit: NESTING_MAX }));
                    }
                    let Some(entry) = platform.choose(&index) else {
                        return Err(image(ImageProblem::Platform {
                            wanted: platform.to_string(),
                            offered: offered(&index),
                        }));
                    };
                    self.require_small("manifest", entry)?;
                    let (descriptor, bytes, inner) =
                        self.document(&entry.digest.to_string(), Some(entry.digest), Some(entry)).await?;
                    documents.push((descriptor, bytes));
                    document = inner;
                }
            }
        };
        manifest.require_image().map_err(|error| image(error.into()))?;
        self.require_small("image config", &manifest.config)?;
        let config_bytes = self.small_blob(&manifest.config).await?;
        let config = Config::parse(&config_bytes, &manifest).map_err(|error| image(error.into()))?;
        if !config.platform.architecture.is_empty() && !platform.runs(&config.platform) {
            tracing::warn!(
                image = %reference,
                platform = %config.platform,
                "image is for another processor: it runs only under emulation"
            );
        }
        Ok(Resolved { reference: reference.clone(), target, documents, manifest, config_bytes, config })
    }

    /// Streams a blob from `offset` on.
    pub fn fetch_blob(&self, descriptor: &Descriptor, offset: u64) -> BlobStream {
        BlobStream::new(Arc::clone(&self.inner), descriptor, offset..descriptor.size)
    }

    /// Streams a part of a blob. A server that does not serve parts is an error here.
    pub fn fetch_range(&self, descriptor: &Descriptor, part: Range<u64>) -> BlobStream {
        BlobStream::new(Arc::clone(&self.inner), descriptor, part)
    }

    /// Turns away from a server that delivered something wrong. Tells whether there is another one
    /// that may do better.
    pub fn distrust(&self, server: &str) -> bool {
        for known in &self.inner.servers {
            if known.session.endpoint.origin.authority() == server {
                known.is_down.store(true, Ordering::Relaxed);
            }
        }
        self.inner.servers(Need::Pull).first().is_some_and(|server| !server.is_down.load(Ordering::Relaxed))
    }

    /// Fetches one index or manifest and verifies what can be.
    async fn document(
        &self,
        name: &str,
        expected: Option<Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<(Descriptor, Bytes, Document), Error> {
        let inner = &self.inner;
        let need = if expected.is_some() { Need::Pull } else { Need::Resolve };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Reply { response, server, host } =
                inner.ask(need, &Method::GET, "manifests", name, ACCEPT_MANIFEST, Span::default()).await?;
            let content_type = response
                .headers()
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.split(';').next())
                .map(|value| value.trim().to_owned());
            let read = inner.shared.transport.read_bounded(response, "manifest", DOCUMENT_MAX).await;
            let bytes = match read {
                Ok(bytes) => bytes,
                Err(problem) if problem.is_transient() && attempt < inner.shared.options.attempts => continue,
                Err(problem) => return Err(Error::exchange(&inner.reference, &host, problem)),
            };
            match self.verified(bytes, &host, content_type.as_deref(), expected, entry) {
                Err(error) if error.kind() == ErrorKind::DataLoss && self.distrust(&server) => {
                    passed_over(&server, &error);
                }
                result => return result,
            }
        }
    }

    fn verified(
        &self,
        bytes: Bytes,
        host: &str,
        content_type: Option<&str>,
        expected: Option<Digest>,
        entry: Option<&Descriptor>,
    ) -> Result<(Descriptor, Bytes, Document), Error> {
        let reference = &self.inner.reference;
        let actual = match expected {
            Some(expected) => expected.same_algorithm_of(&bytes),
            None => Digest::sha256(&bytes),
        };
        if let Some(expected) = expected
            && actual != expected
        {
            return Err(Error::exchange(reference, host, Problem::digest(expected, actual)));
        }
        if let Some(entry) = entry
            && entry.size != bytes.len() as u64
        {
            let problem = Problem::Length { expected: entry.size, actual: bytes.len() as u64 };
            return Err(Error::exchange(reference, host, problem));
        }
        let mut claims = Vec::new();
        if let Some(content_type) = content_type {
            claims.push(("response", content_type));
        }
        if let Some(entry) = entry {
            claims.push(("index entry", entry.media_type.as_str()));
        }
        let (document, media_type) =
            Document::parse(&bytes, &claims).map_err(|error| Error::image(reference, error))?;
        let descriptor = Descriptor {
            media_type,
            digest: actual,
            size: bytes.len() as u64,
            urls: Vec::new(),
            annotations: Default::default(),
            platform: entry.and_then(|entry| entry.platform.clone()),
        };
        Ok((descriptor, bytes, document))
    }

    /// Fetches a blob that must be small, and verifies it.
    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        loop {
            let mut stream = self.fetch_blob(descriptor, 0);
            match self.collect(&mut stream, descriptor.digest).await {
                Err(error) if error.kind() == ErrorKind::DataLoss && self.distrust(stream.server()) => {
                    passed_over(stream.server(), &error);
                }
                result => return result,
            }
        }
    }

    async fn collect(&self, stream: &mut BlobStream, expected: Digest) -> Result<Bytes, Error> {
        let mut bytes = bytes::BytesMut::new();
        while let Some(chunk) = stream.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        let bytes = bytes.freeze();
        let actual = expected.same_algorithm_of(&bytes);
        if expected == actual {
            Ok(bytes)
        } else {
            Err(Error::exchange(&self.inner.reference, stream.host(), Problem::digest(expected, actual)))
        }
    }

    fn require_small(&self, what: &'static str, descriptor: &Descriptor) -> Result<(), Error> {
        if descriptor.size <= DOCUMENT_MAX {
            return Ok(());
        }
        let problem = ImageProblem::TooLarge { what, size: descriptor.size, limit: DOCUMENT_MAX };
        Err(Error::image(&self.inner.reference, problem))
    }
}

fn passed_over(server: &str, error: &Error) {
    tracing::warn!(server, error = error as &dyn std::error::Error, "server delivered something else");
}

fn offered(index: &crate::manifest::Index) -> String {
    const SHOWN: usize = 20;
    let mut names: Vec<String> = index
        .manifests
        .iter()
        .filter(|entry| !entry.is_attestation())
        .filter_map(|entry| entry.platform.as_ref())
        .take(SHOWN)
        .map(|platform| platform.to_string().chars().filter(|c| !c.is_control()).take(64).collect())
        .collect();
    if names.is_empty() {
        names.push("none".to_owned());
    }
    names.join(", ")
}
