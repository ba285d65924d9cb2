//! Rules of nf_tables as rows of expressions (linux/netfilter/nf_tables.h).
//!
//! A rule loads parts of a packet into 32-bit registers and compares them; the first expression that does not
//! hold ends it. Registers are counted from 0 here, which is the kernel's `NFT_REG32_00`.

use crate::address::{Cidr, IpFamily, from_number, octets};
use crate::message::Attributes;

const REGISTER_0: u32 = 8;
const REGISTER_VERDICT: u32 = 0;
/// Free for comparisons: no concatenation here reaches it.
const SCRATCH: u32 = 12;

pub(crate) const NFTA_LIST_ELEM: u16 = 1;
pub(crate) const NFTA_EXPR_NAME: u16 = 1;
pub(crate) const NFTA_EXPR_DATA: u16 = 2;
pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NFTA_DATA_VERDICT: u16 = 2;
pub(crate) const NFTA_VERDICT_CODE: u16 = 1;
const NF_DROP: u32 = 0;

pub(crate) const NFTA_META_DREG: u16 = 1;
pub(crate) const NFTA_META_KEY: u16 = 2;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
pub(crate) const META_L4PROTO: u32 = 16;

pub(crate) const NFTA_CMP_SREG: u16 = 1;
pub(crate) const NFTA_CMP_OP: u16 = 2;
pub(crate) const NFTA_CMP_DATA: u16 = 3;
pub(crate) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(crate) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(crate) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(crate) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(crate) const BASE_NETWORK: u32 = 1;
pub(crate) const BASE_TRANSPORT: u32 = 2;
pub(crate) const NFTA_BITWISE_SREG: u16 = 1;
pub(crate) const NFTA_BITWISE_DREG: u16 = 2;
pub(crate) const NFTA_BITWISE_LEN: u16 = 3;
pub(crate) const NFTA_BITWISE_MASK: u16 = 4;
pub(crate) const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NAT_DNAT: u32 = 1;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;
const CT_STATUS: u32 = 2;
const CT_PROTO_DST: u32 = 12;
const DIRECTION_ORIGINAL: u8 = 0;
const IPS_DST_NAT: u32 = 1 << 5;
pub(crate) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(crate) const NFTA_IMMEDIATE_DATA: u16 = 2;

/// Zero-padded size of an interface name in a register.
const IFNAMSIZ: usize = 16;

/// How many registers an address fills.
pub fn address_registers(family: IpFamily) -> u32 {
    u32::from(family.bits()) / 32
}

/// A rule under construction.
#[derive(Debug)]
pub struct Rule<'a, 'b> {
    list: &'a mut Attributes<'b>,
}

#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    Different = 1,
}

#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

impl<'a, 'b> Rule<'a, 'b> {
    /// A rule whose expressions go into `list`.
    pub fn new(list: &'a mut Attributes<'b>) -> Self {
        Rule { list }
    }

    /// Holds for packets of this family.
    pub fn family(&mut self, family: IpFamily) {
        self.meta(META_NFPROTO, SCRATCH);
        self.compare(SCRATCH, Compare::Equal, &[family.number()]);
    }

    /// Holds for packets that came in by this interface.
    pub fn came_by(&mut self, name: &str) {
        self.meta(META_IIFNAME, SCRATCH);
        self.compare(SCRATCH, Compare::Equal, &interface(name));
    }

    /// Holds for packets that leave by this interface.
    pub fn leaves_by(&mut self, name: &str) {
        self.meta(META_OIFNAME, SCRATCH);
        self.compare(SCRATCH, Compare::Equal, &interface(name));
    }

    /// Holds for packets that leave by another interface.
    pub fn leaves_not_by(&mut self, name: &str) {
        self.meta(META_OIFNAME, SCRATCH);
        self.compare(SCRATCH, Compare::Different, &interface(name));
    }

    /// Holds for packets of the block's family that come from it.
    pub fn source_in(&mut self, block: Cidr) {
        self.family(block.family());
        self.address_in(End::Source, Compare::Equal, block);
    }

    /// Holds for packets of the block's family that go to it.
    pub fn destination_in(&mut self, block: Cidr) {
        self.family(block.family());
        self.address_in(End::Destination, Compare::Equal, block);
    }

    /// Holds for packets that do not go to the block. The family must have been compared before.
    pub fn destination_not_in(&mut self, block: Cidr) {
        self.address_in(End::Destination, Compare::Different, block);
    }

    /// Holds for packets to an address of this machine.
    pub fn destination_is_local(&mut self) {
        self.expression("fib", |data| {
            data.be32(NFTA_FIB_DREG, REGISTER_0 + SCRATCH);
            data.be32(NFTA_FIB_RESULT, FIB_RESULT_ADDRTYPE);
            data.be32(NFTA_FIB_FLAGS, FIB_F_DADDR);
        });
        self.compare(SCRATCH, Compare::Equal, &RTN_LOCAL.to_ne_bytes());
    }

    /// Holds for connections whose destination was translated.
    pub fn destination_was_translated(&mut self) {
        self.expression("ct", |data| {
            data.be32(NFTA_CT_DREG, REGISTER_0 + SCRATCH);
            data.be32(NFTA_CT_KEY, CT_STATUS);
        });
        self.mask(SCRATCH, &IPS_DST_NAT.to_ne_bytes());
        self.compare(SCRATCH, Compare::Different, &[0; 4]);
    }

