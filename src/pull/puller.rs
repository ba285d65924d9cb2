//! Pulls: joining, layers side by side, the record at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pinnace_registry::{Auth, Client, Descriptor, Reference, Repository, Resolved};
use pinnace_store::{DiffId, Digest, ImageId, ImageRecord, Lease, ManifestRecord, NewImage, Store};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::{Error, ErrorKind, LayerProblem};
use crate::flight::{Flight, Flights};
use crate::keep::{Keep, Keeper};
use crate::layer::{Held, Intake};
use crate::partial::Partials;
use crate::progress::{LayerProgress, Phase, Progress};
use crate::running::Counters;

/// How pulls behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// Layers of one image that are on their way at the same time.
    pub layers_at_once: usize,
    /// Compressed bytes of all pulls that may wait in memory.
    pub memory_bytes: usize,
    /// How long the finished layers of a pull that failed are kept for the next attempt.
    pub grace: Duration,
    /// Where the beginnings of unfinished layers are kept, on the store's file system; nothing for nowhere.
    pub partial_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { layers_at_once: 6, memory_bytes: 32 << 20, grace: Duration::from_secs(600), partial_dir: None }
    }
}

/// What is to be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PullRequest {
    /// The image.
    pub reference: Reference,
    /// Credentials for its registry.
    pub auth: Option<Auth>,
    /// Whether the image must not be collected by anybody but its owner.
    pub pinned: bool,
}

impl PullRequest {
    /// An anonymous pull of an ordinary image.
    pub fn new(reference: Reference) -> Self {
        Self { reference, auth: None, pinned: false }
    }
}

/// An image that was pulled, or was up to date.
#[derive(Clone, Debug)]
pub struct PulledImage {
    /// What was asked for.
    pub reference: Reference,
    /// The image: the digest of its config.
    pub image_id: ImageId,
    /// What the reference pointed at: the digest in `repository@digest`.
    pub repo_digest: Digest,
    /// The image as the store has it.
    pub record: Arc<ImageRecord>,
    /// Compressed bytes of the layers that had to be fetched.
    pub fetched_bytes: u64,
}

pub(crate) type Outcome = Result<PulledImage, Arc<Error>>;
type PullFlight = Flight<PullRequest, Outcome, Progress>;
type LayerKey = (Digest, DiffId);
type LayerFlights = Flights<LayerKey, Result<Held, Arc<Error>>, LayerProgress>;

/// Pulls images into a store; one for the whole program.
#[derive(Clone)]
pub struct Puller {
    shared: Arc<Shared>,
    pulls: Arc<Flights<PullRequest, Outcome, Progress>>,
}

struct Shared {
    store: Store,
    client: Arc<Client>,
    options: Options,
    keeper: Arc<Keeper>,
    intake: Arc<Intake>,
    layers: Arc<LayerFlights>,
    runtime: Handle,
    busy: AtomicUsize,
    counters: Counters,
}

/// A place in a running pull. Dropping the last one cancels the pull.
pub struct Pull {
    flight: Arc<PullFlight>,
}

impl Pull {
    /// Changes of the pull's progress.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.flight.progress()
    }

    /// Waits for the end.
    pub async fn finish(self) -> Result<PulledImage, Arc<Error>> {
        self.flight.result().await.unwrap_or_else(|| Err(Arc::new(Error::Cancelled)))
    }
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Puller {
    /// A puller whose work runs on the current tokio runtime.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(store: Store, client: Arc<Client>, options: Options) -> Self {
        let runtime = Handle::current();
        let keeper = Keeper::new(store.clone(), options.grace, runtime.clone());
        let partials = options.partial_dir.clone().and_then(|dir| match Partials::open(dir.clone()) {
            Ok(partials) => Some(partials),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "unfinished layers are not kept");
                None
            }
        });
        let intake = Intake::new(store.clone(), Arc::clone(&keeper), options.memory_bytes, partials);
        let intake = Arc::new(intake);
        hold_orphans(&store, &keeper);
        let layers = Flights::new(runtime.clone());
        let pulls = Flights::new(runtime.clone());
        Self {
            shared: Arc::new(Shared {
                store,
                client,
                options,
                keeper,
                intake,
                layers,
                runtime,
                busy: AtomicUsize::new(0),
                counters: Counters::default(),
            }),
            pulls,
        }
    }

    /// Starts a pull, or joins the same one.
    pub fn start(&self, request: PullRequest) -> Pull {
        let shared = Arc::clone(&self.shared);
        let wanted = request.clone();
        let (flight, _) =
            self.pulls.join(request, Progress::default(), |progress| shared.counted(wanted, progress));
        Pull { flight }
    }

    pub(crate) fn pulls(&self) -> &Flights<PullRequest, Outcome, Progress> {
        &self.pulls
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Pulls an image. Dropping the future cancels the pull, unless somebody else waits for it too.
    pub async fn pull(&self, request: PullRequest) -> Result<PulledImage, Arc<Error>> {
        self.start(request).finish().await
    }
}

