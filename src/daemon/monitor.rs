//! The daemon's end of a pod's monitor: requests with replies, and exits as they are told.
//!
//! ```text
//! request ──id──► monitor ──id──► the waiting caller
//!                         ──exit of a container──► Told ──► container::exit::observed
//!                         ──exit of a session────► whoever expects it
//!                         ──end of an attachment─► whoever expects it
//!                         ──end of connection────► Told ──► sandbox lost
//! ```
//! One task reads the connection. When the monitor is gone every waiting caller gets [`Error::MonitorGone`], because the
//! senders that they wait on are dropped.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pinnace_launcher::client::{self, Connection, Event};
use pinnace_launcher::protocol::{
    Detached, Exited, FromMonitor, Hello, Reply, Request, Shutdown, State, ToMonitor, VERSION, WantedSockets,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::id::SandboxId;
use crate::node::Node;
use crate::readiness::{Watched, readable};
use crate::sandbox::run::open_directory;
use crate::table::lock;

/// How long a monitor may take to end after it was told to.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Exits that may wait to be handled before the monitor is no longer read.
const TOLD_BACKLOG: usize = 64;

/// What a monitor tells without having been asked.
#[derive(Debug)]
pub enum Told {
    /// A container ended.
    Exited(Exited),
}

/// A pod's monitor.
#[derive(Debug)]
pub struct Monitor {
    sandbox: SandboxId,
    connection: AsyncFd<Watched<Connection>>,
    waiting: Mutex<Waiting>,
    next_id: AtomicU64,
    told: Mutex<Option<mpsc::Receiver<Told>>>,
    ended: tokio_util::sync::CancellationToken,
}

#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<(Reply, Vec<OwnedFd>)>>,
    sessions: HashMap<String, oneshot::Sender<Exited>>,
    attachments: HashMap<u64, oneshot::Sender<Detached>>,
    closed: bool,
}

impl Monitor {
    /// Starts a monitor; it is nobody's until `Setup`.
    pub async fn spawn(node: &Node, sandbox: &SandboxId) -> Result<Arc<Self>, Error> {
        let id = sandbox.clone();
        let spawned = node
            .blocking(move |node| Ok(client::spawn(node.monitor_program.as_fd(), id.as_str(), None)?))
            .await?;
        let mut child = spawned.child;
        // Nobody else would reap it; a thread that sleeps in wait costs less than a missed one.
        let id = sandbox.clone();
        reap(node, &id, &mut child)?;
        let (monitor, _) = Self::greet(node, sandbox, spawned.connection).await?;
        Ok(monitor)
    }

    /// Finds the monitor of a sandbox that an earlier daemon has started.
    pub async fn connect(
        node: &Node,
        sandbox: &SandboxId,
        directory: &Path,
    ) -> Result<(Arc<Self>, State), Error> {
        let directory = open_directory(directory)?;
        let connection = node.blocking(move |_| Ok(client::connect(directory.as_fd())?)).await?;
        Self::greet(node, sandbox, connection).await
    }

    async fn greet(
        node: &Node,
        sandbox: &SandboxId,
        connection: Connection,
    ) -> Result<(Arc<Self>, State), Error> {
        let connection = readable(connection, "monitor connection")?;
        let (sender, receiver) = mpsc::channel(TOLD_BACKLOG);
        let monitor = Arc::new(Self {
            sandbox: sandbox.clone(),
            connection,
            waiting: Mutex::default(),
            next_id: AtomicU64::new(1),
            told: Mutex::new(Some(receiver)),
            ended: tokio_util::sync::CancellationToken::new(),
        });
        tokio::spawn(Arc::clone(&monitor).read(sender, node.closing.clone()));
        match monitor.request(Request::Hello(Hello { version: VERSION }), &[]).await? {
            Reply::State(state) => Ok((monitor, state)),
            other => Err(Error::unexpected(sandbox, &other)),
        }
    }

