//! Births inside the pod's user namespace.
//!
//! ```text
//! monitor ─clone3─► go-between: its cgroup, what takes the host's rights, setns(user), unshare(mount, PID, ...)
//!    ▲                   └─clone3(CLONE_PARENT)─► the child, owned by the user namespace with all its namespaces
//!    └── pid or failure ──┘ ends
//! ```
//! The monitor itself stays outside: entering would take its rights over the host's files away. The child is the
//! monitor's own, as any other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_sys::clone::{Cloned, clone_process, clone_sibling};
use pinnace_sys::process::{Child, ended};
use prost::Message;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Gid, Pid, PidfdFlags, Uid, pidfd_open, set_dumpable_behavior};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::failure::{At, Failure};
use crate::init::{NOT_STARTED, errno};

const STAGE: &str = "user namespace";
const BORN: u8 = b'B';
const FAILED: u8 = b'F';
/// Longer than any failure that the go-between can report; a write of at most this is whole (pipe(7)).
const REPORT_BYTES: usize = 4096;

/// Where and how a child is born.
#[derive(Debug)]
pub(super) struct Birthplace<'a> {
    /// The user namespace.
    pub user: BorrowedFd<'a>,
    /// A process whose PID namespace the child joins.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// `CLONE_NEW*` of fresh namespaces.
    pub fresh: u64,
    /// The cgroup v2 directory.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Clones a child in there. `prepare` runs with the host's rights, in a process whose limits the child inherits.
pub(super) fn clone_in(
    place: &Birthplace<'_>,
    keep: &[BorrowedFd<'_>],
    prepare: impl FnOnce() -> Result<(), Failure>,
    child: impl FnOnce() -> u8,
) -> Result<Cloned, Failure> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).at(STAGE, "pipe2", "")?;
    let mut kept = keep.to_vec();
    kept.extend([write.as_fd(), place.user]);
    kept.extend(place.pid_namespace);
    let go_between = clone_process(0, place.cgroup, &kept, || {
        let born =
            prepare().and_then(|()| enter(place)).and_then(|()| clone_sibling(child).at(STAGE, "clone3", ""));
        match report(&write, born) {
            Ok(()) => 0,
            Err(_) => NOT_STARTED,
        }
    })
    .at(STAGE, "clone3", "")?;
    drop(write);
    wait(&go_between)?;
    let number = heard(&read)?;
    // It is our child and only we reap it: the number is still its own.
    let pidfd = pidfd_open(number, PidfdFlags::empty()).at(STAGE, "pidfd_open", "")?;
    Ok(Cloned { pid: number, pidfd })
}

/// As the root of the user namespace, with everything fresh owned by it.
fn enter(place: &Birthplace<'_>) -> Result<(), Failure> {
    if let Some(process) = place.pid_namespace {
        setns(process, CloneFlags::CLONE_NEWPID).map_err(errno).at(STAGE, "setns", "pid")?;
    }
    setns(place.user, CloneFlags::CLONE_NEWUSER).map_err(errno).at(STAGE, "setns", "user")?;
    become_root()?;
    let fresh = i32::try_from(place.fresh).map(CloneFlags::from_bits_retain).unwrap_or(CloneFlags::empty());
    unshare(fresh).map_err(errno).at(STAGE, "unshare", format!("{:#x}", place.fresh))
}

/// Root of the user namespace that this process has just entered: the ids it came with mean nothing there, and files made
/// with them would belong to nobody.
pub(crate) fn become_root() -> Result<(), Failure> {
    set_thread_groups(&[]).at(STAGE, "setgroups", "")?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at(STAGE, "setresgid", "0")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at(STAGE, "setresuid", "0")?;
    // A change of ids may have made us traceable, for the pod's root would be our equal.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(STAGE, "PR_SET_DUMPABLE", "")
}

fn report(pipe: &OwnedFd, born: Result<Pid, Failure>) -> Result<(), Errno> {
    let bytes = match born {
        Ok(pid) => [&[BORN][..], &pid.as_raw_nonzero().get().to_ne_bytes()].concat(),
        Err(failure) => {
            let mut bytes = [&[FAILED][..], &failure.encode_to_vec()].concat();
            if bytes.len() > REPORT_BYTES {
                bytes = vec![FAILED];
            }
            bytes
        }
    };
    rustix::io::write(pipe, &bytes).map(drop)
}

/// The go-between ends at once; until then there is nothing to read that is worth a second state.
fn wait(go_between: &Cloned) -> Result<(), Failure> {
    loop {
        let mut fds = [PollFd::new(&go_between.pidfd, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::syscall(STAGE, "poll", errno, "")),
        }
    }
    ended(Child::Of(go_between.pidfd.as_fd())).at(STAGE, "waitid", "").map(drop)
}

fn heard(pipe: &OwnedFd) -> Result<Pid, Failure> {
    rustix::io::ioctl_fionbio(pipe, true).at(STAGE, "ioctl", "")?;
    let mut bytes = vec![0u8; REPORT_BYTES];
    let length = rustix::io::read(pipe, &mut bytes[..]).unwrap_or(0);
    let silent = || Failure::refused(STAGE, "", "the process that enters it ended without a word");
    match bytes.get(..length).and_then(<[u8]>::split_first) {
        Some((&BORN, number)) => {
            let number = number.try_into().map(i32::from_ne_bytes).map_err(|_| silent())?;
            Pid::from_raw(number).ok_or_else(silent)
        }
        Some((&FAILED, failure)) => Err(Failure::decode(failure).unwrap_or_else(|_| silent())),
        _ => Err(silent()),
    }
}
