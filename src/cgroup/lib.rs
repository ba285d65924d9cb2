//! Cgroups v1, v2 and hybrids of both behind one type, with the cgroupfs and systemd drivers.
//!
//! A [`Hierarchy`] is what the machine mounts; a [`Cgroup`] is one path in all of it:
//!
//! ```text
//! unified (v2)                      legacy (v1) and hybrid
//! /sys/fs/cgroup                    /sys/fs/cgroup/{cpu,cpuacct,memory,pids,…,systemd}   one tree per controller
//!   cgroup.subtree_control            kubepods/pod1/c1/tasks
//!   kubepods/pod1/c1/                 kubepods/pod1/c1/cpu.shares
//!     cgroup.procs cpu.weight …     /sys/fs/cgroup/unified        hybrid: v2 without the v1 controllers
//! ```
//!
//! A container joins all of them, whether or not it has a limit there, so that its processes can be counted,
//! frozen and killed together. The child joins by itself ([`JoinFds`]): on v2 it is born there, on v1 it writes
//! `0` to `tasks` while it is single-threaded, which needs no lock on the whole machine's threads, as moving a
//! process by its pid does (a factor of 50 in time).
//!
//! Nothing is remembered but the path: every operation opens the files it needs below a directory descriptor
//! of the mount, so a [`Cgroup`] costs no descriptor and [`Cgroup::open`] after a restart is as good as the
//! original. Limits come from the OCI [`LinuxResources`](oci_spec::runtime::LinuxResources), as a list of
//! settings that is written all or nothing.
//!
//! That is the cgroupfs driver. Where systemd owns the tree, containers below its slices are told to it as scopes, see
//! [`Systemd`] and its module.

mod cgroup;
mod detect;
mod device_program;
mod devices;
mod error;
mod file;
#[cfg(test)]
mod kernel_tests;
mod kill;
mod oom;
mod path;
mod session;
mod setting;
mod systemd;
mod unified;
mod usage;
mod v1;
mod v2;

pub use cgroup::{Cgroup, JoinFds, Limits, Previous};
pub use detect::{Driver, Hierarchy, Mode};
pub use devices::{Access, DeviceKind, DeviceRules};
pub use error::{CgroupError, Code, Result};
pub use oom::OomCounter;
pub use path::CgroupPath;
pub use session::Session;
pub use systemd::{Scope, Systemd};
pub use usage::{Detail, DeviceIo, HugePages, Memory, Pressure, Stall, Swap, Usage};
