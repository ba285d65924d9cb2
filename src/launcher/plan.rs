//! The launch plan: everything init does, decided beforehand.
//!
//! The daemon lowers an OCI runtime spec to a [`LaunchPlan`]; the monitor's child executes it step by step. Nothing in it is
//! looked up again: paths that the host provides travel as file descriptors (a *slot* is the index of a descriptor among
//! those sent with the request), paths inside the container are resolved after `pivot_root(2)`, where no host file exists.
//!
//! The encoding is Protocol Buffers: an older monitor skips fields that it does not know. Field numbers are never reused.

/// Index of a file descriptor among those sent with a request.
pub type Slot = u32;

/// A container from clone to execve.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LaunchPlan {
    /// Namespaces to create or join, beyond those of the pod in which the monitor lives.
    #[prost(message, optional, tag = "1")]
    pub namespaces: Option<Namespaces>,
    /// Slot of the detached root file system mount.
    #[prost(uint32, tag = "2")]
    pub rootfs: Slot,
    /// Remount the root read-only after every mount point exists.
    #[prost(bool, tag = "3")]
    pub rootfs_read_only: bool,
    /// In order; every target is resolved inside the new root.
    #[prost(message, repeated, tag = "4")]
    pub mounts: Vec<Mount>,
    /// Device nodes to make, below a `/dev` that a mount of this plan supplied.
    #[prost(message, repeated, tag = "5")]
    pub devices: Vec<Device>,
    /// Symbolic links such as `/dev/fd`.
    #[prost(message, repeated, tag = "6")]
    pub links: Vec<Link>,
    /// Files hidden by our `/dev/null`, directories by one read-only empty tmpfs; absent ones are skipped.
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub masked_paths: Vec<Vec<u8>>,
    /// Remounted read-only, recursively; absent ones are skipped.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub read_only_paths: Vec<Vec<u8>>,
    /// Who runs what.
    #[prost(message, optional, tag = "9")]
    pub process: Option<Process>,
    /// How the child joins its cgroup.
    #[prost(message, optional, tag = "10")]
    pub cgroup: Option<CgroupJoin>,
    /// Where its output goes.
    #[prost(message, optional, tag = "11")]
    pub stdio: Option<Stdio>,
    /// Written through a private procfs before the root changes: key in dotted form, value.
    #[prost(message, repeated, tag = "12")]
    pub sysctls: Vec<Sysctl>,
    /// Wait before execve until a `Start` request comes (OCI create/start); otherwise run at once.
    #[prost(bool, tag = "13")]
    pub hold: bool,
    /// Propagation of the root mount as `MS_SLAVE`, `MS_SHARED` or `MS_PRIVATE`; 0 means private.
    #[prost(uint64, tag = "14")]
    pub rootfs_propagation: u64,
    /// Slot of a listening `SOCK_SEQPACKET` socket on which a held init waits for its start instead of at the monitor, which
    /// may then end: whoever connects lets it go on, and is told a [`Failure`](crate::protocol::Failure) or, by the end of
    /// the stream, that execve succeeded.
    #[prost(uint32, optional, tag = "15")]
    pub start_socket: Option<Slot>,
    /// Programs of others to be run on the way.
    #[prost(message, optional, tag = "16")]
    pub hooks: Option<Hooks>,
    /// Another OCI runtime does it all; then only this, the stdio, the OOM counter and whether there is a terminal count.
    #[prost(message, optional, tag = "17")]
    pub external: Option<External>,
}

/// Commands of another OCI runtime that make a process, which is adopted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct External {
    /// One after the other; the first leaves the process behind, each must end with status 0.
    #[prost(message, repeated, tag = "1")]
    pub commands: Vec<ExternalCommand>,
    /// Slot of the directory of the two names below.
    #[prost(uint32, tag = "2")]
    pub directory: Slot,
    /// File that the first command writes the process's number to.
    #[prost(string, tag = "3")]
    pub pid_file: String,
    /// Unix socket to make there for the terminal's master, if there is a terminal.
    #[prost(string, tag = "4")]
    pub console: String,
    /// Namespaces of the host to run the commands in.
    #[prost(message, repeated, tag = "5")]
    pub namespaces: Vec<NamespaceJoin>,
    /// Mounts that the first command finds, in a copy of the host's mounts of its own.
    #[prost(message, repeated, tag = "6")]
    pub mounts: Vec<ExternalMount>,
    /// Path of `directory`, absolute: where the commands run. A path to the socket may be longer than `sun_path`.
    #[prost(bytes = "vec", tag = "7")]
    pub path: Vec<u8>,
}

