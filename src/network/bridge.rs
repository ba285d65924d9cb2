//! The bridge that pods hang on, and the veth pair of one pod.
//!
//! ```text
//!  namespace of the daemon                               namespace of the pod
//!  ┌───────────────────────────────────────────┐         ┌──────────────────────┐
//!  │ pinnace0  10.88.0.1/16, fd00:…::1/64      │         │ eth0  10.88.0.7/16   │
//!  │    ├─ veth… (hairpin, alias: sandbox id) ═╪═════════╪═      fd00:…::7/64   │
//!  │    └─ veth…                               │         │ default via …1       │
//!  └───────────────────────────────────────────┘         └──────────────────────┘
//! ```
//!
//! A pod costs three requests: the pair and its port on this side, the interface on that side, and a look at
//! the port at the end. The name of the port follows from the sandbox id, so it can be found without a record.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::InterfaceAddress;
use crate::address::{Cidr, InterfaceName, IpFamily, MacAddr};
use crate::ipam::Range;
use crate::link::{self, Counters, Link, Peer};
use crate::netlink::{self, Family, Socket};
use crate::netns::Netns;
use crate::sysctl;

/// The pod's interface.
pub const SANDBOX_IFNAME: &str = "eth0";

const ALIAS_PREFIX: &str = "pinnace sandbox ";
const MTU_WITHOUT_UPLINK: u32 = 1500;
/// RFC 8200: the least that an IPv6 link must carry.
const MTU_MIN: u32 = 1280;
/// "pinn": links in this group are about to be deleted.
const DELETED_GROUP: u32 = 0x7069_6e6e;

/// Why the bridge or a pod's link could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::NetlinkError),
    /// A setting that the bridge needs cannot be made.
    #[error(transparent)]
    Sysctl(#[from] sysctl::SysctlError),
    /// The name belongs to something else.
    #[error("{name} exists and is not a bridge but {kind}")]
    NotABridge {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The bridge was deleted by someone.
    #[error("bridge {name} is gone")]
    Gone {
        /// The bridge.
        name: String,
    },
}

/// The bridge of one network, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Bridge {
    name: InterfaceName,
    mtu: Option<u32>,
    socket: Mutex<Socket>,
    up: Mutex<Option<Up>>,
}

/// A bridge that carries packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Up {
    /// Its number.
    pub index: u32,
    /// Largest packet, for pods too.
    pub mtu: u32,
}

/// What the bridge has to be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its gateways are on the bridge.
    pub ranges: &'a [Range],
    /// Their gateways are taken off.
    pub dropped: &'a [Range],
}

impl Bridge {
    /// Prepares to use a bridge; nothing is made yet. Without `mtu` the uplink's is taken.
    pub fn open(name: InterfaceName, mtu: Option<u32>) -> Result<Self, BridgeError> {
        let socket = Mutex::new(Socket::open(Family::Route)?);
        Ok(Bridge { name, mtu, socket, up: Mutex::new(None) })
    }

