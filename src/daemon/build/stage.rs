//! One stage: its base, then its steps in order.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use pinnace_build::apply::{Draft, absolute, apply};
use pinnace_build::command::{self, Command, MountKind, Network};
use pinnace_build::expand;
use pinnace_build::parse::parse_one;
use pinnace_build::pattern::Pattern;
use pinnace_build::stages::Step;
use pinnace_build::{Base, Instruction, Scope, excerpt};
use pinnace_image::{Config, History};
use pinnace_pull::PullRequest;
use pinnace_store::{DiffId, ImageRecord};

use super::copy::{self, Times};
use super::key::Key;
use super::run::{self, Job, Mounted, What};
use super::{Build, StepName, caches, now};
use crate::error::{Error, Within as _};
use crate::image::find;

/// What a program finds its programs by where the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Arguments that need not be declared, and that are nobody's business: they are in no key and in no history.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Whether an argument need not be declared.
pub(crate) fn is_predefined(name: &str) -> bool {
    PREDEFINED.contains(&name) || name == "SOURCE_DATE_EPOCH"
}

/// A stage that is done.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) config: Config,
    /// What it is a function of.
    key: String,
}

impl Done {
    fn layers(&self) -> &[DiffId] {
        &self.config.rootfs.diff_ids
    }
}

type Earlier = BTreeMap<usize, Arc<Done>>;

struct Stage<'a> {
    build: &'a Arc<Build>,
    index: usize,
    label: String,
    earlier: &'a Earlier,
    done: Done,
    draft: Draft,
    args: BTreeMap<String, String>,
    position: usize,
    total: usize,
}

/// Runs a stage whose predecessors are done.
pub(crate) async fn run(build: &Arc<Build>, index: usize, earlier: &Earlier) -> Result<Done, Error> {
    let Some(planned) = build.plan.stages.get(index) else { return Err(Error::CallerGone) };
    let shown = |error: Error| in_file(build, &planned.from, error);
    let mut stage = Stage {
        build,
        index,
        label: build.plan.label(index),
        earlier,
        done: begin(build, index, earlier).await.map_err(shown)?,
        draft: Draft::default(),
        args: BTreeMap::new(),
        position: 1,
        total: 1 + planned.steps.len(),
    };
    stage.draft.run = std::mem::take(&mut stage.done.config.config);
    let triggers = std::mem::take(&mut stage.draft.run.on_build);
    let mut steps = Vec::new();
    for text in &triggers {
        let instruction = parse_one(text, planned.from.lines).map_err(|error| shown(wrong(error.message)))?;
        let command = Command::parse(&instruction, '\\').map_err(|error| shown(wrong(error.message)))?;
        steps.push(Step { instruction, command });
    }
    stage.total += steps.len();
    let from = StepName {
        stage: &stage.label,
        position: 1,
        total: stage.total,
        text: planned.from.text(),
        line: planned.from.lines.0,
    };
    let key = stage.done.key.clone();
    build.step(from, &key, |_| async { Ok(None) }).await.map_err(shown)?;
    for step in steps.iter().chain(&planned.steps) {
        stage.position += 1;
        let carried = Box::pin(stage.step(step)).await;
        carried.map_err(|error| in_file(build, &step.instruction, error))?;
    }
    stage.done.config.config = stage.draft.run;
    Ok(stage.done)
}

/// An error with the lines of the Dockerfile that it is about.
fn in_file(build: &Build, instruction: &Instruction, error: Error) -> Error {
    if matches!(error, Error::CallerGone) {
        return error;
    }
    let request = &build.request;
    Error::Dockerfile {
        excerpt: excerpt(&request.dockerfile_name, &request.dockerfile, instruction.lines)
            + &instruction.keyword,
        source: Some(Box::new(error)),
    }
}

fn wrong(message: String) -> Error {
    Error::invalid("instruction", message)
}

