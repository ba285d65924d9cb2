//! [`Hierarchy`]: which cgroup file systems this machine mounts, and who drives them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode as FileMode, OFlags, openat};
use rustix::io::Errno;

use crate::device_program::Programs;
use crate::error::{CgroupError, Result};
use crate::file;

const MOUNTINFO: &str = "/proc/self/mountinfo";
const SELF_CGROUP: &str = "/proc/self/cgroup";
/// systemd makes this directory early and only as PID 1 (sd_booted(3)).
const SYSTEMD_BOOTED: &str = "/run/systemd/system";
/// What the first process of this PID namespace is called; in a container with its own the directory may be the host's.
const FIRST_PROCESS: &str = "/proc/1/comm";
/// Where systemd is spoken to.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// v1 controllers of current kernels; other mount options of a cgroup mount are not controllers.
const V1_CONTROLLERS: [&str; 14] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];
/// A controller-less v1 tree that systemd, and tools which look for it, use for bookkeeping.
const NAMED_SYSTEMD: &str = "name=systemd";

/// Which generation of cgroups carries the controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// v1 only.
    Legacy,
    /// v1 controllers, and a v2 tree beside them that only groups processes.
    Hybrid,
    /// v2 only.
    Unified,
}

/// Who owns the tree above our leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The runtime makes directories itself.
    Cgroupfs,
    /// systemd is PID 1; a kubelet there names parents as slices.
    Systemd,
}

/// What kind of tree a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    V1,
    V2,
}

/// One mounted tree.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) kind: Kind,
    /// v1: one or several (`cpu`, `cpuacct`), or `name=systemd`. v2: empty, see `cgroup.controllers`.
    pub(crate) controllers: Vec<String>,
    /// Where paths start: the mount point, or a cgroup below it.
    pub(crate) path: PathBuf,
    dir: OwnedFd,
}

impl Mount {
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// For messages.
    pub(crate) fn label(&self) -> String {
        match self.kind {
            Kind::V1 => self.controllers.join(","),
            Kind::V2 => "unified".to_owned(),
        }
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    pub(crate) fn failed(&self, operation: &'static str, relative: &str, errno: Errno) -> CgroupError {
        CgroupError::Io { operation, controller: self.label(), path: self.path.join(relative), errno }
    }
}

#[derive(Debug)]
struct Inner {
    mode: Mode,
    driver: Driver,
    mounts: Vec<Mount>,
    /// Controllers that the v2 root offers; empty without v2.
    unified_controllers: BTreeSet<String>,
    device_programs: Programs,
}

/// The cgroup trees of this machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchy(Arc<Inner>);

impl Hierarchy {
    /// Reads the mount table of the calling process.
    pub fn detect() -> Result<Self> {
        let found = parse_mountinfo(&slurp(MOUNTINFO)?)?;
        Self::build(found.into_iter().map(|mount| (mount.point.clone(), mount)).collect())
    }

    /// The same trees, with every path taken below the cgroups that the calling process is in: for nested
    /// use (a delegated subtree, tests). On v2 the kernel then refuses controllers as long as processes live
    /// in that cgroup itself.
    pub fn below_self(&self) -> Result<Self> {
        let own = parse_self_cgroup(&slurp(SELF_CGROUP)?)?;
        let mut mounts = Vec::new();
        for mount in parse_mountinfo(&slurp(MOUNTINFO)?)? {
            let Some((_, path)) = own.iter().find(|(controllers, _)| *controllers == mount.controllers)
            else {
                continue;
            };
            let below = Path::new(path).strip_prefix(&mount.root).map_err(|_| CgroupError::Malformed {
                file: SELF_CGROUP.into(),
                line: format!("{path} is outside of the mount of {}", mount.root),
            })?;
            mounts.push((mount.point.join(below), mount));
        }
        Self::build(mounts)
    }

    fn build(found: Vec<(PathBuf, Found)>) -> Result<Self> {
        let mut mounts: Vec<Mount> = Vec::new();
        for (path, mount) in found {
            // The same tree may be mounted in several places; the first one serves.
            if mounts.iter().any(|seen| seen.kind == mount.kind && seen.controllers == mount.controllers) {
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let dir = openat(CWD, &path, flags, FileMode::empty()).map_err(|errno| CgroupError::Io {
                operation: "open",
                controller: mount.controllers.join(","),
                path: path.clone(),
                errno,
            })?;
            mounts.push(Mount { kind: mount.kind, controllers: mount.controllers, path, dir });
        }
        let v1 = mounts.iter().any(|mount| mount.kind == Kind::V1 && !mount.has(NAMED_SYSTEMD));
        let unified = mounts.iter().find(|mount| mount.kind == Kind::V2);
        let mode = match (v1, unified) {
            (true, None) => Mode::Legacy,
            (true, Some(_)) => Mode::Hybrid,
            (false, Some(_)) => Mode::Unified,
            (false, None) => return Err(CgroupError::NoHierarchy),
        };
        let mut unified_controllers = BTreeSet::new();
        if let Some(mount) = unified {
            let text = file::read_text(mount.dir(), "cgroup.controllers")
                .map_err(|errno| mount.failed("read", "cgroup.controllers", errno))?;
            unified_controllers.extend(text.split_whitespace().map(str::to_owned));
        }
        if mode == Mode::Unified {
            mounts.retain(|mount| mount.kind == Kind::V2);
        }
        let driver =
            if mode == Mode::Unified && systemd_can_drive() { Driver::Systemd } else { Driver::Cgroupfs };
        Ok(Self(Arc::new(Inner {
            mode,
            driver,
            mounts,
            unified_controllers,
            device_programs: Programs::default(),
        })))
    }

    /// Which generation carries the controllers.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Who owns the tree.
    pub fn driver(&self) -> Driver {
        self.0.driver
    }

    /// Controllers that limits can use here.
    pub fn controllers(&self) -> BTreeSet<String> {
        if self.0.mode == Mode::Unified {
            return self.0.unified_controllers.clone();
        }
        let v1 = self.0.mounts.iter().filter(|mount| !mount.has(NAMED_SYSTEMD));
        v1.flat_map(|mount| mount.controllers.iter().cloned()).collect()
    }

    pub(crate) fn mounts(&self) -> &[Mount] {
        &self.0.mounts
    }

    /// The v1 tree of that controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Mount> {
        self.0.mounts.iter().find(|mount| mount.kind == Kind::V1 && mount.has(controller))
    }

