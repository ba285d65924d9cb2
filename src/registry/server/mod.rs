//! A read-only OCI registry on loopback, from memory.
//!
//! It serves what the distribution specification asks of pulls: `/v2/`, manifests by tag and by
//! digest, blobs with ranges, all with `HEAD`. Content is shared between repositories, as in any
//! registry. A [`Script`] may answer requests in its place, which is how tests make it misbehave;
//! [`recorder`] is one.

pub mod recorder;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, IF_RANGE, RANGE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pinnace_store::Digest;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A reply's body; a script may make one that fails, which cuts the connection.
pub type Body = BoxBody<Bytes, io::Error>;

/// Answers instead of the server, or leaves the request to it.
pub trait Script: Send + Sync + 'static {
    /// The reply, or nothing for the ordinary one.
    fn reply(&self, request: &Request<Incoming>) -> Option<Response<Body>>;
}

/// What a server serves.
#[derive(Clone, Debug, Default)]
pub struct Content {
    blobs: HashMap<Digest, Bytes>,
    manifests: HashMap<Digest, (String, Bytes)>,
    /// By (repository, tag).
    tags: HashMap<(String, String), Digest>,
}

impl Content {
    /// Adds a blob and returns its digest.
    pub fn add_blob(&mut self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.blobs.insert(digest, bytes);
        digest
    }

    /// Adds a manifest or index and returns its digest.
    pub fn add_manifest(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.manifests.insert(digest, (media_type.to_owned(), bytes));
        digest
    }

    /// Points a tag of a repository at a manifest.
    pub fn tag(&mut self, repository: &str, tag: &str, manifest: Digest) {
        self.tags.insert((repository.to_owned(), tag.to_owned()), manifest);
    }
}

/// A running registry; it stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    content: Arc<Mutex<Content>>,
    _stop: watch::Sender<()>,
}

impl Server {
    /// Serves on a free port of 127.0.0.1.
    pub async fn start(content: Content) -> io::Result<Self> {
        Self::start_with(content, None).await
    }

