//! What the kubelet tells others about pods.

use serde_json::{Value, json};

use crate::ground::{Ground, busybox, idle};

/// A pod that uses some of everything.
const BUSY: &str = "dd if=/dev/zero of=/tmp/file bs=1M count=3 2>/dev/null; trap 'exit 0' TERM
    while :; do i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; echo $i; sleep 0.2; done";

pub async fn pods_as_they_are(ground: &Ground) {
    ground
        .deploy_with("told", json!({ "labels": { "app": "told" } }), json!({ "containers": [idle("main")] }))
        .await;
    ground.ready("told").await;
    let pods = ground.json("/pods");
    let all = pods["items"].as_array().unwrap();
    let pod = all.iter().find(|pod| pod["metadata"]["name"] == "told-node").unwrap();
    assert_eq!((&pods["kind"], &pods["apiVersion"]), (&"PodList".into(), &"v1".into()));
    assert_eq!(pod["metadata"]["labels"]["app"], "told");
    let status = &pod["status"];
    assert_eq!(status["podIPs"][0]["ip"], status["podIP"], "{status}");
    let main = &status["containerStatuses"][0];
    assert!(main["containerID"].as_str().unwrap().starts_with("pinnace://"), "{main}");
    // The status names the image as the manifest does, and its ID.
    assert_eq!(main["image"], crate::ground::image("busybox"), "{main}");
    assert!(main["imageID"].as_str().unwrap().contains("sha256:"), "{main}");
    assert!(main["state"]["running"]["startedAt"].as_str().unwrap().starts_with("20"), "{main}");
    for condition in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"] {
        let conditions = status["conditions"].as_array().unwrap();
        assert!(
            conditions.iter().any(|c| c["type"] == condition && c["status"] == "True"),
            "{condition}: {status}"
        );
    }
    // From a cache of the kubelet's, which may be older than the pod.
    sensible(ground, || {
        let running = ground.json("/runningpods/");
        running["items"].as_array()?.iter().find(|pod| pod["metadata"]["name"] == "told-node").map(|_| ())
    })
    .await;
    assert_eq!(ground.get("/healthz"), "ok");
    ground.remove("told").await;
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

pub async fn the_stats_summary(ground: &Ground) {
    ground.deploy("stats", json!({ "containers": [busybox("main", BUSY)] })).await;
    ground.ready("stats").await;
    // A rate needs two looks.
    let (pod, main, summary) = sensible(ground, || {
        let summary = ground.json("/stats/summary");
        let pod =
            summary["pods"].as_array()?.iter().find(|pod| pod["podRef"]["name"] == "stats-node")?.clone();
        let main =
            pod["containers"].as_array()?.iter().find(|container| container["name"] == "main")?.clone();
        (number(&main["cpu"]["usageNanoCores"]) > 0.0 && number(&main["rootfs"]["usedBytes"]) > 3e6)
            .then_some((pod, main, summary))
    })
    .await;
    for (what, value, least, most) in [
        ("cpu time", &main["cpu"]["usageCoreNanoSeconds"], 1e6, 1e12),
        ("cpu", &main["cpu"]["usageNanoCores"], 1e5, 3e9),
        ("working set", &main["memory"]["workingSetBytes"], 1e5, 1e9),
        ("root file system", &main["rootfs"]["usedBytes"], 3e6, 1e8),
        ("its inodes", &main["rootfs"]["inodesUsed"], 1.0, 1e5),
        ("log", &main["logs"]["usedBytes"], 1.0, 1e7),
        ("pod's cpu time", &pod["cpu"]["usageCoreNanoSeconds"], 1e6, 1e12),
        ("pod's memory", &pod["memory"]["workingSetBytes"], 1e5, 1e9),
        ("received", &pod["network"]["rxBytes"], 0.0, 1e9),
        ("processes", &pod["process_stats"]["process_count"], 1.0, 100.0),
        ("node's memory", &summary["node"]["memory"]["workingSetBytes"], 1e6, 1e13),
        ("images", &summary["node"]["runtime"]["imageFs"]["usedBytes"], 1e5, 1e12),
        ("disk of images", &summary["node"]["runtime"]["imageFs"]["capacityBytes"], 1e8, 1e15),
    ] {
        let value = value.as_f64().unwrap_or_else(|| panic!("{what} is missing: {pod:#}"));
        assert!((least..=most).contains(&value), "{what}: {value}: {pod:#}");
    }
    assert_eq!(pod["network"]["name"], "eth0", "{pod:#}");
    ground.remove("stats").await;
}

