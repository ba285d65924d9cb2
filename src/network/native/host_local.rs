//! Addresses by the rules of CNI's `host-local`, on the files that it keeps.
//!
//! ```text
//! <dataDir>/<network>/
//!   lock                   flock(2) while something changes
//!   10.88.0.7              "<container id>\r\n<interface>": taken
//!   last_reserved_ip.0     the address given last, of the first set of ranges; .1 of the second
//! ```
//!
//! Nothing is remembered between two calls, so the plugin itself may be executed before and after: the files are
//! looked through under the lock every time, as it does.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::address::{Cidr, IpFamily, from_number, number};
use crate::ipam::write_all;

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const RECORD_MAX: usize = 4096;
/// The plugin stops where it began, however long that takes. A set with this many taken addresses is full.
const SEARCH_MAX: u32 = 1 << 20;

/// Why an address could not be given, found or released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostLocalError {
    /// No ranges at all.
    #[error("no IP ranges specified")]
    NoRanges,
    /// A set of ranges without a range.
    #[error("range set {set} is empty")]
    EmptySet {
        /// Its number.
        set: usize,
    },
    /// A block without room.
    #[error("range set {set}: {subnet} is too small to allocate from")]
    TooSmall {
        /// Of which set.
        set: usize,
        /// The block.
        subnet: Cidr,
    },
    /// A block that is an address.
    #[error("range set {set}: {subnet} has host bits set, the network is {}", subnet.network())]
    HostBits {
        /// Of which set.
        set: usize,
        /// The block.
        subnet: Cidr,
    },
    /// A bound outside of its block.
    #[error("range set {set}: {key} {address} is not in {subnet}")]
    Outside {
        /// Of which set.
        set: usize,
        /// Which bound.
        key: &'static str,
        /// The bound.
        address: IpAddr,
        /// The block.
        subnet: Cidr,
    },
    /// Both families in one set.
    #[error("range set {set} has both address families")]
    MixedFamilies {
        /// The set.
        set: usize,
    },
    /// Two sets, or two ranges of a set, with addresses in common.
    #[error("range sets {one} and {other} overlap")]
    Overlap {
        /// The one.
        one: usize,
        /// The other, or the same.
        other: usize,
    },
    /// The container has an address of the set.
    #[error("{address} has been allocated to {container} already")]
    Duplicate {
        /// The address.
        address: IpAddr,
        /// The container.
        container: String,
    },
    /// The gateway was asked for.
    #[error("requested address {address} is the gateway")]
    Gateway {
        /// The address.
        address: IpAddr,
    },
    /// What was asked for is taken.
    #[error("requested address {address} is not available")]
    Taken {
        /// The address.
        address: IpAddr,
    },
    /// What was asked for is in no range.
    #[error("requested addresses are in no range: {addresses:?}")]
    Unfulfilled {
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// All are taken.
    #[error("no addresses available in range set {set}")]
    Full {
        /// The set.
        set: usize,
    },
    /// A network name that is not the name of a directory.
    #[error("{name:?} is not a network name: a bare file name")]
    NetworkName {
        /// What was given.
        name: String,
    },
    /// Another program holds the lock.
    #[error("{path} is locked by another program")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file of the network.
    #[error("{call} {path}")]
    File {
        /// The system call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// Addresses in a row, of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The block.
    pub subnet: Cidr,
    /// The first address that is given.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
    /// The address of the block that is never given.
    pub gateway: IpAddr,
}

/// What a configuration says of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// `subnet`.
    pub subnet: Cidr,
    /// `rangeStart`.
    pub first: Option<IpAddr>,
    /// `rangeEnd`.
    pub last: Option<IpAddr>,
    /// `gateway`.
    pub gateway: Option<IpAddr>,
}

/// Ranges of one family that one address is given of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

/// An address that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// The address with the length of its network.
    pub address: Cidr,
    /// The gateway of its network.
    pub gateway: IpAddr,
}

