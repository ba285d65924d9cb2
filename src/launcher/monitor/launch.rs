//! Births: a plan becomes a child, the child's words become a reply.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use pinnace_sys::clone::{Cloned, NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWUTS, clone_process};
use pinnace_sys::process::Ended;
use rustix::pipe::{PipeFlags, pipe_with};

use super::Monitor;
use super::pod::{Pod, SIGKILL};
use super::poller::{Interest, Source};
use super::task::{Birth, Caller, OomCounter, Phase, Task};
use super::user::{self, Birthplace};
use crate::client::valid_id;
use crate::failure::{At, Failure};
use crate::init::control::{self, Control, Word};
use crate::init::{self, Kit, UserNamespace, errno};
use crate::log::{self, Log, Origin};
use crate::plan::{CgroupJoin, Namespaces, Slot, Stdio};
use crate::procfs::Procfs;
use crate::protocol::{Exec, Launch, Launched, Reply};
use crate::slots::Slots;

/// For a child to get from clone to execve. Mounts of a dead network file system can take for ever.
const BIRTH: Duration = Duration::from_secs(60);

/// Namespaces that a container can have of its own.
const CREATABLE: u64 = NEWNET | NEWIPC | NEWUTS | NEWCGROUP | NEWPID | NEWNS;

/// Namespaces that a session joins beside the mount and the PID namespace.
const SESSION_JOINS: u64 = NEWNET | NEWIPC | NEWUTS | NEWCGROUP;

