//! The program of a container or exec session: from the OCI process to the plan's.

use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::{
    LinuxCapabilities, LinuxPersonalityDomain, LinuxSeccomp, LinuxSeccompFilterFlag, PosixRlimitType,
    Process, Spec,
};
use pinnace_launcher::plan;

use crate::{Error, Facts, capabilities, user, validate};

/// A compiled seccomp filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeccompProgram {
    /// Classic BPF, 8 bytes an instruction, native byte order.
    pub bytes: Arc<[u8]>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// Compiles a profile; the daemon keeps the programs, since a profile is shared by many containers.
pub type SeccompHook =
    dyn Fn(&LinuxSeccomp) -> Result<SeccompProgram, Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

/// What lowering needs of the machine.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Its facts.
    pub facts: &'a Facts,
    /// Its seccomp programs.
    pub seccomp: &'a SeccompHook,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("facts", self.facts).finish_non_exhaustive()
    }
}

/// A program to add to a running container: what differs from the container's own process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exec<'a> {
    /// `argv`.
    pub args: &'a [String],
    /// Give it a terminal, and `TERM=xterm` unless the environment has one.
    pub terminal: bool,
    /// Terminal rows and columns, when known already.
    pub size: Option<(u16, u16)>,
    /// Working directory, instead of the container's.
    pub cwd: Option<&'a Path>,
    /// `KEY=value`, over the container's.
    pub env: &'a [String],
    /// The container's entries that are not UTF-8 ([`Env::into_oci`](crate::image::Env::into_oci)).
    pub binary_env: &'a [Vec<u8>],
    /// User, instead of the container's.
    pub user: Option<&'a user::User>,
}

/// What all exec sessions of a container have in common: its process, and its seccomp profile compiled. A small part of
/// the spec, most of which is that profile: the daemon keeps it, so that a session costs neither reading nor compiling.
#[derive(Clone, Debug)]
pub struct Template {
    process: Process,
    seccomp: SeccompProgram,
}

impl Template {
    /// Of a container's spec.
    pub fn of(spec: &Spec, host: Host<'_>) -> Result<Self, Error> {
        let process = spec.process().clone().ok_or_else(|| Error::invalid("process", "is missing"))?;
        Ok(Self { process, seccomp: seccomp(spec, host)? })
    }

    /// The process of one session: the container's with other arguments, under the same restrictions.
    pub fn exec(&self, request: &Exec<'_>, facts: &Facts) -> Result<plan::Process, Error> {
        let process = self.exec_in_oci(request)?;
        let mut warnings = Vec::new();
        let mut lowered = lower(&process, self.seccomp.clone(), request.binary_env, facts, &mut warnings)?;
        if let Some((rows, columns)) = request.size.filter(|_| request.terminal) {
            (lowered.rows, lowered.columns) = (rows.into(), columns.into());
        }
        Ok(lowered)
    }

    /// The same in the words of the OCI spec, for another runtime.
    pub fn exec_in_oci(&self, request: &Exec<'_>) -> Result<Process, Error> {
        session(self.process.clone(), request)
    }
}

fn session(mut process: Process, request: &Exec<'_>) -> Result<Process, Error> {
    process.set_args(Some(request.args.to_vec()));
    process.set_terminal(Some(request.terminal));
    process.set_console_size(None);
    if let Some(cwd) = request.cwd {
        process.set_cwd(cwd.to_owned());
    }
    let mut user_changed_home = None;
    if let Some(user) = request.user {
        process.set_user(user.to_oci());
        user_changed_home = Some(format!("HOME={}", user.home.display()));
    }
    let mut env = process.env().clone().unwrap_or_default();
    for entry in user_changed_home.iter().chain(request.env) {
        validate::env_entry("process.env", entry.as_bytes())?;
        replace(&mut env, entry);
    }
    if request.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(env));
    Ok(process)
}

/// A session's program from a whole OCI process, as `exec --process` has it, under the container's seccomp profile.
pub fn whole(spec: &Spec, process: &Process, host: Host<'_>) -> Result<(plan::Process, Vec<String>), Error> {
    let mut warnings = Vec::new();
    let lowered = lower(process, seccomp(spec, host)?, &[], host.facts, &mut warnings)?;
    Ok((lowered, warnings))
}