pub async fn resource_metrics(ground: &Ground) {
    ground.deploy("metrics", json!({ "containers": [busybox("main", BUSY)] })).await;
    ground.ready("metrics").await;
    let mine = "pod=\"metrics-node\"";
    let found = sensible(ground, || {
        let text = ground.get("/metrics/resource");
        let value = |name: &str| sample(&text, name, &[mine]);
        Some([
            value("container_cpu_usage_seconds_total")?,
            value("container_memory_working_set_bytes")?,
            value("container_start_time_seconds")?,
            value("pod_cpu_usage_seconds_total")?,
            value("pod_memory_working_set_bytes")?,
            sample(&text, "node_memory_working_set_bytes", &[])?,
            sample(&text, "resource_scrape_error", &[])?,
        ])
        .filter(|found| found[0] > 0.0)
    })
    .await;
    let [cpu, memory, start, pod_cpu, pod_memory, node_memory, errors] = found;
    assert!(cpu > 0.0 && pod_cpu > 0.0 && cpu < 1000.0, "{found:?}");
    assert!((1e5..1e9).contains(&memory) && pod_memory >= memory * 0.5 && node_memory > 1e6, "{found:?}");
    assert!(start > 1.6e9, "{found:?}");
    assert!(errors == 0.0, "{found:?}");
    ground.remove("metrics").await;
}

/// The metrics of containers as cAdvisor names them; pinnace makes them, as `PodAndContainerStatsFromCRI` wants.
pub async fn container_metrics(ground: &Ground) {
    ground.deploy("cadvisor", json!({ "containers": [busybox("main", BUSY)] })).await;
    ground.ready("cadvisor").await;
    let text = sensible(ground, || {
        let text = ground.get("/metrics/cadvisor");
        sample(&text, "container_memory_working_set_bytes", &["pod=\"cadvisor-node\"", "container=\"main\""])
            .filter(|&value| value > 0.0)
            .map(|_| text)
    })
    .await;
    let main = ["pod=\"cadvisor-node\"", "container=\"main\"", "namespace=\"default\""];
    for (name, least) in [
        ("container_memory_working_set_bytes", 1e5),
        ("container_memory_usage_bytes", 1e5),
        ("container_start_time_seconds", 1.6e9),
        ("container_processes", 1.0),
        ("container_threads", 1.0),
        ("container_fs_usage_bytes", 1e6),
        ("container_last_seen", 1.6e9),
    ] {
        let value = sample(&text, name, &main);
        let there = text.lines().filter(|line| line.starts_with(name)).take(3).collect::<Vec<_>>();
        assert!(value.is_some_and(|value| value >= least), "{name}: {value:?}\n{there:#?}");
    }
    let network = sample(
        &text,
        "container_network_receive_bytes_total",
        &["pod=\"cadvisor-node\"", "interface=\"eth0\""],
    );
    assert!(network.is_some(), "no network metrics");
    ground.remove("cadvisor").await;
}

/// The first sample of a metric whose labels contain all of these.
fn sample(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    text.lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .find(|line| labels.iter().all(|label| line.contains(label)))
        .and_then(|line| {
            line.rsplit_once('}')
                .map_or(line.split_once(' '), Some)?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
}

/// Asks until there is an answer: statistics are collected now and then.
async fn sensible<T>(ground: &Ground, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "no sensible answer: {:#}",
            ground.json("/stats/summary")["pods"]
        );
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
