//! Where a registry's images come from: containerd's `certs.d/<host>/hosts.toml`, read per pull.
//!
//! ```text
//! certs.d/
//!   docker.io/hosts.toml         server and mirrors of docker.io
//!   example.com_5000_/           a registry with a port; `example.com:5000` works too
//!     ca.crt                     without hosts.toml: Docker's layout, *.crt, *.cert with *.key
//!   _default/hosts.toml          every registry without a directory of its own
//! ```
//!
//! The result is a list of [`Endpoint`]s, mirrors first and the registry's own server last;
//! [`crate::plan`] puts it together with what `registries.conf` says.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use toml::Spanned;
use url::Url;

use crate::origin::{Origin, is_loopback_host};
use crate::tls::TlsPolicy;

/// Longest configuration, certificate or key file.
const FILE_MAX: u64 = 1 << 20;

/// Why a registry's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML of the right shape.
    #[error("parse {}", .path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value has the right type but no meaning.
    #[error("{}: {key} {value:?} is not {expected}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A certificate or key file has none.
    #[error("{}: no {expected} in PEM form", .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        expected: &'static str,
    },
    /// Every configured server is restricted to something else.
    #[error("no configured server has the capability to pull or resolve")]
    Incapable,
    /// The registry's name does not make a URL.
    #[error("{0:?} is not a registry host")]
    Host(String),
    /// The administrator does not want anything from there.
    #[error("{}: images that begin with {prefix:?} are blocked", .path.display())]
    Blocked {
        /// The beginning of references that the refusal is about.
        prefix: String,
        /// The file that says so.
        path: PathBuf,
    },
    /// A name without a registry, where the administrator wants one.
    #[error("{}: {name:?} names no registry, and {reason}; write the registry before the name", .path.display())]
    ShortName {
        /// What was written.
        name: String,
        /// What the file says.
        reason: String,
        /// The file.
        path: PathBuf,
    },
    /// Credentials in a file cannot be used.
    #[error("{}: credentials of {key:?}", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// What is wrong with it.
        #[source]
        source: crate::auth::Error,
    },
    /// The file is not JSON of the right shape.
    #[error("parse {}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

/// What a host may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Fetch by digest.
    pub(crate) pull: bool,
    /// Turn a tag into a digest.
    pub(crate) resolve: bool,
    /// Accept pushes.
    pub(crate) push: bool,
}

const EVERYTHING: Capabilities = Capabilities { pull: true, resolve: true, push: true };

/// One server that may have a registry's images.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The API's root without a final slash: `https://host/v2`.
    base: Url,
    pub(crate) origin: Origin,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: Arc<TlsPolicy>,
    /// Sent to this origin with every request.
    pub(crate) headers: HeaderMap,
    /// Whether this is the registry itself rather than a mirror.
    pub(crate) is_upstream: bool,
    pub(crate) connect_timeout: Option<Duration>,
    /// Told to a mirror that serves several registries: the one that is meant.
    pub(crate) namespace: Option<String>,
    /// The file that names this server.
    pub(crate) decided_by: Option<PathBuf>,
}

impl Endpoint {
    /// `<base>/<path>/<kind>/<name>`.
    pub(crate) fn url(&self, path: &str, kind: &str, name: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}/{kind}/{name}", self.base.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// The API's root, for people.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// The same server with any certificate, and then without TLS, as the administrator allows it.
    pub(crate) fn insecure(self) -> Vec<Self> {
        if !self.origin.is_secure() {
            return vec![self];
        }
        let mut plain = self.clone();
        let tls = TlsPolicy { skip_verify: true, ..(*self.tls).clone() };
        let over_tls = Self { tls: Arc::new(tls), ..self };
        // From one special scheme to another: always possible, and a default port follows.
        let is_plain = plain.base.set_scheme("http").is_ok();
        match Origin::of(&plain.base).filter(|_| is_plain) {
            Some(origin) => {
                plain.origin = origin;
                vec![over_tls, plain]
            }
            None => vec![over_tls],
        }
    }
}

