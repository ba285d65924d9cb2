//! Mappings of users and groups between the host and a pod, and user namespaces that have them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use pinnace_launcher::namespaces::{self, Range, Wanted};
use pinnace_sys::mount::{Attributes, Reach, change};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A range of ids of the host and where it begins inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id on the host.
    pub host: u32,
    /// First id inside.
    pub container: u32,
    /// How many.
    pub length: u32,
}

/// Users and groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerMap {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl OwnerMap {
    /// The host's user and group that are root inside.
    pub fn root(&self) -> (u32, u32) {
        let root = |ranges: &[IdRange]| {
            ranges.iter().find(|range| range.container == 0).map_or(0, |range| range.host)
        };
        (root(&self.uids), root(&self.gids))
    }

    /// A user namespace with this mapping, and others that it owns; `program` is the monitor's. Blocks for milliseconds.
    pub fn namespaces(&self, program: BorrowedFd<'_>, wanted: Wanted) -> Result<namespaces::Made, Error> {
        let ranges = |ranges: &[IdRange]| ranges.iter().copied().map(Range::from).collect::<Vec<_>>();
        Ok(namespaces::make(program, &ranges(&self.uids), &ranges(&self.gids), wanted)?)
    }

    /// A user namespace with this mapping, for showing the owners of files.
    pub fn user_namespace(&self, program: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
        Ok(self.namespaces(program, Wanted::default())?.user)
    }
}

impl From<IdRange> for Range {
    fn from(range: IdRange) -> Self {
        Self { outside: range.host, inside: range.container, length: range.length }
    }
}

/// Whether pods can have user namespaces here: one can be made, and files below the root directory can be shown through it.
pub fn probe(program: BorrowedFd<'_>, root: &Path) -> Result<(), Error> {
    let range = vec![IdRange { host: 65_536, container: 0, length: 65_536 }];
    let namespace = OwnerMap { uids: range.clone(), gids: range }.user_namespace(program)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, root, flags).map_err(|errno| Error::io("open_tree", root)(errno.into()))?;
    change(tree.as_fd(), Reach::Mount, &Attributes::default().mapped(namespace.as_fd()))
        .map_err(|errno| Error::io("map owners of", root)(errno.into()))
}
