//! CreateContainer: snapshot, user, spec, record; all of it or nothing.
//!
//! The root file system is mounted here, detached, because the user's name is looked up in it; the descriptor is kept for
//! start. It is in no mount table and goes with the daemon, so there is nothing to leak.

use std::iter;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use pinnace_cgroup::CgroupPath;
use pinnace_spec::{image, user};
use pinnace_store::{ImageRecord, MountOptions, Persistence};

use super::Container;
use super::record::{ContainerRecord, ImageView, MountView, Status, UserView};
use super::request::{Access, ContainerRequest, MountRequest, Propagation, Security};
use super::{spec, volumes};
use crate::clock;
use crate::error::{Error, IMAGE_VOLUME, Within as _};
use crate::events::Happened;
use crate::id::ContainerId;
use crate::node::Node;
use crate::record as disk;
use crate::sandbox::Sandbox;
use crate::sandbox::record::{NamespaceMode, Phase, RECORD_VERSION};
use crate::selinux::relabel;

/// Creates a container, or joins the call that is creating it.
pub async fn create(
    node: &Node,
    sandbox_id: &str,
    mut request: ContainerRequest,
) -> Result<ContainerId, Error> {
    let sandbox = node.sandbox(sandbox_id)?;
    // POD is what the pod has, as it is of the network and IPC; it is also what a client says that says nothing.
    if request.security.pid == NamespaceMode::Pod {
        request.security.pid = sandbox.config.namespaces.pid;
    }
    let what = format!("create container {} in sandbox {}", request.name.name, sandbox.id);
    let key = (sandbox.id.clone(), request.name.clone());
    let operation = start(node.shared()?, sandbox, request, ContainerId::random());
    let created = node.container_creations.run(key, operation).await;
    let id = created.map_err(|error| match error {
        named if named.to_string().starts_with(IMAGE_VOLUME) => named,
        error => error.within(what),
    })?;
    if let Some(container) = node.containers.exact(id.as_str()) {
        container.delivered.store(true, Ordering::Relaxed);
    }
    Ok(id)
}

/// Creates a container under an id of the caller's choice, with the snapshot of that name.
pub(crate) async fn create_as(
    node: &Arc<Node>,
    sandbox: &Arc<Sandbox>,
    mut request: ContainerRequest,
    id: ContainerId,
) -> Result<Arc<Container>, Error> {
    request.security.pid = sandbox.config.namespaces.pid;
    let id = start(Arc::clone(node), Arc::clone(sandbox), request, id).await?;
    let container =
        node.containers.exact(id.as_str()).ok_or_else(|| Error::ContainerNotFound(id.to_string()))?;
    container.delivered.store(true, Ordering::Relaxed);
    Ok(container)
}

async fn start(
    node: Arc<Node>,
    sandbox: Arc<Sandbox>,
    request: ContainerRequest,
    id: ContainerId,
) -> Result<ContainerId, Error> {
    let key = (sandbox.id.clone(), request.name.clone());
    if let Err(holder) = node.containers.reserve(&key, id.as_str()) {
        return taken(&node, &sandbox, &request, &holder);
    }
    let own = id.clone();
    let pod = Arc::clone(&sandbox);
    let _stays = pod.operation.read().await;
    let built = node
        .blocking(move |node| {
            let directory = node.container_directory(&own);
            build(node, &own, &sandbox, &request)
                .inspect_err(|_| undo(node, &own, &directory, request.kept.is_some()))
        })
        .await;
    match built {
        Ok(container) => {
            tracing::info!(container_id = %id, sandbox_id = %key.0, name = key.1.name, "container created");
            let container = Arc::new(container);
            node.containers.insert(id.as_str(), Arc::clone(&container));
            container.tell(Happened::Created);
            Ok(id)
        }
        Err(error) => {
            node.containers.release(&key, id.as_str());
            Err(error)
        }
    }
}

/// A container of that name whose id nobody received is what a retry wants.
fn taken(
    node: &Node,
    sandbox: &Sandbox,
    request: &ContainerRequest,
    holder: &str,
) -> Result<ContainerId, Error> {
    match node.containers.exact(holder) {
        Some(container)
            if !container.delivered.load(Ordering::Relaxed) && container.status() == Status::Created =>
        {
            Ok(container.id.clone())
        }
        _ => Err(Error::ContainerNameTaken {
            name: format!("{} (attempt {})", request.name.name, request.name.attempt),
            holder: holder.to_owned(),
            sandbox: sandbox.id.clone(),
        }),
    }
}

