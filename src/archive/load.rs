//! Reading: an OCI layout or a docker archive, into the store.

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::Arc;

use pinnace_image::Config;
use pinnace_registry::manifest::{Document, Manifest};
use pinnace_registry::{Descriptor, Platform, Reference};
use pinnace_store::{DiffId, Digest, Hasher, ImageRecord, Lease, ManifestRecord, Store};
use serde::Deserialize;

use crate::decode::decoder;
use crate::error::{Error, Result};
use crate::members::Members;

/// Indexes that may lead to each other.
const NESTING_MAX: usize = 4;
/// Images of one archive.
const IMAGES_MAX: usize = 1000;
const PIECE_BYTES: usize = 256 << 10;

/// An image that was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// As the store has it.
    pub image: Arc<ImageRecord>,
    /// The names that the archive gave it.
    pub names: Vec<String>,
}

/// How far a layer is.
#[derive(Clone, Copy, Debug)]
pub struct Loading {
    /// The layer.
    pub diff_id: DiffId,
    /// Bytes of the archive that are done and that there are.
    pub done_bytes: u64,
    /// Bytes of the layer in the archive.
    pub total_bytes: u64,
}

/// An image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What an image of the archive is made of.
struct Found {
    config: Vec<u8>,
    /// Members, base first, and the digests that their names claim.
    layers: Vec<(String, Option<Digest>)>,
    /// Documents that led here, outermost first.
    documents: Vec<(Descriptor, Vec<u8>)>,
    names: Vec<String>,
}

/// Takes all images of an archive, which is not compressed, into the store. `told` hears of every layer that is not in the
/// store yet.
pub fn load(
    store: &Store,
    lease: &Lease,
    file: File,
    platform: &Platform,
    told: &mut dyn FnMut(Loading),
) -> Result<Vec<Loaded>> {
    let members = Members::read(file)?;
    let mut found = if members.has("index.json") { of_layout(&members, platform)? } else { Vec::new() };
    let docker = if members.has("manifest.json") { of_docker(&members)? } else { Vec::new() };
    if found.is_empty() {
        if docker.is_empty() {
            return Err(Error::NoImage);
        }
        found = docker;
    } else {
        // Both describe the same images; Docker's half has names that the layout may lack.
        for image in docker {
            if let Some(known) = found.iter_mut().find(|known| known.config == image.config) {
                known.names.extend(image.names);
            }
        }
    }
    // One image under several names is listed once for each.
    let mut images: Vec<Found> = Vec::new();
    for image in found {
        match images.iter_mut().find(|known| known.config == image.config) {
            Some(known) => known.names.extend(image.names),
            None => images.push(image),
        }
    }
    images.into_iter().map(|image| take(store, lease, &members, image, told)).collect()
}

fn take(
    store: &Store,
    lease: &Lease,
    members: &Members,
    mut image: Found,
    told: &mut dyn FnMut(Loading),
) -> Result<Loaded> {
    image.names.sort_unstable();
    image.names.dedup();
    let config = Config::parse(&image.config)
        .map_err(|source| Error::Json { what: "image config".to_owned(), source })?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        return Err(Error::LayerCount {
            config: Digest::sha256(&image.config).to_string(),
            diff_ids: diff_ids.len(),
            layers: image.layers.len(),
        });
    }
    for (diff_id, (member, digest)) in diff_ids.iter().zip(&image.layers) {
        layer(store, lease, members, diff_id, member, digest.as_ref(), told)?;
    }
    let mut manifests = Vec::new();
    for (descriptor, bytes) in &image.documents {
        lease.put_blob(&descriptor.digest, bytes)?;
        let (digest, media_type) = (descriptor.digest, descriptor.media_type.clone());
        manifests.push(ManifestRecord { digest, media_type });
    }
    let record = crate::record(store, lease, &image.config, manifests, image.names.clone())?;
    Ok(Loaded { image: record, names: image.names })
}

