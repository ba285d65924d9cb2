//! Adding a process to a running container: what ExecSync and Exec share.
//!
//! ```text
//!            without a terminal                                   with one
//! daemon ◄── pipes ──► program               daemon ◄── pipes ──► monitor ◄── pty ──► program
//! ```
//! The pipes are the daemon's: when it dies they break, the session is hung up, and the container's own output, which is
//! the monitor's, does not notice. Each session has a cgroup of its own below the container's, so that what ends it ends
//! the whole tree that it started and nothing else. Children that outlive a command which has ended by itself are the
//! container's business; their group is removed once it is empty.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use pinnace_cgroup::{Cgroup, CgroupError, CgroupPath, Session};
use pinnace_launcher::plan;
use pinnace_launcher::protocol::{self, ContainerRef, Exited, Request, Resize, Signal};
use pinnace_spec::lower::{CgroupJoin, Slots};
use pinnace_spec::process::Template;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;

use super::record::{ContainerRecord, Status};
use super::start::launched;
use super::{Container, external};
use crate::error::{Error, Within as _};
use crate::monitor::Monitor;
use crate::node::Node;
use crate::record as disk;
use crate::table::lock;

/// What to run, and which of its streams the daemon has the other end of; the rest are `/dev/null`.
#[derive(Debug, Default)]
pub struct Command {
    /// `argv`
    pub args: Vec<String>,
    /// Write its standard input.
    pub stdin: bool,
    /// Read its standard output.
    pub stdout: bool,
    /// Read its standard error.
    pub stderr: bool,
    /// A terminal, whose output is standard output, always read.
    pub terminal: Option<Terminal>,
    /// `KEY=value`, over the container's.
    pub env: Vec<String>,
    /// In place of the container's.
    pub working_dir: Option<PathBuf>,
    /// `user[:group]` in place of the container's.
    pub user: Option<String>,
    /// Every capability, and no seccomp filter.
    pub privileged: bool,
}

/// A terminal to make.
#[derive(Debug)]
pub struct Terminal {
    /// Rows and columns, if they are known.
    pub size: Option<(u16, u16)>,
}

/// The daemon's ends.
#[derive(Debug, Default)]
pub struct Streams {
    /// For writing.
    pub stdin: Option<OwnedFd>,
    /// For reading.
    pub stdout: Option<OwnedFd>,
    /// For reading.
    pub stderr: Option<OwnedFd>,
}

/// A running session.
#[derive(Debug)]
pub struct Exec {
    id: String,
    container: Arc<Container>,
    monitor: Arc<Monitor>,
    group: Session,
    terminal: bool,
    exited: oneshot::Receiver<Exited>,
}

/// Refuses a container that does not run.
pub fn running(container: &Container) -> Result<(), Error> {
    let state = match container.status() {
        Status::Running { .. } => return Ok(()),
        Status::Created | Status::Starting => "not started",
        Status::Exited(_) => "exited",
    };
    Err(Error::State {
        subject: format!("container {}", container.id),
        state: state.to_owned(),
        hint: "its container must be running".to_owned(),
    })
}

/// The monitor of a container's pod.
pub fn monitor_of(container: &Container) -> Result<Arc<Monitor>, Error> {
    container.sandbox.monitor().ok_or_else(|| Error::MonitorGone(container.sandbox.id.clone()))
}

/// A pipe whose ends are close-on-exec, the reading one first.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::io("create", "pipe")(error.into()))
}

impl Exec {
    /// Runs a command in a running container; returns when the program is executed.
    pub async fn start(
        node: &Arc<Node>,
        container: &Arc<Container>,
        command: Command,
    ) -> Result<(Self, Streams), Error> {
        running(container)?;
        let monitor = monitor_of(container)?;
        let id = monitor.next_exec_id();
        let terminal = command.terminal.is_some();
        let (planned, own) = (Arc::clone(container), id.clone());
        let Prepared { request, descriptors, group, streams } =
            node.blocking(move |node| prepare(node, &planned, &own, &command)).await?;
        let exited = monitor.expect_exec(&id);
        let begun = launched(&monitor, Request::Exec(request), &descriptors, container).await;
        // The program has its own copies; ours would keep the pipes from ending.
        drop(descriptors);
        let exec = Self { id, container: Arc::clone(container), monitor, group, terminal, exited };
        match begun {
            Ok(_) => Ok((exec, streams)),
            Err(error) => {
                exec.monitor.forget_exec(&exec.id);
                exec.clear(node).await;
                Err(external::explain(container, error))
            }
        }
    }

    /// Waits for the end of its first process. Can be called again after it was cancelled, not after it has answered.
    pub async fn ended(&mut self) -> Result<Exited, Error> {
        let gone = || Error::MonitorGone(self.container.sandbox.id.clone());
        (&mut self.exited).await.map_err(|_| gone())
    }

    /// SIGKILL for everything that it started.
    pub async fn kill(&self, node: &Node) -> Result<(), Error> {
        let group = self.group.clone();
        node.blocking(move |_| Ok(group.kill_all()?)).await
    }

