//! Rules as `iptables-nft` writes them into nf_tables, so that `iptables` and the plugins that execute it read, find and
//! delete them.
//!
//! A rule is a row of expressions: protocol, source, destination, matches, a counter, and what to do. Matches and
//! targets of x_tables are carried as `match` and `target` expressions with the structures of `linux/netfilter/xt_*.h`.

use std::net::IpAddr;

use crate::address::{Cidr, IpFamily, from_number, octets};
use crate::expression::{
    BASE_NETWORK, BASE_TRANSPORT, META_L4PROTO, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK,
    NFTA_BITWISE_SREG, NFTA_BITWISE_XOR, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG,
    NFTA_LIST_ELEM, NFTA_META_DREG, NFTA_META_KEY, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN,
    NFTA_PAYLOAD_OFFSET, NFTA_VERDICT_CODE,
};
use crate::hostport::Protocol;
use crate::message::{self, Attributes, Message};

/// The longest comment with its terminating zero (XT_MAX_COMMENT_LEN).
pub const COMMENT_MAX: usize = 256;
/// Ports in one `multiport` match (XT_MULTI_PORTS).
pub const MULTIPORT_MAX: usize = 15;

const REGISTER_1: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const META_MARK: u32 = 3;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_DIFFERENT: u32 = 1;
const NF_ACCEPT: u32 = 1;
/// NFT_JUMP is -3.
const NFT_JUMP: u32 = 0xffff_fffd;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
/// The same numbers for `match` and `target`.
const NFTA_XT_NAME: u16 = 1;
const NFTA_XT_REV: u16 = 2;
const NFTA_XT_INFO: u16 = 3;
const XT_MULTIPORT_DESTINATION: u8 = 1;
const XT_SCTP_DEST_PORTS: u32 = 2;
const NF_NAT_RANGE_MAP_IPS: u32 = 1;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
const RTN_LOCAL: u16 = 2;
/// x_tables aligns its structures to the largest of C.
const XT_ALIGN: usize = 8;

/// The conditions of a rule, all of which must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `-p`.
    pub protocol: Option<Protocol>,
    /// `-s`.
    pub source: Option<Cidr>,
    /// `-d`.
    pub destination: Option<Cidr>,
    /// `! -d`, in place of `-d`.
    pub not_destination: Option<Cidr>,
    /// The rest, in the order in which they are listed.
    pub matches: Vec<Match>,
}

/// A condition that x_tables has a match for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `-m comment --comment`.
    Comment(String),
    /// `-m tcp --dport` and the same of the other protocols; the protocol is that of the rule.
    DestinationPort(Protocol, u16),
    /// `-m multiport --dports`.
    DestinationPorts(Vec<u16>),
    /// `-m addrtype --dst-type LOCAL`.
    LocalDestination,
    /// `-m mark --mark bits/bits`.
    Mark(u32),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `-j ACCEPT`.
    Accept,
    /// `-j <chain>`.
    Jump(String),
    /// `-j MASQUERADE`.
    Masquerade,
    /// `-j DNAT --to-destination`.
    TranslateDestination(IpAddr, u16),
    /// `-j MARK --set-xmark bits/bits`.
    SetMark(u32),
}

/// A rule of one family's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// When.
    pub conditions: Conditions,
    /// What.
    pub action: Action,
}

impl Rule {
    /// Writes the rule's expressions into a list.
    pub fn write(&self, family: IpFamily, list: &mut Attributes<'_>) {
        let mut row = Row { list, family };
        let conditions = &self.conditions;
        if let Some(protocol) = conditions.protocol {
            row.meta(META_L4PROTO);
            row.compare(COMPARE_EQUAL, &[protocol.number()]);
        }
        if let Some(source) = conditions.source {
            row.address(source, End::Source, COMPARE_EQUAL);
        }
        if let Some(destination) = conditions.destination {
            row.address(destination, End::Destination, COMPARE_EQUAL);
        }
        if let Some(destination) = conditions.not_destination {
            row.address(destination, End::Destination, COMPARE_DIFFERENT);
        }
        for condition in &conditions.matches {
            row.condition(condition);
        }
        row.expression("counter", |data| {
            data.bytes(NFTA_COUNTER_BYTES, &[0; 8]);
            data.bytes(NFTA_COUNTER_PACKETS, &[0; 8]);
        });
        row.action(&self.action);
    }
}

