//! What is known of a container of the command line, in memory and on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use pinnace_network::{PortMapping, Protocol};
use pinnace_store::DiffId;
use serde::{Deserialize, Serialize};

use crate::container::record::Resources;
use crate::error::Error;
use crate::id::ContainerId;

/// Version of [`Record`].
pub const VERSION: u32 = 1;

/// What a container was asked to be, validated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The image, as it was named.
    pub image: String,
    /// In place of the image's command.
    pub command: Vec<String>,
    /// In place of the image's entry point, and clears its command.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=value`, over the image's.
    pub env: Vec<String>,
    /// As given.
    pub labels: BTreeMap<String, String>,
    /// Host name; empty is the beginning of the id.
    pub hostname: String,
    /// `user[:group]` in place of the image's.
    pub user: String,
    /// Working directory in place of the image's.
    pub working_dir: String,
    /// Give it a terminal.
    pub terminal: bool,
    /// Keep its standard input open.
    pub stdin: bool,
    /// Close it when the first who joins goes away.
    pub stdin_once: bool,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// What is published; host port 0 is one of our choice.
    pub ports: Vec<Port>,
    /// Publish what the image exposes.
    pub publish_all: bool,
    /// Which network.
    pub network: NetworkMode,
    /// Names and addresses for `/etc/hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// Name servers in place of the host's.
    pub dns_servers: Vec<String>,
    /// Search domains.
    pub dns_searches: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Read-only root.
    pub read_only: bool,
    /// Capabilities to add.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// Seccomp, AppArmor, SELinux.
    pub security: SecurityOptions,
    /// Everything that the host has.
    pub privileged: bool,
    /// Devices of the host: path there, path here, access.
    pub devices: Vec<(String, String, String)>,
    /// Limits of its processes: name, soft, hard; `u64::MAX` is unlimited.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Sysctls of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Size of `/dev/shm`; 0 is the daemon's default.
    pub shm_bytes: u64,
    /// When it is started again.
    pub restart: Restart,
    /// Remove it when it has ended.
    pub auto_remove: bool,
    /// Run it below an init.
    pub init: bool,
    /// In place of the image's; empty is the image's.
    pub stop_signal: String,
    /// Seconds; negative is for ever, `None` is docker's ten.
    pub stop_timeout_s: Option<i64>,
    /// CPU, memory.
    pub resources: Resources,
    /// Most processes; 0 and below is unlimited.
    pub pids: i64,
    /// What says whether it is well; `None` is the image's.
    pub health: Option<HealthCheck>,
    /// The host's PID namespace.
    pub host_pid: bool,
    /// The host's IPC namespace.
    pub host_ipc: bool,
    /// Added to the groups of the user.
    pub groups: Vec<u32>,
    /// oom_score_adj.
    pub oom_score_adj: i64,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Path, name of a volume, or image.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Writable or not.
    pub read_only: bool,
    /// `rprivate`, `rslave`, `rshared`; empty is the first.
    pub propagation: String,
    /// Make a source that is missing.
    pub make_source: bool,
    /// Leave a new volume empty.
    pub no_copy: bool,
    /// Of a tmpfs.
    pub options: Vec<String>,
    /// Below the image.
    pub sub_path: String,
}

/// What can be mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the host.
    Bind,
    /// A named directory of ours.
    Volume,
    /// Memory.
    Tmpfs,
    /// The content of an image.
    Image,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// TCP, UDP, SCTP.
    pub protocol: Protocol,
    /// In the container.
    pub container_port: u16,
    /// Of the host; 0 is one of our choice.
    pub host_port: u16,
    /// The only address where it counts.
    pub host_address: Option<IpAddr>,
}

impl From<&Port> for PortMapping {
    fn from(port: &Port) -> Self {
        Self {
            protocol: port.protocol,
            container_port: port.container_port,
            host_port: port.host_port,
            host_ip: port.host_address,
        }
    }
}

/// Which network a container is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// That of the node's pods.
    #[default]
    Bridge,
    /// The host's.
    Host,
    /// One of its own with nothing but loopback.
    None,
}

impl NetworkMode {
    /// As docker writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
        }
    }
}

/// Further restrictions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityOptions {
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// `unconfined`, a file, or empty for the default.
    pub seccomp: String,
    /// `unconfined`, a profile, or empty for the default.
    pub apparmor: String,
    /// Nothing is masked.
    pub unmask: bool,
    /// As they were given, for showing.
    pub given: Vec<String>,
}

