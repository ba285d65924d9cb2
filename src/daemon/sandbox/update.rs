//! UpdatePodSandboxResources: the kubelet has resized the pod's cgroup; what it says of it is recorded.
//!
//! Nothing is limited here: the cgroup of the pod is the kubelet's, and it is changed before this is called (KEP-5419). The
//! record shows the size to whoever asks, and outlives the daemon.

use super::record::Phase;
use crate::container::record::Resources;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// What has changed; `None` stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// What the pod takes besides its containers.
    pub overhead: Option<Resources>,
    /// The pod's size.
    pub resources: Option<Resources>,
}

/// Records it.
pub async fn update(node: &Node, id: &str, change: Change) -> Result<(), Error> {
    let sandbox = node.sandbox(id)?;
    node.mutation(|node| async move {
        // Not in a pod that goes; pods that stay do not wait for each other.
        let _turn = sandbox.operation.read().await;
        let what = format!("update sandbox {}", sandbox.id);
        if sandbox.phase() != Phase::Ready {
            return Err(Error::State {
                subject: format!("sandbox {}", sandbox.id),
                state: "not ready".to_owned(),
                hint: "only ready sandboxes have a size".to_owned(),
            });
        }
        let updated = sandbox.clone();
        node.blocking(move |_| {
            Ok(updated.change(|record| {
                let Change { overhead, resources } = change;
                record.config.overhead = overhead.or(record.config.overhead.take());
                record.config.resources = resources.or(record.config.resources.take());
            })?)
        })
        .await
        .within(|| what)
    })
    .await
}
