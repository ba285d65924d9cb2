//! The kubelet and pinnace stop and start under pods that go on running. In this order, one after the other.

use std::time::Duration;

use pinnace_cri_api::v1::{PodSandbox, PodSandboxState};
use serde_json::json;

use crate::ground::{Ground, busybox, idle, image};

/// What runs through all of this.
const STEADY: [&str; 2] = ["steady-one", "steady-two"];

/// Counts aloud, five times a second.
const COUNT: &str = "trap 'exit 0' TERM; i=0; while :; do echo count $i; i=$((i + 1)); sleep 0.2; done";

/// A container's id and its restarts: the same pod may have run before.
type Run = (String, u64);

async fn deploy_steady(ground: &Ground) -> Vec<Run> {
    let mut side = idle("side");
    side["restartPolicy"] = "Always".into();
    let mut probed = busybox("main", COUNT);
    probed["livenessProbe"] = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 5 });
    ground.deploy(STEADY[0], json!({ "initContainers": [side], "containers": [probed] })).await;
    let shared = json!({ "shareProcessNamespace": true, "containers": [busybox("main", COUNT)] });
    ground.deploy(STEADY[1], shared).await;
    let mut runs = Vec::new();
    for name in STEADY {
        let seen = ground.ready(name).await;
        runs.push((seen.id("main"), seen.restarts("main")));
    }
    runs
}

/// The containers are those from before, have not stopped counting, and can be used.
async fn assert_steady(ground: &Ground, runs: &[Run]) {
    for (name, run) in STEADY.iter().zip(runs) {
        assert_one_steady(ground, name, run).await;
    }
}

