//! RUN: a container in a pod of its own, on no list, whose writable layer becomes the step's layer.
//!
//! Its sandbox is recorded as one that is being started, and stays so: a daemon that finds it undoes it ([`crate::recover`]).

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{LinuxResources, Mount};
use pinnace_cgroup::{Cgroup, CgroupPath};
use pinnace_launcher::protocol::{Attach, ContainerRef, Exited, Launch, Reply, Request};
use pinnace_spec::lower::{Context, MissingSource, PodNamespaces, Source, Stdio};
use pinnace_spec::{mounts, user};
use pinnace_store::{CommitOptions, DiffId, MountOptions};
use tokio::io::unix::AsyncFd;

use super::{Build, Network, Told};
use crate::container::exec::pipe;
use crate::container::request::{ContainerRequest, Profile, Security, UserRequest};
use crate::container::spec::{self, PodPaths};
use crate::container::start;
use crate::error::{Error, Within as _};
use crate::id::{ContainerId, SandboxId};
use crate::monitor::{Monitor, Told as MonitorTold};
use crate::node::Node;
use crate::readiness::{Watched, readable};
use crate::sandbox::record::{LocalPod, NamespaceMode, Namespaces, SandboxConfig, SandboxName};
use crate::sandbox::remove::remove_cgroup;
use crate::sandbox::{Sandbox, run as sandbox_run};

/// What a RUN mounts.
pub(crate) struct Mounted {
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) what: What,
}

/// Sources of mounts.
pub(crate) enum What {
    /// A file or directory of a tree that nobody can write to.
    Part(OwnedFd, PathBuf),
    /// The same, for whoever wants to write: what is written is thrown away with the snapshot of this name.
    Scratch(String, PathBuf),
    /// A path of the host that is ours.
    Host(PathBuf),
    /// Memory, at most so many bytes.
    Tmpfs(u64),
}

/// What a RUN runs.
pub(crate) struct Job {
    pub(crate) step: u32,
    pub(crate) layers: Vec<DiffId>,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, Vec<u8>)>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    pub(crate) network: Network,
    pub(crate) mounts: Vec<Mounted>,
}

const STREAM_BYTES: usize = 32 << 10;

/// Runs it, and makes a layer of what it wrote. Everything that was begun is undone, whatever happens.
pub(crate) async fn run(build: &Arc<Build>, job: Job) -> Result<DiffId, Error> {
    let key = build.snapshot_key(job.step);
    let own = Arc::clone(build);
    let task = build.node.tasks.spawn(async move {
        let targets = job.mounts.iter().map(|mount| mount.target.clone().into_bytes()).collect();
        let id = SandboxId::random();
        let ended = Box::pin(in_pod(&own, &id, &key, job)).await;
        let made = match ended {
            Ok(()) => commit(&own, &key, targets).await,
            Err(error) => Err(error),
        };
        let removed = own.node.blocking(move |node| Ok(node.store.remove(&key)?)).await;
        made.and_then(|layer| removed.map(|_| layer))
    });
    task.await?
}

async fn commit(build: &Arc<Build>, key: &str, mut targets: Vec<Vec<u8>>) -> Result<DiffId, Error> {
    // What every container has mounted.
    for path in ["/dev", "/dev/shm", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        targets.push(path.as_bytes().to_vec());
    }
    let options = CommitOptions { mount_targets: targets, mtime_max: build.epoch };
    let (own, key) = (Arc::clone(build), key.to_owned());
    build.node.blocking(move |node| Ok(node.store.commit_snapshot(&own.lease, &key, &options)?.diff_id)).await
}