/// The child's ends of its streams, and ours.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub child: [Option<OwnedFd>; 3],
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Monitor {
    pub(super) fn launch(&mut self, caller: Caller, launch: Launch, slots: &Slots) -> Result<(), Failure> {
        let id = &launch.container_id;
        let pod = self.ready_pod()?;
        self.is_free(id, "")?;
        let plan = launch.plan.as_ref().ok_or_else(|| init::missing("plan"))?;
        if let Some(external) = &plan.external {
            return self.launch_external(caller, &launch, external, slots);
        }
        let process = plan.process.as_ref().ok_or_else(|| init::missing("process"))?;
        let namespaces = plan.namespaces.clone().unwrap_or_default();
        if namespaces.create & !CREATABLE != 0 {
            let flags = format!("{:#x}", namespaces.create);
            return Err(Failure::refused("namespace", flags, "cannot be created for a container"));
        }
        let stdio = plan.stdio.clone().unwrap_or_default();
        let log = open_log(&stdio, slots)?;
        let streams = if process.terminal { Streams::default() } else { container_streams(&stdio, slots)? };
        let (ours, theirs) = control::pair()?;
        let kit = Kit {
            stdio: streams.child.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd)),
            hold: plan.hold,
            start_socket: plan.start_socket.map(|slot| slots.at(slot)).transpose()?,
            ..kit(&theirs, &self.procfs, slots, &stdio)?
        };
        let oom = oom_counter(plan.cgroup.as_ref(), slots)?;
        let inherited = pod.namespaces;
        let pid_namespace = self.pid_namespace(pod, &namespaces, slots)?;
        // The cgroup namespace comes later, from inside the cgroup.
        let mut flags = NEWNS | namespaces.create & !NEWCGROUP;
        match (&pid_namespace, namespaces.host_pid) {
            (Some(_), _) | (None, true) => flags &= !NEWPID,
            (None, false) => flags |= NEWPID,
        }
        let cgroup = cgroup_directory(plan.cgroup.as_ref(), slots)?;
        let run = || init::container(plan, inherited, &kit);
        let (cloned, user) = if namespaces.pod_user {
            let user = pod
                .user
                .as_ref()
                .ok_or_else(|| Failure::refused("state", "", "the pod has no user namespace"))?;
            let place = Birthplace {
                user: user.as_fd(),
                pid_namespace: pid_namespace.as_ref().map(AsFd::as_fd),
                fresh: flags,
                cgroup,
            };
            let root = pod.root;
            let prepare = || {
                init::raise(process, &self.procfs)?;
                init::give(kit.stdio, process, root)
            };
            let cloned = user::clone_in(&place, &self.kept(&kit), prepare, run)?;
            let joined = namespaces.join.iter().fold(0, |kinds, join| kinds | join.kind);
            let own = namespaces.create & SESSION_JOINS | joined;
            (cloned, Some(UserNamespace { own, root }))
        } else {
            (self.clone_into(pid_namespace.as_ref(), flags, cgroup, &kit, run)?, None)
        };
        let task = Task {
            container_id: id.clone(),
            user,
            exec_id: String::new(),
            terminal: process.terminal,
            interactive: process.terminal && stdio.stdin,
            stdin_once: stdio.stdin_once,
            max_line_bytes: stdio.max_line_bytes,
            log,
            oom,
            ..unborn(cloned, ours, caller, plan.hold)
        };
        self.add_task(task, streams).map(drop)
    }

    pub(super) fn exec(&mut self, caller: Caller, exec: Exec, slots: &Slots) -> Result<(), Failure> {
        self.is_free(&exec.container_id, &exec.exec_id)?;
        if let Some(external) = &exec.external {
            return self.exec_external(caller, &exec, external, slots);
        }
        let process = exec.process.as_ref().ok_or_else(|| init::missing("process"))?;
        let stdio = exec.stdio.clone().unwrap_or_default();
        let at = |slot: Option<Slot>| slot.map(|slot| slots.at(slot)).transpose();
        let given = [at(stdio.stdin_slot)?, at(stdio.stdout_slot)?, at(stdio.stderr_slot)?];
        let (target, user) = self.exec_target(&exec, slots)?;
        let (ours, theirs) = control::pair()?;
        let kit = Kit { stdio: given, ..kit(&theirs, &self.procfs, slots, &stdio)? };
        let oom = oom_counter(exec.cgroup.as_ref(), slots)?;
        let cgroup = cgroup_directory(exec.cgroup.as_ref(), slots)?;
        // The session's child is born in the container's PID namespace: one can only be born into it, not move there.
        let cloned = self.clone_into(Some(&target), 0, cgroup, &kit, || {
            init::session(process, exec.cgroup.as_ref(), target.as_fd(), user, &kit)
        })?;
        let task = Task {
            container_id: exec.container_id.clone(),
            exec_id: exec.exec_id.clone(),
            terminal: process.terminal,
            interactive: process.terminal && stdio.stdin_slot.is_some(),
            oom,
            ..unborn(cloned, ours, caller, false)
        };
        let id = self.add_task(task, Streams::default())?;
        if process.terminal && stdio.console_slot.is_none() {
            self.attach_session(id, &stdio, slots)?;
        }
        Ok(())
    }

    /// Joins a session's slots to its terminal.
    pub(super) fn attach_session(&mut self, id: u32, stdio: &Stdio, slots: &Slots) -> Result<(), Failure> {
        let take = |slot: Option<Slot>| slot.map(|slot| slots.take(slot)).transpose();
        let outputs = [(Origin::Stdout, take(stdio.stdout_slot)?), (Origin::Stderr, None)];
        self.attach(id, take(stdio.stdin_slot)?, outputs, true, None)
    }

    /// What a session joins.
    fn exec_target(&self, exec: &Exec, slots: &Slots) -> Result<(OwnedFd, Option<UserNamespace>), Failure> {
        if let Some(foreign) = &exec.foreign {
            let user = foreign
                .user
                .as_ref()
                .map(|user| UserNamespace { own: user.own, root: (user.root_uid, user.root_gid) });
            return Ok((slots.take(foreign.process)?, user));
        }
        let container = self.find(&exec.container_id, "")?;
        match self.tasks.get(&container) {
            Some(task) if matches!(task.phase, Phase::Running) => {
                Ok((rustix::io::fcntl_dupfd_cloexec(&task.pidfd, 3).at("exec", "fcntl", "")?, task.user))
            }
            _ => Err(Failure::refused("state", &exec.container_id, "container does not run")),
        }
    }

    /// Lets a paused launch or a held container go on.
    pub(super) fn start(&mut self, caller: Caller, container_id: &str) -> Result<(), Failure> {
        let (_, task) = self.find_alive(container_id, "")?;
        match &mut task.phase {
            Phase::Born(birth)
                if birth.caller.is_none() && (birth.paused || birth.hold && birth.prepared) =>
            {
                control::start(&birth.control)?;
                birth.hold &= birth.paused;
                birth.paused = false;
                birth.caller = Some(caller);
                birth.deadline = Some(Instant::now() + BIRTH);
                Ok(())
            }
            _ => Err(Failure::refused("state", container_id, "container is not held")),
        }
    }

    fn ready_pod(&self) -> Result<&Pod, Failure> {
        self.pod.as_ref().ok_or_else(|| Failure::refused("state", "", "the pod has not been set up"))
    }

    fn is_free(&self, container_id: &str, exec_id: &str) -> Result<(), Failure> {
        let id = if exec_id.is_empty() { container_id } else { exec_id };
        if !valid_id(id) {
            return Err(Failure::refused("container", id, "not a valid id"));
        }
        match self.find(container_id, exec_id) {
            Ok(_) => Err(Failure::refused("container", id, "exists already")),
            Err(_) => Ok(()),
        }
    }

    /// A process of the PID namespace to be born into, if it is not a new one or ours.
    fn pid_namespace(
        &self,
        pod: &Pod,
        namespaces: &Namespaces,
        slots: &Slots,
    ) -> Result<Option<OwnedFd>, Failure> {
        if let Some(join) = namespaces.join.iter().find(|join| join.kind == NEWPID) {
            return slots.take(join.slot).map(Some);
        }
        let pidfd = if !namespaces.target_container.is_empty() {
            let target = self.find(&namespaces.target_container, "")?;
            match self.tasks.get(&target) {
                Some(task) if matches!(task.phase, Phase::Running) => &task.pidfd,
                _ => {
                    let message = "target container does not run";
                    return Err(Failure::refused("state", &namespaces.target_container, message));
                }
            }
        } else if namespaces.pod_pid {
            match &pod.init {
                Some(init) => &init.pidfd,
                None => return Err(Failure::refused("state", "", "the pod has no PID namespace")),
            }
        } else {
            return Ok(None);
        };
        rustix::io::fcntl_dupfd_cloexec(pidfd, 3).at("namespace", "fcntl", "").map(Some)
    }

    /// Clones a child into the PID namespace of a process; it keeps the descriptors of its kit and nothing else.
    fn clone_into(
        &self,
        pid_namespace: Option<&OwnedFd>,
        flags: u64,
        cgroup: Option<BorrowedFd<'_>>,
        kit: &Kit<'_>,
        child: impl FnOnce() -> u8,
    ) -> Result<Cloned, Failure> {
        let mut keep = self.kept(kit);
        keep.extend(pid_namespace.map(AsFd::as_fd));
        if let Some(process) = pid_namespace {
            setns(process, CloneFlags::CLONE_NEWPID).map_err(errno).at("namespace", "setns", "pid")?;
        }
        let cloned = clone_process(flags, cgroup, &keep, child).at("clone", "clone3", "");
        if pid_namespace.is_some() {
            // Never fails: it is our own, and we are root in the user namespace that owns it.
            setns(&self.own, CloneFlags::CLONE_NEWPID).map_err(errno).at("namespace", "setns", "pid")?;
        }
        cloned
    }

    /// The descriptors of a child.
    fn kept<'a>(&'a self, kit: &Kit<'a>) -> Vec<BorrowedFd<'a>> {
        let mut keep: Vec<BorrowedFd<'a>> = kit.slots.all().collect();
        keep.extend(kit.stdio.into_iter().flatten());
        keep.extend([kit.control.given(), self.procfs.as_fd()]);
        keep
    }

    /// Takes a newborn into the loop. Should that fail it is killed, and the reaping finds nobody waiting.
    pub(super) fn add_task(&mut self, task: Task, streams: Streams) -> Result<u32, Failure> {
        let id = self.name();
        let pidfd = rustix::io::fcntl_dupfd_cloexec(&task.pidfd, 3).at("launch", "fcntl", "")?;
        if let Phase::Born(birth) = &task.phase {
            self.poller.watch(birth.control.as_fd(), Source::Control(id), Interest::READ).at(
                "launch",
                "epoll_ctl",
                "",
            )?;
        }
        self.tasks.insert(id, Box::new(task));
        let added = self.add_streams(id, streams);
        if added.is_err() {
            // Already gone is as good.
            let _ = pinnace_sys::process::signal(pidfd.as_fd(), SIGKILL);
            self.remove(id);
        }
        added.map(|()| id)
    }

    fn add_streams(&mut self, id: u32, streams: Streams) -> Result<(), Failure> {
        if let Some(fd) = streams.stdin {
            self.add_input(id, fd)?;
        }
        for (origin, fd) in [(Origin::Stdout, streams.stdout), (Origin::Stderr, streams.stderr)] {
            if let Some(fd) = fd {
                self.add_output(id, origin, fd)?;
            }
        }
        Ok(())
    }

    /// Init says something.
    pub(super) fn on_control(&mut self, id: u32) {
        loop {
            let Some(task) = self.tasks.get_mut(&id) else { return };
            let pid = task.pid.as_raw_nonzero().get();
            let Phase::Born(birth) = &mut task.phase else { return };
            match control::hear(&birth.control) {
                Ok(None) => return,
                Ok(Some(Word::Terminal(master))) => {
                    if let Err(failure) = self.add_terminal(id, master) {
                        return self.abandon(id, failure);
                    }
                }
                Ok(Some(Word::Paused)) => {
                    birth.paused = true;
                    birth.deadline = None;
                    if let Some(caller) = birth.caller.take() {
                        self.answer(caller, Reply::Paused(Launched { pid, started_at_ns: 0 }));
                    }
                }
                Ok(Some(Word::Prepared)) => {
                    birth.prepared = true;
                    if birth.hold {
                        birth.deadline = None;
                        if let Some(caller) = birth.caller.take() {
                            self.answer(caller, Reply::Launched(Launched { pid, started_at_ns: 0 }));
                        }
                    }
                }
                Ok(Some(Word::Failed(failure))) => birth.failure = Some(failure),
                Ok(Some(Word::End)) => return self.on_end_of_control(id),
                Err(failure) => return self.abandon(id, failure),
            }
        }
    }

    /// The control socket has closed: by execve if all was well until then.
    fn on_end_of_control(&mut self, id: u32) {
        self.forget_control(id);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let pid = task.pid.as_raw_nonzero().get();
        let Phase::Born(birth) = &mut task.phase else { return };
        // Otherwise it is about to be reaped, and that is when the failure is reported. One that died while it was held
        // has not failed to start.
        if !birth.prepared || birth.failure.is_some() || birth.caller.is_none() {
            return;
        }
        let caller = birth.caller.take();
        task.phase = Phase::Running;
        task.started_at_ns = log::now_ns();
        let launched = Launched { pid, started_at_ns: task.started_at_ns };
        if let Some(caller) = caller {
            self.answer(caller, Reply::Launched(launched));
        }
    }

    fn abandon(&mut self, id: u32, failure: Failure) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        // Already gone is as good.
        let _ = task.signal(SIGKILL);
        if let Phase::Born(birth) = &mut task.phase {
            birth.failure = Some(failure);
        }
        self.forget_control(id);
    }

    /// Init ended without having executed its program: there is no container, and nothing is left of it.
    pub(super) fn fail_birth(&mut self, id: u32, end: &Ended) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let (Phase::Born(birth), container_id) = (&mut task.phase, &task.container_id) else { return };
        let failure = birth.failure.take().unwrap_or_else(|| {
            let how = match end.signal {
                Some(signal) => format!("killed by signal {signal} before it executed its program"),
                None => format!("ended with status {} before it executed its program", end.code),
            };
            Failure::refused("init", container_id, how)
        });
        let caller = birth.caller.take();
        self.remove(id);
        if let Some(caller) = caller {
            self.answer(caller, Reply::Failed(failure));
        }
    }
}

