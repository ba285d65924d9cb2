//! Network namespaces: made and entered on threads that end, and a few kept ready.
//!
//! A namespace has no name and no bind mount. It lives as long as someone holds its descriptor or runs in it:
//! first the [`Netns`] here, then the pod's monitor. When the last of them is gone the kernel takes the
//! namespace and its veth away, so a crash at any moment leaves nothing in the file system.
//!
//! The socket inside a [`Netns`] holds the namespace too. Drop the whole [`Netns`] once the monitor has it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::link;
use crate::netlink::{self, Family, Socket};
use crate::sysctl;

/// Refilling waits this long, so that it does not compete with the start of the pod that took one.
const REFILL_DELAY: Duration = Duration::from_millis(10);
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why a namespace could not be made or entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// A thread for it could not be started.
    #[error("start a thread for a network namespace")]
    Thread(#[source] std::io::Error),
    /// The thread ended without an answer.
    #[error("the thread for a network namespace panicked")]
    Panicked,
    /// A system call failed.
    #[error("{call} for a network namespace")]
    Call {
        /// Its name.
        call: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The socket inside.
    #[error("configure a network namespace")]
    Netlink(#[from] netlink::NetlinkError),
    /// A setting inside.
    #[error("configure a network namespace")]
    Sysctl(#[from] sysctl::SysctlError),
}

/// Whether interfaces of a namespace speak IPv6. The loopback always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// The pod network has IPv6 addresses.
    On,
    /// It has none: no link-local addresses either, so that nobody reaches the pod by a way nobody sees.
    Off,
    /// Whoever makes them decides, as plugins of CNI do: nothing is set, not even what is off by default.
    AsItComes,
}

/// A network namespace with `lo` up, and an rtnetlink socket inside it.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    pub(crate) socket: Socket,
    pub(crate) ipv6: Ipv6,
}

impl Netns {
    /// Makes a new namespace on a thread of its own.
    pub fn create(ipv6: Ipv6) -> Result<Self, NetnsError> {
        on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(call("unshare"))?;
            let path = "/proc/thread-self/ns/net";
            let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|source| NetnsError::Call { call: "open", source })?;
            Netns::settle(fd, ipv6)
        })
    }

    /// Takes up a namespace that someone else made, e.g. the monitor inside a user namespace.
    pub fn enter(fd: OwnedFd, ipv6: Ipv6) -> Result<Self, NetnsError> {
        on_thread(move || {
            setns(&fd, CloneFlags::CLONE_NEWNET).map_err(call("setns"))?;
            Netns::settle(fd, ipv6)
        })
    }

    /// The namespace, e.g. for setns(2).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the descriptor away and closes the socket.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Changes what interfaces that come later speak.
    pub(crate) fn speak(&mut self, ipv6: Ipv6) -> Result<(), NetnsError> {
        if self.ipv6 != ipv6 {
            let fd = self.fd.try_clone().map_err(NetnsError::Thread)?;
            *self = Netns::enter(fd, ipv6)?;
        }
        Ok(())
    }

    /// Runs in a thread that is inside: what holds for every interface that comes later.
    fn settle(fd: OwnedFd, ipv6: Ipv6) -> Result<Self, NetnsError> {
        if ipv6 != Ipv6::AsItComes {
            // Routers that announce themselves on the pod network are not believed (CVE-2020-10749).
            sysctl::write_if_present("ipv6/conf/default/accept_ra", "0")?;
            // Addresses are ours to give: detection of duplicates would make them unusable for a second.
            sysctl::write_if_present("ipv6/conf/default/accept_dad", "0")?;
            let disable = if ipv6 == Ipv6::Off { "1" } else { "0" };
            sysctl::write_if_present("ipv6/conf/default/disable_ipv6", disable)?;
        }
        let mut socket = Socket::open(Family::Route)?;
        let mut request = socket.request();
        link::set_up(&mut request, "lo");
        socket.execute(request)?;
        Ok(Netns { fd, socket, ipv6 })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A few namespaces kept ready, refilled in the background.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    refiller: Option<JoinHandle<()>>,
}

