//! From a request, an image and a sandbox to the OCI runtime spec, the contract in the middle.
//!
//! What the image says is data, never control (rule R8): of its config only the entry point, arguments, environment,
//! working directory, user, volumes and stop signal are read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::{
    Capability, LinuxCpuBuilder, LinuxDeviceCgroup, LinuxHugepageLimitBuilder, LinuxIdMapping,
    LinuxIdMappingBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPids, LinuxPidsBuilder, LinuxResources, LinuxSeccomp, Mount, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Spec,
};
use pinnace_cgroup::Cgroup;
use pinnace_spec::user::User;
use pinnace_spec::{capabilities, defaults, devices, image, mounts};

use super::profile_file;
use super::record::Resources;
use super::request::{Access, ContainerRequest, MountRequest, Profile, Propagation, Security};
use super::volumes::{self, Volume};
use crate::apparmor::{DefaultProfile, PROFILE};
use crate::config::{self, SeccompDefault};
use crate::error::{Error, Within as _};
use crate::node::Node;
use crate::owner_map::IdRange;
use crate::sandbox::Sandbox;
use crate::sandbox::record::NamespaceMode;
use crate::selinux::Labels;

/// A spec, and the environment entries that JSON cannot hold.
#[derive(Debug)]
pub struct Built {
    /// The OCI runtime spec.
    pub spec: Spec,
    /// `KEY=value` entries that are not UTF-8.
    pub binary_env: Vec<Vec<u8>>,
}

/// How the spec names the pod's user namespace: the monitor holds it by descriptor, no such path exists.
const POD_USER: &str = "/run/pinnace/pod-user";

/// Where the pod's namespaces are, as the spec names them.
#[derive(Debug, Clone)]
pub struct PodPaths {
    /// Network namespace; `None` for the host's.
    pub network: Option<PathBuf>,
    /// IPC namespace; `None` for the host's.
    pub ipc: Option<PathBuf>,
    /// UTS namespace; `None` for the host's.
    pub uts: Option<PathBuf>,
    /// User namespace, which the monitor holds; `None` for the host's.
    pub user: Option<PathBuf>,
    /// PID namespace of the pod's init; `None` without one.
    pub pid: Option<PathBuf>,
}

impl PodPaths {
    /// Of a sandbox that is ready: its monitor lives in the namespaces and keeps them.
    pub fn of(sandbox: &Sandbox) -> Self {
        let record = sandbox.record();
        let of = |kind: &str| PathBuf::from(format!("/proc/{}/ns/{kind}", record.monitor_pid));
        let namespaces = sandbox.config.namespaces;
        let own_network = namespaces.network == NamespaceMode::Pod;
        Self {
            network: own_network.then(|| of("net")),
            ipc: (namespaces.ipc == NamespaceMode::Pod).then(|| of("ipc")),
            uts: own_network.then(|| of("uts")),
            user: sandbox.config.user_namespace.as_ref().map(|_| PathBuf::from(POD_USER)),
            pid: (record.init_pid != 0).then(|| PathBuf::from(format!("/proc/{}/ns/pid", record.init_pid))),
        }
    }
}

