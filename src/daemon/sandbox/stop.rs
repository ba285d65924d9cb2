//! StopPodSandbox: end every container, give the network back, end the monitor.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Sandbox;
use super::record::{Phase, SandboxNetwork};
use crate::container::stop::stop_container;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// Stops a sandbox; one that is unknown or stopped is done already.
pub async fn stop(node: &Node, id: &str) -> Result<(), Error> {
    let sandbox = match node.sandbox(id) {
        Err(Error::SandboxNotFound(_)) => return Ok(()),
        found => found?,
    };
    node.mutation(|node| async move {
        let _turn = sandbox.operation.write().await;
        stop_sandbox(&node, &sandbox).await
    })
    .await
}

/// The same within a turn that the caller has.
pub(super) async fn stop_sandbox(node: &Arc<Node>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    if sandbox.phase() == Phase::Stopped {
        return Ok(());
    }
    sandbox.closing.store(true, Ordering::SeqCst);
    let grace = node.config.container.pod_stop_grace;
    let stops = node.containers_of(&sandbox.id).into_iter().map(|container| {
        let node = Arc::clone(node);
        async move { stop_container(&node, &container, grace).await }
    });
    // All are tried; the first error is told.
    let results = futures_util::future::join_all(stops).await;
    results.into_iter().collect::<Result<(), _>>().within(|| format!("stop sandbox {}", sandbox.id))?;
    release(node, sandbox).await.within(|| format!("stop sandbox {}", sandbox.id))
}

/// Network, monitor, record; also what is left to do for a sandbox whose monitor has vanished.
pub async fn release(node: &Node, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
    // While the monitor lives: plugins find the namespace by it.
    node.network.detach(node, &sandbox.id, &sandbox.network()).await?;
    // Last, so that whoever tries again after a failure above still has a monitor to end.
    if let Some(monitor) = sandbox.monitor() {
        monitor.shutdown().await;
        sandbox.set_monitor(None);
    }
    node.network.namespace_gone(&sandbox.id);
    sandbox.change(|record| {
        record.phase = Phase::Stopped;
        if !matches!(record.network, SandboxNetwork::Host) {
            record.network = SandboxNetwork::Detached;
        }
    })?;
    tracing::info!(sandbox_id = %sandbox.id, "sandbox stopped");
    Ok(())
}
