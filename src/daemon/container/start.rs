//! StartContainer: cgroup, root file system, plan, launch.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use oci_spec::runtime::{LinuxResources, Process, Spec};
use pinnace_cgroup::{Cgroup, CgroupPath, Limits, Scope};
use pinnace_launcher::plan::{self, LaunchPlan};
use pinnace_launcher::protocol::{ContainerRef, Launch, Launched, Reply, Request};
use pinnace_spec::lower::{CgroupJoin, Context, Log, MissingSource, PodNamespaces, Slots, Source, Stdio};
use pinnace_spec::process::Host;
use pinnace_store::{MountOptions, Persistence};

use super::attach::{Attachment, Wanted};
use super::exec::Streams;
use super::record::{Exit, Status};
use super::spec::{PodPaths, target_path};
use super::{Container, exit, external, volumes};
use crate::clock;
use crate::error::{Error, Within as _};
use crate::handlers::Runtime;
use crate::monitor::Monitor;
use crate::node::Node;
use crate::record as disk;
use crate::sandbox::remove::remove_cgroup;
use crate::sandbox::run::open_directory;
use crate::table::lock;

/// Starts a container that was created.
pub async fn start(node: &Node, id: &str) -> Result<(), Error> {
    let container = node.container(id)?;
    node.mutation(|node| async move { start_container(&node, &container, None).await.map(drop) }).await
}

/// The same for a container at hand. With `wanted` its streams are joined before its program is executed, so that nothing
/// of its output is missed.
pub(crate) async fn start_container(
    node: &Arc<Node>,
    container: &Arc<Container>,
    wanted: Option<Wanted>,
) -> Result<Option<(Attachment, Streams)>, Error> {
    let _turn = container.operation.lock().await;
    let what = format!("start container {}", container.id);
    begin(container).within(|| what.clone())?;
    match launch(node, container, wanted).await {
        Ok((launched, joined)) => {
            container.change(|record| {
                // An exit that was told first stays.
                if record.status == Status::Starting {
                    record.status =
                        Status::Running { pid: launched.pid, started_at_ns: launched.started_at_ns };
                }
            })?;
            tracing::info!(container_id = %container.id, pid = launched.pid, "container started");
            Ok(joined)
        }
        Err(error) => {
            failed(node, container, &error).await;
            Err(error.within(what))
        }
    }
}

fn begin(container: &Container) -> Result<(), Error> {
    let state = match container.status() {
        Status::Created => return Ok(container.change(|record| record.status = Status::Starting)?),
        Status::Starting => "starting",
        Status::Running { .. } => "running",
        Status::Exited(_) => "exited",
    };
    Err(Error::State {
        subject: format!("container {}", container.id),
        state: state.to_owned(),
        hint: "a container is started once, after it was created".to_owned(),
    })
}

async fn launch(
    node: &Arc<Node>,
    container: &Arc<Container>,
    wanted: Option<Wanted>,
) -> Result<(Launched, Option<(Attachment, Streams)>), Error> {
    if container.sandbox.closing.load(Ordering::SeqCst) {
        return Err(Error::State {
            subject: format!("sandbox {}", container.sandbox.id),
            state: "being stopped".to_owned(),
            hint: "containers are started in ready sandboxes".to_owned(),
        });
    }
    let monitor =
        container.sandbox.monitor().ok_or_else(|| Error::MonitorGone(container.sandbox.id.clone()))?;
    let planned = Arc::clone(container);
    let Planned { mut plan, descriptors, scope } =
        node.blocking(move |node| node.with_host(|host| plan(node, &planned, host))).await?;
    // An external runtime's process is held by nobody, it runs at once.
    plan.hold |= wanted.is_some() && plan.external.is_none();
    let held = plan.hold;
    let request = Launch { container_id: container.id.to_string(), plan: Some(plan) };
    let born = launched(&monitor, Request::Launch(request), &descriptors, container)
        .await
        .map_err(|error| external::explain(container, error))?;
    drop(descriptors);
    let started = match Box::pin(prepare(node, container, scope, wanted, born.pid)).await {
        Ok(joined) if !held => Ok((born, joined)),
        Ok(joined) => {
            let start = Request::Start(ContainerRef { container_id: container.id.to_string() });
            launched(&monitor, start, &[], container).await.map(|launched| (launched, joined))
        }
        Err(error) => Err(error),
    };
    if started.is_err() {
        // It may still be held.
        exit::kill(node, container).await;
    }
    started
}

