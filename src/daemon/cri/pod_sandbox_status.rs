//! PodSandboxStatus.

use std::collections::HashMap;

use pinnace_cri_api::v1;

use super::container_status;
use super::list_pod_sandbox::{map, metadata, state};
use super::sandbox_config::{mode_number, user_namespace_message};
use crate::clock;
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::sandbox::record::SandboxNetwork;

/// Answers from memory.
pub fn answer(
    node: &Node,
    request: &v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Error> {
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    let containers = node.containers_of(&sandbox.id);
    Ok(v1::PodSandboxStatusResponse {
        status: Some(status(&sandbox)),
        info: if request.verbose { info(&sandbox) } else { HashMap::new() },
        containers_statuses: containers.iter().map(|container| container_status::status(container)).collect(),
        timestamp: clock::realtime_ns(),
    })
}

/// A sandbox as the CRI shows it.
pub fn status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let config = &sandbox.config;
    let options = v1::NamespaceOption {
        network: mode_number(config.namespaces.network),
        pid: mode_number(config.namespaces.pid),
        ipc: mode_number(config.namespaces.ipc),
        target_id: String::new(),
        userns_options: config.user_namespace.as_ref().map(user_namespace_message),
    };
    v1::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(&config.name)),
        state: state(sandbox),
        created_at: sandbox.created_at_ns,
        network: Some(network(&sandbox.network())),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: map(&config.labels),
        annotations: map(&config.annotations),
        runtime_handler: config.runtime_handler.clone(),
    }
}

/// The primary address first; a pod on the host's network has none of its own.
fn network(network: &SandboxNetwork) -> v1::PodSandboxNetworkStatus {
    let ips: Vec<_> = match network {
        SandboxNetwork::Attached(attachment) => attachment.ips().collect(),
        SandboxNetwork::Cni(attachment) => attachment.ips().collect(),
        SandboxNetwork::Host | SandboxNetwork::Detached => Vec::new(),
    };
    let mut ips = ips.into_iter().map(|ip| ip.to_string());
    v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    }
}

/// `info.info`: what scripts read from containerd's and CRI-O's answer, plus our record.
fn info(sandbox: &Sandbox) -> HashMap<String, String> {
    let record = sandbox.record();
    let value = serde_json::json!({
        "pid": record.monitor_pid,
        "netNamespacePath": format!("/proc/{}/ns/net", record.monitor_pid),
        "runtimeHandler": record.config.runtime_handler,
        "record": record,
    });
    HashMap::from([("info".to_owned(), value.to_string())])
}
