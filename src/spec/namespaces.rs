//! The spec's list of namespaces, read against the pod in whose namespaces the monitor already lives.
//!
//! | in the list | the pod owns one, path is the pod's | another path | no path | absent |
//! |---|---|---|---|---|
//! | network, ipc, uts | inherited from the monitor | joined | fresh | the host's; an error when the pod owns one |
//! | pid | the pod's init, or the target container | joined | fresh | the host's |
//! | cgroup | | joined | fresh | the host's |
//! | mount | | refused | fresh | refused |
//! | user | inherited from the pod | refused | refused | the host's; an error when the pod owns one |

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use pinnace_launcher::plan;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::lower::{PodNamespaces, Slots};
use crate::sysctl::OwnedNamespaces;
use crate::{Error, validate};

const FIELD: &str = "linux.namespaces";

/// `CLONE_NEW*` (clone(2)).
pub(crate) const NEW_TIME: u64 = 0x80;
pub(crate) const NEW_CGROUP: u64 = 0x0200_0000;
pub(crate) const NEW_UTS: u64 = 0x0400_0000;
pub(crate) const NEW_IPC: u64 = 0x0800_0000;
pub(crate) const NEW_PID: u64 = 0x2000_0000;
pub(crate) const NEW_NETWORK: u64 = 0x4000_0000;

/// The plan's namespaces and what follows from them.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) plan: plan::Namespaces,
    pub(crate) owned: OwnedNamespaces,
    /// The cgroup namespace is the host's.
    pub(crate) host_cgroup: bool,
}

impl Lowered {
    /// A UTS namespace of this container alone.
    pub(crate) fn fresh_uts(&self) -> bool {
        self.plan.create & NEW_UTS != 0
    }
}

pub(crate) fn lower(
    list: &[LinuxNamespace],
    pod: &PodNamespaces,
    slots: &mut Slots,
) -> Result<Lowered, Error> {
    let find = |typ: LinuxNamespaceType| list.iter().find(|namespace| namespace.typ() == typ);
    for (index, namespace) in list.iter().enumerate() {
        if list[..index].iter().any(|earlier| earlier.typ() == namespace.typ()) {
            return Err(Error::invalid(FIELD, format!("{} is given twice", name(namespace.typ()))));
        }
    }
    match find(LinuxNamespaceType::Mount) {
        Some(namespace) if namespace.path().is_none() => {}
        Some(_) => return Err(Error::unsupported(FIELD, "joining a mount namespace")),
        None => return Err(Error::invalid(FIELD, "a container needs a mount namespace")),
    }
    let pod_user =
        match (find(LinuxNamespaceType::User).map(|namespace| namespace.path().as_deref()), &pod.user) {
            (None, None) => false,
            (Some(path), Some(pods)) if path == Some(pods.as_path()) => true,
            (None, Some(_)) => {
                return Err(Error::invalid(FIELD, "no user namespace, but the pod has its own"));
            }
            (Some(_), _) => return Err(Error::unsupported(FIELD, "a user namespace that is not the pod's")),
        };

    let mut lowered = Lowered {
        plan: plan::Namespaces::default(),
        owned: OwnedNamespaces::default(),
        host_cgroup: find(LinuxNamespaceType::Cgroup).is_none(),
    };
    for (typ, flag, pods) in [
        (LinuxNamespaceType::Network, NEW_NETWORK, pod.network.as_deref()),
        (LinuxNamespaceType::Ipc, NEW_IPC, pod.ipc.as_deref()),
        (LinuxNamespaceType::Uts, NEW_UTS, pod.uts.as_deref()),
        (LinuxNamespaceType::Cgroup, NEW_CGROUP, None),
        (LinuxNamespaceType::Time, NEW_TIME, None),
    ] {
        let owned = match find(typ).map(|namespace| namespace.path().as_deref()) {
            None if pods.is_some() => {
                return Err(Error::invalid(
                    FIELD,
                    format!("no {} namespace, but the pod has its own", name(typ)),
                ));
            }
            None => false,
            Some(path) if path.is_some() && path == pods => true,
            Some(Some(path)) => {
                let namespace = open(typ, path)?;
                lowered.plan.join.push(plan::NamespaceJoin { kind: flag, slot: slots.push(namespace) });
                // Whoever made it decides about its parameters.
                false
            }
            Some(None) => {
                lowered.plan.create |= flag;
                true
            }
        };
        match typ {
            LinuxNamespaceType::Network => lowered.owned.network = owned,
            LinuxNamespaceType::Ipc => lowered.owned.ipc = owned,
            LinuxNamespaceType::Uts => lowered.owned.uts = owned,
            _ => {}
        }
    }
    match find(LinuxNamespaceType::Pid).map(|namespace| namespace.path().as_deref()) {
        None => lowered.plan.host_pid = true,
        Some(None) => lowered.plan.create |= NEW_PID,
        Some(Some(path)) => match &pod.target {
            Some((target, container)) if target == path => {
                lowered.plan.target_container.clone_from(container)
            }
            _ if pod.pid.as_deref() == Some(path) => lowered.plan.pod_pid = true,
            _ => {
                let namespace = open(LinuxNamespaceType::Pid, path)?;
                lowered.plan.join.push(plan::NamespaceJoin { kind: NEW_PID, slot: slots.push(namespace) });
            }
        },
    }
    lowered.plan.pod_user = pod_user;
    Ok(lowered)
}

