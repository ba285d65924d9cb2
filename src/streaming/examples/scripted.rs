//! The server in front of the tests' scripted runtime, to be measured or looked at with other clients.
//!
//! `scripted STREAMS COMMAND...` prints the URL of a command (`scripted o write 1073741824`); `scripted forward` prints
//! that of a port-forward. It serves until its standard input ends, then says how much memory it took at most.

#![expect(clippy::unwrap_used, reason = "an example that cannot go on fails")]

#[path = "../tests/wire/scripted.rs"]
mod scripted;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use pinnace_streaming::{ExecRequest, Options, PortForwardRequest, Server};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((streams, command)) = arguments.split_first() else {
        panic!("usage: scripted STREAMS COMMAND... | forward");
    };
    let runtime = Arc::new(scripted::Scripted::default());
    let server = Server::bind(Options::default(), runtime.clone()).await.unwrap();
    let url = if streams == "forward" {
        server.port_forward_url(PortForwardRequest { sandbox_id: "sandbox".into(), ports: vec![] })
    } else {
        server.exec_url(ExecRequest {
            container_id: "container".into(),
            command: command.to_vec(),
            stdin: streams.contains('i'),
            stdout: streams.contains('o'),
            stderr: streams.contains('e'),
            tty: streams.contains('t'),
        })
    };
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", url.unwrap()).unwrap();
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    server.shutdown(Duration::from_secs(1)).await;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let hung_up = runtime.hung_up.load(std::sync::atomic::Ordering::SeqCst);
    writeln!(stdout, "{peak}, {hung_up} hung up").unwrap();
}