async fn in_pod(build: &Arc<Build>, id: &SandboxId, key: &str, job: Job) -> Result<(), Error> {
    let node = &build.node;
    let network = match job.network {
        Network::Default | Network::None => NamespaceMode::Pod,
        Network::Host => NamespaceMode::Node,
    };
    let config = SandboxConfig {
        name: SandboxName {
            name: "build".to_owned(),
            namespace: "pinnace-build".to_owned(),
            uid: id.to_string(),
            attempt: 0,
        },
        hostname: if network == NamespaceMode::Pod { "build".to_owned() } else { String::new() },
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: None,
        sysctls: Default::default(),
        namespaces: Namespaces { network, ipc: NamespaceMode::Pod, pid: NamespaceMode::Container },
        user_namespace: None,
        privileged: false,
        runtime_handler: String::new(),
        selinux: Default::default(),
        overhead: None,
        resources: None,
        local: (job.network == Network::None)
            .then(|| LocalPod { isolated: true, shm_bytes: node.config.container.shm_size }),
    };
    let ran = match sandbox_run::build_unlisted(node, id, config).await {
        Ok(sandbox) => {
            let ran = Box::pin(in_container(build, &sandbox, key, job)).await;
            if let Some(labels) = sandbox.record().labels {
                node.selinux.release(&labels);
            }
            ran
        }
        Err(error) => Err(error),
    };
    sandbox_run::undo(node, id).await;
    ran
}

async fn in_container(build: &Arc<Build>, sandbox: &Arc<Sandbox>, key: &str, job: Job) -> Result<(), Error> {
    let node = &build.node;
    let monitor = sandbox.monitor().ok_or_else(|| Error::MonitorGone(sandbox.id.clone()))?;
    let mut told = monitor.take_told().ok_or_else(|| Error::MonitorGone(sandbox.id.clone()))?;
    // The same id, so that whoever knows the sandbox can find what runs in it.
    let container: ContainerId =
        sandbox.id.as_str().parse().map_err(|_| Error::invalid("id", sandbox.id.to_string()))?;
    let parent = sandbox.record().own_cgroup.unwrap_or_default();
    let path = sandbox_run::build_cgroup(&parent, &sandbox.id)?;
    let (planned, own_key, own_path, step) = (Arc::clone(sandbox), key.to_owned(), path.clone(), job.step);
    let shown = shown_command(&job.command);
    let launch = node.blocking(move |node| plan(node, &planned, &own_key, &own_path, job)).await?;
    let (plan, descriptors, scope) = launch;
    let request = Launch { container_id: container.to_string(), plan: Some(plan) };
    let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let launched = monitor.request(Request::Launch(request), &borrowed).await;
    let pid = match launched.within(|| format!("run {shown}"))? {
        Reply::Launched(launched) => launched.pid.unsigned_abs(),
        other => return Err(Error::unexpected(&sandbox.id, &other)),
    };
    if let (Some(systemd), Some((cgroup, resources))) = (&node.systemd, scope) {
        systemd.adopt(&cgroup, &resources, pid, "a step of a build").await?;
        node.blocking(move |_| Ok(cgroup.update(&resources).map(drop)?)).await?;
    }

    // Joined while it is held, so that not a byte is missed.
    let (out, out_theirs) = pipe()?;
    let (err, err_theirs) = pipe()?;
    let attach = Attach {
        container_id: container.to_string(),
        stdout: Some(0),
        stderr: Some(1),
        lossless: true,
        ..Attach::default()
    };
    let slots = [out_theirs, err_theirs];
    let borrowed: Vec<_> = slots.iter().map(|slot| slot.as_fd()).collect();
    monitor.request(Request::Attach(attach), &borrowed).await?;
    drop(slots);
    let reading = tokio::spawn({
        let (to, readers) = (build.teller(), [(out, false), (err, true)]);
        async move {
            let copies = readers.map(|(from, is_stderr)| copy(from, step, is_stderr, to.clone()));
            futures_util::future::join_all(copies).await;
        }
    });
    let start = Request::Start(ContainerRef { container_id: container.to_string() });
    let exited = match monitor.request(start, &[]).await.within(|| format!("run {shown}")) {
        Ok(Reply::Launched(_)) => until_exit(build, &mut told, &container, &path).await,
        Ok(other) => Err(Error::unexpected(&sandbox.id, &other)),
        Err(error) => Err(error),
    };
    end(node, &monitor, &container, &path).await;
    let _ = reading.await;
    match exited? {
        Exited { code: 0, .. } => Ok(()),
        Exited { oom_killed: true, .. } => {
            Err(Error::Process { command: shown, outcome: "ran out of memory".to_owned() })
        }
        Exited { code, .. } => Err(Error::Process {
            command: shown,
            outcome: format!("did not complete successfully: exit code: {code}"),
        }),
    }
}