/// The node's configuration of registries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    /// Directories like `/etc/containerd/certs.d`, first match wins.
    pub(crate) dirs: Vec<PathBuf>,
}

impl Hosts {
    /// The servers to ask for images of `registry`, in order. Reads files.
    pub(crate) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, Error> {
        for dir in &self.dirs {
            for name in directory_names(registry) {
                let dir = dir.join(name);
                if let Some(endpoints) = self.read(&dir, registry)? {
                    return Ok(endpoints);
                }
            }
        }
        Ok(vec![self.upstream(registry, TlsPolicy::default())?])
    }

    /// The endpoints that one directory configures; nothing if it does not exist or is empty.
    fn read(&self, dir: &Path, registry: &str) -> Result<Option<Vec<Endpoint>>, Error> {
        let file = dir.join("hosts.toml");
        let text = match read_file(&file) {
            Ok(bytes) => bytes,
            Err(Error::Read { source, .. }) if is_absent(&source) => {
                return Ok(match docker_certificates(dir)? {
                    Some(tls) => {
                        let mut upstream = self.upstream(registry, tls)?;
                        upstream.decided_by = Some(dir.to_owned());
                        Some(vec![upstream])
                    }
                    None => None,
                });
            }
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&text);
        let raw: RawFile = toml::from_str(&text)
            .map_err(|source| Error::Toml { path: file.clone(), source: Box::new(source) })?;

        let mut hosts: Vec<(usize, String, RawHost)> =
            raw.host.into_iter().map(|(name, host)| (name.span().start, name.into_inner(), host)).collect();
        // The order in the file is the order of preference; a map has lost it.
        hosts.sort_by_key(|(position, ..)| *position);

        let mut endpoints = Vec::new();
        for (_, name, host) in hosts {
            let base = server_url(&file, "host", &name, host.override_path)?;
            let mut endpoint = host.endpoint(dir, &file, base, false)?;
            endpoint.namespace = Some(registry.to_owned());
            endpoints.push(endpoint);
        }
        let own = RawHost {
            capabilities: raw.capabilities,
            ca: raw.ca,
            client: raw.client,
            skip_verify: raw.skip_verify,
            header: raw.header,
            override_path: raw.override_path,
            dial_timeout: raw.dial_timeout,
        };
        let base = match &raw.server {
            Some(server) => server_url(&file, "server", server, own.override_path)?,
            None => self.default_url(registry)?,
        };
        // A host entry may repeat the server with other settings: then those hold.
        if !endpoints.iter().any(|endpoint: &Endpoint| endpoint.base == base) {
            endpoints.push(own.endpoint(dir, &file, base, true)?);
        } else if let Some(endpoint) = endpoints.iter_mut().find(|endpoint| endpoint.base == base) {
            endpoint.is_upstream = true;
            endpoint.namespace = None;
        }
        Ok(Some(endpoints))
    }

    fn upstream(&self, registry: &str, tls: TlsPolicy) -> Result<Endpoint, Error> {
        let base = self.default_url(registry)?;
        let origin = Origin::of(&base).ok_or_else(|| Error::Host(registry.to_owned()))?;
        Ok(Endpoint {
            base,
            origin,
            capabilities: EVERYTHING,
            tls: Arc::new(tls),
            headers: HeaderMap::new(),
            is_upstream: true,
            connect_timeout: None,
            namespace: None,
            decided_by: None,
        })
    }

    /// https, but plain HTTP where the name itself says this machine.
    fn default_url(&self, registry: &str) -> Result<Url, Error> {
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let bad = || Error::Host(registry.to_owned());
        let secure = Url::parse(&format!("https://{host}/v2")).map_err(|_| bad())?;
        let name = secure.host_str().ok_or_else(bad)?;
        if is_loopback_host(name) && secure.port_or_known_default() != Some(443) {
            return Url::parse(&format!("http://{host}/v2")).map_err(|_| bad());
        }
        Ok(secure)
    }
}

