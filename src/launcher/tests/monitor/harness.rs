//! A pod for a test: monitor, run directory, log directory, root file system.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pinnace_launcher::client::{self, Connection};
use pinnace_launcher::plan::{
    Capabilities, LaunchPlan, Link, Mount, MountSource, Namespaces, NewFilesystem, Process, Slot, Stdio,
};
use pinnace_launcher::protocol::{
    Exec, Exited, Failure, Hello, Launch, Launched, Reply, Request, Setup, State,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{OpenTreeFlags, open_tree};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(20);

pub const NEWNET: u64 = 0x4000_0000;
pub const NEWCGROUP: u64 = 0x200_0000;

pub const NOSUID: u64 = 2;
pub const NODEV: u64 = 4;
pub const NOEXEC: u64 = 8;

pub fn program() -> BorrowedFd<'static> {
    static PROGRAM: OnceLock<OwnedFd> = OnceLock::new();
    PROGRAM
        .get_or_init(|| client::seal(&fs::read(env!("CARGO_BIN_EXE_pinnace-monitor")).unwrap()).unwrap())
        .as_fd()
}

pub fn open_directory(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// A detached copy of the mount at a path, as a daemon would send it.
pub fn tree(path: &Path) -> OwnedFd {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).unwrap()
}

/// A directory that looks like an image with busybox in it.
pub fn image() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "ls", "id", "true", "false", "sleep", "echo", "kill", "mount", "readlink", "stty",
        "hostname", "ps", "dd", "head", "yes", "tr", "wc", "stat", "touch", "mkdir", "pwd", "env", "umount",
        "mknod", "grep", "seq", "test", "rm", "printf",
    ] {
        symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    root
}

/// A plan with the descriptors of its slots.
#[derive(Debug)]
pub struct Planned {
    pub plan: LaunchPlan,
    pub fds: Vec<OwnedFd>,
}

impl Planned {
    /// A container as CRI asks for, with that command.
    pub fn new(image: &Path, args: &[&str]) -> Self {
        let mut planned = Self { plan: LaunchPlan::default(), fds: Vec::new() };
        planned.plan.rootfs = planned.slot(tree(image));
        planned.plan.namespaces = Some(Namespaces::default());
        planned.plan.process = Some(process(args));
        planned.plan.stdio = Some(Stdio::default());
        let mount = |target: &str, fstype: &str, options: &[&str], attributes| Mount {
            target: target.into(),
            source: Some(MountSource::New(NewFilesystem {
                fstype: fstype.to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
            })),
            attributes,
            no_symlinks: matches!(target, "/proc" | "/sys"),
            ..Mount::default()
        };
        planned.plan.mounts = vec![
            mount("/proc", "proc", &[], NOSUID | NODEV | NOEXEC),
            mount("/dev", "tmpfs", &["mode=755", "size=65536k"], NOSUID),
            mount("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620"], NOSUID | NOEXEC),
        ];
        planned.plan.devices = [(3, "null"), (5, "zero"), (7, "full"), (8, "random"), (9, "urandom")]
            .iter()
            .map(|(minor, name)| pinnace_launcher::plan::Device {
                path: format!("/dev/{name}").into_bytes(),
                mode: 0o020_666,
                major: 1,
                minor: *minor,
                ..Default::default()
            })
            .collect();
        planned.plan.devices.push(pinnace_launcher::plan::Device {
            path: b"/dev/tty".to_vec(),
            mode: 0o020_666,
            major: 5,
            ..Default::default()
        });
        planned.plan.links = [("fd", "/proc/self/fd"), ("stdout", "/proc/self/fd/1"), ("ptmx", "pts/ptmx")]
            .iter()
            .map(|(name, target)| Link {
                path: format!("/dev/{name}").into_bytes(),
                target: target.as_bytes().to_vec(),
            })
            .collect();
        planned
    }

    pub fn shell(image: &Path, script: &str) -> Self {
        Self::new(image, &["sh", "-c", script])
    }

    pub fn slot(&mut self, fd: OwnedFd) -> Slot {
        self.fds.push(fd);
        Slot::try_from(self.fds.len() - 1).unwrap()
    }

    pub fn process(&mut self) -> &mut Process {
        self.plan.process.as_mut().unwrap()
    }

    pub fn stdio(&mut self) -> &mut Stdio {
        self.plan.stdio.as_mut().unwrap()
    }
}