async fn assert_one_steady(ground: &Ground, name: &str, run: &Run) {
    let seen = ground.ready(name).await;
    assert_eq!(&(seen.id("main"), seen.restarts("main")), run, "{name}: {seen:?}");
    let log = ground.output(name, "main");
    let numbers: Vec<u64> =
        log.lines().filter_map(|line| line.strip_prefix("count ")?.parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{name}: a line is missing");
    assert!(numbers.len() > 5, "{name}: {log}");
    assert_eq!(ground.sh(name, "main", "echo works").await, "works\n");
}

/// A container that ends by itself while somebody is not there to see it.
async fn deploy_ending(ground: &Ground, name: &str) {
    let script = "until [ -e /d/end ]; do sleep 0.1; done; echo last words; exit 7";
    let (_, volume) = crate::containers::host_directory(ground, name);
    let main = crate::containers::mounted(busybox("main", script), "host", "/d");
    ground.deploy(name, json!({ "restartPolicy": "Never", "volumes": [volume], "containers": [main] })).await;
    ground.until(name, "running", |seen| seen.running("main").then_some(())).await;
}

fn let_end(ground: &Ground, name: &str) {
    std::fs::write(ground.world.dir().join("host").join(name).join("end"), "").unwrap();
}

async fn assert_ended(ground: &Ground, name: &str) {
    let seen = ground.ended(name).await;
    assert_eq!(seen.phase(), "Failed", "{seen:?}");
    assert_eq!(seen.terminated("main").unwrap()["exitCode"], 7, "{seen:?}");
    assert_eq!(ground.output(name, "main"), "last words\n");
    ground.remove(name).await;
}

pub async fn the_kubelet_starts_again(ground: &Ground) {
    let runs = deploy_steady(ground).await;
    deploy_ending(ground, "ends-alone").await;
    ground.restart_kubelet(|| let_end(ground, "ends-alone"), |_| {}).await;
    assert_ended(ground, "ends-alone").await;
    assert_steady(ground, &runs).await;
}

/// The kubelet removes unused images before it evicts pods when the disk is full; static pods are never evicted. To one that
/// wants 99 % free, this disk is full.
pub async fn unused_images_are_collected(ground: &Ground) {
    let runs = deploy_steady(ground).await;
    let cri = ground.cri().await;
    let (unused, used) = (image("configured"), image("busybox"));
    cri.pull(&unused).await.unwrap();
    assert!(cri.image(&unused).await.unwrap().is_some());
    let under_pressure = |configuration: &mut serde_json::Value| {
        configuration["evictionHard"]["nodefs.available"] = "99%".into();
    };
    ground.restart_kubelet(|| {}, under_pressure).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while cri.image(&unused).await.unwrap().is_some() {
        assert!(tokio::time::Instant::now() < end, "{unused} is still there");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(cri.image(&used).await.unwrap().is_some(), "an image in use was removed");
    assert_steady(ground, &runs).await;
}

/// With gates for what only new kubelets ask of a runtime: events in place of lists, and lists as streams.
///
/// No pod here has init containers: with `EventedPLEG` the kubelet (1.36, 1.37) leaves `ActiveContainerStatuses` empty for a
/// runtime that gives `PodSandboxStatusResponse.timestamp`, and starts sidecars again and again.
pub async fn events_and_streamed_lists(ground: &Ground) {
    let runs = deploy_steady(ground).await;
    ground.remove(STEADY[0]).await;
    let gates = |configuration: &mut serde_json::Value| {
        configuration["featureGates"]["EventedPLEG"] = true.into();
        configuration["featureGates"]["CRIListStreaming"] = true.into();
    };
    ground.restart_kubelet(|| {}, gates).await;
    assert_one_steady(ground, STEADY[1], &runs[1]).await;
    let output = ground.script("evented", "sleep 1; echo done", |_| {}).await;
    assert_eq!(output, "done\n");
    ground.deploy("evented-restart", json!({ "containers": [busybox("main", "sleep 1; exit 3")] })).await;
    ground.until("evented-restart", "a restart", |seen| (seen.restarts("main") >= 1).then_some(())).await;
    ground.remove("evented-restart").await;
    let metrics = ground.get("/metrics");
    let count = |name: &str| -> Option<f64> {
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    assert!(count("kubelet_evented_pleg_connection_success_count ").is_some_and(|count| count >= 1.0));
    assert!(count("kubelet_evented_pleg_connection_error_count ").is_none_or(|count| count == 0.0));
    assert_one_steady(ground, STEADY[1], &runs[1]).await;
    ground.restart_kubelet(|| {}, |_| {}).await;
    assert_one_steady(ground, STEADY[1], &runs[1]).await;
}

pub async fn pinnace_is_killed_and_starts_again(ground: &Ground) {
    let runs = deploy_steady(ground).await;
    for name in ["ends-unseen", "ends-later"] {
        deploy_ending(ground, name).await;
    }
    {
        let mut node = ground.node.write().await;
        node.daemon.kill();
        let_end(ground, "ends-unseen");
        // Some probes and relists fail.
        tokio::time::sleep(Duration::from_secs(3)).await;
        node.restart();
    }
    assert_ended(ground, "ends-unseen").await;
    assert_steady(ground, &runs).await;
    let_end(ground, "ends-later");
    assert_ended(ground, "ends-later").await;
    assert_eq!(ground.script("after-kill", "echo new pods start", |_| {}).await, "new pods start\n");
}

/// Pods that are being made while pinnace dies at one moment after the other: each is there in the end, and what was half made
/// is not in the way of what follows.
pub async fn pods_start_though_pinnace_is_killed_over_and_over(ground: &Ground) {
    let names: Vec<_> = (0..8).map(|number| format!("storm-{number}")).collect();
    for name in &names {
        let spec = json!({
            "volumes": [{ "name": "v", "emptyDir": { "medium": "Memory" } }],
            "initContainers": [crate::containers::mounted(busybox("init", "echo init >/v/init"), "v", "/v")],
            "containers": [crate::containers::mounted(idle("main"), "v", "/v"), busybox("count", COUNT)],
        });
        ground.deploy(name, spec).await;
    }
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(100 + 130 * round)).await;
        let mut node = ground.node.write().await;
        node.daemon.kill();
        node.restart();
    }
    for name in &names {
        ground.ready(name).await;
        assert_eq!(ground.sh(name, "main", "cat /v/init").await, "init\n", "{name}");
        let uid = ground.now(name).object()["metadata"]["uid"].clone();
        let pods = ground.cri().await.pods().await.unwrap();
        let ready = i32::from(PodSandboxState::SandboxReady);
        let of_pod = |pod: &&PodSandbox| {
            pod.state == ready && pod.metadata.as_ref().is_some_and(|metadata| uid == *metadata.uid)
        };
        assert_eq!(pods.iter().filter(of_pod).count(), 1, "{name}: {pods:?}");
    }
    for name in &names {
        ground.remove(name).await;
    }
}

/// Nothing of any pod is left once all manifests are gone.
pub async fn everything_ends_with_its_manifest(ground: &Ground) {
    ground.kubelet.read().await.remove_all();
    let end = tokio::time::Instant::now() + Duration::from_secs(90);
    let left = || async {
        let cri = ground.cri().await;
        let (pods, containers) = (cri.pods().await.unwrap().len(), cri.containers().await.unwrap().len());
        let monitors =
            "for exe in /proc/[0-9]*/exe; do readlink $exe || :; done | grep -c pinnace-monitor || :";
        let monitors = ground.world.sh(monitors);
        let cgroups = ground.world.sh("find /sys/fs/cgroup -type d -path '*kubepods*/pod*' | wc -l");
        [pods.to_string(), containers.to_string(), monitors.trim().into(), cgroups.trim().into()]
    };
    loop {
        let now = left().await;
        if now.iter().all(|count| count == "0") {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "left: pods, containers, monitors, cgroups: {now:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
