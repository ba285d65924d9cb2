//! The monitor: one small process per pod that outlives the daemon.
//!
//! It is in the pod's namespaces and so keeps them; it holds the containers' streams, writes their logs, reaps them and
//! remembers how they ended. One thread, one epoll loop, no waiting anywhere else: an init that is on its way reports
//! over a socket, so that any number of containers can be launched, run and end at the same time.
//!
//! ```text
//! stdin = socket of the daemon that spawned us ─┐        ┌─ run directory: monitor.sock, exit-<container id>
//! monitor.sock: daemons that come later ────────┴─ loop ─┼─ control sockets, pidfds
//!                                                        └─ pipes and terminals ─► logs, attached clients
//! ```
//! It ends when it is told to ([`Shutdown`](crate::protocol::Shutdown)), when its first connection closes before it was
//! set up, or when its run directory is gone and neither a container nor a daemon is left.

mod connection;
mod external;
mod launch;
mod pod;
mod poller;
mod requests;
pub(crate) mod room;
mod streams;
mod task;
pub(crate) mod user;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use pinnace_sys::process::{Child, Ended, ended, trim_heap};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::failure::At;
pub use crate::failure::Failure;
use crate::init::errno;
use crate::log;
use crate::procfs::Procfs;
use crate::protocol::{Exited, FromMonitor, Reply};
use connection::{Connection, Incoming};
use pod::{Pod, SIGKILL};
use poller::{Interest, Poller, Ready, Source};
use streams::{Attachment, Copy, Feed};
use task::{Caller, Phase, Task};

/// Daemons at a time; an old one may still be dying while the new one is here.
const CONNECTIONS: usize = 8;

/// How often to look whether the run directory still exists, while no daemon is connected.
const ORPHAN_CHECK: Duration = Duration::from_secs(30);

/// The whole of it.
#[derive(Debug)]
struct Monitor {
    poller: Poller,
    signals: SignalFd,
    listener: Option<OwnedFd>,
    procfs: Procfs,
    /// Ourselves, to come back to our own PID namespace for children.
    own: OwnedFd,
    connections: BTreeMap<u32, Connection>,
    /// Boxed, for a map allocates room for eleven at once.
    tasks: BTreeMap<u32, Box<Task>>,
    feeds: BTreeMap<u32, Feed>,
    copies: BTreeMap<u32, Copy>,
    attachments: BTreeMap<u32, Attachment>,
    /// Ends of children that nobody knew, while a command of another runtime may have left them behind.
    orphans: Vec<Ended>,
    pod: Option<Pod>,
    /// A setup that failed half-way cannot be repeated.
    spoilt: bool,
    /// Told to end.
    ending: bool,
    last_name: u32,
}

/// Runs the program `pinnace-monitor`: its stdin is the daemon's socket.
pub fn run() -> Result<(), Failure> {
    let socket = room::enter()?;
    let poller = Poller::new().at("monitor", "epoll_create1", "")?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(errno)
        .at("monitor", "signalfd", "")?;
    poller.watch(signals.as_fd(), Source::Signals, Interest::READ).at("monitor", "epoll_ctl", "")?;
    let mut monitor = Monitor {
        poller,
        signals,
        listener: None,
        procfs: Procfs::new()?,
        own: pidfd_open(getpid(), PidfdFlags::empty()).at("monitor", "pidfd_open", "")?,
        connections: BTreeMap::new(),
        tasks: BTreeMap::new(),
        feeds: BTreeMap::new(),
        copies: BTreeMap::new(),
        attachments: BTreeMap::new(),
        orphans: Vec::new(),
        pod: None,
        spoilt: false,
        ending: false,
        last_name: 0,
    };
    streams::nonblocking(&socket)?;
    monitor.add_connection(socket)?;
    monitor.serve()
}

impl Monitor {
    fn serve(&mut self) -> Result<(), Failure> {
        let mut ready = Vec::new();
        while !self.is_done() {
            self.poller.wait(self.deadline(), &mut ready).at("monitor", "epoll_wait", "")?;
            for event in ready.drain(..) {
                self.on_event(event);
            }
            self.give_up_late_births();
        }
        if let Some(pod) = &self.pod {
            pod.close();
        }
        Ok(())
    }

