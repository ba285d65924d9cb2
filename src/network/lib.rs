//! Pod networks: namespaces, bridge, addresses, host ports.
//!
//! [`Network`] is the whole built-in network of a node. Everything is done by netlink, nothing is executed.
//!
//! ```text
//!  take_netns ──► pool of ready namespaces (netns)
//!  attach     ──► check host ports ► address files (ipam) ► veth pair (bridge) ► nf_tables elements (nftables)
//!  detach     ──► nf_tables elements away ► queue (teardown)  ······► device gone ► address files away
//!  recover    ──► what runs is claimed, the rest is queued; the table is made anew
//! ```
//!
//! # What is true at every moment
//! - An address is taken before a device has it and until the device is gone, so no two devices ever share one.
//! - What a failed [`Network::attach`] did is undone, at once or by the queue.
//! - Files, links and rules that belong to no sandbox are found and removed by [`Network::recover`]; nothing is
//!   needed from before the crash but the ids of the sandboxes that live.
//! - A lock is held for one system call or a few, and at most one of them at a time, in any order; the file lock
//!   of the addresses may wait for other programs, ten seconds at most.
//!
//! [`native`] is the other half: CNI's standard plugins executed here, for nodes that have a configuration of CNI.
//!
//! The network belongs to the network namespace of the thread that called [`Network::open`]; every other call may
//! come from any thread of that namespace.

mod address;
mod bridge;
mod conntrack;
mod error;
mod expression;
mod hostport;
mod ipam;
mod link;
mod message;
pub mod native;
mod netlink;
mod netns;
mod nftables;
mod pods;
mod ranges;
mod rules;
mod sysctl;
mod teardown;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::address::{AddressError, Cidr, InterfaceName, IpFamily, MacAddr};
pub use crate::bridge::{BridgeError, SANDBOX_IFNAME};
pub use crate::error::{Code, NetworkError, NotReady, Warning};
pub use crate::hostport::{HostPort, HostPortError, PortMapping, Protocol};
pub use crate::ipam::{Ipam, IpamError, Range};
pub use crate::link::Counters;
pub use crate::netlink::NetlinkError;
use crate::netns::Pool;
pub use crate::netns::{Ipv6, Netns, NetnsError, PoolCounters};
use crate::pods::Pods;
pub use crate::sysctl::SysctlError;
use crate::teardown::Watcher;

const SANDBOX_ID_MAX: usize = 128;

/// How the network is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the network keeps its own small file.
    pub state_dir: PathBuf,
    /// Where address files are, below it a directory per network; CNI's is `/var/lib/cni/networks`.
    pub ipam_dir: PathBuf,
    /// The network's name, of that directory.
    pub name: String,
    /// The bridge; made if it is not there.
    pub bridge: InterfaceName,
    /// The ranges of addresses, one per family; the first is the primary one.
    pub ranges: Vec<Range>,
    /// Largest packet; none takes the uplink's.
    pub mtu: Option<u32>,
    /// Whether pods are masqueraded towards the outside.
    pub masquerade: bool,
    /// Blocks outside that see the pods' own addresses, e.g. of the whole cluster.
    pub direct: Vec<Cidr>,
    /// Namespaces to keep ready.
    pub pool_size: usize,
    /// How long a detached pod's device may live on by itself before it is deleted.
    pub linger: Duration,
}

impl Options {
    /// The usual network: bridge `pinnace0`, 10.88.0.0/16, four namespaces ready.
    ///
    /// `state_dir` outlives a reboot, `run_dir` need not: no address does. Address files are made and removed for
    /// every pod, so `run_dir` is best in memory (/run).
    pub fn new(state_dir: PathBuf, run_dir: &Path) -> Self {
        let cidr = Cidr::new([10, 88, 0, 0].into(), 16).expect("16 is a prefix length");
        Options {
            ipam_dir: run_dir.join("networks"),
            state_dir,
            name: "pinnace".to_owned(),
            bridge: "pinnace0".parse().expect("an interface name"),
            ranges: vec![Range::new(cidr).expect("a block with room for pods")],
            mtu: None,
            masquerade: true,
            direct: Vec::new(),
            pool_size: 4,
            linger: Duration::from_secs(1),
        }
    }
}

/// How a sandbox is connected. The daemon keeps it in the sandbox's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The interface inside the pod.
    pub sandbox_ifname: String,
    /// The other end, on the bridge.
    pub host_ifname: String,
    /// The hardware address of the interface inside.
    pub mac: MacAddr,
    /// Largest packet.
    pub mtu: u32,
    /// The addresses of the interface, the primary one first.
    pub addresses: Vec<InterfaceAddress>,
    /// The host ports that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
}

