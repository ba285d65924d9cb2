//! Pushing: blobs and manifests to the registry itself, never to a mirror (distribution-spec, "Push").
//!
//! ```text
//! HEAD blob ─ there ─► done
//!     │
//! POST uploads?mount=&from= ─ 201 ─► done, without a byte
//!     │ 202 + Location
//! PUT location?digest=   all at once        ── refused for its form (404, 405, 411, 413, 416, 501) ──┐
//!     │ 201                                                                                          ▼
//!   done ◄── PUT location?digest= ◄── PATCH location, in pieces, each telling where the next one goes
//! ```
//! A location may be on another origin. What is sent there has neither headers of ours nor credentials, as with redirects.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::Stream;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pinnace_store::Digest;
use reqwest::{Body, Response};
use url::Url;

use crate::challenge::Challenge;
use crate::client::{Repository, Server};
use crate::error::{Error, Problem};
use crate::exchange::{Session, Transport, connection_problem, is_redirect, redirect_target};
use crate::origin::Origin;
use crate::retry;

const OCTETS: &str = "application/octet-stream";
/// Pieces of an upload that cannot be done at once.
const PIECE_BYTES: u64 = 16 << 20;
/// Pieces in which a file is read.
const READ_BYTES: usize = 256 << 10;
const REDIRECTS_MAX: usize = 5;

/// What is uploaded: a file, or bytes; read as often as it has to be sent.
#[derive(Clone, Debug)]
pub enum Source {
    /// The first `size` bytes of a file.
    File {
        /// The file.
        file: Arc<File>,
        /// How many.
        size: u64,
    },
    /// These bytes.
    Bytes(Bytes),
}

impl Source {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::File { size, .. } => *size,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn body(&self, from: u64, length: u64, sent: &Arc<AtomicU64>) -> Body {
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                let end = usize::try_from(from + length).unwrap_or(usize::MAX).min(bytes.len());
                sent.store(from + length, Ordering::Relaxed);
                Body::from(bytes.slice(start..end))
            }
            Self::File { file, .. } => Body::wrap_stream(Pieces {
                file: Arc::clone(file),
                at: from,
                end: from + length,
                sent: Arc::clone(sent),
            }),
        }
    }
}

/// A part of a file as a stream. It was written a moment ago, so reading it does not wait for a disk.
struct Pieces {
    file: Arc<File>,
    at: u64,
    end: u64,
    sent: Arc<AtomicU64>,
}

impl Stream for Pieces {
    type Item = std::io::Result<Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(READ_BYTES);
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        let mut buffer = vec![0; left];
        let item = self.file.read_exact_at(&mut buffer, self.at).map(|()| {
            self.at += left as u64;
            self.sent.store(self.at, Ordering::Relaxed);
            Bytes::from(buffer)
        });
        std::task::Poll::Ready(Some(item))
    }
}

/// A request with a body.
struct Sending<'a> {
    method: Method,
    url: Url,
    headers: Vec<(HeaderName, String)>,
    body: Option<(&'a Source, u64, u64)>,
    /// Scopes that are needed besides what the challenge says.
    scopes: &'a [String],
    sent: Arc<AtomicU64>,
}

impl<'a> Sending<'a> {
    fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), body: None, scopes: &[], sent: Arc::default() }
    }

    fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn part(mut self, source: &'a Source, from: u64, length: u64) -> Self {
        self.body = Some((source, from, length));
        self.header(CONTENT_LENGTH, length.to_string())
    }
}

impl Transport {
    /// Sends, answers one challenge, follows redirects that keep the method, and returns whatever came.
    async fn send_with_body(
        &self,
        session: &Session,
        sending: &Sending<'_>,
    ) -> Result<(Response, Origin, Url), Problem> {
        let mut authorization = self.tokens.current(self, session).await?;
        let mut challenged = false;
        loop {
            let (response, origin, url) =
                self.follow_with_body(session, sending, authorization.as_ref()).await?;
            let is_own = origin == session.endpoint.origin;
            if response.status() != StatusCode::UNAUTHORIZED || !is_own {
                return Ok((response, origin, url));
            }
            let mut challenge = Challenge::best(response.headers());
            if let Some(Challenge::Bearer { scope, .. }) = &mut challenge {
                if scope.is_empty() {
                    scope.push(format!("repository:{}:pull,push", session.path));
                }
                scope.extend(sending.scopes.iter().cloned());
            }
            let anonymous = session.secret.is_none();
            let Problem::Status { excerpt, .. } = self.refusal(response, true).await else {
                return Err(Problem::NoToken);
            };
            let refused = Problem::Unauthorized { anonymous, excerpt };
            let Some(challenge) = challenge.filter(|_| !challenged) else { return Err(refused) };
            challenged = true;
            match self.tokens.answer(self, session, &challenge, authorization.as_ref()).await? {
                Some(answer) => authorization = Some(answer),
                None => return Err(refused),
            }
        }
    }

