//! What is known of a container, in memory and on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, SandboxId};
use crate::owner_map::OwnerMap;

/// The key by which the kubelet knows a container within its sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerName {
    /// Container name.
    pub name: String,
    /// Attempt to make this container.
    pub attempt: u32,
}

/// A mount as the CRI shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountView {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host.
    pub host_path: String,
    /// Read-only.
    pub read_only: bool,
    /// Read-only with all submounts.
    pub recursive_read_only: bool,
    /// Relabelled for SELinux.
    pub selinux_relabel: bool,
    /// Propagation, as the CRI's number.
    pub propagation: i32,
    /// The image that is mounted instead of a path of the host.
    #[serde(default)]
    pub image: Option<ImageView>,
    /// File or directory in that image; empty is all of it.
    #[serde(default)]
    pub image_sub_path: String,
    /// Owners are shown as mapped.
    #[serde(default)]
    pub owners: Option<OwnerMap>,
    /// Further flags of the mount, as given.
    #[serde(default)]
    pub options: Vec<String>,
}

/// The image that a container was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Image id.
    pub id: String,
    /// A tag, else what was asked for.
    pub name: String,
    /// What the user's pod spec said.
    pub user_specified: String,
    /// Repo digest, else the id.
    pub reference: String,
}

/// Resolved identity of the first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Limits as last applied, in the CRI's units (quota and period in µs, memory in bytes); 0 or empty is unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CFS period, µs.
    pub cpu_period_us: i64,
    /// CFS quota, µs; negative is unlimited.
    pub cpu_quota_us: i64,
    /// Relative weight.
    pub cpu_shares: i64,
    /// Memory limit.
    pub memory_limit_bytes: i64,
    /// `/proc/<pid>/oom_score_adj`.
    pub oom_score_adj: i64,
    /// CPUs in list form.
    pub cpuset_cpus: String,
    /// Memory nodes in list form.
    pub cpuset_mems: String,
    /// Limits per huge page size, e.g. `2MB`.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Raw cgroup v2 keys.
    pub unified: BTreeMap<String, String>,
    /// Memory plus swap.
    pub memory_swap_limit_bytes: i64,
}

/// The record on disk, replaced at each change of [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Version of this record.
    pub version: u32,
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// The key.
    pub name: ContainerName,
    /// `CLOCK_REALTIME` ns of the request.
    pub created_at_ns: i64,
    /// Its image.
    pub image: ImageView,
    /// Layers from the base up.
    pub layers: Vec<pinnace_store::DiffId>,
    /// Returned as given.
    pub labels: BTreeMap<String, String>,
    /// Returned as given; never control (rule R8).
    pub annotations: BTreeMap<String, String>,
    /// As the CRI shows them.
    pub mounts: Vec<MountView>,
    /// Absolute path of the log; empty means none.
    pub log_path: String,
    /// Directory that the sandbox was given for logs.
    pub log_directory: String,
    /// Path of the log below it.
    pub log_name: String,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach.
    pub stdin_once: bool,
    /// `KEY=value` entries of its environment that are not UTF-8, which the spec's JSON cannot hold.
    pub binary_env: Vec<Vec<u8>>,
    /// Signal that asks it to end.
    pub stop_signal: i32,
    /// Resolved identity.
    pub user: UserView,
    /// Limits as last applied.
    pub resources: Resources,
    /// Cgroup, below the sandbox's parent.
    pub cgroup_path: String,
    /// Its PID namespace is not the container's own: ending its first process does not end the others.
    pub shared_pid: bool,
    /// Everything that the host has, devices included.
    pub privileged: bool,
    /// Container of the pod whose PID namespace it joins; empty for none.
    pub target: String,
    /// SELinux label of its files; none where the kernel runs without it.
    #[serde(default)]
    pub file_label: Option<String>,
    /// Where it stands.
    pub status: Status,
}

/// Life of a container.
///
/// ```text
/// CreateContainer ─► Created ─► Running ─► Exited ─► (removed)
///                       └── start failed ────▲
/// ```
/// `Starting` is on disk only while StartContainer is under way, so that a daemon that died in it knows what to look for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Has a rootfs and a spec, no process.
    Created,
    /// StartContainer is at work.
    Starting,
    /// Its program runs.
    Running {
        /// PID in the daemon's PID namespace.
        pid: i32,
        /// `CLOCK_REALTIME` ns.
        started_at_ns: i64,
    },
    /// It ended, or never started.
    Exited(Exit),
}

/// How the kernel ends what a seccomp profile does not let live.
const SIGSYS: i32 = 31;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status; 128 + n for signal n; 128 when it could not be started; 255 when nobody saw it.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `seccomp killed` (CRI-O's word), `StartError`, `Unknown`.
    pub reason: String,
    /// More, in words.
    pub message: String,
    /// `CLOCK_REALTIME` ns; 0 when it never ran.
    pub started_at_ns: i64,
    /// `CLOCK_REALTIME` ns.
    pub finished_at_ns: i64,
}

impl Exit {
    /// From what the monitor saw.
    pub fn observed(exited: &pinnace_launcher::protocol::Exited) -> Self {
        let reason = match exited {
            seen if seen.oom_killed => "OOMKilled",
            seen if seen.signal == SIGSYS => "seccomp killed",
            seen if seen.code == 0 => "Completed",
            _ => "Error",
        };
        Self {
            code: exited.code,
            reason: reason.to_owned(),
            message: String::new(),
            started_at_ns: exited.started_at_ns,
            finished_at_ns: exited.finished_at_ns,
        }
    }

    /// Nobody saw how it ended: its monitor is gone and left no record.
    pub fn unknown(started_at_ns: i64, finished_at_ns: i64) -> Self {
        Self {
            code: 255,
            reason: "Unknown".to_owned(),
            message: "the monitor ended without a record of the exit".to_owned(),
            started_at_ns,
            finished_at_ns,
        }
    }

    /// It could not be started.
    pub fn start_error(message: String, finished_at_ns: i64) -> Self {
        Self { code: 128, reason: "StartError".to_owned(), message, started_at_ns: 0, finished_at_ns }
    }
}