/// The container's own process.
pub(crate) fn lower(
    process: &Process,
    seccomp: SeccompProgram,
    binary_env: &[Vec<u8>],
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Result<plan::Process, Error> {
    refuse_unsupported(process)?;
    let args: Vec<Vec<u8>> = process.args().iter().flatten().map(|arg| arg.clone().into_bytes()).collect();
    validate::args("process.args", &args)?;
    let env = env(process.env().as_deref().unwrap_or_default(), binary_env)?;
    validate::exec_size("process", &args, &env)?;
    let (uid, gid, groups) = identity(process.user())?;
    let umask = process.user().umask();
    if umask.is_some_and(|umask| umask > 0o777) {
        return Err(Error::invalid("process.user.umask", "is more than 0777"));
    }
    let (rows, columns) = console_size(process)?;
    Ok(plan::Process {
        args,
        env,
        cwd: path_bytes(&validate::working_directory("process.cwd", process.cwd())?),
        uid,
        gid,
        groups,
        umask,
        capabilities: Some(capability_sets(process.capabilities().as_ref(), facts, warnings)),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: seccomp.bytes.to_vec(),
        seccomp_flags: seccomp.flags,
        apparmor: apparmor(process.apparmor_profile().as_deref().unwrap_or(""), facts)?,
        selinux: selinux(process.selinux_label().as_deref().unwrap_or(""), facts)?,
        rlimits: rlimits(process)?,
        oom_score_adj: oom_score_adj(process.oom_score_adj(), facts, warnings)?,
        terminal: process.terminal().unwrap_or(false),
        rows,
        columns,
    })
}

/// The compiled profile of a spec; no program where it has none.
pub(crate) fn seccomp(spec: &Spec, host: Host<'_>) -> Result<SeccompProgram, Error> {
    match spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) {
        Some(profile) => compile(profile, host),
        None => Ok(SeccompProgram::default()),
    }
}

/// Checks a label against whether SELinux is there to enforce it (rule R18: fail closed).
pub(crate) fn selinux(label: &str, facts: &Facts) -> Result<String, Error> {
    const FIELD: &str = "process.selinuxLabel";
    validate::line(FIELD, label, 4096)?;
    if !label.is_empty() && !facts.selinux {
        return Err(Error::unmet(FIELD, "SELinux is not enabled on this machine"));
    }
    Ok(label.to_owned())
}

fn refuse_unsupported(process: &Process) -> Result<(), Error> {
    for (field, set) in [
        ("process.scheduler", process.scheduler().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("process.commandLine", process.command_line().is_some()),
    ] {
        if set {
            return Err(Error::unsupported(field, "this"));
        }
    }
    Ok(())
}

/// The spec's environment with the entries that its strings could not hold put back: each stands in the spec in its lossy
/// form, so that whatever changed or removed that entry since is respected.
fn env(entries: &[String], binary: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Error> {
    let lossy: Vec<String> = binary.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    let mut env: Vec<Vec<u8>> = Vec::with_capacity(entries.len());
    let mut known: std::collections::HashMap<Vec<u8>, usize> = std::collections::HashMap::new();
    for entry in entries {
        let original = lossy.iter().position(|lossy| lossy == entry).map(|at| binary[at].clone());
        let entry = original.unwrap_or_else(|| entry.clone().into_bytes());
        validate::env_entry("process.env", &entry)?;
        let key = entry.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
        match known.get(&key) {
            // getenv(3) finds the first, a shell the last: let there be one.
            Some(at) => env[*at] = entry,
            None => {
                known.insert(key, env.len());
                env.push(entry);
            }
        }
    }
    Ok(env)
}

fn identity(user: &oci_spec::runtime::User) -> Result<(u32, u32, Vec<u32>), Error> {
    let (uid, gid) = (user.uid(), user.gid());
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    // A process whose primary group is not among its supplementary ones can shed the group's denials by changing the
    // primary one (CVE-2022-2995).
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    if uid == u32::MAX || groups.contains(&u32::MAX) {
        return Err(Error::invalid("process.user", "4294967295 is not an id"));
    }
    if groups.len() > validate::GROUPS {
        return Err(Error::invalid(
            "process.user.additionalGids",
            format!("more than {} groups", validate::GROUPS),
        ));
    }
    Ok((uid, gid, groups))
}

/// Sets that the kernel would refuse as a whole are cut to what it grants, and that is said (OCI runtime spec: what cannot
/// be granted is logged).
fn capability_sets(
    sets: Option<&LinuxCapabilities>,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> plan::Capabilities {
    let Some(sets) = sets else {
        return plan::Capabilities::default();
    };
    let mut cut = |name: &str, set: &Option<std::collections::HashSet<_>>, limit: u64| {
        let asked = set.as_ref().map_or(0, capabilities::mask);
        let lost = asked & !limit;
        if lost != 0 {
            warnings.push(format!(
                "process.capabilities.{name}: {} cannot be granted",
                capabilities::names(lost)
            ));
        }
        asked & limit
    };
    let bounding = cut("bounding", sets.bounding(), facts.bounding);
    let permitted = cut("permitted", sets.permitted(), facts.bounding);
    let inheritable = cut("inheritable", sets.inheritable(), facts.bounding);
    plan::Capabilities {
        bounding,
        permitted,
        inheritable,
        effective: cut("effective", sets.effective(), permitted),
        ambient: cut("ambient", sets.ambient(), permitted & inheritable),
    }
}

fn compile(profile: &LinuxSeccomp, host: Host<'_>) -> Result<SeccompProgram, Error> {
    const FLAG_LOG: u32 = 1 << 1;
    const FLAG_SPEC_ALLOW: u32 = 1 << 2;
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(Error::unsupported("linux.seccomp.listenerPath", "a seccomp listener"));
    }
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // The filter is loaded by a process of one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            // Only with a listener.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    let program = (host.seccomp)(profile).map_err(Error::Seccomp)?;
    // An empty program would mean no filter to the launcher.
    if program.bytes.is_empty() || program.bytes.len() % 8 != 0 {
        return Err(Error::Seccomp("the profile compiled to no program".into()));
    }
    Ok(SeccompProgram { flags: program.flags | flags, ..program })
}

/// Checks that a profile can be enforced: the machine has AppArmor and has it loaded (rule R18: fail closed).
fn apparmor(profile: &str, facts: &Facts) -> Result<String, Error> {
    const FIELD: &str = "process.apparmorProfile";
    const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
    validate::line(FIELD, profile, 4096)?;
    match profile {
        "" => return Ok(String::new()),
        "unconfined" if !facts.apparmor => return Ok(String::new()),
        _ if !facts.apparmor => return Err(Error::unmet(FIELD, "AppArmor is not enabled on this machine")),
        "unconfined" => return Ok(profile.to_owned()),
        _ => {}
    }
    let list = match std::fs::read_to_string(LOADED) {
        Ok(list) => list,
        // securityfs is not mounted: execve(2) will tell.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(profile.to_owned()),
        Err(error) => return Err(Error::Fact { path: LOADED, error }),
    };
    // Lines read `name (mode)`.
    if list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile)) {
        Ok(profile.to_owned())
    } else {
        Err(Error::unmet(FIELD, format!("profile {profile:?} is not loaded")))
    }
}

