//! Lowering: an OCI runtime spec becomes a launch plan and the descriptors that it names.
//!
//! Everything that could fail because of the host fails here, before a process exists: sources are opened, profiles compiled,
//! names turned into numbers. What the plan has no word for is refused by the name of its field.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Spec};
use pinnace_launcher::plan;
use pinnace_sys::mount as attr;

use crate::mounts::{self, Dev, Surroundings};
use crate::process::{self, Host};
use crate::sysctl::sysctls;
use crate::{Error, devices, namespaces, validate};

/// What surrounds the container that a spec describes. Its descriptors move into [`Lowered`].
#[derive(Debug)]
pub struct Context<'a> {
    /// The detached root file system mount.
    pub rootfs: OwnedFd,
    /// How the container's process joins its cgroup.
    pub cgroup: CgroupJoin,
    /// Its standard streams.
    pub stdio: Stdio,
    /// Namespaces of its pod.
    pub pod: PodNamespaces,
    /// Special bind sources, by the path that stands for them in the spec.
    pub sources: HashMap<PathBuf, Source>,
    /// What to do about a bind source that does not exist.
    pub missing_source: MissingSource,
    /// Environment entries that are not UTF-8, whose lossy form stands in the spec.
    pub binary_env: Vec<Vec<u8>>,
    /// Wait before execve for a start request.
    pub hold: bool,
    /// The machine.
    pub host: Host<'a>,
}

/// Descriptors by which a process joins a cgroup.
#[derive(Debug, Default)]
pub struct CgroupJoin {
    /// Version 1: `tasks` files.
    pub tasks: Vec<OwnedFd>,
    /// Version 2: the directory.
    pub directory: Option<OwnedFd>,
    /// The counter of OOM kills.
    pub oom_counter: Option<OwnedFd>,
    /// That of the group above, where the cgroup may vanish by itself.
    pub group_oom_counter: Option<OwnedFd>,
}

/// Standard streams of a container.
#[derive(Debug, Default)]
pub struct Stdio {
    /// The CRI log; none means output is discarded unless attached.
    pub log: Option<Log>,
    /// Keep a stdin open for attach.
    pub stdin: bool,
    /// Close stdin after the first attach session that used it.
    pub stdin_once: bool,
}

/// Where a CRI log is.
#[derive(Debug)]
pub struct Log {
    /// The pod's log directory.
    pub directory: OwnedFd,
    /// File below it.
    pub path: PathBuf,
}

/// The namespaces that a pod owns, by the path that stands for them in specs; none is the host's.
///
/// Nothing is opened by these paths: the monitor lives in those namespaces already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNamespaces {
    /// Network namespace.
    pub network: Option<PathBuf>,
    /// IPC namespace.
    pub ipc: Option<PathBuf>,
    /// UTS namespace.
    pub uts: Option<PathBuf>,
    /// User namespace, which owns the others.
    pub user: Option<PathBuf>,
    /// PID namespace of the pod's init.
    pub pid: Option<PathBuf>,
    /// PID namespace of another container of the pod, and that container's id.
    pub target: Option<(PathBuf, String)>,
}

/// A bind source that is not simply a path of the host.
#[derive(Debug)]
pub enum Source {
    /// The pod's `/dev/shm`, which the monitor holds.
    PodShm,
    /// A detached mount, for one mount of the spec.
    Tree(OwnedFd),
    /// A file or directory inside a detached mount, for one mount of the spec.
    Part(OwnedFd, PathBuf),
    /// A path of the host whose mounts that have id mappings show owners through this user namespace.
    Mapped(OwnedFd),
    /// A file pinned earlier (`O_PATH`), for any number of mounts.
    Pinned(OwnedFd),
}

/// What to do about a bind source that does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingSource {
    /// An error.
    #[default]
    Refuse,
    /// Make a directory with mode 0755 and those above it. Pods rely on it for host paths without a type, for other
    /// runtimes do so.
    CreateDirectory,
}