    fn on_event(&mut self, event: Ready) {
        match event.source {
            Source::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Source::Listener => self.accept(),
            Source::Connection(name) => self.on_connection(name, event),
            Source::Control(id) => self.on_control(id),
            Source::Output(id, origin) => self.on_output(id, origin),
            Source::Input(id) => self.on_input(id, event.gone),
            Source::Feed(name) => self.on_feed(name),
            Source::Copy(name) => self.on_copy(name, event.gone),
        }
    }

    /// A number that names one thing of this monitor; they are not used again.
    fn name(&mut self) -> u32 {
        self.last_name = self.last_name.wrapping_add(1);
        self.last_name
    }

    fn deadline(&self) -> Option<Instant> {
        let births = self.tasks.values().filter_map(|task| task.deadline()).min();
        let check = self.connections.is_empty().then(|| Instant::now() + ORPHAN_CHECK);
        births.into_iter().chain(check).min()
    }

    fn is_done(&self) -> bool {
        if self.ending {
            return self.connections.values().all(Connection::is_flushed);
        }
        if !self.connections.is_empty() {
            return false;
        }
        match &self.pod {
            None => true,
            Some(pod) => self.tasks.values().all(|task| task.has_exited()) && pod.is_orphaned(),
        }
    }

    // Connections.

    fn add_connection(&mut self, socket: OwnedFd) -> Result<(), Failure> {
        let name = self.name();
        self.poller.watch(socket.as_fd(), Source::Connection(name), Interest::READ).at(
            "monitor",
            "epoll_ctl",
            "",
        )?;
        self.connections.insert(name, Connection::new(socket));
        Ok(())
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        let trusted = rustix::net::sockopt::socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        // A connection that is refused is closed, which tells the caller.
        if trusted && self.connections.len() < CONNECTIONS {
            let _ = self.add_connection(socket);
        }
    }

    fn on_connection(&mut self, name: u32, event: Ready) {
        let Some(connection) = self.connections.get_mut(&name) else { return };
        if event.write && !connection.flush() {
            return self.drop_connection(name);
        }
        if event.read {
            let incoming = connection.receive();
            match incoming {
                Incoming::Request(id, request, slots) => {
                    let caller = Caller { connection: name, id };
                    match self.on_request(caller, *request, &slots) {
                        Ok(Some(reply)) => self.answer(caller, reply),
                        Ok(None) => {}
                        Err(failure) => self.answer(caller, Reply::Failed(failure)),
                    }
                    // Decoded plans are the largest thing we ever allocate; an idle monitor should not keep their pages.
                    drop(slots);
                    trim_heap();
                }
                Incoming::Unusable(id, failure) => {
                    self.answer(Caller { connection: name, id }, Reply::Failed(failure));
                }
                Incoming::Nothing => {}
                Incoming::Closed => return self.drop_connection(name),
            }
        }
        self.balance_connection(name);
    }

    fn balance_connection(&mut self, name: u32) {
        let Some(connection) = self.connections.get_mut(&name) else { return };
        let wanted = if connection.is_flushed() { Interest::READ } else { Interest::BOTH };
        if connection.interest != wanted
            && self.poller.change(connection.as_fd(), Source::Connection(name), wanted).is_ok()
        {
            connection.interest = wanted;
        }
    }

    fn drop_connection(&mut self, name: u32) {
        let Some(connection) = self.connections.remove(&name) else { return };
        self.poller.forget(&connection);
        // Who asked for these sessions is gone, and with it their other ends.
        for task in self.tasks.values().filter(|task| !task.is_container() && task.owner == name) {
            // Already gone is as good.
            let _ = task.hang_up();
        }
    }

    /// Answers a request, if who asked is still there.
    fn answer(&mut self, caller: Caller, reply: Reply) {
        self.tell(caller.connection, &FromMonitor { id: caller.id, reply: Some(reply) }, Vec::new());
    }

    /// Sends an event to every daemon that has said hello.
    fn announce(&mut self, exited: Exited) {
        let message = FromMonitor { id: 0, reply: Some(Reply::Exited(exited)) };
        let greeted: Vec<u32> =
            self.connections.iter().filter(|(_, it)| it.greeted).map(|(name, _)| *name).collect();
        for name in greeted {
            self.tell(name, &message, Vec::new());
        }
    }

