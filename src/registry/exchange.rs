//! One HTTP request to a registry: redirects, challenges, deadlines, and who sees the secret.
//!
//! ```text
//!            ┌─────────── same origin: headers and Authorization stay ──────────┐
//! registry ──┤                                                                  ├─► reply
//!            └─ other origin: nothing of ours goes along, addresses are judged ─┘
//!      401 from the registry's own origin ─► challenge ─► token service ─► once more
//! ```
//!
//! A challenge of any other origin is an error like every other status.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pinnace_store::Digest;
use reqwest::Response;
use url::Url;

use crate::auth::Secret;
use crate::challenge::Challenge;
use crate::dns::{Dns, Reachable, RefusedAddress, proxy_hosts};
use crate::error::{Problem, SetupError, excerpt};
use crate::hosts::Endpoint;
use crate::origin::{Origin, Reach, is_loopback_host};
use crate::tls::TlsPolicy;
use crate::token::Tokens;

/// Most redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Most of an error body that is read (R10).
const ERROR_BODY_MAX: u64 = 64 << 10;
/// An unused connection is closed after this; a pull's own requests follow each other closely.
const IDLE: Duration = Duration::from_secs(30);
/// Clients are made anew after this, so that a change of the system's roots is seen.
const CLIENT_AGE_MAX: Duration = Duration::from_secs(3600);
const CLIENTS_MAX: usize = 64;

/// Time limits of the transport. None limits a whole transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    pub(crate) connect: Duration,
    /// From the request to the head of the reply, and for small bodies as a whole.
    pub(crate) reply: Duration,
}

/// Makes connections and keeps what they share.
pub(crate) struct Transport {
    dns: Dns,
    proxies: Arc<HashSet<String>>,
    clients: Mutex<HashMap<ClientKey, (Instant, reqwest::Client)>>,
    user_agent: String,
    pub(crate) deadlines: Deadlines,
    /// Whether a public registry may send us to private addresses of the site.
    pub(crate) private_redirects: bool,
    /// Token services that may see secrets of any registry.
    pub(crate) token_realms: Vec<Origin>,
    pub(crate) tokens: Tokens,
}

#[derive(PartialEq, Eq, Hash)]
struct ClientKey {
    tls: Digest,
    limit: Option<Reach>,
    connect: Duration,
    /// Loopback never goes through a proxy.
    is_direct: bool,
}

/// One registry server as one pull uses it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) endpoint: Endpoint,
    /// The repository's path, for the scope of tokens.
    pub(crate) path: String,
    /// Present only if this server may see it.
    pub(crate) secret: Option<Secret>,
}

/// What is asked of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) accept: &'static str,
    pub(crate) span: Span,
}

/// The bytes that are wanted; all of them by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: u64,
    /// The first that is not.
    pub(crate) end: Option<u64>,
}

impl Span {
    /// As a `Range` header has it (RFC 9110 §14.2); nothing for everything.
    fn header(self) -> Option<String> {
        match (self.from, self.end) {
            (0, None) => None,
            (from, None) => Some(format!("bytes={from}-")),
            (from, Some(end)) => Some(format!("bytes={from}-{}", end.saturating_sub(1))),
        }
    }
}

/// A successful reply, headers read, body to come.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) response: Response,
    /// The registry server that was asked.
    pub(crate) server: String,
    /// The server that sent it, after redirects.
    pub(crate) host: String,
}

impl Transport {
    pub(crate) fn new(
        user_agent: String,
        deadlines: Deadlines,
        private_redirects: bool,
        token_realms: Vec<Origin>,
    ) -> Self {
        Self {
            dns: Dns::default(),
            proxies: Arc::new(proxy_hosts()),
            clients: Mutex::default(),
            user_agent,
            deadlines,
            private_redirects,
            token_realms,
            tokens: Tokens::default(),
        }
    }

