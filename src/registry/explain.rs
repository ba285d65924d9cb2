//! What decides a pull, for people: the same plan that a pull carries out, in words.

use std::fmt;
use std::path::{Path, PathBuf};

use hyper_util::client::proxy::matcher::Matcher;

use crate::Reference;
use crate::origin::is_loopback_host;
use crate::plan::Planned;

/// What a pull of a name would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// As it was written.
    pub name: String,
    /// What it means.
    pub reference: Reference,
    /// What was found where, in the order in which it counts.
    pub notes: Vec<Note>,
    /// The servers in the order in which they are asked.
    pub servers: Vec<Server>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The file that says it; nothing for what holds by itself.
    pub file: Option<PathBuf>,
    /// What it says.
    pub text: String,
}

impl Note {
    pub(crate) fn file(file: &Path, text: String) -> Self {
        Self { file: Some(file.to_owned()), text }
    }

    pub(crate) fn own(text: String) -> Self {
        Self { file: None, text }
    }
}

/// A server, and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The root of its API.
    pub url: String,
    /// The repository there.
    pub repository: String,
    /// Whether it is asked in place of the registry.
    pub is_mirror: bool,
    /// Whether it may say what a tag means.
    pub resolves: bool,
    /// Whether it may deliver content.
    pub pulls: bool,
    /// The file that names it; nothing for the registry itself.
    pub decided_by: Option<PathBuf>,
    /// How it proves who it is.
    pub trust: Trust,
    /// Whether we prove who we are by a certificate.
    pub client_certificate: bool,
    /// Names of headers that are sent along.
    pub headers: Vec<String>,
    /// Where the credentials are from.
    pub credentials: Credentials,
    /// The proxy that the environment names for it, without user and password.
    pub proxy: Option<String>,
}

/// How a server proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Not at all: plain HTTP.
    Plain,
    /// TLS, but any certificate will do.
    Anything,
    /// By the authorities of the system, and so many more.
    Authorities(usize),
}

/// Where credentials are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// There are none.
    Anonymous,
    /// They came with the request.
    Request,
    /// An entry of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        key: String,
    },
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("plain HTTP"),
            Self::Anything => f.write_str("TLS, any certificate"),
            Self::Authorities(0) => f.write_str("TLS, authorities of the system"),
            Self::Authorities(count) => write!(f, "TLS, authorities of the system and {count} configured"),
        }
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("none"),
            Self::Request => f.write_str("of the request"),
            Self::File { path, key } => write!(f, "{} of {}", key, path.display()),
        }
    }
}

impl Server {
    pub(crate) fn of(planned: &Planned) -> Self {
        let endpoint = &planned.endpoint;
        let trust = if !endpoint.origin.is_secure() {
            Trust::Plain
        } else if endpoint.tls.skip_verify {
            Trust::Anything
        } else {
            Trust::Authorities(endpoint.tls.roots.len())
        };
        let credentials = match &planned.credentials {
            None => Credentials::Anonymous,
            Some(credentials) => match &credentials.from {
                None => Credentials::Request,
                Some((path, key)) => Credentials::File { path: path.clone(), key: key.clone() },
            },
        };
        Self {
            url: endpoint.base().to_string(),
            repository: planned.path.clone(),
            is_mirror: !endpoint.is_upstream,
            resolves: endpoint.capabilities.resolve,
            pulls: endpoint.capabilities.pull,
            decided_by: endpoint.decided_by.clone(),
            trust,
            client_certificate: endpoint.tls.client.is_some(),
            headers: endpoint.headers.keys().map(ToString::to_string).collect(),
            credentials,
            proxy: proxy(&Matcher::from_env(), endpoint.base(), endpoint.origin.host()),
        }
    }
}

/// By the same rules as the HTTP client: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY.
fn proxy(environment: &Matcher, url: &url::Url, host: &str) -> Option<String> {
    if is_loopback_host(host) {
        return None;
    }
    let uri: http::Uri = url.as_str().parse().ok()?;
    let intercept = environment.intercept(&uri)?;
    let proxy = intercept.uri();
    Some(format!(
        "{}://{}",
        proxy.scheme_str().unwrap_or("http"),
        proxy.authority()?.as_str().rsplit('@').next()?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_for_whom_the_environment_says() {
        let environment = Matcher::builder()
            .http("http://plain.proxy:3128")
            .https("http://someone:s3cr3t@tls.proxy:3128")
            .no("10.0.0.0/8,.corp,exact.io,fd00::/8")
            .build();
        for (url, expected) in [
            ("https://quay.io/v2", Some("http://tls.proxy:3128")),
            ("http://old.io:5000/v2", Some("http://plain.proxy:3128")),
            ("https://10.1.2.3:5000/v2", None),
            ("https://11.1.2.3:5000/v2", Some("http://tls.proxy:3128")),
            ("https://[fd00::1]:5000/v2", None),
            ("https://registry.corp/v2", None),
            ("https://exact.io/v2", None),
            ("http://127.0.0.1:5000/v2", None),
            ("http://localhost:5000/v2", None),
        ] {
            let url = url::Url::parse(url).unwrap();
            let host = url.host_str().unwrap().to_owned();
            assert_eq!(proxy(&environment, &url, &host).as_deref(), expected, "{url}");
        }
    }
}
