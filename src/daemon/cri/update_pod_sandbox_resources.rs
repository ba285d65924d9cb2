//! UpdatePodSandboxResources.

use pinnace_cri_api::v1;

use super::container_config::resources;
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::update::{Change, update};

/// Records the pod's new size; what the request leaves out stays.
pub async fn answer(
    node: &Node,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Error> {
    let change = Change {
        overhead: request.overhead.map(|given| resources("overhead", given)).transpose()?,
        resources: request.resources.map(|given| resources("resources", given)).transpose()?,
    };
    update(node, &request.pod_sandbox_id, change).await?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
