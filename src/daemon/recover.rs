//! Start-up: memory is rebuilt from records and monitors.
//!
//! What may be assumed:
//! 1. A record is whole or absent ([`crate::record`]).
//! 2. A sandbox in [`Phase::Starting`] was never told to anybody: it is undone.
//! 3. A monitor that answers knows everything about its containers; its word is newer than any record.
//! 4. A monitor that does not answer is dead: nothing else holds its socket. What it wrote before (`exit-<id>`) is true,
//!    the rest is unknown; what it left running is killed.
//! 5. A container directory without a sandbox, or a snapshot without a container, was left by a removal cut short: it goes.
//! 6. One bad record is logged and set aside; it never keeps the daemon from starting.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pinnace_launcher::protocol::{ContainerState, State};

use crate::container::Container;
use crate::container::record::{ContainerRecord, Status};
use crate::container::{exec, exit, volumes};
use crate::error::Error;
use crate::id::{ContainerId, SandboxId};
use crate::local;
use crate::monitor::Monitor;
use crate::node::Node;
use crate::record as disk;
use crate::sandbox::record::{Phase, SandboxNetwork, SandboxRecord};
use crate::sandbox::{Sandbox, run, stop};

/// Brings back every sandbox and container, and clears what nobody owns.
pub async fn recover(node: &Arc<Node>) -> Result<(), Error> {
    disk::make_directory(&node.sandboxes_directory())?;
    disk::make_directory(&node.containers_directory())?;
    disk::make_directory(&volumes::directory(node))?;
    for runtime in node.handlers.all() {
        disk::make_directory(&runtime.root)?;
    }
    node.blocking(local::recover::load).await?;
    let mut followed = Vec::new();
    for (directory, name) in entries(&node.sandboxes_directory())? {
        match recover_sandbox(node, &directory, &name).await {
            Ok(Some(found)) => followed.push(found),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(sandbox_id = name, error = error.chain(), "sandbox not recovered");
            }
        }
    }
    for sandbox in node.sandboxes.all() {
        node.network.found(&sandbox.id, &sandbox.network());
    }
    for (directory, name) in entries(&node.containers_directory())? {
        if let Err(error) = recover_container(node, &directory, &name).await {
            tracing::error!(container_id = name, error = error.chain(), "container not recovered");
        }
    }
    for (sandbox, state) in followed {
        reconcile(node, &sandbox, state).await;
    }
    sweep(node).await?;
    local::recover::recover(node).await;
    node.network.pay_in_background(node.closing.clone());
    Ok(())
}

/// Directories and their names.
fn entries(directory: &std::path::Path) -> Result<Vec<(PathBuf, String)>, Error> {
    let failed = || Error::io("read directory", directory);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}

async fn recover_sandbox(
    node: &Arc<Node>,
    directory: &std::path::Path,
    name: &str,
) -> Result<Option<(Arc<Sandbox>, Option<State>)>, Error> {
    let id: SandboxId = name.parse().map_err(|_| Error::invalid("sandbox directory", name))?;
    let path = Sandbox::record_path(directory);
    if !path.exists() {
        // The directory was made, the record was not: the run got no further.
        run::undo(node, &id).await;
        return Ok(None);
    }
    let record: SandboxRecord = disk::read(&path)?;
    if record.phase == Phase::Starting {
        tracing::info!(sandbox_id = %id, "undoing a sandbox whose start was cut short");
        run::undo(node, &id).await;
        return Ok(None);
    }
    if let Some(labels) = &record.labels {
        node.selinux.found(labels);
    }
    let ready = record.phase == Phase::Ready;
    let name = record.config.name.clone();
    let events = node.events_of(&record.config);
    let sandbox = Arc::new(Sandbox::new(record, directory.to_owned(), events));
    sandbox.delivered.store(true, Ordering::Relaxed);
    let state = if ready { reconnect(node, &sandbox).await } else { None };
    // Two live sandboxes of one name cannot be; if records say so the first found keeps it.
    let _ = node.sandboxes.reserve(&name, id.as_str());
    node.sandboxes.insert(id.as_str(), Arc::clone(&sandbox));
    Ok(Some((sandbox, state)))
}