pub(super) fn unborn(cloned: Cloned, control: OwnedFd, caller: Caller, hold: bool) -> Task {
    let owner = caller.connection;
    let birth = Birth {
        control,
        caller: Some(caller),
        deadline: Some(Instant::now() + BIRTH),
        hold,
        paused: false,
        prepared: false,
        failure: None,
    };
    Task {
        container_id: String::new(),
        exec_id: String::new(),
        user: None,
        owner,
        pid: cloned.pid,
        pidfd: cloned.pidfd,
        phase: Phase::Born(birth),
        started_at_ns: 0,
        stdout: None,
        stderr: None,
        input: None,
        interactive: false,
        stdin_once: false,
        terminal: false,
        hung_up: false,
        max_line_bytes: 0,
        log: None,
        oom: None,
        foreign: None,
    }
}

/// What both kinds of children are given; the rest is the container's.
fn kit<'a>(
    control: &'a OwnedFd,
    procfs: &'a Procfs,
    slots: &'a Slots,
    stdio: &Stdio,
) -> Result<Kit<'a>, Failure> {
    Ok(Kit {
        control: Control::new(control.as_fd()),
        procfs,
        slots,
        stdio: [None; 3],
        hold: false,
        start_socket: None,
        console: stdio.console_slot.map(|slot| slots.at(slot)).transpose()?,
        inherited: stdio.inherited.iter().map(|slot| slots.at(*slot)).collect::<Result<_, _>>()?,
    })
}

