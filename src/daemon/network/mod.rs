//! Pod networks: the built-in one, or that of a CNI configuration, behind one door.
//!
//! ```text
//! lease ──► connect ──(beside the monitor)──► complete ──► SandboxNetwork ──► detach ──► namespace_gone
//!           built-in: everything happens here  CNI by programs: ADD, in a namespace that a process lives in
//!           CNI natively: ADD                  CNI natively: that process is written down
//! ```
//! A sandbox is detached from what it was attached to, whatever new ones get. The choice is made per pod; once a CNI
//! configuration was seen, pods do not come to the built-in network any more until the daemon is started anew: that a
//! network's administrator replaces its file must not send pods elsewhere.

mod cni;
mod invocation;
mod native;

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use pinnace_cni::{Invocation, NetworkList, Owed};
use pinnace_network::{Attachment, Cidr, InterfaceName, Ipv6, Netns, Network, Range};
use tokio_util::sync::CancellationToken;

use self::cni::Cni;
pub use self::cni::CniAttachment;
use crate::config::{CniMode, Config};
use crate::error::Error;
use crate::id::SandboxId;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::sandbox::record::{SandboxConfig, SandboxNetwork};

/// How long a stopped pod's device may take to go by itself before it is deleted.
const NETWORK_LINGER: std::time::Duration = std::time::Duration::from_secs(1);

/// The networks of a node's pods.
#[derive(Debug)]
pub struct PodNetworks {
    mode: CniMode,
    /// Open if pods can come to it, or have since the last boot.
    built_in: Option<Arc<Network>>,
    cni: Arc<Cni>,
}

/// Why pods cannot be attached at present.
#[derive(Debug, Clone)]
pub struct NotReady {
    /// One word.
    pub reason: String,
    /// What is wrong, with all causes.
    pub message: String,
}

/// A namespace for a pod to come, and the network that the pod will be attached to.
#[derive(Debug)]
pub enum Lease {
    /// The built-in one.
    BuiltIn(Arc<Network>, Netns),
    /// That of a CNI configuration.
    Cni(Box<Joining>),
    /// None: nothing but loopback.
    Isolated(Netns),
}

/// What ADD needs.
#[derive(Debug)]
pub struct Joining {
    list: Arc<NetworkList>,
    netns: Netns,
    /// Without the namespace, which has no path yet.
    invocation: Invocation,
}

impl Lease {
    /// The namespace.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Lease::BuiltIn(_, netns) | Lease::Isolated(netns) => netns.fd(),
            Lease::Cni(joining) => joining.netns.fd(),
        }
    }
}

/// How far a sandbox got without a process in its namespace.
#[derive(Debug)]
pub enum Connected {
    /// Nothing is left to do.
    Whole(SandboxNetwork),
    /// ADD was called for a namespace that only its descriptor led to.
    Added(Box<Owed>),
    /// ADD is left to do.
    Waiting(Box<Joining>),
}