/// Builds the spec.
pub fn build(
    node: &Node,
    sandbox: &Sandbox,
    request: &ContainerRequest,
    config: Option<&ImageConfig>,
    user: &User,
    volumes: &[Volume],
    cgroup_path: &str,
) -> Result<Built, Error> {
    let facts = &node.facts;
    let security = &request.security;
    let mut spec = if security.privileged { defaults::privileged(facts)? } else { defaults::spec(facts) };
    spec.set_hostname(Some(sandbox.config.hostname.clone()).filter(|name| !name.is_empty()));
    spec.set_mounts(Some(all_mounts(node, sandbox, request, volumes, &spec)?));
    spec.set_annotations(None);
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(security.read_only_rootfs));
    }

    let (env, binary_env) = environment(sandbox, request, config, user)?;
    let chosen = chosen_capabilities(node, security)?;
    let seccomp = seccomp(node, security, chosen.bounding().as_ref())?;
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(image::command(config, &request.command, &request.args)?));
        process.set_env(Some(env));
        process.set_cwd(image::working_dir(config, &request.working_dir)?);
        process.set_user(user.to_oci());
        process.set_terminal(Some(request.tty));
        process.set_no_new_privileges(Some(security.no_new_privileges));
        process.set_capabilities(Some(chosen));
        process.set_rlimits(Some(merged_rlimits(rlimits(node)?, request)));
        process.set_oom_score_adj(i32::try_from(request.resources.oom_score_adj).ok());
        process.set_apparmor_profile(apparmor(node, security)?);
    }

    let (nodes, rules) = requested_devices(node, request, user)?;
    let pod = PodPaths::of(sandbox);
    if let Some(linux) = spec.linux_mut() {
        linux.set_namespaces(Some(namespaces(security, &pod, linux.namespaces().as_deref())?));
        linux.set_cgroups_path(Some(PathBuf::from(cgroup_path)));
        linux.set_seccomp(seccomp);
        if !security.privileged {
            linux.set_masked_paths(Some(masked_paths(security, linux.masked_paths().as_deref())));
            linux.set_readonly_paths(Some(security.read_only_paths.clone()));
        }
        let mut known = linux.devices().clone().unwrap_or_default();
        known.retain(|device| nodes.iter().all(|requested| requested.path() != device.path()));
        known.extend(nodes);
        linux.set_devices(Some(known));
        let mut resources = resources(&request.resources)?;
        let mut allowed =
            linux.resources().as_ref().and_then(|given| given.devices().clone()).unwrap_or_default();
        allowed.extend(rules);
        resources.set_devices(Some(allowed));
        resources.set_pids(match &request.kept {
            Some(kept) => pids_limit(kept.pids),
            None => pids(node),
        });
        linux.set_resources(Some(resources));
        if let Some(propagation) = rootfs_propagation(&request.mounts) {
            linux.set_rootfs_propagation(Some(propagation.to_owned()));
        }
    }
    // Last, so that what the files of the devices say holds.
    node.cdi.inject(&mut spec, &request.cdi_devices)?;
    Ok(Built { spec, binary_env })
}

/// Labels its processes and its file systems.
pub fn label(spec: &mut Spec, labels: &Labels) {
    if let Some(process) = spec.process_mut() {
        process.set_selinux_label(Some(labels.process.clone()).filter(|label| !label.is_empty()));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(Some(labels.file.clone()));
    }
}

/// What the request hides, with what leaks about the host (rule R19). An empty list hides nothing: `procMount: Unmasked`.
fn masked_paths(security: &Security, defaults: Option<&[String]>) -> Vec<String> {
    let mut paths = security.masked_paths.clone();
    if !paths.is_empty() {
        paths.extend(
            defaults.unwrap_or_default().iter().filter(|path| !security.masked_paths.contains(path)).cloned(),
        );
    }
    paths
}

/// Image, then the request by key; `HOME` from passwd, `HOSTNAME` and `TERM` where nobody said otherwise.
fn environment(
    sandbox: &Sandbox,
    request: &ContainerRequest,
    config: Option<&ImageConfig>,
    user: &User,
) -> Result<(Vec<String>, Vec<Vec<u8>>), Error> {
    let mut env = image::env(config)?;
    for (key, value) in &request.envs {
        env.set(key, value)?;
    }
    if !sandbox.config.hostname.is_empty() {
        env.set_default("HOSTNAME", sandbox.config.hostname.as_bytes())?;
    }
    if request.tty {
        env.set_default("TERM", b"xterm")?;
    }
    use std::os::unix::ffi::OsStrExt as _;
    env.set_default("HOME", user.home.as_os_str().as_bytes())?;
    Ok(env.into_oci())
}