    fn tell(&mut self, name: u32, message: &FromMonitor, descriptors: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&name) else { return };
        if connection.send(message, descriptors) {
            self.balance_connection(name);
        } else {
            self.drop_connection(name);
        }
    }

    // Ends.

    /// Reaps every child that has ended: tasks by their pidfd, orphans that came to us by their number.
    fn reap(&mut self) {
        while let Ok(Some(seen)) = ended(Child::Peek) {
            if self.reap_foreign(seen.pid) {
                continue;
            }
            let known = self.tasks.iter().find(|(_, task)| task.pid == seen.pid && !task.has_exited());
            match known.map(|(id, _)| *id) {
                Some(id) if self.is_left(id) => return,
                Some(id) => self.reap_task(id),
                None => {
                    // Not waited for by anybody else, so the number is still that child's.
                    if let Ok(Some(end)) = ended(Child::Unreaped(seen.pid)) {
                        self.keep_orphan(end);
                    }
                    self.forget_init(&seen);
                }
            }
        }
    }

    /// Whether a task's end is not ours to hear.
    fn is_left(&mut self, id: u32) -> bool {
        if !self.pod.as_ref().is_some_and(|pod| pod.leaves) {
            return false;
        }
        // It may have come that far without our having heard.
        self.on_control(id);
        self.tasks.get(&id).is_some_and(|task| task.can_be_left())
    }

    fn reap_task(&mut self, id: u32) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Ok(Some(end)) = ended(Child::Of(task.pidfd.as_fd())) else { return };
        // A short program may be over before we heard that it had begun.
        self.on_control(id);
        let Some(task) = self.tasks.get(&id) else { return };
        match &task.phase {
            Phase::Born(birth) if !birth.prepared || birth.caller.is_some() => self.fail_birth(id, &end),
            _ => self.finish(id, &end),
        }
    }

    /// The pod's PID 1 has ended, and with it every process of the namespace.
    fn forget_init(&mut self, end: &Ended) {
        if let Some(pod) = &mut self.pod {
            pod.init.take_if(|init| init.pid == end.pid);
        }
    }

    /// A task that ran has ended.
    fn finish(&mut self, id: u32, end: &Ended) {
        let Some(task) = self.tasks.get(&id) else { return };
        let oom_killed =
            end.signal == Some(SIGKILL) && task.oom.as_ref().is_some_and(task::OomCounter::has_grown);
        let exited = Exited {
            container_id: task.container_id.clone(),
            exec_id: task.exec_id.clone(),
            code: end.code,
            signal: end.signal.unwrap_or(0),
            oom_killed,
            finished_at_ns: log::now_ns(),
            started_at_ns: task.started_at_ns,
        };
        self.drain(id);
        self.close_input(id);
        self.end_copies(id, None);
        self.forget_control(id);
        for oom in self.tasks.values_mut().filter_map(|task| task.oom.as_mut()) {
            oom.look_at_group();
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.is_container() {
            // What a leftover child still writes goes to the log until the container is forgotten.
            task.phase = Phase::Exited(exited.clone());
            task.oom = None;
            // On disk first: a daemon that comes later finds it even if we do not live to tell it.
            if let Some(Err(failure)) = self.pod.as_ref().map(|pod| pod.record(&exited)) {
                complain(&failure);
            }
        } else {
            self.remove(id);
        }
        self.announce(exited);
        trim_heap();
    }

    /// Lets go of everything a task had; copies that are still being delivered stay.
    fn remove(&mut self, id: u32) {
        self.forget_control(id);
        self.close_input(id);
        for origin in [log::Origin::Stdout, log::Origin::Stderr] {
            self.end_output(id, origin);
        }
        self.end_copies(id, None);
        self.tasks.remove(&id);
    }

    fn forget_control(&mut self, id: u32) {
        if let Some(Phase::Born(birth)) = self.tasks.get(&id).map(|task| &task.phase) {
            self.poller.forget(&birth.control);
        }
    }
}

/// Says something on stderr, which the daemon may have given a meaning. Nobody listening is no reason to stop.
fn complain(failure: &Failure) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "pinnace-monitor: {failure}");
}
