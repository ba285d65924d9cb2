//! Our own nf_tables table: masquerading of pods, and host ports.
//!
//! ```text
//! table inet pinnace {
//!   map  host_ports4     protocol . port            : pod address . port     one element per forward
//!   map  host_ports4_at  address . protocol . port  : pod address . port     forwards of one host address
//!   set  to_self4        protocol . host port . pod address . port           the same, for masquerading
//!   …and the same three for IPv6
//!   chain guard        prerouting raw       to 127.0.0.0/8 from the bridge: drop (CVE-2020-8558)
//!   chain prerouting   prerouting dstnat    host ports of what comes in
//!   chain output       output dstnat        host ports of what this machine sends, 127.0.0.1 included
//!   chain postrouting  postrouting srcnat   pods to the outside; pods and loopback to host ports of pods
//! }
//! ```
//!
//! A packet costs one look-up per map, however many host ports there are, and a pod costs elements, not rules.
//! The whole table is replaced in one transaction at start and whenever someone else removed parts of it; no
//! other table is touched. A connection from the host's own IPv6 loopback (`::1`) is not forwarded: the kernel
//! does not route that address out of the machine. All other local addresses are.

use std::collections::BTreeSet;

use rustix::io::Errno;

use crate::address::{Cidr, IpFamily, octets};
use crate::conntrack::{self, Wrong};
use crate::expression::{self as expr, Rule};
use crate::hostport::{Forward, HostPort};
use crate::message::{self, Attributes, Message, Request, Subject, flag};
use crate::netlink::{Family, NetlinkError, Socket};

/// The table's name, in the family `inet`.
pub const TABLE: &str = "pinnace";
/// Multicast group of nf_tables changes (NFNLGRP_NFTABLES, 7), as a bit mask.
pub const GROUP_NFTABLES: u32 = 1 << 6;

pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 17;
pub(crate) const SUBSYS_NFTABLES: u8 = 10;
const NFPROTO_INET: u8 = 1;

pub(crate) const NEWTABLE: u8 = 0;
const DELTABLE: u8 = 2;
pub(crate) const NEWCHAIN: u8 = 3;
pub(crate) const DELCHAIN: u8 = 5;
pub(crate) const NEWRULE: u8 = 6;
pub(crate) const DELRULE: u8 = 8;
const NEWSET: u8 = 9;
const DELSET: u8 = 11;
const NEWSETELEM: u8 = 12;
const DELSETELEM: u8 = 14;

pub(crate) const NFTA_TABLE_NAME: u16 = 1;
pub(crate) const NFTA_CHAIN_TABLE: u16 = 1;
pub(crate) const NFTA_CHAIN_NAME: u16 = 3;
pub(crate) const NFTA_CHAIN_HOOK: u16 = 4;
pub(crate) const NFTA_CHAIN_TYPE: u16 = 7;
pub(crate) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(crate) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(crate) const NFTA_RULE_TABLE: u16 = 1;
pub(crate) const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFT_SET_MAP: u32 = 8;

pub(crate) const HOOK_PREROUTING: u32 = 0;
pub(crate) const HOOK_OUTPUT: u32 = 3;
pub(crate) const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
pub(crate) const PRIORITY_DSTNAT: i32 = -100;
pub(crate) const PRIORITY_SRCNAT: i32 = 100;

/// Types of the `nft` program, which packs them 6 bits each; the kernel only stores them.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

/// Elements in one message: far below the 64 KiB that an attribute can hold.
const ELEMENTS_PER_MESSAGE: usize = 200;
/// Room for the whole table with some ten thousand host ports.
const REQUEST_MAX: usize = 8 * 1024 * 1024;
const COMMENT_MAX: usize = 120;

/// What the table has to say besides host ports.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The bridge that pods hang on.
    pub bridge: String,
    /// The blocks that pods have addresses of.
    pub pods: Vec<Cidr>,
    /// Blocks that see the pods' own addresses though they are outside.
    pub direct: Vec<Cidr>,
    /// Whether pods are masqueraded towards the outside.
    pub masquerade: bool,
}

/// The table in the kernel, of the namespace where it was opened.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    port: u32,
}