/// Opens a namespace file and makes sure that it is one of the kind asked for, not any file of that path.
fn open(typ: LinuxNamespaceType, path: &Path) -> Result<OwnedFd, Error> {
    validate::host_path(FIELD, path)?;
    let failed = |errno| Error::Namespace { kind: name(typ), path: path.to_owned(), errno };
    // Reading a device or waiting at a fifo would be a side effect: look at the inode before opening it for real.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let pin = rustix::fs::openat2(
        rustix::fs::CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )
    .map_err(failed)?;
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    if rustix::fs::fstatfs(&pin).map_err(failed)?.f_type != NSFS_MAGIC {
        return Err(Error::invalid(FIELD, format!("{} is not a namespace", path.display())));
    }
    let namespace =
        rustix::fs::open(crate::lower::proc_path(pin.as_fd()), flags, Mode::empty()).map_err(failed)?;
    let link =
        rustix::fs::readlink(crate::lower::proc_path(namespace.as_fd()), Vec::new()).map_err(failed)?;
    let kind = link.to_string_lossy().split(':').next().map(str::to_owned);
    // `pid_for_children` and `time_for_children` files read as `pid:[...]` and `time:[...]` too.
    if kind.as_deref() != Some(file(typ)) {
        return Err(Error::invalid(FIELD, format!("{} is not a {} namespace", path.display(), name(typ))));
    }
    Ok(namespace)
}

fn name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

/// Name of the file below `/proc/<pid>/ns`.
fn file(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Network => "net",
        other => name(other),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use oci_spec::runtime::LinuxNamespaceBuilder;

    use super::*;

    fn list(entries: &[(LinuxNamespaceType, Option<&str>)]) -> Vec<LinuxNamespace> {
        let build = |(typ, path): &(LinuxNamespaceType, Option<&str>)| {
            let builder = LinuxNamespaceBuilder::default().typ(*typ);
            let builder = if let Some(path) = path { builder.path(*path) } else { builder };
            builder.build().unwrap()
        };
        entries.iter().map(build).collect()
    }

    fn lowered(
        entries: &[(LinuxNamespaceType, Option<&str>)],
        pod: &PodNamespaces,
    ) -> Result<Lowered, Error> {
        lower(&list(entries), pod, &mut Slots::new())
    }

    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};

    #[test]
    fn inherited_from_the_pod() {
        let pod = PodNamespaces {
            network: Some("/run/netns/a".into()),
            ipc: Some("/proc/7/ns/ipc".into()),
            uts: Some("/proc/7/ns/uts".into()),
            user: None,
            pid: Some("/proc/8/ns/pid".into()),
            target: Some((PathBuf::from("/proc/9/ns/pid"), "abc".into())),
        };
        let base = [
            (Mount, None),
            (Network, Some("/run/netns/a")),
            (Ipc, Some("/proc/7/ns/ipc")),
            (Uts, Some("/proc/7/ns/uts")),
            (Cgroup, None),
        ];
        let with = |pid: Option<&'static str>| [&base[..], &[(Pid, pid)]].concat();
        let shared = lowered(&with(Some("/proc/8/ns/pid")), &pod).unwrap();
        assert_eq!(shared.plan, plan::Namespaces { create: NEW_CGROUP, pod_pid: true, ..Default::default() });
        assert_eq!(shared.owned, OwnedNamespaces { network: true, ipc: true, uts: true });
        assert!(!shared.host_cgroup);
        let target = lowered(&with(Some("/proc/9/ns/pid")), &pod).unwrap();
        assert_eq!((target.plan.target_container.as_str(), target.plan.pod_pid), ("abc", false));
        let own = lowered(&with(None), &pod).unwrap();
        assert_eq!(own.plan.create, NEW_CGROUP | NEW_PID);
        let host = lowered(&base, &pod).unwrap();
        assert!(host.plan.host_pid);
        // A container of a pod with its own network cannot slip out to the host's.
        let error = lowered(&[(Mount, None), (Ipc, None), (Uts, None)], &pod).unwrap_err();
        assert!(error.to_string().contains("network"), "{error}");
    }

    #[test]
    fn host_namespaces() {
        let host = lowered(&[(Mount, None)], &PodNamespaces::default()).unwrap();
        assert_eq!(host.plan, plan::Namespaces { host_pid: true, ..Default::default() });
        assert_eq!(host.owned, OwnedNamespaces::default());
        assert!(host.host_cgroup);
    }

    #[test]
    fn refused_lists() {
        let pod = PodNamespaces::default();
        for refused in [
            &[][..],
            &[(Pid, None)],
            &[(Mount, Some("/proc/self/ns/mnt"))],
            &[(Mount, None), (User, None)],
            &[(Mount, None), (Pid, None), (Pid, None)],
            &[(Mount, None), (Network, Some("relative"))],
            &[(Mount, None), (Network, Some("/nonexistent/ns"))],
            &[(Mount, None), (Network, Some("/etc/passwd"))],
            &[(Mount, None), (Network, Some("/dev/null"))],
            &[(Mount, None), (Network, Some("/proc/self/ns/ipc"))],
            &[(Mount, None), (Network, Some("/proc/self/ns/net\0"))],
            &[(Mount, None), (Pid, Some("/proc/self/ns/net"))],
        ] {
            assert!(lowered(refused, &pod).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn joining_a_namespace_owns_nothing() {
        let entries =
            [(Mount, None), (Network, Some("/proc/thread-self/ns/net")), (Uts, Some("/proc/self/ns/uts"))];
        let mut slots = Slots::new();
        let lowered = lower(&list(&entries), &PodNamespaces::default(), &mut slots).unwrap();
        let kinds: Vec<u64> = lowered.plan.join.iter().map(|join| join.kind).collect();
        assert_eq!(kinds, [NEW_NETWORK, NEW_UTS]);
        assert_eq!(lowered.owned, OwnedNamespaces::default());
        assert_eq!(slots.into_descriptors().len(), 2);
    }
}