/// What is read back of a rule of the kernel: enough to know whether it is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The kernel's number of the rule.
    pub handle: u64,
    /// The chain that it jumps to.
    pub jumps_to: Option<String>,
    /// Names of its x_tables targets with their structures.
    pub targets: Vec<(String, Vec<u8>)>,
    /// The values that it compares with.
    pub compared: Vec<Vec<u8>>,
}

impl Found {
    /// Reads a rule from a reply.
    pub fn parse(message: Message<'_>) -> Option<Self> {
        const NFTA_RULE_HANDLE: u16 = 3;
        const NFTA_RULE_EXPRESSIONS: u16 = 4;
        let mut found = Found::default();
        for attribute in message::attributes(message.payload.get(4..)?) {
            match attribute.kind {
                NFTA_RULE_HANDLE => found.handle = u64::from_be_bytes(attribute.value.try_into().ok()?),
                NFTA_RULE_EXPRESSIONS => {
                    for expression in message::attributes(attribute.value) {
                        found.note(expression.value);
                    }
                }
                _ => {}
            }
        }
        (found.handle != 0).then_some(found)
    }

    /// Whether the rule sets these bits of the mark and no others.
    pub fn sets_mark(&self, bits: u32) -> bool {
        let info = [bits.to_ne_bytes(), bits.to_ne_bytes()].concat();
        self.targets.iter().any(|(name, found)| name == "MARK" && found.starts_with(&info))
    }

    /// Whether the rule masquerades what has these bits of the mark.
    pub fn masquerades_mark(&self, bits: u32) -> bool {
        self.targets.iter().any(|(name, _)| name == "MASQUERADE")
            && self.compared.iter().any(|value| value == &bits.to_ne_bytes())
    }

