//! What this machine and this process can do, read once when the daemon starts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::mountinfo::{self, MountLine};
use crate::{Error, capabilities};

const CAP_SYS_RESOURCE: u32 = 24;

/// Facts that decide what a container can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Capabilities that may be granted: our bounding set, as a mask. A machine may lack some (a guest without
    /// `CAP_SYS_RESOURCE`, a hardened one without `CAP_SYS_MODULE`); asking for those would make `capset(2)` fail as a whole.
    pub bounding: u64,
    /// The kernel's highest capability number.
    pub last_capability: u32,
    /// Without `CAP_SYS_RESOURCE` no process may go below this `oom_score_adj`.
    pub oom_score_adj_floor: Option<i32>,
    /// Without `CAP_SYS_RESOURCE` no process may raise its limit of open files above this.
    pub open_files_hard: Option<u64>,
    /// How control groups are mounted.
    pub cgroups: CgroupLayout,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// SELinux is enabled.
    pub selinux: bool,
    /// `thermal_throttle` directories of the processors present (GHSA-6fw5-f8r9-fgfm: a side channel, hidden by default).
    pub thermal_throttle: Vec<PathBuf>,
}

/// Mounted control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// One cgroup2 hierarchy at `/sys/fs/cgroup`.
    Unified {
        /// Options of the host's mount. A mount from the initial cgroup namespace that does not repeat them switches
        /// them off for the whole machine (cgroup2 applies root flags of such mounts).
        options: Vec<String>,
    },
    /// Version 1 hierarchies, with or without a cgroup2 hierarchy beside them.
    Legacy {
        /// Sorted by directory.
        hierarchies: Vec<Hierarchy>,
    },
    /// No control groups are mounted.
    Absent,
}

/// A version 1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Name of its directory below `/sys/fs/cgroup`.
    pub directory: String,
    /// Mount options that name it: its controllers, or `name=...`.
    pub options: Vec<String>,
}

impl Facts {
    /// Reads them.
    pub fn detect() -> Result<Self, Error> {
        let status = read("/proc/self/status")?;
        let bounding = capability_mask(&status, "CapBnd:") & capability_mask(&status, "CapPrm:");
        let last_capability = number(&read("/proc/sys/kernel/cap_last_cap")?).unwrap_or(40);
        let may_raise = bounding & (1 << CAP_SYS_RESOURCE) != 0;
        let own_score = number(&read("/proc/self/oom_score_adj")?).unwrap_or(0);
        let mounts =
            mountinfo::read().map_err(|error| Error::Fact { path: "/proc/thread-self/mountinfo", error })?;
        Ok(Self {
            bounding: bounding & capabilities::up_to(last_capability),
            last_capability,
            oom_score_adj_floor: (!may_raise).then_some(own_score),
            open_files_hard: if may_raise { None } else { getrlimit(Resource::Nofile).maximum },
            cgroups: CgroupLayout::from_mounts(&mounts),
            apparmor: optional("/sys/module/apparmor/parameters/enabled")?.starts_with('Y'),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            thermal_throttle: thermal_throttle(&optional("/sys/devices/system/cpu/present")?),
        })
    }
}

impl Facts {
    /// Whether device nodes can be made.
    pub(crate) fn makes_nodes(&self) -> bool {
        const CAP_MKNOD: u32 = 27;
        self.bounding & (1 << CAP_MKNOD) != 0
    }
}

impl CgroupLayout {
    fn from_mounts(mounts: &[MountLine]) -> Self {
        const ROOT: &str = "/sys/fs/cgroup";
        let mut hierarchies: Vec<Hierarchy> = mounts.iter().filter_map(legacy_hierarchy).collect();
        hierarchies.sort_by(|a, b| a.directory.cmp(&b.directory));
        hierarchies.dedup_by(|a, b| a.options == b.options || a.directory == b.directory);
        if !hierarchies.is_empty() {
            return Self::Legacy { hierarchies };
        }
        // The last mount on a path is the visible one.
        match mounts.iter().rfind(|mount| mount.mount_point == ROOT && mount.fstype == "cgroup2") {
            Some(mount) => {
                let options = mount.super_options.iter();
                Self::Unified {
                    options: options.filter(|option| *option != "rw" && *option != "ro").cloned().collect(),
                }
            }
            None => Self::Absent,
        }
    }
}

fn legacy_hierarchy(mount: &MountLine) -> Option<Hierarchy> {
    /// Super options that say how, not which.
    const FLAGS: [&str; 8] =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "seclabel"];
    let directory = mount.mount_point.strip_prefix("/sys/fs/cgroup/").filter(|name| !name.contains('/'))?;
    if mount.fstype != "cgroup" {
        return None;
    }
    let options = mount.super_options.iter();
    let options: Vec<String> = options
        .filter(|option| !FLAGS.contains(&option.as_str()) && !option.starts_with("release_agent="))
        .cloned()
        .collect();
    (!options.is_empty()).then(|| Hierarchy { directory: directory.to_owned(), options })
}

fn thermal_throttle(present: &str) -> Vec<PathBuf> {
    let directory = |cpu: u32| PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle"));
    cpu_list(present).map(directory).filter(|path| path.is_dir()).collect()
}

/// `0-3,8` (cpuset(7) list format), bounded: no machine has more than 8192 processors (CVE-2018-20699).
fn cpu_list(text: &str) -> impl Iterator<Item = u32> {
    const MOST: u32 = 8192;
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u32>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse::<u32>().ok()?.min(MOST))
    };
    text.trim().split(',').filter_map(range).flatten().collect::<Vec<_>>().into_iter()
}

fn capability_mask(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.trim().parse().ok()
}

fn read(path: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::Fact { path, error })
}

/// Empty when the file does not exist.
fn optional(path: &'static str) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        Err(error) => Err(Error::Fact { path, error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        let facts = Facts::detect().unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(facts.bounding, capability_mask(&status, "CapBnd:"));
        assert!(facts.last_capability >= 37);
        assert_eq!(facts.oom_score_adj_floor.is_none(), facts.bounding & (1 << CAP_SYS_RESOURCE) != 0);
    }

    #[test]
    fn cgroup_layouts() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                      32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      34 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children\n\
                      35 24 0:29 / /mnt/elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n";
        let hierarchy = |directory: &str, options: &[&str]| Hierarchy {
            directory: directory.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        assert_eq!(
            CgroupLayout::from_mounts(&mountinfo::parse(hybrid)),
            CgroupLayout::Legacy {
                hierarchies: vec![
                    hierarchy("cpu,cpuacct", &["cpu", "cpuacct"]),
                    hierarchy("cpuset", &["cpuset"]),
                    hierarchy("systemd", &["name=systemd"]),
                ]
            }
        );
        let unified = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(
            CgroupLayout::from_mounts(&mountinfo::parse(unified)),
            CgroupLayout::Unified { options: vec!["nsdelegate".into(), "memory_recursiveprot".into()] }
        );
        assert_eq!(CgroupLayout::from_mounts(&[]), CgroupLayout::Absent);
    }

    #[test]
    fn cpu_lists_are_bounded() {
        assert_eq!(cpu_list("0-2,5\n").collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert_eq!(cpu_list("0-4294967295").count(), 8193);
        assert_eq!(cpu_list("").count(), 0);
        assert_eq!(cpu_list("x-y,3").collect::<Vec<_>>(), [3]);
    }
}
