//! Exec, attach and port-forward through the kubelet's own API, by client-go over SPDY and WebSocket.

use std::path::Path;
use std::sync::OnceLock;

use pinnace_conformance::go::Program;
use pinnace_conformance::serve::serve;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::ground::{API, Ground, busybox, idle};

const TRANSPORTS: [&str; 3] = ["spdy", "websocket", "fallback"];

/// The client, built once.
fn client() -> &'static Path {
    static CLIENT: OnceLock<Program> = OnceLock::new();
    CLIENT.get_or_init(|| Program::build("streaming").expect("Go 1.21 or newer, for client-go")).path()
}

/// Runs the client in the world; what it printed.
async fn run(ground: &Ground, arguments: &[&str]) -> Value {
    let client = tokio::task::spawn_blocking(client).await.unwrap();
    let mut command = tokio::process::Command::from(ground.world.command(client));
    command.args(arguments).args(["-timeout", "60s"]).kill_on_drop(true);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The URL of a session; `flags` are the client's, and say which streams there are.
fn session(what: &str, pod: &str, command: &[&str], flags: &[&str]) -> String {
    let mut url = url::Url::parse(&format!("{API}/{what}/default/{pod}-node/main")).unwrap();
    let mut query = url.query_pairs_mut();
    query.extend_pairs(command.iter().map(|word| ("command", word)));
    let has = |flag: &str| flags.contains(&flag);
    let input = has("-stdin") || has("-zeros") || has("-hold");
    for (name, there) in
        [("input", input), ("output", has("-stdout")), ("error", has("-stderr")), ("tty", has("-tty"))]
    {
        if there {
            query.append_pair(name, "1");
        }
    }
    drop(query);
    url.into()
}

pub async fn exec_through_the_api(ground: &Ground) {
    ground.deploy("exec", json!({ "containers": [idle("main")] })).await;
    ground.ready("exec").await;
    for transport in TRANSPORTS {
        let exec = async |script: &str, flags: &[&str]| {
            let url = session("exec", "exec", &["sh", "-c", script], flags);
            run(ground, &[&["exec", "-url", &url, "-transport", transport], flags].concat()).await
        };
        let seen = exec("echo out; echo err >&2; exit 42", &["-stdout", "-stderr"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["stderr"]["text"], &seen["exit_code"]),
            (&"out\n".into(), &"err\n".into(), &42.into()),
            "{transport}: {seen}"
        );
        let seen = exec("cat; echo over", &["-stdin", "hello ", "-stdout"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["exit_code"]),
            (&"hello over\n".into(), &0.into()),
            "{transport}: {seen}"
        );
        let seen = exec("wc -c", &["-zeros", "5000000", "-stdout"]).await;
        assert_eq!(seen["stdout"]["text"], "5000000\n", "{transport}: {seen}");
        let seen = exec("head -c 5000000 /dev/zero", &["-stdout"]).await;
        assert_eq!(seen["stdout"]["bytes"], 5_000_000, "{transport}: {}", seen["error"]);
        let script =
            "until [ \"$(stty size)\" = '24 80' ]; do sleep 0.02; done; tty >/dev/null; stty size; exit 3";
        let seen = exec(script, &["-hold", "-stdout", "-tty", "-size", "80x24"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["exit_code"]),
            (&"24 80\r\n".into(), &3.into()),
            "{transport}: {seen}"
        );
    }
    ground.remove("exec").await;
}

pub async fn run_through_the_api(ground: &Ground) {
    ground.deploy("run", json!({ "containers": [idle("main")] })).await;
    ground.ready("run").await;
    let run = |command: &str| {
        ground.curl(
            &["--fail-with-body", "--request", "POST"],
            &format!("/run/default/run-node/main?cmd={command}"),
        )
    };
    assert_eq!(run("echo%20two%20words").unwrap(), "two words\n");
    assert_eq!(run("cat%20/proc/1/comm").unwrap(), "sh\n");
    let (_, said) = run("ls%20/nowhere").unwrap_err();
    assert!(said.contains("/nowhere"), "{said}");
    let (_, said) = run("no-such-program").unwrap_err();
    assert!(said.contains("no-such-program"), "{said}");
    ground.remove("run").await;
}

pub async fn attach_through_the_api(ground: &Ground) {
    let mut container = busybox("main", "while read line; do echo \"got $line\"; done; sleep 100");
    container["stdin"] = true.into();
    ground.deploy("attach", json!({ "containers": [container] })).await;
    ground.ready("attach").await;
    for transport in TRANSPORTS {
        let flags = ["-stdin", "a line\n", "-stdout", "-hold"];
        let url = session("attach", "attach", &[], &flags);
        let words = ["exec", "-url", &url, "-transport", transport];
        let mut arguments = [&words, &flags[..]].concat();
        // Leaves by itself: the container goes on reading.
        arguments.extend(["-timeout", "3s"]);
        let client = tokio::task::spawn_blocking(client).await.unwrap();
        let mut command = tokio::process::Command::from(ground.world.command(client));
        let output = command.args(&arguments).kill_on_drop(true).output().await.unwrap();
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert_eq!(seen["stdout"]["text"], "got a line\n", "{transport}: {seen} {output:?}");
    }
    assert_eq!(ground.now("attach").restarts("main"), 0);
    let log = ground.output("attach", "main");
    assert_eq!(log, "got a line\n".repeat(TRANSPORTS.len()));
    ground.remove("attach").await;
}

pub async fn port_forward_through_the_api(ground: &Ground) {
    ground.deploy("forward", json!({ "containers": [idle("main")] })).await;
    let seen = ground.ready("forward").await;
    let listener = ground.node.read().await.listen_in(&seen.id("main"), 8007).await;
    let serving = serve(listener, |mut stream| async move {
        let mut told = String::new();
        stream.read_to_string(&mut told).await?;
        stream.write_all(format!("{}: {told}", told.len()).as_bytes()).await
    });
    let url = format!("{API}/portForward/default/forward-node");
    for transport in TRANSPORTS {
        let words = ["port-forward", "-url", &url, "-transport", transport];
        let more = ["-ports", "8007", "-connections", "10", "-send", "message for number "];
        let seen = run(ground, &[&words[..], &more].concat()).await;
        let answers = seen["answers"].as_array().unwrap();
        assert_eq!(answers.len(), 10);
        for (index, answer) in answers.iter().enumerate() {
            let sent = format!("message for number {index}");
            let expected = format!("{}: {sent}", sent.len());
            assert_eq!(
                (&answer["text"], &answer["error"]),
                (&expected.into(), &"".into()),
                "{transport}: {seen}"
            );
        }
        assert_eq!((&seen["ended"], &seen["errors"]), (&"".into(), &"".into()), "{transport}");
    }
    drop(serving);
    ground.remove("forward").await;
}
