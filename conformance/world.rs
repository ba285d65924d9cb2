//! A throw-away machine for one test.
//!
//! ```text
//! test process ─► sh (joins the world's cgroups) ─► unshare ─► keeper, process 1 of the world
//!              ─► DIR/enter PROGRAM: joins the cgroups, nsenter ─► PROGRAM
//!
//! DIR = $TMPDIR/pw-XXXXXX, the same path inside and outside
//!   enter        runs a program inside; useful by hand while a test is stopped in a debugger
//!   cgroups hosts resolv.conf      see world/keeper.sh
//!   …            whatever the test puts there
//! ```
//! Inside, loopback is up and empty, `/` is rshared as on a systemd node, `/run` is empty, and
//! `/sys/fs/cgroup` has the layout of this machine (v1, hybrid or v2) but begins at a cgroup of its own.
//! Dropping a world kills every process in it, removes its cgroups and its directory, and fails the test if
//! any of that cannot be done. If the test process itself is killed, the keeper ends by itself.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::process::{Process, children, poll, wait_at_most};

/// How long anything that belongs to the world itself may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A private machine. See the module.
#[derive(Debug)]
pub struct World {
    unshare: Child,
    keeper: Process,
    cgroups: Vec<Cgroup>,
    inherited_mounts: String,
    dir: TempDir,
}

/// The world's cgroup in one hierarchy of this machine.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory as this machine sees it.
    pub dir: PathBuf,
    /// The hierarchy's mount point, the same inside and outside.
    pub mountpoint: PathBuf,
    /// Which controllers a v1 hierarchy has; empty for v2.
    pub v1_options: String,
}

