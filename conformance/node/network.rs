//! The pod network: addresses, names, ports, and the host's network.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pinnace_conformance::cri::PodConfig as _;
use pinnace_conformance::images::catalog::NGINX_PAGE;
use pinnace_conformance::node::{Node, Pod};
use pinnace_conformance::process::poll;
use pinnace_conformance::world::World;
use pinnace_cri_api::v1::*;

/// Addresses of a pod.
async fn addresses(node: &Node, pod: &str) -> Vec<IpAddr> {
    let network = node.cri.pod_status(pod).await.unwrap().network.unwrap_or_default();
    let additional = network.additional_ips.into_iter().map(|ip| ip.ip);
    let all = std::iter::once(network.ip).chain(additional).filter(|ip| !ip.is_empty());
    all.map(|ip| ip.parse().unwrap_or_else(|_| panic!("{ip} is no address"))).collect()
}

/// The page at an address of the world, as soon as there is one.
pub fn page(world: &World, address: SocketAddr) -> Option<String> {
    poll(Duration::from_secs(10), || {
        let mut stream = world.connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string())
    })
}

/// A pod with a web server.
pub async fn nginx(node: &Node, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod {
    let image = node.image("nginx").await;
    let pod = node.run_pod(name, change).await;
    let config = node.container(&pod.config, "web", &image, &[]);
    node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    pod
}

#[tokio::test]
async fn pods_reach_each_other_over_both_families() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.image("nginx").await;
    let server = nginx(&node, "server", |_| {}).await;
    let client = node.run_pod("client", |_| {}).await;
    let ips = addresses(&node, &server.id).await;
    assert!(ips.iter().any(IpAddr::is_ipv4) && ips.iter().any(IpAddr::is_ipv6), "{ips:?}");
    for ip in ips {
        let address = SocketAddr::new(ip, 80);
        assert_eq!(page(&node.world, address).as_deref(), Some(NGINX_PAGE), "from the node: {address}");
        let got = node.script(&client, &format!("wget -q -O - http://{address}/"), |_| {}).await;
        assert_eq!(got, NGINX_PAGE, "from a pod: {address}");
    }
    assert!(addresses(&node, &client.id).await != addresses(&node, &server.id).await);
    node.remove(&server.id).await;
    node.remove(&client.id).await;
    node.cri.remove_image(&image).await.unwrap();
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn containers_of_a_pod_share_its_network() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = nginx(&node, "shared", |_| {}).await;
    let script =
        "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://127.0.0.1/ && exit; sleep 0.1; done; exit 1";
    assert_eq!(node.script(&pod, script, |_| {}).await, NGINX_PAGE);
    let links = node.script(&pod, "ls /sys/class/net", |_| {}).await;
    let mut links: Vec<_> = links.split_whitespace().collect();
    links.sort_unstable();
    assert_eq!(links, ["eth0", "lo"]);
}

#[tokio::test]
async fn host_port_leads_to_the_pod() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.image("nginx").await;
    let pod = nginx(&node, "port", |config| {
        config.port_mappings.push(PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: 80,
            host_port: 8080,
            host_ip: String::new(),
        });
        // Not mapped, because nobody asked for a port of the host.
        config.port_mappings.push(PortMapping { container_port: 443, ..PortMapping::default() });
    })
    .await;
    let bridge = node.world.sh("ip -o -4 addr show pinnace0 | sed 's/.*inet \\([^/]*\\).*/\\1/'");
    for host in ["127.0.0.1", bridge.trim()] {
        let address: SocketAddr = format!("{host}:8080").parse().unwrap();
        assert_eq!(page(&node.world, address).as_deref(), Some(NGINX_PAGE), "{address}");
    }
    node.remove(&pod.id).await;
    assert!(node.world.connect("127.0.0.1:8080".parse().unwrap()).is_err(), "the port is still served");
    node.cri.remove_image(&image).await.unwrap();
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn host_network_is_the_nodes() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("host", |config| config.on_host_network()).await;
    assert_eq!(addresses(&node, &pod.id).await, [] as [IpAddr; 0]);
    let options =
        node.cri.pod_status(&pod.id).await.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.network(), NamespaceMode::Node);
    let inside = node
        .script(&pod, "readlink /proc/self/ns/net; hostname", |config| {
            use pinnace_conformance::cri::ContainerConfigParts as _;
            config.namespaces().network = NamespaceMode::Node.into();
        })
        .await;
    assert_eq!(inside, node.world.sh("readlink /proc/self/ns/net; hostname"));
}

