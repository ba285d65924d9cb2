//! Containers of an external OCI runtime: the bundle that it finds, the commands that it is given.
//!
//! ```text
//! <run>/containers/<id>/bundle/    config.json, runtime.log, and while a command runs its pid and console files
//! ├── rootfs/                      empty but for the runtime: the mount exists in the namespace of `create` alone
//! ├── shm/                         the same for the pod's /dev/shm
//! └── mounts/<number>              the same for images as volumes
//! ```
//! The monitor runs `create` and `start`, and `exec` for sessions, and adopts what they leave behind (`launcher/monitor/
//! external.rs`); so exit codes, logs, streams and recovery are those of any container. The daemon runs `kill` and `delete`.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{Process, Root, Spec};
use pinnace_launcher::plan;
use pinnace_launcher::protocol::Failure;
use pinnace_spec::lower::Slots;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::record::Status;
use super::spec::target_path;
use super::{Container, volumes};
use crate::error::Error;
use crate::handlers::{self, PATH, Runtime, last_words};
use crate::node::Node;
use crate::record as disk;

/// For a command that ends or signals something.
const LIMIT: Duration = Duration::from_secs(10);

/// `CLONE_NEW*` and the name of the file.
const HOST_NAMESPACES: [(u64, &str); 4] =
    [(0x0800_0000, "ipc"), (0x0400_0000, "uts"), (0x4000_0000, "net"), (0x2_0000, "mnt")];

/// The runtime of a container; none for pinnace itself.
pub fn runtime<'node>(node: &'node Node, container: &Container) -> Result<Option<&'node Runtime>, Error> {
    node.handlers.find("runtime_handler", &container.sandbox.config.runtime_handler)
}

fn bundle(container: &Container) -> PathBuf {
    container.directory.join("bundle")
}

fn log(container: &Container) -> PathBuf {
    bundle(container).join("runtime.log")
}

/// The launch of a container; `rootfs` is its root file system, `spec` what it is to be.
pub fn launch(
    node: &Node,
    container: &Container,
    runtime: &Runtime,
    mut spec: Spec,
    rootfs: OwnedFd,
    slots: &mut Slots,
) -> Result<plan::External, Error> {
    let bundle = bundle(container);
    let _ = fs::remove_dir_all(&bundle);
    for directory in ["rootfs", "shm", "mounts"] {
        disk::make_directory(&bundle.join(directory))?;
    }
    let mut mounts = vec![mount(Some(slots.push(rootfs)), &bundle.join("rootfs"))];
    let root_is_read_only = spec.root().as_ref().and_then(Root::readonly);
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(root_is_read_only);
    spec.set_root(Some(root));
    place_mounts(node, container, &bundle, &mut spec, slots, &mut mounts)?;
    join_target(node, container, &mut spec);
    if let (Some(floor), Some(process)) = (node.facts.oom_score_adj_floor, spec.process_mut()) {
        let asked = process.oom_score_adj();
        process.set_oom_score_adj(asked.map(|asked| asked.max(floor)));
    }
    let terminal = spec.process().as_ref().and_then(Process::terminal).unwrap_or(false);
    disk::write(&bundle.join("config.json"), &spec)?;

    let id = container.id.to_string();
    let at = |name: &str| bundle.join(name).display().to_string();
    let mut create = runtime.command(&log(container));
    create.extend(["create".into(), "--bundle".into(), bundle.display().to_string()]);
    create.extend(["--pid-file".into(), at("pid")]);
    if terminal {
        create.extend(["--console-socket".into(), "console".into()]);
    }
    create.push(id.clone());
    let mut start = runtime.command(&log(container));
    start.extend(["start".into(), id]);
    Ok(plan::External {
        commands: vec![command(&create), command(&start)],
        directory: slots.push(crate::sandbox::run::open_directory(&bundle)?),
        pid_file: "pid".to_owned(),
        console: "console".to_owned(),
        namespaces: namespaces(slots)?,
        mounts,
        path: bundle.as_os_str().as_bytes().to_vec(),
    })
}