    /// The v2 tree.
    pub(crate) fn v2(&self) -> Option<&Mount> {
        self.0.mounts.iter().find(|mount| mount.kind == Kind::V2)
    }

    pub(crate) fn device_programs(&self) -> &Programs {
        &self.0.device_programs
    }

    pub(crate) fn unified_controllers(&self) -> &BTreeSet<String> {
        &self.0.unified_controllers
    }
}

/// Whether systemd is process 1 here and can be asked. On v1 it is not: see `systemd`.
fn systemd_can_drive() -> bool {
    let first = fs::read_to_string(FIRST_PROCESS).unwrap_or_default();
    first.trim_end() == "systemd" && Path::new(SYSTEMD_BOOTED).is_dir() && Path::new(SYSTEM_BUS).exists()
}

/// A cgroup mount as the mount table tells it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    kind: Kind,
    controllers: Vec<String>,
    /// The cgroup that is visible at the mount point.
    root: String,
    point: PathBuf,
}

/// Lines of proc_pid_mountinfo(5): `36 35 98:0 /root /point opts tag:1 - fstype source superopts`.
fn parse_mountinfo(text: &str) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let malformed = || CgroupError::Malformed { file: MOUNTINFO.into(), line: line.to_owned() };
        let (mount, file_system) = line.split_once(" - ").ok_or_else(malformed)?;
        let mut file_system = file_system.split(' ');
        let kind = match file_system.next() {
            Some("cgroup") => Kind::V1,
            Some("cgroup2") => Kind::V2,
            _ => continue,
        };
        let options = file_system.nth(1).ok_or_else(malformed)?;
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { return Err(malformed()) };
        let mut controllers: Vec<String> = match kind {
            Kind::V2 => Vec::new(),
            Kind::V1 => options
                .split(',')
                .filter(|option| {
                    V1_CONTROLLERS.contains(option) || *option == "rdma" || *option == NAMED_SYSTEMD
                })
                .map(str::to_owned)
                .collect(),
        };
        controllers.sort_unstable();
        if kind == Kind::V1 && controllers.is_empty() {
            continue;
        }
        found.push(Found { kind, controllers, root: unescape(root), point: unescape(point).into() });
    }
    Ok(found)
}

/// Lines of cgroups(7): `4:cpu,cpuacct:/path`, `0::/path`. Controllers sorted.
fn parse_self_cgroup(text: &str) -> Result<Vec<(Vec<String>, String)>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            return Err(CgroupError::Malformed { file: SELF_CGROUP.into(), line: line.to_owned() });
        };
        let mut controllers: Vec<String> =
            controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        controllers.sort_unstable();
        found.push((controllers, path.to_owned()));
    }
    Ok(found)
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut plain = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                plain.push(char::from(code));
                rest = &after[3..];
            }
            _ => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

fn slurp(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io {
        operation: "read",
        controller: "any".to_owned(),
        path: path.into(),
        errno: Errno::from_io_error(&source).unwrap_or(Errno::IO),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_trees_of_a_hybrid_mount_table() {
        let table = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:7 - cgroup cgroup rw,cpuacct,cpu\n\
            33 31 0:30 /docker/x /sys/fs/cgroup/mem\\040ory rw - cgroup cgroup rw,memory,clone_children\n\
            34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
            35 31 0:32 / /sys/fs/cgroup/other rw - cgroup cgroup rw,name=other\n\
            36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse_mountinfo(table).unwrap();
        let names: Vec<_> = found.iter().map(|mount| mount.controllers.join("+")).collect();
        assert_eq!(names, ["cpu+cpuacct", "memory", "name=systemd", ""]);
        assert_eq!(found[1].point, Path::new("/sys/fs/cgroup/mem ory"));
        assert_eq!(found[1].root, "/docker/x");
        assert_eq!(found[3].kind, Kind::V2);
        assert!(parse_mountinfo("nonsense").is_err());
    }

    #[test]
    fn reads_own_cgroups() {
        let own = parse_self_cgroup("9:name=systemd:/\n4:cpu,cpuacct:/a:b\n0::/user.slice\n").unwrap();
        assert_eq!(own[1], (vec!["cpu".to_owned(), "cpuacct".to_owned()], "/a:b".to_owned()));
        assert_eq!(own[2], (vec![], "/user.slice".to_owned()));
        assert!(parse_self_cgroup("x").is_err());
    }

    #[test]
    fn unescapes_octal() {
        assert_eq!(unescape(r"/a\040b\011c\134"), "/a b\tc\\");
        assert_eq!(unescape(r"/a\9"), r"/a\9");
    }

    #[test]
    fn this_machine_has_cgroups() {
        let hierarchy = Hierarchy::detect().unwrap();
        assert!(hierarchy.controllers().contains("memory"), "{hierarchy:?}");
        assert!(hierarchy.controllers().contains("pids"));
        hierarchy.below_self().unwrap();
    }
}
