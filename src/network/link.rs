//! Requests of rtnetlink(7): links, addresses and routes, as rows of messages.
//!
//! The functions append to a [`Request`], so that a caller can send several at once.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::address::{Cidr, IpFamily, MacAddr, octets};
use crate::message::{self, Attributes, Message, Request, Subject, flag};
use crate::netlink::{NetlinkError, Socket};

/// Multicast group of link changes, as a bit mask.
pub const GROUP_LINK: u32 = 1 << 0;
/// Message type: a link is new or changed.
pub const RTM_NEWLINK: u16 = 16;
/// Message type: a link is gone.
pub const RTM_DELLINK: u16 = 17;

const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTM_SETLINK: u16 = 19;

const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_HAIRPIN: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_MASTER: u16 = 1;
const BRIDGE_VLAN_INFO_PVID: u16 = 2;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 4;
const AF_BRIDGE: u8 = 7;
/// The family of messages about links themselves.
pub const AF_UNSPEC: u8 = 0;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
const IF_OPER_UP: u8 = 6;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_F_NODAD: u8 = 2;
const IFA_F_DADFAILED: u8 = 8;
const IFA_F_TENTATIVE: u8 = 0x40;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

const IFINFO_LEN: usize = 16;
const IFADDR_LEN: usize = 8;
const RTMSG_LEN: usize = 12;

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<MacAddr>,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// The number of its other end, in the namespace of that.
    pub peer: Option<u32>,
    /// Its kind, e.g. `bridge` or `veth`; devices of hardware have none.
    pub kind: Option<String>,
    /// The note that was put on it.
    pub alias: Option<String>,
    /// Largest packet.
    pub mtu: u32,
    /// Whether it was set up.
    pub up: bool,
    /// Whether packets pass.
    pub operational: bool,
    /// Whether it was set to take every frame.
    pub promiscuous: bool,
    /// Counters, if they were asked for.
    pub counters: Option<Counters>,
}

/// What passed through a link, seen from its own side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received with an error.
    pub rx_errors: u64,
    /// Packets not sent for an error.
    pub tx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

impl Counters {
    /// The same traffic seen from the other end of the pair.
    pub fn from_other_end(self) -> Self {
        Counters {
            rx_packets: self.tx_packets,
            tx_packets: self.rx_packets,
            rx_bytes: self.tx_bytes,
            tx_bytes: self.rx_bytes,
            rx_errors: self.tx_errors,
            tx_errors: self.rx_errors,
            rx_dropped: self.tx_dropped,
            tx_dropped: self.rx_dropped,
        }
    }
}

/// Appends: make a bridge with this hardware address and set it up.
pub fn create_bridge(request: &mut Request, name: &str, mac: MacAddr, mtu: u32) {
    let subject = subject("create bridge", name);
    let flags = flag::CREATE | flag::EXCLUSIVE;
    request.message(subject, RTM_NEWLINK, flags, &ifinfo(0, IFF_UP), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        // Given, not taken over from a port: otherwise it changes whenever ports come and go.
        attributes.bytes(IFLA_ADDRESS, &mac.0);
        attributes.u32(IFLA_MTU, mtu);
        attributes.nested(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
    });
}

/// Appends: make a veth pair whose far end is born inside another namespace.
pub fn create_veth(request: &mut Request, name: &str, master: u32, mtu: u32, peer: &Peer<'_>) {
    let subject = subject("create veth", name);
    let flags = flag::CREATE | flag::EXCLUSIVE;
    request.message(subject, RTM_NEWLINK, flags, &ifinfo(0, 0), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.u32(IFLA_MTU, mtu);
        attributes.u32(IFLA_MASTER, master);
        attributes.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested_after(VETH_INFO_PEER, &ifinfo(0, 0), |end| {
                    end.text(IFLA_IFNAME, peer.name);
                    end.u32(IFLA_MTU, mtu);
                    end.bytes(IFLA_ADDRESS, &peer.mac.0);
                    end.u32(IFLA_NET_NS_FD, peer.netns.as_raw_fd().cast_unsigned());
                });
            });
        });
    });
}