    /// Its name.
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// What is known of it, without asking the kernel.
    pub fn state(&self) -> Option<Up> {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is known, e.g. because the kernel said that it was deleted.
    pub fn forget(&self) {
        self.set_state(None);
    }

    /// Makes the bridge, or takes over the one that is there, and lets this machine forward packets.
    ///
    /// Must run in a thread whose network namespace is the daemon's.
    pub fn ensure(&self, wanted: Wanted<'_>) -> Result<Up, BridgeError> {
        self.set_state(None);
        let name = self.name.as_str();
        let mut socket = self.socket();
        let mtu = match self.mtu {
            Some(mtu) => mtu,
            None => uplink_mtu(&mut socket, name)?,
        };
        let found = match link::find_link(&mut socket, name)? {
            Some(found) => found,
            None => create(&mut socket, name, wanted.ranges, mtu)?,
        };
        if found.kind.as_deref() != Some("bridge") {
            let kind = found.kind.unwrap_or_else(|| "a device".to_owned());
            return Err(BridgeError::NotABridge { name: name.to_owned(), kind });
        }
        // Before it has addresses: what else is on the bridge must not route for us (CVE-2020-10749).
        let has = |family| wanted.ranges.iter().any(|range| range.cidr().family() == family);
        sysctl::write_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        if has(IpFamily::V6) {
            sysctl::write_if_present(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            sysctl::write_if_present(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
        }
        let present = link::addresses(&mut socket, found.index)?;
        let mut request = socket.request();
        if found.mtu != mtu {
            link::set_mtu(&mut request, name, mtu);
        }
        if !found.up {
            link::set_up(&mut request, name);
        }
        let gateways: Vec<Cidr> = wanted.ranges.iter().map(Range::gateway_cidr).collect();
        for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
            link::add_address(&mut request, found.index, *gateway);
        }
        for dropped in wanted.dropped.iter().map(Range::gateway_cidr) {
            if present.contains(&dropped) && !gateways.contains(&dropped) {
                link::delete_address(&mut request, found.index, dropped);
            }
        }
        socket.execute(request)?;
        drop(socket);
        if has(IpFamily::V4) {
            sysctl::ensure("ipv4/ip_forward", "1")?;
        }
        if has(IpFamily::V6) {
            forward_ipv6()?;
        }
        let up = Up { index: found.index, mtu };
        self.set_state(Some(up));
        Ok(up)
    }

    /// Lets packets from this machine's loopback be sent out through the bridge to a pod's host port.
    ///
    /// The opposite direction is closed by a rule (CVE-2020-8558): set this only where that rule is.
    pub fn route_loopback(&self) -> Result<(), BridgeError> {
        Ok(sysctl::ensure(&format!("ipv4/conf/{}/route_localnet", self.name), "1")?)
    }

    /// Connects a pod: afterwards its interface is up, has its addresses and routes and can be used at once.
    ///
    /// On failure the pair may be left; it is gone when the namespace is, or by [`Bridge::delete`].
    pub fn connect(
        &self,
        up: Up,
        sandbox: &str,
        netns: &mut Netns,
        mac: MacAddr,
        addresses: &[InterfaceAddress],
    ) -> Result<(), BridgeError> {
        let port = host_ifname(sandbox);
        self.create_pair(up, sandbox, &port, netns, mac)?;
        configure_sandbox(&mut netns.socket, addresses)?;
        // Both carry packets from now on, not when the kernel gets round to it: first the port, by which the bridge has
        // a carrier, then the bridge.
        let mut socket = self.socket();
        let mut request = socket.request();
        link::ask_link(&mut request, &port);
        link::ask_link(&mut request, self.name.as_str());
        socket.execute(request)?;
        Ok(())
    }

    fn create_pair(
        &self,
        up: Up,
        sandbox: &str,
        port: &str,
        netns: &Netns,
        mac: MacAddr,
    ) -> Result<(), BridgeError> {
        let mut socket = self.socket();
        let mut request = socket.request();
        let peer = Peer { name: SANDBOX_IFNAME, mac, netns: netns.as_fd() };
        link::create_veth(&mut request, port, up.index, up.mtu, &peer);
        link::set_up_port(&mut request, port, &alias(sandbox));
        let Err(error) = socket.execute(request) else {
            return Ok(());
        };
        // A master that does not exist is an invalid argument to the kernel, among many others.
        let gone = matches!(error.errno(), Some(Errno::INVAL | Errno::NODEV))
            && link::find_link(&mut socket, self.name.as_str())?.is_none_or(|link| link.index != up.index);
        if !gone {
            return Err(error.into());
        }
        drop(socket);
        self.forget();
        Err(BridgeError::Gone { name: self.name.to_string() })
    }

    /// The sandboxes whose ports hang on the bridge, with the ports' names.
    pub fn ports(&self) -> Result<Vec<(String, String)>, BridgeError> {
        Ok(self.listed(false)?.into_iter().map(|(sandbox, link)| (sandbox, link.name)).collect())
    }

    /// What passed through every pod's interface, seen from the pod, by sandbox.
    ///
    /// One request for all pods: the port's counters are those of the pod with the directions exchanged.
    pub fn counters(&self) -> Result<Vec<(String, Counters)>, BridgeError> {
        let ports = self.listed(true)?;
        Ok(ports
            .into_iter()
            .filter_map(|(sandbox, link)| Some((sandbox, link.counters?.from_other_end())))
            .collect())
    }

    fn listed(&self, counters: bool) -> Result<Vec<(String, Link)>, BridgeError> {
        let Some(up) = self.state() else {
            return Ok(Vec::new());
        };
        let ports = link::links(&mut self.socket(), Some(up.index), counters)?;
        let owned = |link: Link| {
            let sandbox = link.alias.as_deref()?.strip_prefix(ALIAS_PREFIX)?.to_owned();
            Some((sandbox, link))
        };
        Ok(ports.into_iter().filter_map(owned).collect())
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: Option<Up>) {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Deletes links, all under one wait for the kernel's readers (about 20 ms, during which no other link of the
/// machine can be changed). Those that are gone already are no error.
pub fn delete<'a>(
    socket: &mut Socket,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), netlink::NetlinkError> {
    let mut request = socket.request();
    for name in names {
        link::set_group(&mut request, name, DELETED_GROUP);
    }
    if request.is_empty() {
        return Ok(());
    }
    link::delete_group(&mut request, DELETED_GROUP);
    match socket.execute(request) {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// The name of a sandbox's port: `veth` and 55 bits of a hash of its id.
pub fn host_ifname(sandbox: &str) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // FNV-1a, which never changes between versions of a library.
    let mut hash = sandbox.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut name = String::from("veth");
    for _ in 0..11 {
        name.push(char::from(DIGITS[usize::try_from(hash % 32).unwrap_or(0)]));
        hash /= 32;
    }
    name
}

/// The note on a port, which the kernel keeps up to 255 bytes of.
fn alias(sandbox: &str) -> String {
    format!("{ALIAS_PREFIX}{sandbox}")
}

fn create(socket: &mut Socket, name: &str, ranges: &[Range], mtu: u32) -> Result<Link, BridgeError> {
    let mut request = socket.request();
    let gateway = ranges.first().map(Range::gateway);
    let mac = gateway.map_or(MacAddr([0x0a, 0x58, 0, 0, 0, 1]), MacAddr::of);
    link::create_bridge(&mut request, name, mac, mtu);
    match socket.execute(request) {
        Ok(()) => {}
        // Someone was faster.
        Err(error) if error.errno() == Some(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    link::find_link(socket, name)?.ok_or_else(|| BridgeError::Gone { name: name.to_owned() })
}

/// Inside the pod: the interface up, then addresses, then routes.
fn configure_sandbox(
    socket: &mut Socket,
    addresses: &[InterfaceAddress],
) -> Result<(), netlink::NetlinkError> {
    let mut request = socket.request();
    link::set_up(&mut request, SANDBOX_IFNAME);
    link::ask_link(&mut request, SANDBOX_IFNAME);
    let mut index = None;
    socket.exchange(request, |message| index = link::parse_link(message).map(|link| link.index).or(index))?;
    let index = index.unwrap_or(0);
    let mut request = socket.request();
    for address in addresses {
        link::add_address(&mut request, index, address.cidr);
    }
    for address in addresses {
        link::add_default_route(&mut request, index, address.gateway);
    }
    socket.execute(request)
}

/// The largest packet that leaves the machine in one piece.
fn uplink_mtu(socket: &mut Socket, bridge: &str) -> Result<u32, netlink::NetlinkError> {
    let uplinks = link::default_route_links(socket)?;
    if uplinks.is_empty() {
        return Ok(MTU_WITHOUT_UPLINK);
    }
    let links = link::links(socket, None, false)?;
    let uplink = |index: &u32| links.iter().find(|link| link.index == *index && link.name != bridge);
    let mtu = uplinks.iter().filter_map(uplink).map(|link| link.mtu).min();
    Ok(mtu.unwrap_or(MTU_WITHOUT_UPLINK).max(MTU_MIN))
}

/// Turns IPv6 forwarding on without cutting the machine off: a router ignores the announcements that a host
/// follows (accept_ra 1), so interfaces that follow them are told to go on (accept_ra 2).
fn forward_ipv6() -> Result<(), sysctl::SysctlError> {
    const FORWARDING: &str = "ipv6/conf/all/forwarding";
    if sysctl::read(FORWARDING)? == "1" {
        return Ok(());
    }
    for interface in sysctl::children("ipv6/conf")? {
        let key = format!("ipv6/conf/{interface}/accept_ra");
        if interface != "all" && interface != "default" && sysctl::read(&key).is_ok_and(|value| value == "1")
        {
            sysctl::write_if_present(&key, "2")?;
        }
    }
    sysctl::write(FORWARDING, "1")
}
