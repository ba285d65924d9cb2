//! The container that pinnace makes when nothing else is said.
//!
//! Capabilities, paths and mounts are those that images have been written against for ten years (docker, containerd), with
//! the later findings on side channels added to what is hidden (rule R19).

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, Mount, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    Root, Spec, User, VERSION,
};

use crate::mounts::mount;
use crate::{Error, Facts, capabilities, devices};

/// `PATH` of a program whose image and request name none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes of a pod's `/dev/shm`.
pub const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// An ordinary container: PID, mount and cgroup namespaces of its own. Network, IPC and UTS are added by whoever knows
/// the pod.
pub fn spec(facts: &Facts) -> Spec {
    let granted = &self::capabilities() & &capabilities::all(facts);
    let mut linux = linux(
        &[LinuxNamespaceType::Pid, LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup],
        device_rules(),
    );
    linux.set_masked_paths(Some(masked_paths(facts)));
    linux.set_readonly_paths(Some(readonly_paths()));
    assemble(facts, mounts(), linux, capabilities::sets(granted, HashSet::new()))
}

/// A privileged container: every capability and device that the machine has, `/sys` and the control groups writable and
/// the host's, nothing hidden.
pub fn privileged(facts: &Facts) -> Result<Spec, Error> {
    let everything = vec![device_rule(true, LinuxDeviceType::A, None, None, "rwm")];
    let mut linux = linux(&[LinuxNamespaceType::Pid, LinuxNamespaceType::Mount], everything);
    linux.set_devices(Some(devices::all_host_devices()?));
    linux.set_masked_paths(None);
    linux.set_readonly_paths(None);
    let sets = capabilities::sets(capabilities::all(facts), HashSet::new());
    Ok(assemble(facts, privileged_mounts(), linux, sets))
}

/// Docker's fourteen.
pub fn capabilities() -> HashSet<Capability> {
    HashSet::from([
        Capability::AuditWrite,
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Mknod,
        Capability::NetBindService,
        Capability::NetRaw,
        Capability::Setfcap,
        Capability::Setgid,
        Capability::Setpcap,
        Capability::Setuid,
        Capability::SysChroot,
    ])
}

/// Mounts of an ordinary container, from the root downwards.
pub fn mounts() -> Vec<Mount> {
    let mut mounts = kernel_mounts("ro");
    mounts.push(mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ));
    mounts
}

/// Mounts of a privileged container.
pub fn privileged_mounts() -> Vec<Mount> {
    let mut mounts = kernel_mounts("rw");
    mounts.push(mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "rw"],
    ));
    mounts
}

/// Hidden from an ordinary container.
pub fn masked_paths(facts: &Facts) -> Vec<String> {
    const PATHS: [&str; 12] = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        // RAPL counters: a side channel (GHSA-7ww5-4wqc-m92c).
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ];
    let throttle = facts.thermal_throttle.iter().map(|path| path.display().to_string());
    PATHS.iter().map(|path| (*path).to_owned()).chain(throttle).collect()
}

/// Read-only in an ordinary container.
pub fn readonly_paths() -> Vec<String> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec()
}

/// Device rules of an ordinary container: nothing, then making any node, then opening the harmless ones.
pub fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let character =
        |major: i64, minor: Option<i64>| device_rule(true, LinuxDeviceType::C, Some(major), minor, "rwm");
    vec![
        device_rule(false, LinuxDeviceType::A, None, None, "rwm"),
        device_rule(true, LinuxDeviceType::C, None, None, "m"),
        device_rule(true, LinuxDeviceType::B, None, None, "m"),
        // null, zero, full, random, urandom
        character(1, Some(3)),
        character(1, Some(5)),
        character(1, Some(7)),
        character(1, Some(8)),
        character(1, Some(9)),
        // tty, console, ptmx, pts
        character(5, Some(0)),
        character(5, Some(1)),
        character(5, Some(2)),
        character(136, None),
    ]
}

/// Limits of an ordinary container: systemd's pair for open files, as far as this machine lets us. A large soft limit makes
/// programs that close every descriptor one by one spend seconds at their start.
pub fn rlimits(facts: &Facts) -> Vec<PosixRlimit> {
    let hard = facts.open_files_hard.unwrap_or(u64::MAX).min(524_288);
    let files =
        PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).hard(hard).soft(hard.min(1024));
    files.build().into_iter().collect()
}

fn kernel_mounts(sys: &str) -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ]
}

