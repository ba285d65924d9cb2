//! Kubernetes' own clients against the whole program: client-go's executors and port-forward, kubectl through a small
//! API server, and crictl.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use pinnace_conformance::api_server::{ApiServer, Served};
use pinnace_conformance::go::Program;
use pinnace_conformance::node::{Node, Running};
use pinnace_conformance::serve::{Serving, serve};
use pinnace_conformance::skip;
use pinnace_conformance::terminal::Interactive;
use pinnace_cri_api::v1::ExecRequest;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Names the crictl to run; without it the test of crictl is skipped.
const CRICTL: &str = "CRICTL";

/// The port of the application behind PortForward.
const PORT: u16 = 8007;

/// Connections to it at once over one session.
const CONNECTIONS: usize = 40;

/// An application that answers only when its client has nothing more to say: with what it was told, and its length.
async fn listener(node: &Node, running: &Running) -> Serving {
    serve(node.listen_in(&running.container, PORT).await, |mut stream| async move {
        let mut told = String::new();
        stream.read_to_string(&mut told).await?;
        stream.write_all(format!("{}: {told}", told.len()).as_bytes()).await
    })
}

async fn sleeper(node: &Node) -> Running {
    node.run_script("target", "trap 'exit 0' TERM; while :; do sleep 0.05; done").await
}

/// Runs the Go client in the world; what it printed.
async fn client_go(node: &Node, client: &Path, arguments: &[&str]) -> Value {
    let mut command = tokio::process::Command::from(node.world.command(client));
    command.args(arguments).args(["-timeout", "30s"]).kill_on_drop(true);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn client_go_against_the_program() {
    static CLIENT: OnceLock<Option<Program>> = OnceLock::new();
    let Some(client) = CLIENT.get_or_init(|| Program::build("streaming")).as_ref().map(Program::path) else {
        return skip("client_go_against_the_program", "Go 1.21 or newer is not installed");
    };
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = sleeper(&node).await;
    let exec = async |transport: &str, script: &str, flags: &[&str]| {
        let has = |flag: &str| flags.contains(&flag);
        let request = ExecRequest {
            container_id: running.container.clone(),
            cmd: ["sh", "-c", script].map(String::from).to_vec(),
            tty: has("-tty"),
            stdin: has("-stdin") || has("-zeros") || has("-hold"),
            stdout: has("-stdout"),
            stderr: has("-stderr"),
        };
        let url = node.cri.exec_url(request).await.unwrap();
        client_go(&node, client, &[&["exec", "-url", &url, "-transport", transport], flags].concat()).await
    };
    let echo = listener(&node, &running).await;
    for transport in ["spdy", "websocket", "fallback"] {
        let seen = exec(transport, "echo out; echo err >&2; exit 42", &["-stdout", "-stderr"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["stderr"]["text"], &seen["exit_code"]),
            (&"out\n".into(), &"err\n".into(), &42.into()),
            "{transport}: {seen}"
        );
        let seen = exec(transport, "cat; echo over", &["-stdin", "hello ", "-stdout"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["exit_code"]),
            (&"hello over\n".into(), &0.into()),
            "{transport}: {seen}"
        );
        let seen = exec(transport, "wc -c", &["-zeros", "20000000", "-stdout"]).await;
        assert_eq!(seen["stdout"]["text"], "20000000\n", "{transport}: {seen}");
        let seen = exec(transport, "head -c 20000000 /dev/zero", &["-stdout"]).await;
        assert_eq!(
            (&seen["stdout"]["bytes"], &seen["exit_code"]),
            (&20_000_000.into(), &0.into()),
            "{transport}: {}",
            seen["error"]
        );
        let script = "for size in '24 80' '30 100'; do \
                      until [ \"$(stty size)\" = \"$size\" ]; do sleep 0.02; done; echo $size; done; exit 3";
        let seen = exec(transport, script, &["-hold", "-stdout", "-tty", "-size", "80x24,100x30"]).await;
        assert_eq!(
            (&seen["stdout"]["text"], &seen["exit_code"]),
            (&"24 80\r\n30 100\r\n".into(), &3.into()),
            "{transport}: {seen}"
        );

        let forward = async |flags: &[&str]| {
            let url = node.cri.port_forward_url(&running.pod, &[]).await.unwrap();
            let words = ["port-forward", "-url", &url, "-transport", transport];
            client_go(&node, client, &[&words, flags].concat()).await
        };
        let (port, connections) = (PORT.to_string(), CONNECTIONS.to_string());
        let seen =
            forward(&["-ports", &port, "-connections", &connections, "-send", "message for number "]).await;
        let answers = seen["answers"].as_array().unwrap();
        assert_eq!(answers.len(), CONNECTIONS);
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
        let seen = forward(&["-ports", "9", "-send", "x"]).await;
        assert!(seen["errors"].as_str().unwrap().contains("refused"), "{transport}: {seen}");
    }
    drop(echo);
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}

/// A program that speaks for a user, over one of its two transports.
struct Tool<'a> {
    node: &'a Node,
    program: PathBuf,
    /// What comes before the verb.
    general: Vec<String>,
    /// What comes right behind the verb.
    transport: Vec<&'static str>,
    environment: Vec<(&'static str, &'static str)>,
    /// What pod and container are called; a container's command follows `separator`.
    pod: String,
    container: String,
    separator: &'static [&'static str],
}

