//! What daemon and monitor say to each other, over a unix `SOCK_SEQPACKET` socket.
//!
//! One packet is one [`ToMonitor`] or [`FromMonitor`]. Descriptors travel beside it (`SCM_RIGHTS`, at most 253 a packet; a
//! request that needs more, or whose encoding is larger than [`INLINE_BYTES`], announces them by [`Request::Attachments`]
//! packets with the same `id` before it). Requests carry an `id` that their reply repeats; events carry none.
//! Unknown requests are answered with a [`Failure`] of stage `protocol`; unknown fields are ignored, so that a newer daemon
//! can speak to an older monitor.

use crate::plan::{CgroupJoin, External, LaunchPlan, Process, Slot, Stdio, Sysctl};

/// Version of this protocol; a monitor answers requests of any version that it knows the fields of.
pub const VERSION: u32 = 1;

/// Largest packet; a longer body travels in a sealed memfd as the last descriptor.
pub const INLINE_BYTES: usize = 96 * 1024;

/// The monitor's socket in the pod's run directory, mode 0600.
pub const SOCKET_NAME: &str = "monitor.sock";

/// Name of the record in the pod's run directory that holds the [`Exited`] of a container, until `Forget`.
pub fn exit_record_name(container_id: &str) -> String {
    format!("exit-{container_id}")
}

/// Daemon to monitor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ToMonitor {
    /// Chosen by the daemon, unique on a connection.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What to do.
    #[prost(oneof = "Request", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub request: Option<Request>,
}

/// The requests.
#[allow(clippy::large_enum_variant, reason = "one exists at a time")]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Request {
    /// First on every connection; answered by [`Reply::State`].
    #[prost(message, tag = "2")]
    Hello(Hello),
    /// Once in a monitor's life: become the monitor of this pod; answered by [`Reply::Ready`].
    #[prost(message, tag = "3")]
    Setup(Setup),
    /// Clone, prepare and (unless held) run a container; answered by [`Reply::Launched`] after execve succeeded. A plan with
    /// a hook stage is answered by [`Reply::Paused`] first, and goes on at `Start`.
    #[prost(message, tag = "4")]
    Launch(Launch),
    /// Let a paused launch go on, or a held container run; answered by [`Reply::Launched`] when that is done, after execve
    /// in the latter case.
    #[prost(message, tag = "5")]
    Start(ContainerRef),
    /// Add a process to a running container; answered by [`Reply::Launched`]. An exec session with a terminal is copied
    /// between that and the slots of its stdio by the monitor; without one, the slots become its descriptors. When nobody
    /// reads the copy any more the terminal is hung up; when the connection that asked for the session ends, its
    /// process group gets SIGHUP.
    #[prost(message, tag = "6")]
    Exec(Exec),
    /// Send a signal to a container's or exec session's first process.
    #[prost(message, tag = "7")]
    Signal(Signal),
    /// Close the log and open its path anew; answered after the new file is in use.
    #[prost(message, tag = "8")]
    ReopenLog(ContainerRef),
    /// Forget an exited container.
    #[prost(message, tag = "9")]
    Forget(ContainerRef),
    /// Set the size of a container's or exec session's terminal.
    #[prost(message, tag = "10")]
    Resize(Resize),
    /// End the monitor; refused while a container runs, unless it is to be left.
    #[prost(message, tag = "11")]
    Shutdown(Shutdown),
    /// More descriptors for the request with this id, which follows.
    #[prost(message, tag = "12")]
    Attachments(Attachments),
    /// Body of the request is in the last descriptor.
    #[prost(message, tag = "13")]
    Large(Large),
    /// Join the streams of a container; may come before `Start` of a held one, so that no output is missed.
    #[prost(message, tag = "14")]
    Attach(Attach),
    /// Make sockets in the pod's network namespace; answered by [`Reply::Sockets`].
    #[prost(message, tag = "15")]
    Sockets(WantedSockets),
}

/// Greeting.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// [`VERSION`] of the daemon.
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

