//! A network for pods that nobody on this machine uses.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};

/// IPv4 destinations that are taken: network and mask.
type Taken = Vec<(u32, u32)>;

/// A /24 out of 10.0.0.0/8 that overlaps no route, no address and no name server here; the search starts at `seed`.
pub fn free(seed: u16) -> anyhow::Result<Ipv4Addr> {
    let mut taken = routes(&read("/proc/net/route")?);
    taken.extend(addresses(&read("/proc/net/fib_trie")?));
    taken.extend(addresses(&read("/etc/resolv.conf")?));
    pick(seed, &taken).context("all of 10.0.0.0/8 is routed on this machine: no room for a bridge")
}

fn read(path: &str) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        // A kernel without fib_trie or a machine without resolvers says less, and that is all right.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => bail!("{path}: {error}"),
    }
}

fn pick(seed: u16, taken: &Taken) -> Option<Ipv4Addr> {
    const MASK: u32 = 0xffff_ff00;
    (0..=u16::MAX).map(|step| seed.wrapping_add(step)).find_map(|middle| {
        let network = (10 << 24) | (u32::from(middle) << 8);
        let free = taken.iter().all(|(other, mask)| (network ^ other) & (mask & MASK) != 0);
        free.then(|| Ipv4Addr::from_bits(network))
    })
}

/// The main routing table. Destination and mask are the kernel's big-endian words printed in this machine's order.
fn routes(table: &str) -> Taken {
    let word = |field: &str| u32::from_str_radix(field, 16).ok().map(u32::from_be);
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            Some((word(fields.get(1)?)?, word(fields.get(7)?)?))
        })
        // The default route leads everywhere and so says nothing.
        .filter(|(_, mask)| *mask != 0)
        .collect()
}

/// Every dotted quad in a text, as a host.
fn addresses(text: &str) -> Taken {
    text.split_whitespace()
        .filter_map(|word| word.parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_unspecified())
        .map(|address| (address.to_bits(), u32::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_routed_or_used_is_passed_over() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            br0\t0000050A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            vpn\t0001060A\t00000000\t0001\t0\t0\t0\t00FEFFFF\t0\t0\t0\n";
        let taken = if cfg!(target_endian = "little") { routes(table) } else { return };
        assert_eq!(taken[0], (0x0a05_0000, 0xffff_ff00));
        assert_eq!(taken[1], (0x0a06_0100, 0xffff_fe00));
        assert_eq!(pick(0x0500, &taken).unwrap(), Ipv4Addr::new(10, 5, 1, 0));
        assert_eq!(pick(0x0600, &taken).unwrap(), Ipv4Addr::new(10, 6, 2, 0));
        let hosts = addresses("nameserver 10.7.0.53\n  |-- 10.7.1.1 /32 host LOCAL");
        assert_eq!(pick(0x0700, &hosts).unwrap(), Ipv4Addr::new(10, 7, 2, 0));
        assert_eq!(pick(0, &vec![(10 << 24, 0xff00_0000)]), None);
        assert_eq!(pick(0xffff, &vec![(0x0aff_ff00, 0xffff_ff00)]).unwrap(), Ipv4Addr::new(10, 0, 0, 0));
    }
}
