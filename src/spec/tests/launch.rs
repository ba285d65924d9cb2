//! A spec lowered, launched by a real monitor, and looked at from inside the container.
//!
//! This program is three: started by cargo it is the test; started by the launcher's client it is the monitor; started in
//! the container (`/probe`) it says what it sees there, one `key=value` a line.

#![allow(clippy::unwrap_used, reason = "a test whose functions the lint does not recognise as such")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxSeccompBuilder, Spec};
use pinnace_launcher::client::{self, Connection};
use pinnace_launcher::monitor;
use pinnace_launcher::protocol::{Exec, Exited, Hello, Launch, Reply, Request, Setup, Shutdown, VERSION};
use pinnace_spec::capabilities;
use pinnace_spec::lower::{self, Context, Log, MissingSource, PodNamespaces, Slots, Source, Stdio};
use pinnace_spec::process::{self, Host, SeccompProgram};
use pinnace_spec::{Facts, defaults, image, mounts, user};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

const LIMIT: Duration = Duration::from_secs(30);

fn main() {
    let program = std::env::args().next().unwrap_or_default();
    if program.starts_with("pinnace-monitor") {
        if let Err(failure) = monitor::run() {
            say(&mut std::io::stderr(), &failure.to_string());
        }
    } else if program == "/probe" {
        probe();
    } else {
        for (name, case) in CASES {
            case();
            say(&mut std::io::stdout(), &format!("test {name} ... ok"));
        }
    }
}

const CASES: [(&str, fn()); 4] = [
    ("an_ordinary_container", an_ordinary_container),
    ("a_container_of_a_user", a_container_of_a_user),
    ("a_privileged_container", a_privileged_container),
    ("an_image_with_links_for_proc", an_image_with_links_for_proc),
];