impl Range {
    fn of(bounds: Bounds, set: usize) -> Result<Self, HostLocalError> {
        let Bounds { subnet, first, last, gateway } = bounds;
        let family = subnet.family();
        if subnet.prefix_len() > family.bits() - 2 {
            return Err(HostLocalError::TooSmall { set, subnet });
        }
        if subnet.network() != subnet {
            return Err(HostLocalError::HostBits { set, subnet });
        }
        let next = from_number(family, number(subnet.address()).wrapping_add(1));
        let highest = match family {
            IpFamily::V4 => from_number(family, number(subnet.last()).wrapping_sub(1)),
            IpFamily::V6 => subnet.last(),
        };
        for (key, address) in [("rangeStart", first), ("rangeEnd", last)] {
            if let Some(address) = address.filter(|address| !subnet.contains(*address)) {
                return Err(HostLocalError::Outside { set, key, address, subnet });
            }
        }
        if let (Some(first), Some(last)) = (first, last)
            && number(last) < number(first)
        {
            return Err(HostLocalError::Outside { set, key: "rangeEnd", address: last, subnet });
        }
        Ok(Range {
            subnet,
            first: first.unwrap_or(next),
            last: last.unwrap_or(highest),
            gateway: gateway.unwrap_or(next),
        })
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(address) && (number(self.first)..=number(self.last)).contains(&number(address))
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.first)
            || self.contains(other.last)
            || other.contains(self.first)
            || other.contains(self.last)
    }

    fn given(&self, address: IpAddr) -> Given {
        let address = Cidr::new(address, self.subnet.prefix_len()).unwrap_or(self.subnet);
        Given { address, gateway: self.gateway }
    }
}

impl Ranges {
    /// Checks the sets of a configuration, as the plugin does before anything else.
    pub fn of_sets(sets: &[Vec<Bounds>]) -> Result<Vec<Ranges>, HostLocalError> {
        if sets.is_empty() {
            return Err(HostLocalError::NoRanges);
        }
        let mut checked: Vec<Ranges> = Vec::with_capacity(sets.len());
        for (set, bounds) in sets.iter().enumerate() {
            let ranges =
                bounds.iter().map(|bounds| Range::of(*bounds, set)).collect::<Result<Vec<_>, _>>()?;
            let Some(first) = ranges.first() else {
                return Err(HostLocalError::EmptySet { set });
            };
            if ranges.iter().any(|range| range.subnet.family() != first.subnet.family()) {
                return Err(HostLocalError::MixedFamilies { set });
            }
            let mut pairs =
                ranges.iter().enumerate().flat_map(|(n, one)| ranges[n + 1..].iter().map(move |b| (one, b)));
            if pairs.any(|(one, other)| one.overlaps(other)) {
                return Err(HostLocalError::Overlap { one: set, other: set });
            }
            let overlapping = checked
                .iter()
                .position(|before| before.0.iter().any(|one| ranges.iter().any(|other| one.overlaps(other))));
            if let Some(one) = overlapping {
                return Err(HostLocalError::Overlap { one, other: set });
            }
            checked.push(Ranges(ranges));
        }
        Ok(checked)
    }

    fn containing(&self, address: IpAddr) -> Option<usize> {
        self.0.iter().position(|range| range.contains(address))
    }

    /// All addresses in the order in which they are tried: those after `last` first, the gateways left out.
    fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = Given> + use<'_> {
        let known = last.and_then(|last| Some((self.containing(last)?, last)));
        let after = |(at, address): (usize, IpAddr)| {
            let range = &self.0[at];
            if address == range.last {
                let at = (at + 1) % self.0.len();
                (at, self.0[at].first)
            } else {
                (at, from_number(range.subnet.family(), number(address).wrapping_add(1)))
            }
        };
        let start = known.map_or((0, self.0[0].first), after);
        let round = std::iter::successors(Some(start), move |position| {
            let next = after(*position);
            (next.1 != start.1).then_some(next)
        });
        round
            .filter(|(at, address)| *address != self.0[*at].gateway)
            .map(|(at, address)| self.0[at].given(address))
    }
}