/// How one end of a pair that a plugin makes is born.
#[derive(Debug, Clone, Copy)]
pub struct PairEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address; none is one of the kernel's choice.
    pub mac: Option<MacAddr>,
}

/// Appends: make a veth pair whose near end is a port of a bridge and up. Without `mtu` the kernel chooses.
///
/// Neither end has a queue, as with the pairs that CNI's plugins make.
pub fn create_port(
    request: &mut Request,
    master: u32,
    mtu: Option<u32>,
    port: PairEnd<'_>,
    peer: PairEnd<'_>,
    netns: Option<BorrowedFd<'_>>,
) {
    let subject = subject("create veth", port.name);
    let flags = flag::CREATE | flag::EXCLUSIVE;
    let describe = |attributes: &mut Attributes<'_>, end: PairEnd<'_>| {
        attributes.text(IFLA_IFNAME, end.name);
        if let Some(mac) = end.mac {
            attributes.bytes(IFLA_ADDRESS, &mac.0);
        }
        if let Some(mtu) = mtu {
            attributes.u32(IFLA_MTU, mtu);
        }
        attributes.u32(IFLA_TXQLEN, 0);
    };
    request.message(subject, RTM_NEWLINK, flags, &ifinfo(0, 0), |attributes| {
        describe(attributes, port);
        attributes.u32(IFLA_MASTER, master);
        attributes.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nested(IFLA_INFO_DATA, |data| {
                data.nested_after(VETH_INFO_PEER, &ifinfo(0, 0), |end| {
                    describe(end, peer);
                    if let Some(netns) = netns {
                        end.u32(IFLA_NET_NS_FD, netns.as_raw_fd().cast_unsigned());
                    }
                });
            });
        });
    });
}

/// Appends: set a port of a bridge up and say whether it sends frames back to where they came from.
pub fn set_up_hairpin(request: &mut Request, name: &str, hairpin: bool) {
    request.message(subject("set up port", name), RTM_NEWLINK, 0, &ifinfo(0, IFF_UP), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge");
            info.nested(IFLA_INFO_SLAVE_DATA, |data| data.u8(IFLA_BRPORT_HAIRPIN, u8::from(hairpin)));
        });
    });
}

/// Appends: make a bridge with all that the kernel chooses, and set it up.
pub fn create_plain_bridge(request: &mut Request, name: &str, mtu: Option<u32>, vlan_filtering: bool) {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    request.message(subject("create bridge", name), RTM_NEWLINK, flags, &ifinfo(0, IFF_UP), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        if let Some(mtu) = mtu {
            attributes.u32(IFLA_MTU, mtu);
        }
        attributes.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
            if vlan_filtering {
                info.nested(IFLA_INFO_DATA, |data| data.u8(IFLA_BR_VLAN_FILTERING, 1));
            }
        });
    });
}

/// Appends: make an ifb device and set it up.
pub fn create_ifb(request: &mut Request, name: &str, mtu: u32) {
    let flags = flag::CREATE | flag::EXCLUSIVE;
    request.message(subject("create ifb", name), RTM_NEWLINK, flags, &ifinfo(0, IFF_UP), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.u32(IFLA_MTU, mtu);
        attributes.u32(IFLA_TXQLEN, 0);
        attributes.nested(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "ifb"));
    });
}

/// Appends: let a link take every frame.
pub fn set_promiscuous(request: &mut Request, name: &str) {
    let header = ifinfo(0, IFF_PROMISC);
    request.message(subject("set promiscuous", name), RTM_NEWLINK, 0, &header, |attributes| {
        attributes.text(IFLA_IFNAME, name);
    });
}