fn an_ordinary_container() {
    let pod = Pod::new();
    let volume = tempfile::tempdir().unwrap();
    let requested = vec![
        mounts::bind("/data", volume.path(), &["rbind", "rw", "rprivate"]),
        mounts::bind("/ro", volume.path(), &["rbind", "rro", "rprivate"]),
        mounts::bind("/etc/resolv.conf", pod.file("resolv.conf", "nameserver 192.0.2.1\n"), &["bind", "ro"]),
        mounts::bind("/dev/shm", "/pod/shm", &["rbind", "nosuid", "nodev", "noexec", "rprivate"]),
    ];
    let seen = pod.run("ordinary", |spec, _| {
        spec.set_mounts(Some(mounts::merge(defaults::mounts(), requested).unwrap()));
        let linux = spec.linux_mut().as_mut().unwrap();
        linux.set_sysctl(Some(HashMap::from([("kernel.shmmni".to_owned(), "1234".to_owned())])));
        linux.set_seccomp(Some(LinuxSeccompBuilder::default().build().unwrap()));
    });
    assert_eq!(seen["Uid"], "0 0 0 0");
    assert_eq!(seen["Groups"], "0 10");
    assert_eq!(seen["NSpid"].split(' ').next_back(), Some("1"));
    assert_eq!(seen["Seccomp"], "2");
    assert_eq!(u64::from_str_radix(&seen["CapEff"], 16).unwrap(), 0xa804_25fb & pod.facts.bounding);
    assert_eq!(seen["CapEff"], seen["CapBnd"]);
    for empty in ["CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&seen[empty], 16), Ok(0), "{empty}");
    }
    assert_eq!(seen["cwd"], "/");
    assert_eq!(seen["env.HOME"], "/root");
    assert_eq!(seen["env.PATH"], defaults::PATH);
    assert_eq!(seen["env.BYTES"], "\\xff");
    assert_eq!(seen["descriptors"], "0,1,2");
    assert_eq!(seen["nofile"], format!("{} {}", 1024, defaults::rlimits(&pod.facts)[0].hard()));
    // Volumes
    assert_eq!(seen["write./data/x"], "ok");
    assert_eq!(fs::read_to_string(volume.path().join("x")).unwrap(), "written");
    assert_eq!(seen["write./ro/x"], "Read-only file system (os error 30)");
    assert_eq!(seen["read./etc/resolv.conf"], "nameserver 192.0.2.1\\n");
    assert_eq!(seen["write./dev/shm/x"], "ok");
    // Kernel file systems
    for (at, fstype) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/data", seen["mount./ro"].split(' ').next().unwrap()),
    ] {
        assert_eq!(seen[&format!("mount.{at}")].split(' ').next(), Some(fstype), "{at}");
    }
    for at in ["/sys", "/ro", "/sys/fs/cgroup", "/proc/sys", "/proc/bus"] {
        assert!(seen[&format!("mount.{at}")].contains(" ro"), "{at}: {}", seen[&format!("mount.{at}")]);
    }
    let flags =
        |at: &str| seen[&format!("mount.{at}")].split([' ', ',']).map(str::to_owned).collect::<HashSet<_>>();
    for at in ["/proc", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm"] {
        assert!(flags(at).contains("nosuid") && flags(at).contains("noexec"), "{at}");
    }
    assert_eq!(seen["write./proc/sys/kernel/msgmax"], "Read-only file system (os error 30)");
    assert_eq!(seen["read./proc/sys/kernel/shmmni"], "1234\\n");
    assert_eq!(seen["read./proc/interrupts"], "");
    if Path::new("/proc/keys").exists() {
        assert_eq!(seen["read./proc/keys"], "");
    }
    assert_eq!(seen["list./sys/firmware"], "");
    assert_eq!(seen["hostname"], "pod-host");
    // Devices
    for (name, number) in
        [("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9")]
    {
        assert_eq!(seen[&format!("node./dev/{name}")], format!("{number} 666"), "{name}");
    }
    assert_eq!(seen["link./dev/ptmx"], "pts/ptmx");
    assert_eq!(seen["link./dev/stdin"], "/proc/self/fd/0");
    let devices: HashSet<&str> = seen["list./dev"].split(',').collect();
    let expected = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    assert_eq!(devices, HashSet::from(expected));
    // Control groups: each hierarchy once, from a namespace of its own.
    if let pinnace_spec::facts::CgroupLayout::Legacy { hierarchies } = &pod.facts.cgroups {
        for hierarchy in hierarchies {
            let at = format!("mount./sys/fs/cgroup/{}", hierarchy.directory);
            assert!(seen[&at].starts_with("cgroup ") && seen[&at].contains(" ro"), "{at}");
        }
        assert!(seen["cgroup"].split(' ').all(|line| line.ends_with(":/")), "{}", seen["cgroup"]);
    }
}

fn a_container_of_a_user() {
    let pod = Pod::new();
    let seen = pod.run("user", |spec, facts| {
        let request = user::Request { image_user: "app", supplemental_groups: &[77], ..Default::default() };
        let resolved = user::resolve(pod.rootfs().as_fd(), &request).unwrap();
        let add = ["NET_ADMIN".to_owned()];
        let request = capabilities::Request { add: &add, ..Default::default() };
        let sets = capabilities::select(&defaults::capabilities(), &request, facts).unwrap();
        let process = spec.process_mut().as_mut().unwrap();
        process.set_user(resolved.to_oci());
        process.set_no_new_privileges(Some(true));
        process.set_oom_score_adj(Some(600));
        process.set_capabilities(Some(sets));
        process.set_cwd("/made/for/it".into());
        spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
    });
    assert_eq!((seen["Uid"].as_str(), seen["Gid"].as_str()), ("1000 1000 1000 1000", "1001 1001 1001 1001"));
    assert_eq!(seen["Groups"], "10 77 1001");
    // A capability added for a non-root user is in the bounding set alone (CVE-2018-1000400).
    assert_eq!(u64::from_str_radix(&seen["CapEff"], 16), Ok(0));
    assert_ne!(u64::from_str_radix(&seen["CapBnd"], 16).unwrap() & 1 << 12, 0);
    assert_eq!(seen["NoNewPrivs"], "1");
    assert_eq!(seen["oom_score_adj"], "600");
    assert_eq!(seen["cwd"], "/made/for/it");
    assert!(seen["mount./"].contains(" ro"), "{}", seen["mount./"]);
    assert_eq!(seen["Seccomp"], "0");
    // An exec session is under the same restrictions.
    assert_eq!(seen["exec.NoNewPrivs"], "1");
    assert_eq!(seen["exec.oom_score_adj"], "600");
    for key in ["Uid", "Groups", "CapEff", "CapBnd", "cwd"] {
        assert_eq!(seen[&format!("exec.{key}")], seen[key], "{key}");
    }
    assert_eq!(seen["exec.env.ADDED"], "yes");
}