/// The pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Setup {
    /// Sandbox id, shown in the process title.
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    /// Slot of the pod's run directory: `monitor.sock` is bound there and exit records are written there.
    #[prost(uint32, tag = "2")]
    pub run_directory: Slot,
    /// Slot of the pod's network namespace; none means the host's.
    #[prost(uint32, optional, tag = "3")]
    pub network: Option<Slot>,
    /// A fresh IPC namespace with its own `/dev/shm`.
    #[prost(bool, tag = "4")]
    pub ipc: bool,
    /// A fresh UTS namespace with this host name; empty means the host's.
    #[prost(string, tag = "5")]
    pub hostname: String,
    /// Size of the pod's `/dev/shm`.
    #[prost(uint64, tag = "6")]
    pub shm_bytes: u64,
    /// Namespaced sysctls, written before the reply.
    #[prost(message, repeated, tag = "7")]
    pub sysctls: Vec<Sysctl>,
    /// Start a reaping PID 1 whose PID namespace the pod's containers share.
    #[prost(bool, tag = "8")]
    pub share_pid: bool,
    /// How that PID 1 joins a cgroup; the monitor itself stays outside the pod's memory cgroup (rule R16).
    #[prost(message, optional, tag = "9")]
    pub cgroup: Option<CgroupJoin>,
    /// Runs in the host's user namespace at this value when given (-1000..=1000).
    #[prost(int32, optional, tag = "10")]
    pub oom_score_adj: Option<i32>,
    /// Slot of the pod's user namespace; none means the host's.
    #[prost(uint32, optional, tag = "11")]
    pub user: Option<Slot>,
    /// Slot of the IPC namespace to enter instead of making a fresh one.
    #[prost(uint32, optional, tag = "12")]
    pub ipc_namespace: Option<Slot>,
    /// Slot of the UTS namespace to enter instead of making a fresh one.
    #[prost(uint32, optional, tag = "13")]
    pub uts_namespace: Option<Slot>,
    /// The host's number of the user namespace's root, who owns `/dev/shm`.
    #[prost(uint32, tag = "14")]
    pub root_uid: u32,
    /// The same for its group.
    #[prost(uint32, tag = "15")]
    pub root_gid: u32,
    /// SELinux label of `/dev/shm`; empty where the kernel runs without it.
    #[prost(string, tag = "16")]
    pub file_label: String,
    /// What is launched will be left to whoever reaps the monitor's orphans, and is left unreaped from the moment on when it
    /// is held or runs.
    #[prost(bool, tag = "17")]
    pub leaves: bool,
}

/// A container to launch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Launch {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The plan.
    #[prost(message, optional, tag = "2")]
    pub plan: Option<LaunchPlan>,
}

/// Names a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRef {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A process to add to a container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    /// Chosen by the daemon, unique in the pod.
    #[prost(string, tag = "1")]
    pub exec_id: String,
    /// Container to enter.
    #[prost(string, tag = "2")]
    pub container_id: String,
    /// Who runs what.
    #[prost(message, optional, tag = "3")]
    pub process: Option<Process>,
    /// How it joins the container's cgroup.
    #[prost(message, optional, tag = "4")]
    pub cgroup: Option<CgroupJoin>,
    /// Its descriptors.
    #[prost(message, optional, tag = "5")]
    pub stdio: Option<Stdio>,
    /// The container, when another monitor has launched it.
    #[prost(message, optional, tag = "6")]
    pub foreign: Option<ForeignContainer>,
    /// Another OCI runtime does it all; then only this, the stdio, the cgroup and whether there is a terminal count.
    #[prost(message, optional, tag = "7")]
    pub external: Option<External>,
}

/// A container that another monitor has launched.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForeignContainer {
    /// Slot of a pidfd of its first process.
    #[prost(uint32, tag = "1")]
    pub process: Slot,
    /// It has a user namespace of its own, whose root this is outside.
    #[prost(message, optional, tag = "2")]
    pub user: Option<ForeignUser>,
}

/// The user namespace of a container that another monitor has launched.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForeignUser {
    /// `CLONE_NEW*` of the namespaces that it owns beside the mount and PID namespaces.
    #[prost(uint64, tag = "1")]
    pub own: u64,
    /// User of its root outside.
    #[prost(uint32, tag = "2")]
    pub root_uid: u32,
    /// Group of its root outside.
    #[prost(uint32, tag = "3")]
    pub root_gid: u32,
}

/// A signal to send.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Exec session; empty for the container itself.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Signal number, 1..=64; 0 asks whether it lives.
    #[prost(int32, tag = "3")]
    pub signal: i32,
    /// Send SIGHUP to its process group instead.
    #[prost(bool, tag = "4")]
    pub hang_up: bool,
}

/// A terminal's size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resize {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Exec session; empty for the container itself.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Rows.
    #[prost(uint32, tag = "3")]
    pub rows: u32,
    /// Columns.
    #[prost(uint32, tag = "4")]
    pub columns: u32,
}

/// Copies of a container's output, and a source for its stdin. Each slot is a pipe or stream socket whose other end the
/// caller keeps; the monitor closes its end when the stream is over, or the attachment is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Read into the container's stdin. Its end closes that only with `stdin_once`.
    #[prost(uint32, optional, tag = "2")]
    pub stdin: Option<Slot>,
    /// Gets what the container writes to stdout, or to its terminal.
    #[prost(uint32, optional, tag = "3")]
    pub stdout: Option<Slot>,
    /// Gets what the container writes to stderr.
    #[prost(uint32, optional, tag = "4")]
    pub stderr: Option<Slot>,
    /// Never drop output: the container waits for a slow reader. Otherwise output that a reader does not take in time is
    /// missing from its copy, and neither container nor log wait.
    #[prost(bool, tag = "5")]
    pub lossless: bool,
    /// Chosen by the daemon, unique on a connection; 0 for one whose end need not be told ([`Reply::Detached`]).
    #[prost(uint64, tag = "6")]
    pub attach_id: u64,
}

/// TCP sockets, not connected. A socket stays in the network namespace in which it was made, so that the daemon can reach
/// the pod's loopback interface without entering the namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WantedSockets {}