fn all_mounts(
    node: &Node,
    sandbox: &Sandbox,
    request: &ContainerRequest,
    volumes: &[Volume],
    spec: &Spec,
) -> Result<Vec<Mount>, Error> {
    let mut defaults = spec.mounts().clone().unwrap_or_default();
    if sandbox.config.namespaces.ipc == NamespaceMode::Node {
        // The host's shared memory goes with the host's IPC namespace. A new mqueue mount shows the queues of the
        // namespace that it is made in, which is the host's then (mq_overview(7)).
        defaults.retain(|mount| mount.destination() != Path::new("/dev/shm"));
        defaults.push(mounts::bind("/dev/shm", "/dev/shm", &["rbind", "nosuid", "nodev", "noexec"]));
    } else {
        defaults.retain(|mount| mount.destination() != Path::new("/dev/shm"));
        defaults.push(mounts::bind(
            "/dev/shm",
            node.pod_shm_source(),
            &["rbind", "nosuid", "nodev", "noexec"],
        ));
    }
    if sandbox.config.user_namespace.is_some() && sandbox.config.namespaces.network == NamespaceMode::Node {
        // The kernel lets only the owner of a network namespace mount a sysfs of it.
        defaults.retain(|mount| mount.destination() != Path::new("/sys"));
        defaults.push(mounts::bind(
            "/sys",
            "/sys",
            &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"],
        ));
    }
    let access = if request.security.read_only_rootfs { "ro" } else { "rw" };
    for (name, target) in
        [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        defaults.push(mounts::bind(target, sandbox.directory.join(name), &["rbind", "rprivate", access]));
    }
    // The request's own mounts win over those of the image.
    defaults.extend(
        volumes
            .iter()
            .map(|volume| mounts::bind(&volume.destination, &volume.source, &["rbind", "rprivate", "rw"])),
    );
    defaults.extend(request.kept.iter().flat_map(|kept| kept.mounts.iter().cloned()));
    let requested = request
        .mounts
        .iter()
        .enumerate()
        .map(|(number, mount)| bind(number, mount))
        .collect::<Result<_, _>>()?;
    Ok(mounts::merge(defaults, requested)?)
}

fn bind(number: usize, mount: &MountRequest) -> Result<Mount, Error> {
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match mount.access {
        Access::ReadWrite => "rw",
        Access::ReadOnly => "ro",
        Access::RecursiveReadOnly => "rro",
    };
    let source = match &mount.image {
        Some(_) => volumes::view_source(number),
        None => PathBuf::from(&mount.host_path),
    };
    // On what is mounted below the source, too: a flag that stops at the first mount protects from nothing.
    let further: Vec<_> = mount.options.iter().map(|option| format!("r{option}")).collect();
    let options: Vec<_> =
        ["rbind", propagation, access].into_iter().chain(further.iter().map(String::as_str)).collect();
    let mut bound = mounts::bind(&mount.container_path, source, &options);
    if let Some(owners) = &mount.owners {
        bound.set_uid_mappings(Some(mappings(&owners.uids)?));
        bound.set_gid_mappings(Some(mappings(&owners.gids)?));
    }
    Ok(bound)
}

fn mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>, Error> {
    let one = |range: &IdRange| {
        LinuxIdMappingBuilder::default()
            .host_id(range.host)
            .container_id(range.container)
            .size(range.length)
            .build()
            .map_err(|error| Error::invalid("mounts.uidMappings", error.to_string()))
    };
    ranges.iter().map(one).collect()
}

/// The container's root must let through what its mounts do.
fn rootfs_propagation(mounts: &[MountRequest]) -> Option<&'static str> {
    let has = |wanted| mounts.iter().any(|mount| mount.propagation == wanted);
    if has(Propagation::Bidirectional) {
        Some("shared")
    } else if has(Propagation::HostToContainer) {
        Some("slave")
    } else {
        None
    }
}

fn chosen_capabilities(
    node: &Node,
    security: &Security,
) -> Result<oci_spec::runtime::LinuxCapabilities, Error> {
    let base = if security.privileged { capabilities::all(&node.facts) } else { defaults::capabilities() };
    let request = capabilities::Request {
        add: &security.add_capabilities,
        drop: &security.drop_capabilities,
        add_ambient: &security.add_ambient_capabilities,
    };
    Ok(capabilities::select(&base, &request, &node.facts)?)
}

fn seccomp(
    node: &Node,
    security: &Security,
    capabilities: Option<&HashSet<Capability>>,
) -> Result<Option<LinuxSeccomp>, Error> {
    if security.privileged {
        return Ok(None);
    }
    let none = HashSet::new();
    let capabilities = capabilities.unwrap_or(&none);
    match &security.seccomp {
        Profile::Unconfined => Ok(None),
        Profile::RuntimeDefault => match &node.config.container.seccomp_default {
            SeccompDefault::Builtin => Ok(Some(pinnace_seccomp::default::profile(capabilities, node.kernel))),
            SeccompDefault::File(path) => read_profile(node, path, capabilities).map(Some),
        },
        Profile::Localhost(reference) => {
            let root = node.config.container.seccomp_profile_root.as_deref();
            let bytes = profile_file::of_request(root, reference)?;
            parse_profile(node, Path::new(reference), &bytes, capabilities).map(Some)
        }
    }
}

