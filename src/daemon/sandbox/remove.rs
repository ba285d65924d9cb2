//! RemovePodSandbox: stop it, remove its containers, forget it.

use std::sync::Arc;
use std::time::Duration;

use pinnace_cgroup::{Cgroup, CgroupError, CgroupPath};

use super::Sandbox;
use super::stop::stop_sandbox;
use crate::container::remove::remove_container;
use crate::error::{Error, Within as _};
use crate::events::Happened;
use crate::node::Node;
use crate::record as disk;

/// How long the kernel may take to let go of a cgroup whose processes have ended.
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// Removes a sandbox; one that is unknown is removed already.
pub async fn remove(node: &Node, id: &str) -> Result<(), Error> {
    let sandbox = match node.sandbox(id) {
        Err(Error::SandboxNotFound(_)) => return Ok(()),
        found => found?,
    };
    node.mutation(|node| async move {
        let _turn = sandbox.operation.write().await;
        remove_sandbox(&node, &sandbox).await.within(|| format!("remove sandbox {}", sandbox.id))
    })
    .await
}

/// The same within a turn that the caller has.
pub(crate) async fn remove_sandbox(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    stop_sandbox(node, sandbox).await?;
    let removals = node.containers_of(&sandbox.id).into_iter().map(|container| {
        let node = Arc::clone(node);
        async move { remove_container(&node, &container).await }
    });
    futures_util::future::join_all(removals).await.into_iter().collect::<Result<(), _>>()?;
    let removed = Arc::clone(sandbox);
    let own = removed.record().own_cgroup.as_deref().map(CgroupPath::try_from).transpose()?;
    if let (Some(systemd), Some(slice)) = (&node.systemd, &own) {
        systemd.stop_slice(slice).await?;
    }
    node.blocking(move |node| {
        if let Some(path) = own {
            remove_cgroup(node, &path)?;
        }
        Ok(disk::remove_directory(&removed.directory)?)
    })
    .await?;
    if let Some(labels) = sandbox.record().labels {
        node.selinux.release(&labels);
    }
    node.sandboxes.remove(sandbox.id.as_str());
    node.sandboxes.release(&sandbox.config.name, sandbox.id.as_str());
    sandbox.tell(Happened::Deleted);
    tracing::info!(sandbox_id = %sandbox.id, "sandbox removed");
    Ok(())
}

/// Removes a cgroup in every hierarchy; one that is gone is fine.
pub(crate) fn remove_cgroup(node: &Node, path: &CgroupPath) -> Result<(), Error> {
    match Cgroup::open(&node.hierarchy, path) {
        Err(CgroupError::NotFound { .. }) => Ok(()),
        found => Ok(found?.remove(CGROUP_PATIENCE)?),
    }
}
