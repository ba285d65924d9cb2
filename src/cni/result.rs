//! What ADD returns: one form inside, that of 1.1, and those of every version outside.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::version::{UnknownVersion, Version};

/// Why a text is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultError {
    /// No JSON, or not of a result.
    #[error("not a result of ADD")]
    Json(#[from] serde_json::Error),
    /// The result says that it is of a version that we do not know.
    #[error("version of the result")]
    Version(#[from] UnknownVersion),
    /// An address belongs to an interface that is not there.
    #[error("address {address} is of interface {index}, there are {interfaces}")]
    NoSuchInterface {
        /// The address.
        address: IpNet,
        /// As given.
        index: u32,
        /// How many there are.
        interfaces: usize,
    },
}

/// The result of ADD in the form of 1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniResult {
    /// The version that it is written in for plugins.
    pub cni_version: Version,
    /// Interfaces, of the host too.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Resolver configuration.
    pub dns: Dns,
}

/// An interface that the attachment has made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub mac: String,
    /// Largest packet, 0 if not told; since 1.1.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "or_default")]
    pub mtu: u32,
    /// The network namespace it is in; empty is the host's.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub sandbox: String,
    /// A socket of it; since 1.1.
    #[serde(
        rename = "socketPath",
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub socket_path: String,
    /// Its PCI device; since 1.1.
    #[serde(
        rename = "pciID",
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "or_default"
    )]
    pub pci_id: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// With the length of its network.
    pub address: IpNet,
    /// The default gateway of that network.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "address_or_none")]
    pub gateway: Option<IpAddr>,
    /// Index of the interface that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which way; none is the gateway of the address.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "address_or_none")]
    pub gw: Option<IpAddr>,
    /// Largest packet; since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest segment that is offered; since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The lower the better; since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Table; since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope; since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    /// A route without anything special.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Resolver configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// In order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub domain: String,
    /// Domains to search.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub options: Vec<String>,
}

/// Since 0.3.0.
#[derive(Deserialize)]
struct Listed {
    #[serde(default, deserialize_with = "or_default")]
    interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<IpConfig>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<Route>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
}

/// 0.1.0 and 0.2.0.
#[derive(Deserialize)]
struct PerFamily {
    ip4: Option<FamilyConfig>,
    ip6: Option<FamilyConfig>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
}

#[derive(Deserialize)]
struct FamilyConfig {
    ip: IpNet,
    #[serde(default, deserialize_with = "address_or_none")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<Route>,
}

impl CniResult {
    /// A result with nothing in it.
    #[must_use]
    pub fn empty(cni_version: Version) -> Self {
        Self { cni_version, interfaces: Vec::new(), ips: Vec::new(), routes: Vec::new(), dns: Dns::default() }
    }

    /// Reads what a plugin has written that was asked in version `asked`; one that names none answers in that.
    pub fn parse(bytes: &[u8], asked: Version) -> Result<Self, ResultError> {
        Self::from_map(serde_json::from_slice(bytes)?, asked)
    }

    /// The same from JSON that was read already.
    pub fn from_map(mut map: Map<String, Value>, asked: Version) -> Result<Self, ResultError> {
        let written = match map.remove("cniVersion") {
            None | Some(Value::Null) => asked,
            Some(version) => match serde_json::from_value::<String>(version)?.as_str() {
                "" => asked,
                version => version.parse()?,
            },
        };
        let value = Value::Object(map);
        let mut result = if written < Version::V0_3_0 {
            let PerFamily { ip4, ip6, dns } = serde_json::from_value(value)?;
            let mut result = Self { dns, ..Self::empty(asked) };
            for family in [ip4, ip6].into_iter().flatten() {
                let FamilyConfig { ip, gateway, routes } = family;
                result.ips.push(IpConfig { address: ip, gateway, interface: None });
                // The way of a route that names none was the gateway of its family.
                result
                    .routes
                    .extend(routes.into_iter().map(|route| Route { gw: route.gw.or(gateway), ..route }));
            }
            result
        } else {
            let Listed { interfaces, ips, routes, dns } = serde_json::from_value(value)?;
            Self { cni_version: asked, interfaces, ips, routes, dns }
        };
        if written < Version::V1_1_0 {
            result.forget_newer();
        }
        result.check()?;
        Ok(result)
    }

    /// Written in `version`. To 0.2.0 and before, only the first address of each family can be told.
    #[must_use]
    pub fn to_map(&self, version: Version) -> Map<String, Value> {
        let mut written = self.clone();
        if version < Version::V1_1_0 {
            written.forget_newer();
        }
        let mut map = Map::new();
        map.insert("cniVersion".to_owned(), version.as_str().into());
        if version < Version::V0_3_0 {
            for (key, is_v4) in [("ip4", true), ("ip6", false)] {
                let Some(ip) = written.ips.iter().find(|ip| ip.address.addr().is_ipv4() == is_v4) else {
                    continue;
                };
                let mut family = Map::new();
                family.insert("ip".to_owned(), ip.address.to_string().into());
                put(&mut family, "gateway", ip.gateway.map(|gateway| gateway.to_string()));
                let routes = written.routes.iter().filter(|route| route.dst.addr().is_ipv4() == is_v4);
                let routes: Vec<Value> = routes.map(json).collect();
                put(&mut family, "routes", Some(routes).filter(|routes| !routes.is_empty()));
                map.insert(key.to_owned(), Value::Object(family));
            }
        } else {
            let list = |entries: Vec<Value>| Some(entries).filter(|entries| !entries.is_empty());
            put(&mut map, "interfaces", list(written.interfaces.iter().map(json).collect()));
            let ips = written.ips.iter().map(|ip| {
                let mut value = json(ip);
                if version < Version::V1_0_0 {
                    value["version"] = if ip.address.addr().is_ipv4() { "4" } else { "6" }.into();
                }
                value
            });
            put(&mut map, "ips", list(ips.collect()));
            put(&mut map, "routes", list(written.routes.iter().map(json).collect()));
        }
        if written.dns != Dns::default() {
            map.insert("dns".to_owned(), json(&written.dns));
        }
        map
    }

    /// The addresses of the interface `ifname` inside the pod; without interfaces, all that are nobody's.
    pub fn addresses_of<'a>(&'a self, ifname: &'a str) -> impl Iterator<Item = &'a IpConfig> {
        self.ips.iter().filter(move |ip| match ip.interface {
            None => true,
            Some(index) => usize::try_from(index)
                .ok()
                .and_then(|index| self.interfaces.get(index))
                .is_some_and(|interface| interface.name == ifname && !interface.sandbox.is_empty()),
        })
    }

    /// What older versions do not have.
    fn forget_newer(&mut self) {
        for interface in &mut self.interfaces {
            interface.mtu = 0;
            interface.socket_path.clear();
            interface.pci_id.clear();
        }
        for route in &mut self.routes {
            *route = Route::new(route.dst, route.gw);
        }
    }

    fn check(&self) -> Result<(), ResultError> {
        for ip in &self.ips {
            if let Some(index) = ip.interface
                && usize::try_from(index).is_ok_and(|index| index >= self.interfaces.len())
            {
                let interfaces = self.interfaces.len();
                return Err(ResultError::NoSuchInterface { address: ip.address, index, interfaces });
            }
        }
        Ok(())
    }
}

fn json<T: Serialize>(value: T) -> Value {
    serde_json::to_value(value).expect("texts and numbers are always JSON")
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Go writes an empty list as null.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Go writes no address as an empty text.
fn address_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(from)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}