/// Appends: give a link a hardware address.
pub fn set_mac(request: &mut Request, name: &str, mac: MacAddr) {
    request.message(subject("set hardware address of", name), RTM_NEWLINK, 0, &ifinfo(0, 0), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.bytes(IFLA_ADDRESS, &mac.0);
    });
}

/// Appends: set a link down.
pub fn set_down(request: &mut Request, name: &str) {
    let mut header = ifinfo(0, 0);
    header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    request.message(subject("set down", name), RTM_NEWLINK, 0, &header, |attributes| {
        attributes.text(IFLA_IFNAME, name);
    });
}

/// Appends: delete a link.
pub fn delete_link(request: &mut Request, name: &str) {
    request.message(subject("delete", name), RTM_DELLINK, 0, &ifinfo(0, 0), |attributes| {
        attributes.text(IFLA_IFNAME, name);
    });
}

/// Appends: what a port receives without a tag belongs to a VLAN, and that is sent without a tag.
pub fn set_port_vlan(request: &mut Request, index: u32, vlan: u16) {
    let mut header = ifinfo(index, 0);
    header[0] = AF_BRIDGE;
    request.message(subject("set vlan", &vlan.to_string()), RTM_SETLINK, 0, &header, |attributes| {
        attributes.nested(IFLA_AF_SPEC, |bridge| {
            bridge.bytes(IFLA_BRIDGE_FLAGS, &BRIDGE_FLAGS_MASTER.to_ne_bytes());
            let flags = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED;
            bridge.bytes(IFLA_BRIDGE_VLAN_INFO, &[flags.to_ne_bytes(), vlan.to_ne_bytes()].concat());
        });
    });
}

/// The far end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its name there.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: MacAddr,
    /// The namespace where it is born.
    pub netns: BorrowedFd<'a>,
}

/// Appends: note the owner on a bridge port, let it send frames back to where they came from, set it up.
///
/// Without hairpin a pod cannot reach itself through a host port or service address when br_netfilter does
/// the translation inside the bridge. The port needs no IPv6 address of its own.
pub fn set_up_port(request: &mut Request, name: &str, alias: &str) {
    request.message(subject("set up port", name), RTM_NEWLINK, 0, &ifinfo(0, IFF_UP), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.text(IFLA_IFALIAS, alias);
        no_link_local(attributes);
        attributes.nested(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge");
            info.nested(IFLA_INFO_SLAVE_DATA, |data| data.u8(IFLA_BRPORT_HAIRPIN, 1));
        });
    });
}

/// Appends: set a link up.
pub fn set_up(request: &mut Request, name: &str) {
    request.message(subject("set up", name), RTM_NEWLINK, 0, &ifinfo(0, IFF_UP), |attributes| {
        attributes.text(IFLA_IFNAME, name);
    });
}

/// Appends: change the largest packet of a link.
pub fn set_mtu(request: &mut Request, name: &str, mtu: u32) {
    request.message(subject("set mtu of", name), RTM_NEWLINK, 0, &ifinfo(0, 0), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.u32(IFLA_MTU, mtu);
    });
}

/// Appends: put a link into a group.
pub fn set_group(request: &mut Request, name: &str, group: u32) {
    request.message(subject("set group of", name), RTM_NEWLINK, 0, &ifinfo(0, 0), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.u32(IFLA_GROUP, group);
    });
}

/// Appends: delete every link of a group, all under one wait for the kernel's readers.
pub fn delete_group(request: &mut Request, group: u32) {
    request.message(subject("delete group", "of veths"), RTM_DELLINK, 0, &ifinfo(0, 0), |attributes| {
        attributes.u32(IFLA_GROUP, group);
    });
}

/// Appends: give a link an address that is usable at once (no duplicate address detection).
pub fn add_address(request: &mut Request, index: u32, address: Cidr) {
    new_address(request, &ifaddr(address, index, IFA_F_NODAD), address);
}

