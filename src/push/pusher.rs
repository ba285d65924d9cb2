//! Pushes: layers side by side, then the config, then the manifest.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pinnace_registry::manifest::{Document, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST};
use pinnace_registry::{Auth, Client, Descriptor, Reference, Repository, Source};
use pinnace_store::{DiffId, Digest, ImageRecord, ManifestRecord, NewImage, Store};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::compress::compress;
use crate::error::Error;

/// Layers that are on their way at the same time.
const LAYERS_AT_ONCE: usize = 4;
/// Repositories that are asked for a blob.
const SOURCES_MAX: usize = 4;
/// How often the bytes that went out are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// What is to be pushed.
#[derive(Clone, Debug)]
pub struct PushRequest {
    /// The image.
    pub image: Arc<ImageRecord>,
    /// Where to, by tag.
    pub reference: Reference,
    /// Credentials for the registry.
    pub auth: Option<Auth>,
}

/// Where a layer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Waiting,
    /// It is compressed.
    Preparing,
    /// Its bytes go out.
    Pushing,
    /// It was sent.
    Pushed,
    /// The repository had it.
    Exists,
    /// The registry had it in another repository.
    Mounted,
}

/// A layer of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer.
    pub diff_id: DiffId,
    /// Bytes done, of those that the phase is about.
    pub done_bytes: u64,
    /// How many there are.
    pub total_bytes: u64,
    /// Where it stands.
    pub phase: Phase,
}

/// How far a push is: its layers, base first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Base first, each once.
    pub layers: Vec<LayerProgress>,
}

/// An image that was pushed.
#[derive(Clone, Debug)]
pub struct PushedImage {
    /// Where it is now.
    pub reference: Reference,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Length of its manifest in bytes.
    pub size: u64,
    /// Bytes of blobs that had to be sent.
    pub sent_bytes: u64,
}

/// Pushes images; one for the whole program.
#[derive(Clone, Debug)]
pub struct Pusher {
    store: Store,
    client: Arc<Client>,
    dir: PathBuf,
}

/// Blobs that are known to be a layer.
type Known = HashMap<DiffId, Vec<Descriptor>>;

/// A manifest of the image: its media type, its bytes, what it says.
type Own = (String, Bytes, Manifest);

impl Pusher {
    /// Compressed layers lie in `dir` while they are sent; it must exist.
    pub fn new(store: Store, client: Arc<Client>, dir: PathBuf) -> Self {
        Self { store, client, dir }
    }

    /// Pushes an image. Dropping the future cancels it; what was uploaded by then is found by the next attempt.
    pub async fn push(
        &self,
        request: PushRequest,
        progress: watch::Sender<Progress>,
    ) -> Result<PushedImage, Error> {
        let PushRequest { image, reference, auth } = request;
        if reference.digest().is_some() {
            return Err(Error::ByDigest);
        }
        let repository = self.client.repository(&reference, auth.as_ref())?;
        let lease = self.store.lease();
        for layer in &image.layers {
            lease.hold_layer(layer).ok_or(pinnace_store::Error::LayerNotFound(*layer))?;
        }
        let (manifests, known) = self.known_blobs(&image)?;
        let sources = self.sources(&reference);
        let mut layers: Vec<LayerProgress> = Vec::new();
        for diff_id in &image.layers {
            if layers.iter().all(|layer| layer.diff_id != *diff_id) {
                let total_bytes = self.store.layer(diff_id)?.tar_bytes;
                layers.push(LayerProgress {
                    diff_id: *diff_id,
                    done_bytes: 0,
                    total_bytes,
                    phase: Phase::Waiting,
                });
            }
        }
        progress.send_replace(Progress { layers: layers.clone() });

        let sent = Arc::new(AtomicU64::new(0));
        let slots = Arc::new(Semaphore::new(LAYERS_AT_ONCE));
        let mut running = JoinSet::new();
        for (position, layer) in layers.iter().enumerate() {
            let job = LayerPush {
                pusher: self.clone(),
                repository: repository.clone(),
                diff_id: layer.diff_id,
                known: known.get(&layer.diff_id).cloned().unwrap_or_default(),
                sources: sources.clone(),
                progress: progress.clone(),
                position,
                sent: Arc::clone(&sent),
            };
            let slots = Arc::clone(&slots);
            running.spawn(async move {
                let _slot = slots.acquire_owned().await;
                job.run().await
            });
        }
        let mut blobs: HashMap<DiffId, Descriptor> = HashMap::new();
        while let Some(done) = running.join_next().await {
            let (diff_id, blob) = done.map_err(|_| Error::Cancelled)??;
            blobs.insert(diff_id, blob);
        }

        let config = Bytes::from(self.store.blob(image.id.digest())?);
        if repository.blob_size(image.id.digest()).await?.is_none() {
            let source = Source::Bytes(config.clone());
            repository.upload_blob(image.id.digest(), &source, &Arc::default()).await?;
            sent.fetch_add(source.size(), Ordering::Relaxed);
        }
        let wanted: Vec<Descriptor> =
            image.layers.iter().filter_map(|layer| blobs.get(layer).cloned()).collect();
        let (media_type, manifest) = manifest(&image, &manifests, &wanted, config.len() as u64)?;
        let digest = repository.put_manifest(&media_type, &manifest).await?;
        self.remember(&image, &reference, &media_type, &manifest, digest)?;
        Ok(PushedImage {
            reference,
            digest,
            size: manifest.len() as u64,
            sent_bytes: sent.load(Ordering::Relaxed),
        })
    }

