//! RemoveContainer: end it if it runs, then forget it. Its log stays; it is the kubelet's.

use std::sync::Arc;
use std::time::Duration;

use super::stop::stop_container;
use super::{Container, volumes};
use crate::error::{Error, Within as _};
use crate::events::Happened;
use crate::node::Node;
use crate::record as disk;
use crate::sandbox::remove::remove_cgroup;
use crate::table::lock;

/// Removes a container; one that is unknown is removed already.
pub async fn remove(node: &Node, id: &str) -> Result<(), Error> {
    let container = match node.container(id) {
        Err(Error::ContainerNotFound(_)) => return Ok(()),
        found => found?,
    };
    node.mutation(|node| async move { remove_container(&node, &container).await }).await
}

/// The same for a container at hand.
pub async fn remove_container(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), Error> {
    let _turn = container.operation.lock().await;
    let what = || format!("remove container {}", container.id);
    stop_container(node, container, Duration::ZERO).await.within(what)?;
    let removed = Arc::clone(container);
    node.blocking(move |node| {
        drop(lock(&removed.rootfs).take());
        remove_cgroup(node, &removed.record().cgroup_path.as_str().try_into()?)?;
        if removed.sandbox.config.local.is_none() {
            node.store.remove(removed.id.as_str())?;
        }
        volumes::remove(node, &removed.id)?;
        Ok(disk::remove_directory(&removed.directory)?)
    })
    .await
    .within(what)?;
    node.containers.remove(container.id.as_str());
    let key = (container.sandbox.id.clone(), container.record().name);
    node.containers.release(&key, container.id.as_str());
    container.tell(Happened::Deleted);
    tracing::info!(container_id = %container.id, "container removed");
    Ok(())
}
