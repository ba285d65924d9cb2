//! Statistics and metrics: the numbers are those of the kernel, and what goes meanwhile fails no list.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use pinnace_conformance::cri::ContainerConfigParts as _;
use pinnace_conformance::log;
use pinnace_conformance::node::{Node, Running};
use pinnace_cri_api::v1::*;
use tonic::Code;

const MIB: u64 = 1 << 20;

fn number(value: Option<&UInt64Value>) -> u64 {
    value.expect("a number").value
}

async fn of(node: &Node, id: &str) -> ContainerStats {
    let request = ContainerStatsRequest { container_id: id.into() };
    node.cri.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap()
}

async fn listed(node: &Node, filter: ContainerStatsFilter) -> Vec<ContainerStats> {
    let request = ListContainerStatsRequest { filter: Some(filter) };
    node.cri.runtime().list_container_stats(request).await.unwrap().into_inner().stats
}

async fn pod(node: &Node, id: &str) -> PodSandboxStats {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    node.cri.runtime().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap()
}

/// A container that holds memory, has written a file, and burns a CPU.
async fn busy(node: &Node, name: &str) -> Running {
    let image = node.image("busybox").await;
    let config = node.pod(name);
    let script = "head -c 3000000 /dev/zero > /file; x=$(head -c 8000000 /dev/zero | tr '\\0' x); echo ready; while :; do :; done";
    let mut container = node.container(&config, "main", &image, &["sh", "-c", script]);
    container.labels.insert("role".into(), "busy".into());
    container.resources().memory_limit_in_bytes = 64 << 20;
    let running = node.run(&config, &container).await.unwrap();
    for _ in 0..600 {
        if log::read(&running.log).is_ok_and(|entries| log::stream(&entries, "stdout") == b"ready\n") {
            return running;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the container does not get busy: {:?}", log::read(&running.log));
}

#[tokio::test]
async fn usage_is_what_the_container_does() {
    let Some(node) = Node::start() else { return };
    let running = busy(&node, "usage").await;
    let first = of(&node, &running.container).await;
    let attributes = first.attributes.as_ref().unwrap();
    assert_eq!(attributes.id, running.container);
    assert_eq!(attributes.metadata.as_ref().unwrap().name, "main");
    assert_eq!(attributes.labels["role"], "busy");
    let memory = first.memory.as_ref().unwrap();
    let (usage, working_set) =
        (number(memory.usage_bytes.as_ref()), number(memory.working_set_bytes.as_ref()));
    assert!(working_set >= 8 * MIB - MIB && working_set <= usage && usage <= 64 * MIB, "{memory:?}");
    assert_eq!(number(memory.available_bytes.as_ref()), 64 * MIB - working_set);
    assert!(memory.timestamp > 0);
    let layer = first.writable_layer.as_ref().unwrap();
    let bytes = number(layer.used_bytes.as_ref());
    assert!((3_000_000..3_200_000).contains(&bytes), "{layer:?}");
    assert!(number(layer.inodes_used.as_ref()) >= 1);
    assert!(rustix::fs::statfs(node.world.inside(&layer.fs_id.as_ref().unwrap().mountpoint)).is_ok());
    // The first asking has a rate already; after a second it is that of the loop: a core, as far as it was given one.
    let cpu = first.cpu.as_ref().unwrap();
    assert!(cpu.timestamp > 0 && number(cpu.usage_nano_cores.as_ref()) > 0, "{cpu:?}");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let second = of(&node, &running.container).await;
    let later = second.cpu.as_ref().unwrap();
    let used = number(later.usage_core_nano_seconds.as_ref()) - number(cpu.usage_core_nano_seconds.as_ref());
    let elapsed = u64::try_from(later.timestamp - cpu.timestamp).unwrap();
    let rate = number(later.usage_nano_cores.as_ref());
    assert!(used > 0 && rate > 0, "{later:?}");
    let expected = u128::from(used) * 1_000_000_000 / u128::from(elapsed);
    assert!(u128::from(rate).abs_diff(expected) < 200_000_000, "{rate} is not {used} ns in {elapsed} ns");
}

#[tokio::test]
async fn a_pod_has_the_sum_and_its_network() {
    let Some(node) = Node::start() else { return };
    let running = busy(&node, "sum").await;
    node.cri
        .sh(
            &running.container,
            "ping -c 3 -i 0.2 -W 1 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')",
        )
        .await;
    let stats = pod(&node, &running.pod).await;
    assert_eq!(stats.attributes.as_ref().unwrap().metadata.as_ref().unwrap().name, "sum");
    let linux = stats.linux.unwrap();
    let container = linux.containers.first().expect("its container");
    assert_eq!(container.attributes.as_ref().unwrap().id, running.container);
    let total = number(linux.cpu.as_ref().unwrap().usage_core_nano_seconds.as_ref());
    assert!(total > 0);
    assert!(number(linux.memory.as_ref().unwrap().working_set_bytes.as_ref()) >= 7 * MIB);
    assert!(number(linux.process.unwrap().process_count.as_ref()) >= 1);
    let network = linux.network.expect("a network");
    let own = network.default_interface.expect("an interface");
    assert_eq!(own.name, "eth0");
    // Three echoes of 98 bytes and their answers.
    assert!(number(own.tx_bytes.as_ref()) >= 294 && number(own.rx_bytes.as_ref()) >= 294, "{own:?}");
    assert!(network.interfaces.iter().all(|other| other.name != "lo" && other.name != "eth0"));
}

#[tokio::test]
async fn lists_are_filtered_and_survive_what_goes() {
    let Some(node) = Node::start() else { return };
    let one = busy(&node, "one").await;
    let two = node.run_script("two", "exit 0").await;
    node.cri.exited(&two.container).await;
    let ids = |stats: Vec<ContainerStats>| -> HashSet<String> {
        stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect()
    };
    let all = HashSet::from([one.container.clone(), two.container.clone()]);
    assert_eq!(ids(listed(&node, ContainerStatsFilter::default()).await), all);
    let by_prefix = ContainerStatsFilter { id: one.container[..12].into(), ..Default::default() };
    assert_eq!(ids(listed(&node, by_prefix).await), HashSet::from([one.container.clone()]));
    let by_pod = ContainerStatsFilter { pod_sandbox_id: two.pod.clone(), ..Default::default() };
    let exited = listed(&node, by_pod).await;
    assert_eq!(exited.len(), 1);
    // What has ended uses nothing but disk.
    assert!(exited[0].cpu.is_none() && exited[0].memory.is_none() && exited[0].writable_layer.is_some());
    let by_label = ContainerStatsFilter {
        label_selector: HashMap::from([("role".into(), "busy".into())]),
        ..Default::default()
    };
    assert_eq!(ids(listed(&node, by_label).await), HashSet::from([one.container.clone()]));
    let mut runtime = node.cri.runtime();
    let unknown = runtime.container_stats(ContainerStatsRequest { container_id: "f00d".into() });
    node.assert_fails(unknown.await, Code::NotFound, "f00d");
    let unknown = runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: "f00d".into() });
    node.assert_fails(unknown.await, Code::NotFound, "f00d");
    // Asked while pods come and go.
    let churn = async {
        for round in 0..8 {
            let running = node.run_script(&format!("churn-{round}"), "sleep 60").await;
            node.remove(&running.pod).await;
        }
    };
    let ask = async {
        loop {
            listed(&node, ContainerStatsFilter::default()).await;
            let pods = ListPodSandboxStatsRequest { filter: None };
            node.cri.runtime().list_pod_sandbox_stats(pods).await.unwrap();
            node.cri.runtime().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
        }
    };
    tokio::select! {
        () = churn => {}
        () = ask => {}
    }
}

