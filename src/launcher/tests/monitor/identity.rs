//! Users, capabilities, limits, seccomp, signals, descriptors.

use crate::harness::*;
use pinnace_launcher::plan::{Capabilities, Rlimit};

const ALL: u64 = u64::MAX;

fn status(output: &str, key: &str) -> String {
    let line = output.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.unwrap_or_else(|| panic!("{key} in {output}")).trim().to_owned()
}

#[test]
fn the_user_is_exactly_who_was_asked_for() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::shell(&image, "id; cat /proc/self/status; echo err >/proc/self/fd/2");
    (planned.process().uid, planned.process().gid) = (1000, 2000);
    planned.process().groups = vec![2000, 3000, 4000];
    let (output, exited) = pod.run_planned("c1", planned).unwrap();
    assert!(output.starts_with("uid=1000 gid=2000 groups=2000,3000,4000\n"), "{output}");
    assert_eq!(status(&output, "Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(status(&output, "Gid"), "2000\t2000\t2000\t2000");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(&output, set), "0000000000000000", "{set}");
    }
    // The pipes belong to the user, who can open /dev/stderr anew.
    assert_eq!(exited.code, 0, "{output}");
    assert!(output.ends_with("err\n"), "{output}");

    for (uid, gid, groups) in [(u32::MAX, 0, vec![]), (0, u32::MAX, vec![]), (0, 0, vec![u32::MAX])] {
        let mut planned = Planned::new(&image, &["true"]);
        (planned.process().uid, planned.process().gid) = (uid, gid);
        planned.process().groups = groups;
        assert_eq!(pod.launch("c2", &planned).unwrap_err().stage, "user");
    }
}

#[test]
fn capabilities_are_exact() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let run = |pod: &mut Pod, id: &str, uid: u32, capabilities| {
        let mut planned = Planned::new(&image, &["cat", "/proc/self/status"]);
        planned.process().uid = uid;
        planned.process().capabilities = Some(capabilities);
        pod.run_planned(id, planned).unwrap().0
    };
    let default = Capabilities {
        bounding: DEFAULT_CAPABILITIES,
        effective: DEFAULT_CAPABILITIES,
        permitted: DEFAULT_CAPABILITIES,
        ..Capabilities::default()
    };
    let output = run(&mut pod, "root", 0, default);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(&output, set), "00000000a80425fb", "{set}");
    }
    assert_eq!(status(&output, "CapInh"), "0000000000000000");
    assert_eq!(status(&output, "CapAmb"), "0000000000000000");

    let output = run(&mut pod, "none", 0, Capabilities::default());
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(&output, set), "0000000000000000", "{set}");
    }

    let net_bind = 1 << 10;
    let ambient = Capabilities { inheritable: net_bind, ambient: net_bind, ..default };
    let output = run(&mut pod, "ambient", 1000, ambient);
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(status(&output, set), "0000000000000400", "{set}");
    }

    // Privileged: everything that the runtime itself has.
    let all = Capabilities { bounding: ALL, effective: ALL, permitted: ALL, ..Capabilities::default() };
    let output = run(&mut pod, "privileged", 0, all);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(status(&output, "CapEff"), status(&own, "CapEff"));
    assert_eq!(status(&output, "CapBnd"), status(&own, "CapBnd"));
}

#[test]
fn the_program_starts_with_a_clean_slate() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let script =
        "ls -l /proc/self/fd | grep -v total; cat /proc/self/status; readlink /proc/self/fd/0; pwd; env";
    let (output, _) = pod.run_planned("c1", Planned::shell(&image, script)).unwrap();
    // The directory that ls itself has open is closed again when it asks for it.
    let descriptors: Vec<&str> = output.lines().filter(|line| line.contains(" -> ")).collect();
    assert_eq!(descriptors.len(), 3, "{descriptors:?}");
    assert_eq!(status(&output, "SigBlk"), "0000000000000000");
    assert_eq!(status(&output, "SigIgn"), "0000000000000000");
    assert_eq!(status(&output, "SigCgt").chars().filter(|digit| *digit != '0').count(), 0);
    assert_eq!(status(&output, "Umask"), "0022");
    assert_eq!(status(&output, "NoNewPrivs"), "1");
    assert_eq!(status(&output, "Seccomp"), "0");
    assert!(output.contains("\n/dev/null\n"), "{output}");
    assert!(output.ends_with("PATH=/usr/bin:/bin\n") || output.contains("PWD=/"), "{output}");

    let mut planned =
        Planned::shell(&image, "cat /proc/self/status; cat /proc/self/sessionid; ps -o pid,sid");
    planned.process().umask = Some(0o077);
    planned.process().no_new_privileges = false;
    let (output, _) = pod.run_planned("c2", planned).unwrap();
    assert_eq!(status(&output, "Umask"), "0077");
    assert_eq!(status(&output, "NoNewPrivs"), "0");
}

