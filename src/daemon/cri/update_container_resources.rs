//! UpdateContainerResources.

use pinnace_cri_api::v1;

use super::container_config::resources;
use crate::container::update::update;
use crate::error::Error;
use crate::node::Node;

/// Applies the Linux part; annotations are nobody's control (rule R8).
pub async fn answer(
    node: &Node,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Error> {
    let linux = request.linux.ok_or_else(|| Error::invalid("linux", "is missing"))?;
    update(node, &request.container_id, resources("linux", linux)?).await?;
    Ok(v1::UpdateContainerResourcesResponse {})
}