/// The command as an error names it.
fn shown_command(command: &[String]) -> String {
    let text = command.join(" ");
    let line = text.lines().next().unwrap_or_default();
    if line.len() < text.len() { format!("{line} …") } else { text }
}

async fn until_exit(
    build: &Build,
    told: &mut tokio::sync::mpsc::Receiver<MonitorTold>,
    container: &ContainerId,
    path: &CgroupPath,
) -> Result<Exited, Error> {
    let mut killed = false;
    loop {
        tokio::select! {
            event = told.recv() => match event {
                Some(MonitorTold::Exited(exited)) if exited.container_id == container.as_str() => {
                    return if killed { Err(Error::CallerGone) } else { Ok(exited) };
                }
                Some(_) => {}
                None => return Err(Error::ShuttingDown),
            },
            () = build.cancelled.cancelled(), if !killed => {
                killed = true;
                kill(&build.node, path).await;
            }
        }
    }
}

async fn kill(node: &Node, path: &CgroupPath) {
    let path = path.clone();
    let killed = node.blocking(move |node| Ok(Cgroup::open(&node.hierarchy, &path)?.kill_all()?));
    if let Err(error) = killed.await {
        tracing::debug!(error = error.chain(), "nothing of a build to kill");
    }
}

/// What it left running ends; its cgroup goes, and the monitor forgets it.
async fn end(node: &Arc<Node>, monitor: &Monitor, container: &ContainerId, path: &CgroupPath) {
    kill(node, path).await;
    let own = path.clone();
    if let Err(error) = node.blocking(move |node| remove_cgroup(node, &own)).await {
        tracing::warn!(error = error.chain(), "cgroup of a build stays");
    }
    let forget = Request::Forget(ContainerRef { container_id: container.to_string() });
    if let Err(error) = monitor.request(forget, &[]).await {
        tracing::debug!(error = error.chain(), "monitor did not forget");
    }
}

