//! `kill -9` and restarts of the daemon: what runs goes on, what ended is known, what was begun is undone.

use std::time::Duration;

use pinnace_conformance::log;
use pinnace_conformance::node::{Node, Running};
use pinnace_cri_api::v1::*;

const COUNT: &str = "i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); sleep 0.002; done";

/// Everything that can be asked about what a node has.
#[derive(Debug, PartialEq)]
struct View {
    pods: Vec<PodSandbox>,
    pod_statuses: Vec<PodSandboxStatus>,
    containers: Vec<Container>,
    statuses: Vec<ContainerStatus>,
    images: Vec<Image>,
}

async fn view(node: &Node) -> View {
    let mut pods = node.cri.pods().await.unwrap();
    let mut containers = node.cri.containers().await.unwrap();
    let mut images = node.cri.list_images().await.unwrap();
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    images.sort_by(|a, b| a.id.cmp(&b.id));
    let (mut pod_statuses, mut statuses) = (Vec::new(), Vec::new());
    for pod in &pods {
        pod_statuses.push(node.cri.pod_status(&pod.id).await.unwrap());
    }
    for container in &containers {
        statuses.push(node.cri.status(&container.id).await.unwrap());
    }
    View { pods, pod_statuses, containers, statuses, images }
}

/// The numbers that a counting container has logged: all of them, in order, each once.
fn counted(running: &Running) -> usize {
    let entries = log::read(&running.log).unwrap();
    let text = String::from_utf8(log::stream(&entries, "stdout")).unwrap();
    let numbers: Vec<usize> = text.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()), "the log has a hole or a line twice");
    numbers.len()
}

