//! `create`: everything up to execve; all of it or nothing.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_cgroup::{Cgroup, Hierarchy, Limits};
use pinnace_launcher::protocol::{ContainerRef, Launch, Reply, Request};
use pinnace_launcher::{namespaces, plan};
use pinnace_spec::lower::{CgroupJoin, Context, MissingSource, PodNamespaces, Stdio};
use pinnace_sys::clone::{NEWCGROUP, NEWIPC, NEWNET, NEWUTS};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::bundle::{Bundle, Maps, OWN_USER_NAMESPACE};
use crate::hooks;
use crate::log::Log;
use crate::monitor::{self, Monitor};
use crate::runtime::{Runtime, open_directory, path_of, with_host};
use crate::state::{CONFIG, Container, ProcessId, Record, START_SOCKET, Status, UserNamespace};

/// The one container of a monitor.
pub(crate) const CONTAINER: &str = "container";

/// How long the kernel may take to reap what was killed.
pub(crate) const REAPING: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub options: Options,
    /// Container id, unique below `--root`
    pub id: String,
}

/// What `create` and `run` have in common.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Write the process id to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Unix socket that gets the terminal's master
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Pass on this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Refused: a root that is not pivoted to can be left
    #[arg(long)]
    no_pivot: bool,
    /// Refused: every container has a session keyring of its own
    #[arg(long)]
    no_new_keyring: bool,
}

impl Arguments {
    /// `create`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let (terminal, console) = (self.options.wants_terminal()?, &self.options.console_socket);
        let console = match (terminal, console) {
            (true, Some(path)) => Some(dial_console(path)?),
            (true, None) => bail!("process.terminal: its other end needs a receiver, give --console-socket"),
            (false, Some(_)) => bail!("--console-socket: the program has no terminal (process.terminal)"),
            (false, None) => None,
        };
        let created = create(runtime, &self.id, &self.options, console, true)?;
        created.monitor.leave()
    }
}

impl Options {
    /// Whether the bundle's program is to have a terminal.
    pub fn wants_terminal(&self) -> anyhow::Result<bool> {
        let bundle = Bundle::load(&self.bundle)?;
        Ok(bundle.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false))
    }
}

/// A container that waits for its start.
#[derive(Debug)]
pub(crate) struct Created {
    pub container: Container,
    /// Its monitor, to be left or to be listened to.
    pub monitor: Monitor,
}

/// What has been made so far, taken away again unless the creation comes to its end.
#[derive(Debug)]
struct Undo {
    directory: PathBuf,
    cgroup: Option<Cgroup>,
    poststop: Option<(Vec<plan::Hook>, Vec<u8>)>,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // The error that has led here is the one to tell.
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill_all();
            let _ = cgroup.remove(REAPING);
        }
        let _ = fs::remove_dir_all(&self.directory);
        if let Some((hooks, state)) = &self.poststop {
            hooks::run_all("poststop", hooks, state);
        }
    }
}

