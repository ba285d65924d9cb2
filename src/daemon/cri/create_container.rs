//! CreateContainer.

use pinnace_cri_api::v1;

use super::container_config;
use crate::container::create::create;
use crate::error::Error;
use crate::node::Node;

/// Creates it. The sandbox's configuration is the one that RunPodSandbox was given, not the copy in this request.
pub async fn answer(
    node: &Node,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Error> {
    let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    if let Some(image) = &config.image {
        node.handlers.find("config.image.runtime_handler", &image.runtime_handler)?;
    }
    let config = container_config::parse(config)?;
    let container_id = create(node, &request.pod_sandbox_id, config).await?.to_string();
    Ok(v1::CreateContainerResponse { container_id })
}