    /// Nobody is at the other end any more: SIGHUP, and if that does not end it in time, everything that it started is
    /// killed. A terminal's program has had its signal from the kernel when the daemon's ends were closed.
    pub async fn hang_up(&mut self, node: &Arc<Node>) -> Result<Exited, Error> {
        if !self.terminal {
            let signal = Signal {
                container_id: self.container.id.to_string(),
                exec_id: self.id.clone(),
                hang_up: true,
                ..Signal::default()
            };
            // Already gone is as good.
            let _ = self.monitor.request(Request::Signal(signal), &[]).await;
        }
        let grace = node.config.streaming.hang_up_grace;
        if let Ok(ended) = tokio::time::timeout(grace, self.ended()).await {
            return ended;
        }
        tracing::info!(container_id = %self.container.id, exec_id = self.id, "killing a session without a client");
        self.kill(node).await?;
        let limit = node.config.container.kill_timeout;
        tokio::time::timeout(limit, self.ended())
            .await
            .unwrap_or_else(|_| Err(Error::Deadline { what: "the killed session".to_owned(), limit }))
    }

    /// What sets the size of its terminal.
    pub fn window(&self) -> Window {
        Window {
            monitor: Arc::clone(&self.monitor),
            container_id: self.container.id.to_string(),
            exec_id: self.id.clone(),
        }
    }

    /// Removes its group now, or when what the command has left running is gone.
    pub async fn clear(self, node: &Node) {
        let Self { container, group, monitor, id, .. } = self;
        monitor.forget_exec(&id);
        let keep = Arc::clone(&container);
        let done = node.blocking(move |_| {
            if !group.remove_if_empty()? {
                lock(&keep.leftover_sessions).push(group);
            }
            sweep(&keep);
            external::forget_exec(&keep, &id);
            Ok(())
        });
        if let Err(error) = done.await {
            tracing::debug!(container_id = %container.id, error = error.chain(), "cgroup of a session stays");
        }
    }
}

/// The terminal of a container (with an empty `exec_id`) or of a session.
#[derive(Debug)]
pub struct Window {
    /// Who has it.
    pub monitor: Arc<Monitor>,
    /// Whose it is.
    pub container_id: String,
    /// Whose it is.
    pub exec_id: String,
}

impl Window {
    /// Sets its size; a terminal that is gone has none.
    pub async fn resize(&self, rows: u16, columns: u16) {
        let resize = Resize {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            rows: rows.into(),
            columns: columns.into(),
        };
        if let Err(error) = self.monitor.request(Request::Resize(resize), &[]).await {
            tracing::debug!(container_id = self.container_id, error = error.chain(), "resize");
        }
    }
}

struct Prepared {
    request: protocol::Exec,
    descriptors: Vec<OwnedFd>,
    group: Session,
    streams: Streams,
}

fn prepare(node: &Node, container: &Container, exec_id: &str, command: &Command) -> Result<Prepared, Error> {
    let record = container.record();
    let user = command.user.as_deref().map(|user| resolve(&record, user)).transpose()?;
    let exec = pinnace_spec::process::Exec {
        args: &command.args,
        env: &command.env,
        cwd: command.working_dir.as_deref(),
        user: user.as_ref(),
        binary_env: &record.binary_env,
        terminal: command.terminal.is_some(),
        size: command.terminal.as_ref().and_then(|terminal| terminal.size),
    };
    let mut process = if command.privileged {
        let mut spec: Spec = disk::read(&Container::spec_path(&container.directory))?;
        raise(node, &mut spec)?;
        node.with_host(|host| Template::of(&spec, host))?.exec(&exec, &node.facts)?
    } else {
        template(node, container)?.exec(&exec, &node.facts)?
    };
    process.umask = Some(node.config.container.umask);

    let mut slots = Slots::new();
    let external = match external::runtime(node, container)? {
        Some(runtime) => {
            let process = template(node, container)?.exec_in_oci(&exec)?;
            Some(external::exec(container, runtime, exec_id, &process, &mut slots)?)
        }
        None => None,
    };
    let mut streams = Streams::default();
    let mut stdio = plan::Stdio::default();
    if command.stdin {
        let (theirs, ours) = pipe()?;
        stdio.stdin_slot = Some(slots.push(theirs));
        streams.stdin = Some(ours);
    }
    if command.stdout || command.terminal.is_some() {
        let (ours, theirs) = pipe()?;
        stdio.stdout_slot = Some(slots.push(theirs));
        streams.stdout = Some(ours);
    }
    if command.stderr && command.terminal.is_none() {
        let (ours, theirs) = pipe()?;
        stdio.stderr_slot = Some(slots.push(theirs));
        streams.stderr = Some(ours);
    }
    let cgroup = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(record.cgroup_path.as_str())?)?;
    let group = cgroup.session(exec_id)?;
    let join = group.join_fds()?;
    let cgroup =
        slots.join(CgroupJoin { tasks: join.tasks, directory: join.clone_into, ..CgroupJoin::default() });
    let request = protocol::Exec {
        exec_id: exec_id.to_owned(),
        container_id: container.id.to_string(),
        process: Some(process),
        cgroup: Some(cgroup),
        stdio: Some(stdio),
        foreign: None,
        external,
    };
    Ok(Prepared { request, descriptors: slots.into_descriptors(), group, streams })
}

