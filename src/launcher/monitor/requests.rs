//! What a daemon can ask for, except launching.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::pod::{Pod, SIGKILL};
use super::poller::{Interest, Source};
use super::task::{Caller, Phase, Task};
use super::{Monitor, streams};
use crate::failure::{At, Failure};
use crate::init::terminal_size;
use crate::log::Origin;
use crate::plan::Slot;
use crate::protocol::{
    Attach, Done, FromMonitor, Ready, Reply, Request, Resize, SessionRef, Setup, Signal, Sockets, State,
    VERSION,
};
use crate::slots::Slots;

impl Monitor {
    /// Does what is asked; no reply when that comes later.
    pub(super) fn on_request(
        &mut self,
        caller: Caller,
        request: Request,
        slots: &Slots,
    ) -> Result<Option<Reply>, Failure> {
        let done = |()| Some(Reply::Done(Done {}));
        match request {
            Request::Hello(_) => {
                if let Some(connection) = self.connections.get_mut(&caller.connection) {
                    connection.greeted = true;
                }
                Ok(Some(Reply::State(self.state())))
            }
            Request::Setup(setup) => self.set_up(&setup, slots).map(|ready| Some(Reply::Ready(ready))),
            Request::Launch(launch) => self.launch(caller, launch, slots).map(|()| None),
            Request::Start(which) => self.start(caller, &which.container_id).map(|()| None),
            Request::Exec(exec) => self.exec(caller, exec, slots).map(|()| None),
            Request::Signal(signal) => self.signal(&signal).map(done),
            Request::ReopenLog(which) => self.reopen_log(&which.container_id).map(done),
            Request::Forget(which) => self.forget(&which.container_id).map(done),
            Request::Resize(resize) => self.resize(&resize).map(done),
            Request::Attach(attach) => self.attach_client(caller, &attach, slots).map(done),
            Request::Sockets(_) => self.send_sockets(caller).map(|()| None),
            Request::Shutdown(shutdown) => self.shut_down(shutdown.leave).map(done),
            Request::Attachments(_) | Request::Large(_) => {
                Err(Failure::refused("protocol", "", "not a request of its own"))
            }
        }
    }

    fn state(&self) -> State {
        State {
            version: VERSION,
            ready: self.pod.is_some(),
            containers: self
                .tasks
                .values()
                .filter(|task| task.is_container())
                .map(|task| task.state())
                .collect(),
            sessions: self
                .tasks
                .values()
                .filter(|task| !task.is_container())
                .map(|task| SessionRef {
                    container_id: task.container_id.clone(),
                    exec_id: task.exec_id.clone(),
                })
                .collect(),
        }
    }

    fn set_up(&mut self, setup: &Setup, slots: &Slots) -> Result<Ready, Failure> {
        if self.pod.is_some() || self.spoilt {
            return Err(Failure::refused("state", &setup.sandbox_id, "already set up"));
        }
        self.spoilt = true;
        let (pod, listener) = Pod::set_up(setup, slots, &self.procfs)?;
        streams::nonblocking(&listener)?;
        self.poller.watch(std::os::fd::AsFd::as_fd(&listener), Source::Listener, Interest::READ).at(
            "monitor",
            "epoll_ctl",
            "",
        )?;
        self.listener = Some(listener);
        let init_pid = pod.init.as_ref().map_or(0, |init| init.pid.as_raw_nonzero().get());
        self.pod = Some(pod);
        self.spoilt = false;
        Ok(Ready { pid: rustix::process::getpid().as_raw_nonzero().get(), init_pid })
    }

    /// Finds a task; with an empty exec id, the container itself.
    pub(super) fn find(&self, container_id: &str, exec_id: &str) -> Result<u32, Failure> {
        let found = self.tasks.iter().find(|(_, task)| task.is_named(container_id, exec_id));
        found.map(|(id, _)| *id).ok_or_else(|| match exec_id {
            "" => Failure::refused("container", container_id, "no such container"),
            exec_id => Failure::refused("container", exec_id, "no such exec session"),
        })
    }

    /// As [`Monitor::find`], but it has not exited.
    pub(super) fn find_alive(
        &mut self,
        container_id: &str,
        exec_id: &str,
    ) -> Result<(u32, &mut Task), Failure> {
        let id = self.find(container_id, exec_id)?;
        match self.tasks.get_mut(&id) {
            Some(task) if !task.has_exited() => Ok((id, task)),
            _ => Err(Failure::refused("state", container_id, "container has exited")),
        }
    }

