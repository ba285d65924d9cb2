//! Adding a process to a running container and collecting its output.
//!
//! The pipes are the daemon's and go straight to the program: when the daemon dies they break and the session ends, while
//! the container's own output, which is the monitor's, does not notice. Each session has a cgroup of its own below the
//! container's, so that a time-out ends the whole tree that it started and nothing else.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use pinnace_cgroup::{Cgroup, CgroupPath, Session};
use pinnace_launcher::plan;
use pinnace_launcher::protocol::{self, ContainerRef, Request};
use pinnace_spec::lower::{CgroupJoin, Slots};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Container;
use super::record::Status;
use super::start::launched;
use crate::error::{Error, Within as _};
use crate::node::Node;
use crate::record as disk;

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
    command: Vec<String>,
    limit: Option<Duration>,
) -> Result<Output, Error> {
    let container = node.container(id)?;
    // A caller that goes away ends its command; the clearing up goes on without it.
    let caller = CancellationToken::new();
    let _gone = caller.clone().drop_guard();
    node.mutation(|node| async move {
        let what = format!("exec in container {}", container.id);
        exec(&node, &container, command, limit, caller).await.within(|| what)
    })
    .await
}

async fn exec(
    node: &Arc<Node>,
    container: &Arc<Container>,
    command: Vec<String>,
    limit: Option<Duration>,
    caller: CancellationToken,
) -> Result<Output, Error> {
    running(container)?;
    let monitor =
        container.sandbox.monitor().ok_or_else(|| Error::MonitorGone(container.sandbox.id.clone()))?;
    let exec_id = monitor.next_exec_id();
    let planned = Arc::clone(container);
    let own = exec_id.clone();
    let Prepared { request, descriptors, session, stdout, stderr } =
        node.blocking(move |node| prepare(node, &planned, &own, &command)).await?;
    let session = Arc::new(session);
    let exited = monitor.expect_exec(&exec_id);
    let begun = launched(&monitor, Request::Exec(request), &descriptors, container).await;
    // The program has its own copies; ours would keep the pipes from ending.
    drop(descriptors);
    let collected = match begun {
        Ok(_) => {
            let stdout = Collector::start(node, stdout)?;
            let stderr = Collector::start(node, stderr)?;
            let ended = ended(container, exited, limit, caller).await;
            collect(node, ended, stdout, stderr, &session).await
        }
        Err(error) => {
            monitor.forget_exec(&exec_id);
            Err(error)
        }
    };
    // Children that outlive a command in the background are the container's business: their group stays until it goes.
    let done = node.blocking(move |_| Ok(session.remove_if_empty()?)).await;
    if let Err(error) = done {
        tracing::debug!(container_id = %container.id, error = error.chain(), "cgroup of a session stays");
    }
    collected
}

fn running(container: &Container) -> Result<(), Error> {
    let state = match container.status() {
        Status::Running { .. } => return Ok(()),
        Status::Created | Status::Starting => "not started",
        Status::Exited(_) => "exited",
    };
    Err(Error::State {
        subject: format!("container {}", container.id),
        state: state.to_owned(),
        hint: "commands run only in running containers".to_owned(),
    })
}

struct Prepared {
    request: protocol::Exec,
    descriptors: Vec<OwnedFd>,
    session: Session,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

fn prepare(node: &Node, container: &Container, exec_id: &str, command: &[String]) -> Result<Prepared, Error> {
    let record = container.record();
    let spec: Spec = disk::read(&Container::spec_path(&container.directory))?;
    let exec =
        pinnace_spec::process::Exec { args: command, binary_env: &record.binary_env, ..Default::default() };
    let mut process = node.with_host(|host| pinnace_spec::process::exec(&spec, &exec, host))?;
    process.umask = Some(node.config.container.umask);

    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::io("create", "pipe")(error.into()));
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let cgroup = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(record.cgroup_path.as_str())?)?;
    let session = cgroup.session(exec_id)?;
    let mut slots = Slots::new();
    let join = session.join_fds()?;
    let cgroup = slots.join(CgroupJoin { tasks: join.tasks, directory: join.clone_into, oom_counter: None });
    let stdio = plan::Stdio {
        stdout_slot: Some(slots.push(stdout_end)),
        stderr_slot: Some(slots.push(stderr_end)),
        ..Default::default()
    };
    let request = protocol::Exec {
        exec_id: exec_id.to_owned(),
        container_id: container.id.to_string(),
        process: Some(process),
        cgroup: Some(cgroup),
        stdio: Some(stdio),
    };
    Ok(Prepared { request, descriptors: slots.into_descriptors(), session, stdout, stderr })
}

/// The command's own end, or why it is to be ended.
async fn ended(
    container: &Container,
    exited: oneshot::Receiver<protocol::Exited>,
    limit: Option<Duration>,
    caller: CancellationToken,
) -> Result<protocol::Exited, Error> {
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
        exited = exited => exited.map_err(|_| Error::MonitorGone(container.sandbox.id.clone())),
        limit = late => Err(Error::Deadline { what: "the command".to_owned(), limit }),
        () = caller.cancelled() => Err(Error::CallerGone),
    }
}

async fn collect(
    node: &Arc<Node>,
    ended: Result<protocol::Exited, Error>,
    stdout: Collector,
    stderr: Collector,
    session: &Arc<Session>,
) -> Result<Output, Error> {
    if ended.is_err() {
        let tree = Arc::clone(session);
        node.blocking(move |_| Ok(tree.kill_all()?)).await?;
    }
    // A grandchild may hold a pipe for ever (GHSA-7jxh-36q5-gcqv): what comes within the drain time is all there is.
    let drain = node.config.container.exec_drain_timeout;
    let (stdout, stderr) = tokio::join!(stdout.finish(drain), stderr.finish(drain));
    Ok(Output { code: ended?.code, stdout, stderr })
}

/// Reads a pipe to its end, keeping at most [`OUTPUT_BYTES`].
struct Collector {
    kept: Arc<std::sync::Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Collector {
    fn start(node: &Node, pipe: OwnedFd) -> Result<Self, Error> {
        let mut pipe = Receiver::from_owned_fd(pipe).map_err(Error::io("register", "pipe of a command"))?;
        let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
        let output = Arc::clone(&kept);
        let task = node.tasks.spawn(async move {
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

/// Makes the monitor write to a new file at the log's path; returns when it does.
pub async fn reopen_log(node: &Node, id: &str) -> Result<(), Error> {
    let container = node.container(id)?;
    let what = || format!("reopen the log of container {}", container.id);
    running(&container).within(what)?;
    let monitor =
        container.sandbox.monitor().ok_or_else(|| Error::MonitorGone(container.sandbox.id.clone()))?;
    let request = Request::ReopenLog(ContainerRef { container_id: container.id.to_string() });
    monitor.request(request, &[]).await.within(what).map(drop)
}