/// When a container that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its code is not 0, so many times; 0 is without end.
    OnFailure(u32),
    /// Always, and with the daemon even if it was stopped by hand.
    Always,
    /// Always, unless it was stopped by hand.
    UnlessStopped,
}

impl Restart {
    /// As docker writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// Whether a container is started again that ended with `code` after `count` such starts.
    pub fn again(self, code: i32, count: u32, stopped_by_hand: bool) -> bool {
        match self {
            _ if stopped_by_hand => false,
            Self::No => false,
            Self::OnFailure(most) => code != 0 && (most == 0 || count < most),
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

/// What says whether a container is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `CMD` and arguments, `CMD-SHELL` and a line, or `NONE`; empty takes the image's.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: Duration,
    /// For one.
    pub timeout: Duration,
    /// Failures do not count in it.
    pub start_period: Duration,
    /// Between two checks within it.
    pub start_interval: Duration,
    /// So many in a row are bad.
    pub retries: u32,
}

/// Where a container stands.
///
/// ```text
/// create ─► Created ─► Running ─► Exited ─► (removed)
///              ▲  ▲      ▲  │        │
///   a failed ──┘  └──────┼──┼─ start ┘
///   start                │  ▼
///                     Restarting     while the restart policy waits
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Has never run. The error is that of a start.
    Created {
        /// 0, or what a failed start counts as: 125, 126, 127.
        code: i32,
        /// Why the last start failed; empty without one.
        error: String,
    },
    /// Its program runs.
    Running {
        /// PID in the daemon's PID namespace.
        pid: i32,
        /// `CLOCK_REALTIME` ns.
        started_at_ns: i64,
        /// Frozen.
        paused: bool,
    },
    /// Has ended and will be started again.
    Restarting(Ended),
    /// Has ended.
    Exited(Ended),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit status; 128 + n for signal n.
    pub code: i32,
    /// `CLOCK_REALTIME` ns.
    pub started_at_ns: i64,
    /// `CLOCK_REALTIME` ns.
    pub finished_at_ns: i64,
    /// By the kernel, for its memory.
    pub oom_killed: bool,
    /// More, in words.
    pub error: String,
}

impl State {
    /// As docker writes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Running { paused: true, .. } => "paused",
            Self::Running { .. } => "running",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
        }
    }

    /// Has a process.
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Has a process, or will have one again.
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Restarting(_))
    }

    /// What waiting for it answers.
    pub fn code(&self) -> i32 {
        match self {
            Self::Created { code, .. } => *code,
            Self::Running { .. } => 0,
            Self::Restarting(ended) | Self::Exited(ended) => ended.code,
        }
    }
}

/// The record on disk. It survives a reboot, and so it is flushed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this record.
    pub version: u32,
    /// Its id, which is also that of its snapshot.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// `CLOCK_REALTIME` ns.
    pub created_at_ns: i64,
    /// What it was asked to be.
    pub settings: Settings,
    /// Id of its image.
    pub image_id: String,
    /// Configuration of its image, which may be gone from the store by its names; its layers are not.
    pub image_config: serde_json::Value,
    /// Layers from the base up.
    pub layers: Vec<DiffId>,
    /// Volumes by where they are mounted: of the image, and such without a name.
    pub volumes: BTreeMap<String, String>,
    /// Where it stands.
    pub state: State,
    /// Starts by the restart policy since it was last started by hand.
    pub restarts: u32,
    /// Stopped by hand since it was last started.
    pub stopped_by_hand: bool,
    /// Published ports, as they are while it runs.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// Writes a record so that it is there after a power cut: flushed, renamed, and the directory flushed.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|source| crate::record::Error::Json { path: path.to_owned(), source })?;
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(Error::io("create", &temporary))?;
    file.write_all(&bytes).map_err(Error::io("write", &temporary))?;
    file.sync_data().map_err(Error::io("flush", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename to", path))?;
    if let Some(parent) = path.parent() {
        let directory = fs::File::open(parent).map_err(Error::io("open", parent))?;
        directory.sync_all().map_err(Error::io("flush", parent))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_say_when_to_start_again() {
        assert!(!Restart::No.again(1, 0, false));
        assert!(Restart::OnFailure(2).again(1, 1, false));
        assert!(!Restart::OnFailure(2).again(1, 2, false));
        assert!(!Restart::OnFailure(0).again(0, 0, false));
        assert!(Restart::OnFailure(0).again(1, 99, false));
        assert!(Restart::Always.again(0, 5, false));
        assert!(!Restart::Always.again(0, 5, true));
        assert!(!Restart::UnlessStopped.again(0, 5, true));
    }
}
