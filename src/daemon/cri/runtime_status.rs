//! Status: two conditions, what the kernel and we can do, and with `verbose` what tools read. Never waits for anything but
//! the files of the CNI configuration.

use std::collections::HashMap;

use pinnace_cri_api::v1;

use super::{UNIMPLEMENTED, VERSION};
use crate::error::Error;
use crate::handlers::NATIVE;
use crate::node::Node;

/// Answers from memory, once that knows the CNI configuration as it is now.
pub async fn answer(node: &Node, request: &v1::StatusRequest) -> Result<v1::StatusResponse, Error> {
    node.blocking(|node| {
        node.network.refresh();
        Ok(())
    })
    .await?;
    let network = match node.network.ready() {
        Ok(()) => condition("NetworkReady", true, "", ""),
        Err(not) => condition("NetworkReady", false, &not.reason, &not.message),
    };
    // mount_setattr(AT_RECURSIVE) is there since 5.12, which the program needs anyway.
    let mut handlers =
        vec![handler("", true, node.user_namespaces), handler(NATIVE, true, node.user_namespaces)];
    for runtime in node.handlers.all() {
        // Pods with user namespaces are pinnace's own alone: it makes them.
        handlers.push(handler(&runtime.name, runtime.recursive_read_only().await, false));
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![condition("RuntimeReady", true, "", ""), network],
        }),
        info: if request.verbose { info(node) } else { HashMap::new() },
        runtime_handlers: handlers,
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            user_namespaces_host_network: node.user_namespaces,
        }),
    })
}

fn handler(name: &str, recursive_read_only_mounts: bool, user_namespaces: bool) -> v1::RuntimeHandler {
    let features = v1::RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces };
    v1::RuntimeHandler { name: name.to_owned(), features: Some(features) }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn info(node: &Node) -> HashMap<String, String> {
    let config = serde_json::json!({
        "version": VERSION,
        "root": node.config.daemon.root,
        "run": node.config.daemon.run,
        "layerForm": format!("{:?}", node.store.form()),
        "layerFormReason": node.store.form_reason(),
        "writableLayers": node.store.quota(),
        "cgroupMode": format!("{:?}", node.hierarchy.mode()),
        "cgroupDriver": format!("{:?}", node.cgroup_driver()),
        "unimplemented": UNIMPLEMENTED,
    });
    let mut info = HashMap::from([("config".to_owned(), config.to_string())]);
    if let Some((config, status)) = node.network.cni_status() {
        info.insert("cniconfig".to_owned(), config.to_string());
        info.insert("lastCNILoadStatus".to_owned(), status);
    }
    info
}
