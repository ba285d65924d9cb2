//! The plugin `portmap`: ports of the machine that lead to a pod.

use std::net::IpAddr;

use super::config::{Mapping, Portmap, RuntimeConfig};
use super::iptables::{Action, COMMENT_MAX, Conditions, MULTIPORT_MAX, Match, Rule};
use super::nat::{HostPorts, SET_MARK};
use super::result::Outcome;
use super::{Call, Native, NativeError, hashed, netlink, rules};
use crate::address::{Cidr, IpFamily};
use crate::hostport::Protocol;
use crate::{link, sysctl};

const PLUGIN: &str = "portmap";
const CHAIN_LENGTH: usize = 28;

impl Native {
    pub(super) fn add_portmap(&self, call: Call<'_>, config: &Portmap) -> Result<Outcome, NativeError> {
        let previous = call.chained(PLUGIN)?;
        let runtime = call.runtime(PLUGIN)?;
        if runtime.port_mappings.is_empty() {
            return Ok(previous);
        }
        check_ports(&runtime)?;
        for address in addresses(&previous, call.ifname) {
            let ports = host_ports(call, config, &runtime.port_mappings, address)?;
            if config.snat && address.address().is_ipv4() {
                self.route_loopback(address.address())?;
            }
            let mut nat = self.nat();
            nat.forward(address.family(), &ports).map_err(rules(PLUGIN))?;
            let datagrams = runtime.port_mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp);
            for mapping in datagrams {
                if let Err(error) = nat.forget_datagrams(address.family(), mapping.host_port) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        host_port = mapping.host_port,
                        "connections of a host port not forgotten"
                    );
                }
            }
        }
        Ok(previous)
    }

    pub(super) fn del_portmap(&self, call: Call<'_>) -> Result<(), NativeError> {
        if call.runtime(PLUGIN)?.port_mappings.is_empty() {
            return Ok(());
        }
        self.nat().unforward(&chain(call)).map_err(rules(PLUGIN))
    }

    pub(super) fn check_portmap(&self, call: Call<'_>, _config: &Portmap) -> Result<(), NativeError> {
        let previous = call.chained(PLUGIN)?;
        if call.runtime(PLUGIN)?.port_mappings.is_empty() {
            return Ok(());
        }
        let chain = chain(call);
        for address in addresses(&previous, call.ifname) {
            if !self.nat().leads(address.family(), &chain).map_err(rules(PLUGIN))? {
                return Err(NativeError::Missing { plugin: PLUGIN, what: format!("chain {chain}") });
            }
        }
        Ok(())
    }

    /// Lets packets from this machine's loopback leave towards the pod.
    fn route_loopback(&self, address: IpAddr) -> Result<(), NativeError> {
        let mut socket = self.route();
        let towards = link::link_towards(&mut socket, address).map_err(netlink(PLUGIN))?;
        let Some(index) = towards else {
            return Ok(());
        };
        let Some(link) = link::link_at(&mut socket, index).map_err(netlink(PLUGIN))? else {
            return Ok(());
        };
        sysctl::ensure(&format!("ipv4/conf/{}/route_localnet", link.name), "1")
            .map_err(|source| NativeError::Sysctl { plugin: PLUGIN, source })
    }
}

fn chain(call: Call<'_>) -> String {
    hashed(CHAIN_LENGTH, "CNI-DN-", &[call.network(), call.container])
}

fn check_ports(runtime: &RuntimeConfig) -> Result<(), NativeError> {
    let zero = |mapping: &Mapping| mapping.host_port == 0 || mapping.container_port == 0;
    if runtime.port_mappings.iter().any(zero) {
        return Err(NativeError::Input { plugin: PLUGIN, what: "a port mapping with port 0", source: None });
    }
    Ok(())
}

/// The pod's first address of each family, IPv4 first.
fn addresses(result: &Outcome, ifname: &str) -> impl Iterator<Item = Cidr> + use<> {
    let inside = |at: usize| {
        let interface = result.interfaces.get(at);
        interface.is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    };
    let ours: Vec<Cidr> = result
        .ips
        .iter()
        .filter(|address| address.interface.is_none_or(inside))
        .map(|address| address.address)
        .collect();
    [IpFamily::V4, IpFamily::V6]
        .into_iter()
        .filter_map(move |family| ours.iter().copied().find(|address| address.family() == family))
}

fn host_ports(
    call: Call<'_>,
    config: &Portmap,
    mappings: &[Mapping],
    pod: Cidr,
) -> Result<HostPorts, NativeError> {
    let chain = chain(call);
    let mut comment = format!("dnat name: \"{}\" id: \"{}\"", call.network(), call.container);
    if comment.len() >= COMMENT_MAX {
        comment.truncate(COMMENT_MAX - 4);
        comment.push_str("...");
    }
    let mut entries = Vec::new();
    // In the order of the protocols' names, as many ports at once as a match takes.
    for protocol in [Protocol::Sctp, Protocol::Tcp, Protocol::Udp] {
        let of_protocol = mappings.iter().filter(|mapping| mapping.protocol == protocol);
        let ports: Vec<u16> = of_protocol.map(|mapping| mapping.host_port).collect();
        for ports in ports.chunks(MULTIPORT_MAX) {
            let matches = vec![Match::Comment(comment.clone()), Match::DestinationPorts(ports.to_vec())];
            let conditions = Conditions { protocol: Some(protocol), matches, ..Conditions::default() };
            entries.push(Rule { conditions, action: Action::Jump(chain.clone()) });
        }
    }
    let set_mark = config.external_set_mark_chain.as_deref().unwrap_or(SET_MARK);
    let mut own = Vec::new();
    for mapping in mappings {
        let Some(destination) = destination(mapping, pod.family())? else {
            continue;
        };
        let from = |source: Option<Cidr>, action: Action| {
            let matches = vec![Match::DestinationPort(mapping.protocol, mapping.host_port)];
            let protocol = Some(mapping.protocol);
            let conditions = Conditions { protocol, source, destination, matches, not_destination: None };
            Rule { conditions, action }
        };
        if config.snat {
            own.push(from(Some(pod.network()), Action::Jump(set_mark.to_owned())));
            if pod.family() == IpFamily::V4 {
                let loopback = Cidr::new([127, 0, 0, 1].into(), 32);
                own.push(from(loopback, Action::Jump(set_mark.to_owned())));
            }
        }
        own.push(from(None, Action::TranslateDestination(pod.address(), mapping.container_port)));
    }
    let mut unique: Vec<Rule> = Vec::with_capacity(own.len());
    for rule in own {
        if !unique.contains(&rule) {
            unique.push(rule);
        }
    }
    Ok(HostPorts { chain, entries, rules: unique, mark: config.mark() })
}

/// The one address of the machine where a mapping counts; the outer none if it is of the other family.
fn destination(mapping: &Mapping, family: IpFamily) -> Result<Option<Option<Cidr>>, NativeError> {
    let Some(text) = mapping.host_ip.as_ref().filter(|text| !text.is_empty()) else {
        return Ok(Some(None));
    };
    let address: IpAddr = text.parse().map_err(|_| NativeError::Requested {
        plugin: PLUGIN,
        what: "an address of the machine",
        text: text.clone(),
    })?;
    if IpFamily::of(address) != family {
        return Ok(None);
    }
    Ok(Some(if address.is_unspecified() { None } else { Cidr::new(address, family.bits()) }))
}
