//! Manifests, indexes and configs: parsed strictly, so that one digest has one meaning.
//!
//! A document is what its body says it is. A body that could be read both as an index and as a
//! manifest is refused (CVE-2021-41190), as are duplicate keys, and the digest of the bytes has
//! been verified before anything here sees them. Sizes in descriptors are claims: they are compared,
//! never allocated.

use std::collections::BTreeMap;

use pinnace_store::{DiffId, Digest};
use serde::{Deserialize, Serialize};

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// OCI layer, not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What an old registry stored for a config (distribution#1622).
const OCTET_STREAM: &str = "application/octet-stream";

/// Attached to build attestations in an index, which are no images.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// Most descriptors that one document may list.
const DESCRIPTORS_MAX: usize = 1_000;

/// Why bytes are not an image document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not the JSON that was expected.
    #[error("malformed {what}")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A schema 1 manifest: no digests of configs, refused by everyone since 2024.
    #[error("docker schema 1 manifests are not supported: push the image again with a current tool")]
    Schema1,
    /// The document is both an index and a manifest, or neither.
    #[error("document is {0}")]
    Ambiguous(&'static str),
    /// The media type of the response or descriptor contradicts the document.
    #[error("media type {claimed:?} of the {place} does not match the document's {actual:?}")]
    MediaType {
        /// Where the claim was made.
        place: &'static str,
        /// What was claimed.
        claimed: String,
        /// What the body is.
        actual: String,
    },
    /// The manifest is of something that is not a container image.
    #[error("{0:?} is not a container image")]
    Artifact(String),
    /// A layer cannot be used here.
    #[error("layer {digest} has unsupported media type {media_type:?}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The document lists more than any image needs.
    #[error("document lists {count} descriptors, more than {DESCRIPTORS_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Layers and their uncompressed digests do not pair up.
    #[error("manifest has {layers} layers but the config has {diff_ids} diff ids")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// The config is for another operating system.
    #[error("image is for {0:?}, not linux")]
    OperatingSystem(String),
}

/// A typed, sized link to content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content claims to be.
    #[serde(default)]
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where else it may be found; only honoured for foreign layers, and only when enabled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// What machine it is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<crate::Platform>,
}

impl Descriptor {
    /// A bare descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(bytes),
            size: bytes.len() as u64,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Whether an index entry describes another entry instead of being an image.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotations.contains_key(ATTESTATION)
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }

    /// What kind of document an index entry claims to be.
    pub(crate) fn kind(&self) -> Option<Kind> {
        Kind::of(&self.media_type)
    }
}

/// The two kinds of document that a reference can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Index,
    Manifest,
}

impl Kind {
    pub(crate) fn of(media_type: &str) -> Option<Self> {
        match media_type {
            OCI_INDEX | DOCKER_INDEX => Some(Self::Index),
            OCI_MANIFEST | DOCKER_MANIFEST => Some(Self::Manifest),
            _ => None,
        }
    }
}

/// A list of manifests for different machines.
#[derive(Clone, Debug)]
pub struct Index {
    /// Its entries, in the publisher's order of preference.
    pub manifests: Vec<Descriptor>,
}

/// One image for one machine.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The config blob, whose digest is the image id.
    pub config: Descriptor,
    /// The layers, base first.
    pub layers: Vec<Descriptor>,
}

