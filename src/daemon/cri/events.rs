//! GetContainerEvents: an endless stream of what happens, each with the pod and its containers as they are right after it.

use pinnace_cri_api::v1;
use tokio::sync::broadcast::error::RecvError;

use super::{Streamed, container_status, pod_sandbox_status};
use crate::events::{Event, Happened};
use crate::node::Node;

/// Tells what happens from now on, until the daemon goes down or the listener falls too far behind.
pub fn stream(node: &std::sync::Arc<Node>) -> Streamed<v1::ContainerEventResponse> {
    let heard = node.events.listen();
    let node = std::sync::Arc::clone(node);
    Box::pin(futures_util::stream::unfold(Some((node, heard)), |state| async {
        let (node, mut heard) = state?;
        let event = tokio::select! {
            event = heard.recv() => event,
            () = node.closing.cancelled() => return None,
        };
        match event {
            Ok(event) => Some((Ok(message(&node, event)), Some((node, heard)))),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(missed)) => {
                let text = format!(
                    "the listener was too slow and has missed {missed} events: list, then listen again"
                );
                Some((Err(tonic::Status::data_loss(text)), None))
            }
        }
    }))
}

fn message(node: &Node, event: Event) -> v1::ContainerEventResponse {
    let kind = match event.happened {
        Happened::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Happened::Started => v1::ContainerEventType::ContainerStartedEvent,
        Happened::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Happened::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    let sandbox = node.sandboxes.exact(event.sandbox_id.as_str());
    let containers = node.containers_of(&event.sandbox_id);
    v1::ContainerEventResponse {
        container_id: event.id,
        container_event_type: kind.into(),
        created_at: event.at_ns,
        pod_sandbox_status: sandbox.map(|sandbox| pod_sandbox_status::status(&sandbox)),
        containers_statuses: containers.iter().map(|container| container_status::status(container)).collect(),
    }
}