    /// Sends a request to a registry and follows it to a reply of success.
    pub(crate) async fn send(&self, session: &Session, request: &Request) -> Result<Reply, Problem> {
        let mut authorization = self.tokens.current(self, session).await?;
        let mut challenged = false;
        loop {
            let (response, origin) = self.follow(session, request, authorization.as_ref()).await?;
            let status = response.status();
            if status.is_success() {
                let server = session.endpoint.origin.authority();
                return Ok(Reply { response, server, host: origin.authority() });
            }
            let is_own = origin == session.endpoint.origin;
            if status == StatusCode::UNAUTHORIZED && is_own {
                let challenge = Challenge::best(response.headers());
                let anonymous = session.secret.is_none();
                let Problem::Status { excerpt, .. } = self.refusal(response, true).await else {
                    return Err(Problem::NoToken);
                };
                let refused = Problem::Unauthorized { anonymous, excerpt };
                let Some(challenge) = challenge.filter(|_| !challenged) else {
                    return Err(refused);
                };
                challenged = true;
                match self.tokens.answer(self, session, &challenge, authorization.as_ref()).await? {
                    Some(answer) => authorization = Some(answer),
                    None => return Err(refused),
                }
                continue;
            }
            return Err(self.refusal(response, is_own).await);
        }
    }

    /// Sends, and follows redirects under our own policy.
    async fn follow(
        &self,
        session: &Session,
        request: &Request,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, Origin), Problem> {
        let endpoint = &session.endpoint;
        let mut url = request.url.clone();
        let mut origin = endpoint.origin.clone();
        let mut others: Option<reqwest::Client> = None;
        for _ in 0..=REDIRECTS_MAX {
            let is_own = origin == endpoint.origin;
            let mut headers = HeaderMap::new();
            let client = if is_own {
                headers.extend(endpoint.headers.clone());
                if let Some(authorization) = authorization {
                    headers.insert(AUTHORIZATION, authorization.clone());
                }
                self.client_for_own(endpoint)?
            } else {
                match &others {
                    Some(client) => client.clone(),
                    None => {
                        let client = self.client_for_others(endpoint).await?;
                        others = Some(client.clone());
                        client
                    }
                }
            };
            if !is_own {
                self.judge_literal(endpoint, &url).await?;
            }
            // The digest is of the bytes on the wire: nobody may compress them.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            headers.insert(ACCEPT, HeaderValue::from_static(request.accept));
            if let Some(range) = request.span.header()
                && let Ok(range) = HeaderValue::try_from(range)
            {
                headers.insert(RANGE, range);
            }
            let sent = client.request(request.method.clone(), url.clone()).headers(headers).send();
            let response = self.within("reply", sent).await?;
            if !is_redirect(response.status()) {
                return Ok((response, origin));
            }
            let (next, next_origin) = redirect_target(&url, &origin, response.headers())?;
            (url, origin) = (next, next_origin);
        }
        Err(Problem::Redirect { target: origin.to_string(), reason: "too many redirects" })
    }

