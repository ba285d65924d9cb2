//! Builds: a Dockerfile is carried out, stage by stage, step by step.
//!
//! ```text
//! context ──► a layer that nobody refers to            stages side by side; each waits for those it copies from
//!                    │                                   │ step: key ─ known? ─► its layer
//!                    ▼                                   ▼
//!  COPY, ADD: files of a read-only tree ──tar──► layer   RUN: snapshot ─► a pod of its own ─► commit ─► layer
//!                                                        ENV, LABEL, …: the config alone
//! ```
//! - The key of a step is a function of everything that it can see: what came before, the instruction with its variables, the
//!   files it takes by their content (never their times). RUN is not a function of what it does.
//! - A step's layer is tarred once; nothing is compressed. What is in the context or in another stage is a mounted tree that
//!   nobody can write to, so paths and links in it lead nowhere else.
//! - Nothing of a build that dies is left: snapshots belong to nobody then, the pod of a RUN is recorded as one whose start was
//!   cut short, and what was not remembered is collected.

mod archive;
pub(crate) mod caches;
mod copy;
mod key;
mod run;
mod stage;
mod tree;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use pinnace_build::stages::{Machine, platform_args};
use pinnace_build::{Dockerfile, Plan, parse};
use pinnace_registry::Platform;
use pinnace_store::{CachedStep, DiffId, ImageRecord, Lease, MountOptions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::error::{Error, Within as _};
use crate::id::ContainerId;
use crate::node::Node;
use crate::table::lock;
use stage::Done;

/// Steps that nobody has needed for so long are forgotten.
const KEPT_SECONDS: u64 = 14 * 24 * 3600;

/// The network of a RUN that does not say.
pub use pinnace_build::command::Network;

/// What is to be built.
#[derive(Debug)]
pub struct BuildRequest {
    /// The text of the Dockerfile.
    pub dockerfile: String,
    /// What it is called.
    pub dockerfile_name: String,
    /// Names for the image, normalised.
    pub names: Vec<String>,
    /// The stage that is wanted.
    pub target: Option<String>,
    /// `--build-arg`
    pub args: BTreeMap<String, String>,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// Do every step again.
    pub no_cache: bool,
    /// Pull base images even if they are here.
    pub pull: bool,
    /// For RUNs that do not say.
    pub network: Network,
    /// What machine the image is for.
    pub platform: Platform,
    /// By id.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// The context, if there is one.
    pub context: Option<DiffId>,
}

/// What a build tells.
#[derive(Debug)]
pub enum Told {
    /// A step begins.
    Started {
        /// Its number.
        step: u32,
        /// Its stage.
        stage: String,
        /// Which step of the stage.
        position: usize,
        /// How many the stage has.
        total: usize,
        /// The instruction.
        text: String,
        /// Its line.
        line: usize,
    },
    /// A step writes.
    Output {
        /// Its number.
        step: u32,
        /// What.
        data: Vec<u8>,
        /// To its standard error.
        is_stderr: bool,
    },
    /// A step is done.
    Ended {
        /// Its number.
        step: u32,
        /// It was done before.
        cached: bool,
        /// How long it took, in milliseconds.
        duration_ms: u64,
        /// Why not.
        error: String,
    },
    /// What may not be meant.
    Warning(String),
}

/// A build under way: what its stages share.
pub(crate) struct Build {
    pub(crate) node: Arc<Node>,
    pub(crate) request: BuildRequest,
    pub(crate) plan: Plan,
    pub(crate) lease: Lease,
    /// For the names of its snapshots.
    pub(crate) id: String,
    /// `SOURCE_DATE_EPOCH`
    pub(crate) epoch: Option<i64>,
    pub(crate) platforms: BTreeMap<String, String>,
    pub(crate) cancelled: CancellationToken,
    told: mpsc::Sender<Told>,
    steps: AtomicU32,
    views: Mutex<Views>,
}

#[derive(Default)]
struct Views {
    keys: Vec<String>,
    files: u32,
}

type Outcome = Result<Arc<Done>, Arc<Error>>;

/// Builds an image. `cancelled` ends it early; what it began is undone then.
pub async fn build(
    node: &Arc<Node>,
    request: BuildRequest,
    lease: Lease,
    told: mpsc::Sender<Told>,
    cancelled: CancellationToken,
) -> Result<Arc<ImageRecord>, Error> {
    let shown = |error: &pinnace_build::Error| Error::Dockerfile {
        excerpt: error.shown(&request.dockerfile_name, &request.dockerfile),
        source: None,
    };
    let file: Dockerfile = parse::parse(&request.dockerfile).map_err(|error| shown(&error))?;
    for warning in &file.warnings {
        let text = format!("{}:{}: {}", request.dockerfile_name, warning.first, warning.message);
        let _ = told.send(Told::Warning(text)).await;
    }
    if let Some(syntax) = &file.syntax {
        tracing::debug!(syntax, "the built-in frontend is used");
    }
    let platforms = platform_args(&machine(&Platform::host()), &machine(&request.platform));
    let plan = Plan::of(&file, &request.args, &platforms, request.target.as_deref())
        .map_err(|error| shown(&error))?;
    for name in request.args.keys() {
        let known =
            plan.declared.contains(name) || stage::is_predefined(name) || platforms.contains_key(name);
        if !known {
            let _ = told
                .send(Told::Warning(format!("the build argument {name} is not declared by any ARG")))
                .await;
        }
    }
    let epoch = request.args.get("SOURCE_DATE_EPOCH").map(|text| {
        text.parse::<i64>()
            .map_err(|_| Error::invalid("SOURCE_DATE_EPOCH", format!("{text:?} is no time in seconds")))
    });
    let build = Arc::new(Build {
        node: Arc::clone(node),
        epoch: epoch.transpose()?,
        request,
        plan,
        lease,
        id: ContainerId::random().as_str()[..16].to_owned(),
        platforms,
        cancelled,
        told,
        steps: AtomicU32::new(0),
        views: Mutex::default(),
    });
    let built = run_stages(&build).await;
    let done = match built {
        Ok(done) => done,
        Err(error) => {
            // The other stages stop at their next step.
            build.cancelled.cancel();
            build.end_views().await;
            return Err(Error::Joined { code: error.code(), message: error.chain() });
        }
    };
    let finished = finish(&build, &done).await;
    build.end_views().await;
    finished
}

/// Runs the stages that are needed, each as soon as those that it waits for are done.
async fn run_stages(build: &Arc<Build>) -> Outcome {
    let mut stages: BTreeMap<usize, Shared<BoxFuture<'static, Outcome>>> = BTreeMap::new();
    for index in build.plan.needed() {
        let waits: Vec<_> = build
            .plan
            .waits_for(index)
            .into_iter()
            .filter_map(|earlier| stages.get(&earlier).cloned().map(|stage| (earlier, stage)))
            .collect();
        let own = Arc::clone(build);
        let task = tokio::spawn(async move {
            let mut done = BTreeMap::new();
            for (earlier, stage) in waits {
                done.insert(earlier, stage.await?);
            }
            let ran = Box::pin(stage::run(&own, index, &done)).await;
            if ran.is_err() {
                own.cancelled.cancel();
            }
            ran.map(Arc::new).map_err(Arc::new)
        });
        let joined = async move { task.await.unwrap_or_else(|lost| Err(Arc::new(Error::from(lost)))) };
        stages.insert(index, joined.boxed().shared());
    }
    // All of them are waited for: none may still be at work when their snapshots go.
    let mut failure = None;
    let mut target = None;
    for (index, stage) in stages {
        match stage.await {
            Ok(done) if index == build.plan.target => target = Some(done),
            Ok(_) => {}
            // Who was only stopped is not the reason.
            Err(error) if failure.is_none() || matches!(failure.as_deref(), Some(Error::CallerGone)) => {
                failure = Some(error);
            }
            Err(_) => {}
        }
    }
    match (failure, target) {
        (Some(error), _) => Err(error),
        (None, Some(done)) => Ok(done),
        (None, None) => Err(Arc::new(Error::CallerGone)),
    }
}

/// Records the image.
async fn finish(build: &Arc<Build>, done: &Arc<Done>) -> Result<Arc<ImageRecord>, Error> {
    let (own, done) = (Arc::clone(build), Arc::clone(done));
    build
        .node
        .blocking(move |node| {
            let mut config = done.config.clone();
            config.config.labels.extend(own.request.labels.clone());
            if let Some(epoch) = own.epoch {
                config.created = Some(clock::rfc3339(epoch));
            }
            let bytes = config
                .bytes()
                .map_err(|source| crate::record::Error::Json { path: "image config".into(), source })?;
            let names = own.request.names.clone();
            let image = pinnace_archive::record(&node.store, &own.lease, &bytes, Vec::new(), names)?;
            tracing::info!(image_id = %image.id, names = ?own.request.names, "image built");
            let oldest = now().saturating_sub(KEPT_SECONDS);
            node.store.forget_steps(|step| step.used_at < oldest)?;
            Ok(image)
        })
        .await
        .within(|| "record the image".to_owned())
}

fn machine(platform: &Platform) -> Machine<'_> {
    Machine { os: &platform.os, architecture: &platform.architecture, variant: &platform.variant }
}

