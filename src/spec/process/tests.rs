use std::collections::HashSet;

use oci_spec::runtime::{BoxBuilder, Capability, LinuxSeccompBuilder, PosixRlimitBuilder};

use super::*;
use crate::{Code, defaults, facts::CgroupLayout};

fn facts() -> Facts {
    Facts {
        bounding: capabilities::up_to(40) & !(1 << 24),
        last_capability: 40,
        oom_score_adj_floor: Some(0),
        open_files_hard: None,
        cgroups: CgroupLayout::Absent,
        apparmor: false,
        selinux: false,
        thermal_throttle: Vec::new(),
    }
}

fn program(_: &LinuxSeccomp) -> Result<SeccompProgram, Box<dyn std::error::Error + Send + Sync>> {
    Ok(SeccompProgram { bytes: [6, 0, 0, 0, 0, 0, 0, 0].into(), flags: 0 })
}

fn spec() -> Spec {
    let mut spec = defaults::spec(&facts());
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(vec!["/bin/true".to_owned()]));
    }
    spec
}

fn with(change: impl FnOnce(&mut Process)) -> Result<(plan::Process, Vec<String>), Error> {
    let mut process = spec().process().clone().unwrap();
    change(&mut process);
    let facts = facts();
    let mut warnings = Vec::new();
    let lowered = lower(&process, SeccompProgram::default(), &[], &facts, &mut warnings);
    lowered.map(|process| (process, warnings))
}

#[test]
fn the_default_process() {
    let (process, warnings) = with(|_| {}).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(process.args, [b"/bin/true".to_vec()]);
    assert_eq!(process.env, [format!("PATH={}", defaults::PATH).into_bytes()]);
    assert_eq!((process.uid, process.gid, process.groups.as_slice()), (0, 0, &[0][..]));
    let caps = process.capabilities.unwrap();
    assert_eq!((caps.bounding, caps.effective, caps.permitted), (0xa804_25fb, 0xa804_25fb, 0xa804_25fb));
    assert_eq!((caps.inheritable, caps.ambient), (0, 0));
    assert_eq!(process.rlimits, [plan::Rlimit { resource: 7, soft: 1024, hard: 524_288 }]);
    assert!(process.seccomp.is_empty());
}

#[test]
fn capabilities_are_cut_to_what_the_kernel_grants() {
    let set = |names: &[Capability]| Some(names.iter().copied().collect::<HashSet<_>>());
    use Capability::{Chown, NetRaw, SysResource};
    let (process, warnings) = with(|process| {
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(set(&[Chown, NetRaw, SysResource]));
        sets.set_permitted(set(&[Chown, SysResource]));
        sets.set_effective(set(&[Chown, NetRaw, SysResource]));
        sets.set_inheritable(set(&[NetRaw]));
        sets.set_ambient(set(&[Chown, NetRaw]));
        process.set_capabilities(Some(sets));
    })
    .unwrap();
    let caps = process.capabilities.unwrap();
    let (chown, raw) = (1, 1 << 13);
    assert_eq!((caps.bounding, caps.permitted, caps.effective), (chown | raw, chown, chown));
    assert_eq!((caps.inheritable, caps.ambient), (raw, 0));
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert_eq!(warnings[0], "process.capabilities.bounding: SYS_RESOURCE cannot be granted");
    let (process, _) = with(|process| {
        process.set_capabilities(None);
    })
    .unwrap();
    assert_eq!(process.capabilities, Some(plan::Capabilities::default()));
}

