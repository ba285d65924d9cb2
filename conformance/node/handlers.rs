//! RuntimeClass handlers: external OCI runtimes beside pinnace itself.

use std::fs;
use std::time::Duration;

use pinnace_conformance::node::{Node, Pod, Running};
use pinnace_conformance::process::poll;
use pinnace_cri_api::v1::*;
use tonic::Code;

const RUNTIMES: [(&str, &str); 2] = [("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc")];

/// Those that can run on this machine: crun refuses a hybrid hierarchy that has controllers in its unified part.
fn runtimes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let unified = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    let refuses_hybrid = !unified.trim().is_empty();
    if refuses_hybrid {
        pinnace_conformance::skip(
            "handlers_of_crun",
            "crun does not run with controllers in a hybrid hierarchy",
        );
    }
    RUNTIMES.into_iter().filter(move |(name, _)| !(refuses_hybrid && *name == "crun"))
}

fn node() -> Option<Node> {
    Node::start_in(|world, config| {
        let failing = world.write_executable("failing", "#!/bin/sh\necho \"no room for $1\" >&2\nexit 3\n");
        let section =
            |(name, path): (&str, &str)| format!("\n[runtimes.{name}]\npath = \"{path}\"\ntype = \"oci\"\n");
        let sections = RUNTIMES.into_iter().map(section).collect::<String>();
        config + &sections + &section(("failing", failing.to_str().unwrap()))
    })
}

async fn pod(node: &Node, handler: &str) -> Pod {
    let config = node.pod(&format!("pod-of-{handler}"));
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
    let id = node.cri.runtime().run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    Pod { id, config }
}