/// Creates a container; the terminal's master, if there is one, goes to `console`. `leaves` says what will become of the
/// monitor, see [`Monitor::begin`].
pub(crate) fn create(
    runtime: &Runtime,
    id: &str,
    options: &Options,
    console: Option<OwnedFd>,
    leaves: bool,
) -> anyhow::Result<Created> {
    if options.no_pivot {
        bail!("--no-pivot: a container that keeps the host's root can be left; it is refused");
    }
    if options.no_new_keyring {
        bail!("--no-new-keyring: a container with the host's keyring could read it; it is refused");
    }
    runtime.directory(id)?;
    let bundle = Bundle::load(&options.bundle)?;
    let hooks = hooks::Lowered::of(bundle.spec.hooks().as_ref())?;
    if bundle.user.is_some() && hooks.before_root() {
        bail!("hooks: before the root changes they are not supported in a user namespace");
    }
    let cgroup_path = bundle.cgroup(runtime, id)?;
    let program = monitor::program()?;

    let directory = runtime.reserve(id)?;
    let mut undo = Undo { directory: directory.clone(), cgroup: None, poststop: None, armed: true };
    let mut container = Container {
        directory,
        record: Record {
            id: id.to_owned(),
            oci_version: bundle.spec.version().clone(),
            bundle: bundle.directory.clone(),
            rootfs: bundle.rootfs.clone(),
            cgroup: cgroup_path.to_string(),
            created: jiff::Timestamp::now().to_string(),
            annotations: bundle.spec.annotations().clone().unwrap_or_default(),
            process: None,
            started: false,
            user: None,
        },
    };
    let _lock = container.lock()?;
    container.save()?;
    fs::copy(bundle.directory.join(CONFIG), container.directory.join(CONFIG)).context("copy config.json")?;

    let hierarchy = Hierarchy::detect()?;
    let resources = bundle.resources();
    let cgroup = Cgroup::create(&hierarchy, &cgroup_path, &Limits::container(&resources))?;
    undo.cgroup = Some(cgroup.clone());

    let (plan, descriptors) = lower(&bundle, &container, &hooks, &cgroup, options, console)?;
    let user = match &bundle.user {
        Some(maps) => Some(make_user_namespace(&program, maps)?),
        None => None,
    };
    container.record.user = user.as_ref().map(|(_, uid, gid)| {
        let namespaces = plan.namespaces.clone().unwrap_or_default();
        let joined = namespaces.join.iter().fold(0, |kinds, join| kinds | join.kind);
        let own = namespaces.create & (NEWNET | NEWIPC | NEWUTS | NEWCGROUP) | joined;
        UserNamespace { own, uid: *uid, gid: *gid }
    });
    let run_directory = open_directory(&container.directory)?;
    let user = user.as_ref().map(|(namespace, uid, gid)| (namespace.as_fd(), *uid, *gid));
    let mut monitor = Monitor::begin(program.as_fd(), id, run_directory.as_fd(), leaves, user)?;

    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let launch = Launch { container_id: CONTAINER.to_owned(), plan: Some(plan) };
    let mut reply = monitor.ask(Request::Launch(launch), &borrowed)?;
    if let Reply::Paused(launched) = &reply {
        container.record.process = Some(ProcessId::of(launched.pid)?);
        container.save()?;
        undo.poststop = Some((hooks.poststop.clone(), hooks::state(&container.record, Status::Stopped)));
        hooks.run_creating(&container.record)?;
        reply = monitor.ask(Request::Start(ContainerRef { container_id: CONTAINER.to_owned() }), &[])?;
    }
    let Reply::Launched(launched) = reply else { bail!("the monitor answered a launch with {reply:?}") };
    container.record.process = Some(ProcessId::of(launched.pid)?);
    container.save()?;
    if let Some(path) = &options.pid_file {
        write_pid(path, launched.pid)?;
    }
    undo.armed = false;
    Ok(Created { container, monitor })
}

