use std::os::fd::AsFd;

use proptest::prelude::*;

use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Mode, OFlags};

use super::*;
use crate::mounts::bind;
use crate::process::SeccompProgram;
use crate::{Code, Facts, defaults};

fn program(_: &LinuxSeccomp) -> Result<SeccompProgram, Box<dyn std::error::Error + Send + Sync>> {
    Ok(SeccompProgram { bytes: [6, 0, 0, 0, 0, 0, 0, 0].into(), flags: 0 })
}

fn any_file() -> OwnedFd {
    rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn context(facts: &Facts) -> Context<'_> {
    Context {
        rootfs: any_file(),
        cgroup: CgroupJoin::default(),
        stdio: Stdio::default(),
        pod: PodNamespaces::default(),
        sources: HashMap::new(),
        missing_source: MissingSource::Refuse,
        binary_env: Vec::new(),
        hold: false,
        host: Host { facts, seccomp: &program },
    }
}

fn spec(facts: &Facts, change: impl FnOnce(&mut Spec)) -> Spec {
    let mut spec = defaults::spec(facts);
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec!["true".to_owned()]));
    }
    change(&mut spec);
    spec
}

fn linux(spec: &mut Spec, change: impl FnOnce(&mut Linux)) {
    change(spec.linux_mut().as_mut().unwrap());
}

fn lowered(change: impl FnOnce(&mut Spec)) -> Result<Lowered, Error> {
    let facts = Facts::detect().unwrap();
    lower(&spec(&facts, change), context(&facts))
}

#[test]
fn the_default_spec() {
    let lowered = lowered(|_| {}).unwrap();
    let plan = &lowered.plan;
    assert!(lowered.warnings.is_empty(), "{:?}", lowered.warnings);
    assert_eq!(
        (plan.rootfs, plan.rootfs_read_only, plan.hold, plan.rootfs_propagation),
        (0, false, false, 0)
    );
    assert_eq!(plan.devices.len(), 6);
    assert!(plan.links.iter().any(|link| link.path == b"/dev/ptmx" && link.target == b"pts/ptmx"));
    assert!(plan.masked_paths.contains(&b"/proc/kcore".to_vec()));
    assert!(plan.read_only_paths.contains(&b"/proc/sys".to_vec()));
    let targets: Vec<String> =
        plan.mounts.iter().take(7).map(|mount| String::from_utf8(mount.target.clone()).unwrap()).collect();
    assert_eq!(targets, ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]);
    // Every slot that the plan names exists.
    assert_eq!(lowered.descriptors.len(), 1);
}

#[test]
fn the_privileged_spec() {
    let facts = Facts::detect().unwrap();
    let mut spec = defaults::privileged(&facts).unwrap();
    spec.process_mut().as_mut().unwrap().set_args(Some(vec!["true".to_owned()]));
    let lowered = lower(&spec, context(&facts)).unwrap();
    assert!(lowered.plan.masked_paths.is_empty() && lowered.plan.read_only_paths.is_empty());
    assert_eq!(lowered.plan.process.unwrap().capabilities.unwrap().effective, facts.bounding);
    assert!(lowered.plan.devices.len() >= 6);
}