impl Nftables {
    /// Opens a socket. Nothing is changed yet.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open(Family::Netfilter)?;
        let port = socket.port()?;
        // Without the privilege a large table is refused later, with a clear error.
        let _ = socket.allow_requests_of(REQUEST_MAX);
        Ok(Nftables { socket, port })
    }

    /// The port of the socket, which notifications name as their cause.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Makes the table what it has to be, whatever it was, in one transaction.
    pub fn replace<'a>(
        &mut self,
        policy: &Policy,
        forwards: impl Iterator<Item = (&'a str, &'a Forward)>,
    ) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::begin(self.socket.request());
        // Adding first makes the deletion succeed where there is none.
        transaction.add_table();
        transaction.delete_table();
        transaction.add_table();
        for set in Set::ALL {
            transaction.add_set(set);
        }
        transaction.add_rules(policy);
        transaction.elements(NEWSETELEM, forwards.collect());
        transaction.commit(&mut self.socket)
    }

    /// Deletes remembered connections that a change of these forwards makes wrong.
    pub fn forget(&mut self, forwards: &[Forward], why: Wrong) -> Result<(), NetlinkError> {
        conntrack::forget(&mut self.socket, forwards, why)
    }

    /// Adds forwards of a sandbox, all or none.
    pub fn add(&mut self, sandbox: &str, forwards: &[Forward]) -> Result<(), NetlinkError> {
        self.change(NEWSETELEM, sandbox, forwards)
    }

    /// Removes forwards of a sandbox, all or none.
    pub fn remove(&mut self, sandbox: &str, forwards: &[Forward]) -> Result<(), NetlinkError> {
        self.change(DELSETELEM, sandbox, forwards)
    }

    /// Whether a notification says that someone else removed or changed a part of the table.
    pub fn is_damaged_by(&self, message: Message<'_>) -> bool {
        let [kind, subsystem] = message.kind.to_le_bytes();
        let damaging = [DELTABLE, DELCHAIN, DELRULE, DELSET, DELSETELEM].contains(&kind);
        // The first attribute of all of these is the name of the table.
        let ours = || {
            let mut attributes = message.payload.get(4..).into_iter().flat_map(message::attributes);
            attributes.any(|attribute| attribute.kind == 1 && attribute.text() == Some(TABLE))
        };
        subsystem == SUBSYS_NFTABLES && damaging && message.port != self.port && ours()
    }

    fn change(&mut self, kind: u8, sandbox: &str, forwards: &[Forward]) -> Result<(), NetlinkError> {
        if forwards.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::begin(self.socket.request());
        transaction.elements(kind, forwards.iter().map(|forward| (sandbox, forward)).collect());
        transaction.commit(&mut self.socket)
    }
}

/// Whether an error means that the kernel has no nf_tables, or not all that we use of it.
pub fn is_missing(error: &NetlinkError) -> bool {
    matches!(
        error.errno(),
        Some(Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::NOENT)
    )
}

/// The sets and maps of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Ports(IpFamily),
    PortsAt(IpFamily),
    ToSelf(IpFamily),
}

impl Set {
    const ALL: [Set; 6] = [
        Set::Ports(IpFamily::V4),
        Set::PortsAt(IpFamily::V4),
        Set::ToSelf(IpFamily::V4),
        Set::Ports(IpFamily::V6),
        Set::PortsAt(IpFamily::V6),
        Set::ToSelf(IpFamily::V6),
    ];

    fn name(self) -> &'static str {
        match self {
            Set::Ports(IpFamily::V4) => "host_ports4",
            Set::Ports(IpFamily::V6) => "host_ports6",
            Set::PortsAt(IpFamily::V4) => "host_ports4_at",
            Set::PortsAt(IpFamily::V6) => "host_ports6_at",
            Set::ToSelf(IpFamily::V4) => "to_self4",
            Set::ToSelf(IpFamily::V6) => "to_self6",
        }
    }

    fn family(self) -> IpFamily {
        match self {
            Set::Ports(family) | Set::PortsAt(family) | Set::ToSelf(family) => family,
        }
    }

    fn key_types(self) -> Vec<u32> {
        let address = address_type(self.family());
        match self {
            Set::Ports(_) => vec![TYPE_PROTOCOL, TYPE_PORT],
            Set::PortsAt(_) => vec![address, TYPE_PROTOCOL, TYPE_PORT],
            Set::ToSelf(_) => vec![TYPE_PROTOCOL, TYPE_PORT, address, TYPE_PORT],
        }
    }

    fn is_map(self) -> bool {
        !matches!(self, Set::ToSelf(_))
    }

    /// The key of a forward, or none if it is in another set. Every part fills whole 32-bit registers.
    fn key(self, forward: &Forward) -> Option<Vec<u8>> {
        let HostPort { protocol, family, port, address } = forward.host;
        if family != self.family() {
            return None;
        }
        let mut key = Vec::with_capacity(28);
        match (self, address) {
            (Set::Ports(_), None) => {}
            (Set::PortsAt(_), Some(address)) => key.extend(octets(address)),
            (Set::ToSelf(_), _) => {}
            _ => return None,
        }
        key.extend([protocol.number(), 0, 0, 0]);
        key.extend(padded(port));
        if let Set::ToSelf(_) = self {
            key.extend(octets(forward.address));
            key.extend(padded(forward.port));
        }
        Some(key)
    }
}

/// One transaction: all of it happens or nothing.
struct Transaction {
    request: Request,
}

