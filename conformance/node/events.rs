//! GetContainerEvents, and lists that are streamed.

use std::collections::HashSet;

use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::ContainerEventType::{self, *};
use pinnace_cri_api::v1::*;
use tonic::Streaming;

/// The events of some ids, until `last` has come.
async fn until(
    stream: &mut Streaming<ContainerEventResponse>,
    id: &str,
    last: ContainerEventType,
) -> Vec<ContainerEventResponse> {
    let mut events = Vec::new();
    let collect = async {
        loop {
            let event = stream.message().await.unwrap().expect("the stream goes on");
            let ends = event.container_id == id && event.container_event_type() == last;
            events.push(event);
            if ends {
                break;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), collect).await.expect("the last event");
    events
}

fn kinds(events: &[ContainerEventResponse], id: &str) -> Vec<ContainerEventType> {
    events.iter().filter(|event| event.container_id == id).map(|event| event.container_event_type()).collect()
}

#[tokio::test]
async fn a_life_is_told_in_order_with_what_it_leaves() {
    let Some(mut node) = Node::start() else { return };
    let mut heard = node.cri.runtime().get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let mut other = node.cri.runtime().get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let running = node.run_script("told", "exit 3").await;
    let events = until(&mut heard, &running.container, ContainerStoppedEvent).await;
    assert_eq!(kinds(&events, &running.pod), [ContainerCreatedEvent, ContainerStartedEvent]);
    let life = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent];
    assert_eq!(kinds(&events, &running.container), life);
    let stopped = events.last().unwrap();
    assert!(u128::try_from(stopped.created_at).unwrap() > before);
    let pod = stopped.pod_sandbox_status.as_ref().expect("the pod");
    assert_eq!((pod.id.as_str(), pod.state()), (running.pod.as_str(), PodSandboxState::SandboxReady));
    let status = stopped.containers_statuses.first().expect("the container");
    assert_eq!((status.exit_code, status.state()), (3, ContainerState::ContainerExited));
    node.remove(&running.pod).await;
    let events = until(&mut heard, &running.pod, ContainerDeletedEvent).await;
    assert_eq!(kinds(&events, &running.container), [ContainerDeletedEvent]);
    assert_eq!(kinds(&events, &running.pod), [ContainerStoppedEvent, ContainerDeletedEvent]);
    assert_eq!(events.last().unwrap().pod_sandbox_status, None);
    // Every listener hears all of it; one that goes takes nothing along.
    let all = until(&mut other, &running.pod, ContainerDeletedEvent).await;
    assert_eq!(all.iter().filter(|event| event.container_id == running.container).count(), 4);
    drop(other);
    // A daemon that goes down ends the stream rather than wait for its listeners.
    node.daemon.terminate();
    assert!(!matches!(heard.message().await, Ok(Some(_))));
    node.restart();
}

#[tokio::test]
async fn a_container_that_cannot_start_is_told_as_ended_only() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let config = node.pod("unstartable");
    let pod = node.cri.run_pod(&config).await.unwrap();
    let mut heard = node.cri.runtime().get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let id = node
        .cri
        .create(&pod, &config, &node.container(&config, "main", &image, &["/nowhere"]))
        .await
        .unwrap();
    node.cri.start(&id).await.unwrap_err();
    let events = until(&mut heard, &id, ContainerStoppedEvent).await;
    assert_eq!(kinds(&events, &id), [ContainerCreatedEvent, ContainerStoppedEvent]);
    assert_eq!(events.last().unwrap().containers_statuses[0].reason, "StartError");
}

#[tokio::test]
async fn streamed_lists_are_the_lists() {
    let Some(node) = Node::start() else { return };
    let one = node.run_script("one", "sleep 60").await;
    let two = node.run_script("two", "sleep 60").await;
    let mut runtime = node.cri.runtime();
    macro_rules! streamed {
        ($client:ident.$method:ident($request:expr).$field:ident) => {{
            let mut stream = $client.$method($request).await.unwrap().into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await.unwrap() {
                assert!(!message.$field.is_empty(), "a message without items");
                all.extend(message.$field);
            }
            all
        }};
    }
    let pods =
        streamed!(runtime.stream_pod_sandboxes(StreamPodSandboxesRequest { filter: None }).pod_sandboxes);
    assert_eq!(pods, node.cri.pods().await.unwrap());
    let containers =
        streamed!(runtime.stream_containers(StreamContainersRequest { filter: None }).containers);
    assert_eq!(containers, node.cri.containers().await.unwrap());
    let filter = Some(ContainerFilter { id: one.container.clone(), ..Default::default() });
    let containers = streamed!(runtime.stream_containers(StreamContainersRequest { filter }).containers);
    assert_eq!(containers.len(), 1);
    let filter = Some(ContainerFilter { id: "f00d".into(), ..Default::default() });
    assert_eq!(streamed!(runtime.stream_containers(StreamContainersRequest { filter }).containers), []);
    let ids = HashSet::from([one.container.clone(), two.container.clone()]);
    let stats = streamed!(
        runtime.stream_container_stats(StreamContainerStatsRequest { filter: None }).container_stats
    );
    assert_eq!(stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect::<HashSet<_>>(), ids);
    let pods = HashSet::from([one.pod.clone(), two.pod.clone()]);
    let stats = streamed!(
        runtime.stream_pod_sandbox_stats(StreamPodSandboxStatsRequest { filter: None }).pod_sandbox_stats
    );
    assert_eq!(stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect::<HashSet<_>>(), pods);
    let metrics =
        streamed!(runtime.stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest {}).pod_sandbox_metrics);
    assert_eq!(metrics.into_iter().map(|metrics| metrics.pod_sandbox_id).collect::<HashSet<_>>(), pods);
    let mut images = node.cri.images();
    let streamed = streamed!(images.stream_images(StreamImagesRequest { filter: None }).images);
    assert_eq!(streamed, node.cri.list_images().await.unwrap());
}