/// Appends: give a link an address that is usable when nobody else has it, as far as the link's settings want that
/// detected.
pub fn add_detected_address(request: &mut Request, index: u32, address: Cidr) {
    new_address(request, &ifaddr(address, index, 0), address);
}

fn new_address(request: &mut Request, header: &[u8], address: Cidr) {
    let subject = subject("add address", &address.to_string());
    let flags = flag::CREATE | flag::EXCLUSIVE;
    request.message(subject, RTM_NEWADDR, flags, header, |attributes| {
        let bytes = octets(address.address());
        attributes.bytes(IFA_LOCAL, &bytes);
        attributes.bytes(IFA_ADDRESS, &bytes);
        if address.family() == IpFamily::V4 && address.prefix_len() < 31 {
            attributes.bytes(IFA_BROADCAST, &octets(address.last()));
        }
    });
}

/// Appends: take an address from a link.
pub fn delete_address(request: &mut Request, index: u32, address: Cidr) {
    let subject = subject("delete address", &address.to_string());
    request.message(subject, RTM_DELADDR, 0, &ifaddr(address, index, 0), |attributes| {
        attributes.bytes(IFA_LOCAL, &octets(address.address()));
    });
}

/// Appends: the default route of the gateway's family.
pub fn add_default_route(request: &mut Request, index: u32, gateway: IpAddr) {
    let subject = subject("add default route via", &gateway.to_string());
    let header = rtmsg(IpFamily::of(gateway));
    request.message(subject, RTM_NEWROUTE, flag::CREATE | flag::EXCLUSIVE, &header, |attributes| {
        attributes.bytes(RTA_GATEWAY, &octets(gateway));
        attributes.u32(RTA_OIF, index);
    });
}

/// Appends: a route through a link, next to others for the same destination.
pub fn add_route(request: &mut Request, index: u32, to: Cidr, gateway: Option<IpAddr>) {
    let subject = subject("add route to", &to.to_string());
    let mut header = rtmsg(to.family());
    header[1] = to.prefix_len();
    request.message(subject, RTM_NEWROUTE, flag::CREATE, &header, |attributes| {
        attributes.bytes(RTA_DST, &octets(to.network().address()));
        if let Some(gateway) = gateway {
            attributes.bytes(RTA_GATEWAY, &octets(gateway));
        }
        attributes.u32(RTA_OIF, index);
    });
}

