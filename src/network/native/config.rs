//! Configurations of plugins: what of them is executed here, and what is left to the plugins' programs.
//!
//! The keys and their meaning are those of the plugins as Debian has them (1.1.1). A key that is not known here may mean
//! something to the program that is installed, so its whole list is executed by programs; that is decided before
//! anything is done.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::address::{Cidr, MacAddr};
use crate::hostport::Protocol;
use crate::native::host_local::{Bounds, HostLocalError, Ranges};
use crate::native::result::{Dns, Route};

/// Versions of the specification whose results are written here.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

const COMMON_KEYS: [&str; 11] = [
    "native",
    "cniVersion",
    "name",
    "type",
    "capabilities",
    "args",
    "dns",
    "runtimeConfig",
    "prevResult",
    "ipam",
    "cni.dev/valid-attachments",
];
const BRIDGE_KEYS: [&str; 10] = [
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "mtu",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "enabledad",
];
const PORTMAP_KEYS: [&str; 3] = ["snat", "markMasqBit", "externalSetMarkChain"];
const BANDWIDTH_KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
const IPAM_KEYS: [&str; 9] =
    ["type", "routes", "dataDir", "resolvConf", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway"];
const RANGE_KEYS: [&str; 4] = ["subnet", "rangeStart", "rangeEnd", "gateway"];
/// Keys of newer plugins that change nothing at these values.
const HARMLESS: [(&str, &str, &[&str]); 7] = [
    ("bridge", "macspoofchk", &["false"]),
    ("bridge", "portIsolation", &["false"]),
    ("bridge", "disableContainerInterface", &["false"]),
    ("bridge", "preserveDefaultVlan", &["true"]),
    ("bridge", "ipMasqBackend", &["\"iptables\"", "\"\""]),
    ("portmap", "conditionsV4", &["null", "[]"]),
    ("portmap", "conditionsV6", &["null", "[]"]),
];
const DEFAULT_MARK_BIT: u8 = 13;

/// Why a list of plugins is left to their programs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// A version whose results are not written here.
    #[error("version {version} of the specification")]
    Version {
        /// The version.
        version: String,
    },
    /// Another plugin.
    #[error("plugin {kind}")]
    Plugin {
        /// Its type.
        kind: String,
    },
    /// Another plugin for addresses.
    #[error("address plugin {kind} of plugin {plugin}")]
    Ipam {
        /// The plugin.
        plugin: String,
        /// The type of its address plugin.
        kind: String,
    },
    /// A key that is not known here.
    #[error("key {key:?} of plugin {plugin}")]
    Key {
        /// The plugin.
        plugin: String,
        /// The key, with those above it.
        key: String,
    },
    /// A value that is not what it should be. The program may say more.
    #[error("configuration of plugin {plugin}: {reason}")]
    Value {
        /// The plugin.
        plugin: String,
        /// What is wrong.
        reason: String,
    },
    /// Rules would be written where `iptables` does not look.
    #[error("{path} is iptables-legacy")]
    LegacyIptables {
        /// The program.
        path: PathBuf,
    },
}

/// A plugin's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plugin {
    /// `bridge`.
    Bridge(Box<Bridge>),
    /// `portmap`.
    Portmap(Portmap),
    /// `bandwidth`.
    Bandwidth(Bandwidth),
    /// `loopback`.
    Loopback,
}

/// The configuration of `bridge`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// The interface.
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// Whether it has the gateways' addresses.
    #[serde(default)]
    pub is_gateway: bool,
    /// Whether pods have a default route through it.
    #[serde(default)]
    pub is_default_gateway: bool,
    /// Whether another address of the bridge gives way.
    #[serde(default)]
    pub force_address: bool,
    /// Whether pods are masqueraded.
    #[serde(default)]
    pub ip_masq: bool,
    /// Largest packet; 0 is the kernel's choice.
    #[serde(default)]
    pub mtu: u32,
    /// Whether pods reach themselves through the bridge.
    #[serde(default)]
    pub hairpin_mode: bool,
    /// Whether the bridge takes every frame.
    #[serde(default)]
    pub promisc_mode: bool,
    /// The VLAN of pods; 0 is none.
    #[serde(default)]
    pub vlan: u16,
    /// Whether doubled IPv6 addresses are detected.
    #[serde(default, rename = "enabledad")]
    pub enable_dad: bool,
    /// Name resolution, passed through.
    #[serde(default)]
    pub dns: Dns,
    /// Addresses; none is a network of frames only.
    #[serde(default)]
    pub ipam: Option<Ipam>,
}