async fn run(
    node: &Node,
    pod: &Pod,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Running {
    let image = node.image("busybox").await;
    let mut config = node.container(&pod.config, name, &image, &["sh", "-c", script]);
    change(&mut config);
    node.run_in(&pod.id, &pod.config, &config).await.unwrap()
}

/// What a runtime has left in its own directory.
fn known(node: &Node, handler: &str) -> Vec<String> {
    let root = node.world.inside(node.daemon.run.join("runtimes").join(handler));
    let names = fs::read_dir(root).map(|list| list.flatten().map(|it| it.file_name()).collect::<Vec<_>>());
    names.unwrap_or_default().into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn an_external_runtime_makes_the_containers_of_its_pods() {
    let Some(node) = node() else { return };
    let before = node.baseline().await;
    for (handler, _) in runtimes() {
        let pod = pod(&node, handler).await;
        assert_eq!(node.cri.pod_status(&pod.id).await.unwrap().runtime_handler, handler);
        let script = "trap 'echo asked; exit 7' TERM; echo out; echo err >&2; hostname >/etc/written; \
                      cat /etc/written; df /dev/shm | tail -1 | cut -c1-3; while :; do sleep 0.05; done";
        let running = run(&node, &pod, "main", script, |config| {
            config.envs.push(KeyValue { key: "KEY".into(), value: "value".into() });
        })
        .await;
        assert!(known(&node, handler).contains(&running.container), "{handler} does not know it");
        let status = node.cri.status(&running.container).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        // In the pod's namespaces, and in the cgroup and with the rights that pinnace gives.
        let seen = node.cri.sh(&running.container, "readlink /proc/self/ns/net; echo $KEY; id -u").await;
        let native = node.cri.exec(&running.container, &["sh", "-c", "exit 5"], 10).await.unwrap();
        assert_eq!(native.exit_code, 5);
        assert!(seen.ends_with("value\n0\n"), "{seen}");
        assert_ne!(seen.lines().next().unwrap(), node.world.sh("readlink /proc/self/ns/net").trim());
        let log = poll(Duration::from_secs(10), || {
            let log = fs::read_to_string(&running.log).unwrap_or_default();
            log.contains("shm").then_some(log)
        });
        let log = log.unwrap_or_else(|| panic!("{}", fs::read_to_string(&running.log).unwrap_or_default()));
        for (stream, text) in [("stdout", "out"), ("stderr", "err"), ("stdout", &pod.config.hostname)] {
            assert!(log.lines().any(|line| line.contains(stream) && line.ends_with(text)), "{text}: {log}");
        }
        let limits = LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() };
        let update = UpdateContainerResourcesRequest {
            container_id: running.container.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        node.cri.runtime().update_container_resources(update).await.unwrap();
        let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max";
        let limit = node.cri.sh(&running.container, &format!("cat {file} 2>/dev/null || true")).await;
        assert_eq!(limit.trim(), (48 << 20).to_string());
        node.cri.stop(&running.container, 10).await.unwrap();
        let exited = node.cri.status(&running.container).await.unwrap();
        assert_eq!((exited.exit_code, &*exited.reason), (7, "Error"), "{handler}");
        assert!(!known(&node, handler).contains(&running.container), "{handler} still knows it");
        node.remove(&pod.id).await;
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn sessions_and_terminals_of_an_external_runtime() {
    let Some(node) = node() else { return };
    for (handler, _) in runtimes() {
        let pod = pod(&node, handler).await;
        let running = run(&node, &pod, "main", "sleep 1000", |_| {}).await;
        // As short as can be, and one that ends by a signal.
        for code in 0..5 {
            let ended =
                node.cri.exec(&running.container, &["sh", "-c", &format!("exit {code}")], 10).await.unwrap();
            assert_eq!(ended.exit_code, code);
        }
        let ended = node
            .cri
            .exec(&running.container, &["sh", "-c", "echo a; echo b >&2; kill -9 $$"], 10)
            .await
            .unwrap();
        assert_eq!((ended.exit_code, &*ended.stdout, &*ended.stderr), (137, &b"a\n"[..], &b"b\n"[..]));
        let late = node.cri.exec(&running.container, &["sleep", "100"], 1).await;
        node.assert_fails(late, Code::DeadlineExceeded, "exec");
        let left = poll(Duration::from_secs(5), || {
            (!node
                .world
                .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true")
                .contains("sleep 100 "))
            .then_some(())
        });
        assert!(left.is_some(), "a command that was late is left");
        let missing = node.cri.exec(&running.container, &["no-such-program"], 10).await;
        node.assert_fails(missing, Code::Internal, "no-such-program");
        let terminal = run(&node, &pod, "terminal", "test -t 1 && echo on a terminal; exit 4", |config| {
            config.tty = true
        })
        .await;
        assert_eq!(node.cri.exited(&terminal.container).await.exit_code, 4);
        assert!(fs::read_to_string(&terminal.log).unwrap().contains("on a terminal"));
        node.remove(&pod.id).await;
    }
}

#[tokio::test]
async fn containers_of_an_external_runtime_outlive_the_daemon() {
    let Some(mut node) = node() else { return };
    for (handler, _) in runtimes() {
        let pod = pod(&node, handler).await;
        let lives = run(&node, &pod, "lives", "while :; do echo tick; sleep 0.05; done", |_| {}).await;
        let ends = run(&node, &pod, "ends", "sleep 1; exit 9", |_| {}).await;
        node.daemon.kill();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        node.restart();
        let ended = node.cri.exited(&ends.container).await;
        assert_eq!((ended.exit_code, &*ended.reason), (9, "Error"), "{handler}");
        assert_eq!(
            node.cri.status(&lives.container).await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        assert_eq!(node.cri.sh(&lives.container, "echo still here").await, "still here\n");
        let size = fs::metadata(&lives.log).unwrap().len();
        let grown =
            poll(Duration::from_secs(5), || (fs::metadata(&lives.log).unwrap().len() > size).then_some(()));
        assert!(grown.is_some(), "the log stands still");
        node.remove(&pod.id).await;
        assert_eq!(known(&node, handler), [""; 0], "{handler}");
    }
}

#[tokio::test]
async fn handlers_are_listed_checked_and_their_failures_told() {
    let Some(node) = node() else { return };
    let before = node.baseline().await;
    let status = node.cri.runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let names: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(names, ["", "pinnace", "crun", "failing", "runc"]);
    let features =
        |name: &str| status.runtime_handlers.iter().find(|it| it.name == name).unwrap().features.unwrap();
    assert!(features("runc").recursive_read_only_mounts);
    assert!(!features("failing").recursive_read_only_mounts);

    let request = RunPodSandboxRequest { config: Some(node.pod("none")), runtime_handler: "gvisor".into() };
    let answer = node.cri.runtime().run_pod_sandbox(request).await;
    node.assert_fails(answer, Code::InvalidArgument, "crun");

    let pod = pod(&node, "failing").await;
    let image = node.image("busybox").await;
    let config = node.container(&pod.config, "main", &image, &["true"]);
    let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    let (_, message) = pinnace_conformance::cri::failure(node.cri.start(&id).await);
    assert!(message.contains("failing") && message.contains("status 3"), "{message}");
    let exited = node.cri.status(&id).await.unwrap();
    assert_eq!((exited.exit_code, &*exited.reason), (128, "StartError"));
    assert!(fs::read_to_string(node.log_path(&pod.config, &config)).unwrap().contains("no room for --root"));
    node.remove(&pod.id).await;

    // A program that the runtime cannot execute.
    for (handler, _) in runtimes() {
        let pod = self::pod(&node, handler).await;
        let config = node.container(&pod.config, "main", &image, &["no-such-program"]);
        let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
        let (_, message) = pinnace_conformance::cri::failure(node.cri.start(&id).await);
        assert!(message.contains("no-such-program"), "{message}");
        node.remove(&pod.id).await;
    }
    node.assert_nothing_left(&before);
}