fn read_profile(node: &Node, path: &Path, capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp, Error> {
    parse_profile(node, path, &profile_file::of_host(path)?, capabilities)
}

fn parse_profile(
    node: &Node,
    path: &Path,
    bytes: &[u8],
    capabilities: &HashSet<Capability>,
) -> Result<LinuxSeccomp, Error> {
    pinnace_seccomp::localhost::parse(bytes, capabilities, node.kernel)
        .within(|| format!("seccomp profile {}", path.display()))
}

/// Those of the configuration, and the request's own in their place.
fn merged_rlimits(mut limits: Vec<PosixRlimit>, request: &ContainerRequest) -> Vec<PosixRlimit> {
    for own in request.kept.iter().flat_map(|kept| &kept.rlimits) {
        limits.retain(|limit| limit.typ() != own.typ());
        limits.push(*own);
    }
    limits
}

/// A limit of processes; 0 and below is none.
pub fn pids_limit(most: i64) -> Option<LinuxPids> {
    (most > 0).then(|| LinuxPidsBuilder::default().limit(most).build().ok()).flatten()
}

/// Limits of the configuration, as far as this process may grant them.
fn rlimits(node: &Node) -> Result<Vec<PosixRlimit>, Error> {
    let limit = |limit: &config::Rlimit| {
        let wrong = |reason: String| Error::invalid(format!("container.rlimits {}", limit.name), reason);
        let kind: PosixRlimitType =
            serde_json::from_value(limit.name.clone().into()).map_err(|error| wrong(error.to_string()))?;
        let most = match node.facts.open_files_hard {
            Some(most) if kind == PosixRlimitType::RlimitNofile => most,
            _ => u64::MAX,
        };
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(limit.soft.min(most))
            .hard(limit.hard.min(most))
            .build()
            .map_err(|error| wrong(error.to_string()))
    };
    node.config.container.rlimits.iter().map(limit).collect()
}

/// Fails closed (rule R18): a profile that was asked for is in force or the container is not made. Who asks for nothing
/// gets none.
fn apparmor(node: &Node, security: &Security) -> Result<Option<String>, Error> {
    let refuse = |what: String, state: &str, hint: &str| Error::State {
        subject: what,
        state: state.to_owned(),
        hint: hint.to_owned(),
    };
    match (&security.apparmor, &node.apparmor) {
        _ if security.privileged => Ok(None),
        (Some(Profile::Localhost(name)), DefaultProfile::Disabled) => Err(refuse(
            format!("AppArmor profile {name:?}"),
            "not available",
            "this kernel runs without AppArmor",
        )),
        // Whether it is loaded is looked at when the container starts.
        (Some(Profile::Localhost(name)), _) => Ok(Some(name.clone())),
        (Some(Profile::Unconfined) | None, _) | (_, DefaultProfile::Disabled) => Ok(None),
        (Some(Profile::RuntimeDefault), DefaultProfile::Loaded) => Ok(Some(PROFILE.to_owned())),
        (Some(Profile::RuntimeDefault), DefaultProfile::Missing { reason }) => {
            Err(refuse(format!("AppArmor profile {PROFILE:?}"), "not loaded", reason))
        }
    }
}

fn requested_devices(
    node: &Node,
    request: &ContainerRequest,
    user: &User,
) -> Result<(Vec<oci_spec::runtime::LinuxDevice>, Vec<LinuxDeviceCgroup>), Error> {
    let mut nodes = Vec::new();
    let mut rules = Vec::new();
    for device in &request.devices {
        let found = devices::host_device(
            Path::new(&device.host_path),
            Path::new(&device.container_path),
            &device.permissions,
        )?;
        // Only who was asked for: a user of the image does not own the host's devices.
        let asked = &request.security.user;
        let owned = node.config.container.device_ownership;
        nodes.extend(found.nodes.into_iter().map(|mut node| {
            if owned && asked.uid.is_some_and(|uid| uid != 0) {
                node.set_uid(Some(user.uid));
            }
            if owned && asked.gid.is_some_and(|gid| gid != 0) {
                node.set_gid(Some(user.gid));
            }
            node
        }));
        rules.extend(found.rules);
    }
    Ok((nodes, rules))
}

fn namespaces(
    security: &Security,
    pod: &PodPaths,
    base: Option<&[LinuxNamespace]>,
) -> Result<Vec<LinuxNamespace>, Error> {
    let entry = |kind: LinuxNamespaceType, path: Option<PathBuf>| {
        let mut builder = LinuxNamespaceBuilder::default().typ(kind);
        if let Some(path) = path {
            builder = builder.path(path);
        }
        builder.build().map_err(|error| Error::invalid("namespaces", error.to_string()))
    };
    let decided = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
    ];
    let mut list: Vec<_> = base
        .unwrap_or_default()
        .iter()
        .filter(|namespace| !decided.contains(&namespace.typ()))
        .cloned()
        .collect();
    match security.pid {
        NamespaceMode::Container => list.push(entry(LinuxNamespaceType::Pid, None)?),
        NamespaceMode::Pod => {
            let path = pod.pid.clone().ok_or_else(|| Error::State {
                subject: "the pod's PID namespace".to_owned(),
                state: "not shared".to_owned(),
                hint: "a container has what its sandbox has".to_owned(),
            })?;
            list.push(entry(LinuxNamespaceType::Pid, Some(path))?);
        }
        NamespaceMode::Node => {}
        NamespaceMode::Target => {
            list.push(entry(LinuxNamespaceType::Pid, Some(target_path(&security.target)))?);
        }
    }
    for (kind, path) in [
        (LinuxNamespaceType::Network, &pod.network),
        (LinuxNamespaceType::Ipc, &pod.ipc),
        (LinuxNamespaceType::Uts, &pod.uts),
        (LinuxNamespaceType::User, &pod.user),
    ] {
        if let Some(path) = path {
            list.push(entry(kind, Some(path.clone()))?);
        }
    }
    Ok(list)
}

