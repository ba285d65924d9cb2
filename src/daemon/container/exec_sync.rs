//! Running a command and collecting what it says.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pinnace_launcher::protocol::Exited;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

use super::Container;
use super::exec::{Command, Exec};
use crate::error::{Error, Within as _};
use crate::node::Node;

/// Most output of one stream that ExecSync returns; the rest is read and dropped.
const OUTPUT_BYTES: usize = 16 << 20;

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// Exit status; 128 + n for signal n.
    pub code: i32,
}

/// Runs a command in a running container. `None` is no time limit.
pub async fn exec_sync(
    node: &Node,
    id: &str,
    args: Vec<String>,
    limit: Option<Duration>,
) -> Result<Output, Error> {
    let container = node.container(id)?;
    // A caller that goes away ends its command; the clearing up goes on without it.
    let caller = CancellationToken::new();
    let _gone = caller.clone().drop_guard();
    node.mutation(|node| async move {
        let what = format!("exec in container {}", container.id);
        exec(&node, &container, args, limit, caller).await.within(|| what)
    })
    .await
}

async fn exec(
    node: &Arc<Node>,
    container: &Arc<Container>,
    args: Vec<String>,
    limit: Option<Duration>,
    caller: CancellationToken,
) -> Result<Output, Error> {
    let command = Command { args, stdout: true, stderr: true, ..Command::default() };
    let (mut exec, streams) = Exec::start(node, container, command).await?;
    let stdout = Collector::start(node, streams.stdout)?;
    let stderr = Collector::start(node, streams.stderr)?;
    let ended = ended(&mut exec, limit, caller).await;
    let killed = if ended.is_err() { exec.kill(node).await } else { Ok(()) };
    // A grandchild may hold a pipe for ever (GHSA-7jxh-36q5-gcqv): what comes within the drain time is all there is.
    let drain = node.config.container.exec_drain_timeout;
    let (stdout, stderr) = tokio::join!(stdout.finish(drain), stderr.finish(drain));
    // The answer does not wait for its group to go; a shutdown does.
    let clearing = Arc::clone(node);
    node.tasks.spawn(async move { exec.clear(&clearing).await });
    killed?;
    Ok(Output { code: ended?.code, stdout, stderr })
}

/// The command's own end, or why it is to be ended.
async fn ended(exec: &mut Exec, limit: Option<Duration>, caller: CancellationToken) -> Result<Exited, Error> {
    let late = async {
        match limit {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                limit
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        exited = exec.ended() => exited,
        limit = late => Err(Error::Deadline { what: "the command".to_owned(), limit }),
        () = caller.cancelled() => Err(Error::CallerGone),
    }
}

/// Reads a pipe to its end, keeping at most [`OUTPUT_BYTES`].
struct Collector {
    kept: Arc<std::sync::Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Collector {
    fn start(node: &Node, pipe: Option<OwnedFd>) -> Result<Self, Error> {
        let pipe = pipe.map(Receiver::from_owned_fd).transpose();
        let pipe = pipe.map_err(Error::io("register", "pipe of a command"))?;
        let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
        let output = Arc::clone(&kept);
        let task = node.tasks.spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut chunk = vec![0; CHUNK_BYTES];
            while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
                let mut output = crate::table::lock(&output);
                let room = OUTPUT_BYTES - output.len();
                output.extend_from_slice(&chunk[..count.min(room)]);
            }
        });
        Ok(Self { kept, task })
    }

    async fn finish(mut self, drain: Duration) -> Vec<u8> {
        if tokio::time::timeout(drain, &mut self.task).await.is_err() {
            self.task.abort();
        }
        std::mem::take(&mut *crate::table::lock(&self.kept))
    }
}
