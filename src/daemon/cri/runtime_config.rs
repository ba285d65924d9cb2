//! RuntimeConfig and UpdateRuntimeConfig.

use pinnace_cgroup::Driver;
use pinnace_cri_api::v1;

use crate::error::{Error, Within as _};
use crate::node::Node;

/// The cgroup driver, which the kubelet follows.
pub fn read(node: &Node) -> v1::RuntimeConfigResponse {
    let driver = match node.cgroup_driver() {
        Driver::Systemd => v1::CgroupDriver::Systemd,
        Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
    };
    v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}

/// The pod CIDR; none given is none changed.
pub async fn update(
    node: &Node,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Error> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let cidrs = network.map(|network| network.pod_cidr).unwrap_or_default();
    if !cidrs.is_empty() {
        let what = format!("set pod CIDR {cidrs}");
        node.blocking(move |node| node.network.set_pod_cidr(&cidrs)).await.within(|| what)?;
    }
    Ok(v1::UpdateRuntimeConfigResponse {})
}