#[tokio::test]
async fn killed_daemon_finds_everything_as_it_was() {
    let Some(mut node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let counting = node.run_script("counting", COUNT).await;
    let ended = node.run_script("ended", "echo over; exit 5").await;
    node.cri.exited(&ended.container).await;
    let stopped = node.run_pod("stopped", |_| {}).await;
    node.cri.stop_pod(&stopped.id).await.unwrap();
    let created = node.run_pod("created", |_| {}).await;
    let config = node.container(&created.config, "main", &image, &["echo", "at last"]);
    let waiting = node.cri.create(&created.id, &created.config, &config).await.unwrap();

    let expected = view(&node).await;
    let logged = counted(&counting);
    node.daemon.kill();
    std::thread::sleep(Duration::from_millis(300));
    let meanwhile = counted(&counting);
    assert!(meanwhile > logged, "the log stands still without a daemon");
    node.restart();
    assert_eq!(view(&node).await, expected);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(counted(&counting) > meanwhile, "the log stands still after the restart");

    // All of it still works.
    assert_eq!(node.cri.sh(&counting.container, "echo alive").await, "alive\n");
    node.cri.start(&waiting).await.unwrap();
    assert_eq!(node.cri.exited(&waiting).await.exit_code, 0);
    node.cri.stop(&counting.container, 0).await.unwrap();
    assert_eq!(node.cri.status(&counting.container).await.unwrap().exit_code, 137);
    counted(&counting);
    for pod in [&counting.pod, &ended.pod, &stopped.id, &created.id] {
        node.remove(pod).await;
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn exits_while_the_daemon_is_gone_are_known_after() {
    let Some(mut node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("meanwhile", |_| {}).await;
    let mut ids = Vec::new();
    for code in [0, 7, 42] {
        let script = format!("sleep 0.4; echo last words; exit {code}");
        let config = node.container(&pod.config, &format!("c{code}"), &image, &["sh", "-c", &script]);
        ids.push((code, node.run_in(&pod.id, &pod.config, &config).await.unwrap()));
    }
    let eat = ["sh", "-c", "sleep 0.4; exec dd if=/dev/zero of=/dev/null bs=200M count=1"];
    let mut config = node.container(&pod.config, "oom", &image, &eat);
    {
        use pinnace_conformance::cri::ContainerConfigParts as _;
        config.resources().memory_limit_in_bytes = 24 << 20;
        config.resources().memory_swap_limit_in_bytes = 24 << 20;
    }
    let oom = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    node.daemon.kill();
    std::thread::sleep(Duration::from_millis(1200));
    let restarted = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    node.restart();
    for (code, running) in ids {
        let status = node.cri.status(&running.container).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, code));
        let finished = Duration::from_nanos(status.finished_at.try_into().unwrap());
        assert!(finished < restarted, "the time of the exit is that of the restart");
        let entries = log::read(&running.log).unwrap();
        assert_eq!(log::stream(&entries, "stdout"), b"last words\n");
    }
    let status = node.cri.status(&oom.container).await.unwrap();
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
}

#[tokio::test]
async fn killed_in_the_middle_of_calls_leaves_nothing() {
    let Some(mut node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    for delay in [1, 3, 6, 10, 15, 25, 40, 60] {
        let config = node.pod(&format!("killed-{delay}"));
        let container = node.container(&config, "main", &image, &["sleep", "4250"]);
        let cri = node.cri.clone();
        let call = tokio::spawn(async move {
            let pod = cri.run_pod(&config).await?;
            let id = cri.create(&pod, &config, &container).await?;
            cri.start(&id).await?;
            Ok::<_, tonic::Status>(())
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.daemon.kill();
        call.abort();
        node.restart();
        // What is listed can be removed; what is not listed is not there.
        for pod in node.cri.pods().await.unwrap() {
            node.remove(&pod.id).await;
        }
        assert_eq!(node.cri.containers().await.unwrap(), [], "after {delay} ms");
        node.assert_nothing_left(&before);
    }
}

#[tokio::test]
async fn killed_in_the_middle_of_removals_finishes_them() {
    let Some(mut node) = Node::start() else { return };
    let before = node.baseline().await;
    for delay in [1, 3, 6, 10, 20, 40] {
        let running =
            node.run_script(&format!("removed-{delay}"), "trap '' TERM; while :; do sleep 0.05; done").await;
        let (cri, pod) = (node.cri.clone(), running.pod.clone());
        let call = tokio::spawn(async move {
            cri.stop_pod(&pod).await?;
            cri.remove_pod(&pod).await
        });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.daemon.kill();
        call.abort();
        node.restart();
        node.remove(&running.pod).await;
        assert_eq!(node.cri.pods().await.unwrap(), [], "after {delay} ms");
        node.assert_nothing_left(&before);
    }
}

#[tokio::test]
async fn killed_in_the_middle_of_a_pull_can_pull_again() {
    let Some(mut node) = Node::start() else { return };
    let before = node.baseline().await;
    let reference = node.push("nginx");
    for delay in [1, 5, 10, 20, 40, 80, 160] {
        let (cri, name) = (node.cri.clone(), reference.clone());
        let call = tokio::spawn(async move { cri.pull(&name).await });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.daemon.kill();
        call.abort();
        node.restart();
        let id =
            node.cri.pull(&reference).await.unwrap_or_else(|status| panic!("after {delay} ms: {status:?}"));
        assert_eq!(id, node.images.image_id("nginx"));
        let pod = node.run_pod("whole", |_| {}).await;
        let config = node.container(&pod.config, "main", &id, &["/usr/sbin/nginx", "-t"]);
        assert_eq!(node.run_to_end(&pod, config, |_| {}).await.status.exit_code, 0, "after {delay} ms");
        node.remove(&pod.id).await;
        node.cri.remove_image(&reference).await.unwrap();
        node.assert_nothing_left(&before);
    }
}

#[tokio::test]
async fn terminated_daemon_ends_well_and_leaves_containers_alone() {
    let Some(mut node) = Node::start() else { return };
    let counting = node.run_script("counting", COUNT).await;
    let expected = view(&node).await;
    let status = node.daemon.terminate();
    assert!(status.success(), "{status}");
    let logged = counted(&counting);
    std::thread::sleep(Duration::from_millis(200));
    assert!(counted(&counting) > logged, "the container stands still");
    node.restart();
    assert_eq!(view(&node).await, expected);
}

#[tokio::test]
async fn lost_monitor_is_reported_and_can_be_removed() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = node.run_script("lost", "while :; do sleep 0.05; done").await;
    let killed =
        node.world.sh("grep -lx pinnace-monitor /proc/[0-9]*/comm | cut -d/ -f3 | xargs -t kill -9 2>&1");
    assert!(killed.starts_with("kill -9 "), "there is no monitor: {killed}");
    let status = node.cri.exited(&running.container).await;
    assert!(status.exit_code == 137 || (status.exit_code == 255 && status.reason == "Unknown"), "{status:?}");
    node.remove(&running.pod).await;
    assert_eq!(node.cri.pods().await.unwrap(), []);
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn second_daemon_on_the_same_state_is_refused() {
    let Some(node) = Node::start() else { return };
    let output = node
        .daemon
        .command("serve")
        .arg("--config")
        .arg(&node.daemon.config)
        .arg("--root")
        .arg(&node.daemon.root)
        .arg("--run")
        .arg(&node.daemon.run)
        .arg("--socket")
        .arg(node.world.dir().join("second.sock"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&node.daemon.root.display().to_string())
            || text.contains(&node.daemon.run.display().to_string()),
        "{text}"
    );
    assert_eq!(node.cri.pods().await.unwrap(), []);
}