    async fn follow_with_body(
        &self,
        session: &Session,
        sending: &Sending<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, Origin, Url), Problem> {
        let endpoint = &session.endpoint;
        let mut url = sending.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let origin = Origin::of(&url).ok_or_else(|| Problem::Redirect {
                target: url.scheme().to_owned(),
                reason: "neither http nor https",
            })?;
            let mut headers = HeaderMap::new();
            let client = if origin == endpoint.origin {
                headers.extend(endpoint.headers.clone());
                if let Some(authorization) = authorization {
                    headers.insert(AUTHORIZATION, authorization.clone());
                }
                self.client_for_own(endpoint)?
            } else {
                self.judge_literal(endpoint, &url).await?;
                self.client_for_others(endpoint).await?
            };
            headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
            for (name, value) in &sending.headers {
                if let Ok(value) = HeaderValue::try_from(value.as_str()) {
                    headers.insert(name.clone(), value);
                }
            }
            let mut request = client.request(sending.method.clone(), url.clone()).headers(headers);
            let response = match sending.body {
                None => {
                    request = request.header(CONTENT_LENGTH, "0").body(Body::from(Bytes::new()));
                    self.within("reply", request.send()).await?
                }
                Some((source, from, length)) => {
                    request = request.body(source.body(from, length, &sending.sent));
                    self.while_it_goes(request.send(), &sending.sent).await?
                }
            };
            if !is_redirect(response.status()) {
                return Ok((response, origin, url));
            }
            url = redirect_target(&url, &origin, response.headers())?.0;
        }
        Err(Problem::Redirect {
            target: url.host_str().unwrap_or_default().to_owned(),
            reason: "too many redirects",
        })
    }

    /// Waits for the reply to a body of any length: as long as something goes out, and then as long as for any reply.
    async fn while_it_goes(
        &self,
        sending: impl Future<Output = Result<Response, reqwest::Error>>,
        sent: &AtomicU64,
    ) -> Result<Response, Problem> {
        let after = self.deadlines.reply;
        let mut sending = std::pin::pin!(sending);
        let mut before = sent.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(after, &mut sending).await {
                Ok(result) => {
                    return result.map_err(|error| connection_problem(error, self.deadlines.connect));
                }
                Err(_) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now == before {
                        return Err(Problem::Timeout { what: "progress", after });
                    }
                    before = now;
                }
            }
        }
    }
}

/// Where an upload goes on.
fn next_location(response: &Response, origin: &Origin, url: &Url) -> Result<Url, Problem> {
    if !response.headers().contains_key(LOCATION) {
        return Err(Problem::Redirect { target: origin.to_string(), reason: "no location for the upload" });
    }
    redirect_target(url, origin, response.headers()).map(|(url, _)| url)
}

impl Repository {
    /// The server that takes pushes: the registry itself.
    fn taker(&self) -> Result<&Server, Error> {
        let found =
            self.inner.servers.iter().find(|server| {
                server.session.endpoint.is_upstream && server.session.endpoint.capabilities.push
            });
        found.ok_or_else(|| Error::Hosts {
            registry: self.inner.reference.registry().to_owned(),
            source: crate::hosts::Error::Incapable,
        })
    }

    fn failed(&self, problem: Problem) -> Error {
        let host = self.taker().map(|server| server.session.endpoint.origin.authority()).unwrap_or_default();
        Error::exchange(&self.inner.reference, &host, problem)
    }

    async fn send(&self, sending: &Sending<'_>) -> Result<(Response, Origin, Url), Error> {
        let server = self.taker()?;
        let options = &self.inner.shared.options;
        let transport = &self.inner.shared.transport;
        let send = || async {
            let (response, origin, url) = transport.send_with_body(&server.session, sending).await?;
            // What may pass is tried again; the rest is for the caller to read.
            if matches!(response.status().as_u16(), 429 | 500 | 502..=504) {
                let is_own = origin == server.session.endpoint.origin;
                return Err(transport.refusal(response, is_own).await);
            }
            Ok((response, origin, url))
        };
        retry::with_backoff(options.attempts, options.backoff, send)
            .await
            .map_err(|problem| self.failed(problem))
    }

    async fn refused(&self, response: Response, origin: &Origin) -> Error {
        let is_own = self.taker().is_ok_and(|server| server.session.endpoint.origin == *origin);
        self.failed(self.inner.shared.transport.refusal(response, is_own).await)
    }

    fn upload_url(&self) -> Result<Url, Error> {
        let session = &self.taker()?.session;
        Ok(session.endpoint.url(&session.path, "blobs/uploads", ""))
    }