/// The addresses of one network.
#[derive(Debug)]
pub struct Store {
    directory: OwnedFd,
    path: PathBuf,
    lock: OwnedFd,
}

impl Store {
    /// Opens, or makes, the directory of a network.
    pub fn open(data_dir: Option<&Path>, network: &str) -> Result<Self, HostLocalError> {
        if network.is_empty() || network.contains(['/', '\0']) || matches!(network, "." | "..") {
            return Err(HostLocalError::NetworkName { name: network.to_owned() });
        }
        let path = data_dir.unwrap_or(Path::new(DEFAULT_DATA_DIR)).join(network);
        let failed = |call| {
            let path = path.clone();
            move |source| HostLocalError::File { call, path, source }
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(CWD, &path, flags, Mode::empty());
        let directory = match open() {
            Err(Errno::NOENT) => {
                std::fs::DirBuilder::new().recursive(true).create(&path).map_err(|error| {
                    failed("mkdir")(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
                })?;
                open()
            }
            opened => opened,
        }
        .map_err(failed("open"))?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&directory, "lock", flags, Mode::from_raw_mode(0o750))
            .map_err(failed("open lock in"))?;
        Ok(Store { directory, path, lock })
    }

    /// Gives a container one address of every set, or none at all. `requested` are used where a set has them.
    pub fn allocate(
        &self,
        container: &str,
        interface: &str,
        sets: &[Ranges],
        requested: &[IpAddr],
    ) -> Result<Vec<Given>, HostLocalError> {
        self.locked()?;
        let mut requested = requested.to_vec();
        let mut given = Vec::with_capacity(sets.len());
        let mut result = sets.iter().enumerate().try_for_each(|(set, ranges)| {
            let wanted = requested.iter().position(|address| ranges.containing(*address).is_some());
            let wanted = wanted.map(|at| requested.swap_remove(at));
            given.push(self.one_of(container, interface, set, ranges, wanted)?);
            Ok(())
        });
        if result.is_ok() && !requested.is_empty() {
            result = Err(HostLocalError::Unfulfilled { addresses: requested });
        }
        if let Err(error) = result {
            // Like the plugin, which releases by owner: also what it had before.
            if !given.is_empty() {
                self.release_locked(container, interface)?;
            }
            return Err(error);
        }
        Ok(given)
    }

    /// Releases every address of a container's interface. It is no error if there is none.
    pub fn release(&self, container: &str, interface: &str) -> Result<(), HostLocalError> {
        self.locked()?;
        self.release_locked(container, interface)
    }

    /// The addresses of a container's interface.
    pub fn of(&self, container: &str, interface: &str) -> Result<Vec<IpAddr>, HostLocalError> {
        self.locked()?;
        let names = self.names_of(container, interface)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Releases the addresses of everyone for whom `keep` does not hold.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) -> Result<(), HostLocalError> {
        self.locked()?;
        for (name, record) in self.records()? {
            let mut lines = record.lines().map(str::trim);
            let (container, interface) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            if name.parse::<IpAddr>().is_ok() && !container.is_empty() && !keep(container, interface) {
                self.unlink(&name)?;
            }
        }
        Ok(())
    }

    fn one_of(
        &self,
        container: &str,
        interface: &str,
        set: usize,
        ranges: &Ranges,
        wanted: Option<IpAddr>,
    ) -> Result<Given, HostLocalError> {
        if let Some(address) = wanted {
            let range = &ranges.0[ranges.containing(address).unwrap_or(0)];
            if address == range.gateway {
                return Err(HostLocalError::Gateway { address });
            }
            if !self.reserve(container, interface, set, address)? {
                return Err(HostLocalError::Taken { address });
            }
            return Ok(range.given(address));
        }
        let names = self.names_of(container, interface)?;
        let mut had = names.iter().filter_map(|name| name.parse::<IpAddr>().ok());
        if let Some(address) = had.find(|address| ranges.containing(*address).is_some()) {
            return Err(HostLocalError::Duplicate { address, container: container.to_owned() });
        }
        let last = self.contents(&last_reserved(set))?.and_then(|text| text.parse().ok());
        let mut tried = 0;
        for candidate in ranges.candidates(last) {
            if self.reserve(container, interface, set, candidate.address.address())? {
                return Ok(candidate);
            }
            tried += 1;
            if tried == SEARCH_MAX {
                break;
            }
        }
        Err(HostLocalError::Full { set })
    }

    /// Whether the address could be had.
    fn reserve(
        &self,
        container: &str,
        interface: &str,
        set: usize,
        address: IpAddr,
    ) -> Result<bool, HostLocalError> {
        let name = address.to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, &name, flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => file,
            Err(Errno::EXIST) => return Ok(false),
            Err(source) => return Err(self.failed("create", &name, source)),
        };
        let record = format!("{}\r\n{interface}", container.trim());
        write_all(&file, record.as_bytes())
            .map_err(|source| self.failed("write", &name, source))
            .and_then(|()| self.remember(&last_reserved(set), &name))
            .inspect_err(|_| {
                // Says nothing, or is not known to be given: it is taken back as far as that is possible.
                let _ = rustix::fs::unlinkat(&self.directory, &name, AtFlags::empty());
            })?;
        Ok(true)
    }

