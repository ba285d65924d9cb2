//! Many pods that come and go: nothing of them stays.
//!
//! `cargo test` takes a few; `PODS=500 cargo test -p pinnace-conformance --test node network_churn` takes as many as are
//! named.

use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;

use crate::cni::{Ground, bridge};

const PODS: usize = 30;
const AT_ONCE: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_that_come_and_go_leave_nothing() {
    let Some(node) = Node::start() else { return };
    churn(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_of_a_configuration_that_come_and_go_leave_nothing() {
    let Some(ground) = Ground::start("cni", "", &[]) else { return };
    // Addresses are files, which the node counts as its own.
    ground.write(&bridge(&ground.node.daemon.root.join("addresses")).to_string());
    churn(&ground.node).await;
    assert!(ground.owed().is_empty(), "{:?}", ground.owed());
}

async fn churn(node: &Node) {
    let pods: usize = std::env::var("PODS").map_or(PODS, |number| number.parse().unwrap());
    // The bridge, chains that all host ports share, and what else is made once.
    let first = node.cri.run_pod(&with_port(node, 0)).await.unwrap();
    node.remove(&first).await;
    let before = node.baseline().await;

    let mut started = 0;
    while started < pods {
        let batch = AT_ONCE.min(pods - started);
        let configs: Vec<PodSandboxConfig> =
            (started..started + batch).map(|number| with_port(node, number)).collect();
        let ids = all(configs.iter().map(|config| node.cri.run_pod(config))).await;
        // Half of them are stopped before they are removed, as the kubelet does; the others at once.
        let (stopped, running) = ids.split_at(batch / 2);
        all(stopped.iter().map(|id| node.cri.stop_pod(id))).await;
        all(stopped.iter().chain(running).map(|id| node.cri.remove_pod(id))).await;
        started += batch;
    }
    assert!(node.cri.pods().await.unwrap().is_empty());
    // Links, namespaces, rules, cgroups, processes and files, those of addresses among them.
    node.assert_nothing_left(&before);
}

/// A pod with a port of the host that is its own as long as it runs.
fn with_port(node: &Node, number: usize) -> PodSandboxConfig {
    let mut config = node.pod(&format!("churn-{number}"));
    let host_port = i32::try_from(20_000 + number % 1000).unwrap();
    let mapping =
        PortMapping { protocol: Protocol::Tcp.into(), container_port: 80, host_port, host_ip: String::new() };
    config.port_mappings.push(mapping);
    config
}

async fn all<T, E: std::fmt::Debug>(
    calls: impl Iterator<Item = impl Future<Output = Result<T, E>>>,
) -> Vec<T> {
    let answers = futures_util::future::join_all(calls).await;
    answers.into_iter().map(|answer| answer.unwrap()).collect()
}