impl Tool<'_> {
    fn words(&self, verb: &str, flags: &[&str], rest: &[&str]) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        [self.general.clone(), own(&[verb]), own(&self.transport), own(flags), own(rest)].concat()
    }

    fn prepare(&self, mut command: Command, words: Vec<String>) -> Command {
        command.args(words).env("HOME", self.node.world.dir()).envs(self.environment.iter().copied());
        command
    }

    fn on_pipes(&self, verb: &str, flags: &[&str], rest: &[&str]) -> Interactive {
        let command = self.node.world.command(&self.program);
        Interactive::on_pipes(self.prepare(command, self.words(verb, flags, rest)))
    }

    fn on_a_terminal(&self, verb: &str, flags: &[&str], rest: &[&str]) -> Interactive {
        let mut command = self.node.world.command("setsid");
        command.args(["--ctty", "--wait"]).arg(&self.program).env("TERM", "xterm");
        Interactive::on_a_terminal(self.prepare(command, self.words(verb, flags, rest)), 80, 24)
    }

    fn script(&self, text: &'static str) -> Vec<&str> {
        [&[self.container.as_str()], self.separator, &["sh", "-c", text]].concat()
    }

    /// The status with which the tool ends when a command has ended with 7.
    async fn exec(&self) -> Option<i32> {
        let (mut large, sized) = (
            self.on_pipes("exec", &["-i"], &self.script("cat; echo over")),
            "for size in '24 80' '33 111'; do until [ \"$(stty size)\" = \"$size\" ]; do sleep 0.02; done; \
             echo is $size; done; read line; echo got $line",
        );
        let mut failing = tokio::process::Command::from(self.prepare(
            self.node.world.command(&self.program),
            self.words("exec", &[], &self.script("echo out; echo err >&2; exit 7")),
        ));
        let failed = failing.stdin(Stdio::null()).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(String::from_utf8_lossy(&failed.stdout), "out\n", "{failing:?}: {stderr}");
        assert!(stderr.contains("err\n"), "{failing:?}: {stderr}");

        let text = "0123456789abcde\n".repeat(4096);
        large.input(text.as_bytes()).await;
        large.end_input();
        let (said, status) = large.finish().await;
        assert!(said == text + "over\n" && status.success(), "{status}, {} bytes", said.len());

        let mut terminal = self.on_a_terminal("exec", &["-i", "-t"], &self.script(sized));
        terminal.until("is 24 80").await;
        terminal.resize(111, 33);
        terminal.until("is 33 111").await;
        terminal.input(b"word\r").await;
        let (said, status) = terminal.finish().await;
        assert!(said.contains("got word\r\n") && status.success(), "{status}: {said}");
        failed.status.code()
    }

    /// Attach to a container that copies its input.
    async fn attach_to_pipes(&self) {
        let mut attached = self.on_pipes("attach", &["-i"], &[&self.container]);
        // What is typed before the streams are there is read once they are.
        attached.input(b"hello\n").await;
        attached.until("hello\n").await;
        attached.input(b"again\n").await;
        attached.until("again\n").await;
        attached.end_input();
        let (said, status) = attached.finish().await;
        assert!(said.ends_with("hello\nagain\nover\n") && status.success(), "{status}: {said}");
    }

    /// Attach to a container that waits on its terminal for a size and a line.
    async fn attach_to_a_terminal(&self) {
        let mut attached = self.on_a_terminal("attach", &["-i", "-t"], &[&self.container]);
        attached.input(b"first\r").await;
        attached.until("got first\r\n").await;
        attached.resize(111, 33);
        attached.until("is 33 111\r\n").await;
        attached.input(b"last\r").await;
        let (said, status) = attached.finish().await;
        assert!(said.contains("got last\r\n") && status.success(), "{status}: {said}");
    }

    async fn port_forward(&self) {
        let mut forwarding = self.on_pipes("port-forward", &[], &[&self.pod, &format!(":{PORT}")]);
        let said = forwarding.until(&format!("-> {PORT}\n")).await;
        let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap();
        for text in ["hello", "hello again"] {
            let stream = self.node.world.connect(address.parse().unwrap()).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(stream).unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            let reading = tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut answer));
            reading.await.expect("the application answers").unwrap();
            assert_eq!(answer, format!("{}: {text}", text.len()), "{:?}", self.transport);
        }
        // The world has its own process ids: nobody else's program is meant.
        self.node.world.sh("pkill -INT '^(kubectl|crictl)'");
        forwarding.finish().await;
    }
}

