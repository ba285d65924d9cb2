//! Images for tests, made here: OCI layouts on disk from layers that are written byte by byte.
//!
//! ```text
//! Layer (entries) ─► tar ─► none, gzip or zstd ─► blob ┐
//! Config (user, command, volumes …) ─► JSON ─► blob    ├─► manifest ─► index ─► Layout: oci-layout, index.json,
//!                                                      ┘                        blobs/sha256/…
//! ```
//! Everything is deterministic: the same packages give the same digests. [`catalog`] has the images that the
//! suites use.

pub mod catalog;
pub mod debian;
pub mod layer;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use layer::{Compression, Layer, LongName};

/// Media type of an image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The moment everything in an image says it was made.
pub const CREATED: &str = "2026-01-01T00:00:00Z";

/// A blob by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What kind of blob.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Architecture, for an entry of an index.
    pub architecture: Option<String>,
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers from the bottom, each with the form in which it travels.
    pub layers: Vec<(Layer, Compression)>,
    /// The `config` object of the image configuration: `User`, `Cmd`, `Volumes` and so on.
    pub config: Value,
    /// As Go spells it.
    pub architecture: String,
}

impl Image {
    /// An image of this machine's architecture.
    pub fn new(layers: Vec<(Layer, Compression)>, config: Value) -> Image {
        Image { layers, config, architecture: host_architecture().into() }
    }

    /// The same image with other configuration: keys of `config` are replaced, null removes one.
    #[must_use]
    pub fn with(&self, config: Value) -> Image {
        let mut image = self.clone();
        for (key, value) in config.as_object().into_iter().flatten() {
            if value.is_null() {
                image.config.as_object_mut().and_then(|object| object.remove(key));
            } else {
                image.config[key] = value.clone();
            }
        }
        image
    }
}