fn build(
    node: &Node,
    id: &ContainerId,
    sandbox: &Arc<Sandbox>,
    request: &ContainerRequest,
) -> Result<Container, Error> {
    if sandbox.phase() != Phase::Ready {
        return Err(Error::State {
            subject: format!("sandbox {}", sandbox.id),
            state: "not ready".to_owned(),
            hint: "containers are created in ready sandboxes".to_owned(),
        });
    }
    check_against(sandbox, &request.security)?;
    check_target(node, sandbox, &request.security)?;
    let (image, layers, config, persistence) = match &request.kept {
        Some(kept) => (kept.image.clone(), kept.layers.clone(), kept.config.clone(), Persistence::Durable),
        None => {
            let image = crate::image::find(node, &request.image)
                .ok_or_else(|| Error::ImageNotFound(request.image.clone()))?;
            let configuration = crate::image::configuration(node, &image)?;
            let view = view(&image, &request.image, &request.user_specified_image);
            (view, image.layers.clone(), configuration.config().clone(), Persistence::Volatile)
        }
    };
    let config = config.as_ref();

    let directory = node.container_directory(id);
    disk::make_directory(&directory)?;
    if request.kept.is_none() {
        node.store.prepare(id.as_str(), &layers)?;
    }
    let user_namespace = sandbox.user_namespace(node)?;
    let user_namespace = user_namespace.as_ref().map(|namespace| namespace.as_fd());
    let security = &request.security;
    let pod_labels = sandbox.record().labels;
    let labels = node.selinux.of_container(pod_labels.as_ref(), &security.selinux, security.privileged)?;
    let file_label = labels.as_ref().map(|labels| labels.file.as_str());
    let options =
        MountOptions { persistence, user_namespace, selinux_context: file_label, ..Default::default() };
    let rootfs = node.store.mount(id.as_str(), &options)?;

    let asked = &request.security.user;
    let groups = asked.groups.iter().copied().map(i64::from).collect::<Vec<_>>();
    let user = user::resolve(
        rootfs.as_fd(),
        &user::Request {
            image_user: image::user(config),
            run_as_user: asked.uid.map(i64::from),
            run_as_username: &asked.username,
            run_as_group: asked.gid.map(i64::from),
            supplemental_groups: &groups,
            policy: if asked.strict_groups { user::GroupPolicy::Strict } else { user::GroupPolicy::Merge },
        },
    )?;

    let cgroup_path = cgroup_path(sandbox, id)?;
    for mount in request.mounts.iter().filter(|mount| mount.image.is_none()) {
        check_source(&mount.host_path, &mount.container_path)?;
        if let Some(label) = file_label.filter(|_| mount.selinux_relabel) {
            relabel::tree(Path::new(&mount.host_path), label)
                .within(|| format!("mount {}", mount.container_path))?;
        }
    }
    let views = volumes::make_views(node, id, request)?;
    let volumes = volumes::make(node, id, sandbox, rootfs.as_fd(), config, request)?;
    if let Some(label) = file_label {
        volumes.iter().try_for_each(|volume| relabel::file(&volume.source, label))?;
    }
    let mut built = spec::build(node, sandbox, request, config, &user, &volumes, cgroup_path.as_str())?;
    if let Some(labels) = &labels {
        spec::label(&mut built.spec, labels);
    }
    let stop_signal = match request.stop_signal {
        Some(signal) => signal,
        None => image::stop_signal(config)?,
    };
    disk::write(&Container::spec_path(&directory), &built.spec)?;
    let record = ContainerRecord {
        version: RECORD_VERSION,
        id: id.clone(),
        sandbox_id: sandbox.id.clone(),
        name: request.name.clone(),
        created_at_ns: clock::realtime_ns(),
        image,
        layers,
        labels: request.labels.clone(),
        annotations: request.annotations.clone(),
        mounts: iter::zip(&request.mounts, &views).map(mount_view).collect(),
        log_path: log_path(sandbox, request),
        log_directory: sandbox.config.log_directory.clone(),
        log_name: request.log_path.clone(),
        stdin: request.stdin,
        stdin_once: request.stdin_once,
        binary_env: built.binary_env,
        stop_signal,
        user: UserView { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() },
        resources: request.resources.clone(),
        cgroup_path: cgroup_path.as_str().to_owned(),
        shared_pid: request.security.pid != NamespaceMode::Container,
        privileged: request.security.privileged,
        target: request.security.target.clone(),
        file_label: file_label.map(str::to_owned),
        status: Status::Created,
    };
    disk::write(&Container::record_path(&directory), &record)?;
    let mut container = Container::new(record, Arc::clone(sandbox), directory);
    container.rootfs = Mutex::new(Some(rootfs));
    Ok(container)
}