/// containerd's names for a registry's directory, most specific first.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    let port_at = registry.rfind(':').filter(|at| !registry[*at..].contains(']'));
    if let Some(at) = port_at {
        names.push(format!("{}_{}_", &registry[..at], &registry[at + 1..]));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

#[derive(Deserialize)]
struct RawFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, RawHost>,
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<RawClient>,
    skip_verify: Option<bool>,
    header: Option<BTreeMap<String, OneOrMany>>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<RawClient>,
    skip_verify: Option<bool>,
    header: Option<BTreeMap<String, OneOrMany>>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// `"both.pem"`, `["both.pem"]` or `[["cert.pem", "key.pem"]]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawClient {
    File(String),
    Files(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

impl RawHost {
    fn endpoint(&self, dir: &Path, file: &Path, base: Url, is_upstream: bool) -> Result<Endpoint, Error> {
        let value = |key, value: &str, expected| Error::Value {
            path: file.to_owned(),
            key,
            value: value.to_owned(),
            expected,
        };
        let capabilities = match &self.capabilities {
            None => EVERYTHING,
            Some(names) => {
                let mut some = Capabilities { pull: false, resolve: false, push: false };
                for name in names {
                    match name.to_ascii_lowercase().as_str() {
                        "pull" => some.pull = true,
                        "resolve" => some.resolve = true,
                        "push" => some.push = true,
                        _ => return Err(value("capabilities", name, "pull, resolve or push")),
                    }
                }
                some
            }
        };
        let mut headers = HeaderMap::new();
        for (name, values) in self.header.iter().flatten() {
            let header = HeaderName::try_from(name).map_err(|_| value("header", name, "a header name"))?;
            for text in values.values() {
                let mut text =
                    HeaderValue::try_from(text).map_err(|_| value("header", name, "given a header value"))?;
                text.set_sensitive(true);
                headers.append(header.clone(), text);
            }
        }
        let connect_timeout = match &self.dial_timeout {
            None => None,
            Some(text) => Some(
                go_duration(text).ok_or_else(|| value("dial_timeout", text, "a duration like \"10s\""))?,
            ),
        };
        let mut tls = TlsPolicy { skip_verify: self.skip_verify.unwrap_or(false), ..TlsPolicy::default() };
        for path in self.ca.iter().flat_map(OneOrMany::values) {
            tls.roots.extend(certificates(&dir.join(path))?);
        }
        let pair = match &self.client {
            None => None,
            Some(RawClient::File(both)) => Some((both, both)),
            Some(RawClient::Files(files)) => match files.as_slice() {
                [both] => Some((both, both)),
                [] => None,
                [_, second, ..] => return Err(value("client", second, "the only client certificate")),
            },
            Some(RawClient::Pairs(pairs)) => match pairs.as_slice() {
                [] => None,
                [pair] => match pair.as_slice() {
                    [certificate, key] if !key.is_empty() => Some((certificate, key)),
                    [both] | [both, _] => Some((both, both)),
                    _ => return Err(value("client", &pair.join(", "), "a certificate and a key")),
                },
                [_, second, ..] => {
                    return Err(value("client", &second.join(", "), "the only client certificate"));
                }
            },
        };
        if let Some((certificate, key)) = pair {
            tls.client =
                Some((certificates(&dir.join(certificate))?, Arc::new(private_key(&dir.join(key))?)));
        }
        let origin = Origin::of(&base).ok_or_else(|| value("host", base.as_str(), "an http or https URL"))?;
        Ok(Endpoint {
            base,
            origin,
            capabilities,
            tls: Arc::new(tls),
            headers,
            is_upstream,
            connect_timeout,
            namespace: None,
            decided_by: Some(file.to_owned()),
        })
    }
}

fn server_url(file: &Path, key: &'static str, text: &str, override_path: bool) -> Result<Url, Error> {
    let bad = || Error::Value {
        path: file.to_owned(),
        key,
        value: text.to_owned(),
        expected: "an http or https URL without user, query or fragment",
    };
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&full).map_err(|_| bad())?;
    let plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !plain || Origin::of(&url).is_none() {
        return Err(bad());
    }
    if url.host_str() == Some("docker.io") {
        url.set_host(Some("registry-1.docker.io")).map_err(|_| bad())?;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if override_path || path.ends_with("/v2") {
        url.set_path(&path);
    } else {
        url.set_path(&format!("{path}/v2"));
    }
    Ok(url)
}

/// Docker's layout: authorities in `*.crt`, our certificate in `x.cert` with its key in `x.key`.
fn docker_certificates(dir: &Path) -> Result<Option<TlsPolicy>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(source) => return Err(Error::Read { path: dir.to_owned(), source }),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|source| Error::Read { path: dir.to_owned(), source })?.path());
    }
    paths.sort();
    let mut tls = TlsPolicy::default();
    let mut found = false;
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => {
                tls.roots.extend(certificates(&path)?);
                found = true;
            }
            Some("cert") if tls.client.is_none() => {
                let key = private_key(&path.with_extension("key"))?;
                tls.client = Some((certificates(&path)?, Arc::new(key)));
                found = true;
            }
            _ => {}
        }
    }
    Ok(found.then_some(tls))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read_file(path)?;
    let bad = || Error::Pem { path: path.to_owned(), expected: "certificate" };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|_| bad())?;
    if found.is_empty() { Err(bad()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&read_file(path)?)
        .map_err(|_| Error::Pem { path: path.to_owned(), expected: "private key" })
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| Error::Read { path: path.to_owned(), source })
}

pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Durations as Go writes them: `1s`, `500ms`, `1m30s`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let number: u32 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..unit_len] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[unit_len..];
    }
    (!total.is_zero()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(files: &[(&str, &str)]) -> (tempfile::TempDir, Hosts) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let hosts = Hosts { dirs: vec![dir.path().to_owned()] };
        (dir, hosts)
    }

    fn urls(hosts: &Hosts, registry: &str) -> Vec<String> {
        let endpoints = hosts.endpoints(registry).unwrap_or_else(|error| panic!("{error}"));
        endpoints.iter().map(|endpoint| endpoint.url("a/b", "manifests", "t").to_string()).collect()
    }

    fn certificate() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["registry.test".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn without_configuration() {
        let hosts = Hosts { dirs: vec!["/nonexistent".into()] };
        for (registry, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/a/b/manifests/t"),
            ("quay.io", "https://quay.io/v2/a/b/manifests/t"),
            ("quay.io:8443", "https://quay.io:8443/v2/a/b/manifests/t"),
            ("localhost:5000", "http://localhost:5000/v2/a/b/manifests/t"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/a/b/manifests/t"),
            ("[::1]:5000", "http://[::1]:5000/v2/a/b/manifests/t"),
            ("localhost:443", "https://localhost/v2/a/b/manifests/t"),
            ("localhost.evil.io:5000", "https://localhost.evil.io:5000/v2/a/b/manifests/t"),
        ] {
            assert_eq!(urls(&hosts, registry), [url], "{registry}");
        }
    }

    #[test]
    fn mirrors_come_in_file_order_and_the_server_last() {
        let (_dir, hosts) = configured(&[
            (
                "docker.io/hosts.toml",
                r#"
                server = "https://docker.io"
                [host."https://z.mirror"]
                  capabilities = ["pull", "resolve"]
                [host."http://a.mirror:5000/prefix"]
                  capabilities = ["pull"]
                [host."https://m.mirror/api"]
                  override_path = true
                  dial_timeout = "1m500ms"
                  [host."https://m.mirror/api".header]
                    x-one = "1"
                    x-two = ["2", "3"]
                "#,
            ),
            ("_default/hosts.toml", "[host.\"https://cache.local\"]\n"),
        ]);
        assert_eq!(
            urls(&hosts, "docker.io"),
            [
                "https://z.mirror/v2/a/b/manifests/t?ns=docker.io",
                "http://a.mirror:5000/prefix/v2/a/b/manifests/t?ns=docker.io",
                "https://m.mirror/api/a/b/manifests/t?ns=docker.io",
                "https://registry-1.docker.io/v2/a/b/manifests/t",
            ]
        );
        let endpoints = hosts.endpoints("docker.io").unwrap();
        assert_eq!(endpoints[1].capabilities, Capabilities { pull: true, resolve: false, push: false });
        assert_eq!(endpoints[2].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(endpoints[2].connect_timeout, Some(Duration::from_millis(60_500)));
        assert!(!format!("{:?}", endpoints[2]).contains("\"1\""), "headers may be secrets");
        assert_eq!(
            urls(&hosts, "quay.io"),
            ["https://cache.local/v2/a/b/manifests/t?ns=quay.io", "https://quay.io/v2/a/b/manifests/t"]
        );
    }

    #[test]
    fn directories_are_tried_in_order() {
        let with = |dirs: &[&str]| {
            let files: Vec<(String, String)> = dirs
                .iter()
                .map(|dir| (format!("{dir}/hosts.toml"), format!("server = \"https://{}.x\"", dir.len())))
                .collect();
            let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let (_dir, hosts) = configured(&files);
            urls(&hosts, "h.io:50").remove(0)
        };
        assert!(with(&["h.io_50_", "h.io:50", "_default"]).contains(&format!("//{}.x/", "h.io_50_".len())));
        assert!(with(&["h.io:50", "_default"]).contains(&format!("//{}.x/", "h.io:50".len())));
        assert!(with(&["_default"]).contains(&format!("//{}.x/", "_default".len())));
        assert!(with(&["other"]).starts_with("https://h.io:50/"));
    }

    #[test]
    fn certificates_are_found() {
        let (certificate, key) = certificate();
        let (_dir, hosts) = configured(&[
            ("a.io/hosts.toml", "ca = \"ca.pem\"\nclient = [[\"c.pem\", \"k.pem\"]]\nskip_verify = false\n"),
            ("a.io/ca.pem", &certificate),
            ("a.io/c.pem", &certificate),
            ("a.io/k.pem", &key),
            ("b.io/ca.crt", &certificate),
            ("b.io/x.cert", &certificate),
            ("b.io/x.key", &key),
            ("c.io/hosts.toml", "[host.\"https://c.io\"]\nskip_verify = true\n"),
        ]);
        for registry in ["a.io", "b.io"] {
            let endpoints = hosts.endpoints(registry).unwrap();
            let tls = &endpoints[0].tls;
            assert_eq!(tls.roots.len(), 1, "{registry}");
            assert!(tls.client.is_some() && !tls.skip_verify, "{registry}");
            tls.client_config().unwrap();
            let others = tls.for_others();
            assert!(others.client.is_none() && others.roots.len() == 1);
        }
        let endpoints = hosts.endpoints("c.io").unwrap();
        assert_eq!(endpoints.len(), 1);
        assert!(endpoints[0].is_upstream && endpoints[0].tls.skip_verify);
        assert!(!endpoints[0].tls.for_others().skip_verify);
        assert_ne!(endpoints[0].tls.fingerprint(), endpoints[0].tls.for_others().fingerprint());
    }

    #[test]
    fn bad_files_are_named() {
        for (text, part) in [
            ("server = 5", "parse"),
            ("server = ", "parse"),
            ("server = \"ftp://x\"", "server"),
            ("server = \"https://user:pw@x\"", "server"),
            ("capabilities = [\"fly\"]", "capabilities"),
            ("ca = \"missing.pem\"", "missing.pem"),
            ("ca = \"hosts.toml\"", "certificate"),
            ("dial_timeout = \"soon\"", "dial_timeout"),
            ("[header]\n\"a b\" = \"x\"", "header"),
        ] {
            let (_dir, hosts) = configured(&[("a.io/hosts.toml", text)]);
            let error = hosts.endpoints("a.io").unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}