/// This machine's architecture as image indexes spell it.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An OCI image layout on disk.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes an empty layout.
    pub fn create(dir: &Path) -> Layout {
        let layout = Layout { dir: dir.into() };
        fs::create_dir_all(layout.dir.join("blobs/sha256")).expect("make a layout");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write oci-layout");
        layout.write_index(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
        layout
    }

    /// Opens a layout that is there.
    pub fn open(dir: &Path) -> Layout {
        assert!(dir.join("oci-layout").exists(), "{} is no OCI layout", dir.display());
        Layout { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores bytes under their digest.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = digest(bytes);
        fs::write(self.path(&digest), bytes).unwrap_or_else(|error| panic!("{digest}: {error}"));
        let size = bytes.len().try_into().expect("a length fits in u64");
        Descriptor { media_type: media_type.into(), digest, size, architecture: None }
    }

    /// The bytes of a digest.
    pub fn read(&self, digest: &str) -> Vec<u8> {
        fs::read(self.path(digest)).unwrap_or_else(|error| panic!("{digest}: {error}"))
    }

    /// Stores an image and returns its manifest's descriptor.
    pub fn image(&self, image: &Image) -> Descriptor {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (layer, compression) in &image.layers {
            let tar = layer.tar();
            diff_ids.push(digest(&tar));
            layers.push(json(&self.blob(compression.media_type(), &compression.apply(&tar))));
        }
        let config = json!({
            "created": CREATED,
            "architecture": image.architecture,
            "os": "linux",
            "config": image.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": diff_ids.iter().map(|id| json!({ "created": CREATED, "created_by": id })).collect::<Vec<_>>(),
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": json(&config), "layers": layers });
        let manifest = self.blob(MANIFEST, manifest.to_string().as_bytes());
        Descriptor { architecture: Some(image.architecture.clone()), ..manifest }
    }

    /// Stores an image with a layer on top of one of another layout, whose files are taken over as they are. Keys of
    /// `config` are replaced.
    pub fn image_upon(&self, other: &Layout, name: &str, layer: &Layer, config: &Value) -> Descriptor {
        let parse = |digest: &str| -> Value { serde_json::from_slice(&other.read(digest)).expect("JSON") };
        let mut manifest = parse(&other.manifest(name).digest);
        let mut image = parse(manifest["config"]["digest"].as_str().expect("a manifest has a config"));
        for base in manifest["layers"].as_array().into_iter().flatten() {
            let digest = base["digest"].as_str().expect("a layer has a digest");
            fs::copy(other.path(digest), self.path(digest))
                .unwrap_or_else(|error| panic!("{digest}: {error}"));
        }
        for (key, value) in config.as_object().into_iter().flatten() {
            image["config"][key] = value.clone();
        }
        let top = self.blob(Compression::None.media_type(), &layer.tar());
        let diff_ids = image["rootfs"]["diff_ids"].as_array_mut().expect("a config has diff_ids");
        diff_ids.push(top.digest.clone().into());
        manifest["layers"].as_array_mut().expect("a manifest has layers").push(json(&top));
        manifest["config"] = json(&self.blob(CONFIG, image.to_string().as_bytes()));
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Stores an index of images.
    pub fn index(&self, manifests: &[Descriptor]) -> Descriptor {
        let manifests: Vec<_> = manifests.iter().map(json).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.blob(INDEX, index.to_string().as_bytes())
    }

    /// Gives a manifest or index a name in the layout.
    pub fn tag(&self, name: &str, descriptor: &Descriptor) {
        let mut index = self.read_index();
        let mut entry = json(descriptor);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        index["manifests"].as_array_mut().expect("index.json has manifests").push(entry);
        self.write_index(&index);
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        let index = self.read_index();
        let manifests = index["manifests"].as_array().expect("index.json has manifests");
        let name = |entry: &Value| {
            entry["annotations"]["org.opencontainers.image.ref.name"].as_str().map(String::from)
        };
        manifests.iter().filter_map(name).collect()
    }

    /// The manifest or index that has a name.
    pub fn find(&self, name: &str) -> Descriptor {
        let index = self.read_index();
        let manifests = index["manifests"].as_array().expect("index.json has manifests");
        let found = manifests
            .iter()
            .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(name));
        descriptor(found.unwrap_or_else(|| panic!("the layout has no {name}")))
    }

    /// The manifest behind a name for this machine's architecture.
    pub fn manifest(&self, name: &str) -> Descriptor {
        let found = self.find(name);
        if found.media_type == MANIFEST {
            return found;
        }
        let children = self.children(&found);
        let ours = children.into_iter().find(|c| c.architecture.as_deref() == Some(host_architecture()));
        ours.unwrap_or_else(|| panic!("{name} has no image for this architecture"))
    }

    /// The image id of a name, which is the digest of its configuration.
    pub fn image_id(&self, name: &str) -> String {
        let manifest: Value =
            serde_json::from_slice(&self.read(&self.manifest(name).digest)).expect("manifest");
        manifest["config"]["digest"].as_str().expect("a manifest has a config").into()
    }

    /// What a manifest or index refers to, in the order in which it can be pushed.
    pub fn children(&self, parent: &Descriptor) -> Vec<Descriptor> {
        let parent: Value = serde_json::from_slice(&self.read(&parent.digest)).expect("manifest or index");
        let lists =
            ["manifests", "layers"].iter().flat_map(|key| parent[key].as_array().into_iter().flatten());
        lists.chain(parent.get("config")).map(descriptor).collect()
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("sha256 digest"))
    }

    fn read_index(&self) -> Value {
        let bytes = fs::read(self.dir.join("index.json")).expect("read index.json");
        serde_json::from_slice(&bytes).expect("index.json is JSON")
    }

    fn write_index(&self, index: &Value) {
        fs::write(self.dir.join("index.json"), index.to_string()).expect("write index.json");
    }
}

fn json(descriptor: &Descriptor) -> Value {
    let mut value = json!({
        "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
    });
    if let Some(architecture) = &descriptor.architecture {
        value["platform"] = json!({ "os": "linux", "architecture": architecture });
    }
    value
}

fn descriptor(value: &Value) -> Descriptor {
    let text =
        |key: &str| value[key].as_str().unwrap_or_else(|| panic!("descriptor without {key}")).to_string();
    Descriptor {
        media_type: text("mediaType"),
        digest: text("digest"),
        size: value["size"].as_u64().expect("descriptor without size"),
        architecture: value["platform"]["architecture"].as_str().map(String::from),
    }
}