fn linux(namespaces: &[LinuxNamespaceType], rules: Vec<LinuxDeviceCgroup>) -> Linux {
    let namespace = |typ: &LinuxNamespaceType| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(*typ);
        namespace
    };
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(rules));
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces.iter().map(namespace).collect()));
    linux.set_resources(Some(resources));
    linux.set_sysctl(None);
    linux.set_devices(None);
    linux.set_seccomp(None);
    linux.set_rootfs_propagation(None);
    linux
}

fn assemble(facts: &Facts, mounts: Vec<Mount>, linux: Linux, sets: LinuxCapabilities) -> Spec {
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(false));
    let mut process = Process::default();
    process.set_user(User::default());
    process.set_args(None);
    process.set_env(Some(vec![format!("PATH={PATH}")]));
    process.set_cwd(PathBuf::from("/"));
    process.set_capabilities(Some(sets));
    process.set_rlimits(Some(rlimits(facts)));
    process.set_no_new_privileges(Some(false));
    process.set_terminal(Some(false));
    let mut spec = Spec::default();
    spec.set_version(VERSION.to_owned());
    spec.set_root(Some(root));
    spec.set_mounts(Some(mounts));
    spec.set_process(Some(process));
    spec.set_linux(Some(linux));
    spec.set_hostname(None);
    spec.set_annotations(None);
    spec
}

fn device_rule(
    allow: bool,
    typ: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(typ));
    rule.set_major(major);
    rule.set_minor(minor);
    rule.set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_spec_holds_no_leftovers_of_the_types() {
        let facts = Facts::detect().unwrap();
        let spec = spec(&facts);
        assert_eq!(spec.hostname().as_deref(), None);
        let text = serde_json::to_string(&spec).unwrap();
        assert!(!text.contains("youki"), "{text}");
        let process = spec.process().as_ref().unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.inheritable().as_ref().map(HashSet::len), Some(0));
        assert_eq!(sets.ambient().as_ref().map(HashSet::len), Some(0));
        assert_eq!(capabilities::mask(sets.bounding().as_ref().unwrap()) & !facts.bounding, 0);
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn fourteen_capabilities() {
        assert_eq!(capabilities::mask(&self::capabilities()), 0xa804_25fb);
        assert_eq!(self::capabilities().len(), 14);
    }

    #[test]
    fn device_rules_begin_with_deny_all() {
        let rules = device_rules();
        assert!(!rules[0].allow());
        assert_eq!(
            (rules[0].typ(), rules[0].major(), rules[0].minor()),
            (Some(LinuxDeviceType::A), None, None)
        );
        // /dev/mem, /dev/sda
        for (major, minor) in [(1, 1), (8, 0)] {
            let opens = |rule: &LinuxDeviceCgroup| {
                rule.allow()
                    && rule.access().as_deref() != Some("m")
                    && rule.major().is_none_or(|m| m == major)
                    && rule.minor().is_none_or(|m| m == minor)
            };
            assert!(!rules.iter().any(opens));
        }
    }

    #[test]
    fn privileged_hides_nothing() {
        let facts = Facts::detect().unwrap();
        let spec = privileged(&facts).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!((linux.masked_paths(), linux.readonly_paths(), linux.seccomp()), (&None, &None, &None));
        assert!(linux.devices().as_ref().is_some_and(|devices| !devices.is_empty()));
        let process = spec.process().as_ref().unwrap();
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities::mask(sets.effective().as_ref().unwrap()), facts.bounding);
        for mount in spec.mounts().as_ref().unwrap() {
            assert!(!mount.options().as_ref().unwrap().contains(&"ro".to_owned()));
        }
    }

    #[test]
    fn thermal_throttle_of_each_processor_is_masked() {
        let mut facts = Facts::detect().unwrap();
        facts.thermal_throttle = vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()];
        let masked = masked_paths(&facts);
        assert!(masked.contains(&"/sys/devices/system/cpu/cpu0/thermal_throttle".to_owned()));
        for path in ["/proc/interrupts", "/sys/devices/virtual/powercap", "/proc/kcore", "/sys/firmware"] {
            assert!(masked.contains(&path.to_owned()), "{path}");
        }
    }

    #[test]
    fn limits_fit_a_machine_that_cannot_raise_them() {
        let mut facts = Facts::detect().unwrap();
        for (hard, expected) in [(None, (1024, 524_288)), (Some(4096), (1024, 4096)), (Some(512), (512, 512))]
        {
            facts.open_files_hard = hard;
            let limit = rlimits(&facts)[0];
            assert_eq!((limit.soft(), limit.hard()), expected);
        }
    }
}