/// A parsed index or manifest.
#[derive(Clone, Debug)]
pub enum Document {
    /// Many images.
    Index(Index),
    /// One image.
    Manifest(Box<Manifest>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses `bytes`, and returns the media type that the document really has.
    ///
    /// `claims` are media types given by others, with the place of each: a `Content-Type` header,
    /// the descriptor that led here. A known type must agree; other types say nothing.
    pub fn parse(bytes: &[u8], claims: &[(&'static str, &str)]) -> Result<(Self, String), Error> {
        for (_, claim) in claims {
            if matches!(*claim, DOCKER_SCHEMA1 | DOCKER_SCHEMA1_SIGNED) {
                return Err(Error::Schema1);
            }
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { what: "manifest", source })?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(Error::Schema1);
        }
        if raw.schema_version != Some(2) {
            return Err(Error::Ambiguous("not of schema version 2"));
        }
        let (document, kind, count) = match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => {
                let count = manifests.len();
                (Self::Index(Index { manifests }), Kind::Index, count)
            }
            (None, Some(config), Some(layers)) => {
                let count = layers.len();
                (Self::Manifest(Box::new(Manifest { config, layers })), Kind::Manifest, count)
            }
            (Some(_), _, _) => return Err(Error::Ambiguous("both an index and a manifest")),
            (None, _, _) => return Err(Error::Ambiguous("neither an index nor a manifest")),
        };
        if count > DESCRIPTORS_MAX {
            return Err(Error::TooMany { count });
        }
        let header = claims.iter().find(|(_, claim)| Kind::of(claim) == Some(kind));
        let actual = match raw.media_type {
            Some(own) if Kind::of(&own) == Some(kind) => own,
            Some(own) if !own.is_empty() => {
                let actual = if kind == Kind::Index { OCI_INDEX } else { OCI_MANIFEST };
                return Err(Error::MediaType { place: "document", claimed: own, actual: actual.to_owned() });
            }
            // OCI allows a document without its own type.
            _ => match (header, kind) {
                (Some((_, claim)), _) => (*claim).to_owned(),
                (None, Kind::Index) => OCI_INDEX.to_owned(),
                (None, Kind::Manifest) => OCI_MANIFEST.to_owned(),
            },
        };
        for (place, claim) in claims {
            if Kind::of(claim).is_some() && *claim != actual {
                return Err(Error::MediaType { place, claimed: (*claim).to_owned(), actual });
            }
        }
        Ok((document, actual))
    }
}

impl Manifest {
    /// Checks that this is an image whose layers can be unpacked.
    pub(crate) fn require_image(&self) -> Result<(), Error> {
        if !matches!(self.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | OCTET_STREAM | "") {
            return Err(Error::Artifact(self.config.media_type.clone()));
        }
        for layer in &self.layers {
            let media_type = &layer.media_type;
            // Compression is sniffed later; what must be right here is that it is a layer at all.
            let is_layer = media_type.starts_with("application/vnd.oci.image.layer.")
                || media_type.starts_with("application/vnd.docker.image.rootfs.")
                || matches!(media_type.as_str(), OCTET_STREAM | "");
            if !is_layer || media_type.contains("+encrypted") {
                return Err(Error::Layer { digest: layer.digest, media_type: media_type.clone() });
            }
        }
        Ok(())
    }
}

/// The part of an image config that a pull depends on.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// The machine it is for.
    #[serde(flatten)]
    pub platform: crate::Platform,
    /// Its file systems.
    pub rootfs: RootFs,
}

/// The uncompressed digests of the layers.
#[derive(Clone, Debug, Deserialize)]
pub struct RootFs {
    /// Base first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Config {
    /// Parses a config and pairs it with its manifest.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, Error> {
        let config: Self =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { what: "image config", source })?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(Error::LayerCount { layers, diff_ids });
        }
        // Very old tools left the field empty.
        if !matches!(config.platform.os.as_str(), "linux" | "") {
            return Err(Error::OperatingSystem(config.platform.os.clone()));
        }
        Ok(config)
    }
}