    /// Overwrites before it shortens: emptying a file first makes ext4 write it out at once.
    fn remember(&self, name: &str, text: &str) -> Result<(), HostLocalError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || {
            let file = rustix::fs::openat(&self.directory, name, flags, Mode::from_raw_mode(0o644))?;
            write_all(&file, text.as_bytes())?;
            rustix::fs::ftruncate(&file, u64::try_from(text.len()).unwrap_or(0))
        };
        write().map_err(|source| self.failed("write", name, source))
    }

    fn release_locked(&self, container: &str, interface: &str) -> Result<(), HostLocalError> {
        self.names_of(container, interface)?.iter().try_for_each(|name| self.unlink(name))
    }

    /// The files of a container's interface; if there are none, those that say the container only, of older versions
    /// of the plugin.
    fn names_of(&self, container: &str, interface: &str) -> Result<Vec<String>, HostLocalError> {
        let records = self.records()?;
        let whole = format!("{}\r\n{interface}", container.trim());
        for wanted in [whole.as_str(), container.trim()] {
            let names: Vec<String> = records
                .iter()
                .filter(|(_, record)| record.trim() == wanted)
                .map(|(name, _)| name.clone())
                .collect();
            if !names.is_empty() {
                return Ok(names);
            }
        }
        Ok(Vec::new())
    }

    /// Every file with what it says.
    fn records(&self) -> Result<Vec<(String, String)>, HostLocalError> {
        let failed = |source| HostLocalError::File { call: "read", path: self.path.clone(), source };
        let mut records = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is not UTF-8 is nobody's.
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(name, "." | ".." | "lock") || name.starts_with("last_reserved_ip.") {
                continue;
            }
            if let Some(record) = self.contents(name)? {
                records.push((name.to_owned(), record));
            }
        }
        Ok(records)
    }

    /// What a file says; none if it is gone or no file.
    fn contents(&self, name: &str) -> Result<Option<String>, HostLocalError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(source) => return Err(self.failed("open", name, source)),
        };
        let mut bytes = [0; RECORD_MAX];
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut bytes)) {
            Ok(length) => Ok(Some(String::from_utf8_lossy(&bytes[..length]).into_owned())),
            Err(Errno::ISDIR) => Ok(None),
            Err(source) => Err(self.failed("read", name, source)),
        }
    }

    fn unlink(&self, name: &str) -> Result<(), HostLocalError> {
        match rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(self.failed("unlink", name, source)),
        }
    }

    /// Waits for other programs; the lock is let go when the store is dropped.
    fn locked(&self) -> Result<(), HostLocalError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(HostLocalError::Locked { path: self.path.join("lock") });
                }
                Err(source) => return Err(self.failed("flock", "lock", source)),
            }
        }
    }

    fn failed(&self, call: &'static str, name: &str, source: Errno) -> HostLocalError {
        HostLocalError::File { call, path: self.path.join(name), source }
    }
}

