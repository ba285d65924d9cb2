//! The pod: namespaces that this process keeps alive by being in them, and the run directory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_sys::clone::{NEWIPC, NEWNET, NEWPID, NEWUTS, clone_process};
use prost::Message;
use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Pid, chdir, fchdir, umask};

use super::room;
use super::user::{self, Birthplace};
use crate::failure::{At, Failure};
use crate::init::{errno, reaper};
use crate::procfs::Procfs;
use crate::protocol::{Exited, SOCKET_NAME, Setup, exit_record_name};
use crate::slots::Slots;

const BACKLOG: i32 = 8;

/// `SIGHUP`
pub(super) const SIGHUP: i32 = 1;
/// `SIGKILL`
pub(super) const SIGKILL: i32 = 9;

/// A pod that has been set up.
#[derive(Debug)]
pub(super) struct Pod {
    run_directory: OwnedFd,
    /// `CLONE_NEW*` of the namespaces that are the pod's own and not the host's.
    pub namespaces: u64,
    /// The pod's user namespace.
    pub user: Option<OwnedFd>,
    /// That one's root, user and group, outside.
    pub root: (u32, u32),
    /// PID 1 of the shared PID namespace.
    pub init: Option<Init>,
    /// What is held or runs will be somebody else's child, and its end is told to that one.
    pub leaves: bool,
}

/// PID 1 of the shared PID namespace.
#[derive(Debug)]
pub(super) struct Init {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

impl Pod {
    /// Makes this process the pod's; returns the listening socket, too. On failure the process is of no further use.
    pub fn set_up(setup: &Setup, slots: &Slots, procfs: &Procfs) -> Result<(Self, OwnedFd), Failure> {
        let run_directory = slots.take(setup.run_directory)?;
        let user = setup.user.map(|slot| slots.take(slot)).transpose()?;
        let root = (setup.root_uid, setup.root_gid);
        let mut namespaces = 0;
        if let Some(slot) = setup.network {
            enter(slots.at(slot)?, CloneFlags::CLONE_NEWNET, "network")?;
            namespaces |= NEWNET;
        }
        let mut fresh = CloneFlags::empty();
        if setup.ipc {
            match setup.ipc_namespace {
                Some(slot) => enter(slots.at(slot)?, CloneFlags::CLONE_NEWIPC, "ipc")?,
                None => fresh |= CloneFlags::CLONE_NEWIPC,
            }
            namespaces |= NEWIPC;
        }
        if !setup.hostname.is_empty() {
            match setup.uts_namespace {
                Some(slot) => enter(slots.at(slot)?, CloneFlags::CLONE_NEWUTS, "uts")?,
                None => fresh |= CloneFlags::CLONE_NEWUTS,
            }
            namespaces |= NEWUTS;
        }
        if !fresh.is_empty() {
            unshare(fresh).map_err(errno).at("namespace", "unshare", "ipc, uts")?;
        }
        if !setup.hostname.is_empty() {
            rustix::system::sethostname(setup.hostname.as_bytes()).at(
                "namespace",
                "sethostname",
                &setup.hostname,
            )?;
        }
        if setup.ipc {
            room::mount_shm(setup.shm_bytes, setup.root_uid, setup.root_gid, &setup.file_label)?;
        }
        if user.is_some() {
            room::show_kernel()?;
        }
        procfs.set_sysctls(&setup.sysctls, namespaces)?;
        if let Some(value) = setup.oom_score_adj {
            procfs.set_oom_score_adj(value)?;
        }
        let listener = listen_at(&run_directory, SOCKET_NAME, SocketType::SEQPACKET)?;
        let init = if setup.share_pid { Some(clone_init(setup, slots, user.as_ref())?) } else { None };
        Ok((Self { run_directory, namespaces, user, root, init, leaves: setup.leaves }, listener))
    }

    /// Keeps a container's end on disk: readers find the old record, none, or the whole new one. Not flushed, for the
    /// directory does not outlive a boot.
    pub fn record(&self, exited: &Exited) -> Result<(), Failure> {
        let name = exit_record_name(&exited.container_id);
        let temporary = format!(".{name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.run_directory, &temporary, flags, Mode::from_raw_mode(0o600))
            .at("record", "openat", &temporary)?;
        let bytes = exited.encode_to_vec();
        if rustix::io::write(&file, &bytes).at("record", "write", &temporary)? != bytes.len() {
            return Err(Failure::syscall("record", "write", Errno::NOSPC, &temporary));
        }
        renameat(&self.run_directory, &temporary, &self.run_directory, &name).at("record", "renameat", &name)
    }

    /// Removes the record of a container.
    pub fn unrecord(&self, container_id: &str) -> Result<(), Failure> {
        let name = exit_record_name(container_id);
        match unlinkat(&self.run_directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Failure::syscall("record", "unlinkat", errno, &name)),
        }
    }

    /// Whether nobody can find this monitor any more.
    pub fn is_orphaned(&self) -> bool {
        fstat(&self.run_directory).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Ends what the pod consists of beyond its containers.
    pub fn close(&self) {
        if let Some(init) = &self.init {
            // Already gone is as good.
            let _ = pinnace_sys::process::signal(init.pidfd.as_fd(), SIGKILL);
        }
        let _ = unlinkat(&self.run_directory, SOCKET_NAME, AtFlags::empty());
    }
}

/// A listening unix socket of that name in a directory.
pub(super) fn listen_at(directory: &OwnedFd, name: &str, kind: SocketType) -> Result<OwnedFd, Failure> {
    let stage = "socket";
    let listener = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        .at(stage, "socket", name)?;
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(Failure::syscall(stage, "unlinkat", errno, name)),
    }
    // A relative name: the directory has no path in our mount namespace, and its path might not fit into sun_path.
    let address = SocketAddrUnix::new(name).at(stage, "bind", name)?;
    fchdir(directory).at(stage, "fchdir", "run directory")?;
    let mask = umask(Mode::from_raw_mode(0o177));
    let bound = bind(&listener, &address);
    umask(mask);
    chdir("/").at(stage, "chdir", "/")?;
    bound.at(stage, "bind", name)?;
    listen(&listener, BACKLOG).at(stage, "listen", name)?;
    Ok(listener)
}

fn enter(namespace: BorrowedFd<'_>, kind: CloneFlags, name: &str) -> Result<(), Failure> {
    setns(namespace, kind).map_err(errno).at("namespace", "setns", name)
}

fn clone_init(setup: &Setup, slots: &Slots, user: Option<&OwnedFd>) -> Result<Init, Failure> {
    let cgroup = setup.cgroup.as_ref();
    let into = cgroup.and_then(|cgroup| cgroup.directory).map(|slot| slots.at(slot)).transpose()?;
    // It opens nothing, so it keeps nothing but the way into its cgroups.
    let keep: Vec<BorrowedFd<'_>> = cgroup
        .iter()
        .flat_map(|cgroup| &cgroup.tasks)
        .map(|slot| slots.at(*slot))
        .collect::<Result<_, _>>()?;
    let run = || reaper::run(cgroup, slots);
    let cloned = match user {
        None => clone_process(NEWPID, into, &keep, run).at("init", "clone3", "")?,
        Some(user) => {
            let place = Birthplace { user: user.as_fd(), pid_namespace: None, fresh: NEWPID, cgroup: into };
            user::clone_in(&place, &keep, || Ok(()), run)?
        }
    };
    Ok(Init { pid: cloned.pid, pidfd: cloned.pidfd })
}