/// What is to be done before the program of a held process is executed: the scope, and who wants its streams.
async fn prepare(
    node: &Arc<Node>,
    container: &Arc<Container>,
    scope: Option<(Cgroup, LinuxResources)>,
    wanted: Option<Wanted>,
    pid: i32,
) -> Result<Option<(Attachment, Streams)>, Error> {
    if let Some(scope) = scope {
        adopt(node, container, scope, pid).await?;
    }
    let Some(wanted) = wanted else { return Ok(None) };
    let (attachment, streams) = Attachment::join_held(node, Arc::clone(container), wanted).await?;
    if let Some((rows, columns)) = wanted.size.filter(|_| attachment.terminal) {
        attachment.window().resize(rows, columns).await;
    }
    Ok(Some((attachment, streams)))
}

/// Makes the cgroup of a held process systemd's scope, and its limits exactly what they were.
async fn adopt(
    node: &Arc<Node>,
    container: &Container,
    (cgroup, resources): (Cgroup, LinuxResources),
    pid: i32,
) -> Result<(), Error> {
    let Some(systemd) = &node.systemd else { return Ok(()) };
    let name = container.record().name.name;
    let description = format!("container {name} of pod {}", container.sandbox.config.name);
    systemd.adopt(&cgroup, &resources, pid.unsigned_abs(), &description).await?;
    node.blocking(move |_| Ok(cgroup.update(&resources).map(drop)?)).await
}

/// Sends a request that starts a process.
pub(super) async fn launched(
    monitor: &Monitor,
    request: Request,
    descriptors: &[OwnedFd],
    container: &Container,
) -> Result<Launched, Error> {
    let borrowed = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect::<Vec<_>>();
    match monitor.request(request, &borrowed).await? {
        Reply::Launched(launched) => Ok(launched),
        other => Err(Error::unexpected(&container.sandbox.id, &other)),
    }
}

/// What the monitor is sent, and what systemd is told while the process is held.
struct Planned {
    plan: LaunchPlan,
    descriptors: Vec<OwnedFd>,
    scope: Option<(Cgroup, LinuxResources)>,
}

fn plan(node: &Node, container: &Container, host: Host<'_>) -> Result<Planned, Error> {
    let record = container.record();
    let spec: Spec = disk::read(&Container::spec_path(&container.directory))?;
    let user_namespace = container.sandbox.user_namespace(node)?;
    let rootfs = match lock(&container.rootfs).take() {
        Some(rootfs) => rootfs,
        None => {
            let user_namespace = user_namespace.as_ref().map(|namespace| namespace.as_fd());
            let selinux_context = record.file_label.as_deref();
            let persistence = match &container.sandbox.config.local {
                Some(_) => Persistence::Durable,
                None => Persistence::Volatile,
            };
            let options =
                MountOptions { persistence, user_namespace, selinux_context, ..MountOptions::default() };
            node.store.mount(container.id.as_str(), &options)?
        }
    };
    if let Some(runtime) = external::runtime(node, container)? {
        return plan_external(node, container, runtime, spec, rootfs);
    }
    let pod = PodPaths::of(&container.sandbox);
    let (join, scope) = cgroup(node, &record.cgroup_path, record.privileged, &spec)?;
    let context = Context {
        rootfs,
        cgroup: join,
        stdio: Stdio {
            log: log(&record.log_directory, &record.log_name)?,
            stdin: record.stdin,
            stdin_once: record.stdin_once,
        },
        pod: PodNamespaces {
            network: pod.network,
            ipc: pod.ipc,
            uts: pod.uts,
            user: pod.user,
            pid: pod.pid,
            target: Some(record.target.clone())
                .filter(|target| !target.is_empty())
                .map(|target| (target_path(&target), target)),
        },
        sources: sources(node, container, user_namespace.as_deref())?,
        missing_source: MissingSource::Refuse,
        binary_env: record.binary_env.clone(),
        hold: scope.is_some(),
        host,
    };
    let lowered = pinnace_spec::lower(&spec, context)?;
    for warning in &lowered.warnings {
        tracing::warn!(container_id = %container.id, warning, "launch plan");
    }
    let mut plan = lowered.plan;
    if let Some(stdio) = &mut plan.stdio {
        stdio.max_line_bytes = u32::try_from(node.config.container.max_log_line).unwrap_or(u32::MAX);
        stdio.max_log_bytes = node.config.container.log_size_limit;
    }
    if let Some(process) = &mut plan.process {
        process.umask = Some(node.config.container.umask);
    }
    Ok(Planned { plan, descriptors: lowered.descriptors, scope })
}