#[test]
fn slots_are_in_order() {
    let facts = Facts::detect().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let spec = spec(&facts, |spec| {
        let mounts = vec![bind("/data", directory.path(), &["rbind", "ro"])];
        spec.set_mounts(Some(crate::mounts::merge(defaults::mounts(), mounts).unwrap()));
    });
    let context = Context {
        cgroup: CgroupJoin {
            tasks: vec![any_file(), any_file()],
            directory: Some(any_file()),
            oom_counter: Some(any_file()),
            group_oom_counter: None,
        },
        stdio: Stdio {
            log: Some(Log { directory: any_file(), path: "c/0.log".into() }),
            stdin: true,
            stdin_once: false,
        },
        hold: true,
        ..context(&facts)
    };
    let identities = |descriptor: &OwnedFd| {
        let stat = rustix::fs::fstat(descriptor.as_fd()).unwrap();
        (stat.st_dev, stat.st_ino)
    };
    let lowered = lower(&spec, context).unwrap();
    let data = lowered.plan.mounts.iter().find(|mount| mount.target == b"/data").unwrap();
    assert_eq!(data.source, Some(plan::MountSource::Tree(1)));
    let expected = rustix::fs::stat(directory.path()).unwrap();
    assert_eq!(identities(&lowered.descriptors[1]), (expected.st_dev, expected.st_ino));
    let cgroup = lowered.plan.cgroup.unwrap();
    assert_eq!((cgroup.tasks, cgroup.directory, cgroup.oom_counter), (vec![2, 3], Some(4), Some(5)));
    let stdio = lowered.plan.stdio.unwrap();
    assert_eq!(
        (stdio.log_directory, stdio.log_path.as_slice(), stdio.stdin),
        (Some(6), &b"c/0.log"[..], true)
    );
    assert_eq!(lowered.descriptors.len(), 7);
    assert!(lowered.plan.hold);
}

#[test]
fn sysctls_follow_the_namespaces() {
    let with = |pairs: &[(&str, &str)], namespace: Option<&str>| {
        lowered(|spec| {
            linux(spec, |linux| {
                let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
                linux.set_sysctl(Some(pairs.collect()));
                let mut namespaces = linux.namespaces().clone().unwrap();
                if let Some(typ) = namespace {
                    let mut namespace = oci_spec::runtime::LinuxNamespace::default();
                    namespace.set_typ(typ.try_into().unwrap());
                    namespaces.push(namespace);
                }
                linux.set_namespaces(Some(namespaces));
            });
        })
    };
    assert!(with(&[("net.ipv4.ip_forward", "1")], None).is_err());
    let lowered = with(&[("net/ipv4/ip_forward", "1")], Some("network")).unwrap();
    assert_eq!(lowered.plan.sysctls[0].key, "net.ipv4.ip_forward");
    assert!(with(&[("kernel.shmmax", "1")], Some("network")).is_err());
    assert!(with(&[("kernel.shmmax", "1")], Some("ipc")).is_ok());
    assert!(with(&[("kernel.core_pattern", "|/x")], Some("ipc")).is_err());
}