async fn reconnect(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Option<State> {
    match Monitor::connect(node, &sandbox.id, &sandbox.directory).await {
        Ok((monitor, state)) => {
            sandbox.set_monitor(Some(monitor));
            Some(state)
        }
        Err(error) => {
            tracing::warn!(sandbox_id = %sandbox.id, error = error.chain(), "monitor not found");
            None
        }
    }
}

async fn recover_container(node: &Arc<Node>, directory: &std::path::Path, name: &str) -> Result<(), Error> {
    let id: ContainerId = name.parse().map_err(|_| Error::invalid("container directory", name))?;
    let path = Container::record_path(directory);
    let record: Option<ContainerRecord> = if path.exists() { Some(disk::read(&path)?) } else { None };
    let sandbox = record.as_ref().and_then(|record| node.sandboxes.exact(record.sandbox_id.as_str()));
    let (Some(record), Some(sandbox)) = (record, sandbox) else {
        tracing::info!(container_id = %id, "removing what is left of a container");
        let (own, directory) = (id, directory.to_owned());
        return node
            .blocking(move |node| {
                if !node.local.owns(own.as_str()) {
                    node.store.remove(own.as_str())?;
                }
                Ok(disk::remove_directory(&directory)?)
            })
            .await;
    };
    let key = (sandbox.id.clone(), record.name.clone());
    let _ = node.containers.reserve(&key, id.as_str());
    let container = Arc::new(Container::new(record, sandbox, directory.to_owned()));
    container.delivered.store(true, Ordering::Relaxed);
    node.containers.insert(id.as_str(), container);
    Ok(())
}

/// Makes the records agree with the monitor, then follows it.
async fn reconcile(node: &Arc<Node>, sandbox: &Arc<Sandbox>, state: Option<State>) {
    let containers = node.containers_of(&sandbox.id);
    match state {
        Some(state) => {
            for container in &containers {
                let known = state.containers.iter().find(|known| known.container_id == container.id.as_str());
                agree(node, container, known).await;
                let sessions = state.sessions.iter().filter(|it| it.container_id == container.id.as_str());
                let alive = sessions.map(|session| session.exec_id.clone()).collect();
                if let Err(error) = exec::recover(node, container, alive).await {
                    tracing::warn!(container_id = %container.id, error = error.chain(), "sessions not recovered");
                }
            }
            sandbox.follow_monitor(node);
        }
        None => {
            for container in &containers {
                exit::without_monitor(node, container).await;
            }
            if sandbox.phase() == Phase::Ready
                && let Err(error) = stop::release(node, sandbox).await
            {
                tracing::error!(sandbox_id = %sandbox.id, error = error.chain(), "release a lost sandbox");
            }
        }
    }
}

async fn agree(node: &Arc<Node>, container: &Arc<Container>, known: Option<&ContainerState>) {
    match (container.status(), known) {
        (Status::Starting | Status::Running { .. }, Some(ContainerState { exit: Some(exited), .. })) => {
            exit::observed(node, container, exited).await;
        }
        // The daemon before was about to tell systemd of it; the program has not begun.
        (Status::Starting, Some(ContainerState { held: true, .. })) => {
            cut_short(node, container).await;
        }
        (Status::Starting, Some(running)) => {
            let (pid, started_at_ns) = (running.pid, running.started_at_ns);
            exit::settle(container, |record| record.status = Status::Running { pid, started_at_ns });
        }
        // The launch did not reach the monitor, or failed there: nothing of it is left.
        (Status::Starting, None) => cut_short(node, container).await,
        (Status::Running { .. }, None) => exit::without_monitor(node, container).await,
        (Status::Running { .. }, Some(_)) | (Status::Created | Status::Exited(_), _) => {}
    }
}

async fn cut_short(node: &Arc<Node>, container: &Arc<Container>) {
    exit::kill(node, container).await;
    let message = "the daemon ended during the start".to_owned();
    let ended = crate::container::record::Exit::start_error(message, crate::clock::realtime_ns());
    exit::ended(node, container, ended).await;
}

/// Snapshots of nobody, volumes of nobody, network attachments of nobody.
async fn sweep(node: &Arc<Node>) -> Result<(), Error> {
    let containers: HashSet<String> =
        node.containers.all().iter().map(|container| container.id.to_string()).collect();
    let attached: Vec<_> = node
        .sandboxes
        .all()
        .iter()
        .filter_map(|sandbox| match sandbox.network() {
            SandboxNetwork::Attached(attachment) => Some((sandbox.id.clone(), attachment)),
            SandboxNetwork::Host | SandboxNetwork::Cni(_) | SandboxNetwork::Detached => None,
        })
        .collect();
    node.blocking(move |node| {
        for (key, _, _) in node.store.snapshots() {
            let owner = volumes::owner(&key);
            let is_local = owner == key && node.local.owns(owner);
            if !is_local && !containers.contains(owner) {
                tracing::info!(snapshot = key, "removing a snapshot of nobody");
                node.store.remove(&key)?;
            }
        }
        for (directory, name) in entries(&volumes::directory(node))? {
            if !containers.contains(&name) {
                tracing::info!(container_id = name, "removing volumes of nobody");
                disk::remove_directory(&directory)?;
            }
        }
        let attached = attached.iter().map(|(id, attachment)| (id.as_str(), attachment));
        node.network.recover(attached)
    })
    .await
}