fn a_privileged_container() {
    let pod = Pod::new();
    let seen = pod.run("privileged", |spec, facts| {
        let process = spec.process().clone();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        *spec = defaults::privileged(facts).unwrap();
        let mut process = process.unwrap();
        process.set_capabilities(spec.process().as_ref().unwrap().capabilities().clone());
        spec.set_process(Some(process));
        let shared = namespaces.into_iter().filter(|namespace| namespace.typ() != LinuxNamespaceType::Cgroup);
        spec.linux_mut().as_mut().unwrap().set_namespaces(Some(shared.collect()));
    });
    assert_eq!(u64::from_str_radix(&seen["CapEff"], 16), Ok(pod.facts.bounding));
    assert!(!seen["mount./sys"].contains(" ro"), "{}", seen["mount./sys"]);
    assert!(!seen.contains_key("mount./proc/sys"));
    assert_ne!(seen["read./proc/interrupts"], "");
    let host: HashSet<String> = pinnace_spec::devices::all_host_devices()
        .unwrap()
        .iter()
        .filter_map(|device| device.path().strip_prefix("/dev").ok()?.to_str().map(str::to_owned))
        .filter(|name| !name.contains('/'))
        .collect();
    let devices: HashSet<String> = seen["list./dev"].split(',').map(str::to_owned).collect();
    assert!(devices.is_superset(&host), "{:?}", host.difference(&devices));
}

/// CVE-2019-19921, CVE-2025-54867: an image that has links in the places of proc, sysfs and dev is not run.
fn an_image_with_links_for_proc() {
    for name in ["proc", "sys", "dev"] {
        let pod = Pod::new();
        let target = pod.root.path().join("elsewhere");
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink("/elsewhere", pod.root.path().join(name)).unwrap();
        let failure = pod.launch("linked", |_, _| {}).unwrap_err();
        assert!(failure.contains(&format!("/{name}")), "{failure}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{name}");
    }
}

/// A pod with a monitor, an image that consists of this program, and a log directory.
struct Pod {
    facts: Facts,
    root: tempfile::TempDir,
    run: tempfile::TempDir,
    monitor: std::cell::RefCell<client::Monitor>,
}

