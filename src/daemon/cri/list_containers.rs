//! ListContainers: id (or prefix), state, sandbox and labels, all of them.

use std::sync::Arc;

use pinnace_cri_api::v1;

use super::list_pod_sandbox::{has_labels, map};
use crate::container::Container;
use crate::container::record::{ContainerRecord, Status};
use crate::node::Node;

/// Containers that match, from memory.
pub fn list(node: &Node, filter: &v1::ContainerFilter) -> Vec<v1::Container> {
    select(node, filter).iter().map(|container| message(&container.record())).collect()
}

/// The containers that match.
pub fn select(node: &Node, filter: &v1::ContainerFilter) -> Vec<Arc<Container>> {
    let mut candidates = match filter.id.as_str() {
        "" => node.pod_containers(),
        // An ambiguous prefix selects nothing, as in the peers.
        prefix => node.container(prefix).into_iter().collect(),
    };
    let wanted = filter.state.as_ref().map(|value| value.state);
    candidates.retain(|container| {
        let record = container.record();
        record.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id)
            && wanted.is_none_or(|wanted| wanted == state(&record.status))
            && has_labels(&record.labels, &filter.label_selector)
    });
    candidates
}

fn message(record: &ContainerRecord) -> v1::Container {
    v1::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox_id.to_string(),
        metadata: Some(metadata(record)),
        image: Some(image(record)),
        image_ref: record.image.id.clone(),
        state: state(&record.status),
        created_at: record.created_at_ns,
        labels: map(&record.labels),
        annotations: map(&record.annotations),
        image_id: record.image.id.clone(),
    }
}

/// A container that is starting is still only created to the outside.
pub fn state(status: &Status) -> i32 {
    match status {
        Status::Created | Status::Starting => v1::ContainerState::ContainerCreated.into(),
        Status::Running { .. } => v1::ContainerState::ContainerRunning.into(),
        Status::Exited(_) => v1::ContainerState::ContainerExited.into(),
    }
}

/// The key, as the CRI spells it.
pub fn metadata(record: &ContainerRecord) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: record.name.name.clone(), attempt: record.name.attempt }
}

/// The image by its tag.
pub fn image(record: &ContainerRecord) -> v1::ImageSpec {
    v1::ImageSpec {
        image: record.image.name.clone(),
        user_specified_image: record.image.user_specified.clone(),
        ..Default::default()
    }
}
