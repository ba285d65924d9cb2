//! The daemon's own doors: memory, sockets, records.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig};
use pinnace_conformance::node::Node;
use serde_json::Value;
use tonic::Code;

use crate::ground::{Canary, attempt};

/// The pids of the monitors of a node: its processes that run from the sealed image.
fn monitors(node: &Node) -> Vec<u32> {
    let world = fs::read_link(format!("/proc/{}/ns/cgroup", node.world.keeper())).unwrap();
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.to_string_lossy().contains("memfd:"))
        })
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/cgroup")).is_ok_and(|own| own == world))
        .collect();
    pids.sort_unstable();
    pids
}

/// A workload that is killed for its memory takes neither monitor nor bookkeeping with it.
#[tokio::test]
async fn memory_of_a_workload_is_not_the_monitor_s() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("oom", |_| {}).await;
    let before = monitors(&node);
    assert_eq!(before.len(), 1);
    for round in 0..8 {
        let mut config = node.container(
            &pod.config,
            &format!("c{round}"),
            &image,
            &["sh", "-c", "x=x; while :; do x=$x$x$x$x; done"],
        );
        config.resources().memory_limit_in_bytes = 16 << 20;
        config.resources().memory_swap_limit_in_bytes = 16 << 20;
        let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
        let status = node.cri.exited(&running.container).await;
        assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"), "round {round}");
        assert_eq!(monitors(&node), before, "round {round}");
    }
    node.script(&pod, "true", |_| {}).await;
}

/// A container in the host's network finds no abstract socket, and in its root no other one of ours.
#[tokio::test]
async fn no_socket_of_ours_is_in_reach() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("sockets", PodConfig::on_host_network).await;
    let outcome =
        attempt(&node, &pod, "main", &image, "cat /proc/net/unix; find / -xdev -type s", |config| {
            config.namespaces().network = pinnace_cri_api::v1::NamespaceMode::Node.into();
        })
        .await;
    assert!(!outcome.is_refused(), "{outcome:?}");
    let own = node.world.dir().display().to_string();
    let mut listening = 0;
    for line in outcome.text().lines().filter(|line| line.contains(':')) {
        let path = line.split_whitespace().nth(7).unwrap_or_default();
        assert!(!path.starts_with('@'), "abstract: {line}");
        listening += usize::from(path.starts_with(&own));
    }
    assert!(listening > 0, "the daemon's sockets must be seen by name here: {outcome:?}");
    assert!(!outcome.text().lines().any(|line| line.starts_with('/')), "a socket in the root: {outcome:?}");
    for socket in sockets(&node.world.inside(&node.daemon.run)) {
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o077, 0, "{}", socket.display());
    }
}

fn sockets(dir: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt as _;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(sockets(&entry.path())),
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Commands that cannot be executed, many times: neither tasks nor descriptors stay.
#[tokio::test]
async fn commands_that_fail_leave_nothing() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("fail", "sleep 600").await;
    let count = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let pids = || [vec![node.daemon.process().pid], monitors(&node)].concat();
    let one = async || {
        let answer = node.cri.exec(&running.container, &["/not/there"], 5).await;
        assert!(answer.is_err() || answer.unwrap().exit_code != 0);
    };
    for _ in 0..5 {
        one().await;
    }
    let before: Vec<_> = pids().into_iter().map(count).collect();
    for _ in 0..200 {
        one().await;
    }
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let after: Vec<_> = pids().into_iter().map(count).collect();
        if before.iter().zip(&after).all(|(before, after)| after <= before) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "descriptors: {before:?} before, {after:?} after");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Records of the daemon, changed behind its back so that paths lead to the host: nothing there is removed.
#[tokio::test]
async fn tampered_records_remove_nothing_of_the_host() {
    let Some(mut node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    for (round, value) in
        ["", "/", "..", "../../..", &canary.at(""), &canary.climbing()].into_iter().enumerate()
    {
        let pod = node.run_pod(&format!("tampered-{round}"), |_| {}).await;
        let mut config = node.container(&pod.config, "main", &image, &["sleep", "600"]);
        config.mount(&canary.path().join("dir"), "/data").readonly = true;
        let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
        node.daemon.kill();
        let run = node.world.inside(&node.daemon.run);
        for record in [
            run.join("containers").join(&running.container).join("container.json"),
            run.join("sandboxes").join(&pod.id).join("sandbox.json"),
        ] {
            let mut content: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
            replace_paths(&mut content, value);
            fs::write(&record, content.to_string()).unwrap();
        }
        node.restart();
        // Whatever the daemon makes of such a record, it answers, and removes what is below its own roots only.
        let _ = node.cri.stop(&running.container, 0).await;
        let _ = node.cri.remove(&running.container).await;
        let _ = node.cri.stop_pod(&pod.id).await;
        let _ = node.cri.remove_pod(&pod.id).await;
        for id in ["", "/", "..", "../sandboxes", &canary.at(""), "."] {
            let answers = [
                node.cri.remove(id).await.err().map(|status| status.code()),
                node.cri.remove_pod(id).await.err().map(|status| status.code()),
            ];
            for code in answers.into_iter().flatten() {
                assert!(matches!(code, Code::InvalidArgument | Code::NotFound), "{id:?}: {code:?}");
            }
        }
        canary.assert_untouched(&node);
        assert!(node.world.inside(&node.daemon.root).join("store").exists(), "{value:?}");
        assert!(Path::new("/bin/sh").exists());
    }
    // The node is as good as before.
    node.script(&node.run_pod("after", |_| {}).await, "true", |_| {}).await;
}

/// Puts a value in the place of every string that is a path, and of no other.
fn replace_paths(content: &mut Value, value: &str) {
    match content {
        Value::String(text) if text.starts_with('/') || text.contains("/") => value.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_paths(item, value)),
        Value::Object(fields) => fields.values_mut().for_each(|item| replace_paths(item, value)),
        _ => {}
    }
}