fn layer(
    store: &Store,
    lease: &Lease,
    members: &Members,
    diff_id: &DiffId,
    member: &str,
    digest: Option<&Digest>,
    told: &mut dyn FnMut(Loading),
) -> Result<()> {
    // An archive that only claims to have somebody's layer proves nothing, so the member is read in any case; what is known
    // to unpack to it by its digest need not be.
    if digest
        .is_some_and(|digest| lease.hold_layer_of_blob(digest).is_some_and(|info| info.diff_id == *diff_id))
    {
        return Ok(());
    }
    let total_bytes = members.size(member)?;
    let source = Hashing { inner: members.open(member)?, hasher: digest.map(|d| Hasher::new(d.algorithm())) };
    let mut source = BufReader::with_capacity(PIECE_BYTES, source);
    let mut ingest = store.ingest_layer(lease, diff_id.digest().algorithm())?;
    {
        let (mut reader, _) = decoder(&mut source)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut done_bytes = 0;
        told(Loading { diff_id: *diff_id, done_bytes, total_bytes });
        loop {
            let count = reader.read(&mut piece).map_err(Error::Read)?;
            if count == 0 {
                break;
            }
            ingest
                .push(piece.get(..count).unwrap_or_default())
                .map_err(|source| Error::Layer { diff_id: *diff_id, source: Box::new(source) })?;
            done_bytes = (done_bytes + count as u64).min(total_bytes);
            told(Loading { diff_id: *diff_id, done_bytes, total_bytes });
        }
    }
    // What a decoder leaves unread belongs to the blob all the same.
    std::io::copy(&mut source, &mut std::io::sink()).map_err(Error::Read)?;
    let actual = source.into_inner().hasher.map(Hasher::finish);
    if let (Some(expected), Some(actual)) = (digest, actual)
        && *expected != actual
    {
        return Err(Error::Digest { name: member.to_owned(), actual: Box::new(actual) });
    }
    ingest.finish(diff_id).map_err(|source| Error::Layer { diff_id: *diff_id, source: Box::new(source) })?;
    if let Some(digest) = digest.filter(|digest| *digest != diff_id.digest()) {
        store.record_layer_blob(diff_id, digest)?;
    }
    Ok(())
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: Option<Hasher>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

fn of_docker(members: &Members) -> Result<Vec<Found>> {
    let bytes = members.document("manifest.json")?;
    let images: Vec<DockerImage> = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Json { what: "manifest.json".to_owned(), source })?;
    if images.len() > IMAGES_MAX {
        return Err(Error::Limit { what: "images of the archive".to_owned(), limit: IMAGES_MAX as u64 });
    }
    let mut found = Vec::new();
    for image in images {
        let tags = image.repo_tags.unwrap_or_default();
        found.push(Found {
            config: members.document(&image.config)?,
            layers: image.layers.unwrap_or_default().into_iter().map(|layer| (layer, None)).collect(),
            documents: Vec::new(),
            names: tags.iter().filter_map(|tag| name(tag)).collect(),
        });
    }
    Ok(found)
}

/// A name with a tag, normalised.
fn name(text: &str) -> Option<String> {
    text.parse::<Reference>().ok().and_then(|reference| reference.repo_tag())
}

fn of_layout(members: &Members, platform: &Platform) -> Result<Vec<Found>> {
    let bytes = members.document("index.json")?;
    let Document::Index(index) = parse("index.json", &bytes, None)?.0 else { return Ok(Vec::new()) };
    if index.manifests.len() > IMAGES_MAX {
        return Err(Error::Limit { what: "images of the archive".to_owned(), limit: IMAGES_MAX as u64 });
    }
    let mut found = Vec::new();
    let mut skipped = false;
    for entry in &index.manifests {
        match image(members, entry, platform)? {
            Some(image) => found.push(image),
            None => skipped = true,
        }
    }
    if found.is_empty() && skipped {
        return Err(Error::Platform { platform: platform.to_string() });
    }
    Ok(found)
}

/// Follows an entry to the image for this machine; `None` if there is none.
fn image(members: &Members, entry: &Descriptor, platform: &Platform) -> Result<Option<Found>> {
    let mut documents = Vec::new();
    let mut current = entry.clone();
    for _ in 0..NESTING_MAX {
        let member = place(&current.digest);
        if !members.has(&member) {
            // An index may list what an archive was not given.
            return Ok(None);
        }
        let bytes = verified(members, &current.digest)?;
        let (document, media_type) = parse(&member, &bytes, Some(&current))?;
        current.media_type = media_type;
        match document {
            Document::Manifest(manifest) => {
                documents.push((current, bytes));
                return found(members, entry, &manifest, documents).map(Some);
            }
            Document::Index(mut index) => {
                documents.push((current, bytes));
                index.manifests.retain(|entry| members.has(&place(&entry.digest)));
                let Some(next) = platform.choose(&index) else { return Ok(None) };
                current = next.clone();
            }
        }
    }
    Err(Error::Limit { what: "nesting of indexes".to_owned(), limit: NESTING_MAX as u64 })
}

fn found(
    members: &Members,
    entry: &Descriptor,
    manifest: &Manifest,
    documents: Vec<(Descriptor, Vec<u8>)>,
) -> Result<Found> {
    let at = |key: &str| entry.annotations.get(key);
    let named = at("io.containerd.image.name")
        .or_else(|| at("org.opencontainers.image.ref.name"))
        // A tag alone is no name.
        .filter(|text| text.contains(['/', ':']));
    let layers = manifest.layers.iter().map(|layer| (place(&layer.digest), Some(layer.digest))).collect();
    Ok(Found {
        config: verified(members, &manifest.config.digest)?,
        layers,
        documents,
        names: named.and_then(|text| name(text)).into_iter().collect(),
    })
}

fn verified(members: &Members, digest: &Digest) -> Result<Vec<u8>> {
    let name = place(digest);
    let bytes = members.document(&name)?;
    let actual = digest.same_algorithm_of(&bytes);
    if actual == *digest { Ok(bytes) } else { Err(Error::Digest { name, actual: Box::new(actual) }) }
}

fn parse(what: &str, bytes: &[u8], claim: Option<&Descriptor>) -> Result<(Document, String)> {
    let claims: Vec<_> = claim.iter().map(|claim| ("index entry", claim.media_type.as_str())).collect();
    Document::parse(bytes, &claims).map_err(|source| Error::Document { what: what.to_owned(), source })
}

fn place(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
