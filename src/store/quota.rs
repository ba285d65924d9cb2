//! Writable layers as projects of the file system: what one takes without walking it, and a limit.
//!
//! ```text
//! snapshots/<key>/           project 0
//!   upper/  work/            project N, inherited by all that is made below; N is in snapshot.json
//! ```
//! Where the file system of the store counts projects (ext4 with `-O quota,project`, XFS with `prjquota`), every writable
//! layer is one; where it also enforces limits, each can have one. overlayfs gives up CAP_SYS_RESOURCE for what it writes
//! (`ovl_fill_super` of fs/overlayfs/super.c), so the limit holds for root too: ext4 answers EDQUOT, XFS ENOSPC.
//! A project is free when no snapshot has it and nothing is left in it, such as files that are still being unlinked.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pinnace_sys::quota::{self, State};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::usage::Usage;

/// The projects of writable layers: far above what administrators and the kubelet number theirs.
const PROJECTS: std::ops::Range<u32> = 0x504e_0000..0x504f_0000;

/// The projects of one store.
#[derive(Debug)]
pub(crate) struct Projects {
    state: State,
    limit: Option<u64>,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    by_snapshots: HashSet<u32>,
    next: u32,
}

impl Projects {
    /// Finds out what the file system does; a limit that it cannot enforce is refused.
    pub(crate) fn open(root: &Dir, limit: Option<u64>, known: impl Iterator<Item = u32>) -> Result<Self> {
        let state = quota::state(root.as_fd()).map_err(Error::io("ask for the quota of", root.path()))?;
        if limit.is_some() && state != State::Enforced {
            return Err(Error::NoQuota { root: root.path().to_owned(), found: describe(state) });
        }
        let taken = Taken { by_snapshots: known.collect(), next: PROJECTS.start };
        Ok(Self { state, limit, taken: Mutex::new(taken) })
    }

    /// What the file system does, in words.
    pub(crate) fn describe(&self) -> &'static str {
        describe(self.state)
    }

    /// A project for a new writable layer, with the limit set; `None` where there are none.
    pub(crate) fn take(&self, root: &Dir) -> Result<Option<u32>> {
        if self.state == State::Off {
            return Ok(None);
        }
        let fault = |op| Error::io(op, root.path());
        let mut taken = self.lock();
        for _ in PROJECTS {
            let project = taken.next;
            taken.next = if project + 1 == PROJECTS.end { PROJECTS.start } else { project + 1 };
            if taken.by_snapshots.contains(&project) {
                continue;
            }
            let left = quota::project_usage(root.as_fd(), project).map_err(fault("read the quota of"))?;
            if left != quota::Taken::default() {
                continue;
            }
            if self.state == State::Enforced {
                quota::limit_project(root.as_fd(), project, self.limit.unwrap_or(0))
                    .map_err(fault("set a quota on"))?;
            }
            taken.by_snapshots.insert(project);
            return Ok(Some(project));
        }
        Err(Error::Limit { what: "number of writable layers", limit: PROJECTS.len() as u64 })
    }

    /// Puts an empty directory into a project.
    pub(crate) fn join(&self, directory: &Dir, project: u32) -> Result<()> {
        quota::join_project(directory.as_fd(), project)
            .map_err(Error::io("set the project of", directory.path()))
    }

    /// Gives a project back. What is still in it counts until it is unlinked, and is not limited any more.
    pub(crate) fn give_back(&self, root: &Dir, project: u32) {
        let unlimited = match self.state {
            State::Enforced => quota::limit_project(root.as_fd(), project, 0),
            _ => Ok(()),
        };
        if let Err(errno) = unlimited {
            tracing::warn!(project, error = &errno as &dyn std::error::Error, "lifting a quota");
        }
        self.lock().by_snapshots.remove(&project);
    }

    /// What a project takes.
    pub(crate) fn usage(&self, root: BorrowedFd<'_>, project: u32) -> Result<Usage, rustix::io::Errno> {
        quota::project_usage(root, project).map(|taken| Usage { bytes: taken.bytes, inodes: taken.inodes })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(state: State) -> &'static str {
    match state {
        State::Off => "no project quota",
        State::Counted => "project quota that is counted but not enforced",
        State::Enforced => "project quota that is enforced",
    }
}
