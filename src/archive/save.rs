//! Writing: one tar that is an OCI layout and a docker archive at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write};
use std::sync::Arc;

use pinnace_registry::Descriptor;
use pinnace_registry::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use pinnace_store::archive::{Entry, EntryKind, Writer};
use pinnace_store::{Digest, ImageRecord, Store};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// An image to be written, and the names that it keeps: those it was asked for by.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The image.
    pub image: Arc<ImageRecord>,
    /// `host/repository:tag`, and the same as people write it.
    pub names: Vec<(String, String)>,
}

/// Writes images. Every blob is written once; nothing in the archive depends on when it is written.
pub fn save(store: &Store, images: &[Saved], out: impl Write) -> Result<()> {
    // Held to the end: an image that is removed meanwhile is still written as a whole.
    let lease = store.lease();
    for saved in images {
        for layer in &saved.image.layers {
            lease.hold_layer(layer).ok_or(pinnace_store::Error::LayerNotFound(*layer))?;
        }
        lease.hold_blob(saved.image.id.digest());
    }
    let mut archive = Archive { out: Writer::new(out), written: BTreeSet::new() };
    archive.directory("blobs")?;
    archive.directory("blobs/sha256")?;
    let (mut entries, mut docker) = (Vec::new(), Vec::new());
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for saved in images {
        let image = &saved.image;
        let config = store.blob(image.id.digest())?;
        let mut layers = Vec::new();
        for diff_id in &image.layers {
            let info = store.layer(diff_id)?;
            layers.push(descriptor(OCI_LAYER, *diff_id.digest(), info.tar_bytes));
            archive.layer(store, diff_id, info.tar_bytes)?;
        }
        archive.blob(&config)?;
        let config = descriptor(OCI_CONFIG, *image.id.digest(), config.len() as u64);
        let manifest = json(&json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        }))?;
        archive.blob(&manifest)?;
        let entry = Descriptor::of(OCI_MANIFEST, &manifest);
        if saved.names.is_empty() {
            entries.push(entry.clone());
        }
        for (name, _) in &saved.names {
            let mut entry = entry.clone();
            entry.annotations.insert("io.containerd.image.name".to_owned(), name.clone());
            if let Some((repository, tag)) = name.rsplit_once(':') {
                entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag.to_owned());
                let top = image.layers.last().map(|layer| layer.digest().hex()).unwrap_or_default();
                repositories.entry(repository.to_owned()).or_default().insert(tag.to_owned(), top);
            }
            entries.push(entry);
        }
        let tags: Vec<&String> = saved.names.iter().map(|(_, familiar)| familiar).collect();
        docker.push(json!({
            "Config": place(image.id.digest()),
            "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
            "Layers": image.layers.iter().map(|layer| place(layer.digest())).collect::<Vec<_>>(),
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    archive.file("index.json", &json(&index)?)?;
    archive.file("manifest.json", &json(&Value::Array(docker))?)?;
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    if !repositories.is_empty() {
        archive.file("repositories", &json(&json!(repositories))?)?;
    }
    archive.out.finish().and_then(|mut out| out.flush()).map_err(Error::Write)
}

fn json(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Json { what: "document".to_owned(), source })
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { digest, size, ..Descriptor::of(media_type, b"") }
}

/// Where a blob is in a layout.
fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

struct Archive<W: Write> {
    out: Writer<W>,
    written: BTreeSet<Digest>,
}

impl<W: Write> Archive<W> {
    fn directory(&mut self, path: &str) -> Result<()> {
        self.out.entry(&entry(path, EntryKind::Directory, 0o755)).map_err(Error::Write)
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let kind = EntryKind::File { size: bytes.len() as u64 };
        self.out.file(&entry(path, kind, 0o644), bytes).map_err(Error::Write)
    }

    fn blob(&mut self, bytes: &[u8]) -> Result<()> {
        let digest = Digest::sha256(bytes);
        if self.written.insert(digest) { self.file(&place(&digest), bytes) } else { Ok(()) }
    }

    fn layer(&mut self, store: &Store, diff_id: &pinnace_store::DiffId, size: u64) -> Result<()> {
        if !self.written.insert(*diff_id.digest()) {
            return Ok(());
        }
        let mut tar = store.layer_reader(diff_id)?;
        let path = place(diff_id.digest());
        self.out.entry(&entry(&path, EntryKind::File { size }, 0o644)).map_err(Error::Write)?;
        // Hashed on the way: what is handed out is what it says, or nothing.
        let mut hasher = pinnace_store::Hasher::new(diff_id.digest().algorithm());
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = tar.read(&mut buffer).map_err(Error::Read)?;
            let bytes = buffer.get(..count).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            hasher.update(bytes);
            self.out.data(bytes).map_err(Error::Write)?;
        }
        let actual = hasher.finish();
        if actual == *diff_id.digest() {
            Ok(())
        } else {
            Err(Error::Digest { name: path, actual: Box::new(actual) })
        }
    }
}

fn entry<'a>(path: &'a str, kind: EntryKind<'a>, mode: u32) -> Entry<'a> {
    Entry { path: path.as_bytes(), kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: &[] }
}
