//! Addresses of pods: which are taken, on disk in the format of CNI's `host-local` plugin.
//!
//! ```text
//! <dir>/<network>/
//!   lock                   flock(2) while something changes
//!   10.88.0.7              "<sandbox id>\r\n<interface>": taken
//!   fd00:88::7             the same, IPv6
//!   last_reserved_ip.0     the address given last, of the first range; .1 of the second
//! ```
//!
//! The files are the truth: an address is taken from the moment its file exists (created with `O_EXCL`) until the
//! file is removed. A crash between creation and writing leaves an empty file, which belongs to no sandbox and
//! is released as those of the sandbox without a name. Other programs that keep to the format may use the directory at the same time.
//! Ranges are walked in a circle, so an address rests as long as possible before it is given again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::address::{Cidr, IpFamily, from_number, number};

const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// A range is searched this far at most for a free address: all of an IPv4 /12.
const SEARCH_MAX: u32 = 1 << 20;
const RECORD_MAX: usize = 4096;

/// Why an address could not be given or released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// Every address of the range is taken.
    #[error("no free address in {range}: {taken} are taken")]
    Full {
        /// The range.
        range: Range,
        /// How many are taken.
        taken: usize,
    },
    /// A range without a single address for a pod.
    #[error("{cidr} has no address for a pod besides its gateway {gateway}")]
    NoAddresses {
        /// The block.
        cidr: Cidr,
        /// The gateway.
        gateway: IpAddr,
    },
    /// A gateway or bound outside of its block.
    #[error("{address} is not inside {cidr}")]
    Outside {
        /// The address.
        address: IpAddr,
        /// The block.
        cidr: Cidr,
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

/// The addresses of a block that pods may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    cidr: Cidr,
    gateway: IpAddr,
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// All of a block but the network address, the IPv4 broadcast address and the gateway, which is the
    /// block's first address.
    pub fn new(cidr: Cidr) -> Result<Self, IpamError> {
        Range::with_gateway(cidr, None)
    }

    /// Like [`Range::new`] with another gateway.
    pub fn with_gateway(cidr: Cidr, gateway: Option<IpAddr>) -> Result<Self, IpamError> {
        let cidr = cidr.network();
        let family = cidr.family();
        let highest = match family {
            IpFamily::V4 => number(cidr.last()).saturating_sub(1),
            IpFamily::V6 => number(cidr.last()),
        };
        let lowest = number(cidr.address()).saturating_add(1);
        let gateway = gateway.unwrap_or_else(|| from_number(family, lowest));
        if !cidr.contains(gateway) {
            return Err(IpamError::Outside { address: gateway, cidr });
        }
        // At least the gateway and one pod.
        if highest <= lowest {
            return Err(IpamError::NoAddresses { cidr, gateway });
        }
        let (first, last) = (from_number(family, lowest), from_number(family, highest));
        Ok(Range { cidr, gateway, first, last })
    }

    /// Narrows the addresses that are given.
    pub fn between(self, first: IpAddr, last: IpAddr) -> Result<Self, IpamError> {
        let cidr = self.cidr;
        for address in [first, last] {
            let bounds = number(self.first)..=number(self.last);
            if !cidr.contains(address) || !bounds.contains(&number(address)) {
                return Err(IpamError::Outside { address, cidr });
            }
        }
        if number(first) > number(last) || (first == last && first == self.gateway) {
            return Err(IpamError::NoAddresses { cidr, gateway: self.gateway });
        }
        Ok(Range { first, last, ..self })
    }

    /// The block.
    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// The gateway.
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// The gateway with the prefix length, as the bridge gets it.
    pub fn gateway_cidr(&self) -> Cidr {
        self.with_prefix(self.gateway)
    }

    /// An address of the block with the prefix length, as an interface gets it.
    pub fn with_prefix(&self, address: IpAddr) -> Cidr {
        Cidr::new(address, self.cidr.prefix_len()).unwrap_or(self.cidr)
    }

    fn successor(&self, address: IpAddr) -> IpAddr {
        let next = number(address).wrapping_add(1);
        let inside = (number(self.first)..=number(self.last)).contains(&next);
        if inside && self.cidr.contains(address) { from_number(self.cidr.family(), next) } else { self.first }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", self.cidr, self.first, self.last)
    }
}

/// The addresses of one network.
#[derive(Debug)]
pub struct Ipam {
    directory: OwnedFd,
    path: PathBuf,
    lock: OwnedFd,
    taken: BTreeMap<IpAddr, Owner>,
    by_sandbox: BTreeMap<String, BTreeSet<IpAddr>>,
    last: BTreeMap<usize, Last>,
}