    fn note(&mut self, expression: &[u8]) {
        let value = |of: &[u8], kind: u16| find(of, kind).map(<[u8]>::to_vec);
        let Some(name) = find(expression, NFTA_EXPR_NAME).map(text) else {
            return;
        };
        let Some(data) = find(expression, NFTA_EXPR_DATA) else {
            return;
        };
        match name.as_str() {
            "immediate" => {
                let verdict = find(data, NFTA_IMMEDIATE_DATA).and_then(|data| find(data, NFTA_DATA_VERDICT));
                let chain = verdict.and_then(|verdict| find(verdict, NFTA_VERDICT_CHAIN));
                self.jumps_to = chain.map(text).or(self.jumps_to.take());
            }
            "target" => {
                if let (Some(name), Some(info)) = (find(data, NFTA_XT_NAME), value(data, NFTA_XT_INFO)) {
                    self.targets.push((text(name), info));
                }
            }
            "cmp" => {
                let compared = find(data, NFTA_CMP_DATA).and_then(|data| value(data, NFTA_DATA_VALUE));
                self.compared.extend(compared);
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

struct Row<'a, 'b> {
    list: &'a mut Attributes<'b>,
    family: IpFamily,
}

impl Row<'_, '_> {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::Comment(comment) => {
                let mut info = comment.as_bytes().to_vec();
                info.resize(COMMENT_MAX, 0);
                self.extension("match", "comment", 0, &info);
            }
            // iptables writes the ports of these two as comparisons, of others as matches.
            Match::DestinationPort(Protocol::Tcp | Protocol::Udp, port) => {
                self.payload(BASE_TRANSPORT, 2, 2);
                self.compare(COMPARE_EQUAL, &port.to_be_bytes());
            }
            Match::DestinationPort(Protocol::Sctp, port) => {
                self.extension("match", "sctp", 0, &sctp_destination(*port));
            }
            Match::DestinationPorts(ports) => {
                self.extension("match", "multiport", 1, &multiport_destinations(ports));
            }
            Match::LocalDestination => {
                let mut info = vec![0, 0];
                info.extend((1u16 << RTN_LOCAL).to_ne_bytes());
                info.extend([0; 4]);
                self.extension("match", "addrtype", 1, &info);
            }
            Match::Mark(bits) => {
                self.meta(META_MARK);
                self.mask(&bits.to_ne_bytes());
                self.compare(COMPARE_EQUAL, &bits.to_ne_bytes());
            }
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Accept => self.verdict(NF_ACCEPT, None),
            Action::Jump(chain) => self.verdict(NFT_JUMP, Some(chain)),
            Action::Masquerade => {
                let info = match self.family {
                    // struct nf_nat_ipv4_multi_range_compat: one range, empty.
                    IpFamily::V4 => [1u32.to_ne_bytes().to_vec(), vec![0; 16]].concat(),
                    // struct nf_nat_range.
                    IpFamily::V6 => vec![0; 40],
                };
                self.extension("target", "MASQUERADE", 0, &info);
            }
            Action::TranslateDestination(address, port) => {
                self.extension("target", "DNAT", 2, &nat_range(*address, *port));
            }
            Action::SetMark(bits) => {
                let info = [bits.to_ne_bytes(), bits.to_ne_bytes()].concat();
                self.extension("target", "MARK", 2, &info);
            }
        }
    }

    fn address(&mut self, block: Cidr, end: End, compare: u32) {
        if block.prefix_len() == 0 {
            return;
        }
        let family = block.family();
        let offset = match (family, end) {
            (IpFamily::V4, End::Source) => 12,
            (IpFamily::V4, End::Destination) => 16,
            (IpFamily::V6, End::Source) => 8,
            (IpFamily::V6, End::Destination) => 24,
        };
        let whole = octets(block.network().address());
        let bytes = usize::from(block.prefix_len() / 8);
        if block.prefix_len().is_multiple_of(8) {
            self.payload(BASE_NETWORK, offset, u32::from(block.prefix_len() / 8));
            self.compare(compare, &whole[..bytes]);
        } else {
            self.payload(BASE_NETWORK, offset, u32::from(family.bits() / 8));
            self.mask(&octets(from_number(family, block.mask())));
            self.compare(compare, &whole);
        }
    }

    fn meta(&mut self, key: u32) {
        self.expression("meta", |data| {
            data.be32(NFTA_META_DREG, REGISTER_1);
            data.be32(NFTA_META_KEY, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.expression("payload", |data| {
            data.be32(NFTA_PAYLOAD_DREG, REGISTER_1);
            data.be32(NFTA_PAYLOAD_BASE, base);
            data.be32(NFTA_PAYLOAD_OFFSET, offset);
            data.be32(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |data| {
            data.be32(NFTA_BITWISE_SREG, REGISTER_1);
            data.be32(NFTA_BITWISE_DREG, REGISTER_1);
            data.be32(NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(0));
            data.nested(NFTA_BITWISE_MASK, |value| value.bytes(NFTA_DATA_VALUE, mask));
            data.nested(NFTA_BITWISE_XOR, |value| value.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, compare: u32, value: &[u8]) {
        self.expression("cmp", |data| {
            data.be32(NFTA_CMP_SREG, REGISTER_1);
            data.be32(NFTA_CMP_OP, compare);
            data.nested(NFTA_CMP_DATA, |bytes| bytes.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn verdict(&mut self, code: u32, chain: Option<&str>) {
        self.expression("immediate", |data| {
            data.be32(NFTA_IMMEDIATE_DREG, REGISTER_VERDICT);
            data.nested(NFTA_IMMEDIATE_DATA, |value| {
                value.nested(NFTA_DATA_VERDICT, |verdict| {
                    verdict.be32(NFTA_VERDICT_CODE, code);
                    if let Some(chain) = chain {
                        verdict.text(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }

    fn extension(&mut self, kind: &str, name: &str, revision: u32, info: &[u8]) {
        let mut info = info.to_vec();
        info.resize(info.len().next_multiple_of(XT_ALIGN), 0);
        self.expression(kind, |data| {
            data.text(NFTA_XT_NAME, name);
            data.be32(NFTA_XT_REV, revision);
            data.bytes(NFTA_XT_INFO, &info);
        });
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
        self.list.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, data);
        });
    }
}

/// `struct xt_sctp_info`: one destination port; source ports and chunks are not looked at.
fn sctp_destination(port: u16) -> Vec<u8> {
    let mut info = Vec::with_capacity(292);
    for bound in [port, port, 0, 0] {
        info.extend(bound.to_ne_bytes());
    }
    // Chunk map and its kind.
    info.extend([0; 256 + 4]);
    // Four times kind, flags and mask of a chunk: none. Their number.
    info.extend([u8::MAX, 0, 0].repeat(4));
    info.extend([0; 4]);
    info.extend(XT_SCTP_DEST_PORTS.to_ne_bytes());
    info.extend([0; 4]);
    info
}

/// `struct xt_multiport_v1`.
fn multiport_destinations(ports: &[u16]) -> Vec<u8> {
    let ports = &ports[..ports.len().min(MULTIPORT_MAX)];
    let mut info = vec![XT_MULTIPORT_DESTINATION, u8::try_from(ports.len()).unwrap_or(0)];
    for port in ports {
        info.extend(port.to_ne_bytes());
    }
    // Unused ports, flags of ranges, inversion.
    info.resize(2 + MULTIPORT_MAX * 2 + MULTIPORT_MAX + 1, 0);
    info
}

/// `struct nf_nat_range2`.
fn nat_range(address: IpAddr, port: u16) -> Vec<u8> {
    let mut info = (NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED).to_ne_bytes().to_vec();
    for _ in ["min", "max"] {
        let mut bound = octets(address);
        bound.resize(16, 0);
        info.extend(bound);
    }
    info.extend(port.to_be_bytes());
    info.extend(port.to_be_bytes());
    // The base port, and the padding of the structure.
    info.extend([0; 4]);
    info
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    message::attributes(bytes).find(|attribute| attribute.kind == kind).map(|attribute| attribute.value)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Request, Subject};

    proptest! {
        #[test]
        fn any_bytes_of_a_rule_are_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Found::parse(Message { kind: 0xa06, flags: 0, sequence: 1, port: 0, payload: &payload });
        }
    }

    #[test]
    fn what_is_written_is_recognised() {
        let rule = |action| Rule {
            conditions: Conditions { matches: vec![Match::Mark(0x2000)], ..Conditions::default() },
            action,
        };
        let read = |rule: &Rule| {
            let mut request = Request::new(1);
            let subject = Subject { operation: "test", name: String::new() };
            request.message(subject, 0xa06, 0, &[2, 0, 0, 0], |attributes| {
                attributes.bytes(3, &7u64.to_be_bytes());
                attributes.nested(4, |list| rule.write(IpFamily::V4, list));
            });
            let bytes = request.bytes().unwrap().to_vec();
            Found::parse(message::messages(&bytes).next().unwrap()).unwrap()
        };
        assert_eq!(read(&rule(Action::Jump("CNI-X".to_owned()))).jumps_to.as_deref(), Some("CNI-X"));
        assert!(read(&rule(Action::Masquerade)).masquerades_mark(0x2000));
        assert!(!read(&rule(Action::Masquerade)).masquerades_mark(0x4000));
        assert!(read(&rule(Action::SetMark(0x2000))).sets_mark(0x2000));
        assert!(!read(&rule(Action::SetMark(0x2000))).sets_mark(0x4000));
        assert_eq!(read(&rule(Action::Accept)).handle, 7);
    }
}