/// What the container's sessions have in common, from its spec when the first of them comes.
fn template<'a>(node: &Node, container: &'a Container) -> Result<&'a Template, Error> {
    if let Some(known) = container.sessions.get() {
        return Ok(known);
    }
    let spec: Spec = disk::read(&Container::spec_path(&container.directory))?;
    let template = node.with_host(|host| Template::of(&spec, host))?;
    Ok(container.sessions.get_or_init(|| template))
}

/// Everything that the host has, as a privileged container.
fn raise(node: &Node, spec: &mut Spec) -> Result<(), Error> {
    let all = pinnace_spec::capabilities::all(&node.facts);
    let request = pinnace_spec::capabilities::Request { add: &[], drop: &[], add_ambient: &[] };
    let all = pinnace_spec::capabilities::select(&all, &request, &node.facts)?;
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(Some(all));
        process.set_no_new_privileges(Some(false));
        process.set_apparmor_profile(None);
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
    }
    Ok(())
}

/// A user by the container's own files.
fn resolve(record: &ContainerRecord, user: &str) -> Result<pinnace_spec::user::User, Error> {
    let Status::Running { pid, .. } = record.status else {
        return Err(Error::State {
            subject: format!("container {}", record.id),
            state: "not running".to_owned(),
            hint: "its container must be running".to_owned(),
        });
    };
    let root = root_of(pid)?;
    let request = pinnace_spec::user::Request {
        image_user: user,
        run_as_user: None,
        run_as_username: "",
        run_as_group: None,
        supplemental_groups: &[],
        policy: pinnace_spec::user::GroupPolicy::Merge,
    };
    Ok(pinnace_spec::user::resolve(root.as_fd(), &request)?)
}

/// The root directory of a process, to be walked by descriptor (rule R1).
pub(crate) fn root_of(pid: i32) -> Result<OwnedFd, Error> {
    use rustix::fs::{Mode, OFlags};
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| Error::io("open", path)(errno.into()))
}

/// Removes the groups of sessions whose leftovers have ended meanwhile.
pub fn sweep(container: &Container) {
    let mut sessions = std::mem::take(&mut *lock(&container.leftover_sessions));
    sessions.retain(|session| !matches!(session.remove_if_empty(), Ok(true)));
    lock(&container.leftover_sessions).append(&mut sessions);
}

/// Ends the sessions of a daemon that is gone: the monitor has hung them up when it went. `alive` are those whose first
/// process had not ended by then; all other groups hold what ended commands have left running.
pub async fn recover(node: &Arc<Node>, container: &Arc<Container>, alive: Vec<String>) -> Result<(), Error> {
    let path = container.record().cgroup_path;
    let groups = node.blocking(move |node| {
        match Cgroup::open(&node.hierarchy, &CgroupPath::try_from(path.as_str())?) {
            Err(CgroupError::NotFound { .. }) => Ok(Vec::new()),
            cgroup => Ok(cgroup?.sessions()?),
        }
    });
    let (alive, left): (Vec<_>, Vec<_>) =
        groups.await?.into_iter().partition(|(name, _)| alive.contains(name));
    lock(&container.leftover_sessions).extend(left.into_iter().map(|(_, session)| session));
    for (name, group) in alive {
        let (node, container) = (Arc::clone(node), Arc::clone(container));
        tokio::spawn(async move {
            if let Err(error) = end_stray(&node, &container, &name, group).await {
                tracing::warn!(container_id = %container.id, exec_id = name, error = error.chain(), "end a session");
            }
        });
    }
    Ok(())
}

async fn end_stray(node: &Node, container: &Container, id: &str, group: Session) -> Result<(), Error> {
    let monitor = monitor_of(container)?;
    let exited = monitor.expect_exec(id);
    let _ = tokio::time::timeout(node.config.streaming.hang_up_grace, exited).await;
    monitor.forget_exec(id);
    let probe =
        Signal { container_id: container.id.to_string(), exec_id: id.to_owned(), ..Signal::default() };
    let alive = monitor.request(Request::Signal(probe), &[]).await.is_ok();
    let kept = group.clone();
    node.blocking(move |_| if alive { Ok(group.kill_all()?) } else { Ok(()) }).await?;
    lock(&container.leftover_sessions).push(kept);
    tokio::time::sleep(SETTLE).await;
    sweep(container);
    Ok(())
}

/// How long killed processes normally take to be gone.
const SETTLE: Duration = Duration::from_millis(100);

/// Makes the monitor write to a new file at the log's path; returns when it does.
pub async fn reopen_log(node: &Node, id: &str) -> Result<(), Error> {
    let container = node.container(id)?;
    let what = || format!("reopen the log of container {}", container.id);
    running(&container).within(what)?;
    let monitor = monitor_of(&container)?;
    let request = Request::ReopenLog(ContainerRef { container_id: container.id.to_string() });
    monitor.request(request, &[]).await.within(what).map(drop)
}
