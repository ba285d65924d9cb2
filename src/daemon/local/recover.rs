//! Start-up: containers of the command line are taken up where they were left, by an earlier daemon or an earlier boot.
//!
//! What may be assumed:
//! 1. A record is whole or absent, and flushed. A directory without one, and a record without its snapshot, were left by a
//!    creation or removal cut short: they go.
//! 2. Sandboxes and containers have been recovered before ([`crate::recover`]): what runs is there.
//! 3. What the record says to run and is not there has ended with the machine or its monitor; nobody saw how.

use std::sync::Arc;

use super::record::{Ended, Record, Restart, State};
use super::{LocalContainer, health, life, start, volumes};
use crate::clock;
use crate::container::record::Status;
use crate::error::Error;
use crate::id::ContainerId;
use crate::node::Node;
use crate::record as disk;

/// Exit code when nobody saw it.
const UNKNOWN: i32 = 255;

/// Reads the records; to be called before anything is recovered that looks whose a snapshot is. Blocks.
pub fn load(node: &Node) -> Result<(), Error> {
    let directory = node.local.containers_directory();
    disk::make_directory(&directory)?;
    disk::make_directory(&node.local.volumes_directory())?;
    let entries = std::fs::read_dir(&directory).map_err(Error::io("read directory", &directory))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("read directory", &directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Err(error) = load_one(node, &name) {
            tracing::error!(container_id = name, error = error.chain(), "local container not recovered");
        }
    }
    volumes::sweep(node)
}

fn load_one(node: &Node, name: &str) -> Result<(), Error> {
    let id: ContainerId = name.parse().map_err(|_| Error::invalid("container directory", name))?;
    let directory = node.local.containers_directory().join(name);
    let path = directory.join("record.json");
    if !path.exists() || !node.store.has_snapshot(name) {
        tracing::info!(container_id = %id, "removing what is left of a local container");
        node.store.remove(name)?;
        return Ok(disk::remove_directory(&directory)?);
    }
    let record: Record = disk::read(&path)?;
    // Two of one name cannot be; if records say so the first found keeps it.
    let _ = node.local.containers.reserve(&record.name, name);
    node.local.containers.insert(name, Arc::new(LocalContainer::new(record, directory)));
    Ok(())
}

/// Follows what runs, and starts what the restart policies want.
pub async fn recover(node: &Arc<Node>) {
    for local in node.local.containers.all() {
        if let Err(error) = recover_one(node, &local).await {
            tracing::error!(container_id = %local.id, error = error.chain(), "local container not recovered");
        }
    }
}

async fn recover_one(node: &Arc<Node>, local: &Arc<LocalContainer>) -> Result<(), Error> {
    let container = node.containers.exact(local.id.as_str());
    let status = container.as_ref().map(|container| container.status());
    if let (Some(container), Some(Status::Running { pid, started_at_ns })) = (&container, &status) {
        let (pid, started_at_ns) = (*pid, *started_at_ns);
        local.set_live(Some(Arc::clone(container)));
        if !local.state().is_running() {
            // The daemon ended between the start and its record.
            local.change(|record| record.state = State::Running { pid, started_at_ns, paused: false })?;
        }
        health::watch(node, local, container);
        life::follow(node, local, Arc::clone(container));
        return Ok(());
    }
    let seen = match &status {
        Some(Status::Exited(exit)) => Some(life::of_exit(exit)),
        _ => None,
    };
    life::clear(node, local).await?;
    match local.state() {
        State::Running { started_at_ns, .. } => {
            let unknown = Ended {
                code: UNKNOWN,
                started_at_ns,
                finished_at_ns: clock::realtime_ns(),
                oom_killed: false,
                error: "it ended while no daemon was there to see it".to_owned(),
            };
            life::follow_end(node, local, seen.unwrap_or(unknown));
        }
        State::Restarting(ended) => life::follow_end(node, local, ended),
        State::Exited(_) if local.with(|record| record.settings.restart == Restart::Always) => {
            let (node, local) = (Arc::clone(node), Arc::clone(local));
            tokio::spawn(async move {
                if let Err(error) = start::start(&node, Arc::clone(&local), None).await {
                    tracing::warn!(container_id = %local.id, error = error.chain(), "not started with the daemon");
                }
            });
        }
        State::Exited(_) if local.with(|record| record.settings.auto_remove) => {
            life::remove_by_itself(node, local);
        }
        State::Created { .. } | State::Exited(_) => {}
    }
    Ok(())
}