    /// Loads the destination address.
    pub fn load_destination(&mut self, family: IpFamily, register: u32) {
        self.load_address(End::Destination, family, register);
    }

    /// Loads the number of the protocol above IP.
    pub fn load_protocol(&mut self, register: u32) {
        self.meta(META_L4PROTO, register);
    }

    /// Loads the destination port: it lies at the same place in TCP, UDP and SCTP.
    pub fn load_destination_port(&mut self, register: u32) {
        self.payload(BASE_TRANSPORT, 2, 2, register);
    }

    /// Loads the destination port that the first packet of the connection had before any translation.
    pub fn load_original_destination_port(&mut self, register: u32) {
        self.expression("ct", |data| {
            data.be32(NFTA_CT_DREG, REGISTER_0 + register);
            data.be32(NFTA_CT_KEY, CT_PROTO_DST);
            data.u8(NFTA_CT_DIRECTION, DIRECTION_ORIGINAL);
        });
    }

    /// Holds if the set has the key that lies in the registers.
    pub fn is_in(&mut self, set: &str, key: u32) {
        self.expression("lookup", |data| {
            data.text(NFTA_LOOKUP_SET, set);
            data.be32(NFTA_LOOKUP_SREG, REGISTER_0 + key);
        });
    }

    /// Like [`Rule::is_in`], and loads what the map has for the key.
    pub fn map(&mut self, map: &str, key: u32, value: u32) {
        self.expression("lookup", |data| {
            data.text(NFTA_LOOKUP_SET, map);
            data.be32(NFTA_LOOKUP_SREG, REGISTER_0 + key);
            data.be32(NFTA_LOOKUP_DREG, REGISTER_0 + value);
        });
    }

    /// Sends the connection to the address and port that lie in the registers.
    pub fn translate_destination(&mut self, family: IpFamily, address: u32, port: u32) {
        self.expression("nat", |data| {
            data.be32(NFTA_NAT_TYPE, NAT_DNAT);
            data.be32(NFTA_NAT_FAMILY, u32::from(family.number()));
            data.be32(NFTA_NAT_REG_ADDR_MIN, REGISTER_0 + address);
            data.be32(NFTA_NAT_REG_PROTO_MIN, REGISTER_0 + port);
        });
    }

    /// Gives the connection the address of the interface that it leaves by.
    pub fn masquerade(&mut self) {
        self.expression("masq", |_| ());
    }

    /// Drops the packet.
    pub fn drop(&mut self) {
        self.expression("immediate", |data| {
            data.be32(NFTA_IMMEDIATE_DREG, REGISTER_VERDICT);
            data.nested(NFTA_IMMEDIATE_DATA, |value| {
                value.nested(NFTA_DATA_VERDICT, |verdict| verdict.be32(NFTA_VERDICT_CODE, NF_DROP));
            });
        });
    }

    fn address_in(&mut self, end: End, compare: Compare, block: Cidr) {
        self.load_address(end, block.family(), SCRATCH);
        self.mask(SCRATCH, &octets(from_number(block.family(), block.mask())));
        self.compare(SCRATCH, compare, &octets(block.network().address()));
    }

    fn load_address(&mut self, end: End, family: IpFamily, register: u32) {
        let (offset, length) = match (family, end) {
            (IpFamily::V4, End::Source) => (12, 4),
            (IpFamily::V4, End::Destination) => (16, 4),
            (IpFamily::V6, End::Source) => (8, 16),
            (IpFamily::V6, End::Destination) => (24, 16),
        };
        self.payload(BASE_NETWORK, offset, length, register);
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |data| {
            data.be32(NFTA_META_DREG, REGISTER_0 + register);
            data.be32(NFTA_META_KEY, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |data| {
            data.be32(NFTA_PAYLOAD_DREG, REGISTER_0 + register);
            data.be32(NFTA_PAYLOAD_BASE, base);
            data.be32(NFTA_PAYLOAD_OFFSET, offset);
            data.be32(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn mask(&mut self, register: u32, mask: &[u8]) {
        self.expression("bitwise", |data| {
            data.be32(NFTA_BITWISE_SREG, REGISTER_0 + register);
            data.be32(NFTA_BITWISE_DREG, REGISTER_0 + register);
            data.be32(NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(0));
            data.nested(NFTA_BITWISE_MASK, |value| value.bytes(NFTA_DATA_VALUE, mask));
            data.nested(NFTA_BITWISE_XOR, |value| value.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, register: u32, compare: Compare, value: &[u8]) {
        self.expression("cmp", |data| {
            data.be32(NFTA_CMP_SREG, REGISTER_0 + register);
            data.be32(NFTA_CMP_OP, compare as u32);
            data.nested(NFTA_CMP_DATA, |bytes| bytes.bytes(NFTA_DATA_VALUE, value));
        });
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
        self.list.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, data);
        });
    }
}

fn interface(name: &str) -> [u8; IFNAMSIZ] {
    let mut padded = [0; IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}