/// Docker's default capabilities.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

pub fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        cwd: b"/".to_vec(),
        groups: vec![0],
        no_new_privileges: true,
        capabilities: Some(Capabilities {
            bounding: DEFAULT_CAPABILITIES,
            effective: DEFAULT_CAPABILITIES,
            permitted: DEFAULT_CAPABILITIES,
            ..Capabilities::default()
        }),
        ..Process::default()
    }
}

#[derive(Debug)]
pub struct Pod {
    pub child: Child,
    pub connection: Option<Connection>,
    pub run: TempDir,
    pub logs: TempDir,
    pub image: TempDir,
    pub events: VecDeque<Exited>,
    pub next: u64,
    /// From spawning the monitor until the pod was ready.
    pub started_in: Duration,
}

impl Pod {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let mut pod = Self::unset();
        let mut setup = Setup {
            sandbox_id: "sandbox".to_owned(),
            ipc: true,
            hostname: "pod".to_owned(),
            shm_bytes: 1 << 20,
            ..Setup::default()
        };
        change(&mut setup);
        let run = open_directory(pod.run.path());
        let before = Instant::now();
        match pod.call(Request::Setup(setup), &[run.as_fd()]).unwrap() {
            Reply::Ready(ready) => assert_eq!(ready.pid.unsigned_abs(), pod.child.id()),
            other => panic!("{other:?}"),
        }
        pod.started_in += before.elapsed();
        pod
    }

    /// A monitor that has been greeted but not set up.
    pub fn unset() -> Self {
        let image = image();
        let program = program();
        let before = Instant::now();
        let monitor = client::spawn(program, "sandbox", Some(rustix::stdio::stderr())).unwrap();
        let mut pod = Self {
            child: monitor.child,
            connection: Some(monitor.connection),
            run: tempfile::tempdir().unwrap(),
            logs: tempfile::tempdir().unwrap(),
            image,
            events: VecDeque::new(),
            next: 0,
            started_in: Duration::ZERO,
        };
        let state = pod.hello();
        pod.started_in = before.elapsed();
        assert!(!state.ready && state.containers.is_empty());
        pod
    }

    pub fn hello(&mut self) -> State {
        match self.call(Request::Hello(Hello { version: 1 }), &[]).unwrap() {
            Reply::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    pub fn call(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Failure> {
        self.next += 1;
        let events = &mut self.events;
        let connection = self.connection.as_ref().unwrap();
        let collect = |event| match event {
            Reply::Exited(exited) => events.push_back(exited),
            other => panic!("not an event: {other:?}"),
        };
        match connection.call(self.next, request, fds, LIMIT, collect) {
            Ok(reply) => Ok(reply),
            Err(client::Error::Refused(failure)) => Err(failure),
            Err(error) => panic!("{error:?}"),
        }
    }

    pub fn launch(&mut self, id: &str, planned: &Planned) -> Result<Launched, Failure> {
        let fds: Vec<_> = planned.fds.iter().map(AsFd::as_fd).collect();
        let launch = Launch { container_id: id.to_owned(), plan: Some(planned.plan.clone()) };
        match self.call(Request::Launch(launch), &fds)? {
            Reply::Launched(launched) => Ok(launched),
            other => panic!("{other:?}"),
        }
    }

    /// Runs an exec session with its output in a pipe; what it wrote and how it ended.
    pub fn exec(&mut self, container: &str, process: Process) -> Result<(String, Exited), Failure> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        self.next += 1;
        let exec_id = format!("exec-{}", self.next);
        let exec = Exec {
            exec_id: exec_id.clone(),
            container_id: container.to_owned(),
            process: Some(process),
            cgroup: None,
            foreign: None,
            external: None,
            stdio: Some(Stdio { stdout_slot: Some(0), stderr_slot: Some(0), ..Stdio::default() }),
        };
        self.call(Request::Exec(exec), &[write.as_fd()])?;
        drop(write);
        let output = std::io::read_to_string(fs::File::from(read)).unwrap();
        Ok((output, self.exit_of(container, &exec_id)))
    }

    pub fn exit(&mut self, container: &str) -> Exited {
        self.exit_of(container, "")
    }

    pub fn exit_of(&mut self, container: &str, exec_id: &str) -> Exited {
        let deadline = Instant::now() + LIMIT;
        loop {
            let at = self.events.iter().position(|it| it.container_id == container && it.exec_id == exec_id);
            if let Some(at) = at {
                return self.events.remove(at).unwrap();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.connection.as_ref().unwrap().recv_within(left).unwrap();
            match message.reply {
                Some(Reply::Exited(exited)) if message.id == 0 => self.events.push_back(exited),
                other => panic!("not an event: {other:?}"),
            }
        }
    }

    /// Runs a shell script as a container with a log; its output without the log's prefixes, and its end.
    pub fn run(&mut self, id: &str, script: &str) -> (String, Exited) {
        let planned = Planned::shell(self.image.path(), script);
        self.run_planned(id, planned).unwrap()
    }

    pub fn run_planned(&mut self, id: &str, mut planned: Planned) -> Result<(String, Exited), Failure> {
        self.log_to(id, &mut planned);
        self.launch(id, &planned)?;
        let exited = self.exit(id);
        Ok((self.content(id), exited))
    }

    pub fn log_to(&self, id: &str, planned: &mut Planned) {
        let slot = planned.slot(open_directory(self.logs.path()));
        planned.stdio().log_directory = Some(slot);
        planned.stdio().log_path = format!("{id}.log").into_bytes();
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.logs.path().join(format!("{id}.log"))
    }

    pub fn log(&self, id: &str) -> String {
        fs::read_to_string(self.log_path(id)).unwrap()
    }

    /// A log's content without prefixes, put together again.
    pub fn content(&self, id: &str) -> String {
        let mut content = String::new();
        for record in self.log(id).lines() {
            let mut parts = record.splitn(4, ' ');
            let (_, _, tag) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            content.push_str(parts.next().unwrap());
            if tag == "F" {
                content.push('\n');
            }
        }
        content
    }

    pub fn forget(&mut self, id: &str) -> Result<Reply, Failure> {
        let which = pinnace_launcher::protocol::ContainerRef { container_id: id.to_owned() };
        self.call(Request::Forget(which), &[])
    }

    pub fn kill(&mut self, id: &str, signal: i32) -> Result<Reply, Failure> {
        self.call(
            Request::Signal(pinnace_launcher::protocol::Signal {
                container_id: id.to_owned(),
                signal,
                ..Default::default()
            }),
            &[],
        )
    }

    /// The number of its descriptors once it stays the same.
    pub fn settled_descriptors(&self) -> usize {
        let end = Instant::now() + LIMIT;
        let mut count = self.open_descriptors();
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.open_descriptors();
            if now == count {
                return count;
            }
            assert!(Instant::now() < end, "the number of descriptors does not come to rest");
            count = now;
        }
    }

    pub fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Its subreaper duty ends with it: containers in PID namespaces of their own die by its death's consequences,
        // so end them first, by the namespace's first process.
        if let Some(connection) = self.connection.take() {
            let hello = Request::Hello(Hello { version: 1 });
            if let Ok(Reply::State(state)) = connection.call(u64::MAX, hello, &[], LIMIT, |_| {}) {
                for container in state.containers.iter().filter(|container| container.pid > 0) {
                    if let Some(pid) = rustix::process::Pid::from_raw(container.pid) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory of the host that must stay as it is.
#[derive(Debug)]
pub struct Canary {
    pub directory: TempDir,
}

impl Canary {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "host").unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o4755)
            .open(directory.path().join("setuid"))
            .unwrap();
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn assert_untouched(&self) {
        let mut names: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["file", "setuid", "sub"]);
        assert_eq!(fs::read_to_string(self.path().join("file")).unwrap(), "host");
        assert_eq!(fs::read_dir(self.path().join("sub")).unwrap().count(), 0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.path().to_str().unwrap()), "mounted over: {mounts}");
    }
}