/// A command to execute.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExternalCommand {
    /// `argv`; the first is the absolute path of the program.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// `KEY=value`, complete.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
}

/// A detached mount at a path of the host.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExternalMount {
    /// Its slot; none is the pod's `/dev/shm`.
    #[prost(uint32, optional, tag = "1")]
    pub tree: Option<Slot>,
    /// Where, absolute.
    #[prost(bytes = "vec", tag = "2")]
    pub path: Vec<u8>,
}

/// OCI hooks that need the container's namespaces, and the pause for those that do not.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hooks {
    /// Where the root file system and its mounts are to be found in the container's mount namespace, beside the mounts of the
    /// host, until the root changes; none when no hook runs before that.
    #[prost(message, optional, tag = "1")]
    pub stage: Option<HookStage>,
    /// `createContainer`: before the root changes; their paths are the host's.
    #[prost(message, repeated, tag = "2")]
    pub create_container: Vec<Hook>,
    /// `startContainer`: after the start, as the user; their paths are the container's.
    #[prost(message, repeated, tag = "3")]
    pub start_container: Vec<Hook>,
    /// The container's state in JSON up to the number of its process.
    #[prost(bytes = "vec", tag = "4")]
    pub state_head: Vec<u8>,
    /// What follows the number.
    #[prost(bytes = "vec", tag = "5")]
    pub state_tail: Vec<u8>,
}

/// A copy of the host's mounts for hooks to run in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HookStage {
    /// Slot of the host's mount namespace.
    #[prost(uint32, tag = "1")]
    pub host_mounts: Slot,
    /// The host's directory on which the root file system is mounted in the copy.
    #[prost(bytes = "vec", tag = "2")]
    pub rootfs: Vec<u8>,
}

/// A program to be run, with the container's state on its stdin.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hook {
    /// Absolute.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// `argv`, with the name first; empty means the path alone.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub args: Vec<Vec<u8>>,
    /// `KEY=value`, complete.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub env: Vec<Vec<u8>>,
    /// After that long it is killed, which is a failure; 0 means never.
    #[prost(uint64, tag = "4")]
    pub timeout_ms: u64,
}

/// Namespaces of one container. Network, IPC and UTS of the pod are inherited from the monitor unless said otherwise here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespaces {
    /// `CLONE_NEW*` flags for a fresh namespace (the mount namespace is always fresh).
    #[prost(uint64, tag = "1")]
    pub create: u64,
    /// Namespace descriptors to `setns(2)` into before the clone.
    #[prost(message, repeated, tag = "2")]
    pub join: Vec<NamespaceJoin>,
    /// Join the PID namespace of the pod's own init (pod shares its PID namespace).
    #[prost(bool, tag = "3")]
    pub pod_pid: bool,
    /// Join the PID namespace of that container of this pod (CRI `TARGET`); empty for none.
    #[prost(string, tag = "4")]
    pub target_container: String,
    /// Stay in the host's PID namespace.
    #[prost(bool, tag = "5")]
    pub host_pid: bool,
    /// Be born in the pod's user namespace, which then owns everything fresh.
    #[prost(bool, tag = "6")]
    pub pod_user: bool,
}

/// One `setns(2)`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespaceJoin {
    /// One `CLONE_NEW*` flag.
    #[prost(uint64, tag = "1")]
    pub kind: u64,
    /// Descriptor of the namespace file.
    #[prost(uint32, tag = "2")]
    pub slot: Slot,
}