impl PodNetworks {
    /// Opens what the configuration chooses.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let mode = config.cni.mode;
        let cni = Cni::open(config).context("open the ledger of CNI attachments")?;
        let options = network_options(config)?;
        let chosen = match mode {
            CniMode::BuiltIn => true,
            CniMode::Cni => false,
            CniMode::Auto => !cni.was_configured(),
        };
        let built_in = if chosen || options.ipam_dir.exists() {
            Some(Arc::new(Network::open(options).context("open the network")?))
        } else {
            None
        };
        tracing::info!(network = if chosen { "built-in" } else { "CNI" }, ?mode, "network of pods");
        Ok(Self { mode, built_in, cni: Arc::new(cni) })
    }

    /// The built-in network, if pods that come now get that.
    fn chosen_built_in(&self) -> Option<&Arc<Network>> {
        match self.mode {
            CniMode::Cni => None,
            CniMode::Auto if self.cni.was_configured() => None,
            CniMode::Auto | CniMode::BuiltIn => self.built_in.as_ref(),
        }
    }

    /// Looks whether files of CNI configurations have changed. Blocks for a few stat(2)s.
    pub fn refresh(&self) {
        if self.mode != CniMode::BuiltIn {
            self.cni.refresh();
        }
    }

    /// Whether pods can be attached. Answers from memory.
    pub fn ready(&self) -> Result<(), NotReady> {
        if let Some(built_in) = self.chosen_built_in() {
            let not_ready = |not: pinnace_network::NotReady| NotReady {
                reason: not.reason.to_owned(),
                message: not.message,
            };
            return built_in.ready().map_err(not_ready);
        }
        let reason = pinnace_cni::NotReady::REASON.to_owned();
        self.cni.ready().map_err(|not| NotReady { reason, message: not.0 })
    }

    /// What tools read of the configuration, and how its last loading went; none with the built-in network. Answers from
    /// memory.
    pub fn cni_status(&self) -> Option<(serde_json::Value, String)> {
        self.chosen_built_in().is_none().then(|| self.cni.status())
    }

    /// A namespace for a pod: a new one, or that which was made inside the pod's user namespace. Refuses where pods cannot
    /// be attached, before anything is made. Blocks.
    pub fn lease(
        &self,
        id: &SandboxId,
        config: &SandboxConfig,
        made: Option<OwnedFd>,
    ) -> Result<Lease, Error> {
        if config.local.as_ref().is_some_and(|local| local.isolated) {
            let netns = Netns::create(Ipv6::AsItComes).map_err(pinnace_network::NetworkError::from)?;
            return Ok(Lease::Isolated(netns));
        }
        self.refresh();
        if let Some(built_in) = self.chosen_built_in() {
            let netns = match made {
                None => built_in.take_netns()?,
                Some(netns) => built_in.enter_netns(netns)?,
            };
            return Ok(Lease::BuiltIn(Arc::clone(built_in), netns));
        }
        let list = self.cni.network()?;
        let invocation = invocation::of(id, config)?;
        let netns = match made {
            None => Netns::create(Ipv6::AsItComes),
            Some(netns) => Netns::enter(netns, Ipv6::AsItComes),
        };
        let netns = netns.map_err(pinnace_network::NetworkError::from)?;
        Ok(Lease::Cni(Box::new(Joining { list, netns, invocation })))
    }

    /// Attaches a sandbox whose monitor lives.
    pub async fn complete(&self, connected: Connected, monitor_pid: i32) -> Result<SandboxNetwork, Error> {
        match connected {
            Connected::Whole(network) => Ok(network),
            Connected::Added(owed) => {
                let owed = self.cni.move_namespace(*owed, namespace_of(monitor_pid)).await?;
                Ok(SandboxNetwork::Cni(CniAttachment::of(owed)))
            }
            Connected::Waiting(joining) => {
                let Joining { list, netns, mut invocation } = *joining;
                // The monitor holds the namespace.
                drop(netns);
                invocation.netns = Some(namespace_of(monitor_pid));
                Ok(SandboxNetwork::Cni(CniAttachment::of(Box::pin(self.cni.attach(list, invocation)).await?)))
            }
        }
    }

    /// ADD in a namespace in which nobody lives yet, by code that needs none.
    async fn add(&self, joining: Joining) -> Result<Connected, Error> {
        let Joining { list, netns, mut invocation } = joining;
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.fd().as_raw_fd());
        invocation.netns = Some(path.into());
        let owed = Box::pin(self.cni.attach(list, invocation)).await?;
        Ok(Connected::Added(Box::new(owed)))
    }

    /// Detaches a sandbox. What plugins fail at is owed and tried again, and no error. Once the sandbox's namespace is gone
    /// [`PodNetworks::namespace_gone`] is to be told.
    pub async fn detach(&self, node: &Node, id: &SandboxId, network: &SandboxNetwork) -> Result<(), Error> {
        match network {
            SandboxNetwork::Host | SandboxNetwork::Detached => Ok(()),
            SandboxNetwork::Cni(_) => {
                if !self.cni.withdraw(id.as_str()).await {
                    self.cni.detach(id.as_str()).await;
                }
                Ok(())
            }
            SandboxNetwork::Attached(attachment) => {
                let (id, attachment) = (id.clone(), attachment.clone());
                node.blocking(move |node| node.network.detach_built_in(&id, Some(&attachment))).await
            }
        }
    }

    /// The namespace of a sandbox that was detached has gone with its monitor.
    pub fn namespace_gone(&self, id: &SandboxId) {
        self.cni.namespace_gone(id.as_str());
    }

    /// Undoes what a sandbox that failed has of plugins; to be called while its monitor lives.
    pub async fn undo_plugins(&self, id: &SandboxId) {
        self.cni.detach(id.as_str()).await;
    }

    /// Takes a sandbox from the built-in network, if it is there. Blocks.
    pub fn detach_built_in(&self, id: &SandboxId, attachment: Option<&Attachment>) -> Result<(), Error> {
        match &self.built_in {
            Some(built_in) => Ok(built_in.detach(id.as_str(), attachment)?),
            None => Ok(()),
        }
    }

    /// A sandbox of an earlier daemon lives: nothing is owed for it yet.
    pub fn found(&self, id: &SandboxId, network: &SandboxNetwork) {
        if matches!(network, SandboxNetwork::Cni(_)) {
            self.cni.found(id.as_str());
        }
    }

    /// Makes the built-in network what these sandboxes need. Blocks.
    pub fn recover<'a>(
        &self,
        attached: impl IntoIterator<Item = (&'a str, &'a Attachment)>,
    ) -> Result<(), Error> {
        match &self.built_in {
            Some(built_in) => Ok(built_in.recover(attached)?),
            None => Ok(()),
        }
    }

    /// Pays what is owed to plugins, now and whenever more comes up, and asks them how they are, until `closing`.
    pub fn pay_in_background(&self, closing: CancellationToken) {
        let cni = Arc::clone(&self.cni);
        let asks = self.mode != CniMode::BuiltIn;
        tokio::spawn(async move {
            let ask = async { if asks { cni.ask_forever().await } else { std::future::pending().await } };
            tokio::select! {
                () = closing.cancelled() => {}
                () = cni.pay_forever() => {}
                () = ask => {}
            }
        });
    }

    /// Takes over the node's pod CIDR. A CNI configuration has its own. Blocks.
    pub fn set_pod_cidr(&self, cidrs: &str) -> Result<(), Error> {
        match self.chosen_built_in() {
            Some(built_in) => Ok(built_in.set_pod_cidr(cidrs)?),
            None => {
                tracing::debug!(cidrs, "pods have the addresses of a CNI configuration");
                Ok(())
            }
        }
    }
}