    /// Serves, and asks a script first.
    pub async fn start_with(content: Content, script: Option<Arc<dyn Script>>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let content = Arc::new(Mutex::new(content));
        let (stop, stopped) = watch::channel(());
        tokio::spawn(accept(listener, Arc::clone(&content), script, stopped));
        Ok(Self { address, content, _stop: stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:port`, the registry part of references to its images.
    pub fn registry(&self) -> String {
        self.address.to_string()
    }

    /// Changes what is served.
    pub fn edit<T>(&self, edit: impl FnOnce(&mut Content) -> T) -> T {
        edit(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn accept(
    listener: TcpListener,
    content: Arc<Mutex<Content>>,
    script: Option<Arc<dyn Script>>,
    mut stopped: watch::Receiver<()>,
) {
    loop {
        let stream = tokio::select! {
            // The sender never sends: this ends when it is dropped.
            _ = stopped.changed() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accept");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        let (content, script) = (Arc::clone(&content), script.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let scripted = script.as_ref().and_then(|script| script.reply(&request));
            let response = scripted.unwrap_or_else(|| {
                let content = content.lock().unwrap_or_else(PoisonError::into_inner);
                content.serve(&request)
            });
            async move { Ok::<_, Infallible>(response) }
        });
        let mut stopped = stopped.clone();
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = stopped.changed() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "connection");
                },
            }
        });
    }
}

impl Content {
    fn serve<B>(&self, request: &Request<B>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only");
        }
        let path = request.uri().path();
        if path == "/v2/" || path == "/v2" {
            return reply(request, StatusCode::OK, "application/json", None, Bytes::from_static(b"{}"), None);
        }
        let Some(path) = path.strip_prefix("/v2/") else {
            return refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "not part of the API");
        };
        if let Some((repository, name)) = path.rsplit_once("/manifests/") {
            let digest = match name.parse::<Digest>() {
                Ok(digest) => Some(digest),
                Err(_) => self.tags.get(&(repository.to_owned(), name.to_owned())).copied(),
            };
            let Some((digest, (media_type, bytes))) =
                digest.and_then(|digest| Some((digest, self.manifests.get(&digest)?)))
            else {
                return refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
            };
            return reply(request, StatusCode::OK, media_type, Some(digest), bytes.clone(), None);
        }
        if let Some((_, name)) = path.rsplit_once("/blobs/") {
            let blob =
                name.parse::<Digest>().ok().and_then(|digest| Some((digest, self.blobs.get(&digest)?)));
            let Some((digest, bytes)) = blob else {
                return refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
            };
            return blob_reply(request, digest, bytes);
        }
        refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "not part of the API")
    }
}

fn blob_reply<B>(request: &Request<B>, digest: Digest, bytes: &Bytes) -> Response<Body> {
    const TYPE: &str = "application/octet-stream";
    let header = request.headers().get(RANGE).filter(|_| !request.headers().contains_key(IF_RANGE));
    let total = bytes.len();
    match header.and_then(|value| value.to_str().ok()).map(|value| parse_range(value, total)) {
        None | Some(Asked::Everything) => {
            reply(request, StatusCode::OK, TYPE, Some(digest), bytes.clone(), None)
        }
        Some(Asked::Part(range)) => {
            let content_range = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            let part = bytes.slice(range);
            reply(request, StatusCode::PARTIAL_CONTENT, TYPE, Some(digest), part, Some(content_range))
        }
        Some(Asked::Nothing) => {
            let mut response = refusal(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "no such range");
            insert(&mut response, CONTENT_RANGE, &format!("bytes */{total}"));
            response
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Everything,
    Part(Range<usize>),
    Nothing,
}

/// One range of bytes; several, or other units, are answered with everything (RFC 9110 §14.2).
fn parse_range(value: &str, total: usize) -> Asked {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::Everything;
    };
    match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), _) if first >= total => Asked::Nothing,
        (Ok(first), Ok(last)) if first <= last => Asked::Part(first..last.saturating_add(1).min(total)),
        (Ok(first), Err(_)) if last.is_empty() => Asked::Part(first..total),
        (Err(_), Ok(0)) if first.is_empty() => Asked::Nothing,
        (Err(_), Ok(suffix)) if first.is_empty() && total > 0 => {
            Asked::Part(total.saturating_sub(suffix)..total)
        }
        _ => Asked::Everything,
    }
}

fn reply<B>(
    request: &Request<B>,
    status: StatusCode,
    media_type: &str,
    digest: Option<Digest>,
    bytes: Bytes,
    content_range: Option<String>,
) -> Response<Body> {
    let length = bytes.len();
    let body: Body = if request.method() == Method::HEAD { empty() } else { full(bytes) };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    insert(&mut response, CONTENT_TYPE, media_type);
    insert(&mut response, CONTENT_LENGTH, &length.to_string());
    if let Some(digest) = digest {
        insert(&mut response, http::HeaderName::from_static("docker-content-digest"), &digest.to_string());
        insert(&mut response, ETAG, &format!("\"{digest}\""));
        insert(&mut response, ACCEPT_RANGES, "bytes");
    }
    if let Some(range) = content_range {
        insert(&mut response, CONTENT_RANGE, &range);
    }
    response
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = status;
    insert(&mut response, CONTENT_TYPE, "application/json");
    response
}

fn insert(response: &mut Response<Body>, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A body of known bytes.
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// A body of nothing.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_the_rfc() {
        for (value, expected) in [
            ("bytes=0-", Asked::Part(0..10)),
            ("bytes=3-", Asked::Part(3..10)),
            ("bytes=3-5", Asked::Part(3..6)),
            ("bytes=3-99", Asked::Part(3..10)),
            ("bytes=-4", Asked::Part(6..10)),
            ("bytes=-99", Asked::Part(0..10)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=5-3", Asked::Everything),
            ("bytes=0-1,3-4", Asked::Everything),
            ("lines=0-1", Asked::Everything),
            ("", Asked::Everything),
        ] {
            assert_eq!(parse_range(value, 10), expected, "{value}");
        }
    }
}
