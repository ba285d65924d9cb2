//! What a launch, an exec session and a monitor cost: `cargo bench -p pinnace-launcher --profile monitor`.
//!
//! The plan is that of an ordinary Kubernetes container: nine file systems, three bind mounts, nine masked and six
//! read-only paths, six devices, five links, default capabilities, a seccomp program of 400 instructions.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, dead_code)]

#[path = "../tests/monitor/harness.rs"]
mod harness;

use std::fs;
use std::time::{Duration, Instant};

use harness::*;
use pinnace_launcher::plan::{Mount, MountSource, NewFilesystem};
use pinnace_launcher::protocol::{Exec, Reply, Request};

const LAUNCHES: usize = 300;
const MONITORS: usize = 50;

fn planned(pod: &Pod, file: &std::path::Path) -> Planned {
    let mut planned = Planned::new(pod.image.path(), &["/bin/true"]);
    let new = |target: &str, fstype: &str, attributes| Mount {
        target: target.into(),
        source: Some(MountSource::New(NewFilesystem { fstype: fstype.to_owned(), options: vec![] })),
        attributes,
        no_symlinks: target == "/sys",
        ..Mount::default()
    };
    let guarded = NOSUID | NODEV | NOEXEC;
    planned.plan.mounts.push(new("/dev/mqueue", "mqueue", guarded));
    planned.plan.mounts.push(new("/sys", "sysfs", guarded | 1));
    planned.plan.mounts.push(new("/sys/fs/cgroup", "cgroup2", guarded | 1));
    planned.plan.mounts.push(Mount {
        target: b"/dev/shm".to_vec(),
        source: Some(MountSource::PodShm(true)),
        ..Mount::default()
    });
    for target in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let slot = planned.slot(tree(file));
        planned.plan.mounts.push(Mount {
            target: target.into(),
            source: Some(MountSource::Tree(slot)),
            ..Mount::default()
        });
    }
    let paths = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect::<Vec<_>>();
    planned.plan.masked_paths = paths(&[
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/version",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ]);
    planned.plan.read_only_paths =
        paths(&["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    planned.plan.namespaces.as_mut().unwrap().create = NEWCGROUP;
    // 400 comparisons with numbers that no system call has, then allow.
    let mut program = vec![0x20, 0, 0, 0, 0, 0, 0, 0];
    for _ in 0..398 {
        program.extend([0x15, 0, 0, 0, 0xff, 0xff, 0xff, 0x0f]);
    }
    program.extend([6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    planned.process().seccomp = program;
    planned
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    println!("{what:<44} p50 {:>6} us   min {:>6} us   p99 {:>6} us", at(50), at(0), at(99));
}

fn memory(pid: u32) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |key: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    (of("Pss:"), of("Private_Dirty:"))
}

fn main() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut pod = Pod::new();

    let mut times = Vec::new();
    let mut ends = Vec::new();
    for round in 0..LAUNCHES {
        let id = format!("c{round}");
        let mut planned = planned(&pod, file.path());
        pod.log_to(&id, &mut planned);
        let before = Instant::now();
        pod.launch(&id, &planned).unwrap();
        times.push(before.elapsed());
        assert_eq!(pod.exit(&id).code, 0);
        ends.push(before.elapsed());
        pod.forget(&id).unwrap();
    }
    show("launch request to launched", times);
    show("launch request to exited (true)", ends);

    let mut sleeper = planned(&pod, file.path());
    sleeper.process().args = vec![b"/bin/sleep".to_vec(), b"600".to_vec()];
    let seccomp = sleeper.process().seccomp.clone();
    pod.launch("sleeper", &sleeper).unwrap();
    let (mut times, mut ends) = (Vec::new(), Vec::new());
    for round in 0..LAUNCHES {
        let exec_id = format!("e{round}");
        let mut process = process(&["/bin/true"]);
        process.seccomp.clone_from(&seccomp);
        let exec = Exec {
            exec_id: exec_id.clone(),
            container_id: "sleeper".to_owned(),
            process: Some(process),
            ..Exec::default()
        };
        let before = Instant::now();
        let reply = pod.call(Request::Exec(exec), &[]).unwrap();
        assert!(matches!(reply, Reply::Launched(_)));
        times.push(before.elapsed());
        assert_eq!(pod.exit_of("sleeper", &exec_id).code, 0);
        ends.push(before.elapsed());
    }
    show("exec request to launched", times);
    show("exec request to exited (true)", ends);

    let mut times = Vec::new();
    let pods: Vec<Pod> = (0..MONITORS)
        .map(|_| {
            let mut pod = Pod::new();
            times.push(pod.started_in);
            let mut sleeper = planned(&pod, file.path());
            sleeper.process().args = vec![b"/bin/sleep".to_vec(), b"600".to_vec()];
            pod.log_to("c1", &mut sleeper);
            pod.launch("c1", &sleeper).unwrap();
            pod
        })
        .collect();
    show("monitor: spawn, hello, set up", times);
    let (pss, dirty): (Vec<u64>, Vec<u64>) = pods.iter().map(|pod| memory(pod.child.id())).unzip();
    let mean = |of: &[u64]| of.iter().sum::<u64>() / of.len() as u64;
    println!(
        "{MONITORS} monitors with a container each: PSS {} kB, private dirty {} kB; after {LAUNCHES} launches {:?}",
        mean(&pss),
        mean(&dirty),
        memory(pod.child.id()),
    );
    if std::env::var_os("PINNACE_SMAPS").is_some() {
        println!("{}", fs::read_to_string(format!("/proc/{}/smaps", pods[0].child.id())).unwrap());
    }
}