impl Shared {
    async fn counted(self: Arc<Self>, request: PullRequest, progress: watch::Sender<Progress>) -> Outcome {
        self.counters.begin();
        let outcome = Arc::clone(&self).pull(request, progress).await;
        self.counters.end(&outcome);
        outcome
    }

    async fn pull(self: Arc<Self>, request: PullRequest, progress: watch::Sender<Progress>) -> Outcome {
        let repository = self
            .client
            .repository(&request.reference, request.auth.as_ref())
            .map_err(|error| Arc::new(Error::Registry(error)))?;
        if let Some(pulled) = self.up_to_date(&request, &repository).await? {
            return Ok(pulled);
        }
        let resolved = repository.resolve().await.map_err(|error| Arc::new(Error::Registry(error)))?;
        let resolved = Arc::new(resolved);
        let _busy = Busy::begin(&self);
        let layers: HashSet<_> = resolved.manifest.layers.iter().map(|layer| layer.digest).collect();
        self.keeper.hope(&layers);
        let keep = Arc::new(self.keeper.hold(layers.iter().copied().collect()));
        keep.loosen();
        let fetched = self.fetch_layers(&resolved, &repository, &keep, &progress).await;
        let fetched_bytes = fetched.inspect_err(|error| {
            // On a full disk, what is kept for another attempt is in the way of everybody.
            if matches!(
                error.kind(),
                ErrorKind::InvalidImage | ErrorKind::DataLoss | ErrorKind::ResourceExhausted
            ) {
                self.keeper.give_up(&layers);
                layers.iter().for_each(|blob| self.intake.forget_partial(blob));
            }
        })?;
        let shared = Arc::clone(&self);
        let kept = Arc::clone(&keep);
        let pinned = request.pinned;
        let recording = Arc::clone(&resolved);
        let record = blocking(move || shared.record(&recording, kept.lease(), pinned)).await?;
        // The image itself holds everything now.
        keep.settle();
        let diff_ids = resolved.config.rootfs.diff_ids.iter().map(|diff_id| *diff_id.digest());
        self.keeper.recorded(&layers.iter().copied().chain(diff_ids).collect());
        tracing::info!(
            image = %request.reference,
            image_id = %record.id,
            digest = %resolved.target.digest,
            fetched_bytes,
            "image pulled"
        );
        Ok(PulledImage {
            image_id: record.id,
            repo_digest: resolved.target.digest,
            record,
            fetched_bytes,
            reference: request.reference,
        })
    }

    /// Asks the registry what the reference means now, if we have something that it may mean. The
    /// request also shows that these credentials may have the image at all.
    async fn up_to_date(
        &self,
        request: &PullRequest,
        repository: &Repository,
    ) -> Result<Option<PulledImage>, Arc<Error>> {
        let reference = &request.reference;
        let name = match (reference.digest(), reference.repo_tag()) {
            (Some(digest), _) => reference.repo_digest(digest),
            (None, Some(tag)) => tag,
            (None, None) => return Ok(None),
        };
        let Some(record) = self.store.image(&name) else { return Ok(None) };
        let lease = self.store.lease();
        let is_whole = record.layers.iter().all(|layer| lease.hold_layer(layer).is_some())
            && lease.hold_blob(record.id.digest())
            && record.manifests.iter().all(|manifest| lease.hold_blob(&manifest.digest));
        if !is_whole || (request.pinned && !record.pinned) {
            return Ok(None);
        }
        let claimed = repository.claimed_digest().await.map_err(|error| Arc::new(Error::Registry(error)))?;
        let Some(digest) = claimed.filter(|digest| {
            let name = reference.repo_digest(digest);
            record.digests().any(|known| known == name)
        }) else {
            return Ok(None);
        };
        Ok(Some(PulledImage {
            reference: reference.clone(),
            image_id: record.id,
            repo_digest: digest,
            record,
            fetched_bytes: 0,
        }))
    }

