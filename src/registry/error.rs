//! What can go wrong between a reference and its bytes, and how callers tell the cases apart.

use std::time::Duration;

use pinnace_store::Digest;

use crate::{Reference, auth, hosts, manifest, reference};

/// Longest part of a registry's error body that is shown.
const EXCERPT_MAX: usize = 400;

/// What a caller can do about an error; the daemon maps it to a gRPC code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The reference or the credentials are malformed.
    InvalidArgument,
    /// The registry's configuration on this node is wrong.
    Configuration,
    /// There is no such image, or none for this machine.
    NotFound,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// Credentials are good but do not suffice.
    Forbidden,
    /// The registry refuses for now: too many requests.
    RateLimited,
    /// The registry cannot be reached or fails; trying later may help.
    Unavailable,
    /// The registry is there but does not go on.
    Timeout,
    /// What came is not what was asked for: wrong digest, wrong length.
    DataLoss,
    /// The image is malformed, or of a kind that cannot run here.
    InvalidImage,
    /// The registry asked for something that would not be safe.
    Refused,
}

/// Why an image or blob could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a reference.
    #[error("parse image reference")]
    Reference(#[from] reference::ParseError),
    /// The credentials are malformed.
    #[error("read credentials")]
    Auth(#[from] auth::Error),
    /// The node's configuration for this registry cannot be used.
    #[error("configuration of registry {registry}")]
    Hosts {
        /// The registry of the reference.
        registry: String,
        /// What is wrong with it.
        #[source]
        source: hosts::Error,
    },
    /// The name is not one that this node looks for.
    #[error("image name {name:?}")]
    Name {
        /// What was written.
        name: String,
        /// Why not.
        #[source]
        source: hosts::Error,
    },
    /// A registry or its token service did not do what was asked.
    #[error("{reference} from {host}")]
    Exchange {
        /// What was being fetched.
        reference: String,
        /// The server that was asked.
        host: String,
        /// What happened.
        #[source]
        source: Problem,
    },
    /// The registry delivered, but it is not an image for this machine.
    #[error("image {reference}")]
    Image {
        /// The image.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: ImageProblem,
    },
}

/// What is wrong with an image that arrived whole.
#[derive(Debug, thiserror::Error)]
pub enum ImageProblem {
    /// A document is malformed or not supported.
    #[error(transparent)]
    Document(#[from] manifest::Error),
    /// No entry of the index suits.
    #[error("no image for {wanted} among {offered}")]
    Platform {
        /// The machine.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// Indexes that lead to indexes that lead to indexes.
    #[error("indexes are nested more than {limit} deep")]
    Nesting {
        /// How deep is allowed.
        limit: usize,
    },
    /// A document that must be small is not.
    #[error("{what} of {size} bytes is larger than {limit} bytes")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its claimed size.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// What went wrong in talking to a server.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The server answered with a status that is not success.
    #[error("status {status}{}", Excerpt(.excerpt))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The start of the body, made printable.
        excerpt: String,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// The server does not accept the credentials, or wants some.
    #[error("{}{}", if *.anonymous { "authentication required" } else { "credentials were not accepted" }, Excerpt(.excerpt))]
    Unauthorized {
        /// Whether no credentials were sent.
        anonymous: bool,
        /// The start of the body, made printable.
        excerpt: String,
    },
    /// The token service of the registry did not give a token.
    #[error("token from {host}")]
    Token {
        /// The token service.
        host: String,
        /// What happened there.
        #[source]
        source: Box<Problem>,
    },
    /// The token service's answer has no token.
    #[error("reply has no usable token")]
    NoToken,
    /// The registry names a token service that must not see the credentials.
    #[error(
        "registry names the token service {realm:?}, which is not its own: credentials were not sent \
         (list it in token_realms to trust it)"
    )]
    Realm {
        /// The token service.
        realm: String,
    },
    /// The server could not be reached, or the connection broke.
    #[error("connection failed")]
    Connection(#[source] reqwest::Error),
    /// The body ended early and could not be resumed.
    #[error("transfer ended after {received} of {expected} bytes")]
    Cut {
        /// Bytes that arrived.
        received: u64,
        /// Bytes that should have.
        expected: u64,
    },
    /// Nothing, or almost nothing, came for too long.
    #[error("no {what} for {}s", .after.as_secs())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// A reply that must be small is not.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// Which reply.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The bytes are not what was asked for.
    #[error("content has digest {actual}, not {expected}")]
    Digest {
        /// What was asked for.
        expected: Box<Digest>,
        /// What came.
        actual: Box<Digest>,
    },
    /// The length is not what the descriptor says.
    #[error("content has {actual} bytes, not {expected}")]
    Length {
        /// By the descriptor.
        expected: u64,
        /// By the server; the least it can be, if it did not end.
        actual: u64,
    },
    /// A range was answered with another range.
    #[error("server sent range {0:?}, which was not asked for")]
    Range(String),
    /// A redirect that is not followed.
    #[error("redirect to {target} refused: {reason}")]
    Redirect {
        /// The origin that was pointed at.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// An address that is not this registry's business.
    #[error("{host} is at an address that only this node or site can reach")]
    Address {
        /// The host that resolved there.
        host: String,
    },
    /// The TLS or HTTP client cannot be set up.
    #[error("set up connection")]
    Setup(#[source] SetupError),
}

/// Why no HTTP client could be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The TLS configuration is not usable.
    #[error("TLS configuration")]
    Tls(#[from] rustls::Error),
    /// The client does not build.
    #[error("HTTP client")]
    Client(#[source] reqwest::Error),
    /// A URL could not be put together.
    #[error("URL {0:?}")]
    Url(String),
}

impl Error {
    pub(crate) fn exchange(reference: &Reference, host: &str, source: Problem) -> Self {
        Self::Exchange { reference: reference.to_string(), host: host.to_owned(), source }
    }

    pub(crate) fn image(reference: &Reference, source: impl Into<ImageProblem>) -> Self {
        Self::Image { reference: reference.to_string(), source: source.into() }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::Auth(_) => ErrorKind::InvalidArgument,
            Self::Name { source: hosts::Error::ShortName { .. }, .. } => ErrorKind::InvalidArgument,
            Self::Hosts { source: hosts::Error::Blocked { .. }, .. } => ErrorKind::Forbidden,
            Self::Hosts { .. } | Self::Name { .. } => ErrorKind::Configuration,
            Self::Exchange { source, .. } => source.kind(),
            Self::Image { source: ImageProblem::Platform { .. }, .. } => ErrorKind::NotFound,
            Self::Image { .. } => ErrorKind::InvalidImage,
        }
    }
}

impl Problem {
    pub(crate) fn digest(expected: Digest, actual: Digest) -> Self {
        Self::Digest { expected: Box::new(expected), actual: Box::new(actual) }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Status { status, .. } => match status {
                404 => ErrorKind::NotFound,
                401 => ErrorKind::Unauthorized,
                403 => ErrorKind::Forbidden,
                408 | 504 => ErrorKind::Timeout,
                429 => ErrorKind::RateLimited,
                _ => ErrorKind::Unavailable,
            },
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            // A token service refuses with 400, 401, 403 or 404, as it likes.
            Self::Token { source, .. } => match source.kind() {
                ErrorKind::NotFound => ErrorKind::Unauthorized,
                kind => match **source {
                    Self::Status { status: 400, .. } => ErrorKind::Unauthorized,
                    _ => kind,
                },
            },
            Self::NoToken | Self::Connection(_) | Self::Cut { .. } | Self::Range(_) => ErrorKind::Unavailable,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::TooLarge { .. } => ErrorKind::InvalidImage,
            Self::Digest { .. } | Self::Length { .. } => ErrorKind::DataLoss,
            Self::Realm { .. } | Self::Redirect { .. } | Self::Address { .. } => ErrorKind::Refused,
            Self::Setup(_) => ErrorKind::Configuration,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Self::Token { source, .. } => source.is_transient(),
            Self::Connection(error) => !error.is_builder(),
            Self::Cut { .. } | Self::Timeout { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Token { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

struct Excerpt<'a>(&'a str);

impl std::fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// The message in a registry's error body: its `errors` list if it is one (distribution-spec,
/// "Error Codes"), else its text. Bounded and printable: it ends up in events and terminals.
pub(crate) fn excerpt(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Body>(body) {
        Ok(Body { errors, details }) if !errors.is_empty() || details.is_some() => errors
            .iter()
            .take(4)
            .map(|entry| match (entry.code.as_str(), entry.message.as_str()) {
                (code, "") => code.to_owned(),
                ("", message) => message.to_owned(),
                (code, message) => format!("{code}: {message}"),
            })
            .chain(details)
            .collect::<Vec<_>>()
            .join("; "),
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    let mut printable: String = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER && !is_bidi(*c))
        .take(EXCERPT_MAX + 1)
        .collect();
    if printable.chars().count() > EXCERPT_MAX {
        printable.pop();
        printable.push('…');
    }
    printable
}

/// Characters that reorder what a terminal shows (CVE-2021-42574).
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_are_read_or_quoted() {
        assert_eq!(
            excerpt(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#),
            "MANIFEST_UNKNOWN: manifest unknown"
        );
        assert_eq!(
            excerpt(br#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(excerpt(b"<html>\n  bad\tgateway </html>"), "<html> bad gateway </html>");
        assert_eq!(excerpt(b"a\x1b[31mred\x07\xff"), "a[31mred");
        assert_eq!(excerpt("a\u{202e}b".as_bytes()), "ab");
        assert_eq!(excerpt(b""), "");
        assert_eq!(excerpt(&vec![b'x'; 1 << 16]).chars().count(), EXCERPT_MAX + 1);
    }

    #[test]
    fn kinds_follow_statuses() {
        let status = |status| Problem::Status { status, excerpt: String::new(), retry_after: None };
        for (code, kind, transient) in [
            (400, ErrorKind::Unavailable, false),
            (401, ErrorKind::Unauthorized, false),
            (403, ErrorKind::Forbidden, false),
            (404, ErrorKind::NotFound, false),
            (429, ErrorKind::RateLimited, true),
            (500, ErrorKind::Unavailable, true),
            (503, ErrorKind::Unavailable, true),
            (504, ErrorKind::Timeout, true),
        ] {
            assert_eq!(status(code).kind(), kind, "{code}");
            assert_eq!(status(code).is_transient(), transient, "{code}");
        }
        let token = |code| Problem::Token { host: "h".into(), source: Box::new(status(code)) };
        assert_eq!(token(404).kind(), ErrorKind::Unauthorized);
        assert_eq!(token(400).kind(), ErrorKind::Unauthorized);
        assert_eq!(token(503).kind(), ErrorKind::Unavailable);
        assert_eq!(token(401).to_string(), "token from h");
    }
}