#[test]
fn host_names_need_a_namespace() {
    assert!(
        lowered(|spec| {
            spec.set_hostname(Some("web".into()));
        })
        .is_err()
    );
    let fresh = lowered(|spec| {
        spec.set_hostname(Some("web".into()));
        spec.set_domainname(Some("example".into()));
        linux(spec, |linux| {
            let mut namespaces = linux.namespaces().clone().unwrap();
            let mut uts = oci_spec::runtime::LinuxNamespace::default();
            uts.set_typ(oci_spec::runtime::LinuxNamespaceType::Uts);
            namespaces.push(uts);
            linux.set_namespaces(Some(namespaces));
        });
    });
    let keys: Vec<_> = fresh.unwrap().plan.sysctls.into_iter().map(|s| (s.key, s.value)).collect();
    let expected = [("kernel.hostname", "web"), ("kernel.domainname", "example")];
    assert_eq!(keys, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert!(
        lowered(|spec| {
            spec.set_hostname(Some("a\nb".into()));
        })
        .is_err()
    );
}

#[test]
fn annotations_change_nothing() {
    // CVE-2023-6476, CVE-2024-3154: an annotation is never an instruction.
    let plain = lowered(|_| {}).unwrap().plan;
    let annotated = lowered(|spec| {
        let keys = [
            "org.systemd.property.ExecStopPost",
            "io.kubernetes.cri-o.UnifiedCgroup.x",
            "run.oci.seccomp.receiver",
            "io.podman.annotations.checkpoint.name",
        ];
        spec.set_annotations(Some(keys.map(|key| (key.to_owned(), "['/bin/sh']".to_owned())).into()));
    });
    assert_eq!(annotated.unwrap().plan, plain);
}

#[test]
fn what_the_plan_cannot_say_is_refused_by_name() {
    type Change = fn(&mut Linux);
    let changes: [(&str, Change); 6] = [
        ("linux.uidMappings", |linux| {
            linux.set_uid_mappings(Some(vec![Default::default()]));
        }),
        ("linux.gidMappings", |linux| {
            linux.set_gid_mappings(Some(vec![Default::default()]));
        }),
        ("linux.netDevices", |linux| {
            linux.set_net_devices(Some([("eth0".to_owned(), Default::default())].into()));
        }),
        ("linux.intelRdt", |linux| {
            linux.set_intel_rdt(Some(Default::default()));
        }),
        ("linux.timeOffsets", |linux| {
            linux.set_time_offsets(Some([("boottime".to_owned(), Default::default())].into()));
        }),
        ("linux.rootfsPropagation", |linux| {
            linux.set_rootfs_propagation(Some("unbindable".into()));
        }),
    ];
    for (field, change) in changes {
        let error = lowered(|spec| linux(spec, change)).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    }
    let hooks = oci_spec::runtime::HooksBuilder::default()
        .poststop(vec![oci_spec::runtime::HookBuilder::default().path("/bin/true").build().unwrap()])
        .build()
        .unwrap();
    assert!(
        lowered(|spec| {
            spec.set_hooks(Some(hooks));
        })
        .is_err()
    );
    assert!(
        lowered(|spec| {
            spec.set_hooks(Some(Default::default()));
        })
        .is_ok()
    );
    for missing in [
        (|spec: &mut Spec| {
            spec.set_linux(None);
        }) as fn(&mut Spec),
        |spec| {
            spec.set_process(None);
        },
        |spec| {
            spec.set_mounts(None).linux_mut().as_mut().map(|l| l.set_devices(Some(vec![Default::default()])));
        },
    ] {
        assert!(lowered(missing).is_err());
    }
}

#[test]
fn hostile_paths_and_propagation() {
    for path in ["", "x", "/", "/..", "/a\0b"] {
        for set in [Linux::set_masked_paths, Linux::set_readonly_paths] {
            let result = lowered(|spec| {
                linux(spec, |linux| {
                    set(linux, Some(vec![path.to_owned()]));
                })
            });
            assert!(result.is_err(), "{path:?}");
        }
    }
    for (text, expected) in
        [("rslave", attr::SLAVE), ("shared", attr::SHARED), ("rprivate", attr::PRIVATE), ("", 0)]
    {
        let result = lowered(|spec| {
            linux(spec, |linux| {
                linux.set_rootfs_propagation(Some(text.into()));
            })
        });
        assert_eq!(result.unwrap().plan.rootfs_propagation, expected);
    }
    assert!(
        lowered(|spec| linux(spec, |linux| {
            linux.set_rootfs_propagation(Some("x".into()));
        }))
        .is_err()
    );
    let facts = Facts::detect().unwrap();
    for path in ["../x", "/x", ""] {
        let log = Log { directory: any_file(), path: path.into() };
        let stdio = Stdio { log: Some(log), ..Stdio::default() };
        assert!(lower(&spec(&facts, |_| {}), Context { stdio, ..context(&facts) }).is_err(), "{path}");
    }
}

#[test]
fn a_failed_lowering_keeps_no_descriptor() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let inode = std::fs::metadata(directory.path()).unwrap().ino();
        let same = |path: std::path::PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.ino() == inode);
        links.filter(|link| same(link.as_ref().unwrap().path())).count()
    };
    let before = open();
    let result = lowered(|spec| {
        let mounts = vec![
            bind("/a", directory.path(), &["rbind"]),
            bind("/b", directory.path(), &["rbind"]),
            bind("/c", "/nonexistent", &["rbind"]),
        ];
        spec.set_mounts(Some(mounts));
    });
    assert_eq!(result.unwrap_err().code(), Code::NotFound);
    assert_eq!(open(), before);
}