/// What a stage begins with.
async fn begin(build: &Arc<Build>, index: usize, earlier: &Earlier) -> Result<Done, Error> {
    let Some(planned) = build.plan.stages.get(index) else { return Err(Error::CallerGone) };
    let platform = &build.request.platform;
    let mut done = match &planned.base {
        Base::Stage(base) => {
            let base = earlier.get(base).ok_or(Error::CallerGone)?;
            (**base).clone()
        }
        Base::Scratch => Done {
            config: Config {
                architecture: platform.architecture.clone(),
                variant: platform.variant.clone(),
                os: platform.os.clone(),
                ..Config::default()
            },
            key: Key::new("", "scratch").finish(),
        },
        Base::Image(name) => {
            let image = image(build, name).await?;
            let id = image.id;
            let bytes = build.node.blocking(move |node| Ok(node.store.blob(id.digest())?)).await?;
            let config = Config::parse(&bytes)
                .map_err(|source| crate::record::Error::Json { path: id.to_string().into(), source })?;
            for layer in &image.layers {
                build.lease.hold_layer(layer).ok_or(pinnace_store::Error::LayerNotFound(*layer))?;
            }
            Done { config, key: Key::new(&id.to_string(), "image").finish() }
        }
    };
    let mut key = Key::new(&done.key, "from");
    key.text(&platform.to_string());
    key.text(&format!("{:?}", build.epoch));
    done.key = key.finish();
    Ok(done)
}

/// An image that is here, or that is pulled.
async fn image(build: &Build, name: &str) -> Result<Arc<ImageRecord>, Error> {
    if !build.request.pull
        && let Some(image) = find(&build.node, name)
    {
        return Ok(image);
    }
    let what = || format!("pull image {name}");
    let reference = build.node.registry.reference(name).within(what)?;
    Ok(build.node.puller.pull(PullRequest::new(reference)).await.within(what)?.record)
}

