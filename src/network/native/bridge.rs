//! The plugin `bridge`: a veth pair on a bridge, with addresses, routes, gateway and masquerading.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::config::{Bridge, Ipam, requested_addresses, requested_mac};
use super::host_local::{Given, Store};
use super::result::{Address, Interface, Outcome, Route};
use super::{Call, Native, NativeError, hashed, netlink, open_netns, rules};
use crate::address::{Cidr, IpFamily, MacAddr, from_number};
use crate::link::{self, Link, PairEnd};
use crate::netlink::Socket;
use crate::sysctl;

const PLUGIN: &str = "bridge";
const CHAIN_LENGTH: usize = 28;
/// A random name that is taken is tried anew this often.
const NAME_ATTEMPTS: u32 = 10;
/// How long the port may take to let packets pass.
const PORT_PATIENCE: Duration = Duration::from_millis(2550);
/// How long the kernel may take to find out that nobody else has an address.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);
/// How long a port may outlive its namespace before it is deleted.
const DEPARTURE_PATIENCE: Duration = Duration::from_secs(1);
const DEPARTURE_POLL_MAX: Duration = Duration::from_millis(32);
/// The pod's interface in the result: after the bridge and the port.
const POD_INTERFACE: usize = 2;

impl Native {
    pub(super) fn add_bridge(&self, call: Call<'_>, config: &Bridge) -> Result<Outcome, NativeError> {
        if config.hairpin_mode && config.promisc_mode {
            return Err(NativeError::HairpinAndPromiscuous);
        }
        let runtime = call.runtime(PLUGIN)?;
        let mac = requested_mac(call.config, &runtime, call.args).map_err(|text| NativeError::Requested {
            plugin: PLUGIN,
            what: "a hardware address",
            text,
        })?;
        let bridge = self.ensure_bridge(config)?;
        let port = self.add_port(call, config, &bridge, mac)?;
        let mut result = Outcome { dns: config.dns.clone(), ..Outcome::default() };
        let Some(ipam) = config.addresses() else {
            let inside = call.inside_present(PLUGIN, |socket| bring_up(socket, call.ifname))?;
            result.interfaces = interfaces(&bridge, &port, call, &inside);
            return self.with_bridge_mac(config, result);
        };
        let given = allocate(call, ipam)?;
        let done = self.configure(call, config, ipam, (&bridge, &port), &given, result);
        if done.is_err()
            && let Err(error) = release(call, ipam)
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, container_id = call.container, "addresses not released");
        }
        done
    }

    pub(super) fn del_bridge(&self, call: Call<'_>, config: &Bridge) -> Result<(), NativeError> {
        let ifname = call.ifname;
        let inside = call.inside(|socket| {
            let mut request = socket.request();
            link::delete_link(&mut request, ifname);
            match socket.execute(request) {
                Err(error) if !error.is_absent() => Err(netlink(PLUGIN)(error)),
                _ => Ok(()),
            }
        })?;
        if inside.is_none() {
            self.await_departure(call, config)?;
        }
        let Some(ipam) = config.addresses() else {
            return Ok(());
        };
        release(call, ipam)?;
        if config.ip_masq {
            self.unmasquerade(call)?;
        }
        Ok(())
    }

    pub(super) fn unmasquerade(&self, call: Call<'_>) -> Result<(), NativeError> {
        self.nat().unmasquerade(&chain(call)).map_err(rules(PLUGIN))
    }

    /// The pod's namespace has gone, and its port goes with it, on the kernel's own time: until then a frame can still find
    /// the pod's addresses, so they are not given back. One that stays is deleted: somebody holds the namespace.
    fn await_departure(&self, call: Call<'_>, config: &Bridge) -> Result<(), NativeError> {
        let Some(name) = call.previous(PLUGIN)?.and_then(|result| port_of(&result, config)) else {
            return Ok(());
        };
        let deadline = Instant::now() + DEPARTURE_PATIENCE;
        let mut pause = POLL;
        loop {
            let port = link::find_link(&mut self.route(), &name).map_err(netlink(PLUGIN))?;
            if port.is_none_or(|port| port.kind.as_deref() != Some("veth")) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(DEPARTURE_POLL_MAX);
        }
        let mut socket = self.route();
        let mut request = socket.request();
        link::delete_link(&mut request, &name);
        match socket.execute(request) {
            Err(error) if !error.is_absent() => Err(netlink(PLUGIN)(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn check_bridge(&self, call: Call<'_>, config: &Bridge) -> Result<(), NativeError> {
        let missing = |what: String| NativeError::Missing { plugin: PLUGIN, what };
        let result = call.chained(PLUGIN)?;
        let bridge = link::find_link(&mut self.route(), &config.bridge).map_err(netlink(PLUGIN))?;
        let bridge = bridge.filter(is_bridge).ok_or_else(|| missing(config.bridge.clone()))?;
        if let Some(ipam) = config.addresses() {
            let store = open_store(call, ipam)?;
            let given = store.of(call.container, call.ifname).map_err(addresses_failed(call))?;
            if given.is_empty() {
                return Err(missing(format!("an address of container {}", call.container)));
            }
        }
        let wanted: Vec<Cidr> = result
            .ips
            .iter()
            .filter(|address| address.interface.is_none_or(|at| at == POD_INTERFACE))
            .map(|address| address.address)
            .collect();
        let ifname = call.ifname;
        let (inside, present) = call.inside_present(PLUGIN, |socket| {
            let found = link::find_link(socket, ifname).map_err(netlink(PLUGIN))?;
            let inside = found.ok_or_else(|| missing(format!("interface {ifname}")))?;
            let present = link::addresses(socket, inside.index).map_err(netlink(PLUGIN))?;
            Ok((inside, present))
        })?;
        if let Some(address) = wanted.iter().find(|address| !present.contains(address)) {
            return Err(missing(format!("address {address} of {ifname}")));
        }
        let port = match inside.peer {
            Some(peer) => link::link_at(&mut self.route(), peer).map_err(netlink(PLUGIN))?,
            None => None,
        };
        if port.is_none_or(|port| port.master != Some(bridge.index)) {
            return Err(missing(format!("the port of {ifname} on {}", config.bridge)));
        }
        Ok(())
    }

    /// Everything after the pair and the addresses were had.
    fn configure(
        &self,
        call: Call<'_>,
        config: &Bridge,
        ipam: &Ipam,
        (bridge, port): (&Link, &Link),
        given: &[Given],
        mut result: Outcome,
    ) -> Result<Outcome, NativeError> {
        result.ips = given
            .iter()
            .map(|given| Address {
                version: None,
                interface: Some(POD_INTERFACE),
                address: given.address,
                gateway: Some(given.gateway),
            })
            .collect();
        result.routes = ipam.routes.clone().unwrap_or_default();
        if config.is_default_gateway {
            add_default_routes(&mut result.routes, given);
        }
        let routes = &result.routes;
        let inside = call.inside_present(PLUGIN, |socket| {
            configure_inside(socket, call.ifname, config.enable_dad, given, routes)
        })?;
        self.wait_for_port(&port.name)?;
        result.interfaces = interfaces(bridge, port, call, &inside);
        if config.gateway() {
            for family in [IpFamily::V4, IpFamily::V6] {
                let gateways: Vec<Cidr> = given
                    .iter()
                    .filter(|given| given.address.family() == family)
                    .filter_map(|given| Cidr::new(given.gateway, given.address.prefix_len()))
                    .collect();
                if gateways.is_empty() {
                    continue;
                }
                let gateway = if config.vlan == 0 {
                    bridge.clone()
                } else {
                    let gateway = self.ensure_vlan_gateway(config, bridge)?;
                    if !result.interfaces.iter().any(|known| known.name == gateway.name) {
                        result.interfaces.push(interface(&gateway, ""));
                    }
                    gateway
                };
                for address in gateways {
                    self.ensure_address(&gateway, address, config.force_address)?;
                }
                enable_forwarding(family)?;
            }
        }
        if config.ip_masq {
            let comment = format!("name: \"{}\" id: \"{}\"", call.network(), call.container);
            let addresses: Vec<Cidr> = given.iter().map(|given| given.address).collect();
            self.nat().masquerade(&chain(call), &comment, &addresses).map_err(rules(PLUGIN))?;
        }
        self.with_bridge_mac(config, result)
    }

    /// The bridge's address changes with its ports unless it has been set.
    fn with_bridge_mac(&self, config: &Bridge, mut result: Outcome) -> Result<Outcome, NativeError> {
        let bridge = link::find_link(&mut self.route(), &config.bridge).map_err(netlink(PLUGIN))?;
        let missing = || NativeError::Missing { plugin: PLUGIN, what: config.bridge.clone() };
        let bridge = bridge.ok_or_else(missing)?;
        if let Some(first) = result.interfaces.first_mut() {
            *first = interface(&bridge, "");
        }
        Ok(result)
    }

    fn ensure_bridge(&self, config: &Bridge) -> Result<Link, NativeError> {
        let name = config.bridge.as_str();
        let mut socket = self.route();
        let mut found = link::find_link(&mut socket, name).map_err(netlink(PLUGIN))?;
        if found.is_none() {
            let mut request = socket.request();
            link::create_plain_bridge(&mut request, name, mtu(config), config.vlan != 0);
            match socket.execute(request) {
                // Someone was faster.
                Err(error) if error.errno() == Some(Errno::EXIST) => {}
                made => made.map_err(netlink(PLUGIN))?,
            }
            found = link::find_link(&mut socket, name).map_err(netlink(PLUGIN))?;
        }
        let not_one =
            || NativeError::Interface { interface: name.to_owned(), what: "exists and is not a bridge" };
        let bridge = found.filter(is_bridge).ok_or_else(not_one)?;
        let mut request = socket.request();
        if config.promisc_mode && !bridge.promiscuous {
            link::set_promiscuous(&mut request, name);
        }
        if !bridge.up {
            link::set_up(&mut request, name);
        }
        socket.execute(request).map_err(netlink(PLUGIN))?;
        // The routes of this interface are ours to make.
        let _ = sysctl::write_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0");
        Ok(bridge)
    }

    fn add_port(
        &self,
        call: Call<'_>,
        config: &Bridge,
        bridge: &Link,
        mac: Option<MacAddr>,
    ) -> Result<Link, NativeError> {
        let path = call.netns.ok_or_else(|| NativeError::Missing {
            plugin: PLUGIN,
            what: "the network namespace".to_owned(),
        })?;
        let netns = open_netns(path)
            .map_err(|source| NativeError::Netns { path: path.to_owned(), source })?
            .ok_or_else(|| NativeError::Missing {
                plugin: PLUGIN,
                what: format!("network namespace {}", path.display()),
            })?;
        let pod = PairEnd { name: call.ifname, mac };
        self.create_pair(bridge, mtu(config), config.hairpin_mode, config.vlan, pod, Some(netns.as_fd()))
    }

    /// A pair whose near end, with a name of its own, is a port of the bridge.
    fn create_pair(
        &self,
        bridge: &Link,
        mtu: Option<u32>,
        hairpin: bool,
        vlan: u16,
        peer: PairEnd<'_>,
        netns: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<Link, NativeError> {
        let mut socket = self.route();
        for _ in 0..NAME_ATTEMPTS {
            let name = random_name()?;
            let mut request = socket.request();
            let port = PairEnd { name: &name, mac: None };
            link::create_port(&mut request, bridge.index, mtu, port, peer, netns);
            link::set_up_hairpin(&mut request, &name, hairpin);
            if let Err(error) = socket.execute(request) {
                let taken = error.errno() == Some(Errno::EXIST)
                    && link::find_link(&mut socket, &name).map_err(netlink(PLUGIN))?.is_some();
                if taken {
                    continue;
                }
                return Err(netlink(PLUGIN)(error));
            }
            let _ = sysctl::write_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0");
            let missing = || NativeError::Missing { plugin: PLUGIN, what: name.clone() };
            let port = link::find_link(&mut socket, &name).map_err(netlink(PLUGIN))?.ok_or_else(missing)?;
            if vlan != 0 {
                let mut request = socket.request();
                link::set_port_vlan(&mut request, port.index, vlan);
                socket.execute(request).map_err(netlink(PLUGIN))?;
            }
            return Ok(port);
        }
        Err(NativeError::Interface {
            interface: peer.name.to_owned(),
            what: "no free name for its other end",
        })
    }

    /// The interface that has the gateways' addresses in a VLAN.
    fn ensure_vlan_gateway(&self, config: &Bridge, bridge: &Link) -> Result<Link, NativeError> {
        let name = format!("{}.{}", config.bridge, config.vlan);
        if let Some(found) = link::find_link(&mut self.route(), &name).map_err(netlink(PLUGIN))? {
            return Ok(found);
        }
        let peer = PairEnd { name: &name, mac: None };
        self.create_pair(bridge, Some(bridge.mtu), false, config.vlan, peer, None)?;
        let mut socket = self.route();
        let mut request = socket.request();
        link::set_up(&mut request, &name);
        socket.execute(request).map_err(netlink(PLUGIN))?;
        let found = link::find_link(&mut socket, &name).map_err(netlink(PLUGIN))?;
        found.ok_or(NativeError::Missing { plugin: PLUGIN, what: name })
    }

    fn ensure_address(&self, gateway: &Link, wanted: Cidr, force: bool) -> Result<(), NativeError> {
        let mut socket = self.route();
        let present = link::addresses(&mut socket, gateway.index).map_err(netlink(PLUGIN))?;
        let of_family = || present.iter().copied().filter(|present| present.family() == wanted.family());
        if of_family().any(|present| present == wanted) {
            return Ok(());
        }
        let mut request = socket.request();
        for present in of_family() {
            let excludes = wanted.family() == IpFamily::V4
                || present.contains(wanted.address())
                || wanted.contains(present.address());
            if !excludes {
                continue;
            }
            if !force {
                return Err(NativeError::OtherAddress { bridge: gateway.name.clone(), wanted, present });
            }
            link::delete_address(&mut request, gateway.index, present);
        }
        link::add_detected_address(&mut request, gateway.index, wanted);
        // Otherwise the bridge takes over the lowest address of its ports, and changes whenever they come and go.
        if let Some(mac) = gateway.mac {
            link::set_mac(&mut request, &gateway.name, mac);
        }
        match socket.execute(request) {
            Err(error) if error.errno() == Some(Errno::EXIST) => Ok(()),
            done => done.map_err(netlink(PLUGIN)),
        }
    }

    fn wait_for_port(&self, name: &str) -> Result<(), NativeError> {
        let deadline = Instant::now() + PORT_PATIENCE;
        loop {
            let port = link::find_link(&mut self.route(), name).map_err(netlink(PLUGIN))?;
            match port {
                None => return Err(NativeError::Missing { plugin: PLUGIN, what: name.to_owned() }),
                Some(port) if port.operational => return Ok(()),
                Some(_) if Instant::now() < deadline => thread::sleep(POLL),
                Some(_) => {
                    let interface = name.to_owned();
                    return Err(NativeError::Interface { interface, what: "does not let packets pass" });
                }
            }
        }
    }
}

/// Inside the pod: settings, addresses, the interface up, routes.
fn configure_inside(
    socket: &mut Socket,
    ifname: &str,
    detect: bool,
    given: &[Given],
    routes: &[Route],
) -> Result<Link, NativeError> {
    let found = link::find_link(socket, ifname).map_err(netlink(PLUGIN))?;
    let inside = found.ok_or_else(|| NativeError::Missing { plugin: PLUGIN, what: ifname.to_owned() })?;
    // A kernel that lacks one of these goes without it.
    let set = |key: &str, value: &str| {
        let _ = sysctl::write_if_present(key, value);
    };
    if detect {
        set(&format!("ipv6/conf/{ifname}/enhanced_dad"), "1");
    }
    set(&format!("ipv6/conf/{ifname}/accept_dad"), if detect { "1" } else { "0" });
    set(&format!("ipv4/conf/{ifname}/arp_notify"), "1");
    let has_v6 = given.iter().any(|given| given.address.family() == IpFamily::V6);
    if has_v6 {
        for interface in ["lo", ifname] {
            let key = format!("ipv6/conf/{interface}/disable_ipv6");
            if sysctl::read(&key).is_ok_and(|value| value != "0") {
                sysctl::write(&key, "0").map_err(|source| NativeError::Sysctl { plugin: PLUGIN, source })?;
            }
        }
    }
    let mut request = socket.request();
    for given in given {
        link::add_detected_address(&mut request, inside.index, given.address);
    }
    link::set_up(&mut request, ifname);
    socket.execute(request).map_err(netlink(PLUGIN))?;
    if has_v6 {
        let deadline = Instant::now() + SETTLE_PATIENCE;
        while link::has_tentative(socket, inside.index).map_err(netlink(PLUGIN))? && Instant::now() < deadline
        {
            thread::sleep(POLL);
        }
    }
    let mut request = socket.request();
    for route in routes {
        let of_family = |given: &&Given| given.address.family() == route.dst.family();
        let gateway = route.gw.or_else(|| given.iter().find(of_family).map(|given| given.gateway));
        link::add_route(&mut request, inside.index, route.dst, gateway);
    }
    socket.execute(request).map_err(netlink(PLUGIN))?;
    Ok(inside)
}

/// Inside the pod, where it has no addresses.
fn bring_up(socket: &mut Socket, ifname: &str) -> Result<Link, NativeError> {
    let mut request = socket.request();
    link::set_up(&mut request, ifname);
    socket.execute(request).map_err(netlink(PLUGIN))?;
    let found = link::find_link(socket, ifname).map_err(netlink(PLUGIN))?;
    found.ok_or_else(|| NativeError::Missing { plugin: PLUGIN, what: ifname.to_owned() })
}

/// A default route of every family that has addresses and no such route.
fn add_default_routes(routes: &mut Vec<Route>, given: &[Given]) {
    for given in given {
        let family = given.address.family();
        let Some(everywhere) = Cidr::new(from_number(family, 0), 0) else {
            continue;
        };
        if !routes.iter().any(|route| route.gw.is_some() && route.dst == everywhere) {
            routes.push(Route { dst: everywhere, gw: Some(given.gateway), more: Default::default() });
        }
    }
}

/// Releases the addresses of everyone for whom `valid` does not hold.
pub(super) fn release_others(
    call: Call<'_>,
    config: &Bridge,
    valid: impl Fn(&str, &str) -> bool,
) -> Result<(), NativeError> {
    match config.addresses() {
        Some(ipam) => open_store(call, ipam)?.retain(valid).map_err(addresses_failed(call)),
        None => Ok(()),
    }
}

fn allocate(call: Call<'_>, ipam: &Ipam) -> Result<Vec<Given>, NativeError> {
    let runtime = call.runtime("host-local")?;
    let requested = requested_addresses(call.config, &runtime, call.args)
        .map_err(|text| NativeError::Requested { plugin: "host-local", what: "an address", text })?;
    let sets = ipam.sets(&runtime).map_err(addresses_failed(call))?;
    if let Some(path) = ipam.resolv_conf.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        // What it says is lost in the result of this plugin; that it can be read is not.
        std::fs::File::open(path).map_err(|source| NativeError::File { path: path.clone(), source })?;
    }
    let store = open_store(call, ipam)?;
    store.allocate(call.container, call.ifname, &sets, &requested).map_err(addresses_failed(call))
}

fn release(call: Call<'_>, ipam: &Ipam) -> Result<(), NativeError> {
    open_store(call, ipam)?.release(call.container, call.ifname).map_err(addresses_failed(call))
}

fn open_store(call: Call<'_>, ipam: &Ipam) -> Result<Store, NativeError> {
    let dir = ipam.data_dir.as_deref().filter(|path| !path.as_os_str().is_empty());
    Store::open(dir, call.network()).map_err(addresses_failed(call))
}

fn addresses_failed(call: Call<'_>) -> impl Fn(super::HostLocalError) -> NativeError {
    let network = call.network().to_owned();
    move |source| NativeError::Addresses { network: network.clone(), source }
}

fn enable_forwarding(family: IpFamily) -> Result<(), NativeError> {
    let key = match family {
        IpFamily::V4 => "ipv4/ip_forward",
        IpFamily::V6 => "ipv6/conf/all/forwarding",
    };
    sysctl::ensure(key, "1").map_err(|source| NativeError::Sysctl { plugin: PLUGIN, source })
}

fn interfaces(bridge: &Link, port: &Link, call: Call<'_>, inside: &Link) -> Vec<Interface> {
    let sandbox = call.netns.map_or_else(String::new, |path| path.display().to_string());
    vec![interface(bridge, ""), interface(port, ""), interface(inside, &sandbox)]
}

fn interface(link: &Link, sandbox: &str) -> Interface {
    let mac = link.mac.map_or_else(String::new, |mac| mac.to_string());
    Interface { name: link.name.clone(), mac, sandbox: sandbox.to_owned(), ..Interface::default() }
}

/// The pod's port: the machine's interface in the result that is neither the bridge nor the gateway of its VLAN.
fn port_of(result: &Outcome, config: &Bridge) -> Option<String> {
    let gateway = format!("{}.{}", config.bridge, config.vlan);
    let port = result.interfaces.iter().find(|known| {
        known.sandbox.is_empty()
            && known.name != config.bridge
            && known.name != gateway
            && known.name.starts_with("veth")
    });
    port.map(|port| port.name.clone())
}

fn chain(call: Call<'_>) -> String {
    hashed(CHAIN_LENGTH, "CNI-", &[call.network(), call.container])
}

fn mtu(config: &Bridge) -> Option<u32> {
    (config.mtu != 0).then_some(config.mtu)
}

fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}

/// `veth` and 32 random bits.
fn random_name() -> Result<String, NativeError> {
    let mut bytes = [0; 4];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|errno| NativeError::File { path: "/dev/urandom".into(), source: errno.into() })?;
    Ok(format!("veth{:08x}", u32::from_be_bytes(bytes)))
}