/// The plan of the bundle, with everything that is not in its spec.
fn lower(
    bundle: &Bundle,
    container: &Container,
    hooks: &hooks::Lowered,
    cgroup: &Cgroup,
    options: &Options,
    console: Option<OwnedFd>,
) -> anyhow::Result<(plan::LaunchPlan, Vec<OwnedFd>)> {
    let spec = bundle.lowerable()?;
    let join = cgroup.join_fds()?;
    let rootfs = bundle.rootfs()?;
    let user = bundle.user.as_ref().map(|_| OWN_USER_NAMESPACE.into());
    let lowered = with_host(|host| {
        let context = Context {
            rootfs,
            cgroup: CgroupJoin { tasks: join.tasks, directory: join.clone_into, ..CgroupJoin::default() },
            stdio: Stdio::default(),
            pod: PodNamespaces { user, ..PodNamespaces::default() },
            sources: HashMap::new(),
            missing_source: MissingSource::Refuse,
            binary_env: Vec::new(),
            hold: true,
            host,
        };
        Ok(pinnace_spec::lower(&spec, context)?)
    })?;
    for warning in &lowered.warnings {
        Log::warn(&anyhow::anyhow!(warning.clone()));
    }
    let (mut plan, mut descriptors) = (lowered.plan, lowered.descriptors);
    let mut slot = |descriptor: OwnedFd| {
        descriptors.push(descriptor);
        plan::Slot::try_from(descriptors.len() - 1).unwrap_or(plan::Slot::MAX)
    };
    let stage = match hooks.before_root() {
        false => None,
        true => {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let host =
                openat(CWD, "/proc/self/ns/mnt", flags, Mode::empty()).context("open our mount namespace")?;
            let rootfs = bundle.rootfs.as_os_str().as_bytes().to_vec();
            Some(plan::HookStage { host_mounts: slot(host), rootfs })
        }
    };
    plan.hooks = hooks.plan(&container.record, stage)?;
    plan.start_socket = Some(slot(listen_at_start(&container.directory)?));
    plan.stdio = Some(stdio(console, options.preserve_fds, &mut slot)?);
    Ok((plan, descriptors))
}

/// Our own streams for the program, or a terminal whose master goes to `console`; and descriptors from 3 on.
pub(crate) fn stdio(
    console: Option<OwnedFd>,
    preserve: u32,
    slot: &mut impl FnMut(OwnedFd) -> plan::Slot,
) -> anyhow::Result<plan::Stdio> {
    let mut stdio = plan::Stdio::default();
    match console {
        Some(console) => stdio.console_slot = Some(slot(console)),
        None => {
            let mut own =
                |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(&mut *slot).context("copy our streams");
            stdio.stdin_slot = Some(own(io::stdin().as_fd())?);
            stdio.stdout_slot = Some(own(io::stdout().as_fd())?);
            stdio.stderr_slot = Some(own(io::stderr().as_fd())?);
        }
    }
    for number in (3..).take(usize::try_from(preserve)?) {
        let path = format!("/proc/self/fd/{number}");
        // By its number, for nobody in this process owns it; what it is open on is passed on, whatever its kind.
        let inherited =
            pinnace_sys::descriptor::inherited(number).with_context(|| format!("--preserve-fds: {path}"))?;
        stdio.inherited.push(slot(inherited));
    }
    Ok(stdio)
}

/// The socket at which init waits.
fn listen_at_start(directory: &Path) -> anyhow::Result<OwnedFd> {
    let directory = open_directory(directory)?;
    let listen_there = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(path_of(directory.as_fd(), START_SOCKET))?)?;
        listen(&socket, 1)?;
        Ok(socket)
    };
    listen_there().map_err(|errno: rustix::io::Errno| errno).context("make the start socket")
}

/// Connects to whoever wants the terminal's master.
pub(crate) fn dial_console(path: &Path) -> anyhow::Result<OwnedFd> {
    let name = path.file_name().and_then(|name| name.to_str()).context("--console-socket: names no file")?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = open_directory(parent)?;
    let dial = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path_of(directory.as_fd(), name))?)?;
        Ok(socket)
    };
    dial()
        .map_err(|errno: rustix::io::Errno| errno)
        .with_context(|| format!("--console-socket {}", path.display()))
}

fn make_user_namespace(program: &OwnedFd, maps: &Maps) -> anyhow::Result<(OwnedFd, u32, u32)> {
    let (uid, gid) = (Maps::root(&maps.uids)?, Maps::root(&maps.gids)?);
    let made = namespaces::make(program.as_fd(), &maps.uids, &maps.gids, namespaces::Wanted::default())?;
    Ok((made.user, uid, gid))
}

/// Whole or not at all: whoever waits for the file reads it as soon as it is there.
pub(crate) fn write_pid(path: &Path, pid: i32) -> anyhow::Result<()> {
    let name = path.file_name().context("--pid-file: names no file")?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    fs::write(&temporary, pid.to_string())
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("--pid-file {}", path.display()))
}