/// Where files of builds are: secrets and scripts.
fn files(node: &Node) -> PathBuf {
    node.config.daemon.run.join("builds")
}

/// Removes what builds of an earlier daemon have left.
pub fn recover(node: &Node) -> Result<(), Error> {
    Ok(crate::record::remove_directory(&files(node))?)
}

/// Seconds since the epoch.
pub(crate) fn now() -> u64 {
    u64::try_from(clock::realtime_ns() / 1_000_000_000).unwrap_or(0)
}

/// A step of a stage, as it is told.
pub(crate) struct StepName<'a> {
    pub(crate) stage: &'a str,
    pub(crate) position: usize,
    pub(crate) total: usize,
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Build {
    /// Tells something; whoever does not listen any more has gone, and the build ends.
    pub(crate) async fn tell(&self, told: Told) -> Result<(), Error> {
        self.told.send(told).await.map_err(|_| Error::CallerGone)
    }

    pub(crate) fn teller(&self) -> mpsc::Sender<Told> {
        self.told.clone()
    }

    /// Ends early if that was asked for.
    pub(crate) fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancelled.is_cancelled() { Err(Error::CallerGone) } else { Ok(()) }
    }

    /// Does a step, unless it was done before: its layer, and when it was done.
    pub(crate) async fn step<F>(
        &self,
        name: StepName<'_>,
        key: &str,
        work: impl FnOnce(u32) -> F,
    ) -> Result<(Option<DiffId>, String), Error>
    where
        F: Future<Output = Result<Option<DiffId>, Error>>,
    {
        self.check_cancelled()?;
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        self.tell(Told::Started {
            step,
            stage: name.stage.to_owned(),
            position: name.position,
            total: name.total,
            text: name.text.clone(),
            line: name.line,
        })
        .await?;
        let begun = Instant::now();
        let known = if self.request.no_cache { None } else { self.node.store.cached_step(&self.lease, key) };
        let cached = known.is_some();
        let result = match known {
            Some(known) => Ok((known.layer, known.created.clone())),
            None => {
                let created = self.epoch.map_or_else(clock::timestamp, clock::rfc3339);
                work(step).await.map(|layer| (layer, created))
            }
        };
        let result = match result {
            Ok((layer, created)) => {
                let record = CachedStep::new(key.to_owned(), layer, created.clone(), name.text, now());
                let remembered = self.node.blocking(move |node| Ok(node.store.remember_step(record)?)).await;
                remembered.map(|()| (layer, created))
            }
            Err(error) => Err(error),
        };
        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let error = result.as_ref().err().map(Error::chain).unwrap_or_default();
        self.tell(Told::Ended { step, cached, duration_ms, error }).await?;
        result
    }

    /// A tree that nobody can write to; it lasts as long as the build.
    pub(crate) fn view(&self, layers: &[DiffId]) -> Result<std::os::fd::OwnedFd, Error> {
        let key = {
            let mut views = lock(&self.views);
            let key = format!("build-{}-{}", self.id, views.keys.len());
            views.keys.push(key.clone());
            key
        };
        self.node.store.view(&key, layers)?;
        Ok(self.node.store.mount(&key, &MountOptions::default())?)
    }

    /// A snapshot of layers that somebody may write to; what is written goes with the build.
    pub(crate) fn scratch(&self, layers: &[DiffId]) -> Result<String, Error> {
        let key = {
            let mut views = lock(&self.views);
            let key = format!("build-{}-{}", self.id, views.keys.len());
            views.keys.push(key.clone());
            key
        };
        self.node.store.prepare(&key, layers)?;
        Ok(key)
    }

    /// A file that lasts as long as the build, in memory where the run directory is.
    pub(crate) fn scratch_file(
        &self,
        content: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> Result<PathBuf, Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = files(&self.node).join(&self.id);
        crate::record::make_directory(&directory)?;
        let number = {
            let mut views = lock(&self.views);
            views.files += 1;
            views.files
        };
        let path = directory.join(number.to_string());
        let fault = |op| Error::io(op, path.clone());
        std::fs::write(&path, content).map_err(fault("write"))?;
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).map_err(fault("set the owner of"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
            .map_err(fault("set the mode of"))?;
        Ok(path)
    }

    /// The key of a snapshot that a step writes to.
    pub(crate) fn snapshot_key(&self, step: u32) -> String {
        format!("build-{}-run-{step}", self.id)
    }

    async fn end_views(&self) {
        let keys = std::mem::take(&mut lock(&self.views).keys);
        let own = self.id.clone();
        let ended = self.node.blocking(move |node| {
            crate::record::remove_directory(&files(node).join(own))?;
            for key in keys {
                node.store.remove(&key)?;
            }
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::error!(error = error.chain(), "snapshots of a build stay");
        }
    }
}
