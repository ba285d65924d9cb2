//! Births by another OCI runtime: its commands are run, and the process that they leave behind is adopted.
//!
//! ```text
//! monitor ─clone─► crun create --pid-file ─► its init ──── our child once create has ended (subreaper)
//!    │◄─ ends, 0 ──────┘                        │
//!    ├─ reads the number, watches the process ──┤
//!    ├─clone─► crun start ──────────────────────► execve
//!    │◄─ ends, 0 ──┘                            │
//!    └─ Running                                 └─ its end is told as that of any other child
//! ```
//! An exec session is the same with one command, `exec --detach --pid-file`. Streams and terminals are ours as ever: the
//! first command is given them, and a terminal's master comes over a socket in the run directory. The commands run in the
//! host's namespaces; those of a launch in a copy of its mounts, in which the root file system and other detached mounts
//! stand at paths, and which nobody sees but them and what they start: nothing is in the host's mount table and nothing
//! has to be unmounted.

use std::ffi::CString;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_sys::clone::{Cloned, clone_process};
use pinnace_sys::mount::{Attributes, Reach, SHARED, SLAVE, change_at};
use pinnace_sys::process::{Child, Ended, ended};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, accept_with, recvmsg,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::launch::{Streams, container_streams, oom_counter, open_log, unborn};
use super::pod::{SIGKILL, listen_at};
use super::task::{Caller, OomCounter, Phase, Task};
use super::{Monitor, room};
use crate::failure::{At, Failure};
use crate::init::control::{self, Control};
use crate::init::{NOT_STARTED, default_signals, errno};
use crate::log::{self, Log};
use crate::plan::{CgroupJoin, External, ExternalCommand, Slot, Stdio};
use crate::protocol::{Exec, Launch, Launched, Reply};
use crate::slots::Slots;

const STAGE: &str = "runtime";

/// What is still to be done for a birth.
#[derive(Debug)]
pub(super) struct Foreign {
    plan: External,
    /// Number of the command that runs.
    command: usize,
    running: Cloned,
    directory: OwnedFd,
    namespaces: Vec<(CloneFlags, OwnedFd)>,
    console: Option<OwnedFd>,
    /// Files that take the number of a session's process.
    cgroup: Vec<OwnedFd>,
    adopted: bool,
    /// How the adopted process ended while a command still ran.
    end: Option<Ended>,
}

/// A detached mount and where it is to stand; none is the pod's `/dev/shm`.
type Mounts = Vec<(Option<OwnedFd>, Vec<u8>)>;

/// Whom a birth is of.
struct Newborn<'a> {
    container_id: &'a str,
    exec_id: &'a str,
    terminal: bool,
    log: Option<Log>,
    oom: Option<OomCounter>,
    cgroup: Vec<OwnedFd>,
}

impl Monitor {
    /// A container's birth.
    pub(super) fn launch_external(
        &mut self,
        caller: Caller,
        launch: &Launch,
        external: &External,
        slots: &Slots,
    ) -> Result<(), Failure> {
        let plan = launch.plan.clone().unwrap_or_default();
        let stdio = plan.stdio.unwrap_or_default();
        let terminal = plan.process.is_some_and(|process| process.terminal);
        let newborn = Newborn {
            container_id: &launch.container_id,
            exec_id: "",
            terminal,
            log: open_log(&stdio, slots)?,
            oom: oom_counter(plan.cgroup.as_ref(), slots)?,
            cgroup: Vec::new(),
        };
        let streams = if terminal { Streams::default() } else { container_streams(&stdio, slots)? };
        self.bear(caller, newborn, external, &stdio, streams, slots).map(drop)
    }

    /// A session's birth.
    pub(super) fn exec_external(
        &mut self,
        caller: Caller,
        exec: &Exec,
        external: &External,
        slots: &Slots,
    ) -> Result<(), Failure> {
        let stdio = exec.stdio.clone().unwrap_or_default();
        let terminal = exec.process.as_ref().is_some_and(|process| process.terminal);
        let newborn = Newborn {
            container_id: &exec.container_id,
            exec_id: &exec.exec_id,
            terminal,
            log: None,
            oom: oom_counter(exec.cgroup.as_ref(), slots)?,
            cgroup: cgroup_files(exec.cgroup.as_ref(), slots)?,
        };
        let take = |slot: Option<Slot>| slot.map(|slot| slots.take(slot)).transpose();
        let given = [take(stdio.stdin_slot)?, take(stdio.stdout_slot)?, take(stdio.stderr_slot)?];
        let streams = match terminal {
            true => Streams::default(),
            false => Streams { child: given, ..Streams::default() },
        };
        let id = self.bear(caller, newborn, external, &stdio, streams, slots)?;
        if terminal { self.attach_session(id, &stdio, slots) } else { Ok(()) }
    }