/// The minor version of a kubectl 1.x.
fn minor_version(kubectl: &Path) -> u32 {
    let mut command = Command::new(kubectl);
    let output = command.args(["version", "--client", "--output", "json"]).output().unwrap();
    let version: Value = serde_json::from_slice(&output.stdout).unwrap();
    let minor = version["clientVersion"]["minor"].as_str().unwrap();
    // Those who build it themselves put a plus sign behind it.
    minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// A container with a standard input that attach is tried on.
async fn attachable(node: &Node, name: &str, tty: bool) -> Running {
    let on_a_terminal = "read line; echo got $line; until [ \"$(stty size)\" = '33 111' ]; do sleep 0.02; done; \
                         echo is $(stty size); read line; echo got $line";
    let script = if tty { on_a_terminal } else { "cat; echo over" };
    let image = node.image("busybox").await;
    let pod = node.pod(name);
    let mut config = node.container(&pod, "main", &image, &["sh", "-c", script]);
    (config.stdin, config.stdin_once, config.tty) = (true, true, tty);
    node.run(&pod, &config).await.unwrap()
}

#[tokio::test]
async fn kubectl_against_the_program() {
    let found = Command::new("sh").args(["-c", "command -v kubectl"]).output().unwrap();
    if !found.status.success() {
        return skip("kubectl_against_the_program", "kubectl is not installed");
    }
    let kubectl = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    // kubectl chooses its transport by these; both transports are there from 1.31 on.
    let transports = [("false", "spdy/3.1"), ("true", "websocket")];
    let known = if minor_version(&kubectl) < 31 { 1 } else { 2 };
    for &(websockets, upgrade) in &transports[..known] {
        let variables = ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"];
        let serve = |running: &Running, name: &str, tty: bool| {
            let pod = Served {
                name: name.into(),
                sandbox: running.pod.clone(),
                container: running.container.clone(),
                tty,
            };
            ApiServer::start(&node, pod)
        };
        let tool = |server: &ApiServer, name: &str| Tool {
            node: &node,
            program: kubectl.clone(),
            general: vec!["--server".into(), server.url.clone()],
            transport: Vec::new(),
            environment: variables.map(|variable| (variable, websockets)).to_vec(),
            pod: format!("pod/{name}"),
            container: name.into(),
            separator: &["--"],
        };
        let running = sleeper(&node).await;
        let server = serve(&running, "target", false);
        let echo = listener(&node, &running).await;
        assert_eq!(tool(&server, "target").exec().await, Some(7));
        tool(&server, "target").port_forward().await;
        assert_eq!(server.upgrades(), [upgrade]);
        drop(echo);
        node.remove(&running.pod).await;
        for (name, tty) in [("pipes", false), ("terminal", true)] {
            let running = attachable(&node, name, tty).await;
            let server = serve(&running, name, tty);
            let tool = tool(&server, name);
            if tty {
                tool.attach_to_a_terminal().await
            } else {
                tool.attach_to_pipes().await
            }
            assert_eq!(server.upgrades(), [upgrade]);
            assert_eq!(node.cri.exited(&running.container).await.exit_code, 0);
            node.remove(&running.pod).await;
        }
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn crictl_against_the_program() {
    let Some(crictl) = std::env::var_os(CRICTL) else {
        return skip("crictl_against_the_program", "CRICTL does not name a crictl");
    };
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let settings = node.world.dir().join("crictl.yaml");
    std::fs::write(&settings, format!("runtime-endpoint: unix://{}\n", node.daemon.socket.display()))
        .unwrap();
    for transport in ["spdy", "websocket"] {
        let tool = |running: &Running| Tool {
            node: &node,
            program: PathBuf::from(&crictl),
            general: vec!["--config".into(), settings.display().to_string()],
            transport: vec!["--transport", transport],
            environment: Vec::new(),
            pod: running.pod.clone(),
            container: running.container.clone(),
            separator: &[],
        };
        let running = sleeper(&node).await;
        let echo = listener(&node, &running).await;
        // crictl tells that it failed, not how its command did.
        assert_eq!(tool(&running).exec().await, Some(1));
        tool(&running).port_forward().await;
        drop(echo);
        node.remove(&running.pod).await;
        for (name, tty) in [("pipes", false), ("terminal", true)] {
            let running = attachable(&node, name, tty).await;
            let tool = tool(&running);
            if tty {
                tool.attach_to_a_terminal().await
            } else {
                tool.attach_to_pipes().await
            }
            assert_eq!(node.cri.exited(&running.container).await.exit_code, 0);
            node.remove(&running.pod).await;
        }
    }
    node.assert_nothing_left(&before);
}
