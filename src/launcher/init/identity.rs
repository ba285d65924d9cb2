//! Who the program is: limits and labels, then groups, ids and capabilities, then no_new_privs and seccomp.
//!
//! Order matters at three places. The bounding set needs CAP_SETPCAP, so it is reduced while we still have everything.
//! Groups and gid go before the uid, which takes the right to change them away. A seccomp program without no_new_privs
//! needs CAP_SYS_ADMIN (seccomp(2)): it is kept until the program is loaded, and dropped by the one capset(2) after it.

use nix::sys::signal::SigSet;
use pinnace_sys::{process, seccomp};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::errno;
use crate::failure::{At, Failure};
use crate::plan::{Capabilities, Process};
use crate::procfs::Procfs;

const STAGE: &str = "capabilities";

/// Refuses the id that means "no id" to chown(2) and setresuid(2) (rule R9).
pub(super) fn check(wanted: &Process) -> Result<(), Failure> {
    let ids = [wanted.uid, wanted.gid];
    match ids.iter().chain(&wanted.groups).find(|id| **id == u32::MAX) {
        Some(id) => Err(Failure::refused("user", id.to_string(), "not an id")),
        None => Ok(()),
    }
}

/// Things that only root can set and that execve keeps: keyring, resource limits, OOM score, labels, umask.
pub(super) fn limit(wanted: &Process, procfs: &Procfs) -> Result<(), Failure> {
    match process::join_new_session_keyring() {
        // Kernels without keyrings have none to leak.
        Err(Errno::NOSYS) => {}
        other => other.at("keyring", "keyctl", "")?,
    }
    raise(wanted, procfs)?;
    label(wanted, procfs)?;
    rustix::process::umask(Mode::from_raw_mode(wanted.umask.unwrap_or(0o022) & 0o777));
    Ok(())
}

/// What only the host's root may set beyond what it has. A child of the pod's user namespace inherits it.
pub(crate) fn raise(wanted: &Process, procfs: &Procfs) -> Result<(), Failure> {
    for limit in &wanted.rlimits {
        process::set_limit(limit.resource, limit.soft, limit.hard).at(
            "rlimit",
            "prlimit",
            format!("{}={}:{}", limit.resource, limit.soft, limit.hard),
        )?;
    }
    if let Some(value) = wanted.oom_score_adj {
        procfs.set_oom_score_adj(value)?;
    }
    Ok(())
}

/// Labels for execve, through the trusted procfs only (CVE-2019-16884, CVE-2025-52881), read back: a runtime that asked
/// for a profile and got none must not go on (rule R18).
fn label(wanted: &Process, procfs: &Procfs) -> Result<(), Failure> {
    if !wanted.apparmor.is_empty() {
        let value = format!("exec {}", wanted.apparmor);
        // The directory of its own exists since Linux 5.8 and is the right one when several modules are stacked.
        let file = match procfs.write_own("attr/apparmor/exec", value.as_bytes()) {
            Err(Errno::NOENT) => {
                let file = "attr/exec";
                procfs.write_own(file, value.as_bytes()).at("apparmor", "write", &wanted.apparmor)?;
                file
            }
            other => {
                other.at("apparmor", "write", &wanted.apparmor)?;
                "attr/apparmor/exec"
            }
        };
        verify_label(procfs, file, "apparmor", &wanted.apparmor)?;
    }
    if !wanted.selinux.is_empty() {
        let file = "attr/exec";
        procfs.write_own(file, wanted.selinux.as_bytes()).at("selinux", "write", &wanted.selinux)?;
        verify_label(procfs, file, "selinux", &wanted.selinux)?;
    }
    Ok(())
}

fn verify_label(procfs: &Procfs, file: &str, stage: &str, label: &str) -> Result<(), Failure> {
    let is = procfs.read_own(file).at(stage, "read", label)?;
    // AppArmor adds the mode in brackets, SELinux may add a NUL.
    let is = is.trim_ascii_end().strip_suffix(b"\0").unwrap_or(is.trim_ascii_end());
    let rest = is.strip_prefix(label.as_bytes());
    if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b" (")) {
        return Ok(());
    }
    Err(Failure::refused(stage, label, "label did not take effect"))
}