/// A plan ready to be sent.
#[derive(Debug)]
pub struct Lowered {
    /// The plan.
    pub plan: plan::LaunchPlan,
    /// Its descriptors; the index is the slot.
    pub descriptors: Vec<OwnedFd>,
    /// What the spec asked for and is granted in part.
    pub warnings: Vec<String>,
}

/// Descriptors collected for a request.
#[derive(Debug, Default)]
pub struct Slots(Vec<OwnedFd>);

impl Slots {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a descriptor and says where it is.
    pub fn push(&mut self, descriptor: OwnedFd) -> plan::Slot {
        let slot = plan::Slot::try_from(self.0.len()).unwrap_or(plan::Slot::MAX);
        self.0.push(descriptor);
        slot
    }

    /// Adds those of a cgroup.
    pub fn join(&mut self, cgroup: CgroupJoin) -> plan::CgroupJoin {
        plan::CgroupJoin {
            tasks: cgroup.tasks.into_iter().map(|tasks| self.push(tasks)).collect(),
            directory: cgroup.directory.map(|directory| self.push(directory)),
            oom_counter: cgroup.oom_counter.map(|counter| self.push(counter)),
            group_oom_counter: cgroup.group_oom_counter.map(|counter| self.push(counter)),
        }
    }

    /// In the order of their slots.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        self.0
    }
}

/// Turns a spec into a plan.
pub fn lower(spec: &Spec, context: Context<'_>) -> Result<Lowered, Error> {
    let Context { rootfs, cgroup, stdio, pod, mut sources, missing_source, binary_env, hold, host } = context;
    let linux = spec.linux().as_ref().ok_or_else(|| Error::invalid("linux", "is missing"))?;
    refuse_unsupported(spec, linux)?;

    let mut slots = Slots::new();
    let mut warnings = Vec::new();
    let rootfs = slots.push(rootfs);
    let namespaces = namespaces::lower(linux.namespaces().as_deref().unwrap_or_default(), &pod, &mut slots)?;

    let label = linux.mount_label().as_deref().unwrap_or("");
    let label = process::selinux(label, host.facts)?;
    let surroundings = Surroundings {
        facts: host.facts,
        missing_source,
        host_cgroup_namespace: namespaces.host_cgroup,
        label: (!label.is_empty()).then_some(label.as_str()),
    };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let mounts = mounts::lower(mounts, &mut sources, &surroundings, &mut slots)?;

    let requested = linux.devices().as_deref().unwrap_or_default();
    let (mut devices, links) = match mounts.dev {
        Dev::Own => devices::lower(requested)?,
        Dev::Image if !requested.is_empty() => {
            return Err(Error::invalid("linux.devices", "nothing is mounted at /dev to make them in"));
        }
        Dev::Image | Dev::Bound => (Vec::new(), Vec::new()),
    };
    if !host.facts.makes_nodes() || namespaces.plan.pod_user {
        devices::with_fallbacks(&mut devices, &mut slots)?;
    }

    let pairs = linux.sysctl().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut sysctls = sysctls(pairs, namespaces.owned)?;
    name_host(spec, &namespaces, &mut sysctls)?;

    let mut read_only_paths =
        paths("linux.readonlyPaths", linux.readonly_paths().as_deref().unwrap_or_default())?;
    read_only_paths.extend(mounts.read_only_paths);

    let program = spec.process().as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
    let seccomp = process::seccomp(spec, host)?;
    let program = process::lower(program, seccomp, &binary_env, host.facts, &mut warnings)?;

    let plan = plan::LaunchPlan {
        namespaces: Some(namespaces.plan),
        rootfs,
        rootfs_read_only: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
        mounts: mounts.mounts,
        devices,
        links: [mounts.links, links].concat(),
        masked_paths: paths("linux.maskedPaths", linux.masked_paths().as_deref().unwrap_or_default())?,
        read_only_paths,
        process: Some(program),
        cgroup: Some(slots.join(cgroup)),
        stdio: Some(streams(stdio, &mut slots)?),
        sysctls,
        hold,
        rootfs_propagation: rootfs_propagation(linux)?,
        start_socket: None,
        hooks: None,
        external: None,
    };
    Ok(Lowered { plan, descriptors: slots.into_descriptors(), warnings })
}

