//! Init: the child between clone3(2) and execve(2). Its steps, in kernel order:
//!
//! ```text
//! container (launch)                                       exec session
//!  1 cgroup v1: write 0 to `tasks` (first, so that          the same
//!    everything from here on is accounted)
//!  2 setns into given namespaces, unshare the cgroup one    setns into those of the container, by pidfd
//!  3 own session                                            own session
//!  4 sysctls of fresh namespaces, trusted procfs            -
//!  5 rootfs: move_mount, pivot_root, detach the old root    -
//!    ── from here on no host file has a path ──
//!  6 mounts, devices, links                                 -
//!  7 terminal from the container's devpts                   the same
//!  8 masked and read-only paths                             -
//!  9 working directory (made if missing)                    working directory
//! 10 propagation and read-only root, last of the mounts     -
//! 11 identity: keyring, limits, labels, groups, ids, capabilities (identity.rs)
//! 12 PATH lookup, as the user
//! 13 descriptors 0, 1, 2; all others close-on-exec
//! 14 "prepared"; wait for the start when held; startContainer hooks
//! 15 no_new_privs, seccomp, last capabilities
//! 16 execve
//! ```
//! Hooks that run before the root changes need a host to run in: with them (hooks.rs), the child copies the host's mounts,
//! step 5 only mounts the root where the bundle has it, the pause and the hooks come after 6, and then the root changes.
//!
//! The child is single-threaded and a copy of a single-threaded process, so it may allocate. It is not dumpable until
//! execve: nobody inside the container can trace it (CVE-2016-9962), and it has closed every descriptor of the monitor
//! that is not its own business. A failed step travels to the monitor over the control socket and the child ends; what
//! it had mounted dies with its mount namespace, so no step needs an undo.

pub(crate) mod control;
mod devices;
mod hooks;
mod identity;
mod mask;
mod mounts;
mod program;
pub(crate) mod reaper;
mod rootfs;
mod target;
mod terminal;

use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_sys::clone::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::failure::{At, Failure};
use crate::monitor::user::become_root;
use crate::plan::{CgroupJoin, Hooks, LaunchPlan, Process};
use crate::procfs::Procfs;
use crate::slots::Slots;
use control::Control;
pub(crate) use identity::{default_signals, raise};
pub(crate) use program::give;
use terminal::Terminal;
pub(crate) use terminal::size as terminal_size;

/// Status of a child that ended before execve; the reason has gone over the control socket.
pub(crate) const NOT_STARTED: u8 = 125;

/// The user namespace of a running container.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserNamespace {
    /// Which others, `CLONE_NEW*`, are the container's own; what is the host's cannot be joined from inside.
    pub own: u64,
    /// Its root's user and group outside.
    pub root: (u32, u32),
}

/// What both kinds of children are given.
#[derive(Debug)]
pub(crate) struct Kit<'a> {
    /// To the monitor.
    pub control: Control<'a>,
    /// The monitor's trusted procfs.
    pub procfs: &'a Procfs,
    /// Descriptors that came with the request.
    pub slots: &'a Slots,
    /// Descriptors 0, 1 and 2; none is `/dev/null`. Ignored with a terminal.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Wait before execve.
    pub hold: bool,
    /// Where to wait, if not at the monitor.
    pub start_socket: Option<BorrowedFd<'a>>,
    /// Gets the terminal's master in the monitor's place.
    pub console: Option<BorrowedFd<'a>>,
    /// Descriptors 3 and above.
    pub inherited: Vec<BorrowedFd<'a>>,
}

/// Becomes a container; returns only on failure.
pub(crate) fn container(plan: &LaunchPlan, inherited: u64, kit: &Kit<'_>) -> u8 {
    match launch(plan, inherited, kit) {
        Ok(never) => match never {},
        Err(failure) => {
            kit.control.fail(&failure);
            NOT_STARTED
        }
    }
}

fn launch(plan: &LaunchPlan, inherited: u64, kit: &Kit<'_>) -> Result<std::convert::Infallible, Failure> {
    let process = plan.process.as_ref().ok_or_else(|| missing("process"))?;
    identity::check(process)?;
    rustix::process::umask(Mode::empty());
    join_cgroups(plan.cgroup.as_ref(), kit.slots)?;
    let mut owned = inherited;
    if let Some(namespaces) = &plan.namespaces {
        // One is born into a PID namespace: the monitor has seen to that.
        for join in namespaces.join.iter().filter(|join| join.kind != NEWPID) {
            enter(kit.slots.at(join.slot)?, join.kind)?;
            owned &= !join.kind;
        }
        if namespaces.create & NEWCGROUP != 0 {
            // Only now: the root of a cgroup namespace is where its creator is at that moment (cgroup_namespaces(7)).
            unshare(CloneFlags::CLONE_NEWCGROUP).map_err(errno).at("namespace", "unshare", "cgroup")?;
        }
        owned |= namespaces.create;
    }
    new_session()?;
    kit.procfs.set_sysctls(&plan.sysctls, owned)?;

    let made = mounts::make_early(plan)?;
    let held = rootfs::take_from_monitor(plan, inherited)?;
    let root = kit.slots.at(plan.rootfs)?;
    let hooks = plan.hooks.as_ref();
    let stage = hooks.and_then(|hooks| hooks.stage.as_ref());
    match stage {
        Some(stage) => rootfs::put_on_stage(root, kit.slots.at(stage.host_mounts)?, &stage.rootfs)?,
        None => rootfs::enter(root)?,
    }
    mounts::mount_all(plan, root, kit.slots, held.shm, made)?;
    devices::make_all(plan, root, kit.slots)?;
    if let Some(hooks) = hooks.filter(|_| stage.is_some()) {
        kit.control.pause()?;
        hooks::create_container(hooks, kit.procfs)?;
        rootfs::leave_stage(root)?;
    }
    let terminal = if process.terminal { Some(Terminal::open(root, process)?) } else { None };
    if let Some(terminal) = &terminal {
        terminal.bind_console(root)?;
    }
    mask::hide(&plan.masked_paths, root, held.null, held.empty)?;
    mask::protect(&plan.read_only_paths, root)?;
    let directory = program::working_directory(root, &process.cwd, program::Missing::Create)?;
    rootfs::finish(root, plan)?;
    let directory = directory.as_ref().map(std::os::fd::AsFd::as_fd);
    become_program(process, root, directory, terminal, hooks, kit)
}

