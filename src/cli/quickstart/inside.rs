//! What runs in the quickstart's container: this same program, with nothing but itself in its image.

use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;

use anyhow::Context as _;
use clap::Subcommand;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

/// The port of the page.
pub const PORT: u16 = 8080;

/// What to be.
#[derive(Debug, Subcommand)]
pub enum Inside {
    /// Serve one page over HTTP until SIGTERM
    Page,
    /// Print what a process in here sees
    Look,
}

impl Inside {
    /// Is it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Inside::Page => page().await,
            Inside::Look => Ok(io::stdout().write_all(view()?.as_bytes())?),
        }
    }
}

async fn page() -> anyhow::Result<()> {
    // Process 1 of a PID namespace has no default action for signals: what it does not handle does nothing.
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await.context("listen")?;
    writeln!(io::stdout(), "listening on port {PORT}")?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, peer) = accepted.context("accept")?;
                match answer(stream).await {
                    Ok(request) => writeln!(io::stdout(), "{request:?} from {}", peer.ip())?,
                    Err(error) => writeln!(io::stderr(), "request from {}: {error}", peer.ip())?,
                }
            }
            _ = terminate.recv() => {
                writeln!(io::stdout(), "SIGTERM: goodbye")?;
                return Ok(());
            }
        }
    }
}

/// Reads one request and answers it; returns its first line.
async fn answer(mut stream: TcpStream) -> anyhow::Result<String> {
    const REQUEST_BYTES_MAX: u64 = 16 << 10;
    let mut lines = BufReader::new((&mut stream).take(REQUEST_BYTES_MAX)).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let body = view()?;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(first)
}

/// What the kernel tells a process in the container about itself.
fn view() -> anyhow::Result<String> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
    };
    let uname = rustix::system::uname();
    let processes = fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .count();
    let root: Vec<String> = fs::read_dir("/")?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let seccomp = match field("Seccomp").as_str() {
        "2" => "filter".to_owned(),
        "0" => "none".to_owned(),
        other => format!("mode {other}"),
    };
    Ok(format!(
        "hello from {} on Linux {}\nprocess {}, {processes} to be seen, user {}, capabilities {}, seccomp {seccomp}, \
         no_new_privs {}\n/ has {}\n",
        uname.nodename().to_string_lossy(),
        uname.release().to_string_lossy(),
        std::process::id(),
        field("Uid"),
        field("CapEff"),
        field("NoNewPrivs"),
        root.join(" "),
    ))
}
