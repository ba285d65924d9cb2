//! Devices that are on their way out, and the thread that watches for what changes by itself.
//!
//! ```text
//!            push                    device gone                          addresses released
//!  detach ─────────► waiting ─────────────────────────────────► departed ───────────────────► (removed)
//!                       │  deadline                              ▲
//!                       └──────────► deleted, with all others ───┘
//! ```
//!
//! A device usually goes with its namespace, when the pod's last process and the monitor are gone: the kernel
//! does that on its own time, for many at once. Deleting one takes some 20 ms in which no link of the machine
//! can be changed, so that is left to the end of a grace period and done for all overdue ones together.
//!
//! The same thread brings the bridge up again when it was deleted, and makes the rules anew when another program
//! removed them (`nft flush ruleset`, a firewall's reload).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::NetworkError;
use crate::bridge::{delete, host_ifname};
use crate::link::{self, GROUP_LINK, RTM_DELLINK};
use crate::netlink::{Family, Heard, Listener, Socket, Which};
use crate::nftables::GROUP_NFTABLES;
use crate::pods::{Pods, lock};

const RETRY: Duration = Duration::from_secs(1);
const BRING_UP_RETRY: Duration = Duration::from_secs(5);
/// Two programs that undo each other's rules shall not keep the machine busy.
const RESTORE_PAUSE: Duration = Duration::from_millis(500);
const RESTORE_RETRY: Duration = Duration::from_secs(5);

/// The sandboxes whose devices are going.
#[derive(Debug)]
pub struct Queue {
    departures: Mutex<BTreeMap<String, Departure>>,
    wake: OwnedFd,
}

#[derive(Debug, Clone)]
struct Departure {
    port: String,
    deadline: Instant,
    seen: Seen,
}

/// What is known of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing: it may have gone before anyone listened for it.
    Never,
    /// It was there after we began to listen.
    Present,
    /// It is gone.
    Gone,
}

impl Queue {
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| NetworkError::Watch(errno.into()))?;
        Ok(Queue { departures: Mutex::new(BTreeMap::new()), wake })
    }

    /// Adds a sandbox; one that is there already keeps the earlier deadline.
    pub(crate) fn push(&self, sandbox: &str, deadline: Instant) {
        lock(&self.departures)
            .entry(sandbox.to_owned())
            .and_modify(|departure| departure.deadline = departure.deadline.min(deadline))
            .or_insert_with(|| Departure { port: host_ifname(sandbox), deadline, seen: Seen::Never });
        self.wake();
    }

    /// Takes a sandbox out that has departed.
    pub(crate) fn forget(&self, sandbox: &str) {
        lock(&self.departures).remove(sandbox);
    }

    pub(crate) fn has(&self, sandbox: &str) -> bool {
        lock(&self.departures).contains_key(sandbox)
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.departures).len()
    }

    fn wake(&self) {
        // Fails only if it is about to wake anyway (the counter is full).
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn next_deadline(&self) -> Option<Instant> {
        lock(&self.departures).values().map(|departure| departure.deadline).min()
    }

    /// Ports of departures for which `which` holds, with their sandboxes.
    fn select(&self, which: impl Fn(&Departure) -> bool) -> Vec<(String, String)> {
        let departures = lock(&self.departures);
        let chosen = departures.iter().filter(|(_, departure)| which(departure));
        chosen.map(|(sandbox, departure)| (sandbox.clone(), departure.port.clone())).collect()
    }

    fn update(&self, sandbox: &str, change: impl FnOnce(&mut Departure)) {
        if let Some(departure) = lock(&self.departures).get_mut(sandbox) {
            change(departure);
        }
    }
}

/// The background thread of a network.
#[derive(Debug)]
pub struct Watcher {
    pods: Arc<Pods>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watcher {
    /// Starts it; its sockets are of the calling thread's namespace, as is the thread.
    pub(crate) fn start(pods: Arc<Pods>) -> Result<Self, NetworkError> {
        let stop = Arc::new(AtomicBool::new(false));
        let links = Listener::open(Family::Route, GROUP_LINK).map_err(NetworkError::Listen)?;
        links.narrow(Which::Kind(RTM_DELLINK, link::AF_UNSPEC)).map_err(NetworkError::Listen)?;
        // Without nf_tables there is nothing to listen to.
        let rules = Listener::open(Family::Netfilter, GROUP_NFTABLES).ok();
        if let (Some(rules), Some(port)) = (&rules, pods.rules_port()) {
            rules.narrow(Which::NotFrom(port)).map_err(NetworkError::Listen)?;
        }
        let watch = Watch {
            socket: Socket::open(Family::Route).map_err(NetworkError::Listen)?,
            links,
            rules,
            pods: Arc::clone(&pods),
            stop: Arc::clone(&stop),
            buffer: Vec::new(),
            bring_up_at: None,
            restore_at: None,
            restored: None,
        };
        let builder = thread::Builder::new().name("network".to_owned()).stack_size(256 * 1024);
        let thread = builder.spawn(move || watch.run()).map_err(NetworkError::Watch)?;
        Ok(Watcher { pods, stop, thread })
    }

    /// Ends the thread after what it is doing now.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.pods.queue.wake();
        // A panic there was reported by the panic hook; nothing is left to undo.
        let _ = self.thread.join();
    }
}