impl Pod {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/\napp:x:1000:1001::/home/app:/\n")
            .unwrap();
        fs::write(root.path().join("etc/group"), "root:x:0:\nwheel:x:10:root,app\n").unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy("/proc/self/exe", root.path().join("probe")).unwrap();
        let run = tempfile::tempdir().unwrap();
        let program = client::seal(&fs::read("/proc/self/exe").unwrap()).unwrap();
        let stderr = fs::File::create(run.path().join("stderr")).unwrap();
        let monitor = client::spawn(program.as_fd(), "spec-test", Some(stderr.as_fd())).unwrap();
        let pod = Self { facts: Facts::detect().unwrap(), root, run, monitor: monitor.into() };
        pod.call(Request::Hello(Hello { version: VERSION }), &[]).unwrap();
        let setup = Setup {
            sandbox_id: "spec-test".to_owned(),
            ipc: true,
            hostname: "pod-host".to_owned(),
            shm_bytes: 1 << 20,
            ..Setup::default()
        };
        pod.call(Request::Setup(setup), &[open(pod.run.path()).as_fd()]).unwrap();
        pod
    }

    fn call(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, client::Error> {
        self.monitor.borrow().connection.call(7, request, descriptors, LIMIT, |_| {})
    }

    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.run.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn rootfs(&self) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, self.root.path(), flags).unwrap()
    }

    /// Runs the probe, and the probe once more as an exec session; returns what both saw.
    fn run(&self, id: &str, change: impl FnOnce(&mut Spec, &Facts)) -> HashMap<String, String> {
        let spec = self.launch(id, change).unwrap();
        let args = ["/probe".to_owned(), "once".to_owned()];
        let env = ["ADDED=yes".to_owned()];
        let request = process::Exec { args: &args, env: &env, ..Default::default() };
        let template = process::Template::of(&spec, host(&self.facts)).unwrap();
        let process = template.exec(&request, &self.facts).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut slots = Slots::new();
        let stdout_slot = Some(slots.push(write));
        let exec = Exec {
            exec_id: "session".to_owned(),
            container_id: id.to_owned(),
            process: Some(process),
            cgroup: Some(slots.join(Default::default())),
            foreign: None,
            external: None,
            stdio: Some(pinnace_launcher::plan::Stdio { stdout_slot, ..Default::default() }),
        };
        let descriptors = slots.into_descriptors();
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        self.call(Request::Exec(exec), &borrowed).unwrap();
        drop(descriptors);
        let mut session = String::new();
        std::io::Read::read_to_string(&mut fs::File::from(read), &mut session).unwrap();

        // The container waits for this file, so that it is there for the session.
        fs::write(self.root.path().join("end"), "").unwrap();
        let exited = self.exited(id);
        let log = fs::read_to_string(self.run.path().join("probe.log")).unwrap();
        assert_eq!((exited.code, exited.signal), (0, 0), "{log}");
        let lines = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        let mut seen: HashMap<String, String> = pairs(lines).collect();
        seen.extend(pairs(session.lines()).map(|(key, value)| (format!("exec.{key}"), value)));
        seen
    }

    fn launch(&self, id: &str, change: impl FnOnce(&mut Spec, &Facts)) -> Result<Spec, String> {
        let mut spec = defaults::spec(&self.facts);
        let path = |name: &str| format!("/pod/ns/{name}").into();
        let linux = spec.linux_mut().as_mut().unwrap();
        let mut namespaces = linux.namespaces().clone().unwrap();
        for (typ, name) in [(LinuxNamespaceType::Ipc, "ipc"), (LinuxNamespaceType::Uts, "uts")] {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(typ);
            namespace.set_path(Some(path(name)));
            namespaces.push(namespace);
        }
        linux.set_namespaces(Some(namespaces));
        let mut env = image::env(None).unwrap();
        let resolved = user::resolve(self.rootfs().as_fd(), &user::Request::default()).unwrap();
        env.set_default("HOME", resolved.home.to_str().unwrap().as_bytes()).unwrap();
        env.set("BYTES", b"\xff").unwrap();
        let (env, binary_env) = env.into_oci();
        let process = spec.process_mut().as_mut().unwrap();
        process.set_args(Some(image::command(None, &["/probe".to_owned()], &[]).unwrap()));
        process.set_user(resolved.to_oci());
        process.set_env(Some(env));
        change(&mut spec, &self.facts);

        let context = Context {
            rootfs: self.rootfs(),
            cgroup: lower::CgroupJoin::default(),
            stdio: Stdio {
                log: Some(Log { directory: open(self.run.path()), path: "probe.log".into() }),
                ..Stdio::default()
            },
            pod: PodNamespaces { ipc: Some(path("ipc")), uts: Some(path("uts")), ..PodNamespaces::default() },
            sources: HashMap::from([("/pod/shm".into(), Source::PodShm)]),
            missing_source: MissingSource::Refuse,
            binary_env,
            hold: false,
            host: host(&self.facts),
        };
        let lowered = lower::lower(&spec, context).map_err(|error| error.to_string())?;
        assert!(lowered.warnings.is_empty(), "{:?}", lowered.warnings);
        let borrowed: Vec<BorrowedFd<'_>> = lowered.descriptors.iter().map(AsFd::as_fd).collect();
        let launch = Launch { container_id: id.to_owned(), plan: Some(lowered.plan) };
        match self.call(Request::Launch(launch), &borrowed) {
            Ok(Reply::Launched(_)) => Ok(spec),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    fn exited(&self, id: &str) -> Exited {
        loop {
            match self.monitor.borrow().connection.recv_within(LIMIT).unwrap().reply {
                Some(Reply::Exited(exited)) if exited.container_id == id && exited.exec_id.is_empty() => {
                    return exited;
                }
                _ => {}
            }
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let monitor = self.monitor.get_mut();
        let connection: &Connection = &monitor.connection;
        if connection.call(9, Request::Shutdown(Shutdown::default()), &[], LIMIT, |_| {}).is_err() {
            // A container still runs because an assertion failed.
            let _ = monitor.child.kill();
        }
        let _ = monitor.child.wait();
    }
}

fn host(facts: &Facts) -> Host<'_> {
    /// One instruction: allow everything.
    const ALLOW: [u8; 8] = [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f];
    Host { facts, seccomp: &|_| Ok(SeccompProgram { bytes: ALLOW.into(), flags: 0 }) }
}

fn open(directory: &Path) -> OwnedFd {
    rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn pairs<'a>(lines: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (String, String)> {
    lines.filter_map(|line| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
}

fn say(to: &mut impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

/// What the container sees.
fn probe() {
    let mut out = std::io::stdout().lock();
    let mut tell = |key: &str, value: &str| say(&mut out, &format!("{key}={}", value.replace('\n', "\\n")));
    for line in fs::read_to_string("/proc/self/status").unwrap().lines() {
        if let Some((key, value)) = line.split_once(':') {
            tell(key, &value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    // The last mount on a place is the one that is seen.
    for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        tell(&format!("mount.{}", fields[1]), &format!("{} {}", fields[2], fields[3]));
    }
    tell("cwd", &std::env::current_dir().unwrap().display().to_string());
    for (key, value) in std::env::vars_os() {
        use std::os::unix::ffi::OsStrExt;
        tell(&format!("env.{}", key.display()), &value.as_bytes().escape_ascii().to_string());
    }
    let mut descriptors: Vec<String> = names("/proc/self/fd");
    descriptors.retain(|number| fs::read_link(format!("/proc/self/fd/{number}")).is_ok());
    tell("descriptors", &descriptors.join(","));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    tell("nofile", &format!("{} {}", limit.current.unwrap(), limit.maximum.unwrap()));
    for path in ["/data/x", "/ro/x", "/dev/shm/x", "/proc/sys/kernel/msgmax"] {
        let text = if path.starts_with("/proc") { "4096" } else { "written" };
        let result = fs::write(path, text);
        tell(&format!("write.{path}"), &result.err().map_or("ok".to_owned(), |error| error.to_string()));
    }
    for path in ["/etc/resolv.conf", "/proc/interrupts", "/proc/keys", "/proc/sys/kernel/shmmni"] {
        use std::io::Read;
        let mut text = Vec::new();
        let result = fs::File::open(path).and_then(|file| file.take(64).read_to_end(&mut text));
        let shown = String::from_utf8_lossy(&text).into_owned();
        tell(&format!("read.{path}"), &result.err().map_or(shown, |error| error.to_string()));
    }
    for path in ["/sys/firmware", "/dev"] {
        tell(&format!("list.{path}"), &names(path).join(","));
    }
    for name in names("/dev") {
        use std::os::unix::fs::MetadataExt;
        let path = format!("/dev/{name}");
        let Ok(stat) = fs::symlink_metadata(&path) else { continue };
        if let Ok(target) = fs::read_link(&path) {
            tell(&format!("link.{path}"), &target.display().to_string());
        } else {
            let (major, minor) = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
            tell(&format!("node.{path}"), &format!("{major}:{minor} {:o}", stat.mode() & 0o777));
        }
    }
    tell("hostname", &rustix::system::uname().nodename().to_string_lossy());
    tell("oom_score_adj", fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
    tell("cgroup", &fs::read_to_string("/proc/self/cgroup").unwrap().lines().collect::<Vec<_>>().join(" "));
    drop(out);
    if std::env::args().nth(1).is_none() {
        let started = std::time::Instant::now();
        while !Path::new("/end").exists() && started.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn names(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}