    fn signal(&mut self, signal: &Signal) -> Result<(), Failure> {
        let (_, task) = self.find_alive(&signal.container_id, &signal.exec_id)?;
        // An end that comes of this is none by the OOM killer.
        if let Some(oom) = &mut task.oom {
            oom.look_at_group();
        }
        if signal.hang_up {
            return task.hang_up().at("signal", "kill", &signal.container_id);
        }
        task.signal(signal.signal).at("signal", "pidfd_send_signal", &signal.container_id)
    }

    fn reopen_log(&mut self, container_id: &str) -> Result<(), Failure> {
        let (_, task) = self.find_alive(container_id, "")?;
        match &mut task.log {
            Some(log) => log.reopen(),
            None => Ok(()),
        }
    }

    fn forget(&mut self, container_id: &str) -> Result<(), Failure> {
        if let Ok(id) = self.find(container_id, "") {
            if self.tasks.get(&id).is_some_and(|task| !task.has_exited()) {
                return Err(Failure::refused("state", container_id, "container has not exited"));
            }
            self.remove(id);
        }
        match &self.pod {
            Some(pod) if crate::client::valid_id(container_id) => pod.unrecord(container_id),
            _ => Ok(()),
        }
    }

    fn resize(&mut self, resize: &Resize) -> Result<(), Failure> {
        let (_, task) = self.find_alive(&resize.container_id, &resize.exec_id)?;
        let terminal = task.stdout.as_ref().filter(|_| task.terminal);
        let Some(output) = terminal else {
            return Err(Failure::refused("terminal", &resize.container_id, "has no terminal"));
        };
        match terminal_size(resize.rows, resize.columns) {
            Some(size) => rustix::termios::tcsetwinsize(&output.fd, size).at(
                "terminal",
                "TIOCSWINSZ",
                &resize.container_id,
            ),
            None => Ok(()),
        }
    }

    fn attach_client(&mut self, caller: Caller, attach: &Attach, slots: &Slots) -> Result<(), Failure> {
        let (id, _) = self.find_alive(&attach.container_id, "")?;
        let take = |slot: Option<Slot>| -> Result<Option<OwnedFd>, Failure> {
            slot.map(|slot| slots.take(slot)).transpose()
        };
        let outputs = [(Origin::Stdout, take(attach.stdout)?), (Origin::Stderr, take(attach.stderr)?)];
        let told = (attach.attach_id != 0).then_some((caller.connection, attach.attach_id));
        self.attach(id, take(attach.stdin)?, outputs, attach.lossless, told)
    }

    fn send_sockets(&mut self, caller: Caller) -> Result<(), Failure> {
        // Only once it is in the pod's network namespace.
        if self.pod.is_none() {
            return Err(Failure::refused("state", "", "the pod has not been set up"));
        }
        let socket = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))
        };
        let mut descriptors = vec![socket(AddressFamily::INET).at("socket", "socket", "IPv4")?];
        let ipv6 = match socket(AddressFamily::INET6) {
            Ok(socket) => {
                descriptors.push(socket);
                Some(1)
            }
            Err(Errno::AFNOSUPPORT) => None,
            Err(errno) => return Err(Failure::syscall("socket", "socket", errno, "IPv6")),
        };
        let reply = Reply::Sockets(Sockets { ipv4: Some(0), ipv6 });
        let message = FromMonitor { id: caller.id, reply: Some(reply) };
        self.tell(caller.connection, &message, descriptors);
        Ok(())
    }

    fn shut_down(&mut self, leave: bool) -> Result<(), Failure> {
        let needs_us = |task: &Task| !task.has_exited() && (!leave || !task.can_be_left());
        if let Some(task) = self.tasks.values().find(|task| needs_us(task)) {
            return Err(Failure::refused("state", &task.container_id, "container has not exited"));
        }
        self.ending = true;
        Ok(())
    }

    /// Kills those that should have executed their program long ago; the end is reported when they have been reaped.
    pub(super) fn give_up_late_births(&mut self) {
        let now = std::time::Instant::now();
        for task in self.tasks.values_mut().filter(|task| task.deadline().is_some_and(|at| at <= now)) {
            // Already gone is as good.
            let _ = task.signal(SIGKILL);
            task.kill_command();
            if let Phase::Born(birth) = &mut task.phase {
                birth.deadline = None;
                let message = "not ready to execute its program in time";
                birth.failure.get_or_insert_with(|| Failure::refused("init", &task.container_id, message));
            }
        }
    }
}