/// What needs the namespace but not the monitor.
pub async fn connect(node: &Node, sandbox: &Arc<Sandbox>, lease: Option<Lease>) -> Result<Connected, Error> {
    let (built_in, mut netns) = match lease {
        None => return Ok(Connected::Whole(SandboxNetwork::Host)),
        Some(Lease::Cni(joining)) if node.network.cni.is_native(&joining.list) => {
            return Box::pin(node.network.add(*joining)).await;
        }
        Some(Lease::Isolated(_)) => return Ok(Connected::Whole(SandboxNetwork::Detached)),
        Some(Lease::Cni(joining)) => return Ok(Connected::Waiting(joining)),
        Some(Lease::BuiltIn(built_in, netns)) => (built_in, netns),
    };
    let sandbox = Arc::clone(sandbox);
    node.blocking(move |node| {
        let ports = match node.config.network.host_ports {
            true => sandbox.config.port_mappings.as_slice(),
            false => &[],
        };
        let attachment = built_in.attach(sandbox.id.as_str(), &mut netns, ports)?;
        Ok(Connected::Whole(SandboxNetwork::Attached(attachment)))
    })
    .await
}

/// Where the namespace of a pod is found while its monitor lives.
fn namespace_of(monitor_pid: i32) -> PathBuf {
    format!("/proc/{monitor_pid}/ns/net").into()
}

fn network_options(config: &Config) -> anyhow::Result<pinnace_network::Options> {
    let network = &config.network;
    let bridge: InterfaceName = network.bridge.parse().context("network.bridge")?;
    let v4 = network.ipv4_subnet.map(|subnet| (subnet.network.into(), subnet.prefix));
    let v6 = network.ipv6_subnet.map(|subnet| (subnet.network.into(), subnet.prefix));
    let range = |(address, prefix)| {
        let cidr = Cidr::new(address, prefix).context("prefix length")?;
        anyhow::Ok(Range::new(cidr)?)
    };
    let ranges = v4.into_iter().chain(v6).map(range).collect::<anyhow::Result<_>>();
    let state_dir = config.daemon.root.join("network");
    Ok(pinnace_network::Options {
        // Records of this boot: a tmpfs spares the pod path the disk, and a reboot frees every address anyway.
        ipam_dir: config.daemon.run.join("addresses"),
        state_dir,
        name: network.bridge.clone(),
        bridge,
        ranges: ranges.context("network subnets")?,
        mtu: Some(network.mtu).filter(|mtu| *mtu != 0),
        masquerade: network.ip_masq,
        direct: Vec::new(),
        pool_size: usize::try_from(network.pool_size)?,
        linger: NETWORK_LINGER,
    })
}