impl World {
    /// Makes a machine, or says why this process cannot.
    pub fn new() -> Result<World, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("needs root".into());
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pw-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new()
            .prefix("pw-")
            .tempdir()
            .map_err(|e| format!("temporary directory: {e}"))?;
        // Containers reach their volumes as other users.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
        let cgroups = make_cgroups(&name)?;
        let started = start(&cgroups, dir.path());
        let (unshare, keeper) = started.inspect_err(|_| remove_cgroups(&cgroups))?;
        cgroups.iter().for_each(Cgroup::populate);
        let mountinfo = format!("/proc/{}/mountinfo", keeper.pid);
        let inherited_mounts = fs::read_to_string(&mountinfo).map_err(|e| format!("{mountinfo}: {e}"))?;
        let world = World { unshare, keeper, cgroups, inherited_mounts, dir };
        world.write_executable("enter", &world.enter_script());
        Ok(world)
    }

    /// The world's directory: the same path inside and outside.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The mounts that it began with: mountinfo of its process 1.
    pub fn inherited_mounts(&self) -> &str {
        &self.inherited_mounts
    }

    /// How this process reaches a path of the world that only exists inside, such as `/run/netns`.
    pub fn inside(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let relative = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/root", self.keeper.pid)).join(relative)
    }

    /// Process 1 of the world, by its id out here.
    pub fn keeper(&self) -> u32 {
        self.keeper.pid
    }

    /// The world's cgroups, one per hierarchy.
    pub fn cgroups(&self) -> &[Cgroup] {
        &self.cgroups
    }

    /// The directory, as this machine sees it, of a cgroup that the world calls `path`, in the hierarchy that
    /// has `controller`.
    pub fn cgroup(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let of_v1 = |c: &&Cgroup| c.v1_options.split(',').any(|option| option == controller);
        let of_v2 = |c: &&Cgroup| c.v1_options.is_empty();
        let cgroup = self.cgroups.iter().find(of_v1).or_else(|| self.cgroups.iter().find(of_v2))?;
        Some(cgroup.dir.join(path.trim_start_matches('/')))
    }

    /// Whether the world has only the unified hierarchy.
    pub fn is_cgroup_v2(&self) -> bool {
        self.cgroups.iter().all(|cgroup| cgroup.v1_options.is_empty())
    }

    /// A command that will run inside, with the environment of a fresh service.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // Read by a shell, not executed: a child that another test forks at this moment may still hold the script open for
        // writing, and execve would be refused (ETXTBSY).
        let mut command = Command::new("/bin/sh");
        command.arg(self.dir().join("enter")).arg(program).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs a shell script inside and returns what it printed; it must succeed.
    pub fn sh(&self, script: &str) -> String {
        let output = self.command("sh").args(["-euc", script]).output().expect("run a shell in the world");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "in the world: {script}\n{}\n{text}{errors}", output.status);
        text
    }

    /// Starts a program inside that goes on running; the process is the program itself, not what led to it.
    pub fn spawn(&self, command: &mut Command) -> (Child, Process) {
        self.try_spawn(command).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same for a program that may end at once; the error says how.
    pub fn try_spawn(&self, command: &mut Command) -> Result<(Child, Process), String> {
        let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        // `enter` becomes nsenter, which forks: a PID namespace is joined by children only.
        let program = poll(LIMIT, || {
            if let Some(status) = child.try_wait().expect("wait for a child") {
                return Some(Err(format!("{command:?}: {status}")));
            }
            children(child.id()).first().and_then(|&pid| Process::hold(pid).ok()).map(Ok)
        });
        program.unwrap_or_else(|| Err(format!("{command:?} did not start"))).map(|process| (child, process))
    }

    /// Does something in the world's network namespace, on a thread that ends with it. Sockets that it returns
    /// stay in that namespace.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.in_network_at(Path::new(&format!("/proc/{}/ns/net", self.keeper.pid)), work)
    }

    /// The same in the network namespace that processes of the world see as `name`, such as `net:[4026532281]`.
    pub fn in_network_named<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let processes = fs::read_dir(self.inside("/proc")).expect("list the world's processes");
        let mut files = processes.flatten().map(|process| process.path().join("ns/net"));
        let file = files.find(|file| fs::read_link(file).is_ok_and(|link| link.as_os_str() == name));
        self.in_network_at(&file.unwrap_or_else(|| panic!("no process of the world is in {name}")), work)
    }

    fn in_network_at<T: Send>(&self, namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
        let namespace = fs::File::open(namespace).expect("open the network namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                use std::os::fd::AsFd as _;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the network namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects to an address of the world.
    pub fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        self.in_network(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    }

    /// What happens when the test process is killed: the keeper loses its standard input, and ends.
    pub fn abandon(&mut self) {
        drop(self.unshare.stdin.take());
    }

    /// Writes a program into the world's directory.
    pub fn write_executable(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make a script executable");
        path
    }

    fn enter_script(&self) -> String {
        let mut script = String::from("#!/bin/sh\n# Runs a program in this world: enter PROGRAM [ARG...]\n");
        for cgroup in &self.cgroups {
            script.push_str(&cgroup.join_line());
        }
        let pid = self.keeper.pid;
        script.push_str(&format!(
            "exec nsenter --target {pid} --mount --uts --ipc --net --cgroup --pid -- \"$@\"\n"
        ));
        script
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.keeper.signal(Signal::KILL);
        let ended = wait_at_most(&mut self.unshare, LIMIT).is_some();
        remove_cgroups(&self.cgroups);
        let left: Vec<_> = self.cgroups.iter().filter(|cgroup| cgroup.dir.exists()).collect();
        if !std::thread::panicking() {
            assert!(ended, "process 1 of the world does not end");
            assert!(left.is_empty(), "cgroups cannot be removed: {left:?}");
        }
    }
}

impl Cgroup {
    /// The line of shell that moves the shell itself in: `tasks` moves one thread, which on v1 is hundred times
    /// cheaper than `cgroup.procs`.
    fn join_line(&self) -> String {
        let file = if self.v1_options.is_empty() { "init/cgroup.procs" } else { "tasks" };
        format!("echo 0 >'{}/{file}'\n", self.dir.display())
    }

    /// On v2 moves the first processes into a leaf and hands all controllers down: a cgroup with processes
    /// cannot have children that are limited (cgroups(7), "no internal processes").
    fn populate(&self) {
        if !self.v1_options.is_empty() {
            return;
        }
        let read = |file: &str| fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        let leaf = self.dir.join("init");
        fs::create_dir(&leaf).unwrap_or_else(|error| panic!("{}: {error}", leaf.display()));
        for pid in read("cgroup.procs").lines() {
            fs::write(leaf.join("cgroup.procs"), pid)
                .unwrap_or_else(|error| panic!("{}: {error}", leaf.display()));
        }
        for controller in read("cgroup.controllers").split_whitespace() {
            let file = self.dir.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}"))
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}

fn start(cgroups: &[Cgroup], dir: &Path) -> Result<(Child, Process), String> {
    let mut mounts = String::new();
    let mut script = String::new();
    for cgroup in cgroups {
        let at = cgroup.mountpoint.display();
        if cgroup.v1_options.is_empty() {
            mounts.push_str(&format!("cgroup2 rw {at}\n"));
            // The cgroup namespace begins where its first process is; the leaf follows in `populate`.
            script.push_str(&format!("echo 0 >'{}/cgroup.procs'\n", cgroup.dir.display()));
        } else {
            mounts.push_str(&format!("cgroup {} {at}\n", cgroup.v1_options));
            script.push_str(&cgroup.join_line());
        }
    }
    script.push_str(
        "exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child --mount-proc \
         --propagation private -- \"$@\"\n",
    );
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).map_err(|e| format!("{name}: {e}"));
    write("cgroups", &mounts)?;
    write("hosts", "127.0.0.1 localhost registry.test\n::1 localhost\n")?;
    write("resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")?;
    write("keeper.sh", include_str!("world/keeper.sh"))?;

    let mut unshare = Command::new("/bin/sh")
        .args(["-euc", &script, "sh", "/bin/sh"])
        .arg(dir.join("keeper.sh"))
        .arg(dir)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("/bin/sh: {e}"))?;
    let mut line = String::new();
    let stdout = unshare.stdout.take().ok_or("no pipe")?;
    let read = BufReader::new(stdout).read_line(&mut line);
    if read.is_err() || line != "ready\n" {
        let _ = unshare.kill();
        let output = unshare.wait_with_output().map_err(|e| e.to_string())?;
        return Err(format!("world: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let keeper = children(unshare.id()).first().copied().ok_or("the keeper is gone")?;
    let keeper = Process::hold(keeper).map_err(|e| format!("hold the keeper: {e}"))?;
    Ok((unshare, keeper))
}

/// One cgroup in every hierarchy of this machine. On v1 below the one this process is in, so that its limits
/// hold; on v2, where a cgroup with processes cannot have children that are limited, below the root.
fn make_cgroups(name: &str) -> Result<Vec<Cgroup>, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
    let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    let mut cgroups = Vec::new();
    for line in mounts.lines() {
        let Some(hierarchy) = Hierarchy::parse(line) else { continue };
        let parent = match hierarchy.v1_options.as_str() {
            "" => hierarchy.mountpoint.clone(),
            _ => hierarchy.mountpoint.join(hierarchy.own_path(&own)),
        };
        let dir = parent.join(name);
        let cgroup =
            Cgroup { dir, mountpoint: hierarchy.mountpoint.clone(), v1_options: hierarchy.v1_options };
        let made = make_cgroup(&cgroup, &parent);
        cgroups.push(cgroup);
        if let Err(error) = made {
            remove_cgroups(&cgroups);
            return Err(error);
        }
    }
    if cgroups.is_empty() {
        return Err("no cgroup hierarchy is mounted under /sys/fs/cgroup".into());
    }
    Ok(cgroups)
}

fn make_cgroup(cgroup: &Cgroup, parent: &Path) -> Result<(), String> {
    let dir = &cgroup.dir;
    if cgroup.v1_options.is_empty() {
        // Controllers that the machine does not hand down to its children yet; on a systemd node nearly none.
        let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
    fs::create_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    // A new cpuset of v1 allows nothing until it is told.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !cgroup.v1_options.is_empty() && dir.join(file).exists() {
            let value = fs::read_to_string(parent.join(file)).unwrap_or_default();
            fs::write(dir.join(file), value.trim())
                .map_err(|e| format!("{}: {e}", dir.join(file).display()))?;
        }
    }
    Ok(())
}

fn remove_cgroups(cgroups: &[Cgroup]) {
    fn remove(dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        let _ = fs::remove_dir(dir);
    }
    for cgroup in cgroups {
        // The last processes leave their cgroups a moment after they were killed.
        poll(Duration::from_secs(5), || {
            remove(&cgroup.dir);
            (!cgroup.dir.exists()).then_some(())
        });
    }
}

/// A cgroup mount of this machine.
struct Hierarchy {
    mountpoint: PathBuf,
    /// The path inside the hierarchy that is mounted there.
    root: String,
    v1_options: String,
}

impl Hierarchy {
    /// Reads a line of mountinfo (proc(5)); `None` if it is no cgroup mount under /sys/fs/cgroup.
    fn parse(line: &str) -> Option<Hierarchy> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mount: Vec<_> = mount.split(' ').collect();
        let filesystem: Vec<_> = filesystem.split(' ').collect();
        let (root, mountpoint) = (mount.get(3)?, PathBuf::from(mount.get(4)?));
        if !mountpoint.starts_with("/sys/fs/cgroup") {
            return None;
        }
        let v1_options = match *filesystem.first()? {
            "cgroup2" => String::new(),
            "cgroup" => {
                let flags = ["rw", "ro", "xattr", "clone_children", "noprefix"];
                let options = filesystem.get(2)?.split(',');
                let options: Vec<_> =
                    options.filter(|o| !flags.contains(o) && !o.starts_with("release_agent=")).collect();
                // A named hierarchy has no controller, and mount(8) must be told so.
                let named = options.iter().any(|o| o.starts_with("name="));
                if named { format!("none,{}", options.join(",")) } else { options.join(",") }
            }
            _ => return None,
        };
        Some(Hierarchy { mountpoint, root: root.to_string(), v1_options })
    }

    /// Where this process is in the hierarchy, relative to the mount point.
    fn own_path(&self, proc_cgroup: &str) -> String {
        let options: Vec<_> = self.v1_options.split(',').collect();
        let own = proc_cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            controllers.split(',').any(|c| options.contains(&c)).then_some(path)
        });
        let own = own.unwrap_or("/");
        own.strip_prefix(self.root.trim_end_matches('/')).unwrap_or("/").trim_start_matches('/').to_string()
    }
}