#[tokio::test]
async fn names_are_as_the_kubelet_wants_them() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("names", |config| config.hostname = "web-0".into()).await;
    let said = node.script(&pod, "hostname; cat /etc/hostname; echo $HOSTNAME", |_| {}).await;
    assert_eq!(said, "web-0\nweb-0\nweb-0\n");
    let resolv = node.script(&pod, "cat /etc/resolv.conf", |_| {}).await;
    let mut lines: Vec<_> = resolv.lines().collect();
    lines.sort_unstable();
    let expected =
        ["nameserver 10.96.0.10", "options ndots:5", "search default.svc.cluster.local cluster.local"];
    assert_eq!(lines, expected);
    let other = node.run_pod("hosts", |config| config.dns_config = None).await;
    let inherited = node.script(&other, "cat /etc/resolv.conf", |_| {}).await;
    assert_eq!(inherited, node.world.sh("cat /etc/resolv.conf"), "without a configuration it is the node's");
}

#[tokio::test]
async fn address_is_free_again() {
    // A subnet with room for two pods.
    let config = "[network]\nipv4_subnet = \"10.9.9.0/29\"\n";
    let Some(node) = start_with_network(config) else { return };
    for round in 0..10 {
        let pod = node.run_pod(&format!("pod-{round}"), |_| {}).await;
        node.remove(&pod.id).await;
    }
    let mut pods = Vec::new();
    let refused = loop {
        let config = node.pod(&format!("many-{}", pods.len()));
        match node.cri.run_pod(&config).await {
            Ok(id) => pods.push(id),
            Err(status) => break status,
        }
        assert!(pods.len() < 10, "a /29 has no room for {} pods", pods.len());
    };
    assert!(pods.len() >= 4, "only {} pods: {refused:?}", pods.len());
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("10.9.9.0/29"), "{refused:?}");
    assert_eq!(node.cri.pods().await.unwrap().len(), pods.len(), "the refused pod is listed");
}

/// A node whose configuration has its own `[network]`.
fn start_with_network(network: &str) -> Option<Node> {
    let config = |common: String| common.replace("[network]\n", network);
    Node::start_changed(config)
}

#[tokio::test]
async fn pod_cidr_of_the_kubelet_is_for_pods_to_come() {
    let Some(node) = Node::start() else { return };
    let ip = async |pod: &str| node.cri.pod_status(pod).await.unwrap().network.unwrap().ip;
    let set = async |pod_cidr: &str| {
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.into() });
        let runtime_config = Some(RuntimeConfig { network_config });
        let request = UpdateRuntimeConfigRequest { runtime_config };
        node.cri.runtime().update_runtime_config(request).await.map(drop)
    };
    node.cri.runtime().update_runtime_config(UpdateRuntimeConfigRequest::default()).await.unwrap();
    set("").await.unwrap();
    let before = node.run_pod("before", |_| {}).await;
    let known = ip(&before.id).await;
    assert!(known.starts_with("10.88."), "{known}");
    set("10.77.5.0/24,fd77::/64").await.unwrap();
    let after = node.run_pod("after", |_| {}).await;
    let new = ip(&after.id).await;
    assert!(new.starts_with("10.77.5."), "{new}");
    assert_eq!(ip(&before.id).await, known, "who has an address keeps it");
    node.assert_fails(set("10.77.5.0").await, tonic::Code::InvalidArgument, "10.77.5.0");
}