/// Every text and number of a document, as a path of keys.
fn leaves(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{path}/{key}"), found));
        }
        serde_json::Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(index, value)| leaves(value, &format!("{path}/{index}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

fn slots_of(plan: &plan::LaunchPlan) -> Vec<plan::Slot> {
    let mut slots = vec![plan.rootfs];
    slots.extend(plan.namespaces.iter().flat_map(|namespaces| &namespaces.join).map(|join| join.slot));
    slots.extend(plan.devices.iter().filter_map(|device| device.fallback));
    slots.extend(plan.mounts.iter().filter_map(|mount| match mount.source {
        Some(plan::MountSource::Tree(slot)) => Some(slot),
        _ => None,
    }));
    slots
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn hostile_specs_are_refused_or_sound(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            prop::sample::select(vec![
                "", "/", "..", "/../..", "/proc", "/proc/self/fd/3", "/sys", "/dev", "/a\0b", "x=\ny", "bind", "rbind",
                "rslave", "tmpfs", "proc", "-1", "4294967295", "network", "ro", "c", "p", "ALL",
            ]).prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            any::<u32>().prop_map(serde_json::Value::from),
            "[a-z/.=\u{0}-\u{1f}]{0,12}".prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ]), 1..6),
    ) {
        let facts = Facts::detect().unwrap();
        let spec = spec(&facts, |spec| {
            let mut mounts = defaults::mounts();
            mounts.push(bind("/data", "/tmp", &["rbind", "rro"]));
            spec.set_mounts(Some(mounts));
            spec.set_hostname(Some("h".into()));
            linux(spec, |linux| {
                linux.set_sysctl(Some([("net.core.somaxconn".to_owned(), "1".to_owned())].into()));
                linux.set_devices(Some(crate::devices::host_device(Path::new("/dev/null"), Path::new("/dev/n"), "").unwrap().nodes));
                let mut namespaces = linux.namespaces().clone().unwrap();
                for typ in ["network", "uts"] {
                    let mut namespace = oci_spec::runtime::LinuxNamespace::default();
                    namespace.set_typ(typ.try_into().unwrap());
                    namespaces.push(namespace);
                }
                linux.set_namespaces(Some(namespaces));
                linux.set_rootfs_propagation(Some("private".into()));
            });
        });
        prop_assert!(lower(&spec, context(&facts)).is_ok());
        let mut document = serde_json::to_value(&spec).unwrap();
        let mut paths = Vec::new();
        leaves(&document, "", &mut paths);
        for (index, value) in changes {
            let path = index.get(&paths);
            if let Some(leaf) = document.pointer_mut(path) {
                *leaf = value;
            }
        }
        let Ok(spec) = serde_json::from_value::<Spec>(document) else { return Ok(()) };
        let Ok(lowered) = lower(&spec, context(&facts)) else { return Ok(()) };
        let plan = &lowered.plan;
        let mut targets: Vec<&[u8]> = plan.mounts.iter().map(|mount| mount.target.as_slice()).collect();
        targets.extend(plan.devices.iter().map(|device| device.path.as_slice()));
        targets.extend(plan.masked_paths.iter().chain(&plan.read_only_paths).map(Vec::as_slice));
        targets.push(&plan.process.as_ref().unwrap().cwd);
        for target in targets {
            prop_assert!(target.starts_with(b"/") && !target.contains(&0));
            prop_assert!(!target.split(|byte| *byte == b'/').any(|part| part == b".."));
        }
        for slot in slots_of(plan) {
            prop_assert!(usize::try_from(slot).unwrap() < lowered.descriptors.len());
        }
        let process = plan.process.as_ref().unwrap();
        prop_assert!(process.groups.contains(&process.gid));
        prop_assert!(process.args.iter().chain(&process.env).all(|text| !text.contains(&0)));
        prop_assert_eq!(process.capabilities.unwrap().bounding & !facts.bounding, 0);
        for sysctl in &plan.sysctls {
            prop_assert!(["net.", "kernel.hostname", "kernel.domainname"].iter().any(|key| sysctl.key.starts_with(key)));
            prop_assert!(!sysctl.value.contains(['\0', '\n']));
        }
    }
}