/// The same for a container that another runtime makes, in a cgroup and with streams that are made as ever.
fn plan_external(
    node: &Node,
    container: &Container,
    runtime: &Runtime,
    spec: Spec,
    rootfs: OwnedFd,
) -> Result<Planned, Error> {
    let record = container.record();
    let mut slots = Slots::new();
    let (join, scope) = cgroup(node, &record.cgroup_path, record.privileged, &spec)?;
    let terminal = spec.process().as_ref().and_then(Process::terminal).unwrap_or(false);
    let mut stdio =
        plan::Stdio { stdin: record.stdin, stdin_once: record.stdin_once, ..plan::Stdio::default() };
    stdio.max_line_bytes = u32::try_from(node.config.container.max_log_line).unwrap_or(u32::MAX);
    if let Some(log) = log(&record.log_directory, &record.log_name)? {
        stdio.log_directory = Some(slots.push(log.directory));
        stdio.log_path = log.path.as_os_str().as_encoded_bytes().to_vec();
    }
    let plan = LaunchPlan {
        // The runtime joins it by its path.
        cgroup: Some(slots.join(CgroupJoin { tasks: Vec::new(), directory: None, ..join })),
        external: Some(external::launch(node, container, runtime, spec, rootfs, &mut slots)?),
        process: Some(plan::Process { terminal, ..plan::Process::default() }),
        stdio: Some(stdio),
        ..LaunchPlan::default()
    };
    Ok(Planned { plan, descriptors: slots.into_descriptors(), scope })
}

/// Sources of mounts that are no paths of the host.
fn sources(
    node: &Node,
    container: &Container,
    user_namespace: Option<&OwnedFd>,
) -> Result<HashMap<PathBuf, Source>, Error> {
    let mut sources = HashMap::from([(node.pod_shm_source().to_owned(), Source::PodShm)]);
    let record = container.record();
    for (number, mount) in record.mounts.iter().enumerate() {
        let Some(image) = &mount.image else {
            if let Some(owners) = &mount.owners {
                let namespace = owners.user_namespace(node.monitor_program.as_fd())?;
                sources.insert(PathBuf::from(&mount.host_path), Source::Mapped(namespace));
            }
            continue;
        };
        let namespace = user_namespace.map(|namespace| namespace.as_fd());
        let label = record.file_label.as_deref();
        let tree = volumes::mount_view(node, &container.id, number, namespace, label).map_err(|error| {
            Error::ImageVolume {
                image: image.name.clone(),
                destination: mount.container_path.clone(),
                source: Box::new(error),
            }
        })?;
        let source = match mount.image_sub_path.as_str() {
            "" => Source::Tree(tree),
            path => Source::Part(tree, path.into()),
        };
        sources.insert(volumes::view_source(number), source);
    }
    Ok(sources)
}

/// Makes the container's cgroup and the descriptors by which its first process joins it.
pub(crate) fn cgroup(
    node: &Node,
    path: &str,
    privileged: bool,
    spec: &Spec,
) -> Result<(CgroupJoin, Option<(Cgroup, LinuxResources)>), Error> {
    let path = CgroupPath::try_from(path)?;
    let none = LinuxResources::default();
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).unwrap_or(&none);
    let limits = if privileged { Limits::group(resources) } else { Limits::container(resources) };
    let of_systemd = node.systemd.is_some() && Scope::of(&path).is_some();
    let limits = if of_systemd { limits.values_later() } else { limits };
    let cgroup = Cgroup::create(&node.hierarchy, &path, &limits)?;
    let join = cgroup.join_fds()?;
    let oom_counter = Some(cgroup.open_oom_counter()?.into());
    let above = path.parent().filter(|parent| of_systemd && !parent.is_root());
    let group_oom_counter = match above {
        Some(parent) => Some(Cgroup::open(&node.hierarchy, &parent)?.open_oom_counter()?.into()),
        None => None,
    };
    let scope = of_systemd.then(|| (cgroup, resources.clone()));
    Ok((CgroupJoin { tasks: join.tasks, directory: join.clone_into, oom_counter, group_oom_counter }, scope))
}

/// Both parts must be given; the second is relative and has no `..` (rule R24).
fn log(directory: &str, name: &str) -> Result<Option<Log>, Error> {
    if directory.is_empty() || name.is_empty() {
        return Ok(None);
    }
    // The kubelet's directory of a pod's logs is readable by others.
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(Error::io("create log directory", directory))?;
    Ok(Some(Log { directory: open_directory(directory.as_ref())?, path: name.into() }))
}

/// The container ends before it began: exit code 128 and the reason, as the peers have it.
async fn failed(node: &Arc<Node>, container: &Arc<Container>, error: &Error) {
    let message = error.chain();
    tracing::warn!(container_id = %container.id, error = message, "container did not start");
    let ended = Exit::start_error(message, clock::realtime_ns());
    external::delete(node, container).await;
    exit::settle(container, |record| {
        if record.status == Status::Starting {
            record.status = Status::Exited(ended.clone());
        }
    });
    let path = container.record().cgroup_path;
    let removed = node.blocking(move |node| remove_cgroup(node, &path.as_str().try_into()?)).await;
    if let Err(error) = removed {
        tracing::warn!(container_id = %container.id, error = error.chain(), "cgroup of a failed start stays");
    }
}
