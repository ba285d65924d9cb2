//! Exec: what `kubectl exec` does, over the streaming URL.

use std::time::{Duration, Instant};

use pinnace_conformance::cri::ContainerConfigParts as _;
use pinnace_conformance::node::{Node, Running};
use pinnace_conformance::process::poll;
use pinnace_conformance::streams::{self, Client, STDERR, STDOUT, Said};
use pinnace_cri_api::v1::*;
use serde_json::json;
use tonic::Code;

/// How many short commands `short_commands_leave_no_trace` runs; a longer run is one variable away.
const EXECS: &str = "PINNACE_TEST_EXECS";

/// How many MiB `a_large_stream_needs_no_memory` carries.
const STREAM_MIB: &str = "PINNACE_TEST_STREAM_MIB";

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

async fn target(node: &Node) -> Running {
    node.run_script("target", "trap 'exit 0' TERM; while :; do sleep 0.05; done").await
}

/// All streams but standard input, no terminal.
fn plain(id: &str, cmd: &[&str]) -> ExecRequest {
    let cmd = cmd.iter().map(ToString::to_string).collect();
    ExecRequest { container_id: id.into(), cmd, tty: false, stdin: false, stdout: true, stderr: true }
}

fn with_input(id: &str, cmd: &[&str]) -> ExecRequest {
    ExecRequest { stdin: true, ..plain(id, cmd) }
}

fn on_a_terminal(id: &str, cmd: &[&str]) -> ExecRequest {
    ExecRequest { tty: true, stderr: false, ..with_input(id, cmd) }
}

async fn open(node: &Node, request: ExecRequest) -> Client {
    let url = node.cri.exec_url(request).await.unwrap_or_else(|status| panic!("Exec: {status:?}"));
    streams::open(&node.world, &url).await
}

async fn run(node: &Node, request: ExecRequest) -> Said {
    open(node, request).await.finish().await
}

/// How many processes of the world have a word among their arguments.
fn alive(node: &Node, word: &str) -> usize {
    let text = node
        .world
        .sh(&format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c '^{word}$' || true"));
    text.trim().parse().unwrap()
}

/// Cgroups of sessions, as this machine sees them.
fn session_groups(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for cgroup in node.world.cgroups() {
        let mut dirs = vec![cgroup.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name().to_string_lossy().starts_with("exec-") {
                        found.push(entry.path().display().to_string());
                    }
                    dirs.push(entry.path());
                }
            }
        }
    }
    found
}

#[track_caller]
fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    assert!(poll(limit, || holds().then_some(())).is_some(), "not within {limit:?}: {what}");
}