    /// The size of a blob that the repository has; nothing if it does not have it.
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        let session = &self.taker()?.session;
        let url = session.endpoint.url(&session.path, "blobs", &digest.to_string());
        let (response, origin, _) = self.send(&Sending::new(Method::HEAD, url)).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let length = response.headers().get(CONTENT_LENGTH);
                Ok(length.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok()))
            }
            _ => Err(self.refused(response, &origin).await),
        }
    }

    /// Asks the registry to take a blob over from another repository of its own; says whether it did. If not, nothing is
    /// left of it: an upload that was begun instead is given up.
    pub async fn mount_blob(&self, digest: &Digest, from: &str) -> Result<bool, Error> {
        let mut url = self.upload_url()?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let path = &self.taker()?.session.path;
        let scopes = [format!("repository:{path}:pull,push"), format!("repository:{from}:pull")];
        let sending = Sending { scopes: &scopes, ..Sending::new(Method::POST, url) };
        let (response, origin, url) = self.send(&sending).await?;
        match response.status() {
            StatusCode::CREATED => Ok(true),
            StatusCode::ACCEPTED => {
                if let Ok(location) = next_location(&response, &origin, &url) {
                    // Registries forget it by themselves, only later.
                    let _ = self.send(&Sending::new(Method::DELETE, location)).await;
                }
                Ok(false)
            }
            // Not every registry knows mounting.
            status if status.is_client_error() => Ok(false),
            _ => Err(self.refused(response, &origin).await),
        }
    }

    /// Uploads a blob. `sent` counts bytes; after a failure that may pass it counts from the beginning again.
    pub async fn upload_blob(
        &self,
        digest: &Digest,
        source: &Source,
        sent: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let location = self.begin_upload().await?;
        let mut whole = location;
        whole.query_pairs_mut().append_pair("digest", &digest.to_string());
        let sending = Sending { sent: Arc::clone(sent), ..Sending::new(Method::PUT, whole) }
            .header(CONTENT_TYPE, OCTETS)
            .part(source, 0, source.size());
        let (response, origin, _) = self.send(&sending).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT | StatusCode::OK => Ok(()),
            status if matches!(status.as_u16(), 404 | 405 | 411 | 413 | 416 | 501) => {
                tracing::debug!(%digest, %status, "the registry wants this blob in pieces");
                self.upload_in_pieces(digest, source, sent).await
            }
            _ => Err(self.refused(response, &origin).await),
        }
    }

    async fn begin_upload(&self) -> Result<Url, Error> {
        let (response, origin, url) = self.send(&Sending::new(Method::POST, self.upload_url()?)).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.refused(response, &origin).await);
        }
        next_location(&response, &origin, &url).map_err(|problem| self.failed(problem))
    }

    async fn upload_in_pieces(
        &self,
        digest: &Digest,
        source: &Source,
        sent: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let mut location = self.begin_upload().await?;
        let mut at = 0;
        while at < source.size() {
            let length = (source.size() - at).min(PIECE_BYTES);
            let sending = Sending { sent: Arc::clone(sent), ..Sending::new(Method::PATCH, location) }
                .header(CONTENT_TYPE, OCTETS)
                .header(CONTENT_RANGE, format!("{at}-{}", at + length - 1))
                .part(source, at, length);
            let (response, origin, url) = self.send(&sending).await?;
            if !response.status().is_success() {
                return Err(self.refused(response, &origin).await);
            }
            location = next_location(&response, &origin, &url).map_err(|problem| self.failed(problem))?;
            at += length;
        }
        location.query_pairs_mut().append_pair("digest", &digest.to_string());
        let (response, origin, _) = self.send(&Sending::new(Method::PUT, location)).await?;
        if response.status().is_success() { Ok(()) } else { Err(self.refused(response, &origin).await) }
    }

    /// Puts a manifest under the tag or digest of the reference; what it refers to must be there.
    pub async fn put_manifest(&self, media_type: &str, bytes: &Bytes) -> Result<Digest, Error> {
        let session = &self.taker()?.session;
        let digest = Digest::sha256(bytes);
        let url = session.endpoint.url(&session.path, "manifests", &self.inner.reference.target());
        let source = Source::Bytes(bytes.clone());
        let sending =
            Sending::new(Method::PUT, url).header(CONTENT_TYPE, media_type).part(&source, 0, source.size());
        let (response, origin, _) = self.send(&sending).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, &origin).await);
        }
        let claim = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        match claim.and_then(|claim| claim.parse::<Digest>().ok()) {
            Some(claim) if claim != digest => Err(self.failed(Problem::digest(digest, claim))),
            _ => Ok(digest),
        }
    }
}
