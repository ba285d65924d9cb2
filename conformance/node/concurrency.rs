//! Calls at the same time: duplicates agree, and pods do not wait for each other.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

/// What a call about one pod may take while another pod hangs.
const PROMPT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn duplicates_of_every_call_agree() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let pod = node.pod("twice");
    let ids = join_all((0..4).map(|_| node.cri.run_pod(&pod))).await;
    let id = ids[0].clone().unwrap();
    assert!(ids.iter().all(|other| other.as_ref().is_ok_and(|other| *other == id)), "{ids:?}");
    let config = node.container(&pod, "main", &image, &["sleep", "4246"]);
    let created = join_all((0..4).map(|_| node.cri.create(&id, &pod, &config))).await;
    let container = created[0].clone().unwrap();
    assert!(created.iter().all(|other| other.as_ref().is_ok_and(|other| *other == container)), "{created:?}");
    let started = join_all((0..4).map(|_| node.cri.start(&container))).await;
    assert_eq!(started.iter().filter(|answer| answer.is_ok()).count(), 1, "{started:?}");
    let refused = started.iter().filter_map(|answer| answer.as_ref().err());
    assert!(refused.clone().all(|status| status.code() == Code::FailedPrecondition), "{started:?}");
    for answers in [
        join_all((0..4).map(|_| node.cri.stop(&container, 0))).await,
        join_all((0..4).map(|_| node.cri.remove(&container))).await,
        join_all((0..4).map(|_| node.cri.stop_pod(&id))).await,
        join_all((0..4).map(|_| node.cri.remove_pod(&id))).await,
    ] {
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
    assert!(node.cri.pods().await.unwrap().is_empty());
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn run_and_create_given_up_at_any_moment_can_be_repeated() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    // A run takes some ten milliseconds here: these deadlines fall into each of its steps.
    for (round, patience) in (0..16).map(|round| (round, Duration::from_millis(round * 2))) {
        let pod = node.pod(&format!("late-{round}"));
        let id = match tokio::time::timeout(patience, node.cri.run_pod(&pod)).await {
            Ok(answer) => answer.unwrap(),
            Err(_) => match node.cri.run_pod(&pod).await {
                Ok(id) => id,
                // The answer was on its way when the caller left: the pod is there for it to find.
                Err(status) if status.code() == Code::AlreadyExists => {
                    node.cri.pods().await.unwrap()[0].id.clone()
                }
                Err(status) => panic!("{patience:?}: {status:?}"),
            },
        };
        let config = node.container(&pod, "main", &image, &["true"]);
        let container = match tokio::time::timeout(patience, node.cri.create(&id, &pod, &config)).await {
            Ok(answer) => answer.unwrap(),
            Err(_) => match node.cri.create(&id, &pod, &config).await {
                Ok(id) => id,
                Err(status) if status.code() == Code::AlreadyExists => {
                    node.cri.containers().await.unwrap()[0].id.clone()
                }
                Err(status) => panic!("{patience:?}: {status:?}"),
            },
        };
        let containers = node.cri.containers().await.unwrap();
        assert_eq!(containers.len(), 1, "a creation that was given up left a container");
        node.cri.start(&container).await.unwrap();
        assert_eq!(node.cri.exited(&container).await.exit_code, 0);
        assert_eq!(node.cri.pods().await.unwrap().len(), 1, "a run that was given up left a pod");
        node.remove(&id).await;
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn pod_that_hangs_is_nobody_elses_business() {
    let Some(node) = Node::start() else { return };
    let hung = node.run_script("hung", "exec sleep 4247").await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: hung.pod.clone(), verbose: true };
    let answer = node.cri.runtime().pod_sandbox_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let monitor = info["pid"].as_i64().expect("the monitor's pid");
    node.world.sh(&format!("kill -STOP {monitor}"));
    // Somebody waits for it already.
    let waiting = tokio::spawn({
        let (cri, container) = (node.cri.clone(), hung.container.clone());
        async move { cri.stop(&container, 1).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    assert_eq!(node.cri.pods().await.unwrap().len(), 1);
    assert_eq!(node.cri.pod_status(&hung.pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(node.cri.status(&hung.container).await.unwrap().state(), ContainerState::ContainerRunning);
    node.cri.runtime().list_containers(ListContainersRequest::default()).await.unwrap();
    node.cri.runtime().status(StatusRequest { verbose: true }).await.unwrap();
    let other = node.run_script("other", "echo fine").await;
    assert_eq!(node.cri.exited(&other.container).await.exit_code, 0);
    node.remove(&other.pod).await;
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    node.world.sh(&format!("kill -CONT {monitor}"));
    waiting.await.unwrap().unwrap();
    node.remove(&hung.pod).await;
}