fn undo(node: &Node, id: &ContainerId, directory: &Path, keep: bool) {
    let removed = if keep { Ok(true) } else { node.store.remove(id.as_str()).map_err(Error::from) };
    let removed = removed.and(volumes::remove(node, id));
    let removed = removed.and(disk::remove_directory(directory).map_err(Error::from));
    if let Err(error) = removed {
        tracing::error!(container_id = %id, error = error.chain(), "undo a failed container");
    }
}

/// What a container may not have because its sandbox does not.
fn check_against(sandbox: &Sandbox, security: &Security) -> Result<(), Error> {
    let field = |name: &str| format!("config.linux.security_context.{name}");
    if security.privileged && !sandbox.config.privileged {
        return Err(Error::invalid(field("privileged"), "the sandbox was not made privileged"));
    }
    if security.user_namespace != sandbox.config.user_namespace {
        return Err(Error::invalid(field("namespace_options.userns_options"), "differs from the sandbox's"));
    }
    // The pod's network and IPC are its containers', and clients leave the container's fields at POD even in pods of the
    // host's network. Asking for the host's where the pod has its own would be more than the pod was given.
    let pod = sandbox.config.namespaces;
    for (name, wanted, has) in [("network", security.network, pod.network), ("ipc", security.ipc, pod.ipc)] {
        if wanted != has && wanted != NamespaceMode::Pod {
            let reason = format!("{wanted:?} differs from the sandbox's {has:?}");
            return Err(Error::invalid(field(&format!("namespace_options.{name}")), reason));
        }
    }
    Ok(())
}

/// A PID namespace can be joined while the container that made it runs, in the same pod. Start finds out once more.
fn check_target(node: &Node, sandbox: &Sandbox, security: &Security) -> Result<(), Error> {
    if security.pid != NamespaceMode::Target {
        return Ok(());
    }
    let field = "config.linux.security_context.namespace_options.target_id";
    let target = node.containers.exact(&security.target);
    let target = target.filter(|target| target.sandbox.id == sandbox.id).ok_or_else(|| {
        Error::invalid(field, format!("no container {:?} in sandbox {}", security.target, sandbox.id))
    })?;
    match target.status() {
        Status::Running { .. } => Ok(()),
        _ => Err(Error::State {
            subject: format!("container {}", target.id),
            state: "not running".to_owned(),
            hint: "only a running container's PID namespace can be joined".to_owned(),
        }),
    }
}

/// A missing source is told at creation, when the user is still looking; start pins it and is the check that counts.
fn check_source(host_path: &str, container_path: &str) -> Result<(), Error> {
    std::fs::symlink_metadata(host_path)
        .map(drop)
        .map_err(Error::io("mount source", host_path))
        .within(|| format!("mount {container_path}"))
}

/// Below the sandbox's parent, in the driver's form.
fn cgroup_path(sandbox: &Sandbox, id: &ContainerId) -> Result<CgroupPath, Error> {
    let record = sandbox.record();
    let parent = record.own_cgroup.or(record.config.cgroup_parent).unwrap_or_default();
    Ok(CgroupPath::for_container(&parent, "pinnace", id.as_str())?)
}

/// Both parts must be given; the join is safe because the second is relative and has no `..`.
fn log_path(sandbox: &Sandbox, request: &ContainerRequest) -> String {
    match (sandbox.config.log_directory.as_str(), request.log_path.as_str()) {
        ("", _) | (_, "") => String::new(),
        (directory, path) => format!("{}/{path}", directory.trim_end_matches('/')),
    }
}

fn view(image: &ImageRecord, asked: &str, user_specified: &str) -> ImageView {
    let id = image.id.to_string();
    ImageView {
        name: image.tags().next().map_or_else(|| asked.to_owned(), ToString::to_string),
        reference: image.digests().next().map_or_else(|| id.clone(), ToString::to_string),
        user_specified: user_specified.to_owned(),
        id,
    }
}

fn mount_view((mount, image): (&MountRequest, &Option<Arc<ImageRecord>>)) -> MountView {
    let wanted = mount.image.as_ref();
    MountView {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        read_only: mount.access != Access::ReadWrite,
        recursive_read_only: mount.access == Access::RecursiveReadOnly,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            Propagation::Private => 0,
            Propagation::HostToContainer => 1,
            Propagation::Bidirectional => 2,
        },
        image: image
            .as_ref()
            .zip(wanted)
            .map(|(image, wanted)| view(image, &wanted.image, &wanted.user_specified)),
        owners: mount.owners.clone(),
        image_sub_path: wanted.map(|wanted| wanted.sub_path.clone()).unwrap_or_default(),
        options: mount.options.clone(),
    }
}
