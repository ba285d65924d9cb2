//! Which blocks pods get addresses of, and which they still have addresses of; kept over restarts.
//!
//! ```text
//! <state dir>/network.json   {"pod_cidr": [...] or null, "current": [...], "retired": [...]}
//! ```
//!
//! The kubelet names the node's pod CIDR once, so it is kept and wins over the configuration. A block that is no
//! longer current is *retired*: its pods go on, their gateway stays on the bridge, and it is forgotten when the
//! last address of it is released.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::NetworkError;
use crate::address::{Cidr, IpFamily};
use crate::ipam::Range;

/// The blocks of a network.
#[derive(Debug)]
pub struct Ranges {
    path: PathBuf,
    state: State,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    #[serde(default)]
    pod_cidr: Option<Vec<Cidr>>,
    current: Vec<Range>,
    #[serde(default)]
    retired: Vec<Range>,
}

impl Ranges {
    /// Reads what was kept and combines it with the configured ranges.
    pub fn open(state_dir: &Path, configured: &[Range]) -> Result<Self, NetworkError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .create(state_dir)
            .map_err(|source| NetworkError::State { call: "mkdir", path: state_dir.to_owned(), source })?;
        let path = state_dir.join("network.json");
        let mut state = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| NetworkError::StateFormat { path: path.clone(), source })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(source) => return Err(NetworkError::State { call: "read", path, source }),
        };
        let wanted = match &state.pod_cidr {
            Some(blocks) => of_blocks(blocks)?,
            None => checked(configured.to_vec())?,
        };
        state.replace(wanted);
        let ranges = Ranges { path, state };
        ranges.write(&ranges.state)?;
        Ok(ranges)
    }

    /// The ranges that new pods get an address each of; the first is the primary one.
    pub fn current(&self) -> &[Range] {
        &self.state.current
    }

    /// The ranges that only older pods have addresses of.
    pub fn retired(&self) -> &[Range] {
        &self.state.retired
    }

    /// Current and retired ones.
    pub fn all(&self) -> Vec<Range> {
        self.state.current.iter().chain(&self.state.retired).copied().collect()
    }

    /// Takes over the node's pod CIDR: comma-separated blocks. Returns whether that changed anything.
    pub fn set_pod_cidr(&mut self, text: &str) -> Result<bool, NetworkError> {
        let blocks = text
            .split(',')
            .map(str::trim)
            .filter(|block| !block.is_empty())
            .map(str::parse)
            .collect::<Result<Vec<Cidr>, _>>()
            .map_err(|source| NetworkError::PodCidr { text: text.to_owned(), source })?;
        if blocks.is_empty() {
            return Ok(false);
        }
        let mut state = self.state.clone();
        state.replace(of_blocks(&blocks)?);
        state.pod_cidr = Some(blocks);
        if state == self.state {
            return Ok(false);
        }
        self.write(&state)?;
        self.state = state;
        Ok(true)
    }

    /// Forgets the retired ranges of which `in_use` says no. Returns them.
    pub fn forget_unused(&mut self, in_use: impl Fn(&Range) -> bool) -> Result<Vec<Range>, NetworkError> {
        let mut state = self.state.clone();
        state.retired.retain(in_use);
        let dropped: Vec<Range> =
            self.state.retired.iter().filter(|range| !state.retired.contains(range)).copied().collect();
        if !dropped.is_empty() {
            self.write(&state)?;
            self.state = state;
        }
        Ok(dropped)
    }

    /// Atomically: a crash leaves the old or the new file.
    fn write(&self, state: &State) -> Result<(), NetworkError> {
        let failed = |call, path: &Path| {
            let path = path.to_owned();
            move |source| NetworkError::State { call, path, source }
        };
        let bytes = serde_json::to_vec(state)
            .map_err(|source| NetworkError::StateFormat { path: self.path.clone(), source })?;
        let new = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&new).map_err(failed("create", &new))?;
        std::io::Write::write_all(&mut file, &bytes).map_err(failed("write", &new))?;
        file.sync_all().map_err(failed("fsync", &new))?;
        std::fs::rename(&new, &self.path).map_err(failed("rename", &self.path))
    }
}

