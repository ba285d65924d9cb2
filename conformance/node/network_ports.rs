//! Ports of the host: every protocol and family, one address, conflicts, the machine's loopback, the pod itself.

use std::net::SocketAddr;

use pinnace_conformance::images::catalog::NGINX_PAGE;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;

use crate::network::{nginx, page};

fn mapping(protocol: Protocol, container_port: i32, host_port: i32, host_ip: &str) -> PortMapping {
    PortMapping { protocol: protocol.into(), container_port, host_port, host_ip: host_ip.to_owned() }
}

/// The page at a port of the host.
fn served(node: &Node, host: &str, port: u16) -> Option<String> {
    page(&node.world, SocketAddr::new(host.parse().unwrap(), port))
}

/// The bridge's address of a family.
fn bridge(node: &Node, family: &str) -> String {
    let text = node.world.sh(&format!("ip -o {family} addr show pinnace0 scope global"));
    let address = text.split_whitespace().skip_while(|word| !word.starts_with("inet")).nth(1).unwrap();
    address.split('/').next().unwrap().to_owned()
}

#[tokio::test]
async fn both_families_and_the_pod_itself() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = nginx(&node, "ports", |config| {
        config.port_mappings = vec![mapping(Protocol::Tcp, 80, 8080, "")];
    })
    .await;
    for host in ["127.0.0.1".to_owned(), bridge(&node, "-4"), bridge(&node, "-6")] {
        assert_eq!(served(&node, &host, 8080).as_deref(), Some(NGINX_PAGE), "{host}");
    }
    // The pod reaches itself by its host port.
    let script = format!("wget -q -O - http://{}:8080/", bridge(&node, "-4"));
    assert_eq!(node.script(&pod, &script, |_| {}).await, NGINX_PAGE);
    node.remove(&pod.id).await;
    assert!(node.world.connect("127.0.0.1:8080".parse().unwrap()).is_err(), "the port is still served");
}

#[tokio::test]
async fn every_protocol_has_its_rules() {
    let Some(node) = Node::start() else { return };
    let pod = node
        .run_pod("protocols", |config| {
            config.port_mappings =
                vec![mapping(Protocol::Sctp, 80, 8132, ""), mapping(Protocol::Udp, 80, 8132, "")];
        })
        .await;
    // What passes is tested where sockets of every protocol can be had: in the network's own tests.
    let rules = node.world.sh("nft list table inet pinnace");
    assert!(rules.contains("sctp . 8132") && rules.contains("udp . 8132"), "{rules}");
    node.remove(&pod.id).await;
    let rules = node.world.sh("nft list table inet pinnace");
    assert!(!rules.contains(". 8132"), "{rules}");
}

#[tokio::test]
async fn one_address_of_the_host() {
    let Some(node) = Node::start() else { return };
    let first = node.run_pod("first", |_| {}).await;
    let (v4, v6) = (bridge(&node, "-4"), bridge(&node, "-6"));
    let mappings = vec![
        mapping(Protocol::Tcp, 80, 8080, "127.0.0.1"),
        mapping(Protocol::Tcp, 80, 8081, &v4),
        mapping(Protocol::Tcp, 80, 8082, &v6),
    ];
    nginx(&node, "addresses", |config| config.port_mappings = mappings).await;
    for (host, port) in [("127.0.0.1", 8080), (v4.as_str(), 8081), (v6.as_str(), 8082)] {
        assert_eq!(served(&node, host, port).as_deref(), Some(NGINX_PAGE), "{host}:{port}");
    }
    for (host, port) in [(v4.as_str(), 8080), ("127.0.0.1", 8081), (v4.as_str(), 8082)] {
        let address = SocketAddr::new(host.parse().unwrap(), port);
        assert!(node.world.connect(address).is_err(), "{address} is served");
    }
    node.remove(&first.id).await;
}

#[tokio::test]
async fn a_taken_port_is_refused_and_nothing_is_left() {
    let Some(node) = Node::start() else { return };
    let holder = node
        .run_pod("holder", |config| {
            config.port_mappings = vec![mapping(Protocol::Tcp, 80, 8080, "")];
        })
        .await;
    let before = node.baseline().await;
    let mut config = node.pod("late");
    config.port_mappings = vec![mapping(Protocol::Tcp, 81, 8080, "127.0.0.1")];
    let refused = node.cri.run_pod(&config).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused:?}");
    assert!(refused.message().contains("8080/tcp") && refused.message().contains(&holder.id), "{refused:?}");
    node.assert_nothing_left(&before);
    // Another protocol is another port; the port itself is free when its pod is gone.
    config.port_mappings = vec![mapping(Protocol::Udp, 81, 8080, "")];
    let other = node.cri.run_pod(&config).await.unwrap();
    node.remove(&holder.id).await;
    let mut config = node.pod("after");
    config.port_mappings = vec![mapping(Protocol::Tcp, 81, 8080, "")];
    let after = node.cri.run_pod(&config).await.unwrap();
    node.remove(&other).await;
    node.remove(&after).await;
}