    /// Brings all layers into the store, each blob once, and holds them by the lease.
    async fn fetch_layers(
        self: &Arc<Self>,
        resolved: &Resolved,
        repository: &Repository,
        keep: &Arc<Keep>,
        progress: &watch::Sender<Progress>,
    ) -> Result<u64, Arc<Error>> {
        let mut wanted: Vec<(Descriptor, DiffId)> = Vec::new();
        let mut seen: HashMap<Digest, DiffId> = HashMap::new();
        for (layer, diff_id) in resolved.manifest.layers.iter().zip(&resolved.config.rootfs.diff_ids) {
            match seen.insert(layer.digest, *diff_id) {
                None => wanted.push((layer.clone(), *diff_id)),
                Some(first) if first == *diff_id => {}
                // One blob cannot unpack to two things.
                Some(first) => return Err(claim(layer.digest, diff_id, &first)),
            }
        }
        let mut missing = Vec::new();
        let mut layers = Vec::with_capacity(wanted.len());
        for (position, (layer, diff_id)) in wanted.iter().enumerate() {
            let phase = match keep.lease().hold_layer_of_blob(&layer.digest) {
                Some(info) if info.diff_id == *diff_id => Phase::Present,
                Some(info) => return Err(claim(layer.digest, diff_id, &info.diff_id)),
                None => Phase::Waiting,
            };
            let here = phase == Phase::Present;
            if here {
                // Left by an attempt that was cancelled between the layer's end and its own.
                self.intake.forget_partial(&layer.digest);
            }
            layers.push(LayerProgress {
                digest: layer.digest,
                done_bytes: if here { layer.size } else { 0 },
                total_bytes: layer.size,
                phase,
            });
            if !here {
                missing.push(position);
            }
        }
        progress.send_replace(Progress { layers });
        // The largest first: what comes last decides when the pull ends.
        missing.sort_by_key(|position| std::cmp::Reverse(wanted[*position].0.size));
        let fetched_bytes = missing.iter().map(|position| wanted[*position].0.size).sum();

        let slots = Arc::new(Semaphore::new(self.options.layers_at_once.max(1)));
        // Aborted as a whole when this future is dropped.
        let mut running = JoinSet::new();
        for position in missing {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            // The first failure decides, also while others wait for a slot.
            while let Some(done) = running.try_join_next() {
                joined(done)?;
            }
            let (layer, diff_id) = wanted[position].clone();
            let fetch = Arc::clone(self).fetch_layer(
                repository.clone(),
                layer,
                diff_id,
                Arc::clone(keep),
                progress.clone(),
                position,
            );
            running.spawn(async move {
                let result = fetch.await;
                drop(slot);
                result
            });
        }
        while let Some(done) = running.join_next().await {
            joined(done)?;
        }
        Ok(fetched_bytes)
    }