#[test]
fn limits_are_set() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::new(&image, &["cat", "/proc/self/limits", "/proc/self/oom_score_adj"]);
    // RLIMIT_NOFILE, RLIMIT_CORE
    planned.process().rlimits =
        vec![Rlimit { resource: 7, soft: 100, hard: 200 }, Rlimit { resource: 4, soft: 0, hard: 0 }];
    planned.process().oom_score_adj = Some(321);
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    let words = |name: &str| {
        let line = output.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words("Max open files"), ["100", "200"]);
    assert_eq!(words("Max core file size"), ["0", "0"]);
    assert!(output.ends_with("\n321\n"), "{output}");

    let mut planned = Planned::new(&image, &["true"]);
    planned.process().rlimits = vec![Rlimit { resource: 99, soft: 1, hard: 1 }];
    assert_eq!(pod.launch("c2", &planned).unwrap_err().stage, "rlimit");
    // What it is already needs no privilege, anything lower may.
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let mut planned = Planned::new(&image, &["true"]);
    planned.process().oom_score_adj = Some(own);
    pod.launch("c3", &planned).unwrap();
}

/// A program that answers one system call with an errno and allows the rest.
fn refuse(number: i64, errno: u32) -> Vec<u8> {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    [
        // Load the number; equal: return the errno, otherwise allow.
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, u32::try_from(number).unwrap()),
        instruction(0x06, 0, 0, 0x0005_0000 | errno),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat()
}

#[test]
fn seccomp_is_in_force_with_and_without_no_new_privs() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    for (id, no_new_privileges, uid) in
        [("a", true, 0), ("b", false, 0), ("c", true, 1000), ("d", false, 1000)]
    {
        let mut planned = Planned::shell(&image, "cat /proc/self/status; mkdir /tmp/x");
        planned.process().seccomp = refuse(rustix_mkdir(), 95);
        planned.process().no_new_privileges = no_new_privileges;
        planned.process().uid = uid;
        let (output, _) = pod.run_planned(id, planned).unwrap();
        assert_eq!(status(&output, "Seccomp"), "2", "{id}");
        assert!(output.contains("Operation not supported"), "{id}: {output}");
        // CAP_SYS_ADMIN was needed to load it, but is not left over.
        let effective = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
        assert_eq!(status(&output, "CapEff"), effective, "{id}");
        assert_eq!(status(&output, "CapBnd"), "00000000a80425fb", "{id}");
    }
    let mut planned = Planned::new(&image, &["true"]);
    planned.process().seccomp = vec![0; 12];
    assert_eq!(pod.launch("e", &planned).unwrap_err().stage, "seccomp");
    // A profile that forbids execve itself: a failed launch, not a container that never reports.
    let mut planned = Planned::new(&image, &["true"]);
    planned.process().seccomp = refuse(59, 1);
    let failure = pod.launch("f", &planned).unwrap_err();
    assert_eq!((failure.stage.as_str(), failure.errno), ("exec", 1));
}

/// `mkdir` on x86_64.
fn rustix_mkdir() -> i64 {
    83
}

#[test]
fn hostile_arguments_are_refused() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    for env in ["NOVALUE", "=x", "", "A=b\0c"] {
        let mut planned = Planned::new(&image, &["true"]);
        planned.process().env.push(env.into());
        assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "exec", "{env}");
    }
    let planned = Planned::new(&image, &["tr\0ue"]);
    assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "exec");
    // Longer than the kernel takes (MAX_ARG_STRLEN).
    let planned = Planned::new(&image, &["true", &"x".repeat(1 << 20)]);
    let failure = pod.launch("c1", &planned).unwrap_err();
    assert_eq!((failure.stage.as_str(), failure.errno), ("exec", 7));
    for label in ["apparmor", "selinux"] {
        // No such module here: asked for and not applied is a failure, never a shrug.
        let mut planned = Planned::new(&image, &["true"]);
        match label {
            "apparmor" => planned.process().apparmor = "profile".to_owned(),
            _ => planned.process().selinux = "system_u:system_r:container_t:s0".to_owned(),
        }
        assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, label);
    }
}