/// End of the pod.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Shutdown {
    /// Leave what runs or is held at a socket of its own to whoever reaps the monitor's orphans.
    #[prost(bool, tag = "1")]
    pub leave: bool,
}

/// Descriptors ahead of a request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attachments {}

/// A request whose encoding is in a memfd.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Large {
    /// Length of the encoded [`ToMonitor`].
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
}

/// Monitor to daemon.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromMonitor {
    /// Id of the request that this answers; 0 for an event.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What happened.
    #[prost(oneof = "Reply", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub reply: Option<Reply>,
}

/// Replies and events.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Reply {
    /// Everything the monitor knows.
    #[prost(message, tag = "2")]
    State(State),
    /// The pod is set up.
    #[prost(message, tag = "3")]
    Ready(Ready),
    /// The program runs (or is held).
    #[prost(message, tag = "4")]
    Launched(Launched),
    /// Done.
    #[prost(message, tag = "5")]
    Done(Done),
    /// Not done.
    #[prost(message, tag = "6")]
    Failed(Failure),
    /// Event: a container or exec session ended.
    #[prost(message, tag = "7")]
    Exited(Exited),
    /// The sockets that were asked for; their descriptors come beside the packet.
    #[prost(message, tag = "8")]
    Sockets(Sockets),
    /// Event, to the connection that attached: all streams of an attachment are over.
    #[prost(message, tag = "9")]
    Detached(Detached),
    /// The container's namespaces, root file system and mounts are there, and nothing of it has run.
    #[prost(message, tag = "10")]
    Paused(Launched),
}

/// The monitor's memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// [`VERSION`] of the monitor.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Whether `Setup` was done.
    #[prost(bool, tag = "2")]
    pub ready: bool,
    /// Containers launched and not forgotten.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerState>,
    /// Exec sessions whose first process has not ended.
    #[prost(message, repeated, tag = "4")]
    pub sessions: Vec<SessionRef>,
}

/// Names an exec session.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SessionRef {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Exec session.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// A container as the monitor sees it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerState {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// PID in the monitor's PID namespace; 0 once it ended.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// Held before execve.
    #[prost(bool, tag = "3")]
    pub held: bool,
    /// When execve succeeded, `CLOCK_REALTIME` ns.
    #[prost(int64, tag = "4")]
    pub started_at_ns: i64,
    /// How it ended.
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exited>,
    /// Bytes of output that the log could not take (disk full, file gone) since the launch.
    #[prost(uint64, tag = "6")]
    pub log_dropped_bytes: u64,
}

/// Answer to `Setup`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ready {
    /// The monitor's PID.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// PID of the pod's init, 0 without one.
    #[prost(int32, tag = "2")]
    pub init_pid: i32,
}

/// Answer to `Launch` and `Exec`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Launched {
    /// PID in the monitor's PID namespace.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// `CLOCK_REALTIME` ns of the successful execve; 0 when held.
    #[prost(int64, tag = "2")]
    pub started_at_ns: i64,
}

/// Answer to `Sockets`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sockets {
    /// Slot of the IPv4 socket.
    #[prost(uint32, optional, tag = "1")]
    pub ipv4: Option<Slot>,
    /// Slot of the IPv6 socket; none where the kernel has no IPv6.
    #[prost(uint32, optional, tag = "2")]
    pub ipv6: Option<Slot>,
}

/// The end of an attachment.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Detached {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub attach_id: u64,
    /// Bytes of output that are missing from its copies, because they were not read in time.
    #[prost(uint64, tag = "2")]
    pub lost_bytes: u64,
}

/// Success without data.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {}

/// What failed, where, and why.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    /// Step, e.g. `mount`, `pivot_root`, `user`, `exec`, `cgroup`, `protocol`, `container` (unknown id), `state`.
    #[prost(string, tag = "1")]
    pub stage: String,
    /// System call, e.g. `move_mount`; empty when none was involved.
    #[prost(string, tag = "2")]
    pub syscall: String,
    /// `errno`, 0 when none.
    #[prost(int32, tag = "3")]
    pub errno: i32,
    /// Path or id concerned.
    #[prost(bytes = "vec", tag = "4")]
    pub path: Vec<u8>,
    /// More, in words.
    #[prost(string, tag = "5")]
    pub message: String,
}

/// The end of a process; also what the exit record on disk holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exited {
    /// Container id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Exec session; empty for the container itself.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Exit status; 128 + n for signal n.
    #[prost(int32, tag = "3")]
    pub code: i32,
    /// Signal that ended it, 0 for none.
    #[prost(int32, tag = "4")]
    pub signal: i32,
    /// The OOM killer ended it: it died of SIGKILL and the cgroup's count of OOM kills grew.
    #[prost(bool, tag = "5")]
    pub oom_killed: bool,
    /// When, `CLOCK_REALTIME` ns.
    #[prost(int64, tag = "6")]
    pub finished_at_ns: i64,
    /// When it had started, `CLOCK_REALTIME` ns.
    #[prost(int64, tag = "7")]
    pub started_at_ns: i64,
}