/// Becomes a process of a running container; returns only on failure.
pub(crate) fn session(
    process: &Process,
    cgroup: Option<&CgroupJoin>,
    container: BorrowedFd<'_>,
    user: Option<UserNamespace>,
    kit: &Kit<'_>,
) -> u8 {
    match join(process, cgroup, container, user, kit) {
        Ok(never) => match never {},
        Err(failure) => {
            kit.control.fail(&failure);
            NOT_STARTED
        }
    }
}

fn join(
    process: &Process,
    cgroup: Option<&CgroupJoin>,
    container: BorrowedFd<'_>,
    user: Option<UserNamespace>,
    kit: &Kit<'_>,
) -> Result<std::convert::Infallible, Failure> {
    identity::check(process)?;
    rustix::process::umask(Mode::empty());
    join_cgroups(cgroup, kit.slots)?;
    // All at once: a container that ends meanwhile leaves nothing half-joined. Root and working directory become those
    // of the container with its mount namespace. The PID namespace was joined by being born in it.
    match user {
        None => enter(container, NEWNS | NEWIPC | NEWUTS | NEWNET | NEWCGROUP)?,
        Some(user) => {
            raise(process, kit.procfs)?;
            program::give(kit.stdio, process, user.root)?;
            enter(container, NEWUSER | NEWNS | user.own)?;
            become_root()?;
        }
    }
    new_session()?;
    let root = rootfs::current()?;
    let root = std::os::fd::AsFd::as_fd(&root);
    let terminal = if process.terminal { Some(Terminal::open(root, process)?) } else { None };
    let directory = program::working_directory(root, &process.cwd, program::Missing::Refuse)?;
    become_program(process, root, directory.as_ref().map(std::os::fd::AsFd::as_fd), terminal, None, kit)
}

/// Steps 11 to 16, alike for both.
fn become_program(
    process: &Process,
    root: BorrowedFd<'_>,
    directory: Option<BorrowedFd<'_>>,
    terminal: Option<Terminal>,
    hooks: Option<&Hooks>,
    kit: &Kit<'_>,
) -> Result<std::convert::Infallible, Failure> {
    let program = program::Program::of(process)?;
    if let Some(terminal) = &terminal {
        match kit.console {
            Some(console) => terminal.send(console)?,
            None => kit.control.terminal(terminal.master())?,
        }
        terminal.control()?;
    }
    let stdio = program::Stdio::choose(root, terminal.as_ref(), kit.stdio, process)?;
    let state = hooks.map(|hooks| hooks::state(hooks, kit.procfs)).transpose()?;
    identity::limit(process, kit.procfs)?;
    let identity = identity::assume(process)?;
    program::change_directory(directory, root, &process.cwd)?;
    let path = program.look_up()?;
    stdio.install()?;
    drop(terminal);
    pinnace_sys::descriptor::close_on_exec_from(3).at("exec", "close_range", "")?;
    let start_socket = program::inherit(&kit.inherited, &kit.control, kit.start_socket)?;
    identity::default_signals()?;
    kit.control.prepared(kit.hold, start_socket.as_ref().map(std::os::fd::AsFd::as_fd))?;
    if let (Some(hooks), Some(state)) = (hooks, &state) {
        hooks::start_container(hooks, state)?;
    }
    identity.seal(process)?;
    Err(program.execute(&path))
}

/// Joins cgroup v1 hierarchies: `0` is the writing thread, which takes no lock of the whole system as a number would.
fn join_cgroups(cgroup: Option<&CgroupJoin>, slots: &Slots) -> Result<(), Failure> {
    for slot in cgroup.iter().flat_map(|cgroup| &cgroup.tasks) {
        rustix::io::write(slots.at(*slot)?, b"0").at("cgroup", "write", "tasks")?;
    }
    Ok(())
}

fn enter(namespace: BorrowedFd<'_>, kind: u64) -> Result<(), Failure> {
    let kind = i32::try_from(kind).map(CloneFlags::from_bits_retain).unwrap_or(CloneFlags::empty());
    setns(namespace, kind).map_err(errno).at("namespace", "setns", format!("{:#x}", kind.bits()))
}

fn new_session() -> Result<(), Failure> {
    rustix::process::setsid().at("terminal", "setsid", "").map(drop)
}

pub(crate) fn missing(what: &str) -> Failure {
    Failure::refused("protocol", what, "missing in the plan")
}

/// nix and rustix have an errno type each.
pub(crate) fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}
