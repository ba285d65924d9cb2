//! What an image says about itself is data.

use pinnace_conformance::images::Layer;
use pinnace_conformance::node::Node;
use serde_json::{Value, json};

use crate::ground::{Canary, attempt, image};

/// Labels with the names by which runtimes store their own decisions.
#[tokio::test]
async fn labels_of_an_image_decide_nothing() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let run = format!("binary:///bin/sh?-c=touch {}", canary.at("/ran"));
    let mut labels = serde_json::Map::new();
    for key in [
        "io.cri-containerd.kind",
        "io.cri-containerd.image",
        "containerd.io/restart.loguri",
        "containerd.io/restart.status",
        "containerd.io/restart.policy",
        "nerdctl/log-uri",
        "io.containerd.image.config.stop-signal",
        "io.kubernetes.container.logpath",
        "io.kubernetes.container.name",
        "io.kubernetes.pod.uid",
        "io.kubernetes.cri-o.LogPath",
        "io.kubernetes.cri-o.Devices",
        "org.systemd.property.ExecStartPre",
        "io.podman.annotations.checkpoint.name",
        "org.criu.checkpoint.container.name",
        "log_path",
        "privileged",
    ] {
        labels.insert(key.into(), Value::String(run.clone()));
    }
    let config = json!({ "Labels": labels, "Annotations": labels, "privileged": true, "HostConfig": { "Privileged": true } });
    let id = image(&node, "labelled", Layer::new(), config).await;
    let pod = node.run_pod("labelled", |_| {}).await;
    let config = node.container(&pod.config, "main", &id, &["/bin/sh", "-c", "echo plain; exec sleep 600"]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let status = node.cri.status(&running.container).await.unwrap();
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert!(status.log_path.ends_with("main/0.log"), "{}", status.log_path);
    node.cri.sh(&running.container, "grep -q 'Seccomp:.2' /proc/self/status").await;
    node.remove(&pod.id).await;
    canary.assert_untouched(&node);
}

/// An image that says it is a checkpoint is an image; there is no restoring.
#[tokio::test]
async fn checkpoints_are_plain_images() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let files = Layer::new()
        .file("config.dump", 0o644, format!(r#"{{"mounts":[{{"source":"{}"}}],"name":"x"}}"#, canary.at("")))
        .file(
            "spec.dump",
            0o644,
            r#"{"process":{"capabilities":{"effective":["CAP_SYS_ADMIN"]}},"linux":{}}"#,
        )
        .symlink("container.log", &canary.at("/file"))
        .directory("checkpoint", 0o700)
        .file("checkpoint/core-1.img", 0o600, "not a process");
    let annotations = json!({ "Labels": {
        "io.kubernetes.cri-o.annotations.checkpoint.name": "x",
        "org.criu.checkpoint.container.name": "x",
        "io.podman.annotations.checkpoint.rawImageName": "registry.test:5000/victim:1",
    } });
    let id = image(&node, "checkpoint", files, annotations).await;
    let before = node.cri.list_images().await.unwrap().len();
    let pod = node.run_pod("checkpoint", |_| {}).await;
    let script = "grep -E '^(Cap(Eff|Inh|Amb)|Seccomp:)' /proc/self/status; cat /file; cut -d' ' -f5 /proc/self/mountinfo";
    let outcome = attempt(&node, &pod, "main", &id, script, |_| {}).await;
    let plain = node.image("busybox").await;
    let expected = attempt(&node, &pod, "plain", &plain, script, |_| {}).await;
    assert_eq!(outcome.text(), expected.text());
    assert!(outcome.text().contains("Seccomp:\t2"), "{outcome:?}");
    assert_eq!(node.cri.list_images().await.unwrap().len(), before + 1, "a tag came from nowhere");
    canary.assert_untouched(&node);
}
