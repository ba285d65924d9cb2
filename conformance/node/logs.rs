//! The log files of containers, which the kubelet reads and rotates.

use std::fs;
use std::time::Duration;

use pinnace_conformance::log::{self, Entry};
use pinnace_conformance::node::{Node, Running};
use pinnace_cri_api::v1::*;
use tonic::Code;

/// Longest text of one entry.
const ENTRY_BYTES: usize = 16 * 1024;

async fn ended(node: &Node, name: &str, script: &str) -> (Running, Vec<Entry>) {
    let running = node.run_script(name, script).await;
    node.cri.exited(&running.container).await;
    let entries = log::read(&running.log).unwrap();
    (running, entries)
}

#[tokio::test]
async fn both_streams_are_written_in_order_with_times() {
    let Some(node) = Node::start() else { return };
    let script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done; printf '\\n  spaced  \\n'";
    let (running, entries) = ended(&node, "streams", script).await;
    assert_eq!(log::stream(&entries, "stdout"), b"out 1\nout 2\nout 3\n\n  spaced  \n");
    assert_eq!(log::stream(&entries, "stderr"), b"err 1\nerr 2\nerr 3\n");
    assert!(entries.iter().all(|entry| !entry.partial), "{entries:?}");
    assert!(entries.iter().all(|entry| entry.time[20..].trim_end_matches('Z').len() == 9), "nanoseconds");
    assert!(entries.windows(2).all(|pair| pair[0].time <= pair[1].time), "{entries:?}");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&running.log).unwrap());
    assert_eq!(mode & 0o7777, 0o640);
}

#[tokio::test]
async fn long_lines_are_split_and_nothing_is_lost() {
    let Some(node) = Node::start() else { return };
    let script = "dd if=/dev/zero bs=1000 count=100 2>/dev/null | tr '\\0' x; echo; echo short
                  dd if=/dev/zero bs=16384 count=1 2>/dev/null | tr '\\0' y; echo";
    let (_, entries) = ended(&node, "long", script).await;
    let expected = ["x".repeat(100_000), "short".into(), "y".repeat(ENTRY_BYTES)].join("\n") + "\n";
    assert_eq!(log::stream(&entries, "stdout").len(), expected.len());
    assert_eq!(log::stream(&entries, "stdout"), expected.as_bytes());
    assert!(entries.iter().all(|entry| entry.text.len() <= ENTRY_BYTES));
    let long: Vec<_> = entries.iter().take_while(|entry| entry.partial).collect();
    assert!(long.len() >= 6, "100,000 bytes in {} entries", long.len() + 1);
}

#[tokio::test]
async fn last_line_without_newline_is_partial() {
    let Some(node) = Node::start() else { return };
    let (_, entries) = ended(&node, "partial", "echo whole; printf 'no end'; printf 'none here' >&2").await;
    assert_eq!(log::stream(&entries, "stdout"), b"whole\nno end");
    assert_eq!(log::stream(&entries, "stderr"), b"none here");
    assert_eq!(entries.iter().filter(|entry| entry.partial).count(), 2);
}

#[tokio::test]
async fn bytes_are_kept_as_they_are() {
    let Some(node) = Node::start() else { return };
    let script = "printf '\\000\\377\\033[1m\\r\\t\\303\\050\\n'";
    let (_, entries) = ended(&node, "bytes", script).await;
    assert_eq!(log::stream(&entries, "stdout"), b"\0\xff\x1b[1m\r\t\xc3\x28\n");
}

#[tokio::test]
async fn everything_is_there_when_the_exit_is() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("flush", |_| {}).await;
    for round in 0..10 {
        let config = node.container(&pod.config, &format!("c{round}"), &image, &["seq", "20000"]);
        let ended = node.run_to_end(&pod, config, |_| {}).await;
        let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
        assert!(
            ended.stdout == expected,
            "round {round}: {} of {} bytes",
            ended.stdout.len(),
            expected.len()
        );
    }
}

async fn reopen(node: &Node, id: &str) -> Result<(), tonic::Status> {
    let request = ReopenContainerLogRequest { container_id: id.into() };
    node.cri.runtime().reopen_container_log(request).await.map(drop)
}