#[tokio::test]
async fn a_stopped_pod_has_attributes_and_no_usage() {
    let Some(node) = Node::start() else { return };
    let running = busy(&node, "stopped").await;
    node.cri.stop_pod(&running.pod).await.unwrap();
    let stats = pod(&node, &running.pod).await;
    assert_eq!(stats.attributes.unwrap().id, running.pod);
    let linux = stats.linux.unwrap();
    assert!(linux.cpu.is_none() && linux.network.is_none(), "{linux:?}");
    assert_eq!(linux.containers.len(), 1);
}

#[tokio::test]
async fn metrics_have_the_labels_that_their_descriptors_say() {
    let Some(node) = Node::start() else { return };
    let running = busy(&node, "metrics").await;
    let descriptors =
        node.cri.runtime().list_metric_descriptors(ListMetricDescriptorsRequest {}).await.unwrap();
    let keys: HashMap<_, _> = descriptors
        .into_inner()
        .descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name, descriptor.label_keys))
        .collect();
    let metrics = node.cri.runtime().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
    let pods = metrics.into_inner().pod_metrics;
    let pod = pods.iter().find(|pod| pod.pod_sandbox_id == running.pod).expect("the pod");
    let container = pod.container_metrics.first().expect("its container");
    assert_eq!(container.container_id, running.container);
    let mut values = HashMap::new();
    for metric in pod.metrics.iter().chain(&container.metrics) {
        let keys = keys.get(&metric.name).unwrap_or_else(|| panic!("{} has no descriptor", metric.name));
        assert_eq!(metric.label_values.len(), keys.len(), "{metric:?}");
        let labels: HashMap<_, _> = keys.iter().zip(&metric.label_values).collect();
        assert_eq!(
            (labels[&"pod".to_string()].as_str(), labels[&"namespace".to_string()].is_empty()),
            ("metrics", false)
        );
        values.insert(metric.name.clone(), number(metric.value.as_ref()));
    }
    // Those whose controllers are not everywhere: huge pages, block devices, pressure.
    let optional = ["hugetlb", "blkio", "fs_reads", "fs_writes", "pressure"];
    for name in keys.keys().filter(|name| !optional.iter().any(|part| name.contains(part))) {
        assert!(values.contains_key(name), "no sample of {name}");
    }
    assert_eq!(values["container_spec_memory_limit_bytes"], 64 * MIB);
    assert!(values["container_memory_working_set_bytes"] >= 7 * MIB);
    assert!((3_000_000..3_200_000).contains(&values["container_fs_usage_bytes"]));
    assert!(values["container_processes"] >= 1 && values["container_file_descriptors"] >= 3);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now - values["container_start_time_seconds"] < 120);
}