impl Stage<'_> {
    fn scope(&self) -> Scope {
        let env = self.draft.run.env.iter().filter_map(|entry| entry.split_once('='));
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Scope { env, args: self.args.clone() }
    }

    async fn step(&mut self, step: &Step) -> Result<(), Error> {
        let escape = self.build.plan.escape;
        match &step.command {
            Command::Arg(pairs) => {
                for (name, default) in pairs {
                    self.declare(name, default.as_deref())?;
                }
                self.without_layer(step, false).await
            }
            Command::Run(run) => Box::pin(self.run(step, run)).await,
            Command::Copy(copy) => Box::pin(self.copy(step, copy)).await,
            Command::Maintainer(author) => {
                self.done.config.author.clone_from(author);
                self.without_layer(step, true).await
            }
            Command::Workdir(_) => {
                let scope = self.scope();
                apply(&step.command, &mut self.draft, &scope, escape).map_err(wrong)?;
                self.workdir(step).await
            }
            command => {
                let scope = self.scope();
                apply(command, &mut self.draft, &scope, escape).map_err(wrong)?;
                self.without_layer(step, true).await
            }
        }
    }

    /// The caller's value, the default, that of before the first FROM, that of the platform.
    fn declare(&mut self, name: &str, default: Option<&str>) -> Result<(), Error> {
        let scope = self.scope();
        let default = default.map(|text| expand::word(text, &scope, self.build.plan.escape)).transpose();
        let given = self.build.request.args.get(name).cloned();
        let value = given
            .or(default.map_err(wrong)?)
            .or_else(|| self.build.plan.global.get(name).cloned())
            .or_else(|| self.build.platforms.get(name).cloned());
        if let Some(value) = value {
            self.args.insert(name.to_owned(), value);
        }
        Ok(())
    }

    fn name(&self, step: &Step) -> StepName<'_> {
        StepName {
            stage: &self.label,
            position: self.position,
            total: self.total,
            text: step.instruction.text(),
            line: step.instruction.lines.0,
        }
    }

    fn record(&mut self, step: &Step, layer: Option<DiffId>, created: String) {
        let comment = "pinnace".to_owned();
        self.done.config.rootfs.diff_ids.extend(layer);
        self.done.config.history.push(History {
            created: Some(created.clone()),
            created_by: step.instruction.text(),
            comment,
            empty_layer: layer.is_none(),
            ..History::default()
        });
        self.done.config.created = Some(created);
    }

    /// A step that changes the config, and the key of all that follow. An argument that nobody uses is no reason to do
    /// anything again.
    async fn without_layer(&mut self, step: &Step, counts: bool) -> Result<(), Error> {
        let mut key = Key::new(&self.done.key, "config");
        key.text(&serde_json::to_string(&self.draft.run).unwrap_or_default());
        key.text(&step.instruction.text());
        let key = key.finish();
        let (_, created) = self.build.step(self.name(step), &key, |_| async { Ok(None) }).await?;
        if counts {
            self.done.key = key;
        }
        self.record(step, None, created);
        Ok(())
    }

    async fn workdir(&mut self, step: &Step) -> Result<(), Error> {
        let mut key = Key::new(&self.done.key, "workdir");
        key.text(&self.draft.run.working_dir);
        let key = key.finish();
        let (build, layers, path) =
            (Arc::clone(self.build), self.done.layers().to_vec(), self.draft.run.working_dir.clone());
        let times = self.times();
        let made = self
            .build
            .step(self.name(step), &key, |_| async move {
                let own = Arc::clone(&build);
                build
                    .node
                    .blocking(move |node| {
                        let rootfs = own.view(&layers)?;
                        copy::make_directory(&node.store, &own.lease, rootfs.as_fd(), &path, times)
                    })
                    .await
            })
            .await?;
        self.done.key = key;
        self.record(step, made.0, made.1);
        Ok(())
    }

    fn times(&self) -> Times {
        let now = i64::try_from(now()).unwrap_or(i64::MAX);
        Times { now: self.build.epoch.unwrap_or(now), most: self.build.epoch }
    }

    /// The tree that `--from` means: a stage, an image, or the context without one.
    async fn tree(&self, from: Option<&str>) -> Result<OwnedFd, Error> {
        let layers = match from {
            None => {
                let context = self.build.request.context.ok_or_else(|| Error::State {
                    subject: "the context".to_owned(),
                    state: "empty".to_owned(),
                    hint: "a Dockerfile from standard input has no files: give a directory".to_owned(),
                })?;
                return self.build.node.blocking(move |node| Ok(node.store.layer_root(&context)?)).await;
            }
            Some(from) => self.layers_of(from).await?,
        };
        let own = Arc::clone(self.build);
        self.build.node.blocking(move |_| own.view(&layers)).await
    }

    async fn layers_of(&self, from: &str) -> Result<Vec<DiffId>, Error> {
        if let Some(stage) = self.build.plan.source(self.index, from) {
            let done = self.earlier.get(&stage).ok_or(Error::CallerGone)?;
            return Ok(done.layers().to_vec());
        }
        let image = image(self.build, from).await?;
        for layer in &image.layers {
            self.build.lease.hold_layer(layer).ok_or(pinnace_store::Error::LayerNotFound(*layer))?;
        }
        Ok(image.layers.clone())
    }

    async fn copy(&mut self, step: &Step, command: &command::Copy) -> Result<(), Error> {
        let escape = self.build.plan.escape;
        let scope = self.scope();
        let word = |text: &str| expand::word(text, &scope, escape).map_err(wrong);
        let mut sources = Vec::new();
        for source in &command.sources {
            let source = word(source)?;
            if command.add
                && (source.starts_with("http://")
                    || source.starts_with("https://")
                    || source.starts_with("git@"))
            {
                return Err(wrong(format!(
                    "{source}: files of other machines are not fetched; use RUN or the context"
                )));
            }
            sources.push(source);
        }
        if command.checksum.is_some() {
            return Err(wrong("--checksum is for files of other machines".to_owned()));
        }
        let mut documents = Vec::new();
        for document in &command.documents {
            let content = if document.expand {
                expand::variables(&document.content, &scope, escape).map_err(wrong)?
            } else {
                document.content.clone()
            };
            documents.push((document.name.clone(), content.into_bytes()));
        }
        let chmod = command.chmod.as_deref().map(word).transpose()?;
        let chmod = chmod.map(|text| {
            let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.ok_or_else(|| wrong(format!("--chmod is an octal mode, not {text:?}")))
        });
        let excludes = command.exclude.iter().map(|text| Pattern::parse(&word(text)?).map_err(wrong));
        let plan = copy::Plan {
            keyword: if command.add { "ADD" } else { "COPY" },
            destination: word(&command.destination)?,
            working_dir: self.draft.run.working_dir.clone(),
            chown: command.chown.as_deref().map(word).transpose()?,
            chmod: chmod.transpose()?,
            parents: command.parents,
            excludes: excludes.collect::<Result<_, _>>()?,
            unpack: command.unpack.unwrap_or(command.add),
            keep_owners: command.from.is_some(),
            sources,
            documents,
        };
        let root = match plan.sources.is_empty() {
            true => None,
            false => Some(self.tree(command.from.as_deref()).await?),
        };
        let mut key = Key::new(&self.done.key, plan.keyword);
        let (plan, root, selected, key) = self
            .build
            .node
            .blocking(move |_| {
                let fd = root.as_ref().map(|root| root.as_fd());
                let selected = fd.map(|fd| plan.select(fd)).transpose()?.unwrap_or_default();
                plan.digest(fd, &selected, &mut key)?;
                Ok((plan, root, selected, key.finish()))
            })
            .await?;
        let (build, layers, times) = (Arc::clone(self.build), self.done.layers().to_vec(), self.times());
        let made = self
            .build
            .step(self.name(step), &key, |_| async move {
                let own = Arc::clone(&build);
                let written = build.node.blocking(move |node| {
                    let rootfs = own.view(&layers)?;
                    let fd = root.as_ref().map(|root| root.as_fd());
                    plan.write(&node.store, &own.lease, fd, &selected, rootfs.as_fd(), times)
                });
                written.await.map(Some)
            })
            .await?;
        self.done.key = key;
        self.record(step, made.0, made.1);
        Ok(())
    }

    async fn run(&mut self, step: &Step, command: &command::Run) -> Result<(), Error> {
        let mut key = Key::new(&self.done.key, "run");
        let mut argv = self.draft.command_line(&command.form);
        let mut mounts = Vec::new();
        if let Some(script) = &command.script {
            let (host, target) =
                (self.scratch_file(script.as_bytes(), 0o755, 0, 0).await?, "/run/pinnace/script".to_owned());
            key.text(script);
            argv = vec![target.clone()];
            mounts.push(Mounted { target, read_only: true, what: What::Host(host) });
        }
        argv.iter().for_each(|word| key.text(word));
        // Arguments that were declared are variables; ENV wins.
        let mut env: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (name, value) in &self.args {
            env.insert(name.clone(), value.clone().into_bytes());
        }
        for (name, value) in self.draft.run.env.iter().filter_map(|entry| entry.split_once('=')) {
            env.insert(name.to_owned(), value.as_bytes().to_vec());
        }
        env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.into());
        for (name, value) in &env {
            key.text(name);
            key.add(value);
        }
        for name in PREDEFINED {
            if let Some(value) = self.build.request.args.get(name) {
                env.entry(name.to_owned()).or_insert_with(|| value.clone().into_bytes());
            }
        }
        let network = match command.network {
            Network::Default => self.build.request.network,
            asked => asked,
        };
        key.text(&format!("{network:?}"));
        let mut locks = Vec::new();
        for mount in &command.mounts {
            key.text(&mount.text);
            self.mount(mount, &mut key, &mut mounts, &mut env, &mut locks).await?;
        }
        let key = key.finish();
        let job = Job {
            step: 0,
            layers: self.done.layers().to_vec(),
            command: argv,
            env: env.into_iter().collect(),
            working_dir: match self.draft.run.working_dir.as_str() {
                "" => "/".to_owned(),
                directory => directory.to_owned(),
            },
            user: self.draft.run.user.clone(),
            network,
            mounts,
        };
        let build = Arc::clone(self.build);
        let made = self
            .build
            .step(self.name(step), &key, |step| async move {
                run::run(&build, Job { step, ..job }).await.map(Some)
            })
            .await;
        drop(locks);
        let made = made?;
        self.done.key = key;
        self.record(step, made.0, made.1);
        Ok(())
    }

    async fn mount(
        &self,
        mount: &command::Mount,
        key: &mut Key,
        mounts: &mut Vec<Mounted>,
        env: &mut BTreeMap<String, Vec<u8>>,
        locks: &mut Vec<tokio::sync::OwnedMutexGuard<()>>,
    ) -> Result<(), Error> {
        let scope = self.scope();
        let word = |text: &str| expand::word(text, &scope, self.build.plan.escape).map_err(wrong);
        let target = absolute(&self.draft.run.working_dir, &word(&mount.target)?);
        let read_only = mount.read_only;
        match &mount.kind {
            MountKind::Bind { from, source } => {
                let source = pinnace_build::ignore::clean(&format!("/{}", word(source)?));
                let tree = self.tree(from.as_deref()).await?;
                let path = source.clone();
                let (tree, digest) = self
                    .build
                    .node
                    .blocking(move |_| {
                        let mut content = Key::new("", "bind");
                        copy::hash(tree.as_fd(), &path, &[], &mut content)?;
                        Ok((tree, content.finish()))
                    })
                    .await?;
                key.text(&digest);
                let what = if read_only {
                    What::Part(tree, PathBuf::from(source))
                } else {
                    drop(tree);
                    let layers = match from.as_deref() {
                        Some(from) => self.layers_of(from).await?,
                        None => self.build.request.context.into_iter().collect(),
                    };
                    let own = Arc::clone(self.build);
                    let snapshot = self.build.node.blocking(move |_| own.scratch(&layers)).await?;
                    What::Scratch(snapshot, PathBuf::from(source))
                };
                mounts.push(Mounted { target, read_only, what });
            }
            MountKind::Cache { id, sharing, from, source, mode, uid, gid } => {
                if from.is_some() || !source.is_empty() {
                    return Err(wrong(
                        "a cache that begins with files (from, source) is not supported".to_owned(),
                    ));
                }
                let id = id.as_deref().map(word).transpose()?.unwrap_or_else(|| target.clone());
                let (path, turn) = caches::claim(&self.build.node, &id, *sharing).await;
                locks.extend(turn);
                let (owned, mode, uid, gid) = (path.clone(), *mode, *uid, *gid);
                self.build.node.blocking(move |node| caches::make(node, &owned, mode, uid, gid)).await?;
                mounts.push(Mounted { target, read_only, what: What::Host(path) });
            }
            MountKind::Tmpfs { size } => {
                mounts.push(Mounted { target, read_only: false, what: What::Tmpfs(*size) })
            }
            MountKind::Secret { id, env: variable, required, mode, uid, gid } => {
                let Some(value) = self.build.request.secrets.get(id) else {
                    if *required {
                        return Err(wrong(format!("secret {id:?} was not given: --secret id={id},src=FILE")));
                    }
                    return Ok(());
                };
                if let Some(variable) = variable {
                    env.insert(variable.clone(), value.clone());
                }
                if variable.is_none() || !mount.target.is_empty() {
                    let target = if mount.target.is_empty() { format!("/run/secrets/{id}") } else { target };
                    let file = self.scratch_file(value, *mode, *uid, *gid).await?;
                    mounts.push(Mounted { target, read_only: true, what: What::Host(file) });
                }
            }
        }
        Ok(())
    }

    /// A file of this build in memory: it goes with the build, and with the machine's power.
    async fn scratch_file(&self, content: &[u8], mode: u32, uid: u32, gid: u32) -> Result<PathBuf, Error> {
        let (own, content) = (Arc::clone(self.build), content.to_vec());
        self.build.node.blocking(move |_| own.scratch_file(&content, mode, uid, gid)).await
    }
}