/// What remains to be done once the monitor knows that we are ready.
#[derive(Debug)]
pub(super) struct Identity {
    last: Capabilities,
    /// Whether `last` is still to be put in force.
    pending: bool,
}

/// Becomes the user.
pub(super) fn assume(wanted: &Process) -> Result<Identity, Failure> {
    let ours = capabilities(None).at(STAGE, "capget", "")?.permitted.bits();
    let asked = wanted.capabilities.unwrap_or_default();
    // What we do not have we cannot give; asking for "all" must work below a daemon that lacks some.
    let last = Capabilities {
        bounding: asked.bounding & ours,
        permitted: asked.permitted & ours,
        effective: asked.effective & asked.permitted & ours,
        inheritable: asked.inheritable & ours,
        ambient: asked.ambient & asked.permitted & asked.inheritable & ours,
    };
    for number in 0..u64::BITS {
        let capability = 1 << number;
        if last.bounding & capability != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(capability)) {
            // The first number after the last capability of this kernel.
            Err(Errno::INVAL) => break,
            other => other.at(STAGE, "PR_CAPBSET_DROP", number.to_string())?,
        }
    }

    let groups: Vec<Gid> = wanted.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
    set_thread_groups(&groups).at("user", "setgroups", "")?;
    set_thread_res_gid(gid, gid, gid).at("user", "setresgid", wanted.gid.to_string())?;
    if wanted.uid != 0 {
        set_keep_capabilities(true).at("user", "PR_SET_KEEPCAPS", "")?;
    }
    set_thread_res_uid(uid, uid, uid).at("user", "setresuid", wanted.uid.to_string())?;

    let late = !wanted.seccomp.is_empty() && !wanted.no_new_privileges;
    let mut now = last;
    if late {
        let admin = CapabilitySet::SYS_ADMIN.bits() & ours;
        now.permitted |= admin;
        now.effective |= admin;
    }
    set_sets(&now)?;
    clear_ambient_capability_set().at(STAGE, "PR_CAP_AMBIENT", "")?;
    for number in (0..u64::BITS).filter(|number| last.ambient & (1 << number) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true).at(
            STAGE,
            "PR_CAP_AMBIENT",
            number.to_string(),
        )?;
    }
    if !late {
        verify(&last)?;
    }
    Ok(Identity { last, pending: late })
}

fn set_sets(wanted: &Capabilities) -> Result<(), Failure> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective),
        permitted: CapabilitySet::from_bits_retain(wanted.permitted),
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    set_capabilities(None, sets).at(STAGE, "capset", "")
}

/// Reads the sets back (rule R9).
fn verify(wanted: &Capabilities) -> Result<(), Failure> {
    let is = capabilities(None).at(STAGE, "capget", "")?;
    if (is.effective.bits(), is.permitted.bits(), is.inheritable.bits())
        == (wanted.effective, wanted.permitted, wanted.inheritable)
    {
        return Ok(());
    }
    Err(Failure::refused(STAGE, "", "sets are not those that were set"))
}

impl Identity {
    /// no_new_privs and seccomp, the last thing before execve.
    pub fn seal(&self, wanted: &Process) -> Result<(), Failure> {
        if wanted.no_new_privileges {
            set_no_new_privs(true).at("no_new_privs", "PR_SET_NO_NEW_PRIVS", "")?;
        }
        if !wanted.seccomp.is_empty() {
            seccomp::load(&wanted.seccomp, wanted.seccomp_flags).at("seccomp", "seccomp", "")?;
        }
        if self.pending {
            set_sets(&self.last)?;
        }
        Ok(())
    }
}

/// execve keeps ignored signals and the mask: the program gets neither from us.
pub(crate) fn default_signals() -> Result<(), Failure> {
    process::default_broken_pipes();
    SigSet::empty().thread_set_mask().map_err(errno).at("exec", "sigprocmask", "")
}