#[tokio::test]
async fn rotation_under_a_heavy_writer_loses_and_splits_nothing() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("rotate", "exec seq 1 2000000000").await;
    let mut parts = Vec::new();
    for number in 0..20 {
        let part = running.log.with_extension(format!("log.{number}"));
        fs::rename(&running.log, &part).unwrap();
        reopen(&node, &running.container).await.unwrap();
        assert!(running.log.exists(), "the new file must be there when the call returns");
        let length = fs::metadata(&part).unwrap().len();
        parts.push((part, length));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.cri.stop(&running.container, 0).await.unwrap();
    for (part, length) in &parts {
        assert_eq!(fs::metadata(part).unwrap().len(), *length, "written to after the call had returned");
    }
    let files = parts.iter().map(|(part, _)| part).chain([&running.log]);
    let entries: Vec<_> = files.flat_map(|file| log::read(file).unwrap()).collect();
    let text = String::from_utf8(log::stream(&entries, "stdout")).unwrap();
    // The last one may have been cut by the kill.
    let (whole, _) = text.rsplit_once('\n').unwrap();
    let mut next = 1;
    for line in whole.lines() {
        assert_eq!(line.parse(), Ok(next), "a line is lost or split");
        next += 1;
    }
    assert!(next > 1000, "too few lines to have met a rotation: {next}");
}

#[tokio::test]
async fn reopen_needs_a_running_container() {
    let Some(node) = Node::start() else { return };
    let (running, _) = ended(&node, "over", "echo over").await;
    fs::rename(&running.log, running.log.with_extension("old")).unwrap();
    let answer = reopen(&node, &running.container).await;
    node.assert_fails(answer, Code::FailedPrecondition, &running.container);
    assert!(!running.log.exists(), "a new log of a container that has ended");
    node.assert_fails(reopen(&node, &"d".repeat(64)).await, Code::NotFound, &"d".repeat(64));
}

#[tokio::test]
async fn without_a_path_nothing_is_logged() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("quiet", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["seq", "100000"]);
    config.log_path.clear();
    let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    node.cri.start(&id).await.unwrap();
    assert_eq!(node.cri.exited(&id).await.exit_code, 0, "output that nobody reads must not block");
    assert_eq!(node.cri.status(&id).await.unwrap().log_path, "");
}

#[tokio::test]
async fn log_path_cannot_leave_its_directory() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("escape", |_| {}).await;
    let outside = node.world.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    for path in ["../../outside/log", "/etc/log", "main/../../../outside/log"] {
        let mut config = node.container(&pod.config, "main", &image, &["echo", "x"]);
        config.log_path = path.into();
        node.assert_fails(
            node.cri.create(&pod.id, &pod.config, &config).await,
            Code::InvalidArgument,
            "log_path",
        );
    }
    // By a symbolic link that somebody put there.
    let logs = std::path::Path::new(&pod.config.log_directory);
    std::os::unix::fs::symlink(&outside, logs.join("linked")).unwrap();
    let mut config = node.container(&pod.config, "main", &image, &["echo", "x"]);
    config.log_path = "linked/0.log".into();
    let answer = node.run_in(&pod.id, &pod.config, &config).await;
    assert!(answer.is_err(), "a log was opened through a symbolic link");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn log_is_no_longer_than_configured() {
    let change = |config: String| config + "[container]\nlog_size_limit = \"64KiB\"\n";
    let Some(node) = Node::start_changed(change) else { return };
    let (running, entries) = ended(&node, "limit", "seq 1 20000").await;
    let length = fs::metadata(&running.log).unwrap().len();
    assert!((1..=64 << 10).contains(&length), "{length}");
    let text = String::from_utf8(log::stream(&entries, "stdout")).unwrap();
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&20_000));
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "what is there is whole and in order");
    let directory: Vec<_> = fs::read_dir(running.log.parent().unwrap()).unwrap().collect();
    assert_eq!(directory.len(), 1, "{directory:?}");
}