/// One mount inside the container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Absolute path in the container.
    #[prost(bytes = "vec", tag = "1")]
    pub target: Vec<u8>,
    /// What is mounted.
    #[prost(oneof = "MountSource", tags = "2, 3, 4")]
    pub source: Option<MountSource>,
    /// `MOUNT_ATTR_*` to set (nosuid, nodev, noexec, rdonly, ...).
    #[prost(uint64, tag = "5")]
    pub attributes: u64,
    /// Apply the attributes to the whole tree (recursive read-only).
    #[prost(bool, tag = "6")]
    pub recursive: bool,
    /// `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED`, recursively; 0 leaves it as it is.
    #[prost(uint64, tag = "7")]
    pub propagation: u64,
    /// Refuse symbolic links in the target's path and anything but a real directory (`/proc`, `/sys`; rule R4).
    #[prost(bool, tag = "8")]
    pub no_symlinks: bool,
    /// Failure with `ENOENT`, `EPERM` or `ENODEV` is not an error (e.g. mqueue on kernels without it).
    #[prost(bool, tag = "9")]
    pub optional: bool,
    /// Fill the (tmpfs) mount with what the image has at the target (OCI `tmpcopyup`).
    #[prost(bool, tag = "10")]
    pub copy_up: bool,
    /// Mount this file or directory of the source instead of its root; links in it do not lead out of the source.
    #[prost(bytes = "vec", tag = "11")]
    pub sub_path: Vec<u8>,
}

/// Where a mount comes from.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum MountSource {
    /// Slot of a detached mount tree (`open_tree(OPEN_TREE_CLONE)` or `fsmount(2)`), file or directory.
    #[prost(uint32, tag = "2")]
    Tree(Slot),
    /// A new file system instance, made inside the container's namespaces.
    #[prost(message, tag = "3")]
    New(NewFilesystem),
    /// The pod's `/dev/shm`, which the monitor holds.
    #[prost(bool, tag = "4")]
    PodShm(bool),
}

