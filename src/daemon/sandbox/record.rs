//! What is known of a pod sandbox, in memory and on disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::container::record::Resources;
use crate::id::SandboxId;
use crate::owner_map::OwnerMap;
use crate::selinux;

/// The key by which the kubelet knows a sandbox; two live sandboxes never share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SandboxName {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// Attempt to make this sandbox.
    pub attempt: u32,
}

impl std::fmt::Display for SandboxName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// Whose namespace a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the pod.
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod.
    Target,
}

/// The pod's namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// `Pod` or `Node`.
    pub network: NamespaceMode,
    /// `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Default for the pod's containers.
    pub pid: NamespaceMode,
}

/// Contents of `/etc/resolv.conf`; `None` in [`SandboxConfig::dns`] means the host's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// What was asked for, validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The key.
    pub name: SandboxName,
    /// UTS host name; empty with the host's network.
    pub hostname: String,
    /// Directory of the pod's logs; empty means that containers without one are not logged.
    pub log_directory: String,
    /// Resolver configuration.
    pub dns: Option<Dns>,
    /// Host ports.
    pub port_mappings: Vec<pinnace_network::PortMapping>,
    /// Returned as given.
    pub labels: BTreeMap<String, String>,
    /// Returned as given; never control (rule R8).
    pub annotations: BTreeMap<String, String>,
    /// Cgroup below which the containers' lie; `None` means one of our own.
    pub cgroup_parent: Option<String>,
    /// Sysctls of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// The pod's user namespace; `None` is the host's.
    #[serde(default)]
    pub user_namespace: Option<OwnerMap>,
    /// Whether privileged containers may live here.
    pub privileged: bool,
    /// Parts of an SELinux label.
    #[serde(default)]
    pub selinux: selinux::Options,
    /// RuntimeClass handler; empty is the default.
    pub runtime_handler: String,
    /// What the pod takes besides its containers, as the kubelet said last. It is the kubelet that limits the pod's cgroup.
    #[serde(default)]
    pub overhead: Option<Resources>,
    /// The pod's size as the kubelet said last; likewise.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// Of a container of the command line, which the CRI does not show; `None` is a pod of the CRI.
    #[serde(default)]
    pub local: Option<LocalPod>,
}

/// What the pod of a container of the command line has that one of the CRI has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPod {
    /// A network namespace with nothing but loopback.
    pub isolated: bool,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
}

/// A sandbox's network, as attached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SandboxNetwork {
    /// The host's.
    Host,
    /// Attached to the built-in network.
    Attached(pinnace_network::Attachment),
    /// Attached by the plugins of a CNI configuration.
    Cni(crate::network::CniAttachment),
    /// Not attached: either not yet, or no more.
    Detached,
}

impl SandboxNetwork {
    /// Its addresses, the primary one first.
    pub fn addresses(&self) -> Vec<std::net::IpAddr> {
        match self {
            Self::Attached(attachment) => {
                attachment.addresses.iter().map(|address| address.cidr.address()).collect()
            }
            Self::Cni(attachment) => attachment.ips().collect(),
            Self::Host | Self::Detached => Vec::new(),
        }
    }

    /// Where packets to everywhere else go, as far as it is known.
    pub fn gateways(&self) -> Vec<std::net::IpAddr> {
        match self {
            Self::Attached(attachment) => {
                attachment.addresses.iter().map(|address| address.gateway).collect()
            }
            Self::Cni(attachment) => {
                attachment.addresses.iter().filter_map(|address| address.gateway).collect()
            }
            Self::Host | Self::Detached => Vec::new(),
        }
    }
}

/// The record on disk. `ready` false with everything undone is a stopped sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Version of this record.
    pub version: u32,
    /// Its id.
    pub id: SandboxId,
    /// `CLOCK_REALTIME` ns of the request.
    pub created_at_ns: i64,
    /// What was asked for.
    pub config: SandboxConfig,
    /// Where it stands.
    pub phase: Phase,
    /// Its network.
    pub network: SandboxNetwork,
    /// PID of the monitor, 0 before there is one.
    pub monitor_pid: i32,
    /// Start time of the monitor in clock ticks since boot (proc_pid_stat(5) field 22), against PID reuse.
    pub monitor_start_ticks: u64,
    /// PID of the init whose PID namespace the pod shares, 0 without one.
    pub init_pid: i32,
    /// Cgroup made by us for this pod, to be removed with it.
    pub own_cgroup: Option<String>,
    /// SELinux labels; none where the kernel runs without it.
    #[serde(default)]
    pub labels: Option<selinux::Labels>,
}

/// Life of a sandbox.
///
/// ```text
/// RunPodSandbox ─► Starting ─► Ready ─► Stopped ─► (removed)
///                     │          │          ▲
///                     └─ failed ─┴─ monitor lost
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Recorded, being built; never listed. Found at start-up it is undone.
    Starting,
    /// Usable.
    Ready,
    /// Everything is released; only the record is left.
    Stopped,
}

/// Version of [`SandboxRecord`] and of the container's record.
pub const RECORD_VERSION: u32 = 1;