impl Transaction {
    fn begin(mut request: Request) -> Self {
        let header = [0, 0, 0, SUBSYS_NFTABLES];
        request.message(subject("begin", "transaction"), NFNL_MSG_BATCH_BEGIN, 0, &header, |_| ());
        Transaction { request }
    }

    fn commit(mut self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let header = [0, 0, 0, SUBSYS_NFTABLES];
        // The end is acknowledged since Linux 6.10 only, so the message before it is asked to.
        let position = usize::try_from(self.request.len()).unwrap_or(usize::MAX).saturating_sub(1);
        self.request.message(subject("commit", "transaction"), NFNL_MSG_BATCH_END, 0, &header, |_| ());
        socket.exchange_acknowledged(self.request, position, |_| ())
    }

    fn message(
        &mut self,
        subject: Subject,
        kind: u8,
        flags: u16,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let kind = u16::from_le_bytes([kind, SUBSYS_NFTABLES]);
        self.request.message(subject, kind, flags, &[NFPROTO_INET, 0, 0, 0], attributes);
    }

    fn add_table(&mut self) {
        self.message(subject("add table", TABLE), NEWTABLE, flag::CREATE, |attributes| {
            attributes.text(NFTA_TABLE_NAME, TABLE);
        });
    }

    fn delete_table(&mut self) {
        self.message(subject("delete table", TABLE), DELTABLE, 0, |attributes| {
            attributes.text(NFTA_TABLE_NAME, TABLE);
        });
    }

    fn add_set(&mut self, set: Set) {
        let types = set.key_types();
        let id = Set::ALL.iter().position(|other| *other == set).and_then(|at| u32::try_from(at).ok());
        self.message(subject("add set", set.name()), NEWSET, flag::CREATE, |attributes| {
            attributes.text(NFTA_SET_TABLE, TABLE);
            attributes.text(NFTA_SET_NAME, set.name());
            attributes.be32(NFTA_SET_FLAGS, if set.is_map() { NFT_SET_MAP } else { 0 });
            attributes.be32(NFTA_SET_KEY_TYPE, packed(&types));
            attributes.be32(NFTA_SET_KEY_LEN, registers(&types));
            if set.is_map() {
                let data = [address_type(set.family()), TYPE_PORT];
                attributes.be32(NFTA_SET_DATA_TYPE, packed(&data));
                attributes.be32(NFTA_SET_DATA_LEN, registers(&data));
            }
            attributes.be32(NFTA_SET_ID, id.unwrap_or(0) + 1);
        });
    }

