//! ExecSync: probes and hooks of the kubelet.

use std::time::{Duration, Instant};

use pinnace_conformance::cri::{ContainerConfigParts as _, failure};
use pinnace_conformance::node::{Node, Running};
use pinnace_cri_api::v1::*;
use tonic::Code;

const OUTPUT_BYTES_MAX: usize = 16 * 1024 * 1024;

async fn target(node: &Node) -> Running {
    node.run_script("target", "trap 'exit 0' TERM; while :; do sleep 0.05; done").await
}

/// Lines of `ps` in the world that contain a word.
fn alive(node: &Node, word: &str) -> String {
    node.world.sh(&format!(
        "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o '[s]leep {word}' || true"
    ))
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    for (cmd, code, stdout, stderr) in [
        (&["sh", "-c", "echo out; echo err >&2; exit 3"][..], 3, &b"out\n"[..], &b"err\n"[..]),
        (&["true"], 0, b"", b""),
        (&["printf", "no newline"], 0, b"no newline", b""),
        (&["sh", "-c", "printf '\\377\\000\\n'"], 0, b"\xff\0\n", b""),
        (&["sh", "-c", "kill -9 $$"], 137, b"", b""),
        // Standard input is empty, not the container's.
        (&["cat"], 0, b"", b""),
        (&["echo", "an argument with spaces", "", "$HOME"], 0, b"an argument with spaces  $HOME\n", b""),
    ] {
        let done =
            node.cri.exec(&running.container, cmd, 20).await.unwrap_or_else(|e| panic!("{cmd:?}: {e:?}"));
        assert_eq!((done.exit_code, &*done.stdout, &*done.stderr), (code, stdout, stderr), "{cmd:?}");
    }
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn command_is_in_the_containers_place() {
    let Some(node) = Node::start() else { return };
    let image = node.image("configured").await;
    let pod = node.run_pod("place", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["sleep", "4246"]);
    config.env("MINE", "yes");
    config.resources().oom_score_adj = 555;
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    // The same as in the container's own process, except for what must differ.
    let ask = "pwd; id; echo $MINE $COLOUR $HOME; grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status
               cat /proc/self/oom_score_adj
               for name in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$name; done";
    let from_exec = node.cri.sh(&running.container, ask).await;
    let config = node.container(&pod.config, "same", &image, &["sh", "-euc", ask]);
    let ended = node
        .run_to_end(&pod, config, |config| {
            config.env("MINE", "yes");
            config.resources().oom_score_adj = 555;
        })
        .await;
    let comparable = |text: &str| {
        let own = ["mnt:", "pid:", "cgroup:"];
        text.lines()
            .filter(|line| !own.iter().any(|kind| line.starts_with(kind)))
            .map(String::from)
            .collect::<Vec<_>>()
    };
    assert_eq!(comparable(&from_exec), comparable(&ended.stdout));
    assert!(from_exec.starts_with("/srv/here\nuid=1000"), "{from_exec}");
    for name in ["mnt", "pid", "cgroup"] {
        let same = format!("[ \"$(readlink /proc/self/ns/{name})\" = \"$(readlink /proc/1/ns/{name})\" ]");
        node.cri.sh(&running.container, &same).await;
    }
}

#[tokio::test]
async fn time_out_kills_the_whole_tree_and_nothing_else() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let start = Instant::now();
    let script =
        "sleep 4247 & setsid sleep 4247 & (trap '' TERM HUP INT; sh -c 'sleep 4247'; true) & sleep 4247";
    let answer = node.cri.exec(&running.container, &["sh", "-c", script], 1).await;
    let took = start.elapsed();
    node.assert_fails(answer, Code::DeadlineExceeded, "1");
    assert!(took >= Duration::from_millis(990) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(alive(&node, "4247"), "", "part of the command lives");
    assert_eq!(node.cri.status(&running.container).await.unwrap().state(), ContainerState::ContainerRunning);
    assert_eq!(node.cri.sh(&running.container, "echo again").await, "again\n");
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn caller_that_goes_away_leaves_no_command() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let call = node.cri.exec(&running.container, &["sleep", "4248"], 0);
    assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
    let gone = async {
        while !alive(&node, "4248").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), gone).await.is_ok(), "the command lives");
}

#[tokio::test]
async fn output_is_cut_at_sixteen_mebibytes_a_stream() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let script =
        "dd if=/dev/zero bs=1M count=20 2>/dev/null; dd if=/dev/zero bs=1M count=17 >&2 2>/dev/null; exit 4";
    let done = node.cri.exec(&running.container, &["sh", "-c", script], 60).await.unwrap();
    assert_eq!(done.exit_code, 4, "the command must be able to write on");
    assert_eq!((done.stdout.len(), done.stderr.len()), (OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX));
}

#[tokio::test]
async fn what_a_command_leaves_running_does_not_hold_the_answer() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let start = Instant::now();
    let done = node.cri.exec(&running.container, &["sh", "-c", "sleep 30 & echo started"], 0).await.unwrap();
    assert_eq!((&*done.stdout, done.exit_code), (&b"started\n"[..], 0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn many_at_once_do_not_mix() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..24 {
        let (cri, id) = (node.cri.clone(), running.container.clone());
        calls.spawn(async move {
            let script = format!("echo {index}; sleep 0.{}; exit {index}", index % 7);
            (index, cri.exec(&id, &["sh", "-c", &script], 30).await)
        });
    }
    while let Some(call) = calls.join_next().await {
        let (index, done) = call.unwrap();
        let done = done.unwrap();
        assert_eq!((done.exit_code, &*done.stdout), (index, format!("{index}\n").as_bytes()));
    }
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn what_cannot_be_executed_says_why() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    for cmd in ["/no/such/command", "no-such-command", "/etc", "/etc/passwd"] {
        let (_, text) = failure(node.cri.exec(&running.container, &[cmd], 5).await);
        assert!(text.contains(cmd), "{cmd} is not named in {text}");
    }
    node.assert_fails(node.cri.exec(&running.container, &[], 5).await, Code::InvalidArgument, "cmd");
    node.assert_fails(
        node.cri.exec(&running.container, &["true"], -1).await,
        Code::InvalidArgument,
        "timeout",
    );
    let unknown = "b".repeat(64);
    node.assert_fails(node.cri.exec(&unknown, &["true"], 5).await, Code::NotFound, &unknown);
    node.cri.stop(&running.container, 5).await.unwrap();
    let answer = node.cri.exec(&running.container, &["true"], 5).await;
    node.assert_fails(answer, Code::FailedPrecondition, &running.container);
}

#[tokio::test]
async fn end_of_the_container_ends_the_command() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let (exec, stop) = tokio::join!(node.cri.exec(&running.container, &["sleep", "4249"], 0), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.cri.stop(&running.container, 0).await
    });
    stop.unwrap();
    // Either how it ended or why there is no answer, but one of them, and soon.
    if let Ok(done) = exec {
        assert_eq!(done.exit_code, 137);
    }
    assert_eq!(alive(&node, "4249"), "");
}
