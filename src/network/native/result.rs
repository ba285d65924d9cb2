//! What a plugin answers with, and what the next one of the list is given: a CNI result.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::address::Cidr;

/// A result, of any version from 0.3.0 on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The version it is written in.
    #[serde(rename = "cniVersion", default)]
    pub cni_version: String,
    /// The interfaces that were made or touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses that the pod has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Address>,
    /// The routes that the pod has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default)]
    pub dns: Dns,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The namespace that it is in; empty is the machine's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// What newer versions of the specification say besides.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `4` or `6`, before version 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Which interface of the result has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with the length of its network.
    pub address: Cidr,
    /// The gateway of its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of a result or configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: Cidr,
    /// Through whom; none is the gateway of the family's first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// What newer versions of the specification say besides.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Outcome {
    /// The same, as `version` of the specification writes it.
    pub fn in_version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.cni_version);
        let families = version.starts_with("0.");
        for address in &mut self.ips {
            let number = if address.address.address().is_ipv4() { "4" } else { "6" };
            address.version = families.then(|| number.to_owned());
        }
        self
    }
}