/// The configuration of `host-local`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipam {
    /// The plugin.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Routes, passed through.
    #[serde(default)]
    pub routes: Option<Vec<Route>>,
    /// Where the files are.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
    /// A file that must be readable.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    #[serde(default)]
    ranges: Option<Vec<Vec<IpamRange>>>,
    #[serde(default)]
    subnet: Option<Cidr>,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IpamRange {
    subnet: Cidr,
    #[serde(default)]
    range_start: Option<IpAddr>,
    #[serde(default)]
    range_end: Option<IpAddr>,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// The configuration of `portmap`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Portmap {
    /// Whether pods reach themselves and the machine's loopback reaches pods.
    #[serde(default = "yes")]
    pub snat: bool,
    #[serde(default)]
    mark_masq_bit: Option<u8>,
    /// Another chain that sets a mark, in place of our own.
    #[serde(default)]
    pub external_set_mark_chain: Option<String>,
}

/// The configuration of `bandwidth`, or what the runtime says instead: bits, and bits in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress_rate: u64,
    /// At once, towards the pod.
    pub ingress_burst: u64,
    /// From the pod.
    pub egress_rate: u64,
    /// At once, from the pod.
    pub egress_burst: u64,
}

/// What the runtime says of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Host ports.
    pub port_mappings: Vec<Mapping>,
    /// Rates.
    pub bandwidth: Option<Bandwidth>,
    /// Ranges before those of the configuration.
    ip_ranges: Vec<Vec<IpamRange>>,
    /// Addresses that are asked for.
    ips: Vec<String>,
    /// The hardware address that is asked for.
    mac: Option<String>,
}

/// A host port, as the runtime asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    /// The port of the machine.
    pub host_port: u16,
    /// The port of the pod.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The machine's address.
    #[serde(default, rename = "hostIP")]
    pub host_ip: Option<String>,
}

impl Plugin {
    /// Reads a plugin's configuration, or says why that is left to its program.
    pub fn parse(config: &Value) -> Result<Self, Unsupported> {
        let kind = config.get("type").and_then(Value::as_str).unwrap_or_default();
        let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
        if !VERSIONS.contains(&version) {
            return Err(Unsupported::Version { version: version.to_owned() });
        }
        let keys: &[&str] = match kind {
            "bridge" => &BRIDGE_KEYS,
            "portmap" => &PORTMAP_KEYS,
            "bandwidth" => &BANDWIDTH_KEYS,
            "loopback" => &[],
            _ => return Err(Unsupported::Plugin { kind: kind.to_owned() }),
        };
        let object = config.as_object().ok_or_else(|| invalid(kind, "not an object"))?;
        for (key, value) in object {
            if !COMMON_KEYS.contains(&key.as_str())
                && !keys.contains(&key.as_str())
                && !harmless(kind, key, value)
            {
                return Err(Unsupported::Key { plugin: kind.to_owned(), key: key.clone() });
            }
        }
        if let Some(ipam) = object.get("ipam").and_then(Value::as_object) {
            check_ipam(kind, ipam)?;
        }
        let read = match kind {
            "bridge" => serde_json::from_value(config.clone()).map(|bridge| Plugin::Bridge(Box::new(bridge))),
            "portmap" => serde_json::from_value(config.clone()).map(Plugin::Portmap),
            "bandwidth" => serde_json::from_value(config.clone()).map(Plugin::Bandwidth),
            _ => Ok(Plugin::Loopback),
        };
        let plugin = read.map_err(|error| invalid(kind, &error.to_string()))?;
        plugin.check()?;
        Ok(plugin)
    }

    /// Whether rules of `iptables` are written for it.
    pub fn writes_rules(&self) -> bool {
        match self {
            Plugin::Bridge(bridge) => bridge.ip_masq,
            Plugin::Portmap(_) => true,
            Plugin::Bandwidth(_) | Plugin::Loopback => false,
        }
    }

    fn check(&self) -> Result<(), Unsupported> {
        match self {
            Plugin::Bridge(bridge) => {
                if bridge.vlan > 4094 {
                    return Err(invalid("bridge", "vlan must be between 0 and 4094"));
                }
                if bridge.bridge.parse::<crate::InterfaceName>().is_err() {
                    return Err(invalid("bridge", "bridge is not an interface name"));
                }
                if let Some(ipam) = bridge.ipam.as_ref().filter(|ipam| !ipam.kind.is_empty()) {
                    if ipam.kind != "host-local" {
                        return Err(Unsupported::Ipam {
                            plugin: "bridge".to_owned(),
                            kind: ipam.kind.clone(),
                        });
                    }
                    if let Some(route) = ipam.routes.iter().flatten().find(|route| !route.more.is_empty()) {
                        let key = route.more.keys().next().cloned().unwrap_or_default();
                        return Err(Unsupported::Key {
                            plugin: "host-local".to_owned(),
                            key: format!("routes.{key}"),
                        });
                    }
                }
                Ok(())
            }
            Plugin::Portmap(portmap) => match portmap.mark_masq_bit {
                Some(_) if portmap.external_set_mark_chain.is_some() => {
                    Err(invalid("portmap", "both externalSetMarkChain and markMasqBit"))
                }
                Some(bit) if bit > 31 => Err(invalid("portmap", "markMasqBit must be between 0 and 31")),
                _ => Ok(()),
            },
            Plugin::Bandwidth(_) | Plugin::Loopback => Ok(()),
        }
    }
}

