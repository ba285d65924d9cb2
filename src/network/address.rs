//! Values of the network: address blocks, hardware addresses, interface names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// IFNAMSIZ is 16 with the terminating zero.
const INTERFACE_NAME_MAX: usize = 15;

/// Why a value is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Not `address/length`.
    #[error("{0:?} is not an address block like 10.88.0.0/16")]
    Cidr(String),
    /// Not an interface name.
    #[error("{0:?} is not an interface name: 1 to 15 letters, digits, '-', '_' or '.'")]
    InterfaceName(String),
    /// Not a hardware address.
    #[error("{0:?} is not a hardware address like 0a:58:0a:58:00:02")]
    Mac(String),
}

/// The two families of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }

    /// The number of bits in an address.
    pub fn bits(self) -> u8 {
        match self {
            IpFamily::V4 => 32,
            IpFamily::V6 => 128,
        }
    }

    /// `AF_INET` or `AF_INET6`.
    pub fn number(self) -> u8 {
        match self {
            IpFamily::V4 => 2,
            IpFamily::V6 => 10,
        }
    }
}

/// An address and the length of its network prefix, e.g. `10.88.0.7/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix_len: u8,
}

impl Cidr {
    /// Puts the two together if the length fits the family.
    pub fn new(address: IpAddr, prefix_len: u8) -> Option<Self> {
        (prefix_len <= IpFamily::of(address).bits()).then_some(Cidr { address, prefix_len })
    }

    /// The address as written.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The length of the prefix in bits.
    pub fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The family.
    pub fn family(self) -> IpFamily {
        IpFamily::of(self.address)
    }

    /// The same block with all host bits zero.
    pub fn network(self) -> Cidr {
        let address = from_number(self.family(), number(self.address) & self.mask());
        Cidr { address, prefix_len: self.prefix_len }
    }

    /// The highest address of the block; in IPv4 the broadcast address.
    pub fn last(self) -> IpAddr {
        from_number(self.family(), number(self.address) | (!self.mask() & family_mask(self.family())))
    }

    /// Whether the block holds the address.
    pub fn contains(self, address: IpAddr) -> bool {
        IpFamily::of(address) == self.family()
            && number(address) & self.mask() == number(self.address) & self.mask()
    }

    /// Whether the two blocks have addresses in common.
    pub fn overlaps(self, other: Cidr) -> bool {
        self.contains(other.network().address) || other.contains(self.network().address)
    }

    /// The prefix as a mask, in the low bits of the number.
    pub fn mask(self) -> u128 {
        let host_bits = u32::from(self.family().bits() - self.prefix_len);
        family_mask(self.family()) & u128::MAX.checked_shl(host_bits).unwrap_or(0)
    }
}

impl FromStr for Cidr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Cidr(text.to_owned());
        let (address, length) = text.trim().split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        if !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        Cidr::new(address, length.parse().map_err(|_| bad())?).ok_or_else(bad)
    }
}

impl TryFrom<String> for Cidr {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The hardware address that belongs to an IP address.
    ///
    /// It is locally administered (`0a:58` is the prefix that CNI's bridge uses). An address that is given to a
    /// new pod keeps its hardware address, so no neighbour cache ever holds a wrong one.
    pub fn of(address: IpAddr) -> Self {
        let low = u32::try_from(number(address) & u128::from(u32::MAX)).unwrap_or(0).to_be_bytes();
        MacAddr([0x0a, 0x58, low[0], low[1], low[2], low[3]])
    }
}

impl FromStr for MacAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(MacAddr(bytes)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A name that the kernel accepts for an interface and that is safe inside a path below /proc/sys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        // "all" and "default" are directories of /proc/sys/net/*/conf that no interface can have.
        let reserved = matches!(text, "." | ".." | "all" | "default");
        if text.is_empty() || text.len() > INTERFACE_NAME_MAX || reserved || !text.bytes().all(allowed) {
            return Err(AddressError::InterfaceName(text.to_owned()));
        }
        Ok(InterfaceName(text.to_owned()))
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> String {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a number; of IPv4 the low 32 bits count.
pub fn from_number(family: IpFamily, number: u128) -> IpAddr {
    match family {
        IpFamily::V4 => {
            let low = u32::try_from(number & u128::from(u32::MAX)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(low))
        }
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// An address in network byte order: 4 or 16 bytes.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn family_mask(family: IpFamily) -> u128 {
    match family {
        IpFamily::V4 => u128::from(u32::MAX),
        IpFamily::V6 => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn blocks() {
        let block = cidr("10.88.3.7/16");
        assert_eq!(block.network(), cidr("10.88.0.0/16"));
        assert_eq!(block.last(), "10.88.255.255".parse::<IpAddr>().unwrap());
        assert!(block.contains("10.88.200.1".parse().unwrap()));
        assert!(!block.contains("10.89.0.1".parse().unwrap()));
        assert!(!block.contains("::ffff:10.88.0.1".parse().unwrap()));
        assert!(block.overlaps(cidr("10.0.0.0/8")) && cidr("10.0.0.0/8").overlaps(block));
        assert!(!block.overlaps(cidr("10.87.0.0/16")));
        assert_eq!(cidr("fd00:1::5/64").network(), cidr("fd00:1::/64"));
        assert_eq!(cidr("0.0.0.0/0").last(), "255.255.255.255".parse::<IpAddr>().unwrap());
        assert_eq!(cidr("::/0").mask(), 0);
        for bad in ["10.88.0.0", "10.88.0.0/33", "10.88.0.0/-1", "10.88.0.0/+1", "x/8", "::/129", "", "/"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses() {
        let mac = MacAddr::of("10.88.0.5".parse().unwrap());
        assert_eq!(mac.to_string(), "0a:58:0a:58:00:05");
        assert_eq!("0a:58:0a:58:00:05".parse::<MacAddr>().unwrap(), mac);
        for bad in ["0a:58", "0a:58:0a:58:00:05:06", "0a:58:0a:58:00:5", "zz:58:0a:58:00:05"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn interface_names_cannot_leave_their_directory() {
        assert!("pinnace0".parse::<InterfaceName>().is_ok());
        for bad in ["", ".", "..", "../x", "a/b", "sixteen-letters0", "a b", "all", "default", "a%d"] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_block_survives_its_text(bits in any::<u128>(), length in 0u8..=128) {
            let block = Cidr::new(from_number(IpFamily::V6, bits), length).unwrap();
            prop_assert_eq!(block.to_string().parse::<Cidr>().unwrap(), block);
            prop_assert!(block.contains(block.last()) && block.contains(block.network().address()));
        }

        #[test]
        fn any_text_is_a_block_or_an_error(text in ".{0,40}") {
            let _ = text.parse::<Cidr>();
        }
    }
}
