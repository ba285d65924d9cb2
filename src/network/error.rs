//! What goes wrong with pod networks.

use std::path::PathBuf;

use crate::hostport::HostPortError;
use crate::{address, bridge, ipam, netlink, netns};

/// Why a request to the pod network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The network cannot take pods at present.
    #[error("pod network is not ready: {0}")]
    NotReady(#[from] NotReady),
    /// A sandbox id that cannot be a file's contents or a link's alias.
    #[error("{0:?} is not a sandbox id: 1 to 128 letters, digits, '-', '_' or '.'")]
    SandboxId(String),
    /// The sandbox has addresses already.
    #[error("sandbox {sandbox} is attached already")]
    AlreadyAttached {
        /// The sandbox.
        sandbox: String,
    },
    /// The sandbox's device is not gone yet.
    #[error("sandbox {sandbox} is still being detached")]
    Detaching {
        /// The sandbox.
        sandbox: String,
    },
    /// A namespace could not be made or entered.
    #[error("network namespace")]
    Netns(#[from] netns::NetnsError),
    /// No address for the pod.
    #[error("addresses of network {network}")]
    Addresses {
        /// The network.
        network: String,
        /// Why.
        #[source]
        source: ipam::IpamError,
    },
    /// The pod's link could not be made or looked at.
    #[error("link of sandbox {sandbox}")]
    Link {
        /// The sandbox.
        sandbox: String,
        /// Why.
        #[source]
        source: bridge::BridgeError,
    },
    /// The bridge could not be made or looked at.
    #[error("bridge {bridge}")]
    Bridge {
        /// The bridge.
        bridge: String,
        /// Why.
        #[source]
        source: bridge::BridgeError,
    },
    /// The host ports that were asked for cannot be had.
    #[error("host ports of sandbox {sandbox}")]
    HostPorts {
        /// The sandbox.
        sandbox: String,
        /// Why.
        #[source]
        source: HostPortError,
    },
    /// Host ports do not work on this machine at present.
    #[error("host ports of sandbox {sandbox}: the rules in nf_tables cannot be made")]
    HostPortsUnavailable {
        /// The sandbox.
        sandbox: String,
        /// Why.
        #[source]
        source: netlink::NetlinkError,
    },
    /// Not a list of address blocks.
    #[error("pod CIDR {text:?}")]
    PodCidr {
        /// What was given.
        text: String,
        /// Why.
        #[source]
        source: address::AddressError,
    },
    /// Blocks that cannot be used together.
    #[error("address blocks {blocks:?}: {reason}")]
    Blocks {
        /// What was given.
        blocks: Vec<String>,
        /// Why not.
        reason: &'static str,
    },
    /// The network's own state file.
    #[error("{call} {path}")]
    State {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The network's own state file is not one.
    #[error("parse {path}")]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A socket that listens for changes, or the thread that does.
    #[error("watch the network for changes")]
    Watch(#[source] std::io::Error),
    /// A socket that listens for changes.
    #[error("watch the network for changes")]
    Listen(#[source] netlink::NetlinkError),
}

/// What a caller can do about an [`NetworkError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request itself is wrong.
    InvalidArgument,
    /// Something has what was asked for.
    AlreadyExists,
    /// All addresses are taken.
    ResourceExhausted,
    /// It may work later.
    Unavailable,
    /// It does not work on this machine as it is set up.
    FailedPrecondition,
    /// The kernel or the disk refused.
    Internal,
}

impl NetworkError {
    /// The class of the error.
    pub fn code(&self) -> Code {
        match self {
            NetworkError::SandboxId(_) | NetworkError::PodCidr { .. } | NetworkError::Blocks { .. } => {
                Code::InvalidArgument
            }
            NetworkError::Addresses { source: ipam::IpamError::Full { .. }, .. } => Code::ResourceExhausted,
            NetworkError::Addresses {
                source: ipam::IpamError::NoAddresses { .. } | ipam::IpamError::Outside { .. },
                ..
            } => Code::InvalidArgument,
            NetworkError::HostPorts { source: HostPortError::Taken { .. }, .. }
            | NetworkError::AlreadyAttached { .. } => Code::AlreadyExists,
            NetworkError::HostPorts { .. } => Code::InvalidArgument,
            NetworkError::NotReady(_) | NetworkError::Detaching { .. } => Code::Unavailable,
            NetworkError::HostPortsUnavailable { .. } => Code::FailedPrecondition,
            _ => Code::Internal,
        }
    }
}

/// Why the network cannot take pods, as Kubernetes wants it: a word and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotReady {
    /// A word in CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Something that works less well than it should, while the network is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// A word in CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