struct Watch {
    pods: Arc<Pods>,
    stop: Arc<AtomicBool>,
    socket: Socket,
    links: Listener,
    rules: Option<Listener>,
    buffer: Vec<u8>,
    bring_up_at: Option<Instant>,
    restore_at: Option<Instant>,
    restored: Option<Instant>,
}

impl Watch {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            if let Err(error) = self.turn() {
                tracing::warn!(error = &error as &dyn std::error::Error, "watching the pod network failed");
                thread::sleep(RETRY);
            }
        }
    }

    fn turn(&mut self) -> Result<(), NetworkError> {
        self.wait()?;
        self.hear_of_links()?;
        self.hear_of_rules()?;
        self.look_for_the_new();
        self.delete_the_overdue();
        self.release_the_gone();
        let now = Instant::now();
        if self.restore_at.is_some_and(|at| at <= now) {
            self.restore_at = None;
            self.pods.restore_rules();
            self.restored = Some(Instant::now());
        }
        if self.restore_at.is_none() && self.pods.rules_missing() {
            self.restore_at = Some(now + RESTORE_RETRY);
        }
        if self.pods.bridge.state().is_some() {
            self.bring_up_at = None;
        } else if self.bring_up_at.is_none_or(|at| at <= now) {
            self.bring_up_at = match self.pods.bring_up() {
                Ok(_) => None,
                // Said by `ready`, again and again.
                Err(_) => Some(now + BRING_UP_RETRY),
            };
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), NetworkError> {
        let deadlines = [self.pods.queue.next_deadline(), self.bring_up_at, self.restore_at];
        let timeout = deadlines.into_iter().flatten().min().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = vec![
            PollFd::new(&self.pods.queue.wake, PollFlags::IN),
            PollFd::from_borrowed_fd(self.links.as_fd(), PollFlags::IN),
        ];
        if let Some(rules) = &self.rules {
            fds.push(PollFd::from_borrowed_fd(rules.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(NetworkError::Watch(errno.into())),
        }
        // Empty if something else woke us.
        let _ = rustix::io::read(&self.pods.queue.wake, &mut [0u8; 8]);
        Ok(())
    }

    fn hear_of_links(&mut self) -> Result<(), NetworkError> {
        let mut gone = Vec::new();
        let heard = self.links.drain(&mut self.buffer, |message| {
            if message.kind == RTM_DELLINK {
                gone.extend(link::parse_link(message).map(|link| link.name));
            }
        });
        let mut departures = lock(&self.pods.queue.departures);
        match heard.map_err(NetworkError::Listen)? {
            Heard::Everything => {}
            Heard::Gaps => departures.values_mut().for_each(|departure| departure.seen = Seen::Never),
        }
        for departure in departures.values_mut().filter(|departure| gone.contains(&departure.port)) {
            departure.seen = Seen::Gone;
        }
        drop(departures);
        let bridge = self.pods.bridge.name().clone();
        if gone.iter().any(|name| name == bridge.as_str()) && !self.exists(bridge.as_str()) {
            self.pods.bridge_lost();
        }
        Ok(())
    }

    fn hear_of_rules(&mut self) -> Result<(), NetworkError> {
        let Some(rules) = &self.rules else {
            return Ok(());
        };
        let mut damaged = false;
        let pods = &self.pods;
        let heard = rules.drain(&mut self.buffer, |message| damaged |= pods.rules_damaged_by(message));
        if heard.map_err(NetworkError::Listen)? == Heard::Gaps || damaged {
            tracing::warn!("another program removed parts of nf_tables table inet pinnace: made anew");
            let earliest = self.restored.map_or_else(Instant::now, |at| at + RESTORE_PAUSE);
            self.restore_at.get_or_insert(earliest);
        }
        Ok(())
    }

    /// Devices may have gone before their departure was noted.
    fn look_for_the_new(&mut self) {
        for (sandbox, port) in self.pods.queue.select(|departure| departure.seen == Seen::Never) {
            let seen = if self.exists(&port) { Seen::Present } else { Seen::Gone };
            self.pods.queue.update(&sandbox, |departure| departure.seen = seen);
        }
    }

    fn delete_the_overdue(&mut self) {
        let now = Instant::now();
        let overdue =
            self.pods.queue.select(|departure| departure.deadline <= now && departure.seen != Seen::Gone);
        if overdue.is_empty() {
            return;
        }
        if let Err(error) = delete(&mut self.socket, overdue.iter().map(|(_, port)| port.as_str())) {
            tracing::warn!(error = &error as &dyn std::error::Error, "links of gone sandboxes not deleted");
        }
        for (sandbox, port) in overdue {
            let gone = !self.exists(&port);
            self.pods.queue.update(&sandbox, |departure| {
                departure.deadline = now + RETRY;
                if gone {
                    departure.seen = Seen::Gone;
                }
            });
        }
    }

    fn release_the_gone(&mut self) {
        let gone = self.pods.queue.select(|departure| departure.seen == Seen::Gone);
        for (sandbox, _) in &gone {
            if let Err(error) = self.pods.departed(sandbox) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, sandbox_id = sandbox, "addresses not released");
                self.pods.queue.update(sandbox, |departure| departure.deadline = Instant::now() + RETRY);
            }
        }
        if !gone.is_empty()
            && let Err(error) = self.pods.forget_unused_ranges()
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "address ranges not forgotten");
        }
    }

    /// Asks the kernel; if it does not say, the device counts as present.
    fn exists(&mut self, name: &str) -> bool {
        !matches!(link::find_link(&mut self.socket, name), Ok(None))
    }
}
