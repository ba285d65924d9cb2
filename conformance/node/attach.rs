//! Attach: what `kubectl attach` does, over the streaming URL.

use std::time::Duration;

use pinnace_conformance::log;
use pinnace_conformance::node::{Node, Pod, Running};
use pinnace_conformance::process::poll;
use pinnace_conformance::streams::{self, Client, STDOUT};
use pinnace_cri_api::v1::*;
use tonic::Code;

/// All streams but standard input, no terminal.
fn output(id: &str) -> AttachRequest {
    AttachRequest { container_id: id.into(), stdin: false, tty: false, stdout: true, stderr: true }
}

async fn open(node: &Node, request: AttachRequest) -> Client {
    let url = node.cri.attach_url(request).await.unwrap_or_else(|status| panic!("Attach: {status:?}"));
    streams::open(&node.world, &url).await
}

/// A container that has a standard input, changed as the test wants it.
async fn interactive(
    node: &Node,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> (Pod, Running) {
    let image = node.image("busybox").await;
    let pod = node.run_pod(name, |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["sh", "-c", script]);
    config.stdin = true;
    change(&mut config);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    (pod, running)
}

fn logged(running: &Running, stream: &str) -> String {
    let entries = log::read(&running.log).unwrap();
    String::from_utf8_lossy(&log::stream(&entries, stream)).into_owned()
}

#[tokio::test]
async fn a_slow_client_stalls_neither_log_nor_others() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    // Nothing is written before all are there, and then far more than sockets and pipes hold.
    let script = "read go; seq 1 3000000; echo end >&2";
    let (_, running) = interactive(&node, "fan", script, |config| config.stdin_once = true).await;
    let slow = open(&node, output(&running.container)).await;
    let mut fast = open(&node, output(&running.container)).await;
    let mut with_input = open(&node, AttachRequest { stdin: true, ..output(&running.container) }).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let reading = tokio::spawn(async move {
        let said = fast.from.finish().await;
        (said.stdout.len(), said)
    });
    let also_reading = tokio::spawn(async move {
        with_input.to.input(b"go\n").await;
        with_input.from.finish().await
    });
    let status = node.cri.exited(&running.container).await;
    assert_eq!(status.exit_code, 0);
    let expected: String = (1..=3_000_000).map(|number| format!("{number}\n")).collect();
    assert!(logged(&running, "stdout") == expected, "the log has a hole");
    assert_eq!(logged(&running, "stderr"), "end\n");
    // Those that read have all of it, or are told that they have not.
    for said in [reading.await.unwrap().1, also_reading.await.unwrap()] {
        let whole = said.stdout == expected.as_bytes();
        assert_eq!(said.status["status"], if whole { "Success" } else { "Failure" }, "{:?}", said.status);
        assert_eq!(said.stderr, b"end\n");
    }
    let said = slow.finish().await;
    assert!(said.stdout.len() < expected.len(), "the slow client has lost nothing: nothing was tested");
    assert!(expected.as_bytes().starts_with(&said.stdout[..100_000]));
    let message = said.status["message"].as_str().unwrap();
    let missing = expected.len() - said.stdout.len();
    assert!(message.contains(&format!("{missing} bytes of output")), "{message}");
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn input_ends_once_or_never() {
    let Some(node) = Node::start() else { return };
    let (_, once) = interactive(&node, "once", "cat; echo over", |config| config.stdin_once = true).await;
    let Client { mut to, mut from } =
        open(&node, AttachRequest { stdin: true, ..output(&once.container) }).await;
    to.input(b"hello\n").await;
    from.until(STDOUT, "hello\n").await;
    to.end_input().await;
    let said = from.finish().await;
    assert_eq!((said.text().as_str(), said.code()), ("hello\nover\n", 0));
    assert_eq!(node.cri.exited(&once.container).await.exit_code, 0);

    // The same by going away without a word.
    let (_, lost) = interactive(&node, "lost", "cat; echo over", |config| config.stdin_once = true).await;
    let Client { mut to, mut from } =
        open(&node, AttachRequest { stdin: true, ..output(&lost.container) }).await;
    to.input(b"hello\n").await;
    from.until(STDOUT, "hello\n").await;
    drop((to, from));
    assert_eq!(node.cri.exited(&lost.container).await.exit_code, 0);
    assert_eq!(logged(&lost, "stdout"), "hello\nover\n");

    let script = "read a; echo $a; read b; echo $b; exit 4";
    let (_, often) = interactive(&node, "often", script, |_| {}).await;
    for word in ["one", "two"] {
        let Client { mut to, mut from } =
            open(&node, AttachRequest { stdin: true, ..output(&often.container) }).await;
        to.input(format!("{word}\n").as_bytes()).await;
        // Only what is written from now on.
        assert_eq!(from.until(STDOUT, "\n").await, format!("{word}\n"));
    }
    assert_eq!(node.cri.exited(&often.container).await.exit_code, 4);
}

#[tokio::test]
async fn a_container_without_input_ignores_it() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("deaf", "while [ ! -e /tmp/go ]; do sleep 0.05; done; cat; echo end").await;
    let Client { mut to, mut from } =
        open(&node, AttachRequest { stdin: true, ..output(&running.container) }).await;
    to.input(b"nobody hears\n").await;
    node.cri.sh(&running.container, "touch /tmp/go").await;
    let said = from.finish().await;
    assert_eq!((said.text().as_str(), said.code()), ("end\n", 0));
}