/// `/proc/self/fd/n`, in the host's own procfs.
pub(crate) fn proc_path(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

fn refuse_unsupported(spec: &Spec, linux: &Linux) -> Result<(), Error> {
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default());
    let mapped =
        |list: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| list.as_ref().is_some_and(|l| !l.is_empty());
    for (field, feature, set) in [
        ("hooks", "running hooks inside a launch", hooks),
        ("linux.uidMappings", "a user namespace", mapped(linux.uid_mappings())),
        ("linux.gidMappings", "a user namespace", mapped(linux.gid_mappings())),
        (
            "linux.netDevices",
            "moving network devices",
            linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()),
        ),
        ("linux.intelRdt", "a class of service", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", "a memory policy", linux.memory_policy().is_some()),
        ("linux.timeOffsets", "a time offset", linux.time_offsets().as_ref().is_some_and(|o| !o.is_empty())),
    ] {
        if set {
            return Err(Error::unsupported(field, feature));
        }
    }
    process::personality(spec)
}

/// Host and domain name are parameters of a UTS namespace of the container's own. In the pod's the monitor has set them.
fn name_host(
    spec: &Spec,
    namespaces: &namespaces::Lowered,
    sysctls: &mut Vec<plan::Sysctl>,
) -> Result<(), Error> {
    for (field, key, name) in [
        ("hostname", "kernel.hostname", spec.hostname()),
        ("domainname", "kernel.domainname", spec.domainname()),
    ] {
        let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else {
            continue;
        };
        validate::line(field, name, 64)?;
        if !namespaces.owned.uts {
            return Err(Error::invalid(field, "the UTS namespace is not its own"));
        }
        if namespaces.fresh_uts() && !sysctls.iter().any(|sysctl| sysctl.key == key) {
            sysctls.push(plan::Sysctl { key: key.to_owned(), value: name.to_owned() });
        }
    }
    Ok(())
}

fn paths(field: &str, list: &[String]) -> Result<Vec<Vec<u8>>, Error> {
    if list.len() > validate::HIDDEN_PATHS {
        return Err(Error::invalid(
            field,
            format!("{} of them, {} at most", list.len(), validate::HIDDEN_PATHS),
        ));
    }
    let mut seen = std::collections::HashSet::new();
    let mut paths = Vec::with_capacity(list.len());
    for path in list {
        let path = validate::container_path(field, Path::new(path))?;
        if path == Path::new("/") {
            return Err(Error::invalid(field, "the root itself cannot be one"));
        }
        let path = path.as_os_str().as_bytes().to_vec();
        if seen.insert(path.clone()) {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn streams(stdio: Stdio, slots: &mut Slots) -> Result<plan::Stdio, Error> {
    let mut streams =
        plan::Stdio { stdin: stdio.stdin, stdin_once: stdio.stdin_once, ..plan::Stdio::default() };
    if let Some(log) = stdio.log {
        validate::log_path("log_path", &log.path)?;
        streams.log_directory = Some(slots.push(log.directory));
        streams.log_path = log.path.as_os_str().as_bytes().to_vec();
    }
    Ok(streams)
}

fn rootfs_propagation(linux: &Linux) -> Result<u64, Error> {
    const FIELD: &str = "linux.rootfsPropagation";
    match linux.rootfs_propagation().as_deref().unwrap_or("") {
        "" => Ok(0),
        "private" | "rprivate" => Ok(attr::PRIVATE),
        "slave" | "rslave" => Ok(attr::SLAVE),
        "shared" | "rshared" => Ok(attr::SHARED),
        "unbindable" | "runbindable" => Err(Error::unsupported(FIELD, "an unbindable root")),
        other => Err(Error::invalid(FIELD, format!("unknown propagation {other:?}"))),
    }
}

#[cfg(test)]
mod tests;