    fn elements(&mut self, kind: u8, forwards: Vec<(&str, &Forward)>) {
        for set in Set::ALL {
            // One port at two addresses of the host is the same to the pod: deleting it twice would fail.
            let mut seen = BTreeSet::new();
            let elements: Vec<_> = forwards
                .iter()
                .filter_map(|(sandbox, forward)| Some((set.key(forward)?, *sandbox, *forward)))
                .filter(|(key, _, _)| seen.insert(key.clone()))
                .collect();
            for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
                let operation = if kind == NEWSETELEM { "add elements of" } else { "delete elements of" };
                let flags = if kind == NEWSETELEM { flag::CREATE } else { 0 };
                self.message(subject(operation, set.name()), kind, flags, |attributes| {
                    attributes.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
                    attributes.text(NFTA_SET_ELEM_LIST_SET, set.name());
                    attributes.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                        for (key, sandbox, forward) in chunk {
                            let complete = kind == NEWSETELEM;
                            list.nested(NFTA_LIST_ELEM, |element| {
                                element.nested(NFTA_SET_ELEM_KEY, |k| k.bytes(NFTA_DATA_VALUE, key));
                                if complete && set.is_map() {
                                    let mut data = octets(forward.address);
                                    data.extend(padded(forward.port));
                                    element.nested(NFTA_SET_ELEM_DATA, |d| d.bytes(NFTA_DATA_VALUE, &data));
                                }
                                if complete {
                                    element.bytes(NFTA_SET_ELEM_USERDATA, &comment(sandbox));
                                }
                            });
                        }
                    });
                });
            }
        }
    }

    fn add_chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        self.message(subject("add chain", name), NEWCHAIN, flag::CREATE, |attributes| {
            attributes.text(NFTA_CHAIN_TABLE, TABLE);
            attributes.text(NFTA_CHAIN_NAME, name);
            attributes.text(NFTA_CHAIN_TYPE, kind);
            attributes.nested(NFTA_CHAIN_HOOK, |attributes| {
                attributes.be32(NFTA_HOOK_HOOKNUM, hook);
                attributes.be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
        });
    }

    fn add_rule(&mut self, chain: &str, rule: impl FnOnce(&mut Rule<'_, '_>)) {
        let flags = flag::CREATE | flag::APPEND;
        self.message(subject("add rule to chain", chain), NEWRULE, flags, |attributes| {
            attributes.text(NFTA_RULE_TABLE, TABLE);
            attributes.text(NFTA_RULE_CHAIN, chain);
            attributes.nested(NFTA_RULE_EXPRESSIONS, |list| rule(&mut Rule::new(list)));
        });
    }

    fn add_rules(&mut self, policy: &Policy) {
        let bridge = policy.bridge.as_str();
        self.add_chain("guard", "filter", HOOK_PREROUTING, PRIORITY_RAW);
        self.add_rule("guard", |rule| {
            rule.came_by(bridge);
            rule.destination_in(loopback());
            rule.drop();
        });

        self.add_chain("prerouting", "nat", HOOK_PREROUTING, PRIORITY_DSTNAT);
        self.add_chain("output", "nat", HOOK_OUTPUT, PRIORITY_DSTNAT);
        for chain in ["prerouting", "output"] {
            for family in [IpFamily::V4, IpFamily::V6] {
                self.add_rule(chain, |rule| forward_at_one_address(rule, family));
                self.add_rule(chain, |rule| forward_at_all_addresses(rule, family));
            }
        }

        self.add_chain("postrouting", "nat", HOOK_POSTROUTING, PRIORITY_SRCNAT);
        self.add_rule("postrouting", |rule| {
            rule.leaves_by(bridge);
            rule.destination_was_translated();
            rule.source_in(loopback());
            rule.masquerade();
        });
        for pods in &policy.pods {
            // A pod that reached itself or a neighbour by a host port: the answer must come back this way.
            self.add_rule("postrouting", |rule| {
                rule.leaves_by(bridge);
                rule.destination_was_translated();
                rule.source_in(*pods);
                to_own_host_port(rule, pods.family());
                rule.masquerade();
            });
        }
        if !policy.masquerade {
            return;
        }
        for pods in &policy.pods {
            self.add_rule("postrouting", |rule| {
                rule.leaves_not_by(bridge);
                rule.source_in(*pods);
                for inside in policy.pods.iter().chain(&policy.direct) {
                    if inside.family() == pods.family() {
                        rule.destination_not_in(*inside);
                    }
                }
                rule.destination_not_in(multicast(pods.family()));
                rule.masquerade();
            });
        }
    }
}

fn forward_at_one_address(rule: &mut Rule<'_, '_>, family: IpFamily) {
    let after = expr::address_registers(family);
    rule.family(family);
    rule.load_destination(family, 0);
    rule.load_protocol(after);
    rule.load_destination_port(after + 1);
    rule.map(Set::PortsAt(family).name(), 0, 0);
    rule.translate_destination(family, 0, after);
}

fn forward_at_all_addresses(rule: &mut Rule<'_, '_>, family: IpFamily) {
    rule.family(family);
    rule.destination_is_local();
    rule.load_protocol(0);
    rule.load_destination_port(1);
    rule.map(Set::Ports(family).name(), 0, 0);
    rule.translate_destination(family, 0, expr::address_registers(family));
}

fn to_own_host_port(rule: &mut Rule<'_, '_>, family: IpFamily) {
    rule.load_protocol(0);
    rule.load_original_destination_port(1);
    rule.load_destination(family, 2);
    rule.load_destination_port(2 + expr::address_registers(family));
    rule.is_in(Set::ToSelf(family).name(), 0);
}

fn loopback() -> Cidr {
    block([127, 0, 0, 0].into(), 8)
}

pub(crate) fn multicast(family: IpFamily) -> Cidr {
    match family {
        IpFamily::V4 => block([224, 0, 0, 0].into(), 4),
        IpFamily::V6 => block([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    }
}

fn block(address: std::net::IpAddr, prefix_len: u8) -> Cidr {
    Cidr::new(address, prefix_len).expect("a constant prefix length that fits its family")
}

fn address_type(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => TYPE_IPV4,
        IpFamily::V6 => TYPE_IPV6,
    }
}

fn packed(types: &[u32]) -> u32 {
    types.iter().fold(0, |packed, part| packed << 6 | part)
}

/// The bytes of a concatenation: every part fills whole registers.
fn registers(types: &[u32]) -> u32 {
    types.iter().map(|part| if *part == TYPE_IPV6 { 16 } else { 4 }).sum()
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The owner of an element, as the `nft` program stores and shows comments: type, length, text.
fn comment(sandbox: &str) -> Vec<u8> {
    let text: Vec<u8> = sandbox.bytes().take(COMMENT_MAX).chain([0]).collect();
    let mut bytes = vec![0, u8::try_from(text.len()).unwrap_or(0)];
    bytes.extend(text);
    bytes
}

fn subject(operation: &'static str, name: &str) -> Subject {
    Subject { operation, name: name.to_owned() }
}