/// How a [`Pool`] was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolCounters {
    /// Namespaces waiting now.
    pub ready: usize,
    /// Taken from the pool.
    pub hits: u64,
    /// Made while the caller waited.
    pub misses: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Debug)]
struct State {
    ready: Vec<Netns>,
    size: usize,
    ipv6: Ipv6,
    closing: bool,
}

impl Pool {
    /// Starts filling a pool of `size` namespaces; 0 makes each on demand and starts no thread.
    pub fn open(size: usize, ipv6: Ipv6) -> Result<Self, NetnsError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { ready: Vec::with_capacity(size), size, ipv6, closing: false }),
            changed: Condvar::new(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        });
        let refiller = if size == 0 {
            None
        } else {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name("netns-pool".to_owned()).stack_size(128 * 1024);
            Some(builder.spawn(move || shared.refill()).map_err(NetnsError::Thread)?)
        };
        Ok(Pool { shared, refiller })
    }

    /// A ready namespace, or a new one if there is none.
    pub fn take(&self) -> Result<Netns, NetnsError> {
        let mut state = self.shared.lock();
        let ipv6 = state.ipv6;
        let taken = state.ready.pop();
        drop(state);
        match taken {
            Some(netns) => {
                self.shared.hits.fetch_add(1, Ordering::Relaxed);
                self.shared.changed.notify_all();
                Ok(netns)
            }
            None => {
                self.shared.misses.fetch_add(1, Ordering::Relaxed);
                Netns::create(ipv6)
            }
        }
    }

    /// Changes what new namespaces speak; those that are ready and differ are dropped.
    pub fn set_ipv6(&self, ipv6: Ipv6) {
        let mut state = self.shared.lock();
        if state.ipv6 != ipv6 {
            state.ipv6 = ipv6;
            let old = std::mem::take(&mut state.ready);
            drop(state);
            drop(old);
            self.shared.changed.notify_all();
        }
    }

    /// How it was used so far.
    pub fn counters(&self) -> PoolCounters {
        PoolCounters {
            ready: self.shared.lock().ready.len(),
            hits: self.shared.hits.load(Ordering::Relaxed),
            misses: self.shared.misses.load(Ordering::Relaxed),
        }
    }

    /// Drops what is ready and ends the thread. Afterwards [`Pool::take`] still makes namespaces on demand.
    pub fn close(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        drop(ready);
        self.shared.changed.notify_all();
        if let Some(refiller) = self.refiller.take() {
            // A panic there was reported by the panic hook; nothing is left to undo.
            let _ = refiller.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refill(&self) {
        let mut state = self.lock();
        let mut failing = false;
        loop {
            if state.closing {
                return;
            }
            if state.ready.len() >= state.size {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state = self.linger(state);
                continue;
            }
            let ipv6 = state.ipv6;
            drop(state);
            let made = Netns::create(ipv6);
            state = self.lock();
            match made {
                Ok(netns) => {
                    failing = false;
                    if state.ipv6 == ipv6 && !state.closing {
                        state.ready.push(netns);
                    }
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "no network namespace for the pool"
                        );
                    }
                    failing = true;
                    state = self.back_off(state);
                }
            }
        }
    }

    /// Waits, but not longer than until the pool is closed or empty.
    fn linger<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let calm = |state: &mut State| !state.closing && !state.ready.is_empty();
        let waited = self.changed.wait_timeout_while(state, REFILL_DELAY, calm);
        waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }

    /// Waits, but not longer than until the pool is closed.
    fn back_off<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout_while(state, RETRY_DELAY, |state| !state.closing);
        waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }
}

/// Runs `work` on a thread of its own, which ends: it may change namespace there.
pub(crate) fn on_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned()).stack_size(128 * 1024);
        let thread = builder.spawn_scoped(scope, work).map_err(NetnsError::Thread)?;
        thread.join().map_err(|_| NetnsError::Panicked)?
    })
}

fn call(call: &'static str) -> impl Fn(nix::Error) -> NetnsError {
    move |errno| NetnsError::Call { call, source: Errno::from_raw_os_error(errno as i32) }
}