fn rlimits(process: &Process) -> Result<Vec<plan::Rlimit>, Error> {
    const FIELD: &str = "process.rlimits";
    let mut limits: Vec<plan::Rlimit> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = rlimit_number(limit.typ());
        if limits.iter().any(|other| other.resource == resource) {
            return Err(Error::invalid(FIELD, format!("{} is given twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(
                FIELD,
                format!("{}: soft limit is above the hard limit", limit.typ()),
            ));
        }
        limits.push(plan::Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(limits)
}

/// `RLIMIT_*` of asm-generic/resource.h, which x86 and arm share.
fn rlimit_number(typ: PosixRlimitType) -> u32 {
    match typ {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

fn oom_score_adj(
    asked: Option<i32>,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Result<Option<i32>, Error> {
    let Some(asked) = asked else { return Ok(None) };
    if !(-1000..=1000).contains(&asked) {
        return Err(Error::invalid("process.oomScoreAdj", format!("{asked} is not between -1000 and 1000")));
    }
    match facts.oom_score_adj_floor {
        Some(floor) if asked < floor => {
            warnings.push(format!("process.oomScoreAdj: {asked} needs CAP_SYS_RESOURCE, {floor} is used"));
            Ok(Some(floor))
        }
        _ => Ok(Some(asked)),
    }
}

fn console_size(process: &Process) -> Result<(u32, u32), Error> {
    let Some(size) = process.console_size().filter(|_| process.terminal() == Some(true)) else {
        return Ok((0, 0));
    };
    // struct winsize has unsigned shorts.
    let short = |value: u64| {
        u16::try_from(value)
            .map(u32::from)
            .map_err(|_| Error::invalid("process.consoleSize", "is above 65535"))
    };
    Ok((short(size.height())?, short(size.width())?))
}

/// Sets an entry in the place of the one with its key.
pub(crate) fn replace(env: &mut Vec<String>, entry: &str) {
    let key = entry.split_inclusive('=').next().unwrap_or_default();
    match env.iter_mut().find(|other| other.starts_with(key)) {
        Some(other) => entry.clone_into(other),
        None => env.push(entry.to_owned()),
    }
}

fn path_bytes(path: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
}

/// Only the ordinary domain, which needs no call.
pub(crate) fn personality(spec: &Spec) -> Result<(), Error> {
    match spec.linux().as_ref().and_then(|linux| linux.personality().as_ref()) {
        Some(personality)
            if personality.domain() != LinuxPersonalityDomain::PerLinux
                || personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) =>
        {
            Err(Error::unsupported("linux.personality", "another personality"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