/// An address of a pod's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address with the length of its network.
    pub cidr: Cidr,
    /// Where packets to everywhere else go.
    pub gateway: IpAddr,
}

impl Attachment {
    /// The addresses, the primary one first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.addresses.iter().map(|address| address.cidr.address())
    }
}

/// The built-in network of a node.
#[derive(Debug)]
pub struct Network {
    pods: Arc<Pods>,
    pool: Pool,
    watcher: Option<Watcher>,
}

impl Network {
    /// Opens the network and brings the bridge up.
    ///
    /// If the bridge cannot be had at present, the network is open but not [ready](Network::ready), and tries
    /// again by itself. [`Network::recover`] must be called before the first [`Network::attach`].
    pub fn open(options: Options) -> Result<Self, NetworkError> {
        let pool_size = options.pool_size;
        let pods = Arc::new(Pods::open(options)?);
        if let Err(error) = pods.bring_up() {
            tracing::warn!(error = &error as &dyn std::error::Error, "pod network is not ready");
        }
        let pool = Pool::open(pool_size, pods.ipv6())?;
        let watcher = Watcher::start(Arc::clone(&pods))?;
        Ok(Network { pods, pool, watcher: Some(watcher) })
    }

    /// Whether pods can be attached. Answers from memory.
    pub fn ready(&self) -> Result<(), NotReady> {
        self.pods.ready()
    }

    /// What works less well than it should. Answers from memory.
    pub fn warnings(&self) -> Vec<Warning> {
        self.pods.warnings()
    }

    /// A namespace for a pod, ready or made now.
    pub fn take_netns(&self) -> Result<Netns, NetworkError> {
        Ok(self.pool.take()?)
    }

    /// Takes up a namespace that was made elsewhere, e.g. inside a user namespace or before a restart.
    pub fn enter_netns(&self, netns: OwnedFd) -> Result<Netns, NetworkError> {
        Ok(Netns::enter(netns, self.pods.ipv6())?)
    }

    /// Connects a sandbox: addresses, interface, routes, host ports. Undoes everything if one step fails.
    pub fn attach(
        &self,
        sandbox: &str,
        netns: &mut Netns,
        mappings: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        check_sandbox_id(sandbox)?;
        self.pods.attach(sandbox, netns, mappings)
    }

    /// Disconnects a sandbox and returns at once: host ports are closed, the device goes by itself or is deleted
    /// in the background, the addresses are free when it is gone. It is no error if nothing is connected.
    pub fn detach(&self, sandbox: &str, attachment: Option<&Attachment>) -> Result<(), NetworkError> {
        check_sandbox_id(sandbox)?;
        self.pods.detach(sandbox, attachment.is_some())
    }

    /// Makes the network what the living sandboxes need, after a start of the daemon: everything else is removed.
    pub fn recover<'a>(
        &self,
        live: impl IntoIterator<Item = (&'a str, &'a Attachment)>,
    ) -> Result<(), NetworkError> {
        self.pods.recover(&live.into_iter().collect::<Vec<_>>())
    }

    /// Takes over the node's pod CIDR, comma-separated for both families, for pods that come. It is kept over
    /// restarts. An empty text changes nothing.
    pub fn set_pod_cidr(&self, text: &str) -> Result<(), NetworkError> {
        self.pods.set_pod_cidr(text)?;
        self.pool.set_ipv6(self.pods.ipv6());
        Ok(())
    }

    /// How many detached sandboxes still have a device or addresses.
    pub fn pending(&self) -> usize {
        self.pods.pending()
    }

    /// How the pool of namespaces was used.
    pub fn pool(&self) -> PoolCounters {
        self.pool.counters()
    }

    /// What passed through the interface of every sandbox, seen from inside, in one request for all.
    pub fn counters(&self) -> Result<Vec<(String, Counters)>, NetworkError> {
        self.pods.counters()
    }

    /// Ends the background threads and drops the ready namespaces. Pods stay connected.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.pool.close();
        if let Some(watcher) = self.watcher.take() {
            watcher.stop();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop();
    }
}

fn check_sandbox_id(sandbox: &str) -> Result<(), NetworkError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if sandbox.is_empty() || sandbox.len() > SANDBOX_ID_MAX || !sandbox.bytes().all(allowed) {
        return Err(NetworkError::SandboxId(sandbox.chars().take(SANDBOX_ID_MAX).collect()));
    }
    Ok(())
}