    fn bear(
        &mut self,
        caller: Caller,
        newborn: Newborn<'_>,
        external: &External,
        stdio: &Stdio,
        streams: Streams,
        slots: &Slots,
    ) -> Result<u32, Failure> {
        let directory = slots.take(external.directory)?;
        remove(&directory, &external.pid_file)?;
        let console = if newborn.terminal {
            Some(listen_at(&directory, &external.console, SocketType::STREAM)?)
        } else {
            None
        };
        let kind =
            |kind: u64| i32::try_from(kind).map(CloneFlags::from_bits_retain).unwrap_or(CloneFlags::empty());
        let namespaces = external
            .namespaces
            .iter()
            .map(|join| Ok((kind(join.kind), slots.take(join.slot)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let mounts = external
            .mounts
            .iter()
            .map(|mount| Ok((mount.tree.map(|slot| slots.take(slot)).transpose()?, mount.path.clone())))
            .collect::<Result<Mounts, Failure>>()?;
        let (ours, theirs) = control::pair()?;
        let command =
            external.commands.first().ok_or_else(|| Failure::refused("protocol", "", "no command"))?;
        let child = streams.child.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd));
        let running = begin(command, &external.path, &namespaces, &mounts, child, Some(theirs.as_fd()))?;
        // Until the process is there, whatever is done to the task is done to the command.
        let pidfd = rustix::io::fcntl_dupfd_cloexec(&running.pidfd, 3).at(STAGE, "fcntl", "")?;
        let cloned = Cloned { pid: running.pid, pidfd };
        let foreign = Foreign {
            plan: external.clone(),
            command: 0,
            running,
            directory,
            namespaces,
            console,
            cgroup: newborn.cgroup,
            adopted: false,
            end: None,
        };
        let task = Task {
            container_id: newborn.container_id.to_owned(),
            exec_id: newborn.exec_id.to_owned(),
            terminal: newborn.terminal,
            interactive: newborn.terminal && (stdio.stdin || stdio.stdin_slot.is_some()),
            stdin_once: stdio.stdin_once,
            max_line_bytes: stdio.max_line_bytes,
            log: newborn.log,
            oom: newborn.oom,
            foreign: Some(Box::new(foreign)),
            ..unborn(cloned, ours, caller, false)
        };
        self.add_task(task, streams)
    }

    /// Whether this child is a command, or a process whose birth is not over; then its end has been taken care of.
    pub(super) fn reap_foreign(&mut self, seen: Pid) -> bool {
        let Some((&id, task)) = self.tasks.iter_mut().find(|(_, task)| {
            task.foreign.as_ref().is_some_and(|it| it.running.pid == seen || (it.adopted && task.pid == seen))
        }) else {
            return false;
        };
        let pid = task.pid;
        let Some(foreign) = &mut task.foreign else { return false };
        if foreign.running.pid != seen {
            foreign.end = ended(Child::Of(task.pidfd.as_fd())).ok().flatten();
            return foreign.end.is_some() && pid == seen;
        }
        match ended(Child::Of(foreign.running.pidfd.as_fd())) {
            Ok(Some(end)) => self.on_command_end(id, &end),
            _ => return false,
        }
        true
    }

    /// A child that nobody knows has ended. It may be what a command leaves behind: a short program is over before its
    /// command is, and is ours, and seen, a moment earlier.
    pub(super) fn keep_orphan(&mut self, end: Ended) {
        if self.tasks.values().any(|task| task.adopts()) {
            self.orphans.push(end);
        }
    }

    fn on_command_end(&mut self, id: u32, end: &Ended) {
        self.on_control(id);
        match self.go_on(id, end) {
            Ok(true) => self.end_birth(id),
            Ok(false) => {}
            Err(failure) => {
                let Some(task) = self.tasks.get_mut(&id) else { return };
                if task.foreign.take().is_some_and(|foreign| foreign.adopted && foreign.end.is_none()) {
                    // Already gone is as good; reaped as an orphan.
                    let _ = task.signal(SIGKILL);
                }
                self.drain(id);
                if let Some(Phase::Born(birth)) = self.tasks.get_mut(&id).map(|task| &mut task.phase) {
                    birth.failure.get_or_insert(failure);
                }
                self.fail_birth(id, end);
            }
        }
        if !self.tasks.values().any(|task| task.adopts()) {
            self.orphans.clear();
        }
    }

    /// The next command, or the end of the birth: `true`.
    fn go_on(&mut self, id: u32, end: &Ended) -> Result<bool, Failure> {
        let Some(task) = self.tasks.get_mut(&id) else { return Ok(false) };
        let Some(foreign) = &mut task.foreign else { return Ok(false) };
        let name = |command: &ExternalCommand| command.args.first().cloned().unwrap_or_default();
        let path = foreign.plan.commands.get(foreign.command).map(name).unwrap_or_default();
        if end.code != 0 {
            let how = match end.signal {
                Some(signal) => format!("was killed by signal {signal}"),
                None => format!("ended with status {}", end.code),
            };
            return Err(Failure::refused(STAGE, path, how));
        }
        if !foreign.adopted {
            let pid;
            (pid, foreign.end) = match adopted(foreign, &mut self.orphans)? {
                Left::Living(pid, pidfd) => {
                    task.pidfd = pidfd;
                    (pid, None)
                }
                // The descriptor stays the command's, which has ended too.
                Left::Over(end) => (end.pid, Some(end)),
            };
            task.pid = pid;
            foreign.adopted = true;
            let master = foreign.console.take().map(|listener| master(&listener)).transpose()?;
            remove(&foreign.directory, &foreign.plan.console)?;
            if let Some(master) = master {
                self.add_terminal(id, master)?;
            }
        }
        let Some(foreign) = self.tasks.get_mut(&id).and_then(|task| task.foreign.as_mut()) else {
            return Ok(false);
        };
        foreign.command += 1;
        let Some(command) = foreign.plan.commands.get(foreign.command) else { return Ok(true) };
        foreign.running =
            begin(command, &foreign.plan.path, &foreign.namespaces, &Vec::new(), [None; 3], None)?;
        Ok(false)
    }

    fn end_birth(&mut self, id: u32) {
        self.forget_control(id);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let over = task.foreign.take().and_then(|foreign| foreign.end);
        let Phase::Born(birth) = &mut task.phase else { return };
        let caller = birth.caller.take();
        task.started_at_ns = log::now_ns();
        task.phase = Phase::Running;
        let launched = Launched { pid: task.pid.as_raw_nonzero().get(), started_at_ns: task.started_at_ns };
        if let Some(caller) = caller {
            self.answer(caller, Reply::Launched(launched));
        }
        if let Some(end) = over {
            self.finish(id, &end);
        }
    }
}

impl Task {
    /// Whether a command's process is still to be adopted.
    fn adopts(&self) -> bool {
        self.foreign.as_ref().is_some_and(|foreign| !foreign.adopted)
    }