pub(super) fn open_log(stdio: &Stdio, slots: &Slots) -> Result<Option<Log>, Failure> {
    stdio
        .log_directory
        .map(|slot| Log::open(slots.take(slot)?, &stdio.log_path, stdio.max_log_bytes))
        .transpose()
}

pub(super) fn oom_counter(cgroup: Option<&CgroupJoin>, slots: &Slots) -> Result<Option<OomCounter>, Failure> {
    let take = |slot: Option<Slot>| slot.map(|slot| slots.take(slot)).transpose();
    let Some(file) = take(cgroup.and_then(|cgroup| cgroup.oom_counter))? else { return Ok(None) };
    let group = take(cgroup.and_then(|cgroup| cgroup.group_oom_counter))?;
    Ok(Some(OomCounter::new(file, group)))
}

fn cgroup_directory<'a>(
    cgroup: Option<&CgroupJoin>,
    slots: &'a Slots,
) -> Result<Option<BorrowedFd<'a>>, Failure> {
    cgroup.and_then(|cgroup| cgroup.directory).map(|slot| slots.at(slot)).transpose()
}

/// Pipes to the monitor, or the descriptors that were given.
pub(super) fn container_streams(stdio: &Stdio, slots: &Slots) -> Result<Streams, Failure> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).at("stdio", "pipe2", "");
    let take = |slot: Option<Slot>| slot.map(|slot| slots.take(slot)).transpose();
    let mut streams = Streams {
        child: [take(stdio.stdin_slot)?, take(stdio.stdout_slot)?, take(stdio.stderr_slot)?],
        ..Streams::default()
    };
    let [stdin, stdout, stderr] = &mut streams.child;
    if stdin.is_none() && stdio.stdin {
        let (read, write) = pipe()?;
        (*stdin, streams.stdin) = (Some(read), Some(write));
    }
    // Even without a log: somebody may attach, and a closed pipe would kill the program.
    for (child, ours) in [(stdout, &mut streams.stdout), (stderr, &mut streams.stderr)] {
        if child.is_none() {
            let (read, write) = pipe()?;
            (*child, *ours) = (Some(write), Some(read));
        }
    }
    Ok(streams)
}