    /// Fetches one layer, or waits for whoever fetches it already.
    async fn fetch_layer(
        self: Arc<Self>,
        repository: Repository,
        layer: Descriptor,
        diff_id: DiffId,
        keep: Arc<Keep>,
        progress: watch::Sender<Progress>,
        position: usize,
    ) -> Result<(), Arc<Error>> {
        loop {
            let start = LayerProgress {
                digest: layer.digest,
                done_bytes: 0,
                total_bytes: layer.size,
                phase: Phase::Waiting,
            };
            let (flight, is_ours) = self.layers.join((layer.digest, diff_id), start, |progress| {
                Arc::clone(&self.intake).take(repository.clone(), layer.clone(), diff_id, progress)
            });
            let mut changes = flight.progress();
            let result = loop {
                tokio::select! {
                    result = flight.result() => break result,
                    Ok(()) = changes.changed() => {
                        let now = *changes.borrow_and_update();
                        progress.send_modify(|progress| progress.layers[position] = now);
                    }
                }
            };
            match result {
                Some(Ok(held)) => {
                    progress.send_modify(|progress| {
                        let layer = &mut progress.layers[position];
                        layer.done_bytes = layer.total_bytes;
                        layer.phase = Phase::Done;
                    });
                    // Ours before the fetcher's own hold ends with `held`.
                    if keep.lease().hold_layer(&held.info.diff_id).is_some() {
                        held.keep.settle();
                        return Ok(());
                    }
                }
                Some(Err(error)) if is_ours => return Err(error),
                None if is_ours => return Err(Arc::new(Error::Cancelled)),
                // Somebody else's registry, credentials or patience failed: ours may not.
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Stores the documents and the image's record.
    fn record(
        &self,
        resolved: &Resolved,
        lease: &Lease,
        pinned: bool,
    ) -> Result<Arc<ImageRecord>, Arc<Error>> {
        let store = |error| Arc::new(Error::Store(error));
        let config_digest = resolved.manifest.config.digest;
        let details: Details = serde_json::from_slice(&resolved.config_bytes)
            .map_err(|source| Arc::new(Error::Config { digest: config_digest, source }))?;
        let details_of = details.config.unwrap_or_default();
        lease.put_blob(&config_digest, &resolved.config_bytes).map_err(store)?;
        for (descriptor, bytes) in &resolved.documents {
            lease.put_blob(&descriptor.digest, bytes).map_err(store)?;
        }
        let manifests = resolved
            .documents
            .iter()
            .map(|(descriptor, _)| ManifestRecord {
                digest: descriptor.digest,
                media_type: descriptor.media_type.clone(),
            })
            .collect();
        let reference = &resolved.reference;
        let names = reference
            .repo_tag()
            .into_iter()
            .chain([reference.repo_digest(&resolved.target.digest)])
            .collect();
        let image = NewImage {
            id: ImageId::new(config_digest),
            manifests,
            layers: resolved.config.rootfs.diff_ids.clone(),
            names,
            created: details.created,
            user: details_of.user.unwrap_or_default(),
            labels: details_of.labels.unwrap_or_default(),
            pinned,
        };
        self.store.commit_image(lease, image).map_err(store)
    }
}

/// Layers that are of no image are what a pull had finished when an earlier program died: they have the same grace.
fn hold_orphans(store: &Store, keeper: &Arc<Keeper>) {
    let of_images: HashSet<DiffId> = store.images().iter().flat_map(|image| image.layers.clone()).collect();
    for layer in store.layers() {
        if of_images.contains(&layer.diff_id) {
            continue;
        }
        let keep = keeper.hold(vec![*layer.diff_id.digest()]);
        if keep.lease().hold_layer(&layer.diff_id).is_some() {
            keep.loosen();
        }
    }
}

/// A pull that fetches. After the last one the heap is given back: buffers of many sizes have gone
/// through it, and nothing like them is needed until the next pull.
struct Busy(Arc<Shared>);

impl Busy {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.busy.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.runtime.spawn_blocking(pinnace_sys::process::trim_heap);
        }
    }
}

/// The parts of a config that the store keeps at hand.
#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<ConfigDetails>,
}

#[derive(Default, Deserialize)]
struct ConfigDetails {
    #[serde(default, rename = "User")]
    user: Option<String>,
    #[serde(default, rename = "Labels")]
    labels: Option<BTreeMap<String, String>>,
}

fn claim(digest: Digest, expected: &DiffId, actual: &DiffId) -> Arc<Error> {
    let source =
        LayerProblem::Claim { expected: Box::new(*expected.digest()), actual: Box::new(*actual.digest()) };
    Arc::new(Error::Layer { digest, source })
}

fn joined(done: Result<Result<(), Arc<Error>>, tokio::task::JoinError>) -> Result<(), Arc<Error>> {
    done.unwrap_or_else(|_| Err(Arc::new(Error::Cancelled)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Arc<Error>> + Send + 'static,
) -> Result<T, Arc<Error>> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Arc::new(Error::Cancelled)))
}
