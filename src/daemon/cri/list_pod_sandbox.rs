//! ListPodSandbox: id (or prefix), state and labels, all of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pinnace_cri_api::v1;

use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::sandbox::record::{Phase, SandboxName};

/// Sandboxes that match, from memory.
pub fn list(node: &Node, filter: &v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
    select(node, filter).iter().map(|sandbox| message(sandbox)).collect()
}

/// The sandboxes that match.
pub fn select(node: &Node, filter: &v1::PodSandboxFilter) -> Vec<Arc<Sandbox>> {
    let mut candidates = match filter.id.as_str() {
        "" => node.pods(),
        // An ambiguous prefix selects nothing, as in the peers.
        prefix => node.sandbox(prefix).into_iter().collect(),
    };
    let wanted = filter.state.as_ref().map(|value| value.state);
    candidates.retain(|sandbox| {
        wanted.is_none_or(|wanted| wanted == state(sandbox))
            && has_labels(&sandbox.config.labels, &filter.label_selector)
    });
    candidates
}

fn message(sandbox: &Sandbox) -> v1::PodSandbox {
    v1::PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(&sandbox.config.name)),
        state: state(sandbox),
        created_at: sandbox.created_at_ns,
        labels: map(&sandbox.config.labels),
        annotations: map(&sandbox.config.annotations),
        runtime_handler: sandbox.config.runtime_handler.clone(),
    }
}

/// READY as long as its namespaces are there.
pub fn state(sandbox: &Sandbox) -> i32 {
    match sandbox.phase() {
        Phase::Ready => v1::PodSandboxState::SandboxReady.into(),
        Phase::Starting | Phase::Stopped => v1::PodSandboxState::SandboxNotready.into(),
    }
}

/// The key, as the CRI spells it.
pub fn metadata(name: &SandboxName) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: name.name.clone(),
        uid: name.uid.clone(),
        namespace: name.namespace.clone(),
        attempt: name.attempt,
    }
}

/// Whether every selected label is there with its value.
pub fn has_labels(labels: &BTreeMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// As the wire has maps.
pub fn map(entries: &BTreeMap<String, String>) -> HashMap<String, String> {
    entries.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