impl State {
    fn replace(&mut self, wanted: Vec<Range>) {
        if self.current == wanted {
            return;
        }
        let old = std::mem::replace(&mut self.current, wanted);
        self.retired.extend(old);
        let current: Vec<Cidr> = self.current.iter().map(Range::cidr).collect();
        let mut seen: Vec<Cidr> = Vec::new();
        self.retired.retain(|range| {
            let keep = !current.contains(&range.cidr()) && !seen.contains(&range.cidr());
            seen.push(range.cidr());
            keep
        });
    }
}

fn of_blocks(blocks: &[Cidr]) -> Result<Vec<Range>, NetworkError> {
    let ranges = blocks.iter().map(|block| Range::new(*block)).collect::<Result<Vec<_>, _>>();
    checked(ranges.map_err(|source| NetworkError::Addresses { network: "pod CIDR".to_owned(), source })?)
}

/// A pod has one address of each range: one IPv4, one IPv6, or both.
fn checked(ranges: Vec<Range>) -> Result<Vec<Range>, NetworkError> {
    let blocks = || ranges.iter().map(|range| range.cidr().to_string()).collect();
    let count = |family| ranges.iter().filter(|range| range.cidr().family() == family).count();
    if ranges.is_empty() {
        return Err(NetworkError::Blocks { blocks: blocks(), reason: "at least one is needed" });
    }
    if count(IpFamily::V4) > 1 || count(IpFamily::V6) > 1 {
        return Err(NetworkError::Blocks { blocks: blocks(), reason: "one per address family at most" });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        Range::new(text.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_pod_cidr_wins_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let configured = [range("10.88.0.0/16")];
        let mut ranges = Ranges::open(dir.path(), &configured).unwrap();
        assert_eq!(ranges.current(), configured);
        assert!(!ranges.set_pod_cidr(" ").unwrap());
        assert!(ranges.set_pod_cidr("10.1.2.0/24, fd00:1::/64").unwrap());
        assert!(!ranges.set_pod_cidr("10.1.2.0/24,fd00:1::/64").unwrap());
        drop(ranges);

        let mut ranges = Ranges::open(dir.path(), &configured).unwrap();
        assert_eq!(ranges.current(), [range("10.1.2.0/24"), range("fd00:1::/64")]);
        assert_eq!(ranges.retired(), configured);
        assert_eq!(ranges.forget_unused(|_| true).unwrap(), []);
        assert_eq!(ranges.forget_unused(|_| false).unwrap(), configured);
        assert!(Ranges::open(dir.path(), &configured).unwrap().retired().is_empty());
    }

    #[test]
    fn a_block_that_comes_back_is_not_retired() {
        let dir = tempfile::tempdir().unwrap();
        let mut ranges = Ranges::open(dir.path(), &[range("10.1.0.0/24")]).unwrap();
        ranges.set_pod_cidr("10.2.0.0/24").unwrap();
        ranges.set_pod_cidr("10.1.0.0/24").unwrap();
        assert_eq!(ranges.retired(), [range("10.2.0.0/24")]);
    }

    #[test]
    fn nonsense_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut ranges = Ranges::open(dir.path(), &[range("10.1.0.0/24")]).unwrap();
        for bad in ["10.1.0.0", "10.1.0.0/24,x", "10.1.0.0/24,10.2.0.0/24", "10.1.0.0/32", "a/b,c"] {
            assert!(ranges.set_pod_cidr(bad).is_err(), "{bad}");
        }
        assert_eq!(ranges.current(), [range("10.1.0.0/24")]);
        assert!(Ranges::open(dir.path(), &[]).is_err() || ranges.retired().is_empty());
    }
}
