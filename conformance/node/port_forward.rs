//! PortForward: what `kubectl port-forward` does, over the streaming URL.

use pinnace_conformance::cri::PodConfig as _;
use pinnace_conformance::node::{Node, Pod};
use pinnace_conformance::serve::serve;
use pinnace_conformance::streams::{self, Client};
use pinnace_cri_api::v1::PodSandboxConfig;
use tonic::Code;

/// How many connections are open at once in `many_connections_do_not_mix`.
const CONNECTIONS: u8 = 64;

/// A pod with servers: a page on 127.0.0.1:8004 alone, another on ::1 port 8006 alone, an echo on port 8007.
async fn servers(node: &Node, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod {
    let image = node.image("busybox").await;
    let pod = node.run_pod(name, change).await;
    let script = "mkdir -p /tmp/4 /tmp/6; echo four >/tmp/4/index.html; echo six >/tmp/6/index.html
        httpd -p 127.0.0.1:8004 -h /tmp/4; httpd -p '[::1]:8006' -h /tmp/6
        nc -ll -p 8007 -e cat & touch /tmp/ready; wait";
    let config = node.container(&pod.config, "servers", &image, &["sh", "-euc", script]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    node.cri
        .sh(&running.container, "until [ -e /tmp/ready ] && netstat -ltn | grep -q 8007; do sleep 0.02; done")
        .await;
    pod
}

async fn open(node: &Node, pod: &str, ports: &[u16]) -> Client {
    let url = node.cri.port_forward_url(pod, ports).await.unwrap_or_else(|e| panic!("PortForward: {e:?}"));
    streams::open_ports(&node.world, &url, ports).await
}

/// What a web server behind a port says. The first port's data is channel 0, its errors are channel 1, and so on.
async fn page(node: &Node, pod: &str, port: u16) -> String {
    let mut client = open(node, pod, &[port]).await;
    client.to.send(0, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    client.from.wait(|kept| kept[0].ends_with(b"four\n") || kept[0].ends_with(b"six\n")).await;
    String::from_utf8(client.from.take(0)).unwrap()
}

#[tokio::test]
async fn both_families_of_the_pods_loopback_are_reached() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let pod = servers(&node, "servers", |_| {}).await;
    assert!(page(&node, &pod.id, 8004).await.ends_with("\r\n\r\nfour\n"));
    assert!(page(&node, &pod.id, 8006).await.ends_with("\r\n\r\nsix\n"));
    // Not the node's own loopback.
    let registry = open(&node, &pod.id, &[5000]).await;
    let Client { mut from, .. } = registry;
    let text = from.until(1, "refused").await;
    assert!(text.contains("5000") && text.contains("127.0.0.1") && text.contains("::1"), "{text}");
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn pods_on_the_hosts_network_are_forwarded_to() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let pod = servers(&node, "host", |config| config.on_host_network()).await;
    assert!(page(&node, &pod.id, 8004).await.ends_with("four\n"));
    assert!(page(&node, &pod.id, 8006).await.ends_with("six\n"));
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn an_error_of_one_port_leaves_the_others_alone() {
    let Some(node) = Node::start() else { return };
    let pod = servers(&node, "mixed", |_| {}).await;
    let Client { mut to, mut from } = open(&node, &pod.id, &[9, 8007]).await;
    to.send(0, b"hello").await.unwrap();
    from.until(1, "refused").await;
    to.send(2, b"echo this").await.unwrap();
    assert_eq!(from.until(2, "echo this").await, "echo this");
}

#[tokio::test]
async fn many_connections_do_not_mix() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = node.run_script("many", "trap 'exit 0' TERM; while :; do sleep 0.05; done").await;
    let echo = serve(node.listen_in(&running.container, 8007).await, |mut stream| async move {
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.map(drop)
    });
    let connections = (0..CONNECTIONS).map(|index| {
        let (node, running) = (&node, &running);
        async move {
            let Client { mut to, mut from } = open(node, &running.pod, &[8007]).await;
            let bytes = vec![index; 200_000];
            let sent = bytes.clone();
            let sending = tokio::spawn(async move {
                for chunk in sent.chunks(16_000) {
                    to.send(0, chunk).await.unwrap();
                }
                to
            });
            from.wait(|kept| kept[0].len() >= 200_000).await;
            sending.await.unwrap();
            assert!(from.take(0) == bytes, "connection {index}");
        }
    });
    futures_util::future::join_all(connections).await;
    drop(echo);
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn connections_end_with_their_pod() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let pod = servers(&node, "ending", |_| {}).await;
    let Client { mut to, mut from } = open(&node, &pod.id, &[8007]).await;
    to.send(0, b"hello").await.unwrap();
    from.until(0, "hello").await;
    let url = node.cri.port_forward_url(&pod.id, &[8007]).await.unwrap();
    node.cri.stop_pod(&pod.id).await.unwrap();
    from.finish().await;
    let Client { mut from, .. } = streams::try_open(&node.world, &url, streams::PORTS).await.unwrap();
    from.until(1, "not ready").await;
    let again = node.cri.port_forward_url(&pod.id, &[8007]).await;
    node.assert_fails(again, Code::FailedPrecondition, &pod.id);
    node.remove(&pod.id).await;
    node.assert_fails(node.cri.port_forward_url(&pod.id, &[80]).await, Code::NotFound, &pod.id);
    node.assert_fails(node.cri.port_forward_url("", &[80]).await, Code::InvalidArgument, "pod_sandbox_id");
    node.assert_fails(node.cri.port_forward_url(&pod.id, &[0]).await, Code::InvalidArgument, "port");
    node.assert_nothing_left(&before);
}
