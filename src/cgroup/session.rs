//! [`Session`]: a group of processes inside a container's cgroup that can be killed as one.
//!
//! An exec session that times out must end with everything it started and nothing else. Process trees cannot tell (a
//! daemonised grandchild has another parent), a cgroup can: a child without limits of its own, in one tree only.
//!
//! | machine | the session's tree | how it is killed |
//! |---|---|---|
//! | v2, hybrid | the v2 tree | `cgroup.kill`, atomic |
//! | v1 alone | freezer | freeze, list, SIGKILL, thaw |

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, OFlags, mkdirat, unlinkat};
use rustix::io::Errno;

use crate::cgroup::{Cgroup, JoinFds, children};
use crate::detect::{Kind, Mount};
use crate::error::{CgroupError, Result};
use crate::file;

const DIRECTORY_MODE: u32 = 0o755;

/// What the names of sessions' groups begin with.
const PREFIX: &str = "exec-";

/// A child of a container's cgroup. Dropping it does nothing.
#[derive(Clone, Debug)]
pub struct Session {
    container: Cgroup,
    cgroup: Cgroup,
}

impl Cgroup {
    /// Makes a session's group below this cgroup.
    pub fn session(&self, name: &str) -> Result<Session> {
        let session = self.session_named(name)?;
        let mount = session.mount()?;
        mkdirat(mount.dir(), session.cgroup.relative(), DIRECTORY_MODE.into())
            .map_err(|errno| mount.failed("mkdir", session.cgroup.relative(), errno))?;
        Ok(session)
    }

    /// The sessions whose groups are there, by name.
    pub fn sessions(&self) -> Result<Vec<(String, Session)>> {
        let Some(mount) = self.session_mount() else { return Err(CgroupError::NoHierarchy) };
        let names = match children(mount.dir(), self.relative()) {
            Ok(names) => names,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
            Err(errno) => return Err(mount.failed("list", self.relative(), errno)),
        };
        let sessions = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
        sessions.map(|name| Ok((name.to_owned(), self.session_named(name)?))).collect()
    }

    fn session_named(&self, name: &str) -> Result<Session> {
        let path = self.path().join(&format!("{PREFIX}{name}"))?;
        Ok(Session { container: self.clone(), cgroup: self.at(path) })
    }

    fn session_mount(&self) -> Option<&Mount> {
        let hierarchy = self.hierarchy();
        hierarchy.v2().or_else(|| hierarchy.v1("freezer"))
    }
}

impl Session {
    /// Opens what a child needs to join: the session's group in its tree, the container's in all others.
    pub fn join_fds(&self) -> Result<JoinFds> {
        let mut join = JoinFds { tasks: Vec::new(), clone_into: None };
        let own = self.mount()?.path.clone();
        for mount in self.cgroup.hierarchy().mounts() {
            let cgroup = if mount.path == own { &self.cgroup } else { &self.container };
            let opened: std::result::Result<OwnedFd, Errno> = match mount.kind {
                Kind::V1 => file::open(mount.dir(), &format!("{}/tasks", cgroup.relative()), OFlags::WRONLY),
                Kind::V2 => file::open(mount.dir(), cgroup.relative(), OFlags::PATH | OFlags::DIRECTORY),
            };
            let fd = opened.map_err(|errno| mount.failed("open", cgroup.relative(), errno))?;
            match mount.kind {
                Kind::V1 => join.tasks.push(fd),
                Kind::V2 => join.clone_into = Some(fd),
            }
        }
        Ok(join)
    }

    /// Sends SIGKILL to everything that the session started and that did not leave its group.
    pub fn kill_all(&self) -> Result<()> {
        self.cgroup.kill_all()
    }

    /// Removes the group, unless processes that outlived their session are still in it: they stay the container's, and
    /// the group goes with the container's. Whether it is gone.
    pub fn remove_if_empty(&self) -> Result<bool> {
        let mount = self.mount()?;
        match unlinkat(mount.dir(), self.cgroup.relative(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(mount.failed("rmdir", self.cgroup.relative(), errno)),
        }
    }

    fn mount(&self) -> Result<&Mount> {
        self.cgroup.session_mount().ok_or(CgroupError::NoHierarchy)
    }
}
