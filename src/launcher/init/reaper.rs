//! PID 1 of a pod that shares its PID namespace: it holds the namespace and reaps orphans, and nothing else.
//!
//! It is a copy of the monitor without its descriptors, its capabilities or its right to gain any. SIGTERM and its like
//! do not end it, for PID 1 ignores what it has no handler for; the end of the pod is SIGKILL from outside.

use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_name, set_no_new_privs};

use crate::failure::{At, Failure};
use crate::plan::CgroupJoin;
use crate::slots::Slots;
use pinnace_sys::process::{Child, ended};

/// Runs until killed; returns the status of a failed start.
pub(crate) fn run(cgroup: Option<&CgroupJoin>, slots: &Slots) -> u8 {
    match prepare(cgroup, slots) {
        Ok(children) => reap(&children),
        Err(_) => super::NOT_STARTED,
    }
}

fn prepare(cgroup: Option<&CgroupJoin>, slots: &Slots) -> Result<SigSet, Failure> {
    super::join_cgroups(cgroup, slots)?;
    super::new_session()?;
    set_name(c"pinnace-init").at("init", "PR_SET_NAME", "")?;
    set_no_new_privs(true).at("init", "PR_SET_NO_NEW_PRIVS", "")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .at("init", "capset", "")?;
    // Nobody could end the namespace in an orderly way without the monitor. Last, for capset(2) would undo it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).at(
        "init",
        "PR_SET_PDEATHSIG",
        "",
    )?;
    // The descriptors that came with the request: nothing of the monitor's memory is used from here on.
    pinnace_sys::descriptor::close_inherited().at("init", "close_range", "")?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().map_err(super::errno).at("init", "sigprocmask", "")?;
    Ok(children)
}

fn reap(children: &SigSet) -> u8 {
    loop {
        loop {
            match ended(Child::Peek) {
                Ok(Some(end)) => {
                    // The same child, which nobody else can have waited for.
                    let _ = ended(Child::Unreaped(end.pid));
                }
                Ok(None) | Err(Errno::CHILD) => break,
                Err(_) => break,
            }
        }
        if children.wait().is_err() {
            return super::NOT_STARTED;
        }
    }
}
