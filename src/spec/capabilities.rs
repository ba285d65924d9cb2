//! Capability names, sets and masks.
//!
//! CRI and docker name capabilities with or without `CAP_`, in any case, and have the word `ALL`. The order is that of
//! containerd: `ALL` in `add`, then `ALL` in `drop`, then the single names added, then the single names dropped.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use crate::{Error, Facts};

/// What a container asks for beyond its base set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Names to add.
    pub add: &'a [String],
    /// Names to take away.
    pub drop: &'a [String],
    /// Names that a non-root program keeps over `execve(2)`.
    pub add_ambient: &'a [String],
}

/// Number, name and OCI constant of every capability that the OCI types know (linux/capability.h).
const TABLE: [(u32, &str, Capability); 41] = [
    (0, "CHOWN", Capability::Chown),
    (1, "DAC_OVERRIDE", Capability::DacOverride),
    (2, "DAC_READ_SEARCH", Capability::DacReadSearch),
    (3, "FOWNER", Capability::Fowner),
    (4, "FSETID", Capability::Fsetid),
    (5, "KILL", Capability::Kill),
    (6, "SETGID", Capability::Setgid),
    (7, "SETUID", Capability::Setuid),
    (8, "SETPCAP", Capability::Setpcap),
    (9, "LINUX_IMMUTABLE", Capability::LinuxImmutable),
    (10, "NET_BIND_SERVICE", Capability::NetBindService),
    (11, "NET_BROADCAST", Capability::NetBroadcast),
    (12, "NET_ADMIN", Capability::NetAdmin),
    (13, "NET_RAW", Capability::NetRaw),
    (14, "IPC_LOCK", Capability::IpcLock),
    (15, "IPC_OWNER", Capability::IpcOwner),
    (16, "SYS_MODULE", Capability::SysModule),
    (17, "SYS_RAWIO", Capability::SysRawio),
    (18, "SYS_CHROOT", Capability::SysChroot),
    (19, "SYS_PTRACE", Capability::SysPtrace),
    (20, "SYS_PACCT", Capability::SysPacct),
    (21, "SYS_ADMIN", Capability::SysAdmin),
    (22, "SYS_BOOT", Capability::SysBoot),
    (23, "SYS_NICE", Capability::SysNice),
    (24, "SYS_RESOURCE", Capability::SysResource),
    (25, "SYS_TIME", Capability::SysTime),
    (26, "SYS_TTY_CONFIG", Capability::SysTtyConfig),
    (27, "MKNOD", Capability::Mknod),
    (28, "LEASE", Capability::Lease),
    (29, "AUDIT_WRITE", Capability::AuditWrite),
    (30, "AUDIT_CONTROL", Capability::AuditControl),
    (31, "SETFCAP", Capability::Setfcap),
    (32, "MAC_OVERRIDE", Capability::MacOverride),
    (33, "MAC_ADMIN", Capability::MacAdmin),
    (34, "SYSLOG", Capability::Syslog),
    (35, "WAKE_ALARM", Capability::WakeAlarm),
    (36, "BLOCK_SUSPEND", Capability::BlockSuspend),
    (37, "AUDIT_READ", Capability::AuditRead),
    (38, "PERFMON", Capability::Perfmon),
    (39, "BPF", Capability::Bpf),
    (40, "CHECKPOINT_RESTORE", Capability::CheckpointRestore),
];

/// A capability by name, with or without `CAP_`, in any case.
pub fn parse(name: &str) -> Option<Capability> {
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("CAP_").unwrap_or(&name);
    TABLE.iter().find(|(_, known, _)| *known == name).map(|(_, _, capability)| *capability)
}

/// Bit n is capability n.
pub fn mask(capabilities: &HashSet<Capability>) -> u64 {
    TABLE
        .iter()
        .filter(|(_, _, known)| capabilities.contains(known))
        .fold(0, |mask, (bit, _, _)| mask | 1 << bit)
}

/// Every capability that this machine can grant.
pub fn all(facts: &Facts) -> HashSet<Capability> {
    from_mask(facts.bounding)
}

/// The sets of a container: bounding, effective and permitted alike, inheritable and ambient empty unless ambient
/// ones are asked for (CVE-2022-24769 class: a non-empty inheritable set gives file capabilities back to non-root).
///
/// `ALL` means all that this machine has; a single name that it lacks is an error, for a program that asks for it by name
/// will not work without it.
pub fn select(
    base: &HashSet<Capability>,
    request: &Request<'_>,
    facts: &Facts,
) -> Result<LinuxCapabilities, Error> {
    let mut set: HashSet<Capability> = base & &all(facts);
    if names_all(request.add) {
        set = all(facts);
    }
    if names_all(request.drop) {
        set.clear();
    }
    set.extend(named("capabilities.add", request.add, facts)?);
    for name in singles(request.drop) {
        set.remove(&known("capabilities.drop", name)?);
    }
    if names_all(request.add_ambient) {
        return Err(Error::invalid("capabilities.add_ambient", "ALL is not a capability"));
    }
    let ambient = named("capabilities.add_ambient", request.add_ambient, facts)?;
    set.extend(ambient.iter().copied());
    Ok(sets(set, ambient))
}

/// Capabilities 0 to `last` as a mask.
pub(crate) fn up_to(last: u32) -> u64 {
    u64::MAX.checked_shr(63_u32.saturating_sub(last)).unwrap_or(u64::MAX)
}

/// Names of the capabilities in a mask, for messages.
pub(crate) fn names(mask: u64) -> String {
    let names: Vec<&str> =
        TABLE.iter().filter(|(bit, _, _)| mask & (1 << bit) != 0).map(|(_, name, _)| *name).collect();
    names.join(", ")
}