/// Hands on what a stream gives, until it ends.
async fn copy(from: OwnedFd, step: u32, is_stderr: bool, to: tokio::sync::mpsc::Sender<Told>) {
    if let Err(error) = rustix::io::ioctl_fionbio(&from, true) {
        tracing::warn!(%error, "output of a build is not read");
        return;
    }
    let Ok(from): Result<AsyncFd<Watched<OwnedFd>>, _> = readable(from, "output of a build") else { return };
    let mut buffer = vec![0; STREAM_BYTES];
    loop {
        let Ok(mut ready) = from.readable().await else { return };
        match rustix::io::read(&from.get_ref().0, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                let data = buffer.get(..count).unwrap_or_default().to_vec();
                // Without a listener it is read all the same: the program must not wait.
                let _ = to.send(Told::Output { step, data, is_stderr }).await;
            }
            Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

type Planned = (pinnace_launcher::plan::LaunchPlan, Vec<OwnedFd>, Option<(Cgroup, LinuxResources)>);

fn plan(node: &Node, sandbox: &Sandbox, key: &str, path: &CgroupPath, job: Job) -> Result<Planned, Error> {
    node.store.prepare(key, &job.layers)?;
    let pod_labels = sandbox.record().labels;
    let labels = node.selinux.of_container(pod_labels.as_ref(), &Default::default(), false)?;
    let file_label = labels.as_ref().map(|labels| labels.file.as_str());
    let rootfs =
        node.store.mount(key, &MountOptions { selinux_context: file_label, ..MountOptions::default() })?;
    let user =
        user::resolve(rootfs.as_fd(), &user::Request { image_user: &job.user, ..user::Request::default() })?;
    let request = request(&job, sandbox);
    let mut built = spec::build(node, sandbox, &request, None, &user, &[], path.as_str())?;
    if let Some(labels) = &labels {
        spec::label(&mut built.spec, labels);
    }
    let mut sources: HashMap<PathBuf, Source> =
        HashMap::from([(node.pod_shm_source().to_owned(), Source::PodShm)]);
    let mut all = built.spec.mounts().clone().unwrap_or_default();
    for (number, mount) in job.mounts.into_iter().enumerate() {
        let access = if mount.read_only { "ro" } else { "rw" };
        let stand_in = PathBuf::from(format!("/run/pinnace/build/{number}"));
        let options = ["rbind", "rprivate", access];
        let target = &mount.target;
        all.push(match mount.what {
            What::Part(tree, part) => {
                sources.insert(stand_in.clone(), part_of(tree, part));
                mounts::bind(target, &stand_in, &options)
            }
            What::Scratch(snapshot, part) => {
                let tree = node.store.mount(&snapshot, &MountOptions::default())?;
                sources.insert(stand_in.clone(), part_of(tree, part));
                mounts::bind(target, &stand_in, &options)
            }
            What::Host(source) => mounts::bind(target, source, &options),
            What::Tmpfs(size) => tmpfs(target, size),
        });
    }
    built.spec.set_mounts(Some(all));
    let pod = PodPaths::of(sandbox);
    let (join, scope) = start::cgroup(node, path.as_str(), false, &built.spec)?;
    let spec = &built.spec;
    let binary_env = built.binary_env;
    let lowered = node.with_host(|host| {
        let context = Context {
            rootfs,
            cgroup: join,
            stdio: Stdio::default(),
            pod: PodNamespaces {
                network: pod.network,
                ipc: pod.ipc,
                uts: pod.uts,
                user: pod.user,
                pid: pod.pid,
                target: None,
            },
            sources,
            missing_source: MissingSource::Refuse,
            binary_env,
            hold: true,
            host,
        };
        pinnace_spec::lower(spec, context)
    })?;
    let mut plan = lowered.plan;
    if let Some(process) = &mut plan.process {
        process.umask = Some(node.config.container.umask);
    }
    Ok((plan, lowered.descriptors, scope))
}

fn part_of(tree: OwnedFd, part: PathBuf) -> Source {
    if part.as_os_str().is_empty() { Source::Tree(tree) } else { Source::Part(tree, part) }
}

fn tmpfs(target: &str, size: u64) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(target.into());
    mount.set_typ(Some("tmpfs".to_owned()));
    mount.set_source(Some("tmpfs".into()));
    let mut options = vec!["nosuid".to_owned(), "nodev".to_owned()];
    if size > 0 {
        options.push(format!("size={size}"));
    }
    mount.set_options(Some(options));
    mount
}

fn request(job: &Job, sandbox: &Sandbox) -> ContainerRequest {
    ContainerRequest {
        name: crate::container::record::ContainerName { name: "build".to_owned(), attempt: 0 },
        image: String::new(),
        user_specified_image: String::new(),
        command: job.command.clone(),
        args: Vec::new(),
        working_dir: job.working_dir.clone(),
        envs: job.env.clone(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Default::default(),
        security: Security {
            privileged: false,
            add_capabilities: Vec::new(),
            drop_capabilities: Vec::new(),
            add_ambient_capabilities: Vec::new(),
            pid: NamespaceMode::Container,
            target: String::new(),
            network: sandbox.config.namespaces.network,
            ipc: NamespaceMode::Pod,
            user_namespace: None,
            user: UserRequest::default(),
            read_only_rootfs: false,
            no_new_privileges: false,
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            seccomp: Profile::RuntimeDefault,
            apparmor: Some(Profile::RuntimeDefault),
            selinux: Default::default(),
        },
        stop_signal: None,
        kept: None,
    }
}