/// The address given last of a range, and the file that says so, once we wrote it.
#[derive(Debug)]
struct Last {
    address: IpAddr,
    file: Option<OwnedFd>,
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    sandbox: String,
    interface: String,
}

impl Ipam {
    /// Opens `<dir>/<network>` and reads what is taken.
    pub fn open(dir: &Path, network: &str) -> Result<Self, IpamError> {
        if network.is_empty() || network.contains(['/', '\0']) || matches!(network, "." | "..") {
            return Err(IpamError::NetworkName { name: network.to_owned() });
        }
        Ipam::open_directory(dir.join(network))
    }

    fn open_directory(path: PathBuf) -> Result<Self, IpamError> {
        let failed = |call| {
            let path = path.clone();
            move |source| IpamError::File { call, path, source }
        };
        std::fs::DirBuilder::new().recursive(true).create(&path).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            failed("mkdir")(errno)
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, &path, flags, Mode::empty()).map_err(failed("open"))?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&directory, "lock", flags, Mode::from_raw_mode(0o644))
            .map_err(failed("open lock in"))?;
        let mut ipam = Ipam {
            directory,
            lock,
            taken: BTreeMap::new(),
            by_sandbox: BTreeMap::new(),
            last: BTreeMap::new(),
            path: path.clone(),
        };
        ipam.read()?;
        Ok(ipam)
    }

    /// Gives a sandbox one address of every range, or none at all.
    ///
    /// What the sandbox has already is given again, so that a repeated request is no second one.
    pub fn allocate(
        &mut self,
        sandbox: &str,
        interface: &str,
        ranges: &[Range],
    ) -> Result<Vec<Cidr>, IpamError> {
        let _locked = self.lock()?;
        let mut given = Vec::with_capacity(ranges.len());
        for (position, range) in ranges.iter().enumerate() {
            let had = self.of(sandbox).find(|address| range.cidr.contains(*address));
            let found = match had {
                Some(address) => Ok((address, false)),
                None => self.reserve(sandbox, interface, position, range).map(|address| (address, true)),
            };
            match found {
                Ok((address, new)) => given.push((range.with_prefix(address), new)),
                Err(error) => {
                    for (address, _) in given.iter().filter(|(_, new)| *new) {
                        self.remove(address.address())?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(given.into_iter().map(|(address, _)| address).collect())
    }

    /// Takes the addresses that a running sandbox has, whether or not their files were lost.
    pub fn claim(&mut self, sandbox: &str, interface: &str, addresses: &[IpAddr]) -> Result<(), IpamError> {
        let _locked = self.lock()?;
        for address in addresses {
            if self.taken.get(address).is_none_or(|owner| owner.sandbox != sandbox) {
                // An empty file of a crash, or of a sandbox that is not: the running one is right.
                self.remove(*address)?;
                self.create(*address, sandbox, interface)?;
            }
        }
        Ok(())
    }

    /// Releases every address of a sandbox. It is no error if there is none.
    pub fn release(&mut self, sandbox: &str) -> Result<(), IpamError> {
        let addresses: Vec<IpAddr> = self.of(sandbox).collect();
        if addresses.is_empty() {
            return Ok(());
        }
        let _locked = self.lock()?;
        for address in addresses {
            self.remove(address)?;
        }
        Ok(())
    }

    /// The addresses of a sandbox.
    pub fn of(&self, sandbox: &str) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.by_sandbox.get(sandbox).into_iter().flatten().copied()
    }

    /// Every sandbox that has an address; the empty name has those whose files are empty.
    pub fn sandboxes(&self) -> impl Iterator<Item = &str> {
        self.by_sandbox.keys().map(String::as_str)
    }

    /// Every address that is taken.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.taken.keys().copied()
    }

    fn reserve(
        &mut self,
        sandbox: &str,
        interface: &str,
        position: usize,
        range: &Range,
    ) -> Result<IpAddr, IpamError> {
        let mut address = range.successor(self.last.get(&position).map_or(range.last, |last| last.address));
        let start = address;
        for _ in 0..SEARCH_MAX {
            if address != range.gateway && !self.taken.contains_key(&address) {
                match self.create(address, sandbox, interface) {
                    Ok(()) => {
                        self.remember(position, address)?;
                        return Ok(address);
                    }
                    // Taken by another program since we looked.
                    Err(IpamError::File { source: Errno::EXIST, .. }) => self.note_foreign(address)?,
                    Err(error) => return Err(error),
                }
            }
            address = range.successor(address);
            if address == start {
                break;
            }
        }
        let taken = self.taken.keys().filter(|address| range.cidr.contains(**address)).count();
        Err(IpamError::Full { range: *range, taken })
    }

    fn create(&mut self, address: IpAddr, sandbox: &str, interface: &str) -> Result<(), IpamError> {
        match self.create_file(address, sandbox, interface) {
            Err(IpamError::File { source: Errno::NOENT, .. }) => {
                self.restore()?;
                self.create_file(address, sandbox, interface)?;
            }
            result => result?,
        }
        self.note(address, sandbox, interface);
        Ok(())
    }

    fn create_file(&self, address: IpAddr, sandbox: &str, interface: &str) -> Result<(), IpamError> {
        let name = address.to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, &name, flags, Mode::from_raw_mode(0o600))
            .map_err(|source| self.failed("create", &name, source))?;
        let record = format!("{sandbox}\r\n{interface}");
        write_all(&file, record.as_bytes()).map_err(|source| {
            // The name exists but says nothing: take it back, or leave it to recovery if even that fails.
            let _ = rustix::fs::unlinkat(&self.directory, &name, AtFlags::empty());
            self.failed("write", &name, source)
        })
    }

    /// Makes the directory again, with all that we know of, after someone removed it.
    fn restore(&mut self) -> Result<(), IpamError> {
        let mut restored = Ipam::open_directory(self.path.clone())?;
        for (address, owner) in &self.taken {
            if !restored.taken.contains_key(address) {
                restored.create_file(*address, &owner.sandbox, &owner.interface)?;
                restored.note(*address, &owner.sandbox, &owner.interface);
            }
        }
        for (position, last) in &self.last {
            restored.last.insert(*position, Last { address: last.address, file: None });
        }
        *self = restored;
        Ok(())
    }

    fn remove(&mut self, address: IpAddr) -> Result<(), IpamError> {
        let name = address.to_string();
        match rustix::fs::unlinkat(&self.directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(source) => return Err(self.failed("unlink", &name, source)),
        }
        if let Some(owner) = self.taken.remove(&address)
            && let Some(addresses) = self.by_sandbox.get_mut(&owner.sandbox)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.by_sandbox.remove(&owner.sandbox);
            }
        }
        Ok(())
    }

    /// Writes in place: the file is only a hint, and emptying a file first makes ext4 write it out at once.
    fn remember(&mut self, position: usize, address: IpAddr) -> Result<(), IpamError> {
        let name = format!("last_reserved_ip.{position}");
        let (file, length) = match self.last.remove(&position) {
            Some(Last { address, file: Some(file) }) => (file, address.to_string().len()),
            _ => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.directory, &name, flags, Mode::from_raw_mode(0o600))
                    .map_err(|source| self.failed("open", &name, source))?;
                (file, usize::MAX)
            }
        };
        let text = address.to_string();
        let shorten = || match u64::try_from(text.len()) {
            Ok(shorter) if text.len() < length => rustix::fs::ftruncate(&file, shorter),
            _ => Ok(()),
        };
        rustix::io::pwrite(&file, text.as_bytes(), 0)
            .and_then(|_| shorten())
            .map_err(|source| self.failed("write", &name, source))?;
        self.last.insert(position, Last { address, file: Some(file) });
        Ok(())
    }

    fn read(&mut self) -> Result<(), IpamError> {
        let _locked = self.lock()?;
        let failed = |source| IpamError::File { call: "read", path: self.path.clone(), source };
        let entries = rustix::fs::Dir::read_from(&self.directory).map_err(failed)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // A name that is not UTF-8 is not ours.
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        for name in names {
            if let Ok(address) = name.parse::<IpAddr>() {
                self.note_foreign(address)?;
            } else if let Some(position) =
                name.strip_prefix("last_reserved_ip.").and_then(|position| position.parse().ok())
                && let Some(address) = self.contents(&name)?.and_then(|text| text.trim().parse().ok())
            {
                self.last.insert(position, Last { address, file: None });
            }
        }
        Ok(())
    }

    /// Notes an address by what its file says.
    fn note_foreign(&mut self, address: IpAddr) -> Result<(), IpamError> {
        if let Some(record) = self.contents(&address.to_string())? {
            let mut lines = record.lines().map(str::trim);
            let (sandbox, interface) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            self.note(address, sandbox, interface);
        }
        Ok(())
    }

    fn note(&mut self, address: IpAddr, sandbox: &str, interface: &str) {
        let owner = Owner { sandbox: sandbox.to_owned(), interface: interface.to_owned() };
        self.taken.insert(address, owner);
        self.by_sandbox.entry(sandbox.to_owned()).or_default().insert(address);
    }

    /// What a file says; `None` if it is gone.
    fn contents(&self, name: &str) -> Result<Option<String>, IpamError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            // A symbolic link is nobody's address; what it points to is none of our business.
            Err(Errno::LOOP) => return Ok(Some(String::new())),
            Err(source) => return Err(self.failed("open", name, source)),
        };
        let mut bytes = vec![0; RECORD_MAX];
        let length =
            rustix::io::read(&file, &mut bytes).map_err(|source| self.failed("read", name, source))?;
        Ok(Some(String::from_utf8_lossy(&bytes[..length]).into_owned()))
    }

    /// Waits for other programs; within this one the caller has `&mut self`.
    fn lock(&self) -> Result<Locked, IpamError> {
        let lock = self.lock.try_clone().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            self.failed("dup", "lock", errno)
        })?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked(lock)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(Errno::WOULDBLOCK) => return Err(IpamError::Locked { path: self.path.join("lock") }),
                Err(source) => return Err(self.failed("flock", "lock", source)),
            }
        }
    }

    fn failed(&self, call: &'static str, name: &str, source: Errno) -> IpamError {
        IpamError::File { call, path: self.path.join(name), source }
    }
}