/// `fsopen(2)` of a type with options.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NewFilesystem {
    /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup`, `cgroup2`.
    #[prost(string, tag = "1")]
    pub fstype: String,
    /// `key=value` or a bare flag, one each.
    #[prost(string, repeated, tag = "2")]
    pub options: Vec<String>,
}

/// A device node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Device {
    /// Absolute path in the container.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// `S_IFCHR`, `S_IFBLK` or `S_IFIFO`, with permission bits.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Device number, major.
    #[prost(uint32, tag = "3")]
    pub major: u32,
    /// Device number, minor.
    #[prost(uint32, tag = "4")]
    pub minor: u32,
    /// Owner.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    /// Slot of a detached mount of the same node, bound where making nodes is not permitted.
    #[prost(uint32, optional, tag = "7")]
    pub fallback: Option<Slot>,
}

/// A symbolic link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Link {
    /// Absolute path in the container.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// What the link says.
    #[prost(bytes = "vec", tag = "2")]
    pub target: Vec<u8>,
}

/// A sysctl of a namespace that the pod or container owns.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sysctl {
    /// Dotted key, e.g. `net.ipv4.ip_forward`.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Written in one `write(2)`.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Identity and surroundings of the user's program.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Process {
    /// `argv`; the first is looked up in the container's `PATH` unless it has a slash.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    /// `KEY=value`, complete.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Absolute; made with mode 0755 when it does not exist.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// User id.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group id.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Supplementary groups, complete (the primary group included; rule R9).
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// `umask(2)`; 0o022 unless told otherwise.
    #[prost(uint32, optional, tag = "7")]
    pub umask: Option<u32>,
    /// The five capability sets.
    #[prost(message, optional, tag = "8")]
    pub capabilities: Option<Capabilities>,
    /// `PR_SET_NO_NEW_PRIVS`.
    #[prost(bool, tag = "9")]
    pub no_new_privileges: bool,
    /// A ready classic BPF program (8 bytes an instruction, native order); empty for none.
    #[prost(bytes = "vec", tag = "10")]
    pub seccomp: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    #[prost(uint32, tag = "11")]
    pub seccomp_flags: u32,
    /// AppArmor profile for exec; empty for none.
    #[prost(string, tag = "12")]
    pub apparmor: String,
    /// SELinux label for exec; empty for none.
    #[prost(string, tag = "13")]
    pub selinux: String,
    /// Resource limits.
    #[prost(message, repeated, tag = "14")]
    pub rlimits: Vec<Rlimit>,
    /// Written to `/proc/self/oom_score_adj` when given.
    #[prost(int32, optional, tag = "15")]
    pub oom_score_adj: Option<i32>,
    /// Give the program a pseudo terminal from the container's own devpts.
    #[prost(bool, tag = "16")]
    pub terminal: bool,
    /// Terminal rows; 0 leaves the kernel's default.
    #[prost(uint32, tag = "17")]
    pub rows: u32,
    /// Terminal columns; 0 leaves the kernel's default.
    #[prost(uint32, tag = "18")]
    pub columns: u32,
}

/// Capability sets as bit masks (bit n is capability n).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Capabilities {
    /// Upper bound for execve.
    #[prost(uint64, tag = "1")]
    pub bounding: u64,
    /// In force.
    #[prost(uint64, tag = "2")]
    pub effective: u64,
    /// May be raised.
    #[prost(uint64, tag = "3")]
    pub permitted: u64,
    /// Empty unless asked for (CVE-2022-24769 class).
    #[prost(uint64, tag = "4")]
    pub inheritable: u64,
    /// Kept over execve by a non-root user.
    #[prost(uint64, tag = "5")]
    pub ambient: u64,
}

/// One `setrlimit(2)`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// Soft limit; `u64::MAX` is infinity.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Hard limit.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// How a child gets into its cgroup without the global lock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CgroupJoin {
    /// v1: slots of `tasks` files; the single-threaded child writes `0` to each.
    #[prost(uint32, repeated, tag = "1")]
    pub tasks: Vec<Slot>,
    /// v2: slot of the directory for `CLONE_INTO_CGROUP`.
    #[prost(uint32, optional, tag = "2")]
    pub directory: Option<Slot>,
    /// Slot of `memory.events` or `memory.oom_control`, read at start and at exit for the number of OOM kills.
    #[prost(uint32, optional, tag = "3")]
    pub oom_counter: Option<Slot>,
    /// Slot of the same file of the group above, which is looked at when the cgroup is gone before it could be read:
    /// systemd removes the cgroup of a scope at once.
    #[prost(uint32, optional, tag = "4")]
    pub group_oom_counter: Option<Slot>,
}

/// What the program's descriptors 0, 1, 2 are.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Stdio {
    /// Slot of the directory that holds the CRI log; none means output is discarded unless attached.
    #[prost(uint32, optional, tag = "1")]
    pub log_directory: Option<Slot>,
    /// Path of the log file below that directory; no `..`, not absolute.
    #[prost(bytes = "vec", tag = "2")]
    pub log_path: Vec<u8>,
    /// Keep a stdin open for attach; otherwise `/dev/null`.
    #[prost(bool, tag = "3")]
    pub stdin: bool,
    /// Close stdin after the first attach session that used it.
    #[prost(bool, tag = "4")]
    pub stdin_once: bool,
    /// For exec sessions: slots handed straight to the program instead of the monitor's pipes.
    #[prost(uint32, optional, tag = "5")]
    pub stdin_slot: Option<Slot>,
    /// As above, for output.
    #[prost(uint32, optional, tag = "6")]
    pub stdout_slot: Option<Slot>,
    /// As above, for errors.
    #[prost(uint32, optional, tag = "7")]
    pub stderr_slot: Option<Slot>,
    /// Longest line of the CRI log before it is split; 0 means 16 KiB.
    #[prost(uint32, tag = "8")]
    pub max_line_bytes: u32,
    /// A CRI log that would grow beyond this begins anew, as an empty file of that name; 0 means no limit.
    #[prost(uint64, tag = "9")]
    pub max_log_bytes: u64,
    /// Slot of a connected stream socket that gets the terminal's master beside the name of its other end; the monitor then
    /// has nothing to do with the terminal.
    #[prost(uint32, optional, tag = "10")]
    pub console_slot: Option<Slot>,
    /// Slots that the program finds at descriptor 3 and above, in this order.
    #[prost(uint32, repeated, tag = "11")]
    pub inherited: Vec<Slot>,
}