#[tokio::test]
async fn output_comes_before_the_exit_code() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let said = run(&node, plain(&running.container, &["sh", "-c", "echo out; echo err >&2; exit 3"])).await;
    assert_eq!((&*said.stdout, &*said.stderr), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(
        said.status,
        json!({
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: exit status 3",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        })
    );
    let said = run(&node, plain(&running.container, &["true"])).await;
    assert_eq!(said.status["status"], "Success");
    assert_eq!(run(&node, plain(&running.container, &["sh", "-c", "kill -9 $$"])).await.code(), 137);
    // All of it, however late the reader is.
    let url = node.cri.exec_url(plain(&running.container, &["seq", "1", "200000"])).await.unwrap();
    let client = streams::open(&node.world, &url).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let said = client.finish().await;
    assert_eq!((said.text().lines().count(), said.code()), (200_000, 0));
    assert!(said.text().ends_with("\n200000\n"));
    // A grandchild that holds the pipes does not hold the answer.
    let start = Instant::now();
    let said = run(&node, plain(&running.container, &["sh", "-c", "sleep 20 & echo started"])).await;
    assert_eq!((said.text().as_str(), said.code()), ("started\n", 0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn input_arrives_whole_and_so_does_its_end() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let Client { mut to, mut from } = open(&node, with_input(&running.container, &["cat"])).await;
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        for chunk in sent.chunks(30_000) {
            to.input(chunk).await;
        }
        to.end_input().await;
        to
    });
    let said = from.finish().await;
    sending.await.unwrap();
    assert!(said.stdout == bytes, "{} of {} bytes came back", said.stdout.len(), bytes.len());
    assert_eq!(said.code(), 0);
    // Only one half is closed: there is output after the end of the input.
    let script = "cat; echo after; exit 7";
    let Client { mut to, mut from } =
        open(&node, with_input(&running.container, &["sh", "-c", script])).await;
    to.input(b"before\n").await;
    to.end_input().await;
    let said = from.finish().await;
    assert_eq!((said.text().as_str(), said.code()), ("before\nafter\n", 7));
    // A command that does not read is not waited for.
    let Client { mut to, mut from } = open(&node, with_input(&running.container, &["true"])).await;
    let _ = to.send(0, &[b'x'; 60_000]).await;
    assert_eq!(from.finish().await.code(), 0);
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let script = "echo TERM=$TERM; tty; ps -o pid,tty >/dev/null
        until [ \"$(stty size)\" = '33 99' ]; do sleep 0.02; done; echo sized
        read word; echo got $word; stty size; echo err >&2; exit 5";
    let Client { mut to, mut from } =
        open(&node, on_a_terminal(&running.container, &["sh", "-c", script])).await;
    to.resize(99, 33).await;
    let text = from.until(STDOUT, "sized\r\n").await;
    assert!(text.starts_with("TERM=xterm\r\n/dev/pts/"), "{text}");
    to.resize(132, 50).await;
    to.input(b"word\n").await;
    let said = from.finish().await;
    assert!(said.text().ends_with("word\r\ngot word\r\n50 132\r\nerr\r\n"), "{:?}", said.text());
    assert_eq!((said.code(), said.stderr.len()), (5, 0));
    // The end of the client's input is not the end of the terminal's.
    let Client { mut to, mut from } =
        open(&node, on_a_terminal(&running.container, &["sh", "-c", "sleep 0.3; echo still here"])).await;
    to.end_input().await;
    let said = from.finish().await;
    assert_eq!((said.text().as_str(), said.code()), ("still here\r\n", 0));
    // ^C reaches the foreground.
    let Client { mut to, mut from } =
        open(&node, on_a_terminal(&running.container, &["sh", "-c", "echo ready; sleep 4301"])).await;
    from.until(STDOUT, "ready").await;
    to.input(b"\x03").await;
    assert_eq!(from.finish().await.code(), 130);
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn a_session_is_in_the_containers_place() {
    let Some(node) = Node::start() else { return };
    let image = node.image("configured").await;
    let pod = node.run_pod("place", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["sleep", "4302"]);
    config.env("MINE", "yes");
    config.resources().oom_score_adj = 555;
    config.security().no_new_privs = true;
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let ask = "pwd; id; umask; echo $MINE $COLOUR $HOME; ulimit -n
        grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups)' /proc/self/status; cat /proc/self/oom_score_adj";
    let expected = node.cri.sh(&running.container, ask).await;
    let said = run(&node, plain(&running.container, &["sh", "-euc", ask])).await;
    assert_eq!(said.text(), expected);
    let said = run(&node, on_a_terminal(&running.container, &["sh", "-euc", ask])).await;
    assert_eq!(said.text().replace("\r\n", "\n"), expected);
    // Without a stream it is /dev/null, and nobody's else.
    let only_stderr = ExecRequest { stdout: false, ..plain(&running.container, &[]) };
    // Asked from a subshell: what the shell runs without a fork has its redirection on the shell itself.
    let cmd = ["sh", "-c", "(for n in 0 1; do readlink /proc/$$/fd/$n; done) >&2; echo nowhere"];
    let cmd = cmd.map(String::from).to_vec();
    let said = run(&node, ExecRequest { cmd, ..only_stderr }).await;
    assert_eq!(String::from_utf8_lossy(&said.stderr), "/dev/null\n/dev/null\n");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let id = running.container.as_str();
    let none = ExecRequest { stdout: false, stderr: false, ..plain(id, &["true"]) };
    let both = ExecRequest { tty: true, ..plain(id, &["true"]) };
    for (request, subject) in [
        (plain("", &["true"]), "container_id"),
        (none, "stdin, stdout, stderr"),
        (both, "stderr"),
        (plain(id, &[]), "cmd"),
    ] {
        node.assert_fails(node.cri.exec_url(request).await, Code::InvalidArgument, subject);
    }
    let unknown = "c".repeat(64);
    node.assert_fails(node.cri.exec_url(plain(&unknown, &["true"])).await, Code::NotFound, &unknown);
    // What cannot be executed is told on the URL, with its reason.
    let said = run(&node, plain(id, &["/no/such/command"])).await;
    assert_eq!(said.status["status"], "Failure");
    let message = said.status["message"].as_str().unwrap();
    assert!(message.contains("/no/such/command") && message.contains("no such file"), "{message}");
    // Checked again when the client comes; once used, a URL is worth nothing.
    let url = node.cri.exec_url(plain(id, &["true"])).await.unwrap();
    node.cri.stop(id, 5).await.unwrap();
    let said = streams::open(&node.world, &url).await.finish().await;
    assert!(said.status["message"].as_str().unwrap().contains("exited"), "{said:?}");
    assert!(streams::try_open(&node.world, &url, streams::V5).await.is_err());
    node.assert_fails(node.cri.exec_url(plain(id, &["true"])).await, Code::FailedPrecondition, id);
}

#[tokio::test]
async fn a_lost_client_hangs_its_session_up() {
    let changed = |config| format!("{config}[streaming]\nhang_up_grace = \"1s\"\n");
    let Some(node) = Node::start_changed(changed) else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let id = running.container.as_str();
    // SIGHUP does for most, with a terminal and without, idle or in the middle of output.
    for request in [
        with_input(id, &["sleep", "4303"]),
        on_a_terminal(id, &["sleep", "4303"]),
        plain(id, &["sh", "-c", "sleep 4303; true"]),
        plain(id, &["yes", "4303"]),
        on_a_terminal(id, &["yes", "4303"]),
    ] {
        let client = open(&node, request.clone()).await;
        eventually("the command runs", Duration::from_secs(10), || alive(&node, "4303") > 0);
        drop(client);
        eventually(&format!("{request:?} ends"), Duration::from_secs(6), || alive(&node, "4303") == 0);
    }
    // Who ignores it is killed after the grace, with its children.
    for tty in [false, true] {
        let cmd = ["sh", "-c", "trap '' HUP; sleep 4304 & sleep 4304; sleep 4304"];
        let request = if tty { on_a_terminal(id, &cmd) } else { plain(id, &cmd) };
        let client = open(&node, request).await;
        eventually("the command runs", Duration::from_secs(10), || alive(&node, "4304") >= 2);
        drop(client);
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(600));
        assert!(alive(&node, "4304") > 0, "killed before its time");
        eventually("it is killed", Duration::from_secs(8), || alive(&node, "4304") == 0);
        assert!(start.elapsed() > Duration::from_millis(900));
    }
    // What a command that ended by itself has left behind stays, and its group goes with it.
    let said = run(&node, plain(id, &["sh", "-c", "setsid sleep 2.5 >/dev/null 2>&1 & exit 0"])).await;
    assert_eq!(said.code(), 0);
    assert_eq!(alive(&node, "2.5"), 1);
    eventually("it ends", Duration::from_secs(8), || alive(&node, "2.5") == 0);
    node.cri.sh(id, "true").await;
    eventually("no group is left", Duration::from_secs(5), || session_groups(&node).is_empty());
    assert_eq!(node.cri.status(id).await.unwrap().state(), ContainerState::ContainerRunning);
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn sessions_end_with_the_daemon_and_containers_do_not() {
    let changed = |config| format!("{config}[streaming]\nhang_up_grace = \"1s\"\n");
    let Some(mut node) = Node::start_changed(changed) else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let id = running.container.clone();
    let plain = open(&node, plain(&id, &["sleep", "4305"])).await;
    let terminal = open(&node, on_a_terminal(&id, &["sleep", "4305"])).await;
    let script = "trap '' HUP; while :; do sleep 4306; done";
    let stubborn = open(&node, with_input(&id, &["sh", "-c", script])).await;
    eventually("all run", Duration::from_secs(10), || alive(&node, "4305") == 2 && alive(&node, "4306") == 1);
    node.daemon.kill();
    eventually("they are hung up", Duration::from_secs(5), || alive(&node, "4305") == 0);
    assert_eq!(alive(&node, "4306"), 1);
    for client in [plain, terminal, stubborn] {
        assert!(client.finish().await.status.is_null(), "nobody was there to tell a status");
    }
    node.restart();
    eventually("the stubborn one is killed", Duration::from_secs(8), || alive(&node, "4306") == 0);
    eventually("no group is left", Duration::from_secs(5), || session_groups(&node).is_empty());
    let said = run(&node, self::plain(&id, &["echo", "again"])).await;
    assert_eq!(said.text(), "again\n");
    // An orderly stop ends them as well, soon, and the program with success.
    let client = open(&node, on_a_terminal(&id, &["sleep", "4307"])).await;
    eventually("it runs", Duration::from_secs(10), || alive(&node, "4307") == 1);
    let start = Instant::now();
    assert!(node.daemon.terminate().success());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    client.finish().await;
    eventually("it ends", Duration::from_secs(5), || alive(&node, "4307") == 0);
    node.restart();
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn the_end_of_the_container_ends_its_sessions() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let id = running.container.as_str();
    let plain = open(&node, plain(id, &["sleep", "4308"])).await;
    let terminal = open(&node, on_a_terminal(id, &["sleep", "4308"])).await;
    eventually("both run", Duration::from_secs(10), || alive(&node, "4308") == 2);
    node.cri.stop(id, 0).await.unwrap();
    for client in [plain, terminal] {
        assert_eq!(client.finish().await.code(), 137);
    }
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

/// Resident memory of the daemon, its descriptors and its threads.
fn held(node: &Node) -> (usize, usize, usize) {
    let proc = format!("/proc/{}", node.daemon.process().pid);
    let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    };
    let descriptors = std::fs::read_dir(format!("{proc}/fd")).unwrap().count();
    (field("VmRSS:"), descriptors, field("Threads:"))
}

#[tokio::test]
async fn short_commands_leave_no_trace() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = target(&node).await;
    let total = number(EXECS, 200);
    let some = |count: usize| {
        let (node, id) = (&node, running.container.as_str());
        async move {
            for index in 0..count {
                let code = i32::try_from(index % 3).unwrap();
                let script = format!("echo {index}; exit {code}");
                let request = match index % 2 {
                    0 => plain(id, &["sh", "-c", &script]),
                    _ => on_a_terminal(id, &["sh", "-c", &script]),
                };
                let said = run(node, request).await;
                assert_eq!((said.text().trim_end(), said.code()), (&*index.to_string(), code));
            }
        }
    };
    some(40).await;
    let (memory, descriptors, _) = held(&node);
    some(total).await;
    eventually("descriptors are what they were", Duration::from_secs(5), || held(&node).1 <= descriptors);
    let (now, _, threads) = held(&node);
    assert!(now < memory + 12 * 1024, "{memory} KiB before, {now} KiB after {total} commands");
    assert!(threads < 64, "{threads} threads");
    eventually("no group is left", Duration::from_secs(5), || session_groups(&node).is_empty());
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn a_large_stream_needs_no_memory() {
    let Some(node) = Node::start() else { return };
    let running = target(&node).await;
    let total = number(STREAM_MIB, 96) << 20;
    let count = (total >> 20).to_string();
    let script = format!("dd if=/dev/zero bs=1M count={count} 2>/dev/null");
    run(&node, plain(&running.container, &["true"])).await;
    let (before, ..) = held(&node);
    let mut client = open(&node, plain(&running.container, &["sh", "-c", &script])).await;
    let (mut received, mut most) = (0, 0);
    let mut next_look = 0;
    while let Some((channel, bytes)) = client.from.next().await {
        if channel == STDOUT {
            received += bytes.len();
        }
        assert_ne!(channel, STDERR);
        if received >= next_look {
            most = most.max(held(&node).0);
            next_look = received + (8 << 20);
        }
    }
    assert_eq!(received, total);
    assert!(most < before + 12 * 1024, "{before} KiB before, {most} KiB at most");
    // A reader that stops makes the command wait, not the daemon grow.
    let client = open(&node, plain(&running.container, &["yes", "0123456789"])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (now, ..) = held(&node);
    assert!(now < before + 16 * 1024, "{before} KiB before, {now} KiB with a reader that does not read");
    drop(client);
}