    /// What manifests of images here say of the layers of this one: the blobs that they were, or were pushed as. Also the
    /// image's own manifests as they are.
    fn known_blobs(&self, image: &ImageRecord) -> Result<(Vec<Own>, Known), Error> {
        let wanted: BTreeSet<&DiffId> = image.layers.iter().collect();
        let (mut own, mut known) = (Vec::new(), Known::new());
        for other in self.store.images() {
            if !other.layers.iter().any(|layer| wanted.contains(layer)) {
                continue;
            }
            for record in &other.manifests {
                // An image that goes meanwhile knows nothing any more.
                let Ok(bytes) = self.store.blob(&record.digest) else { continue };
                let claims = [("record", record.media_type.as_str())];
                let Ok((Document::Manifest(manifest), _)) = Document::parse(&bytes, &claims) else {
                    continue;
                };
                if manifest.layers.len() != other.layers.len() || manifest.config.digest != *other.id.digest()
                {
                    continue;
                }
                for (diff_id, blob) in other.layers.iter().zip(&manifest.layers) {
                    let blobs = known.entry(*diff_id).or_default();
                    if !blobs.iter().any(|known| known.digest == blob.digest) {
                        blobs.push(blob.clone());
                    }
                }
                if other.id == image.id {
                    own.push((record.media_type.clone(), Bytes::from(bytes), *manifest));
                }
            }
        }
        Ok((own, known))
    }

    /// Other repositories of the same registry that images here are from.
    fn sources(&self, reference: &Reference) -> Vec<String> {
        let mut sources = BTreeSet::new();
        for image in self.store.images() {
            for name in image.digests() {
                if let Ok(name) = name.parse::<Reference>()
                    && name.registry() == reference.registry()
                    && name.path() != reference.path()
                {
                    sources.insert(name.path().to_owned());
                }
            }
        }
        sources.into_iter().collect()
    }

    /// The image is known by this digest from now on, and its layers by these blobs.
    fn remember(
        &self,
        image: &ImageRecord,
        reference: &Reference,
        media_type: &str,
        manifest: &Bytes,
        digest: Digest,
    ) -> Result<(), Error> {
        let lease = self.store.lease();
        lease.put_blob(&digest, manifest)?;
        let record = ManifestRecord { digest, media_type: media_type.to_owned() };
        self.store.commit_image(
            &lease,
            NewImage {
                id: image.id,
                manifests: vec![record],
                layers: image.layers.clone(),
                names: vec![reference.repo_digest(&digest)],
                created: image.created.clone(),
                user: image.user.clone(),
                labels: image.labels.clone(),
                pinned: image.pinned,
            },
        )?;
        Ok(())
    }
}