#[test]
fn oom_scores_are_bounded_and_clamped() {
    for (asked, expected) in
        [(None, None), (Some(0), Some(0)), (Some(1000), Some(1000)), (Some(-997), Some(0))]
    {
        let (process, warnings) = with(|process| {
            process.set_oom_score_adj(asked);
        })
        .unwrap();
        assert_eq!(process.oom_score_adj, expected);
        assert_eq!(warnings.len(), usize::from(asked == Some(-997)));
    }
    for refused in [1001, -1001, i32::MIN] {
        let result = with(|process| {
            process.set_oom_score_adj(Some(refused));
        });
        assert_eq!(result.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn refused_processes() {
    let strings = |list: &[&str]| Some(list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    let limit = |soft: u64, hard: u64| PosixRlimitBuilder::default().soft(soft).hard(hard).build().unwrap();
    type Change = Box<dyn FnOnce(&mut Process)>;
    let changes: Vec<(&str, Change)> = vec![
        (
            "no args",
            Box::new(|p| {
                p.set_args(None);
            }),
        ),
        (
            "empty arg0",
            Box::new(move |p| {
                p.set_args(strings(&[""]));
            }),
        ),
        (
            "nul in arg",
            Box::new(move |p| {
                p.set_args(strings(&["a", "b\0"]));
            }),
        ),
        (
            "env",
            Box::new(move |p| {
                p.set_env(strings(&["PATH"]));
            }),
        ),
        (
            "HOME",
            Box::new(move |p| {
                p.set_env(strings(&["HOME=/\n"]));
            }),
        ),
        (
            "relative cwd",
            Box::new(|p| {
                p.set_cwd("x".into());
            }),
        ),
        (
            "leaked cwd",
            Box::new(|p| {
                p.set_cwd("/proc/self/fd/8".into());
            }),
        ),
        (
            "uid",
            Box::new(|p| {
                p.user_mut().set_uid(u32::MAX);
            }),
        ),
        (
            "gid",
            Box::new(|p| {
                p.user_mut().set_additional_gids(Some(vec![u32::MAX]));
            }),
        ),
        (
            "groups",
            Box::new(|p| {
                p.user_mut().set_additional_gids(Some((0..70_000).collect()));
            }),
        ),
        (
            "umask",
            Box::new(|p| {
                p.user_mut().set_umask(Some(0o1000));
            }),
        ),
        (
            "rlimit order",
            Box::new(move |p| {
                p.set_rlimits(Some(vec![limit(2, 1)]));
            }),
        ),
        (
            "rlimit twice",
            Box::new(move |p| {
                p.set_rlimits(Some(vec![limit(1, 1), limit(1, 1)]));
            }),
        ),
        (
            "apparmor",
            Box::new(|p| {
                p.set_apparmor_profile(Some("x".into()));
            }),
        ),
        (
            "selinux",
            Box::new(|p| {
                p.set_selinux_label(Some("a:b:c:s0".into()));
            }),
        ),
        (
            "scheduler",
            Box::new(|p| {
                p.set_scheduler(Some(Default::default()));
            }),
        ),
        (
            "ioprio",
            Box::new(|p| {
                p.set_io_priority(Some(Default::default()));
            }),
        ),
        (
            "console",
            Box::new(|p| {
                p.set_terminal(Some(true));
                p.set_console_size(Some(
                    BoxBuilder::default().height(70_000_u64).width(1_u64).build().unwrap(),
                ));
            }),
        ),
    ];
    for (name, change) in changes {
        assert!(with(change).is_err(), "{name}");
    }
}

#[test]
fn groups_hold_the_primary_one() {
    let (process, _) = with(|process| {
        process.user_mut().set_gid(1000);
        process.user_mut().set_additional_gids(Some(vec![7, 3, 7]));
    })
    .unwrap();
    assert_eq!(process.groups, [3, 7, 1000]);
}

#[test]
fn one_value_for_each_key_and_bytes_come_back() {
    let entries = ["A=1", "B=\u{fffd}", "A=2", "C=\u{fffd}"].map(str::to_owned);
    let binary = [b"B=\xff".to_vec(), b"D=\xfe".to_vec()];
    let env = env(&entries, &binary).unwrap();
    // D was removed from the spec since; C really is a replacement character.
    assert_eq!(env, [b"A=2".to_vec(), b"B=\xff".to_vec(), "C=\u{fffd}".as_bytes().to_vec()]);
}

#[test]
fn seccomp_is_compiled_or_the_launch_fails() {
    let profile = LinuxSeccompBuilder::default()
        .flags(vec![
            LinuxSeccompFilterFlag::SeccompFilterFlagLog,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
        ])
        .build()
        .unwrap();
    let facts = facts();
    let process = spec().process().clone().unwrap();
    let run = |profile: &LinuxSeccomp, hook: &SeccompHook| {
        let seccomp = compile(profile, Host { facts: &facts, seccomp: hook })?;
        lower(&process, seccomp, &[], &facts, &mut Vec::new())
    };
    let lowered = run(&profile, &program).unwrap();
    assert_eq!((lowered.seccomp.len(), lowered.seccomp_flags), (8, 2));
    let error = run(&profile, &|_| Err("no such syscall".into())).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(run(&profile, &|_| Ok(SeccompProgram::default())).is_err());
    let mut listening = profile;
    listening.set_listener_path(Some("/run/x".into()));
    assert_eq!(run(&listening, &program).unwrap_err().code(), Code::FailedPrecondition);
}

#[test]
fn exec_keeps_the_containers_restrictions() {
    let mut spec = spec();
    if let Some(process) = spec.process_mut() {
        process.set_no_new_privileges(Some(true));
        process.set_oom_score_adj(Some(500));
        process.set_cwd("/srv".into());
        process.user_mut().set_uid(1000);
        process.set_env(Some(vec!["PATH=/bin".into(), "X=\u{fffd}".into(), "HOME=/home/app".into()]));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(Some(LinuxSeccompBuilder::default().build().unwrap()));
    }
    let facts = facts();
    let host = Host { facts: &facts, seccomp: &program };
    let template = Template::of(&spec, host).unwrap();
    let exec = |request: &Exec<'_>| template.exec(request, &facts);
    let args = ["ls".to_owned(), "-l".to_owned()];
    let env = ["PATH=/sbin".to_owned(), "Y=1".to_owned()];
    let binary = [b"X=\xff".to_vec()];
    let request = Exec { args: &args, env: &env, binary_env: &binary, ..Exec::default() };
    let process = exec(&request).unwrap();
    assert_eq!(process.args, [b"ls".to_vec(), b"-l".to_vec()]);
    let text = |list: &[&str]| list.iter().map(|t| t.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(process.env[..1], text(&["PATH=/sbin"]));
    assert_eq!(process.env[1], b"X=\xff");
    assert_eq!(process.env[2..], text(&["HOME=/home/app", "Y=1"]));
    assert!(process.no_new_privileges && !process.terminal);
    assert_eq!((process.oom_score_adj, process.uid, process.cwd.as_slice()), (Some(500), 1000, &b"/srv"[..]));
    assert_eq!(process.seccomp.len(), 8);

    let root = user::User { uid: 0, gid: 0, additional_gids: vec![0], home: "/root".into(), username: None };
    let request = Exec {
        args: &args,
        terminal: true,
        size: Some((24, 80)),
        user: Some(&root),
        cwd: Some(Path::new("/tmp")),
        ..Exec::default()
    };
    let process = exec(&request).unwrap();
    assert_eq!((process.uid, process.rows, process.columns), (0, 24, 80));
    assert!(process.terminal);
    assert!(process.env.contains(&b"TERM=xterm".to_vec()) && process.env.contains(&b"HOME=/root".to_vec()));
    assert_eq!(process.cwd, b"/tmp");
    for cwd in ["relative", "/proc/self/fd/3"] {
        let request = Exec { args: &args, cwd: Some(Path::new(cwd)), ..Exec::default() };
        assert!(exec(&request).is_err(), "{cwd}");
    }
    assert!(exec(&Exec::default()).is_err());
    assert!(exec(&Exec { args: &args, env: &["X".to_owned()], ..Exec::default() }).is_err());
    let mut empty = spec;
    empty.set_process(None);
    assert!(Template::of(&empty, host).is_err());
}

#[test]
fn rlimit_numbers_are_the_kernels() {
    // Resource numbers as rustix passes them to prlimit64(2).
    use rustix::process::Resource;
    for (typ, resource) in [
        (PosixRlimitType::RlimitNofile, Resource::Nofile),
        (PosixRlimitType::RlimitNproc, Resource::Nproc),
        (PosixRlimitType::RlimitMemlock, Resource::Memlock),
        (PosixRlimitType::RlimitRttime, Resource::Rttime),
        (PosixRlimitType::RlimitStack, Resource::Stack),
    ] {
        assert_eq!(i64::from(rlimit_number(typ)), i64::from(resource as u32), "{typ}");
    }
}
