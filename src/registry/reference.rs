//! Image references: `registry/path[:tag][@digest]`, in the one normal form.
//!
//! The grammar is that of the distribution project, with its Docker Hub rules: a first component
//! without dot, colon or capital letter that is not `localhost` belongs to `docker.io`, a
//! single component there is in `library/`, and a reference with neither tag nor digest means
//! `latest`. Parsing is by hand and linear: the text comes from pod authors.

use std::fmt;
use std::str::FromStr;

use pinnace_store::Digest;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

/// Longest `registry/path` (distribution, reference.go, NameTotalLengthMax).
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;
/// Name, tag and a sha512 digest with their separators fit in this.
const TEXT_MAX: usize = NAME_MAX + 1 + TAG_MAX + 1 + "sha512:".len() + 128;

const HUB: &str = "docker.io";
const HUB_OLD: &str = "index.docker.io";
const HUB_OFFICIAL: &str = "library";
const LATEST: &str = "latest";

/// Why a string is not an image reference.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// There is nothing to parse.
    #[error("image reference is empty")]
    Empty,
    /// The text or its name part is longer than any registry accepts.
    #[error("image reference is longer than {limit} characters")]
    TooLong {
        /// The limit that was passed.
        limit: usize,
    },
    /// The registry part is not `host[:port]`.
    #[error("{0:?} is not a registry host")]
    Host(String),
    /// A path component breaks the grammar.
    #[error("{0:?} is not a repository name component")]
    Component(String),
    /// A repository name has a capital letter, which people often try.
    #[error("repository name {0:?} must be lower-case")]
    Uppercase(String),
    /// The part after the colon is not a tag.
    #[error("{0:?} is not a tag")]
    Tag(String),
    /// The name is 64 hex digits, which everyone reads as an image id.
    #[error("{0:?} is an image id, not a repository name")]
    ImageId(String),
    /// The part after `@` is not a digest.
    #[error("invalid digest in image reference")]
    Digest(#[from] pinnace_store::digest::ParseError),
}

/// Where an image is found: always valid, always normalised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as `host[:port]`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within its registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The repository with its registry: `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The tag, if one was written or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => LATEST.to_owned(),
        }
    }

    /// `repository:tag`, or nothing for a reference by digest: a digest pull names no tag, even if
    /// one was written beside it.
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.digest, &self.tag) {
            (None, Some(tag)) => Some(format!("{}/{}:{tag}", self.registry, self.path)),
            _ => None,
        }
    }

    /// `repository@digest`.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.registry, self.path)
    }

    /// The short form that people write: `busybox:latest`.
    pub fn familiar(&self) -> String {
        let short = match self.path.strip_prefix("library/") {
            Some(single) if !single.contains('/') => single,
            _ => &self.path,
        };
        // A short form is only used when it is read back as the same name.
        let unambiguous = self.registry == HUB
            && split_registry(short).is_ok_and(|(registry, path)| registry == HUB && path == self.path);
        self.with_suffix(if unambiguous { short.to_owned() } else { self.repository() })
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        if text.len() > TEXT_MAX {
            return Err(ParseError::TooLong { limit: TEXT_MAX });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon after the last slash starts a tag; before it, a port.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ParseError::Tag(tag.to_owned()));
        }
        if name.is_empty() {
            return Err(ParseError::Empty);
        }
        let (registry, path) = split_registry(name)?;
        for component in path.split('/') {
            if !is_component(component) {
                if component.chars().any(|c| c.is_ascii_uppercase())
                    && is_component(&component.to_ascii_lowercase())
                {
                    return Err(ParseError::Uppercase(path));
                }
                return Err(ParseError::Component(component.to_owned()));
            }
        }
        if registry.len() + 1 + path.len() > NAME_MAX {
            return Err(ParseError::TooLong { limit: NAME_MAX });
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(LATEST.to_owned()),
        };
        Ok(Self { registry, path, tag, digest })
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

fn split_registry(name: &str) -> Result<(String, String), ParseError> {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry_part(first) => {
            if !is_host(first) {
                return Err(ParseError::Host(first.to_owned()));
            }
            (if first == HUB_OLD { HUB } else { first }, rest)
        }
        _ => (HUB, name),
    };
    if registry == HUB && !path.contains('/') {
        if path.len() == 64 && path.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ParseError::ImageId(path.to_owned()));
        }
        return Ok((HUB.to_owned(), format!("{HUB_OFFICIAL}/{path}")));
    }
    Ok((registry.to_owned(), path.to_owned()))
}