/// The manifest of the image with these blobs: the one it has, if it has one with exactly them.
fn manifest(
    image: &ImageRecord,
    known: &[Own],
    layers: &[Descriptor],
    config_size: u64,
) -> Result<(String, Bytes), Error> {
    let digests = |layers: &[Descriptor]| layers.iter().map(|layer| layer.digest).collect::<Vec<_>>();
    let same = known.iter().find(|(_, _, manifest)| digests(&manifest.layers) == digests(layers));
    if let Some((media_type, bytes, _)) = same {
        return Ok((media_type.clone(), bytes.clone()));
    }
    let config =
        Descriptor { digest: *image.id.digest(), size: config_size, ..Descriptor::of(OCI_CONFIG, b"") };
    let layers: Vec<Descriptor> = layers
        .iter()
        .map(|layer| {
            let media_type = oci_type(&layer.media_type).to_owned();
            Descriptor { digest: layer.digest, size: layer.size, ..Descriptor::of(&media_type, b"") }
        })
        .collect();
    let document = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
    });
    let bytes = serde_json::to_vec(&document).map_err(Error::Manifest)?;
    Ok((OCI_MANIFEST.to_owned(), Bytes::from(bytes)))
}

/// Docker's names of layers in an OCI manifest.
fn oci_type(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => OCI_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar" => OCI_LAYER,
        other => other,
    }
}

/// One layer on its way.
struct LayerPush {
    pusher: Pusher,
    repository: Repository,
    diff_id: DiffId,
    known: Vec<Descriptor>,
    sources: Vec<String>,
    progress: watch::Sender<Progress>,
    position: usize,
    sent: Arc<AtomicU64>,
}

impl LayerPush {
    async fn run(self) -> Result<(DiffId, Descriptor), Error> {
        for blob in &self.known {
            if let Some(phase) = self.is_there(&blob.digest, Some(blob.size)).await? {
                self.tell(phase, blob.size, blob.size);
                return Ok((self.diff_id, blob.clone()));
            }
        }
        let (store, diff_id, dir) = (self.pusher.store.clone(), self.diff_id, self.pusher.dir.clone());
        let total = store.layer(&diff_id)?.tar_bytes;
        self.tell(Phase::Preparing, 0, total);
        let (progress, position) = (self.progress.clone(), self.position);
        let told = move |done| set(&progress, position, Phase::Preparing, done, total);
        let made = tokio::task::spawn_blocking(move || compress(&store, &diff_id, &dir, &told)).await;
        let blob = made.map_err(|_| Error::Cancelled)??;
        let descriptor =
            Descriptor { digest: blob.digest, size: blob.size, ..Descriptor::of(OCI_LAYER_GZIP, b"") };
        if let Some(phase) = self.is_there(&blob.digest, Some(blob.size)).await? {
            self.tell(phase, blob.size, blob.size);
            return Ok((self.diff_id, descriptor));
        }
        self.tell(Phase::Pushing, 0, blob.size);
        let count = Arc::new(AtomicU64::new(0));
        let source = Source::File { file: blob.file, size: blob.size };
        let mut upload = std::pin::pin!(self.repository.upload_blob(&blob.digest, &source, &count));
        loop {
            tokio::select! {
                done = &mut upload => break done?,
                () = tokio::time::sleep(INTERVAL) => {
                    self.tell(Phase::Pushing, count.load(Ordering::Relaxed), blob.size);
                }
            }
        }
        self.sent.fetch_add(blob.size, Ordering::Relaxed);
        // It unpacks to this layer: it was made of it a moment ago.
        self.pusher.store.record_layer_blob(&self.diff_id, &blob.digest)?;
        self.tell(Phase::Pushed, blob.size, blob.size);
        Ok((self.diff_id, descriptor))
    }

    /// Whether the repository has a blob, or has it now.
    async fn is_there(&self, digest: &Digest, size: Option<u64>) -> Result<Option<Phase>, Error> {
        if let Some(there) = self.repository.blob_size(digest).await? {
            // A registry that has something else under this name is not believed.
            return Ok((size.is_none() || size == Some(there)).then_some(Phase::Exists));
        }
        for source in self.sources.iter().take(SOURCES_MAX) {
            if self.repository.mount_blob(digest, source).await? {
                return Ok(Some(Phase::Mounted));
            }
        }
        Ok(None)
    }

    fn tell(&self, phase: Phase, done_bytes: u64, total_bytes: u64) {
        set(&self.progress, self.position, phase, done_bytes, total_bytes);
    }
}

fn set(progress: &watch::Sender<Progress>, position: usize, phase: Phase, done_bytes: u64, total_bytes: u64) {
    progress.send_modify(|progress| {
        if let Some(layer) = progress.layers.get_mut(position) {
            (layer.phase, layer.done_bytes, layer.total_bytes) = (phase, done_bytes, total_bytes);
        }
    });
}
