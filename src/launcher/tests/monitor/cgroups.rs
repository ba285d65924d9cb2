//! Joining cgroups, and the OOM killer's traces. Version 1 hierarchies are tested where the machine has them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::harness::*;
use pinnace_launcher::plan::CgroupJoin;

/// A cgroup of our own that goes away again.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(hierarchy: &str, name: &str) -> Option<Self> {
        let hierarchy = Path::new("/sys/fs/cgroup").join(hierarchy);
        if !hierarchy.join("cgroup.procs").exists() {
            return None;
        }
        let path = hierarchy.join(format!("pinnace-launcher-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Some(Self(path))
    }

    fn open(&self, file: &str, flags: OFlags) -> OwnedFd {
        openat(CWD, self.0.join(file), flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// Where cgroup v2 is, on a machine with one hierarchy or with both kinds.
fn unified() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "" } else { "unified" }
}

#[test]
fn containers_and_sessions_join_version_1_by_themselves() {
    let Some(cgroup) = Cgroup::new("memory", "join") else {
        println!("skipped: no version 1 memory hierarchy");
        return;
    };
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned =
        Planned::shell(&image, "cat /proc/self/cgroup; while ! test -e /tmp/stop; do sleep 0.01; done");
    let tasks = planned.slot(cgroup.open("tasks", OFlags::WRONLY));
    planned.plan.cgroup = Some(CgroupJoin { tasks: vec![tasks], ..CgroupJoin::default() });
    planned.plan.namespaces.as_mut().unwrap().create = NEWCGROUP;
    pod.log_to("c1", &mut planned);
    let pid = pod.launch("c1", &planned).unwrap().pid;
    let seen = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let name = cgroup.0.file_name().unwrap().to_str().unwrap();
    assert!(seen.contains(&format!(":memory:/{name}\n")), "{seen}");
    // The namespace was made inside the cgroup, so that it is its root.
    eventually("the container has looked", || pod.log("c1").contains(":memory:"));
    assert!(pod.content("c1").contains(":memory:/\n"), "{}", pod.content("c1"));
    assert!(fs::read_to_string(cgroup.0.join("tasks")).unwrap().contains(&pid.to_string()));

    let exec = pinnace_launcher::protocol::Exec {
        exec_id: "e1".to_owned(),
        container_id: "c1".to_owned(),
        process: Some(process(&["sleep", "600"])),
        cgroup: Some(CgroupJoin { tasks: vec![0], ..CgroupJoin::default() }),
        stdio: None,
        foreign: None,
        external: None,
    };
    let tasks = cgroup.open("tasks", OFlags::WRONLY);
    let request = pinnace_launcher::protocol::Request::Exec(exec);
    let reply = pod.call(request, &[std::os::fd::AsFd::as_fd(&tasks)]).unwrap();
    let pinnace_launcher::protocol::Reply::Launched(session) = reply else { panic!("{reply:?}") };
    assert!(fs::read_to_string(cgroup.0.join("tasks")).unwrap().contains(&session.pid.to_string()));
    fs::write(image.join("tmp/stop"), "").unwrap();
    pod.exit("c1");
    assert_eq!(pod.exit_of("c1", "e1").signal, 9, "it dies with its PID namespace");
}

#[test]
fn containers_are_born_into_version_2() {
    let Some(cgroup) = Cgroup::new(unified(), "born") else {
        println!("skipped: no version 2 hierarchy");
        return;
    };
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::new(&image, &["sleep", "600"]);
    let directory = planned.slot(cgroup.open("", OFlags::RDONLY | OFlags::DIRECTORY));
    planned.plan.cgroup = Some(CgroupJoin { directory: Some(directory), ..CgroupJoin::default() });
    let pid = pod.launch("c1", &planned).unwrap().pid;
    let seen = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let name = cgroup.0.file_name().unwrap().to_str().unwrap();
    assert!(seen.contains(&format!("0::/{name}\n")), "{seen}");
    pod.kill("c1", 9).unwrap();
    pod.exit("c1");
    // What fails before execve leaves an empty cgroup, too.
    let mut planned = Planned::new(&image, &["nosuch"]);
    let directory = planned.slot(cgroup.open("", OFlags::RDONLY | OFlags::DIRECTORY));
    planned.plan.cgroup = Some(CgroupJoin { directory: Some(directory), ..CgroupJoin::default() });
    pod.launch("c2", &planned).unwrap_err();
    assert_eq!(fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap(), "");
    fs::remove_dir(&cgroup.0).unwrap();
    fs::create_dir(&cgroup.0).unwrap();
}

#[test]
fn the_oom_killer_is_told_from_other_killers() {
    let Some(cgroup) = Cgroup::new("memory", "oom") else {
        println!("skipped: no version 1 memory hierarchy");
        return;
    };
    fs::write(cgroup.0.join("memory.limit_in_bytes"), "8M").unwrap();
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let launch = |pod: &mut Pod, id: &str, args: &[&str]| {
        let mut planned = Planned::new(&image, args);
        let tasks = planned.slot(cgroup.open("tasks", OFlags::WRONLY));
        let counter = planned.slot(cgroup.open("memory.oom_control", OFlags::RDONLY));
        planned.plan.cgroup =
            Some(CgroupJoin { tasks: vec![tasks], oom_counter: Some(counter), ..CgroupJoin::default() });
        pod.launch(id, &planned).unwrap();
    };
    // One block of 64 MiB.
    launch(&mut pod, "c1", &["dd", "if=/dev/zero", "of=/dev/null", "bs=67108864", "count=1"]);
    let exited = pod.exit("c1");
    assert_eq!((exited.code, exited.signal, exited.oom_killed), (137, 9, true));
    // The same cgroup, killed by us: the count did not grow.
    launch(&mut pod, "c2", &["sleep", "600"]);
    pod.kill("c2", 9).unwrap();
    let exited = pod.exit("c2");
    assert_eq!((exited.signal, exited.oom_killed), (9, false));
    // A child of it was killed, the container itself ended in peace.
    launch(&mut pod, "c3", &["sh", "-c", "dd if=/dev/zero of=/dev/null bs=67108864 count=1; exit 0"]);
    let exited = pod.exit("c3");
    assert_eq!((exited.code, exited.oom_killed), (0, false));
}