/// Holds the lock; dropping it lets others in.
struct Locked(OwnedFd);

impl Drop for Locked {
    fn drop(&mut self) {
        // The description stays open in the owner, so closing alone would not unlock.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

pub(crate) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Range {
        Range::new(text.parse().unwrap()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn one(ipam: &mut Ipam, sandbox: &str, range: Range) -> Result<IpAddr, IpamError> {
        Ok(ipam.allocate(sandbox, "eth0", &[range])?[0].address())
    }

    #[test]
    fn files_are_those_of_host_local() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = [range("10.88.0.0/16"), range("fd00:88::/64")];
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        let given = ipam.allocate("f00d", "eth0", &ranges).unwrap();
        assert_eq!(given, ["10.88.0.2/16".parse().unwrap(), "fd00:88::2/64".parse().unwrap()]);
        let read = |name: &str| fs::read_to_string(dir.path().join("pods").join(name)).unwrap();
        assert_eq!(read("10.88.0.2"), "f00d\r\neth0");
        assert_eq!(read("fd00:88::2"), "f00d\r\neth0");
        assert_eq!(
            (read("last_reserved_ip.0"), read("last_reserved_ip.1")),
            ("10.88.0.2".into(), "fd00:88::2".into())
        );
        assert!(dir.path().join("pods/lock").exists());
        assert_eq!(ipam.allocate("f00d", "eth0", &ranges).unwrap(), given, "the same again");
        ipam.release("f00d").unwrap();
        ipam.release("f00d").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("pods")).unwrap().count(), 3);
    }