/// The number of the link by which packets to an address leave; none if they do not.
pub fn link_towards(socket: &mut Socket, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
    let family = IpFamily::of(address);
    let mut header = [0; RTMSG_LEN];
    header[0] = family.number();
    header[1] = family.bits();
    let mut request = socket.request();
    request.message(subject("find route to", &address.to_string()), RTM_GETROUTE, 0, &header, |attributes| {
        attributes.bytes(RTA_DST, &octets(address));
    });
    let mut index = None;
    let reply = |message: Message<'_>| {
        let attributes = message::attributes(message.payload.get(RTMSG_LEN..).unwrap_or_default());
        let mut links = attributes.filter(|attribute| attribute.kind == RTA_OIF);
        index = links.next().and_then(|attribute| attribute.u32()).or(index);
    };
    match socket.exchange(request, reply) {
        Ok(()) => Ok(index),
        Err(error) if matches!(error.errno(), Some(Errno::NETUNREACH | Errno::HOSTUNREACH)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Appends: ask for one link by name. The reply is read with [`parse_link`].
///
/// Since Linux 6.8 this also makes a carrier that has just come count, rather than a moment later.
pub fn ask_link(request: &mut Request, name: &str) {
    request.message(subject("find link", name), RTM_GETLINK, 0, &ifinfo(0, 0), |attributes| {
        attributes.text(IFLA_IFNAME, name);
        attributes.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
}

/// Finds one link by name.
pub fn find_link(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut request = socket.request();
    ask_link(&mut request, name);
    let mut link = None;
    match socket.exchange(request, |message| link = parse_link(message).or(link.take())) {
        Ok(()) => Ok(link),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links of the namespace, or the ports of one bridge. Counters cost a few microseconds per link.
pub fn links(socket: &mut Socket, master: Option<u32>, counters: bool) -> Result<Vec<Link>, NetlinkError> {
    let ask = subject("list", "links");
    let attributes = |attributes: &mut Attributes<'_>| {
        if let Some(master) = master {
            attributes.u32(IFLA_MASTER, master);
        }
        attributes.u32(IFLA_EXT_MASK, if counters { 0 } else { RTEXT_FILTER_SKIP_STATS });
    };
    let mut links = socket.dump(&ask, RTM_GETLINK, &ifinfo(0, 0), attributes, parse_link)?;
    if let Some(master) = master {
        // Kernels may ignore the filter.
        links.retain(|link| link.master == Some(master));
    }
    Ok(links)
}

/// All addresses of a link.
pub fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<Cidr>, NetlinkError> {
    let ask = subject("list", "addresses");
    socket.dump(
        &ask,
        RTM_GETADDR,
        &[0; IFADDR_LEN],
        |_| (),
        |message| {
            let (found, cidr) = parse_address(message)?;
            (found == index).then_some(cidr)
        },
    )
}

/// Whether the kernel is still finding out if someone else has one of a link's addresses.
pub fn has_tentative(socket: &mut Socket, index: u32) -> Result<bool, NetlinkError> {
    let ask = subject("list", "addresses");
    let tentative = socket.dump(
        &ask,
        RTM_GETADDR,
        &[0; IFADDR_LEN],
        |_| (),
        |message| {
            let about = message.kind == RTM_NEWADDR && message::u32_at(message.payload, 4)? == index;
            let flags = *message.payload.get(2)?;
            (about && flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0).then_some(())
        },
    )?;
    Ok(!tentative.is_empty())
}

/// One link by its number.
pub fn link_at(socket: &mut Socket, index: u32) -> Result<Option<Link>, NetlinkError> {
    let mut request = socket.request();
    let subject = subject("find link", &index.to_string());
    request.message(subject, RTM_GETLINK, 0, &ifinfo(index, 0), |attributes| {
        attributes.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    let mut link = None;
    match socket.exchange(request, |message| link = parse_link(message).or(link.take())) {
        Ok(()) => Ok(link),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The links that default routes of the main table leave by, IPv4 first.
pub fn default_route_links(socket: &mut Socket) -> Result<Vec<u32>, NetlinkError> {
    let ask = subject("list", "routes");
    let mut found = Vec::new();
    for family in [IpFamily::V4, IpFamily::V6] {
        let mut header = [0; RTMSG_LEN];
        header[0] = family.number();
        found.extend(socket.dump(&ask, RTM_GETROUTE, &header, |_| (), parse_default_route)?);
    }
    Ok(found)
}

/// Reads the description of a link, of a reply or a notification.
pub fn parse_link(message: Message<'_>) -> Option<Link> {
    // Messages of the bridge family are about ports: "deleted" then only means that a port left.
    let about_links = message.payload.first() == Some(&AF_UNSPEC);
    if !about_links || (message.kind != RTM_NEWLINK && message.kind != RTM_DELLINK) {
        return None;
    }
    let mut link = Link {
        index: message::u32_at(message.payload, 4)?,
        name: String::new(),
        mac: None,
        master: None,
        peer: None,
        kind: None,
        alias: None,
        mtu: 0,
        up: message::u32_at(message.payload, 8)? & IFF_UP != 0,
        operational: false,
        promiscuous: message::u32_at(message.payload, 8)? & IFF_PROMISC != 0,
        counters: None,
    };
    for attribute in message::attributes(message.payload.get(IFINFO_LEN..)?) {
        match attribute.kind {
            IFLA_IFNAME => link.name = attribute.text()?.to_owned(),
            IFLA_MTU => link.mtu = attribute.u32()?,
            IFLA_ADDRESS => link.mac = attribute.value.try_into().ok().map(MacAddr),
            IFLA_LINK => link.peer = attribute.u32(),
            IFLA_MASTER => link.master = attribute.u32(),
            IFLA_IFALIAS => link.alias = attribute.text().map(str::to_owned),
            IFLA_OPERSTATE => link.operational = attribute.value.first() == Some(&IF_OPER_UP),
            IFLA_STATS64 => link.counters = parse_counters(attribute.value),
            IFLA_LINKINFO => {
                link.kind = message::attributes(attribute.value)
                    .find(|inner| inner.kind == IFLA_INFO_KIND)
                    .and_then(|inner| inner.text().map(str::to_owned));
            }
            _ => {}
        }
    }
    Some(link)
}

/// `struct rtnl_link_stats64`: 64-bit counters in this order.
fn parse_counters(bytes: &[u8]) -> Option<Counters> {
    let counter = |position: usize| message::u64_at(bytes, position * 8);
    Some(Counters {
        rx_packets: counter(0)?,
        tx_packets: counter(1)?,
        rx_bytes: counter(2)?,
        tx_bytes: counter(3)?,
        rx_errors: counter(4)?,
        tx_errors: counter(5)?,
        rx_dropped: counter(6)?,
        tx_dropped: counter(7)?,
    })
}

fn parse_address(message: Message<'_>) -> Option<(u32, Cidr)> {
    if message.kind != RTM_NEWADDR {
        return None;
    }
    let prefix_len = *message.payload.get(1)?;
    let index = message::u32_at(message.payload, 4)?;
    let mut address = None;
    for attribute in message::attributes(message.payload.get(IFADDR_LEN..)?) {
        // IPv6 has IFA_ADDRESS only; in IPv4 that may be the other end, IFA_LOCAL is ours.
        if attribute.kind == IFA_LOCAL || (attribute.kind == IFA_ADDRESS && address.is_none()) {
            address = parse_ip(attribute.value).or(address);
        }
    }
    Some((index, Cidr::new(address?, prefix_len)?))
}

fn parse_default_route(message: Message<'_>) -> Option<u32> {
    let header = message.payload.get(..RTMSG_LEN)?;
    let (destination_len, table, kind) = (header[1], header[4], header[7]);
    if message.kind != RTM_NEWROUTE || destination_len != 0 || table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    let attributes = || message::attributes(&message.payload[RTMSG_LEN..]);
    if attributes().any(|attribute| attribute.kind == RTA_DST) {
        return None;
    }
    attributes().find(|attribute| attribute.kind == RTA_OIF)?.u32()
}

fn parse_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn no_link_local(attributes: &mut Attributes<'_>) {
    attributes.nested(IFLA_AF_SPEC, |families| {
        families.nested(AF_INET6, |v6| v6.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE));
    });
}

fn subject(operation: &'static str, name: &str) -> Subject {
    Subject { operation, name: name.to_owned() }
}

/// `struct ifinfomsg`: flags that are set are also the ones that change.
fn ifinfo(index: u32, flags: u32) -> [u8; IFINFO_LEN] {
    let mut header = [0; IFINFO_LEN];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`.
fn ifaddr(address: Cidr, index: u32, flags: u8) -> [u8; IFADDR_LEN] {
    let mut header = [0; IFADDR_LEN];
    header[0] = address.family().number();
    header[1] = address.prefix_len();
    header[2] = flags;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// `struct rtmsg` of a route to everywhere.
fn rtmsg(family: IpFamily) -> [u8; RTMSG_LEN] {
    let mut header = [0; RTMSG_LEN];
    header[0] = family.number();
    header[4] = RT_TABLE_MAIN;
    header[5] = RTPROT_BOOT;
    header[7] = RTN_UNICAST;
    header
}