fn last_reserved(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(subnet: &str) -> Bounds {
        Bounds { subnet: subnet.parse().unwrap(), first: None, last: None, gateway: None }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn given(sets: &[Vec<Bounds>], last: Option<&str>) -> Vec<String> {
        let sets = Ranges::of_sets(sets).unwrap();
        sets[0].candidates(last.map(ip)).map(|given| given.address.address().to_string()).collect()
    }

    #[test]
    fn a_round_visits_all_ranges_of_a_set_and_no_gateway() {
        let second =
            Bounds { first: Some(ip("10.2.0.4")), last: Some(ip("10.2.0.5")), ..bounds("10.2.0.0/24") };
        let set = vec![bounds("10.1.0.0/30"), second];
        assert_eq!(given(std::slice::from_ref(&set), None), ["10.1.0.2", "10.2.0.4", "10.2.0.5"]);
        assert_eq!(given(std::slice::from_ref(&set), Some("10.2.0.4")), ["10.2.0.5", "10.1.0.2", "10.2.0.4"]);
        assert_eq!(given(&[set], Some("192.0.2.1")), ["10.1.0.2", "10.2.0.4", "10.2.0.5"]);
        assert_eq!(given(&[vec![bounds("fd00::/126")]], Some("fd00::3")), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn configurations_that_cannot_be() {
        let error = |sets: &[Vec<Bounds>]| Ranges::of_sets(sets).unwrap_err().to_string();
        assert_eq!(error(&[]), "no IP ranges specified");
        assert_eq!(error(&[vec![]]), "range set 0 is empty");
        assert!(error(&[vec![bounds("10.1.0.0/31")]]).contains("too small"));
        assert!(error(&[vec![bounds("10.1.0.7/24")]]).contains("host bits set, the network is 10.1.0.0/24"));
        assert!(error(&[vec![bounds("10.1.0.0/24"), bounds("fd00::/64")]]).contains("both"));
        assert!(error(&[vec![bounds("10.1.0.0/24")], vec![bounds("10.1.0.0/25")]]).contains("overlap"));
        let outside = Bounds { first: Some(ip("10.2.0.1")), ..bounds("10.1.0.0/24") };
        assert!(error(&[vec![outside]]).contains("rangeStart 10.2.0.1"));
    }

    #[test]
    fn all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let narrow = Bounds { first: Some(ip("fd00::5")), last: Some(ip("fd00::5")), ..bounds("fd00::/64") };
        let sets = Ranges::of_sets(&[vec![bounds("10.1.0.0/24")], vec![narrow]]).unwrap();
        let open = || Store::open(Some(dir.path()), "pods").unwrap();
        open().allocate("one", "eth0", &sets, &[]).unwrap();
        assert!(matches!(open().allocate("two", "eth0", &sets, &[]), Err(HostLocalError::Full { set: 1 })));
        assert!(matches!(open().allocate("one", "eth0", &sets, &[]), Err(HostLocalError::Duplicate { .. })));
        assert_eq!(open().of("one", "eth0").unwrap().len(), 2);
        assert!(open().of("two", "eth0").unwrap().is_empty());
        open().release("one", "eth0").unwrap();
        let wanted = [ip("10.1.0.9"), ip("fd00::5")];
        let given = open().allocate("two", "eth0", &sets, &wanted).unwrap();
        assert_eq!(given.iter().map(|given| given.address.address()).collect::<Vec<_>>(), wanted);
        assert!(matches!(
            open().allocate("three", "eth0", &sets, &[ip("192.0.2.1")]),
            Err(HostLocalError::Full { .. } | HostLocalError::Unfulfilled { .. })
        ));
        open().retain(|container, _| container != "two").unwrap();
        assert!(open().of("two", "eth0").unwrap().is_empty());
    }
}