/// How the spec names the PID namespace of another container of the pod; it exists only at start.
pub fn target_path(container: &str) -> PathBuf {
    PathBuf::from(format!("/run/pinnace/target/{container}/pid"))
}

/// The limit of the configuration, where there is something to hold it.
fn pids(node: &Node) -> Option<LinuxPids> {
    let limit = i64::from(node.config.container.pids_limit);
    (limit != 0 && Cgroup::is_limited_by(&node.hierarchy, "pids"))
        .then(|| LinuxPidsBuilder::default().limit(limit).build().ok())
        .flatten()
}

/// Limits in the OCI form.
pub fn resources(given: &Resources) -> Result<LinuxResources, Error> {
    let wrong = |error: oci_spec::OciSpecError| Error::invalid("resources", error.to_string());
    let mut resources = LinuxResources::default();
    let mut cpu = LinuxCpuBuilder::default().build().map_err(wrong)?;
    cpu.set_shares(u64::try_from(given.cpu_shares).ok().filter(|shares| *shares != 0));
    cpu.set_quota(Some(given.cpu_quota_us).filter(|quota| *quota != 0));
    cpu.set_period(u64::try_from(given.cpu_period_us).ok().filter(|period| *period != 0));
    cpu.set_cpus(Some(given.cpuset_cpus.clone()).filter(|list| !list.is_empty()));
    cpu.set_mems(Some(given.cpuset_mems.clone()).filter(|list| !list.is_empty()));
    resources.set_cpu(Some(cpu));

    let mut memory = LinuxMemoryBuilder::default().build().map_err(wrong)?;
    let limit = Some(given.memory_limit_bytes).filter(|limit| *limit != 0);
    memory.set_limit(limit);
    // Unset with a limit means no swap, as in the peers.
    memory.set_swap(Some(given.memory_swap_limit_bytes).filter(|swap| *swap != 0).or(limit));
    resources.set_memory(Some(memory));

    let pages = given.hugepage_limits.iter().map(|(size, limit)| {
        let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
        LinuxHugepageLimitBuilder::default().page_size(size.clone()).limit(limit).build()
    });
    let pages = pages.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    resources.set_hugepage_limits(Some(pages).filter(|pages| !pages.is_empty()));
    resources.set_unified(
        (!given.unified.is_empty())
            .then(|| given.unified.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
    );
    Ok(resources)
}