    /// Ends a command that takes too long.
    pub(super) fn kill_command(&self) {
        if let Some(foreign) = &self.foreign {
            // Already gone is as good.
            let _ = pinnace_sys::process::signal(foreign.running.pidfd.as_fd(), SIGKILL);
        }
    }
}

/// What a command has left behind.
enum Left {
    Living(Pid, OwnedFd),
    /// It had ended before its command did, and has been reaped.
    Over(Ended),
}

/// The process that a command has left behind: a child of ours, as nobody else is its parent any more.
fn adopted(foreign: &Foreign, orphans: &mut Vec<Ended>) -> Result<Left, Failure> {
    let name = &foreign.plan.pid_file;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&foreign.directory, name, flags, Mode::empty()).at(STAGE, "openat", name)?;
    let mut bytes = [0u8; 32];
    let length = rustix::io::read(&file, &mut bytes[..]).at(STAGE, "read", name)?;
    let text = std::str::from_utf8(bytes.get(..length).unwrap_or_default()).unwrap_or_default();
    let number = text.trim().parse().ok().filter(|number| *number > 1).and_then(Pid::from_raw);
    let number = number.ok_or_else(|| Failure::refused(STAGE, name, "has no process number"))?;
    remove(&foreign.directory, name)?;
    if let Some(place) = orphans.iter().position(|end| end.pid == number) {
        return Ok(Left::Over(orphans.swap_remove(place)));
    }
    let pidfd = pidfd_open(number, PidfdFlags::empty()).at(STAGE, "pidfd_open", name)?;
    for file in &foreign.cgroup {
        // A process that has ended needs no group.
        match rustix::io::write(file, number.as_raw_nonzero().to_string().as_bytes()) {
            Ok(_) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(Failure::syscall(STAGE, "write", errno, "cgroup of the session")),
        }
    }
    Ok(Left::Living(number, pidfd))
}