impl Bridge {
    /// The address plugin, if pods have addresses.
    pub fn addresses(&self) -> Option<&Ipam> {
        self.ipam.as_ref().filter(|ipam| !ipam.kind.is_empty())
    }

    /// Whether the bridge has the gateways' addresses, said or implied.
    pub fn gateway(&self) -> bool {
        self.is_gateway || self.is_default_gateway
    }
}

impl Ipam {
    /// The sets of ranges: the runtime's, then the single range, then the list.
    pub fn sets(&self, runtime: &RuntimeConfig) -> Result<Vec<Ranges>, HostLocalError> {
        let single = self.subnet.map(|subnet| Bounds {
            subnet,
            first: self.range_start,
            last: self.range_end,
            gateway: self.gateway,
        });
        let bounds = |range: &IpamRange| Bounds {
            subnet: range.subnet,
            first: range.range_start,
            last: range.range_end,
            gateway: range.gateway,
        };
        let sets = |sets: &[Vec<IpamRange>]| -> Vec<Vec<Bounds>> {
            sets.iter().map(|set| set.iter().map(bounds).collect()).collect()
        };
        let mut all = sets(&runtime.ip_ranges);
        all.extend(single.map(|single| vec![single]));
        all.extend(sets(self.ranges.as_deref().unwrap_or_default()));
        Ranges::of_sets(&all)
    }
}

impl Portmap {
    /// The bits of the mark, where the shared chain that sets it is ours.
    pub fn mark(&self) -> Option<u32> {
        let ours = self.snat && self.external_set_mark_chain.is_none();
        ours.then(|| 1 << self.mark_masq_bit.unwrap_or(DEFAULT_MARK_BIT))
    }
}

impl Bandwidth {
    /// Whether nothing is limited.
    pub fn is_zero(&self) -> bool {
        *self == Bandwidth::default()
    }

    /// The limits of a pod: those of the configuration if it has any of the keys, else the runtime's.
    pub fn of(config: &Value, own: Bandwidth, runtime: &RuntimeConfig) -> Option<Bandwidth> {
        let has_own = BANDWIDTH_KEYS.iter().any(|key| config.get(key).is_some());
        if has_own { Some(own) } else { runtime.bandwidth }
    }
}

impl RuntimeConfig {
    /// Reads what the runtime says with a configuration.
    pub fn parse(config: &Value) -> Result<Self, serde_json::Error> {
        match config.get("runtimeConfig") {
            None | Some(Value::Null) => Ok(RuntimeConfig::default()),
            Some(value) => serde_json::from_value(value.clone()),
        }
    }
}

/// Addresses that a pod asks for: by `CNI_ARGS`, by the configuration's `args`, by the runtime.
pub fn requested_addresses(
    config: &Value,
    runtime: &RuntimeConfig,
    args: &str,
) -> Result<Vec<IpAddr>, String> {
    let mut texts: Vec<String> = argument(args, "IP").into_iter().collect();
    if let Some(listed) = config.pointer("/args/cni/ips").and_then(Value::as_array) {
        texts.extend(listed.iter().map(|text| text.as_str().unwrap_or_default().to_owned()));
    }
    texts.extend(runtime.ips.iter().cloned());
    texts
        .into_iter()
        .map(|text| {
            let address = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
            address.parse().map_err(|_| text.clone())
        })
        .collect()
}

/// The hardware address that a pod asks for; the runtime's wins.
pub fn requested_mac(config: &Value, runtime: &RuntimeConfig, args: &str) -> Result<Option<MacAddr>, String> {
    let own = || config.pointer("/args/cni/mac").and_then(Value::as_str).map(str::to_owned);
    let given = |text: &String| !text.is_empty();
    let text =
        runtime.mac.clone().filter(given).or_else(|| own().filter(given)).or_else(|| argument(args, "MAC"));
    text.map(|text| text.to_ascii_lowercase().replace('-', ":").parse().map_err(|_| text)).transpose()
}

/// A value of `CNI_ARGS`, which is a list of `name=value` with semicolons between.
fn argument(args: &str, name: &str) -> Option<String> {
    args.split(';')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, v)| v.to_owned())
}