/// The five sets of an ordinary container.
pub(crate) fn sets(set: HashSet<Capability>, ambient: HashSet<Capability>) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()));
    sets.set_effective(Some(set.clone()));
    sets.set_permitted(Some(set));
    sets.set_inheritable(Some(ambient.clone()));
    sets.set_ambient(Some(ambient));
    sets
}

fn from_mask(mask: u64) -> HashSet<Capability> {
    TABLE.iter().filter(|(bit, _, _)| mask & (1 << bit) != 0).map(|(_, _, capability)| *capability).collect()
}

fn named(field: &str, names: &[String], facts: &Facts) -> Result<HashSet<Capability>, Error> {
    let set: HashSet<Capability> = singles(names).map(|name| known(field, name)).collect::<Result<_, _>>()?;
    let missing = mask(&set) & !facts.bounding;
    if missing == 0 {
        Ok(set)
    } else {
        Err(Error::unmet(field, format!("this machine has no {}", self::names(missing))))
    }
}

fn known(field: &str, name: &str) -> Result<Capability, Error> {
    parse(name).ok_or_else(|| Error::invalid(field, format!("unknown capability {name:?}")))
}

fn names_all(names: &[String]) -> bool {
    names.iter().any(|name| is_all(name))
}

fn singles(names: &[String]) -> impl Iterator<Item = &str> {
    names.iter().map(String::as_str).filter(|name| !is_all(name))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults;

    fn facts(bounding: u64) -> Facts {
        Facts {
            bounding,
            last_capability: 40,
            oom_score_adj_floor: None,
            open_files_hard: None,
            cgroups: crate::facts::CgroupLayout::Absent,
            apparmor: false,
            selinux: false,
            thermal_throttle: Vec::new(),
        }
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn table_agrees_with_names_of_the_oci_types() {
        for (at, (number, name, capability)) in TABLE.iter().enumerate() {
            assert_eq!(at, usize::try_from(*number).unwrap());
            assert_eq!(*name, capability.to_string());
        }
    }

    #[test]
    fn names_in_any_form() {
        for name in ["NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin", "Net_Admin"] {
            assert_eq!(parse(name), Some(Capability::NetAdmin), "{name}");
        }
        for name in ["", "CAP_", "NETADMIN", "CAP_CAP_NET_ADMIN", " NET_ADMIN"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn masks() {
        assert_eq!(up_to(40), 0x1ff_ffff_ffff);
        assert_eq!(up_to(63), u64::MAX);
        assert_eq!(up_to(200), u64::MAX);
        assert_eq!(up_to(0), 1);
        let all = up_to(40);
        assert_eq!(mask(&from_mask(all)), all);
    }

    #[test]
    fn selections() {
        let full = facts(up_to(40));
        let base = defaults::capabilities();
        let cases: [(&[&str], &[&str], u64); 8] = [
            (&[], &[], mask(&base)),
            (&["sys_admin"], &[], mask(&base) | 1 << 21),
            (&[], &["ALL"], 0),
            (&["ALL"], &[], up_to(40)),
            (&["ALL"], &["CHOWN"], up_to(40) & !1),
            (&["CHOWN"], &["all"], 1),
            (&["ALL", "CHOWN"], &["ALL"], 1),
            (&["CHOWN"], &["CHOWN"], mask(&base) & !1),
        ];
        for (add, drop, expected) in cases {
            let (add, drop) = (strings(add), strings(drop));
            let request = Request { add: &add, drop: &drop, add_ambient: &[] };
            let sets = select(&base, &request, &full).unwrap();
            for set in [sets.bounding(), sets.effective(), sets.permitted()] {
                assert_eq!(mask(set.as_ref().unwrap()), expected, "{add:?} {drop:?}");
            }
            assert_eq!(sets.inheritable().as_ref().map(HashSet::len), Some(0));
            assert_eq!(sets.ambient().as_ref().map(HashSet::len), Some(0));
        }
    }

    #[test]
    fn a_machine_without_a_capability() {
        let poor = facts(up_to(40) & !(1 << 24));
        let add = strings(&["ALL"]);
        let request = Request { add: &add, ..Request::default() };
        let sets = select(&HashSet::new(), &request, &poor).unwrap();
        assert_eq!(mask(sets.permitted().as_ref().unwrap()), poor.bounding);
        let add = strings(&["SYS_RESOURCE"]);
        let error = select(&HashSet::new(), &Request { add: &add, ..Request::default() }, &poor).unwrap_err();
        assert_eq!(error.code(), crate::Code::FailedPrecondition);
        assert_eq!(error.to_string(), "capabilities.add: this machine has no SYS_RESOURCE");
        let add = strings(&["SYS_RESOURCES"]);
        let error = select(&HashSet::new(), &Request { add: &add, ..Request::default() }, &poor).unwrap_err();
        assert_eq!(error.code(), crate::Code::InvalidArgument);
    }

    #[test]
    fn ambient_only_when_asked() {
        let full = facts(up_to(40));
        let ambient = strings(&["NET_BIND_SERVICE"]);
        let drop = strings(&["ALL"]);
        let request = Request { add: &[], drop: &drop, add_ambient: &ambient };
        let sets = select(&defaults::capabilities(), &request, &full).unwrap();
        for set in [sets.bounding(), sets.effective(), sets.permitted(), sets.inheritable(), sets.ambient()] {
            assert_eq!(mask(set.as_ref().unwrap()), 1 << 10);
        }
        let ambient = strings(&["ALL"]);
        assert!(
            select(&HashSet::new(), &Request { add_ambient: &ambient, ..Request::default() }, &full).is_err()
        );
    }
}
