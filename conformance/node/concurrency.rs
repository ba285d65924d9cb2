//! Calls at the same time: duplicates agree, and pods do not wait for each other.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

/// How often a call is given up, each time a little later.
const GIVEN_UP: u32 = 20;

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
    let shares = LinuxContainerResources { cpu_shares: 77, ..Default::default() };
    let update = || {
        let (container_id, linux) = (container.clone(), Some(shares.clone()));
        let request = UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
        let mut runtime = node.cri.runtime();
        async move { runtime.update_container_resources(request).await.map(drop) }
    };
    let resize = || {
        let (pod_sandbox_id, resources) = (id.clone(), Some(shares.clone()));
        let request = UpdatePodSandboxResourcesRequest { pod_sandbox_id, resources, ..Default::default() };
        let mut runtime = node.cri.runtime();
        async move { runtime.update_pod_sandbox_resources(request).await.map(drop) }
    };
    let reopen = || {
        let request = ReopenContainerLogRequest { container_id: container.clone() };
        let mut runtime = node.cri.runtime();
        async move { runtime.reopen_container_log(request).await.map(drop) }
    };
    let exec = async || {
        let done = node.cri.exec(&container, &["echo", "same"], 10).await?;
        assert_eq!(done.stdout, b"same\n"[..]);
        Ok(())
    };
    for answers in [
        join_all((0..4).map(|_| update())).await,
        join_all((0..4).map(|_| resize())).await,
        join_all((0..4).map(|_| reopen())).await,
        join_all((0..4).map(|_| exec())).await,
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
    // As long as a call takes here and now, in so many steps: a deadline falls into each of its stages.
    let whole = {
        let begun = Instant::now();
        let running = node.run_script("measure", "exit 0").await;
        node.cri.exited(&running.container).await;
        node.remove(&running.pod).await;
        begun.elapsed().clamp(Duration::from_millis(20), Duration::from_millis(200))
    };
    for round in 0..GIVEN_UP {
        let patience = whole * round / GIVEN_UP;
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
        // A start that is given up goes on, too: it is running, or its repetition starts it.
        if tokio::time::timeout(patience, node.cri.start(&container)).await.is_err() {
            match node.cri.start(&container).await {
                Err(status) if status.code() != Code::FailedPrecondition => {
                    panic!("{patience:?}: {status:?}")
                }
                _ => {}
            }
        }
        assert_eq!(node.cri.exited(&container).await.exit_code, 0);
        assert_eq!(node.cri.pods().await.unwrap().len(), 1, "a run that was given up left a pod");
        // So are stops and removals.
        let _ = tokio::time::timeout(patience, node.cri.stop_pod(&id)).await;
        let _ = tokio::time::timeout(patience, node.cri.remove_pod(&id)).await;
        node.remove(&id).await;
    }
    assert_eq!(node.cri.pods().await.unwrap(), []);
    node.assert_nothing_left(&before);
}

/// Given up and never repeated: what was begun is finished, listed, and can be removed.
#[tokio::test]
async fn what_was_given_up_for_good_can_be_found_and_removed() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("good", |_| {}).await;
    for round in 0..GIVEN_UP / 2 {
        let patience = Duration::from_millis(u64::from(round) * 2);
        let other = node.pod(&format!("gone-{round}"));
        let _ = tokio::time::timeout(patience, node.cri.run_pod(&other)).await;
        let config = node.container(&pod.config, &format!("gone-{round}"), &image, &["true"]);
        let _ = tokio::time::timeout(patience, node.cri.create(&pod.id, &pod.config, &config)).await;
    }
    // What is still being made shows up once it is.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for found in node.cri.pods().await.unwrap() {
        node.remove(&found.id).await;
    }
    assert_eq!(node.cri.containers().await.unwrap(), []);
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