    /// Sends a request and waits for its reply; a refusal is an error. `descriptors` are the request's slots.
    pub async fn request(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply, Error> {
        self.exchange(request, descriptors).await.map(|(reply, _)| reply)
    }

    /// Sockets in the pod's network namespace, IPv4 before IPv6 where there is IPv6.
    pub async fn sockets(&self) -> Result<Vec<OwnedFd>, Error> {
        match self.exchange(Request::Sockets(WantedSockets {}), &[]).await? {
            (Reply::Sockets(_), sockets) => Ok(sockets),
            (other, _) => Err(Error::unexpected(&self.sandbox, &other)),
        }
    }

    async fn exchange(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                return Err(Error::MonitorGone(self.sandbox.clone()));
            }
            waiting.replies.insert(id, sender);
        }
        let message = ToMonitor { id, request: Some(request) };
        if let Err(error) = self.connection.get_ref().0.send(&message, descriptors) {
            lock(&self.waiting).replies.remove(&id);
            return Err(error.into());
        }
        match receiver.await {
            Ok((Reply::Failed(failure), _)) => Err(Error::Launch(failure)),
            Ok(reply) => Ok(reply),
            Err(_) => Err(Error::MonitorGone(self.sandbox.clone())),
        }
    }

    /// An id for a session, unique while this monitor lives, across daemons.
    pub fn next_exec_id(&self) -> String {
        crate::id::ContainerId::random().as_str()[..16].to_owned()
    }

    /// Told when that session ends; to be called before it begins.
    pub fn expect_exec(&self, exec_id: &str) -> oneshot::Receiver<Exited> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if !waiting.closed {
            waiting.sessions.insert(exec_id.to_owned(), sender);
        }
        receiver
    }

    /// Nobody waits for that session any more.
    pub fn forget_exec(&self, exec_id: &str) {
        lock(&self.waiting).sessions.remove(exec_id);
    }

    /// Told when that attachment is over; to be called before it begins.
    pub fn expect_detached(&self, attach_id: u64) -> oneshot::Receiver<Detached> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if !waiting.closed {
            waiting.attachments.insert(attach_id, sender);
        }
        receiver
    }

    /// Nobody waits for the end of that attachment any more.
    pub fn forget_attachment(&self, attach_id: u64) {
        lock(&self.waiting).attachments.remove(&attach_id);
    }

    /// An id for an attachment, unique on this connection.
    pub fn next_attach_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Cancelled when the monitor has gone, or the daemon does.
    pub fn gone(&self) -> tokio_util::sync::CancellationToken {
        self.ended.clone()
    }

    /// What it tells by itself; for the one who follows it.
    pub fn take_told(&self) -> Option<mpsc::Receiver<Told>> {
        lock(&self.told).take()
    }

    /// Asks it to end and waits until it has.
    pub async fn shutdown(&self) {
        let ended = async {
            if let Err(error) = self.request(Request::Shutdown(Shutdown::default()), &[]).await {
                tracing::debug!(sandbox_id = %self.sandbox, error = error.chain(), "monitor shutdown");
            }
            self.ended.cancelled().await;
        };
        if tokio::time::timeout(SHUTDOWN_PATIENCE, ended).await.is_err() {
            tracing::error!(sandbox_id = %self.sandbox, "monitor did not end");
        }
    }

    async fn read(self: Arc<Self>, told: mpsc::Sender<Told>, closing: tokio_util::sync::CancellationToken) {
        let work = self.read_until_closed(&told);
        tokio::select! {
            () = work => {}
            () = closing.cancelled() => {}
        }
        {
            let mut waiting = lock(&self.waiting);
            waiting.closed = true;
            waiting.replies.clear();
            waiting.sessions.clear();
            waiting.attachments.clear();
        }
        self.ended.cancel();
    }

    async fn read_until_closed(&self, told: &mpsc::Sender<Told>) {
        loop {
            let Ok(mut ready) = self.connection.readable().await else { return };
            match self.connection.get_ref().0.recv() {
                Ok(Event::Message(message, descriptors)) => self.deliver(message, descriptors, told).await,
                Ok(Event::Nothing) => ready.clear_ready(),
                Ok(Event::Closed) => return,
                Err(error) => {
                    tracing::error!(sandbox_id = %self.sandbox, %error, "monitor connection");
                    return;
                }
            }
        }
    }

    async fn deliver(&self, message: FromMonitor, descriptors: Vec<OwnedFd>, told: &mpsc::Sender<Told>) {
        let Some(reply) = message.reply else { return };
        if message.id != 0 {
            if let Some(waiting) = lock(&self.waiting).replies.remove(&message.id) {
                // A caller that has given up does not want it.
                let _ = waiting.send((reply, descriptors));
            }
            return;
        }
        match reply {
            Reply::Exited(exited) if exited.exec_id.is_empty() => {
                // Nobody follows a sandbox that is being undone.
                let _ = told.send(Told::Exited(exited)).await;
            }
            Reply::Exited(exited) => {
                if let Some(waiting) = lock(&self.waiting).sessions.remove(&exited.exec_id) {
                    let _ = waiting.send(exited);
                }
            }
            Reply::Detached(detached) => {
                if let Some(waiting) = lock(&self.waiting).attachments.remove(&detached.attach_id) {
                    let _ = waiting.send(detached);
                }
            }
            other => tracing::debug!(sandbox_id = %self.sandbox, ?other, "unknown event"),
        }
    }
}

/// Waits for the child in the background: by a pidfd, so that it costs no thread.
fn reap(node: &Node, sandbox: &SandboxId, child: &mut std::process::Child) -> Result<(), Error> {
    use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
    let failed =
        |error: rustix::io::Errno| Error::io("open pidfd of", format!("monitor of {sandbox}"))(error.into());
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(failed)?;
    let pidfd = readable(pidfd, "pidfd of a monitor")?;
    let closing = node.closing.clone();
    tokio::spawn(async move {
        tokio::select! {
            ready = pidfd.readable() => {
                if ready.is_ok() {
                    let _ = waitid(WaitId::PidFd(pidfd.get_ref().0.as_fd()), WaitIdOptions::EXITED);
                }
            }
            () = closing.cancelled() => {}
        }
    });
    Ok(())
}
