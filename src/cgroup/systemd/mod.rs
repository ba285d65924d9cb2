//! The systemd driver: cgroups below slices are systemd's units, and it knows of them.
//!
//! systemd owns the tree that it mounts (its delegation rules): what others make below a slice can lose its
//! controllers or its limits when a unit beside it is realised anew. So a container below a slice is a *scope*, a unit
//! of processes that somebody else has started, and its limits are the unit's properties as well as values in files.
//!
//! ```text
//! parent                          kubepods-burstable-pod1_2.slice          made by the kubelet, or implied by the scope
//! directory   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/
//! scope                           pinnace-<container>.scope                StartTransientUnit, Delegate=yes
//! ```
//!
//! A scope needs a process when it is made. Ours is the container's own first process; nothing is started for the sake
//! of systemd, and nothing has to be ended again:
//!
//! ```text
//! daemon                          monitor                   systemd
//!   mkdir, device rules
//!   launch, held ────────────────► clone3 into the cgroup,
//!                                  everything up to execve
//!   StartTransientUnit(PIDs=init, properties) ─────────────► finds the directory and the process where they belong
//!   ◄──────────────────────────────────────── JobRemoved ──
//!   limits as files
//!   start ───────────────────────► execve
//! ```
//!
//! So no code of the container runs before the scope and its limits are there. The files come last: before, systemd may
//! take the controllers away with a unit beside that ends, and at that moment it resets
//! whatever it has no property for; later it does not touch what is delegated, and `daemon-reload`
//! applies the properties, which say the same. A quota is rounded up to whole percents of a CPU by a reload (that is
//! how systemd writes it down). What systemd has no property for (hugetlb, rdma, misc, `cpu.max.burst`,
//! `memory.oom.group`, throttles of devices) it does not touch either.
//!
//! Device rules are a BPF program of ours. systemd attaches none to a unit whose policy is the default, and leaves
//! others' alone. On v1 it would open what we have closed, one reason why this driver is for unified cgroups only.
//!
//! When the last process of a scope ends, systemd removes the cgroup, within microseconds: whoever wants to know of an
//! OOM kill may come too late, so the monitor has the counter of the slice as a second source. Everything else treats
//! a cgroup that is gone as removed.
//!
//! One connection to the system bus serves all; it is made when the first call needs it and again when it breaks.
//! `systemctl daemon-reexec` and a restart of the bus are waited for.

mod bus;
mod properties;
mod unit;

pub use bus::Systemd;
pub use unit::Scope;
