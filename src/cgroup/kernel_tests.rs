//! The crate against the kernel it runs on. Every test has a tree of its own, named after this process, below
//! the cgroups that the tests run in (on v2: below the root, because processes may not live in inner cgroups).

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

use crate::devices::tests::rules;
use crate::v1::tests::resources;
use crate::*;

const PATIENCE: Duration = Duration::from_secs(10);
static NEXT: AtomicU32 = AtomicU32::new(0);

fn hierarchy() -> Hierarchy {
    let hierarchy = Hierarchy::detect().unwrap();
    match hierarchy.mode() {
        Mode::Unified => hierarchy,
        Mode::Legacy | Mode::Hybrid => hierarchy.below_self().unwrap(),
    }
}

/// A place for one test's cgroups, emptied and removed at its end.
struct Tree {
    hierarchy: Hierarchy,
    path: CgroupPath,
}

impl Tree {
    fn new() -> Self {
        let name = format!("/pinnace-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { hierarchy: hierarchy(), path: name.parse().unwrap() }
    }

    fn leaf(&self, name: &str) -> CgroupPath {
        self.path.join(name).unwrap()
    }

    fn cgroup(&self, json: &str) -> Cgroup {
        Cgroup::create(&self.hierarchy, &self.leaf("c1"), &Limits::group(&resources(json))).unwrap()
    }

    fn is_unified(&self) -> bool {
        self.hierarchy.mode() == Mode::Unified
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Ok(cgroup) = Cgroup::open(&self.hierarchy, &self.path) {
            let gone = cgroup.kill_all().and_then(|()| cgroup.remove(PATIENCE));
            if !std::thread::panicking() {
                gone.unwrap();
                assert!(!cgroup.exists().unwrap());
            }
        }
    }
}

/// A shell that joins through the descriptors of `join_fds`, then runs the script. Killed and reaped on drop.
struct Joined(Child);

impl Joined {
    fn spawn(cgroup: &Cgroup, script: &str) -> Self {
        let join = cgroup.join_fds().unwrap();
        let own = std::process::id();
        let mut commands = String::from("set -e; ");
        for fd in &join.tasks {
            commands += &format!("echo 0 > /proc/{own}/fd/{}; ", fd.as_raw_fd());
        }
        if let Some(fd) = &join.clone_into {
            commands += &format!("echo 0 > /proc/{own}/fd/{}/cgroup.procs; ", fd.as_raw_fd());
        }
        commands += "set +e; echo joined >&2; ";
        let mut child = Command::new("/bin/sh")
            .args(["-c", &(commands + script)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The descriptors must live until it has joined.
        let mut told = [0; 7];
        std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut told).unwrap();
        assert_eq!(&told, b"joined\n");
        Self(child)
    }

    /// Exit code and standard output.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        std::io::Read::read_to_string(self.0.stdout.as_mut().unwrap(), &mut text).unwrap();
        (self.0.wait().unwrap().code(), text)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn limits_are_what_the_kernel_says_they_are() {
    let tree = Tree::new();
    let cgroup = tree.cgroup(
        r#"{"memory":{"limit":67108864,"swap":67108864,"reservation":33554432},"pids":{"limit":33},
            "cpu":{"shares":512,"quota":20000,"period":50000,"cpus":"0","mems":"0"},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#,
    );
    let read = |controller, file| cgroup.read(controller, file).unwrap().trim().to_owned();
    let expected: &[(&str, &str, &str)] = if tree.is_unified() {
        &[
            ("memory", "memory.max", "67108864"),
            ("memory", "memory.low", "33554432"),
            ("pids", "pids.max", "33"),
            ("cpu", "cpu.weight", "59"),
            ("cpu", "cpu.max", "20000 50000"),
            ("cpuset", "cpuset.cpus", "0"),
            ("cpuset", "cpuset.mems", "0"),
        ]
    } else {
        &[
            ("memory", "memory.limit_in_bytes", "67108864"),
            ("memory", "memory.soft_limit_in_bytes", "33554432"),
            ("pids", "pids.max", "33"),
            ("cpu", "cpu.shares", "512"),
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "50000"),
            ("cpuset", "cpuset.cpus", "0"),
            ("cpuset", "cpuset.mems", "0"),
        ]
    };
    for (controller, file, value) in expected {
        assert_eq!(read(controller, file), *value, "{file}");
    }
    if let Ok(swap) = cgroup.read("memory", "memory.memsw.limit_in_bytes") {
        assert_eq!(swap.trim(), "67108864");
    }
}

#[test]
fn a_child_joins_every_hierarchy() {
    let tree = Tree::new();
    let cgroup = tree.cgroup("{}");
    let child = Joined::spawn(&cgroup, "exec sleep 1000");
    let memberships = fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
    let suffix = cgroup.path().as_str();
    let outside: Vec<_> = memberships
        .lines()
        .filter(|line| !line.ends_with(suffix))
        // On a pure v2 machine other trees do not matter; named ones other than systemd's never do.
        .filter(|line| !tree.is_unified() || line.starts_with("0::"))
        .filter(|line| !line.contains(":name=") || line.contains(":name=systemd:"))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn a_refused_limit_leaves_nothing_behind() {
    let tree = Tree::new();
    let bad = resources(r#"{"memory":{"limit":67108864},"cpu":{"cpus":"4000"}}"#);
    let error = Cgroup::create(&tree.hierarchy, &tree.leaf("c1"), &Limits::container(&bad)).unwrap_err();
    assert!(matches!(&error, CgroupError::Write { value, .. } if value == "4000"), "{error:?}");
    for path in [&tree.path, &tree.leaf("c1")] {
        assert!(Cgroup::open(&tree.hierarchy, path).is_err(), "{path} was left");
    }
}

#[test]
fn an_existing_cgroup_is_not_taken_over() {
    let tree = Tree::new();
    let first = tree.cgroup(r#"{"pids":{"limit":7}}"#);
    let none = LinuxResources::default();
    let error = Cgroup::create(&tree.hierarchy, first.path(), &Limits::container(&none)).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(first.read("pids", "pids.max").unwrap().trim(), "7");
    let root = Cgroup::create(&tree.hierarchy, &CgroupPath::root(), &Limits::group(&none));
    assert_eq!(root.unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn the_oom_killer_is_counted() {
    let tree = Tree::new();
    let cgroup = tree.cgroup(r#"{"memory":{"limit":16777216,"swap":16777216}}"#);
    let counter = cgroup.open_oom_counter().unwrap();
    assert_eq!(counter.read().unwrap(), 0);
    // tail keeps what has no newline.
    let child = Joined::spawn(&cgroup, "head -c 100000000 /dev/zero | tail > /dev/null; echo $?");
    assert_eq!(child.finish().1.trim(), "137");
    assert_eq!(counter.read().unwrap(), 1);
    assert_eq!(cgroup.oom_kills().unwrap(), 1);
}

#[test]
fn pids_limit_holds() {
    let tree = Tree::new();
    let cgroup = tree.cgroup(r#"{"pids":{"limit":4}}"#);
    let mut child = Joined::spawn(&cgroup, "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait");
    // The shell gives up at the first refused fork and leaves what it started.
    assert!(!child.0.wait().unwrap().success());
    assert_eq!(cgroup.pids().unwrap().len(), 3);
    assert!(cgroup.usage().tasks.unwrap() <= 4);
}

#[test]
fn only_allowed_devices_can_be_used() {
    let tree = Tree::new();
    let allowed: LinuxResources = resources(
        r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
                       {"allow":true,"type":"c","major":1,"minor":9,"access":"rwm"}]}"#,
    );
    let cgroup = Cgroup::create(&tree.hierarchy, &tree.leaf("c1"), &Limits::container(&allowed)).unwrap();
    assert_eq!(
        probe_devices(&cgroup),
        "null zero-denied full-denied mknod-null-denied mknod-mem-denied mknod-urandom"
    );
    cgroup.set_devices(&rules(&["allow c *:* m", "allow c 1:5 r"])).unwrap();
    assert_eq!(probe_devices(&cgroup), "null-denied zero full-denied mknod-null mknod-mem mknod-urandom");
}

/// Opens and makes devices inside the cgroup; the nodes of 1:5 (zero) and 1:7 (full) are the machine's.
fn probe_devices(cgroup: &Cgroup) -> String {
    let name = cgroup.path().as_str().replace('/', "-");
    let script = format!(
        "t=$(mktemp -d /tmp/node{name}.XXXXXX); try() {{ n=$1; shift; if \"$@\" 2>&-; then echo $n; else echo $n-denied; fi; }}
         put() {{ echo x > /dev/null; }}; get() {{ head -c 1 < $1 > $t/out; }}
         try null put; try zero get /dev/zero; try full get /dev/full
         try mknod-null mknod $t/null c 1 3; try mknod-mem mknod $t/mem c 1 1; try mknod-urandom mknod $t/urandom c 1 9
         rm -r $t"
    );
    Joined::spawn(cgroup, &script).finish().1.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The v2 filter, wherever there is a v2 tree: on a hybrid it works in the tree beside the v1 ones.
#[test]
fn the_device_program_filters_and_is_replaced() {
    let tree = Tree::new();
    if tree.hierarchy.v2().is_none() {
        return;
    }
    let cgroup = tree.cgroup("{}");
    let mount = tree.hierarchy.v2().unwrap();
    let path = mount.path.join(cgroup.relative());
    let directory = fs::File::open(&path).unwrap();
    let attach = |texts: &[&str]| {
        device_program::attach(tree.hierarchy.device_programs(), directory.as_fd(), &path, &rules(texts))
            .unwrap();
        pinnace_sys::bpf::attached_device_programs(directory.as_fd()).unwrap().len()
    };
    assert_eq!(attach(&["allow c 1:3 rw"]), 1);
    assert_eq!(
        probe_devices(&cgroup),
        "null zero-denied full-denied mknod-null-denied mknod-mem-denied mknod-urandom-denied"
    );
    assert_eq!(attach(&["allow c *:* m", "deny c 1:1 m", "allow c 1:5 r"]), 1);
    assert_eq!(
        probe_devices(&cgroup),
        "null-denied zero full-denied mknod-null mknod-mem-denied mknod-urandom"
    );
    assert_eq!(attach(&["allow a *:* rwm"]), 1);
    assert_eq!(attach(&["allow a *:* rwm"]), 1, "the same program in its own place");
    assert_eq!(probe_devices(&cgroup), "null zero full mknod-null mknod-mem mknod-urandom");
}

#[test]
fn a_fork_storm_is_killed() {
    let tree = Tree::new();
    let cgroup = tree.cgroup(r#"{"pids":{"limit":100}}"#);
    let mut child = Joined::spawn(&cgroup, "while :; do (sleep 1000 & exec true) 2>&- & done");
    eventually("it spreads", || cgroup.pids().unwrap().len() > 20);
    cgroup.kill_all().unwrap();
    eventually("all are dead", || cgroup.pids().unwrap().is_empty());
    assert!(!child.0.wait().unwrap().success());
    cgroup.remove(PATIENCE).unwrap();
    cgroup.kill_all().unwrap();
}

#[test]
fn killing_reaches_frozen_processes_and_children() {
    let tree = Tree::new();
    let outer = tree.cgroup("{}");
    let inner_path = outer.path().join("inner").unwrap();
    let none = LinuxResources::default();
    let inner = Cgroup::create(&tree.hierarchy, &inner_path, &Limits::group(&none)).unwrap();
    let mut child = Joined::spawn(&inner, "sleep 1000");
    assert!(outer.pids().unwrap().iter().any(|pid| pid.as_raw_nonzero().get() == child.pid()));
    inner.freeze().unwrap();
    outer.kill_all().unwrap();
    // v1 freezes per cgroup: what was frozen by itself stays so until it is thawed.
    inner.thaw().unwrap();
    assert!(!child.0.wait().unwrap().success());
    outer.remove(PATIENCE).unwrap();
    assert!(!inner.exists().unwrap());
}

#[test]
fn freezing_stops_time() {
    let tree = Tree::new();
    let cgroup = tree.cgroup("{}");
    let _child = Joined::spawn(&cgroup, "while :; do :; done");
    let used = || cgroup.usage().cpu_ns.unwrap();
    eventually("it runs", || used() > 0);
    eventually("ticks count it as a program's", || cgroup.detail().user_ns.unwrap() > 0);
    cgroup.freeze().unwrap();
    let before = used();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(), before);
    cgroup.thaw().unwrap();
    eventually("it runs on", || used() > before);
}

#[test]
fn an_update_happens_whole_or_not_at_all() {
    let tree = Tree::new();
    let cgroup = tree.cgroup(
        r#"{"memory":{"limit":33554432,"swap":33554432},"cpu":{"quota":50000,"period":100000},"pids":{"limit":9}}"#,
    );
    let memory = if tree.is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
    let read = |controller, file| cgroup.read(controller, file).unwrap().trim().to_owned();
    // Growing and shrinking need opposite orders of memory and memory+swap.
    for limit in [268_435_456u64, 16_777_216] {
        let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{limit}}},"pids":{{"limit":11}}}}"#);
        cgroup.update(&resources(&json)).unwrap();
        assert_eq!(read("memory", memory), limit.to_string());
    }
    let error = cgroup
        .update(&resources(
            r#"{"memory":{"limit":67108864,"swap":67108864},"pids":{"limit":5},"cpu":{"cpus":"4000"}}"#,
        ))
        .unwrap_err();
    assert!(matches!(error, CgroupError::Write { .. }), "{error:?}");
    assert_eq!(read("memory", memory), "16777216");
    assert_eq!(read("pids", "pids.max"), "11");
    cgroup.update(&resources(r#"{"cpu":{"period":50000}}"#)).unwrap();
    if tree.is_unified() {
        assert_eq!(read("cpu", "cpu.max"), "50000 50000");
    } else {
        assert_eq!(
            (read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us")),
            ("50000".into(), "50000".into())
        );
    }
}

/// What the kubelet sends for a pod without CPU limits.
#[test]
fn a_period_without_a_quota_is_no_limit() {
    let tree = Tree::new();
    let cgroup = tree.cgroup(r#"{"cpu":{"shares":2,"period":100000}}"#);
    if tree.is_unified() {
        assert_eq!(cgroup.read("cpu", "cpu.max").unwrap().trim(), "max 100000");
    } else {
        assert_eq!(cgroup.read("cpu", "cpu.cfs_quota_us").unwrap().trim(), "-1");
    }
}

#[test]
fn a_limit_below_usage_can_be_refused() {
    let tree = Tree::new();
    let cgroup = tree.cgroup("{}");
    let _child = Joined::spawn(&cgroup, "head -c 20000000 /dev/zero | tail | read x; sleep 1000");
    let holder =
        Joined::spawn(&cgroup, "x=$(head -c 8000000 /dev/zero | tr '\\0' x); echo ready; sleep 1000");
    eventually("memory is used", || cgroup.usage().memory.unwrap().usage_bytes > 8_000_000);
    let small = resources(r#"{"memory":{"limit":4194304,"checkBeforeUpdate":true}}"#);
    assert!(matches!(cgroup.update(&small), Err(CgroupError::BelowUsage { limit_bytes: 4_194_304, .. })));
    drop(holder);
}

#[test]
fn removal_names_who_is_in_the_way() {
    let tree = Tree::new();
    let cgroup = tree.cgroup("{}");
    let child = Joined::spawn(&cgroup, "exec sleep 1000");
    match cgroup.remove(Duration::from_millis(20)).unwrap_err() {
        CgroupError::Busy { pid, .. } => assert_eq!(pid, Some(child.pid())),
        other => panic!("{other:?}"),
    }
    // A process that ends while we wait is no reason to fail.
    let waiting = std::thread::spawn({
        let cgroup = cgroup.clone();
        move || cgroup.remove(PATIENCE)
    });
    drop(child);
    waiting.join().unwrap().unwrap();
    cgroup.remove(Duration::ZERO).unwrap();
    assert_eq!(Cgroup::open(&tree.hierarchy, cgroup.path()).unwrap_err().code(), Code::NotFound);
    assert_eq!(cgroup.update(&LinuxResources::default()).unwrap_err().code(), Code::NotFound);
    assert!(cgroup.pids().unwrap().is_empty());
}

#[test]
fn an_opened_cgroup_is_as_good_as_the_created_one() {
    let tree = Tree::new();
    let created = tree.cgroup(r#"{"pids":{"limit":3}}"#);
    let opened = Cgroup::open(&tree.hierarchy, created.path()).unwrap();
    opened.update(&resources(r#"{"pids":{"limit":8}}"#)).unwrap();
    assert_eq!(created.read("pids", "pids.max").unwrap().trim(), "8");
    let child = Joined::spawn(&opened, "sleep 1000");
    assert_eq!(created.pids().unwrap().len(), 1 + usize::from(created.pids().unwrap().len() > 1));
    let usage = created.usage();
    let memory = usage.memory.unwrap();
    assert!(memory.usage_bytes >= memory.working_set_bytes, "{usage:?}");
    // The kernel adds these up every two seconds.
    eventually("page faults show", || created.usage().memory.unwrap().page_faults > 0);
    assert!(usage.tasks.unwrap() >= 1 && usage.cpu_ns.unwrap() > 0, "{usage:?}");
    let detail = created.detail();
    assert_eq!((detail.tasks_max, detail.oom_kills), (Some(8), Some(0)), "{detail:?}");
    assert!(detail.max_memory_bytes.unwrap() >= memory.working_set_bytes, "{detail:?}");
    created.kill_all().unwrap();
    drop(child);
    created.remove(PATIENCE).unwrap();
    // What has gone shows nothing, and is no error.
    assert_eq!(created.usage(), crate::Usage::default());
    assert_eq!(created.detail(), crate::Detail::default());
}

/// What a pod start pays. Run with `--release --nocapture --ignored`.
#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_a_cgroup() {
    let tree = Tree::new();
    let parent = LinuxResources::default();
    Cgroup::create(&tree.hierarchy, &tree.leaf("pod"), &Limits::group(&parent)).unwrap();
    let container = resources(
        r#"{"memory":{"limit":67108864,"swap":67108864},"pids":{"limit":33},
            "cpu":{"shares":512,"quota":20000,"period":50000},
            "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","access":"m"},
            {"allow":true,"type":"b","access":"m"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":5,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":7,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":8,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":9,"access":"rwm"},
            {"allow":true,"type":"c","major":5,"minor":0,"access":"rwm"},
            {"allow":true,"type":"c","major":5,"minor":2,"access":"rwm"},
            {"allow":true,"type":"c","major":136,"access":"rwm"}]}"#,
    );
    let mut micros: [Vec<u128>; 3] = Default::default();
    for index in 0..200 {
        let path = tree.leaf("pod").join(&format!("c{index}")).unwrap();
        let mut at = Instant::now();
        let mut lap = |slot: usize| {
            micros[slot].push(at.elapsed().as_micros());
            at = Instant::now();
        };
        let cgroup = Cgroup::create(&tree.hierarchy, &path, &Limits::container(&container)).unwrap();
        lap(0);
        let join = cgroup.join_fds().unwrap();
        lap(1);
        drop(join);
        cgroup.remove(Duration::ZERO).unwrap();
        lap(2);
    }
    if let Some(mount) = tree.hierarchy.v2() {
        let directory = fs::File::open(mount.path.join(tree.path.relative())).unwrap();
        for what in ["load and attach a device program", "attach one that is loaded"] {
            let start = Instant::now();
            let rules = rules(&["deny a *:* rwm", "allow c *:* m", "allow c 1:3 rwm", "allow c 136:* rwm"]);
            device_program::attach(tree.hierarchy.device_programs(), directory.as_fd(), &mount.path, &rules)
                .unwrap();
            println!("{what}: {} us", start.elapsed().as_micros());
        }
    }
    for (name, mut times) in ["create", "join_fds", "close and remove"].into_iter().zip(micros) {
        times.sort_unstable();
        println!("{name}: p50 {} us, min {} us, p99 {} us", times[100], times[0], times[197]);
    }
}