/// Go writes empty maps and lists as null.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":5}}"#)
    }

    fn manifest() -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(OCI_CONFIG),
            descriptor(OCI_LAYER_GZIP)
        )
    }

    fn parse(text: &str, claims: &[(&'static str, &str)]) -> Result<(Document, String), Error> {
        Document::parse(text.as_bytes(), claims)
    }

    #[test]
    fn the_body_decides_and_claims_must_agree() {
        let (document, actual) = parse(&manifest(), &[("response", DOCKER_MANIFEST)]).unwrap();
        assert!(matches!(document, Document::Manifest(_)));
        assert_eq!(actual, DOCKER_MANIFEST);
        assert_eq!(parse(&manifest(), &[("response", "application/json")]).unwrap().1, OCI_MANIFEST);
        for claim in [OCI_INDEX, DOCKER_INDEX] {
            let error = parse(&manifest(), &[("response", claim)]).unwrap_err();
            assert!(matches!(error, Error::MediaType { place: "response", .. }), "{error}");
        }
        let own = manifest().replace("\"config\"", &format!("\"mediaType\":\"{OCI_INDEX}\",\"config\""));
        assert!(matches!(parse(&own, &[]), Err(Error::MediaType { place: "document", .. })));
        let own = manifest().replace("\"config\"", &format!("\"mediaType\":\"{OCI_MANIFEST}\",\"config\""));
        assert!(parse(&own, &[("response", DOCKER_MANIFEST)]).is_err());
        assert!(parse(&own, &[("response", OCI_MANIFEST), ("descriptor", OCI_MANIFEST)]).is_ok());
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        let both = manifest().replace("\"layers\"", "\"manifests\":[],\"layers\"");
        for claim in [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST, "application/json"] {
            assert!(matches!(parse(&both, &[("response", claim)]), Err(Error::Ambiguous(_))), "{claim}");
        }
        let twice = manifest().replace("\"layers\"", "\"layers\":[],\"layers\"");
        assert!(matches!(parse(&twice, &[]), Err(Error::Json { .. })));
        for text in [
            "null",
            "[]",
            "{}",
            "\"\"",
            "{\"schemaVersion\":2}",
            "",
            "{\"schemaVersion\":2,\"manifests\":{}}",
        ] {
            assert!(parse(text, &[]).is_err(), "{text}");
        }
        let deep = format!("{{\"schemaVersion\":2,\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse(&deep, &[]).is_err());
    }

    #[test]
    fn schema_1_is_named() {
        let old = r#"{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[],"history":[],"signatures":[]}"#;
        assert!(matches!(parse(old, &[]), Err(Error::Schema1)));
        assert!(matches!(parse("garbage", &[("response", DOCKER_SCHEMA1_SIGNED)]), Err(Error::Schema1)));
    }

    #[test]
    fn sizes_and_digests_are_checked() {
        for (from, to) in [
            ("\"size\":5", "\"size\":-1"),
            ("\"size\":5", "\"size\":1e400"),
            ("\"size\":5", "\"size\":99999999999999999999"),
            ("\"size\":5", "\"size\":\"5\""),
            ("sha256:e3b0", "sha256:../../"),
            ("sha256:e3b0", "sha256:E3b0"),
            ("sha256:e3b0", "sha512:e3b0"),
            ("sha256:e3b0", "md5:e3b0"),
        ] {
            assert!(parse(&manifest().replace(from, to), &[]).is_err(), "{to}");
        }
        let many = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            vec![descriptor(OCI_MANIFEST); DESCRIPTORS_MAX + 1].join(",")
        );
        assert!(matches!(parse(&many, &[]), Err(Error::TooMany { .. })));
    }

    #[test]
    fn artifacts_and_encrypted_layers_are_no_images() {
        let parsed = |text: &str| match parse(text, &[]).unwrap().0 {
            Document::Manifest(manifest) => manifest.require_image(),
            Document::Index(_) => panic!("an index"),
        };
        assert!(parsed(&manifest()).is_ok());
        let helm = manifest().replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        assert!(matches!(parsed(&helm), Err(Error::Artifact(_))));
        let encrypted = manifest().replace(OCI_LAYER_GZIP, &format!("{OCI_LAYER_GZIP}+encrypted"));
        assert!(matches!(parsed(&encrypted), Err(Error::Layer { .. })));
    }

    #[test]
    fn configs_pair_with_their_manifest() {
        let Document::Manifest(manifest) = parse(&manifest(), &[]).unwrap().0 else { panic!("an index") };
        let config = |os: &str, ids: &str| {
            let text = format!(
                r#"{{"architecture":"amd64","os":"{os}","rootfs":{{"type":"layers","diff_ids":{ids}}}}}"#
            );
            Config::parse(text.as_bytes(), &manifest)
        };
        let one = format!("[\"{DIGEST}\"]");
        assert_eq!(config("linux", &one).unwrap().rootfs.diff_ids.len(), 1);
        assert!(matches!(config("linux", "[]"), Err(Error::LayerCount { layers: 1, diff_ids: 0 })));
        assert!(matches!(config("linux", "null"), Err(Error::LayerCount { .. })));
        assert!(matches!(config("windows", &one), Err(Error::OperatingSystem(_))));
    }
}