    #[test]
    fn addresses_go_round_and_skip_what_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let block = range("10.1.0.0/29");
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        let given: Vec<_> = (0..5).map(|n| one(&mut ipam, &format!("s{n}"), block).unwrap()).collect();
        assert_eq!(given, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"].map(ip));
        let full = one(&mut ipam, "s5", block).unwrap_err();
        assert!(matches!(full, IpamError::Full { taken: 5, .. }), "{full}");
        ipam.release("s1").unwrap();
        ipam.release("s3").unwrap();
        drop(ipam);
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        assert_eq!(one(&mut ipam, "s6", block).unwrap(), ip("10.1.0.3"));
        assert_eq!(one(&mut ipam, "s7", block).unwrap(), ip("10.1.0.5"));
    }

    #[test]
    fn a_dual_stack_failure_gives_back_the_first_address() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        let narrow = range("fd00::/64").between(ip("fd00::5"), ip("fd00::5")).unwrap();
        let ranges = [range("10.1.0.0/24"), narrow];
        ipam.allocate("one", "eth0", &ranges).unwrap();
        assert!(matches!(ipam.allocate("two", "eth0", &ranges), Err(IpamError::Full { .. })));
        assert_eq!(ipam.sandboxes().collect::<Vec<_>>(), ["one"]);
        assert!(!dir.path().join("pods/10.1.0.3").exists());
    }

    #[test]
    fn what_others_took_meanwhile_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        let block = range("10.1.0.0/29");
        let mut ours = Ipam::open(dir.path(), "pods").unwrap();
        let mut theirs = Ipam::open(dir.path(), "pods").unwrap();
        assert_eq!(one(&mut theirs, "theirs", block).unwrap(), ip("10.1.0.2"));
        assert_eq!(one(&mut ours, "ours", block).unwrap(), ip("10.1.0.3"));
        assert_eq!(ours.of("theirs").collect::<Vec<_>>(), [ip("10.1.0.2")]);
    }

    #[test]
    fn programs_at_once_never_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let block = range("10.1.0.0/24");
        let given: Vec<IpAddr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|t| {
                    let dir = dir.path();
                    scope.spawn(move || {
                        let mut ipam = Ipam::open(dir, "pods").unwrap();
                        let take = |n| one(&mut ipam, &format!("s{t}-{n}"), block).unwrap();
                        (0..50).map(take).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 200);
    }

    #[test]
    fn the_empty_files_of_a_crash_belong_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pods")).unwrap();
        for (name, text) in [
            ("10.1.0.2", ""),
            ("10.1.0.3", "old-format-without-interface"),
            ("10.1.0.4", "id\r\neth0"),
            ("not-an-address", "x"),
            ("last_reserved_ip.0", "garbage"),
            ("last_reserved_ip.x", "10.1.0.9"),
        ] {
            fs::write(dir.path().join("pods").join(name), text).unwrap();
        }
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        let owners: Vec<_> = ipam.sandboxes().map(str::to_owned).collect();
        assert_eq!(owners, ["", "id", "old-format-without-interface"]);
        ipam.release("").unwrap();
        assert!(!dir.path().join("pods/10.1.0.2").exists());
        assert_eq!(one(&mut ipam, "new", range("10.1.0.0/24")).unwrap(), ip("10.1.0.2"));
    }

    #[test]
    fn a_link_in_the_place_of_an_address_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pods")).unwrap();
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, dir.path().join("pods/10.1.0.2")).unwrap();
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        assert_eq!(one(&mut ipam, "one", range("10.1.0.0/24")).unwrap(), ip("10.1.0.3"));
        ipam.release("").unwrap();
        assert!(!dir.path().join("pods/10.1.0.2").is_symlink() && !target.exists());
    }

    #[test]
    fn a_removed_directory_comes_back_with_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let block = range("10.1.0.0/24");
        let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
        one(&mut ipam, "one", block).unwrap();
        fs::remove_dir_all(dir.path().join("pods")).unwrap();
        assert_eq!(one(&mut ipam, "two", block).unwrap(), ip("10.1.0.3"));
        let record = fs::read_to_string(dir.path().join("pods/10.1.0.2")).unwrap();
        assert_eq!(record, "one\r\neth0");
    }

    #[test]
    fn names_and_ranges_that_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", ".", "..", "a/b", "/etc"] {
            assert!(matches!(Ipam::open(dir.path(), bad), Err(IpamError::NetworkName { .. })), "{bad}");
        }
        for bad in ["10.1.0.0/31", "10.1.0.0/32", "fd00::/128"] {
            assert!(Range::new(bad.parse().unwrap()).is_err(), "{bad}");
        }
        let block = range("10.1.0.0/24");
        assert!(block.between(ip("10.1.0.0"), ip("10.1.0.9")).is_err());
        assert!(block.between(ip("10.1.0.9"), ip("10.1.0.3")).is_err());
        assert!(block.between(ip("10.1.0.1"), ip("10.1.0.1")).is_err(), "only the gateway");
        assert!(block.between(ip("10.2.0.1"), ip("10.2.0.9")).is_err());
        assert!(Range::with_gateway("10.1.0.0/24".parse().unwrap(), Some(ip("10.2.0.1"))).is_err());
    }

    proptest! {
        #[test]
        fn every_address_of_a_range_is_reached_once_in_a_round(length in 26u8..=30, low in 0u8..4) {
            let block = Range::new(Cidr::new(IpAddr::from([10, 0, 0, low * 64]), length).unwrap()).unwrap();
            let mut seen = BTreeSet::new();
            let mut address = block.successor(block.last);
            while seen.insert(address) {
                prop_assert!(block.cidr().contains(address));
                address = block.successor(address);
            }
            prop_assert_eq!(seen.len(), (1 << (32 - length)) - 2);
        }

        #[test]
        fn any_contents_of_a_file_are_read(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("pods")).unwrap();
            fs::write(dir.path().join("pods/10.1.0.2"), &text).unwrap();
            fs::write(dir.path().join("pods/last_reserved_ip.0"), &text).unwrap();
            let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
            prop_assert!(ipam.addresses().count() == 1);
            prop_assert!(one(&mut ipam, "new", range("10.1.0.0/24")).unwrap() != ip("10.1.0.2"));
        }
    }
}