    /// The client for a registry's own origin.
    pub(crate) fn client_for_own(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Problem> {
        let is_direct = is_loopback_host(endpoint.origin.host());
        self.client(&endpoint.tls, None, endpoint.connect_timeout, is_direct)
    }

    /// The client for servers that a registry points at.
    pub(crate) async fn client_for_others(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Problem> {
        let limit = self.limit_for(endpoint).await;
        let is_direct = is_loopback_host(endpoint.origin.host());
        self.client(&endpoint.tls.for_others(), Some(limit), endpoint.connect_timeout, is_direct)
    }

    /// How private an address a registry may send us to: not more than its own.
    async fn limit_for(&self, endpoint: &Endpoint) -> Reach {
        let own = self.dns.reach(endpoint.origin.host()).await.min(Reach::Loopback);
        if self.private_redirects { own.max(Reach::Private) } else { own }
    }

    /// Addresses in URLs never reach the resolver's filter.
    pub(crate) async fn judge_literal(&self, endpoint: &Endpoint, url: &Url) -> Result<(), Problem> {
        match Reach::of_literal(url) {
            Some(reach) if reach > self.limit_for(endpoint).await => {
                Err(Problem::Address { host: url.host_str().unwrap_or_default().to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn client(
        &self,
        tls: &TlsPolicy,
        limit: Option<Reach>,
        connect: Option<Duration>,
        is_direct: bool,
    ) -> Result<reqwest::Client, Problem> {
        let connect = connect.unwrap_or(self.deadlines.connect);
        let key = ClientKey { tls: tls.fingerprint(), limit, connect, is_direct };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, client)) = clients.get(&key)
            && made.elapsed() < CLIENT_AGE_MAX
        {
            return Ok(client.clone());
        }
        let config = tls.client_config().map_err(|error| Problem::Setup(SetupError::Tls(error)))?;
        let resolver = Reachable { dns: self.dns.clone(), limit, exempt: Arc::clone(&self.proxies) };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .dns_resolver(Arc::new(resolver))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .user_agent(&self.user_agent)
            .connect_timeout(connect)
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(Duration::from_secs(15));
        if is_direct {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| Problem::Setup(SetupError::Client(error)))?;
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(key, (Instant::now(), client.clone()));
        Ok(client)
    }

    /// Waits for a step of an exchange under the reply deadline.
    pub(crate) async fn within<T>(
        &self,
        what: &'static str,
        step: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, Problem> {
        let after = self.deadlines.reply;
        match tokio::time::timeout(after, step).await {
            Ok(result) => result.map_err(|error| connection_problem(error, self.deadlines.connect)),
            Err(_) => Err(Problem::Timeout { what, after }),
        }
    }

    /// Reads a small body, bounded in length and time.
    pub(crate) async fn read_bounded(
        &self,
        mut response: Response,
        what: &'static str,
        limit: u64,
    ) -> Result<Bytes, Problem> {
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(Problem::TooLarge { what, limit });
        }
        let deadline = Instant::now() + self.deadlines.reply;
        let mut body = BytesMut::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(chunk) = tokio::time::timeout(left, response.chunk()).await else {
                return Err(Problem::Timeout { what, after: self.deadlines.reply });
            };
            match chunk.map_err(|error| connection_problem(error, self.deadlines.connect))? {
                None => return Ok(body.freeze()),
                Some(chunk) if (body.len() + chunk.len()) as u64 > limit => {
                    return Err(Problem::TooLarge { what, limit });
                }
                Some(chunk) => body.extend_from_slice(&chunk),
            }
        }
    }

    /// Turns a reply of failure into an error. What a foreign server says is not passed on: a
    /// redirect must not make this node read out internal pages.
    pub(crate) async fn refusal(&self, response: Response, is_own: bool) -> Problem {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse::<u64>().ok())
            .map(Duration::from_secs);
        let is_text = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_none_or(|value| value.contains("json") || value.starts_with("text/plain"));
        let excerpt = if is_own && is_text {
            match self.read_bounded(response, "error", ERROR_BODY_MAX).await {
                Ok(body) => excerpt(&body),
                Err(_) => String::new(),
            }
        } else {
            String::new()
        };
        Problem::Status { status, excerpt, retry_after }
    }
}

/// Signed URLs are secrets too: no error carries one.
pub(crate) fn connection_problem(error: reqwest::Error, connect: Duration) -> Problem {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(RefusedAddress(host)) = cause.downcast_ref::<RefusedAddress>() {
            return Problem::Address { host: host.clone() };
        }
        source = cause.source();
    }
    if error.is_timeout() && error.is_connect() {
        return Problem::Timeout { what: "connection", after: connect };
    }
    Problem::Connection(error.without_url())
}

pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(crate) fn redirect_target(
    from: &Url,
    origin: &Origin,
    headers: &HeaderMap,
) -> Result<(Url, Origin), Problem> {
    let refused = |target: &str, reason| Problem::Redirect { target: target.to_owned(), reason };
    let location = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| refused(&origin.to_string(), "no location"))?;
    let mut next = from.join(location).map_err(|_| refused("?", "location is not a URL"))?;
    next.set_fragment(None);
    let target = Origin::of(&next).ok_or_else(|| refused(next.scheme(), "neither http nor https"))?;
    if origin.is_secure() && !target.is_secure() {
        return Err(refused(&target.to_string(), "from https to http"));
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(refused(&target.to_string(), "user name in the URL"));
    }
    Ok((next, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(from: &str, location: &str) -> Result<String, String> {
        let from = Url::parse(from).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.parse().unwrap());
        redirect_target(&from, &Origin::of(&from).unwrap(), &headers)
            .map(|(url, _)| url.to_string())
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn redirects_are_resolved_or_refused() {
        assert_eq!(target("https://a.io/v2/x", "/y?z=1#f").unwrap(), "https://a.io/y?z=1");
        assert_eq!(target("https://a.io/v2/x", "//b.io/y").unwrap(), "https://b.io/y");
        assert_eq!(target("http://a.io/", "https://a.io/").unwrap(), "https://a.io/");
        for location in ["http://a.io/", "http://b.io/?sig=SECRET", "ftp://a.io/", "file:///etc/passwd"] {
            let error = target("https://a.io/", location).unwrap_err();
            assert!(!error.contains("SECRET"), "{error}");
        }
        assert!(target("https://a.io/", "https://user:pw@b.io/").is_err());
        assert!(target("https://a.io/", "https://").is_err());
    }
}