/// Mounts whose sources are no paths get one.
fn place_mounts(
    node: &Node,
    container: &Container,
    bundle: &Path,
    spec: &mut Spec,
    slots: &mut Slots,
    placed: &mut Vec<plan::ExternalMount>,
) -> Result<(), Error> {
    let views = container.record().mounts;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for entry in &mut mounts {
        let Some(source) = entry.source().clone() else { continue };
        if entry.uid_mappings().is_some()
            || entry.options().iter().flatten().any(|option| option == "rshared")
        {
            let what = "owner maps and bidirectional propagation are not supported by external runtimes";
            return Err(Error::invalid(format!("mounts {}", entry.destination().display()), what));
        }
        if source == node.pod_shm_source() {
            let path = bundle.join("shm");
            placed.push(mount(None, &path));
            entry.set_source(Some(path));
            continue;
        }
        let image = |(number, _): &(usize, _)| source == volumes::view_source(*number);
        let Some((number, view)) = views.iter().enumerate().find(image) else { continue };
        let path = bundle.join("mounts").join(number.to_string());
        disk::make_directory(&path)?;
        if !view.image_sub_path.is_empty() {
            let what = "sub paths of images are not supported by external runtimes";
            return Err(Error::invalid(format!("mounts {}", view.container_path), what));
        }
        let tree =
            volumes::mount_view(node, &container.id, number, None, container.record().file_label.as_deref())?;
        placed.push(mount(Some(slots.push(tree)), &path));
        entry.set_source(Some(path));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// The PID namespace of another container is found by its process.
fn join_target(node: &Node, container: &Container, spec: &mut Spec) {
    let record = container.record();
    if record.target.is_empty() {
        return;
    }
    let target = node.containers.exact(&record.target).map(|target| target.status());
    let Some(Status::Running { pid, .. }) = target else { return };
    let stands = target_path(&record.target);
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.path().as_ref() == Some(&stands) {
            namespace.set_path(Some(format!("/proc/{pid}/ns/pid").into()));
        }
    }
}

/// The launch of a session.
pub fn exec(
    container: &Container,
    runtime: &Runtime,
    exec_id: &str,
    process: &Process,
    slots: &mut Slots,
) -> Result<plan::External, Error> {
    let bundle = bundle(container);
    let name = |kind: &str| format!("exec-{exec_id}.{kind}");
    let at = |kind: &str| bundle.join(name(kind)).display().to_string();
    disk::write(&bundle.join(name("json")), process)?;
    let mut exec = runtime.command(&log(container));
    exec.extend(["exec".into(), "--process".into(), at("json"), "--detach".into()]);
    exec.extend(["--pid-file".into(), at("pid")]);
    if process.terminal().unwrap_or(false) {
        exec.extend(["--console-socket".into(), name("console")]);
    }
    exec.push(container.id.to_string());
    Ok(plan::External {
        commands: vec![command(&exec)],
        directory: slots.push(crate::sandbox::run::open_directory(&bundle)?),
        pid_file: name("pid"),
        console: name("console"),
        namespaces: namespaces(slots)?,
        mounts: Vec::new(),
        path: bundle.as_os_str().as_bytes().to_vec(),
    })
}

/// Removes what a session needed.
pub fn forget_exec(container: &Container, exec_id: &str) {
    // There is none but for external runtimes, and then it goes with the container at the latest.
    let _ = fs::remove_file(bundle(container).join(format!("exec-{exec_id}.json")));
}

/// Adds what the runtime has logged to the failure of its command.
pub fn explain(container: &Container, error: Error) -> Error {
    match error {
        Error::Launch(failure) if failure.stage == "runtime" => {
            let said = fs::read(log(container)).map(|said| last_words(&said)).unwrap_or_default();
            let message = match said.as_str() {
                "" => {
                    format!("{}; it logged nothing, what it wrote is in the container's log", failure.message)
                }
                said => format!("{}: {said}", failure.message),
            };
            Error::Launch(Failure { message, ..failure })
        }
        other => other,
    }
}

/// Lets the runtime forget a container, whatever it still knows of it.
pub async fn delete(node: &Arc<Node>, container: &Container) {
    let Ok(Some(runtime)) = runtime(node, container) else { return };
    let mut delete = runtime.command(&log(container));
    delete.extend(["delete".into(), "--force".into(), container.id.to_string()]);
    if let Err(error) = handlers::run(&delete, LIMIT).await {
        tracing::debug!(container_id = %container.id, error = error.chain(), "the runtime did not delete");
    }
}

/// Sends a signal by the runtime, which may not run the container as a process of this machine.
pub async fn kill(container: &Container, runtime: &Runtime, signal: i32) -> Result<(), Error> {
    let mut kill = runtime.command(&log(container));
    kill.extend(["kill".into(), container.id.to_string(), signal.to_string()]);
    handlers::run(&kill, LIMIT).await.map(drop)
}

fn mount(tree: Option<plan::Slot>, path: &Path) -> plan::ExternalMount {
    plan::ExternalMount { tree, path: path.as_os_str().as_bytes().to_vec() }
}

fn command(words: &[String]) -> plan::ExternalCommand {
    plan::ExternalCommand {
        args: words.iter().map(|word| word.clone().into_bytes()).collect(),
        env: vec![format!("PATH={PATH}").into_bytes()],
    }
}

/// The daemon's own are the host's.
fn namespaces(slots: &mut Slots) -> Result<Vec<plan::NamespaceJoin>, Error> {
    let open = |(kind, name): (u64, &str)| {
        let path = format!("/proc/self/ns/{name}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::empty())
            .map_err(|error| Error::io("open", &path)(error.into()))?;
        Ok(plan::NamespaceJoin { kind, slot: slots.push(file) })
    };
    HOST_NAMESPACES.into_iter().map(open).collect()
}