/// Whether a name says nothing of a registry, so that it depends on the node where it is looked for.
pub(crate) fn is_short(name: &str) -> bool {
    match name.split_once('/') {
        Some((first, _)) => !is_registry_part(first),
        None => true,
    }
}

pub(crate) fn is_registry_part(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) if port.starts_with(':') => (address, Some(&port[1..])),
            _ => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let host_ok = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    };
    let port_ok = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    host_ok && port_ok
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    bytes
        .split(|b| is_word(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= TAG_MAX
        && bytes.first().is_some_and(|b| is_word(*b))
        && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn normal(text: &str) -> String {
        text.parse::<Reference>().unwrap_or_else(|error| panic!("{text}: {error}")).to_string()
    }

    #[test]
    fn docker_hub_names_are_completed() {
        assert_eq!(normal("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(normal("grafana/loki"), "docker.io/grafana/loki:latest");
        assert_eq!(normal("docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("index.docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("index.docker.io/a/b"), "docker.io/a/b:latest");
        assert_eq!(normal(&format!("busybox@{DIGEST}")), format!("docker.io/library/busybox@{DIGEST}"));
        assert_eq!(normal(&format!("busybox:1@{DIGEST}")), format!("docker.io/library/busybox:1@{DIGEST}"));
    }

    #[test]
    fn registries_are_recognised() {
        for (text, registry, path) in [
            ("quay.io/a", "quay.io", "a"),
            ("localhost/a", "localhost", "a"),
            ("localhost:5000/a/b/c", "localhost:5000", "a/b/c"),
            ("host:80/a:t", "host:80", "a"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", "a"),
            ("[::1]:5000/a", "[::1]:5000", "a"),
            ("[::1]/a", "[::1]", "a"),
            ("Host/a", "Host", "a"),
            ("a--b/c__d.e_f", "docker.io", "a--b/c__d.e_f"),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((reference.registry(), reference.path()), (registry, path), "{text}");
        }
    }

    #[test]
    fn names_for_people_and_for_the_cri() {
        let by_tag: Reference = "busybox:1".parse().unwrap();
        assert_eq!(by_tag.familiar(), "busybox:1");
        assert_eq!(by_tag.repo_tag().unwrap(), "docker.io/library/busybox:1");
        assert_eq!(by_tag.target(), "1");
        let digest: Digest = DIGEST.parse().unwrap();
        assert_eq!(by_tag.repo_digest(&digest), format!("docker.io/library/busybox@{DIGEST}"));
        let by_digest: Reference = format!("quay.io/a/b:1@{DIGEST}").parse().unwrap();
        assert_eq!(by_digest.repo_tag(), None);
        assert_eq!(by_digest.target(), DIGEST);
        assert_eq!(by_digest.familiar(), format!("quay.io/a/b:1@{DIGEST}"));
        assert_eq!("a/b".parse::<Reference>().unwrap().familiar(), "a/b:latest");
        for kept in ["docker.io/localhost/a:1", "docker.io/library/a/b:1"] {
            assert_eq!(
                kept.parse::<Reference>().unwrap().familiar().parse::<Reference>().unwrap(),
                kept.parse().unwrap()
            );
        }
    }

    #[test]
    fn hostile_text_is_refused() {
        let long = "a".repeat(255);
        for text in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            ":tag",
            "a:",
            "a:-b",
            "a:b/c:d:e",
            "a@b",
            "a@sha256:abc",
            "a:.b",
            "Busybox",
            "quay.io/A",
            "a/B",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a_",
            "_a/b",
            "../../etc/passwd",
            "quay.io/../v2",
            "quay.io/a/../b",
            "host:0/a",
            "host:99999/a",
            "host:+1/a",
            "host:/a",
            "-h.io/a",
            "h..io/a",
            "[::1/a",
            "[::1]x/a",
            "[zz]/a",
            "user@host.io/a",
            "http://host.io/a",
            "host.io/a b",
            "host.io/a\n",
            "host.io/a%2f",
            "host.io/a?x",
            "héllo",
            &long,
            &format!("a:{}", "t".repeat(129)),
            &DIGEST[7..],
            &"a/".repeat(1 << 16),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert_eq!("a/B".parse::<Reference>(), Err(ParseError::Uppercase("a/B".to_owned())));
        assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn the_normal_form_is_stable(text in "[a-zA-Z0-9._:/@\\[\\]-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                proptest::prop_assert_eq!(&again, &reference);
                let familiar: Reference = reference.familiar().parse().unwrap();
                proptest::prop_assert_eq!(&familiar, &reference);
            }
        }
    }
}
