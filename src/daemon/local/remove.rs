//! Remove, rename, prune.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::State;
use super::{LocalContainer, names, stop, volumes};
use crate::error::{Error, Within as _};
use crate::node::Node;
use crate::record as disk;

/// What goes with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Also if it runs.
    pub force: bool,
    /// With the volumes that were made for it alone.
    pub volumes: bool,
}

/// Removes a container with its writable layer.
pub async fn remove(node: &Node, local: &Arc<LocalContainer>, options: Options) -> Result<(), Error> {
    let local = Arc::clone(local);
    node.mutation(|node| async move {
        let what = format!("remove container {}", local.record().name);
        remove_local(&node, &local, options).await.within(|| what)
    })
    .await
}

async fn remove_local(node: &Arc<Node>, local: &Arc<LocalContainer>, options: Options) -> Result<(), Error> {
    let state = local.state();
    if state.is_alive() && !options.force {
        return Err(Error::State {
            subject: "it".to_owned(),
            state: state.name().to_owned(),
            hint: "stop it first, or force its removal (-f)".to_owned(),
        });
    }
    stop::stop_local(node, local, Some(0), None).await?;
    let _turn = local.turn.lock().await;
    // A start may have come between.
    if local.state().is_alive() {
        return Err(Error::State {
            subject: "it".to_owned(),
            state: "started again".to_owned(),
            hint: "try once more".to_owned(),
        });
    }
    if *local.follow_removal().borrow() {
        return Ok(());
    }
    super::life::clear(node, local).await?;
    let gone = Arc::clone(local);
    node.blocking(move |node| {
        // The record last: what is cut short is taken up at the next start of the daemon.
        node.store.remove(gone.id.as_str())?;
        if options.volumes {
            for name in gone.record().volumes.values() {
                volumes::remove(node, name, true)?;
            }
        }
        Ok(disk::remove_directory(&gone.directory)?)
    })
    .await?;
    node.local.containers.remove(local.id.as_str());
    node.local.containers.release(&local.record().name, local.id.as_str());
    local.set_removed();
    local.tell(&node.local, "destroy", &[]);
    tracing::info!(container_id = %local.id, "local container removed");
    Ok(())
}

/// Gives it another name.
pub async fn rename(node: &Node, local: Arc<LocalContainer>, name: &str) -> Result<(), Error> {
    let name = names::check(name)?;
    node.mutation(|node| async move {
        let _turn = local.turn.lock().await;
        let old = local.record().name;
        if let Err(holder) = node.local.containers.reserve(&name, local.id.as_str()) {
            return Err(Error::Taken { kind: "container name", name, holder });
        }
        let (renamed, new) = (Arc::clone(&local), name.clone());
        let written = node.blocking(move |_| renamed.change(|record| record.name = new)).await;
        let unused = if written.is_ok() { &old } else { &name };
        node.local.containers.release(unused, local.id.as_str());
        written?;
        local.tell(&node.local, "rename", &[("oldName", format!("/{old}"))]);
        Ok(())
    })
    .await
}

/// What a prune has removed.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Ids.
    pub removed: Vec<String>,
    /// Bytes of their writable layers.
    pub bytes: u64,
}

/// Removes all that do not run and match.
pub async fn prune(
    node: &Node,
    matches: impl Fn(&BTreeMap<String, String>, i64) -> bool,
) -> Result<Pruned, Error> {
    let mut pruned = Pruned::default();
    for local in node.local.containers.all() {
        let wanted = local.with(|record| matches(&record.settings.labels, record.created_at_ns));
        if !wanted || !matches!(local.state(), State::Created { .. } | State::Exited(_)) {
            continue;
        }
        let measured = Arc::clone(&local);
        let usage = node.blocking(move |node| Ok(node.store.usage(measured.id.as_str())?)).await?;
        match remove(node, &local, Options::default()).await {
            Ok(()) => {
                pruned.removed.push(local.id.to_string());
                pruned.bytes = pruned.bytes.saturating_add(usage.bytes);
            }
            // It was started meanwhile.
            Err(error) => tracing::debug!(container_id = %local.id, error = error.chain(), "not pruned"),
        }
    }
    Ok(pruned)
}