fn cgroup_files(cgroup: Option<&CgroupJoin>, slots: &Slots) -> Result<Vec<OwnedFd>, Failure> {
    let Some(cgroup) = cgroup else { return Ok(Vec::new()) };
    let mut files = cgroup.tasks.iter().map(|slot| slots.take(*slot)).collect::<Result<Vec<_>, _>>()?;
    if let Some(slot) = cgroup.directory {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let name = "cgroup.procs";
        files.push(openat(slots.at(slot)?, name, flags, Mode::empty()).at(STAGE, "openat", name)?);
    }
    Ok(files)
}

/// The terminal that a command has sent before it ended.
fn master(listener: &OwnedFd) -> Result<OwnedFd, Failure> {
    let stream = accept_with(listener, SocketFlags::CLOEXEC).at(STAGE, "accept4", "console socket")?;
    let mut bytes = [0u8; 256];
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).at(
        STAGE,
        "recvmsg",
        "console socket",
    )?;
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    master.ok_or_else(|| Failure::refused(STAGE, "console socket", "no terminal came"))
}

fn remove(directory: &OwnedFd, name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Ok(());
    }
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Failure::syscall(STAGE, "unlinkat", errno, name)),
    }
}

/// Clones a child that becomes the command.
fn begin(
    command: &ExternalCommand,
    directory: &[u8],
    namespaces: &[(CloneFlags, OwnedFd)],
    mounts: &Mounts,
    stdio: [Option<BorrowedFd<'_>>; 3],
    control: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Failure> {
    let mut keep: Vec<BorrowedFd<'_>> = namespaces.iter().map(|(_, fd)| fd.as_fd()).collect();
    keep.extend(mounts.iter().filter_map(|(tree, _)| tree.as_ref()).map(AsFd::as_fd));
    keep.extend(stdio.into_iter().flatten());
    keep.extend(control);
    clone_process(0, None, &keep, || {
        let failure = match execute(command, directory, namespaces, mounts, stdio) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        if let Some(control) = control {
            Control::new(control).fail(&failure);
        }
        NOT_STARTED
    })
    .at(STAGE, "clone3", "")
}

fn execute(
    command: &ExternalCommand,
    directory: &[u8],
    namespaces: &[(CloneFlags, OwnedFd)],
    mounts: &Mounts,
    stdio: [Option<BorrowedFd<'_>>; 3],
) -> Result<std::convert::Infallible, Failure> {
    let terminated = |bytes: &Vec<u8>| {
        CString::new(bytes.clone()).map_err(|_| Failure::refused(STAGE, bytes, "contains a NUL byte"))
    };
    let args = command.args.iter().map(terminated).collect::<Result<Vec<_>, _>>()?;
    let env = command.env.iter().map(terminated).collect::<Result<Vec<_>, _>>()?;
    let program = args.first().ok_or_else(|| Failure::refused(STAGE, "", "no program"))?;
    rustix::process::setsid().at(STAGE, "setsid", "")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let shm = match mounts.iter().any(|(tree, _)| tree.is_none()) {
        true => Some(open_tree(CWD, room::SHM, flags).at(STAGE, "open_tree", room::SHM)?),
        false => None,
    };
    for (kind, namespace) in namespaces {
        setns(namespace, *kind).map_err(errno).at(STAGE, "setns", format!("{:#x}", kind.bits()))?;
    }
    if !mounts.is_empty() {
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno).at(STAGE, "unshare", "mount")?;
        // What the host mounts later comes here and, where a container's volume asks for it, goes on; nothing goes back.
        for propagation in [SLAVE, SHARED] {
            change_at(c"/", Reach::Tree, &Attributes::propagating(propagation)).at(
                STAGE,
                "mount_setattr",
                "/",
            )?;
        }
    }
    for (tree, path) in mounts {
        let tree =
            tree.as_ref().or(shm.as_ref()).ok_or_else(|| Failure::refused(STAGE, path, "no such mount"))?;
        move_mount(tree, "", CWD, path.as_slice(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(
            STAGE,
            "move_mount",
            path,
        )?;
    }
    rustix::process::chdir(directory).at(STAGE, "chdir", directory)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // The monitor's own stdin is a /dev/null.
    let [stdin, stdout, stderr] = stdio.map(|fd| fd.unwrap_or(rustix::stdio::stdin()));
    rustix::stdio::dup2_stdout(stdout).at(STAGE, "dup2", "stdout")?;
    rustix::stdio::dup2_stderr(stderr).at(STAGE, "dup2", "stderr")?;
    rustix::stdio::dup2_stdin(stdin).at(STAGE, "dup2", "stdin")?;
    pinnace_sys::descriptor::close_on_exec_from(3).at(STAGE, "close_range", "")?;
    default_signals()?;
    let Err(verdict) = nix::unistd::execve(program, &args, &env);
    Err(Failure::syscall(STAGE, "execve", errno(verdict), program.as_bytes()))
}