#[tokio::test]
async fn a_terminal_can_be_joined_and_sized() {
    let Some(node) = Node::start() else { return };
    let script =
        "read a; stty size; until [ \"$(stty size)\" = '40 111' ]; do sleep 0.02; done; echo sized; cat";
    let (_, running) = interactive(&node, "terminal", script, |config| config.tty = true).await;
    let request = AttachRequest { stdin: true, tty: true, stderr: false, ..output(&running.container) };
    let Client { mut to, mut from } = open(&node, request.clone()).await;
    let mut other = open(&node, request).await;
    // Only what is written from then on is seen, so both must be there.
    to.resize(80, 24).await;
    other.to.resize(80, 24).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    to.input(b"go\n").await;
    from.until(STDOUT, "\r\n").await;
    to.resize(111, 40).await;
    from.until(STDOUT, "sized\r\n").await;
    other.from.until(STDOUT, "sized\r\n").await;
    // The end of a client is not the end of the terminal.
    to.end_input().await;
    drop((to, from));
    other.to.input(b"other\n").await;
    other.from.until(STDOUT, "other\r\nother\r\n").await;
    other.to.input(b"\x04").await;
    assert_eq!(other.from.finish().await.code(), 0);
    assert_eq!(node.cri.exited(&running.container).await.exit_code, 0);
}

#[tokio::test]
async fn streams_survive_the_daemon() {
    let Some(mut node) = Node::start() else { return };
    let before = node.baseline().await;
    let script = "i=0; while read line; do echo $i $line; i=$((i+1)); done; echo end of input";
    let (_, running) = interactive(&node, "survivor", script, |_| {}).await;
    let request = AttachRequest { stdin: true, ..output(&running.container) };
    let Client { mut to, mut from } = open(&node, request.clone()).await;
    to.input(b"first\n").await;
    from.until(STDOUT, "0 first\n").await;
    node.daemon.kill();
    assert!(from.finish().await.status.is_null());
    node.restart();
    let Client { mut to, mut from } = open(&node, request.clone()).await;
    to.input(b"second\n").await;
    assert_eq!(from.until(STDOUT, "\n").await, "1 second\n");
    node.daemon.kill();
    node.restart();
    let Client { mut to, mut from } = open(&node, request).await;
    to.input(b"third\n").await;
    assert_eq!(from.until(STDOUT, "\n").await, "2 third\n");
    assert_eq!(logged(&running, "stdout"), "0 first\n1 second\n2 third\n");
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn lost_clients_leave_nothing() {
    let Some(node) = Node::start() else { return };
    let script = "while :; do echo tick; sleep 0.01; done";
    let (_, running) = interactive(&node, "ticking", script, |_| {}).await;
    let request = AttachRequest { stdin: true, ..output(&running.container) };
    let descriptors = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let daemon = node.daemon.process().pid;
    let monitor = node.world.sh("pidof pinnace-monitor || pgrep -f '^pinnace-monitor'");
    let monitor = node.world.inside("/proc").join(monitor.trim()).join("fd");
    let held = || (descriptors(daemon), std::fs::read_dir(&monitor).unwrap().count());
    drop(open(&node, request.clone()).await);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = held();
    for _ in 0..20 {
        let mut client = open(&node, request.clone()).await;
        client.from.until(STDOUT, "tick").await;
    }
    let settled = poll(Duration::from_secs(5), || (held() <= before).then_some(()));
    assert!(settled.is_some(), "{before:?} before, {:?} now", held());
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("target", "sleep 0.2").await;
    let id = running.container.as_str();
    for (request, subject) in [
        (output(""), "container_id"),
        (AttachRequest { stdout: false, stderr: false, ..output(id) }, "stdin, stdout, stderr"),
        (AttachRequest { tty: true, ..output(id) }, "stderr"),
    ] {
        node.assert_fails(node.cri.attach_url(request).await, Code::InvalidArgument, subject);
    }
    let unknown = "d".repeat(64);
    node.assert_fails(node.cri.attach_url(output(&unknown)).await, Code::NotFound, &unknown);
    node.cri.exited(id).await;
    node.assert_fails(node.cri.attach_url(output(id)).await, Code::FailedPrecondition, id);
}
