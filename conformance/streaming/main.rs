//! The streaming server under Kubernetes' own client library: client-go's executors for SPDY and WebSocket, with and
//! without fallback, and its port-forward, plain and tunnelled. The runtime behind the server is a scripted one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../src/streaming/tests/wire/scripted.rs"]
mod scripted;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pinnace_conformance::go::Program;
use pinnace_conformance::skip;
use pinnace_streaming::{ExecRequest, Options, PortForwardRequest, Server};
use scripted::Scripted;
use serde_json::Value;

/// The client, built once; `None` where Go is missing or too old.
fn client() -> Option<&'static Path> {
    static CLIENT: OnceLock<Option<Program>> = OnceLock::new();
    CLIENT.get_or_init(|| Program::build("streaming")).as_ref().map(Program::path)
}

struct Ground {
    client: &'static Path,
    server: Server,
    runtime: Arc<Scripted>,
}

impl Ground {
    async fn new(client: &'static Path) -> Ground {
        let runtime = Arc::new(Scripted::default());
        let server = Server::bind(Options::default(), runtime.clone()).await.unwrap();
        Ground { client, server, runtime }
    }

    /// Runs the client; what it printed.
    async fn run(&self, arguments: &[&str]) -> Value {
        let mut command = tokio::process::Command::new(self.client);
        command.args(arguments).args(["-timeout", "20s"]).kill_on_drop(true);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a command whose streams the client's flags name.
    async fn exec(&self, transport: &str, command: &str, flags: &[&str]) -> Value {
        let stdin = flags.iter().any(|flag| ["-stdin", "-zeros", "-hold"].contains(flag));
        let request = ExecRequest {
            container_id: "container".into(),
            command: command.split(' ').map(str::to_owned).collect(),
            stdin,
            stdout: flags.contains(&"-stdout"),
            stderr: flags.contains(&"-stderr"),
            tty: flags.contains(&"-tty"),
        };
        let url = self.server.exec_url(request).unwrap();
        self.run(&[&["exec", "-url", &url, "-transport", transport], flags].concat()).await
    }

    async fn quiet(&self) {
        for _ in 0..500 {
            if self.runtime.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} processes or connections are left", self.runtime.running.load(Ordering::SeqCst));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_go_runs_commands() {
    let Some(client) = client() else {
        return skip("client_go_runs_commands", "Go 1.21 or newer is not installed");
    };
    let ground = Ground::new(client).await;
    // A v1 client leaves when the first of its streams ends: what it has seen by then is chance.
    let versions = "v4.channel.k8s.io v3.channel.k8s.io v2.channel.k8s.io";
    let mut transports = vec![("spdy", None), ("websocket", None), ("fallback", None)];
    transports.extend(versions.split(' ').map(|version| ("spdy", Some(version))));
    transports.push(("websocket", Some("v4.channel.k8s.io")));
    // A client that knows only what nobody speaks is refused, and falls back.
    transports.push(("fallback", Some("v9.channel.k8s.io")));
    for (transport, protocols) in transports {
        let offered: Vec<&str> = protocols.map_or(vec![], |protocols| vec!["-protocols", protocols]);
        let exec = |command: &'static str, flags: &[&'static str]| {
            let flags = [flags, &offered].concat();
            let ground = &ground;
            async move { ground.exec(transport, command, &flags).await }
        };
        let name = format!("{transport} {protocols:?}");

        // WebSocket before v5 has no way to say that input ends.
        if (transport, protocols) != ("websocket", Some("v4.channel.k8s.io")) {
            let seen = exec("cat", &["-stdin", "hello", "-stdout"]).await;
            assert_eq!(
                (&seen["stdout"]["text"], &seen["exit_code"]),
                (&"hello".into(), &0.into()),
                "{name}: {seen}"
            );
            let seen = exec("count", &["-zeros", "20000000", "-stdout"]).await;
            assert_eq!(seen["stdout"]["text"], "20000000", "{name}: {seen}");
        }
        let seen = exec("both", &["-stdout", "-stderr"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["stderr"]["text"]),
            (&"out".into(), &"err".into()),
            "{name}: {seen}"
        );
        let seen = exec("exit-first 20000000", &["-stdout"]).await;
        assert_eq!(seen["stdout"]["bytes"], 20_000_000, "{name}: {}", seen["error"]);

        let json = protocols.is_none_or(|version| version.starts_with("v4") || version.starts_with("v9"));
        let seen = exec("exit 42", &["-stdout"]).await;
        let failed = exec("fail", &["-stdout"]).await;
        let sized = exec("size 1", &["-hold", "-stdout", "-tty", "-size", "80x24,100x30"]).await;
        if json {
            assert_eq!(seen["exit_code"], 42, "{name}: {seen}");
            let text = failed["error"].as_str().unwrap();
            assert!(text.contains("no such program"), "{name}: {failed}");
        } else {
            assert!(seen["error"].as_str().unwrap().contains("exit status 42"), "{name}: {seen}");
            assert!(failed["error"].as_str().unwrap().contains("no such program"), "{name}: {failed}");
        }
        // Sizes are told from v3 on.
        if json || protocols == Some("v3.channel.k8s.io") {
            assert_eq!(sized["stdout"]["text"], "80x24\n100x30\n", "{name}: {sized}");
        }
    }
    ground.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_go_forwards_ports() {
    let Some(client) = client() else {
        return skip("client_go_forwards_ports", "Go 1.21 or newer is not installed");
    };
    let ground = Ground::new(client).await;
    for transport in ["spdy", "websocket", "fallback"] {
        let forward = |flags: &'static [&'static str]| {
            let request = PortForwardRequest { sandbox_id: "sandbox".into(), ports: vec![] };
            let url = ground.server.port_forward_url(request).unwrap();
            let ground = &ground;
            async move {
                ground.run(&[&["port-forward", "-url", &url, "-transport", transport], flags].concat()).await
            }
        };
        let seen = forward(&["-ports", "7,80", "-connections", "64", "-send", "message "]).await;
        let answers = seen["answers"].as_array().unwrap();
        assert_eq!(answers.len(), 128);
        for (index, answer) in answers.iter().enumerate() {
            let sent = format!("message {index}");
            let text = if answer["port"] == 7 { sent } else { format!("{} bytes", sent.len()) };
            assert_eq!(
                (&answer["text"], &answer["error"]),
                (&text.into(), &"".into()),
                "{transport}: {answer}"
            );
        }
        assert_eq!((&seen["ended"], &seen["errors"]), (&"".into(), &"".into()), "{transport}");
        // The application ends first.
        let seen = forward(&["-ports", "81", "-keep-open"]).await;
        assert_eq!(seen["answers"][0]["text"], "banner", "{transport}: {seen}");
        // Nobody listens there.
        let seen = forward(&["-ports", "1", "-send", "x"]).await;
        assert_eq!(seen["answers"][0]["text"], "", "{transport}: {seen}");
        assert!(seen["errors"].as_str().unwrap().contains("connection refused"), "{transport}: {seen}");
    }
    ground.quiet().await;
}