fn check_ipam(plugin: &str, ipam: &Map<String, Value>) -> Result<(), Unsupported> {
    let key = |key: String| Unsupported::Key { plugin: "host-local".to_owned(), key };
    let kind = ipam.get("type").and_then(Value::as_str).unwrap_or_default();
    if plugin != "bridge" || kind.is_empty() {
        return Ok(());
    }
    if kind != "host-local" {
        return Err(Unsupported::Ipam { plugin: plugin.to_owned(), kind: kind.to_owned() });
    }
    if let Some(unknown) = ipam.keys().find(|name| !IPAM_KEYS.contains(&name.as_str())) {
        return Err(key(unknown.clone()));
    }
    let ranges = ipam.get("ranges").and_then(Value::as_array).into_iter().flatten();
    let objects = ranges.filter_map(Value::as_array).flatten().filter_map(Value::as_object);
    for range in objects {
        if let Some(unknown) = range.keys().find(|name| !RANGE_KEYS.contains(&name.as_str())) {
            return Err(key(format!("ranges.{unknown}")));
        }
    }
    Ok(())
}

fn harmless(plugin: &str, key: &str, value: &Value) -> bool {
    let text = value.to_string();
    HARMLESS.iter().any(|(of, name, values)| *of == plugin && *name == key && values.contains(&text.as_str()))
}

fn invalid(plugin: &str, reason: &str) -> Unsupported {
    Unsupported::Value { plugin: plugin.to_owned(), reason: reason.to_owned() }
}

fn default_bridge() -> String {
    "cni0".to_owned()
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(config: Value) -> String {
        let mut whole = json!({"cniVersion": "1.0.0", "name": "pods"});
        whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        Plugin::parse(&whole).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn what_is_not_known_is_left_to_programs() {
        assert_eq!(refusal(json!({"type": "macvlan"})), "plugin macvlan");
        assert_eq!(
            refusal(json!({"type": "bridge", "cniVersion": "0.2.0"})),
            "version 0.2.0 of the specification"
        );
        assert_eq!(refusal(json!({"type": "bridge", "vlanTrunk": []})), "key \"vlanTrunk\" of plugin bridge");
        assert_eq!(refusal(json!({"type": "bridge", "ipmasq": true})), "key \"ipmasq\" of plugin bridge");
        assert_eq!(
            refusal(json!({"type": "bridge", "macspoofchk": true})),
            "key \"macspoofchk\" of plugin bridge"
        );
        assert_eq!(refusal(json!({"type": "bridge", "macspoofchk": false})), "");
        assert_eq!(
            refusal(json!({"type": "bridge", "ipam": {"type": "dhcp"}})),
            "address plugin dhcp of plugin bridge"
        );
        let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24", "pool": 1}]]});
        assert_eq!(
            refusal(json!({"type": "bridge", "ipam": ipam})),
            "key \"ranges.pool\" of plugin host-local"
        );
        let ipam = json!({"type": "host-local", "subnet": "10.0.0.0/24", "routes": [{"dst": "0.0.0.0/0", "mtu": 9}]});
        assert_eq!(
            refusal(json!({"type": "bridge", "ipam": ipam})),
            "key \"routes.mtu\" of plugin host-local"
        );
        assert!(refusal(json!({"type": "bridge", "vlan": 5000})).contains("between 0 and 4094"));
        assert!(refusal(json!({"type": "bridge", "mtu": -1})).contains("configuration of plugin bridge"));
        assert_eq!(
            refusal(json!({"type": "portmap", "conditionsV4": ["!", "-d", "192.0.2.0/24"]})),
            "key \"conditionsV4\" of plugin portmap"
        );
        assert_eq!(refusal(json!({"type": "portmap", "capabilities": {"portMappings": true}})), "");
        assert_eq!(refusal(json!({"type": "loopback"})), "");
    }

    #[test]
    fn requests_of_a_pod() {
        let config = json!({"args": {"cni": {"ips": ["10.1.0.7/24"], "mac": "0A-58-00-00-00-01"}}});
        let runtime = RuntimeConfig { ips: vec!["fd00::7".to_owned()], ..RuntimeConfig::default() };
        let args = "IgnoreUnknown=1;IP=10.1.0.9;MAC=0a:58:00:00:00:02";
        let addresses = requested_addresses(&config, &runtime, args).unwrap();
        assert_eq!(
            addresses,
            ["10.1.0.9", "10.1.0.7", "fd00::7"].map(|text| text.parse::<IpAddr>().unwrap())
        );
        let mac = requested_mac(&config, &runtime, args).unwrap().unwrap();
        assert_eq!(mac.to_string(), "0a:58:00:00:00:01");
        assert_eq!(
            requested_mac(&json!({}), &runtime, args).unwrap().unwrap().to_string(),
            "0a:58:00:00:00:02"
        );
        assert!(requested_addresses(&json!({}), &runtime, "IP=nonsense").is_err());
    }
}
