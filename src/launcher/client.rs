//! The daemon's half: start a monitor, dial one that runs, talk to it.
//!
//! ```text
//! seal(BYTES)  ─► memfd, once per daemon
//! spawn(memfd) ─► Monitor { child, connection }      connect(run directory) ─► Connection
//!                          connection.send(Hello) … recv() State … send(Setup) … recv() Ready …
//! ```
//! A [`Connection`] never blocks on receiving: wait for its descriptor to become readable (it implements [`AsFd`]), then
//! call [`Connection::recv`] until it says [`Event::Nothing`]. [`Connection::call`] is the blocking form for tools.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect as dial, socket_with,
    socketpair,
};

use crate::packet::{self, DESCRIPTORS_PER_PACKET, DESCRIPTORS_PER_REQUEST, Received};
use crate::protocol::{
    Attachments, Failure, FromMonitor, INLINE_BYTES, Large, Reply, Request, SOCKET_NAME, ToMonitor,
};

/// How long [`Connection::send`] waits for a monitor that does not read before it gives up.
pub const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// What can go wrong between daemon and monitor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("monitor connection: {call}")]
    Io {
        /// The call.
        call: &'static str,
        /// Its verdict.
        #[source]
        source: Errno,
    },
    /// The monitor could not be started.
    #[error("start monitor of sandbox {sandbox_id}")]
    Spawn {
        /// Whose monitor.
        sandbox_id: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The socket belongs to somebody else.
    #[error("monitor socket is served by user {uid}, not by us")]
    Peer {
        /// Who serves it.
        uid: u32,
    },
    /// What came is not a message.
    #[error("monitor sent an undecodable packet of {bytes} bytes")]
    Decode {
        /// Its length.
        bytes: usize,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
    /// More descriptors than a request may carry.
    #[error("request with {count} descriptors, at most {DESCRIPTORS_PER_REQUEST}")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// The monitor ended or closed the connection.
    #[error("monitor closed the connection")]
    Closed,
    /// No reply in time.
    #[error("no reply from the monitor within {0:?}")]
    Deadline(Duration),
    /// The monitor said no.
    #[error(transparent)]
    Refused(#[from] Failure),
}

fn io(call: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Io { call, source }
}

/// The program as a sealed memfd, for [`spawn`]; made once, all monitors share its pages.
pub fn seal(program: &[u8]) -> Result<OwnedFd, Error> {
    // MFD_EXEC: hosts with vm.memfd_noexec=1 make memfds that cannot be executed unless asked. Kernels before 6.3 refuse
    // the unknown flag.
    match packet::sealed("pinnace-monitor", program, MemfdFlags::EXEC) {
        Err(Errno::INVAL) => packet::sealed("pinnace-monitor", program, MemfdFlags::empty()),
        other => other,
    }
    .map_err(io("memfd_create"))
}

/// A monitor just started.
#[derive(Debug)]
pub struct Monitor {
    /// To be waited for when it ends; a monitor outlives the daemon, so do not kill it on drop.
    pub child: Child,
    /// The first connection.
    pub connection: Connection,
}

/// Starts a monitor from the sealed program; its messages about itself go to `stderr`, or nowhere.
///
/// Safe in a threaded process: no code runs between fork and exec, so that std can use posix_spawn(3), which shares the
/// memory instead of copying page tables.
pub fn spawn(
    program: BorrowedFd<'_>,
    sandbox_id: &str,
    stderr: Option<BorrowedFd<'_>>,
) -> Result<Monitor, Error> {
    let (near, far) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(io("socketpair"))?;
    let failed = |source| Error::Spawn { sandbox_id: sandbox_id.to_owned(), source };
    let mut title = OsString::from("pinnace-monitor ");
    title.push(sandbox_id);
    let stderr = match stderr {
        Some(fd) => Stdio::from(fd.try_clone_to_owned().map_err(failed)?),
        None => Stdio::null(),
    };
    // The child opens its own copy of the descriptor table: the number is valid there, close-on-exec takes effect later.
    let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(title)
        .env_clear()
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(failed)?;
    Ok(Monitor { child, connection: Connection { socket: near } })
}

/// Dials the monitor whose run directory this is. ENOENT or ECONNREFUSED: there is none any more.
pub fn connect(run_directory: BorrowedFd<'_>) -> Result<Connection, Error> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(io("socket"))?;
    // By way of the descriptor: the path of a run directory may be longer than the 108 bytes of sun_path.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_NAME}", run_directory.as_raw_fd()))
        .map_err(io("connect"))?;
    dial(&socket, &address).map_err(io("connect"))?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).map_err(io("getsockopt"))?;
    if peer.uid != rustix::process::geteuid() {
        return Err(Error::Peer { uid: peer.uid.as_raw() });
    }
    Ok(Connection { socket })
}

/// What [`Connection::recv`] found.
#[derive(Debug)]
pub enum Event {
    /// A reply or an event of the monitor, with the descriptors of its slots.
    Message(FromMonitor, Vec<OwnedFd>),
    /// Nothing now: wait until the descriptor is readable.
    Nothing,
    /// The monitor closed.
    Closed,
}

/// One conversation with a monitor.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Sends a request with its descriptors, in as many packets as that takes. Blocks only while the monitor does not
    /// read, at most [`SEND_DEADLINE`].
    pub fn send(&self, message: &ToMonitor, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let count = descriptors.len();
        if count > DESCRIPTORS_PER_REQUEST {
            return Err(Error::TooManyDescriptors { count });
        }
        let body = message.encode_to_vec();
        let memfd = if body.len() > INLINE_BYTES {
            Some(packet::sealed("plan", &body, MemfdFlags::NOEXEC_SEAL).or_else(|errno| match errno {
                // Kernels before 6.3 do not know the flag.
                Errno::INVAL => packet::sealed("plan", &body, MemfdFlags::empty()),
                errno => Err(errno),
            }))
        } else {
            None
        }
        .transpose()
        .map_err(io("memfd_create"))?;

        let mut rest: Vec<BorrowedFd<'_>> = descriptors.to_vec();
        rest.extend(memfd.iter().map(AsFd::as_fd));
        let last = rest.len().saturating_sub(1) / DESCRIPTORS_PER_PACKET * DESCRIPTORS_PER_PACKET;
        let (ahead, with_request) = rest.split_at(last);
        for chunk in ahead.chunks(DESCRIPTORS_PER_PACKET) {
            let announcement =
                ToMonitor { id: message.id, request: Some(Request::Attachments(Attachments {})) };
            self.send_packet(&announcement.encode_to_vec(), chunk)?;
        }
        if memfd.is_some() {
            let large = Large { bytes: body.len() as u64 };
            let large = ToMonitor { id: message.id, request: Some(Request::Large(large)) };
            self.send_packet(&large.encode_to_vec(), with_request)
        } else {
            self.send_packet(&body, with_request)
        }
    }

    fn send_packet(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let deadline = Instant::now() + SEND_DEADLINE;
        loop {
            match packet::send(self.as_fd(), bytes, fds) {
                Ok(()) => return Ok(()),
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::OUT, deadline)? {
                        return Err(Error::Deadline(SEND_DEADLINE));
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Closed),
                Err(errno) => return Err(io("sendmsg")(errno)),
            }
        }
    }

    /// The next message, if one is there.
    pub fn recv(&self) -> Result<Event, Error> {
        match packet::receive(self.as_fd(), RecvFlags::DONTWAIT) {
            Ok(Received::Packet(bytes, fds)) => match FromMonitor::decode(bytes.as_slice()) {
                Ok(message) => Ok(Event::Message(message, fds)),
                Err(source) => Err(Error::Decode { bytes: bytes.len(), source }),
            },
            Ok(Received::Closed) => Ok(Event::Closed),
            Err(Errno::AGAIN) => Ok(Event::Nothing),
            Err(errno) => Err(io("recvmsg")(errno)),
        }
    }

    /// The next message, waiting for it until the deadline; descriptors beside it are closed.
    pub fn recv_within(&self, limit: Duration) -> Result<FromMonitor, Error> {
        let deadline = Instant::now() + limit;
        loop {
            match self.recv()? {
                Event::Message(message, _) => return Ok(message),
                Event::Closed => return Err(Error::Closed),
                Event::Nothing => {
                    if !self.wait(PollFlags::IN, deadline)? {
                        return Err(Error::Deadline(limit));
                    }
                }
            }
        }
    }

    /// Sends a request and waits for its reply; a [`Failure`] becomes an error. Events that come first go to `events`.
    pub fn call(
        &self,
        id: u64,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
        mut events: impl FnMut(Reply),
    ) -> Result<Reply, Error> {
        let deadline = Instant::now() + limit;
        self.send(&ToMonitor { id, request: Some(request) }, descriptors)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.recv_within(left).map_err(|error| match error {
                Error::Deadline(_) => Error::Deadline(limit),
                error => error,
            })?;
            match (message.id, message.reply) {
                (answered, Some(Reply::Failed(failure))) if answered == id => {
                    return Err(Error::Refused(failure));
                }
                (answered, Some(reply)) if answered == id => return Ok(reply),
                (0, Some(reply)) => events(reply),
                // The late answer to an earlier call, or one of a kind that we do not know.
                _ => {}
            }
        }
    }

    fn wait(&self, readiness: PollFlags, deadline: Instant) -> Result<bool, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.socket, readiness)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io("poll")(errno)),
            }
        }
    }
}

/// Waits, connected to the start socket of a held init, until its program runs; an error says why it does not.
pub fn await_start(socket: OwnedFd) -> Result<(), Error> {
    match packet::receive(socket.as_fd(), RecvFlags::empty()) {
        Ok(Received::Closed) => Ok(()),
        Ok(Received::Packet(bytes, _)) => match bytes.split_first() {
            Some((&packet::FAILED, failure)) => Err(Failure::decode(failure)
                .map_or_else(|source| Error::Decode { bytes: bytes.len(), source }, Error::Refused)),
            _ => Err(Error::Closed),
        },
        Err(errno) => Err(io("recvmsg")(errno)),
    }
}

/// Whether a name can serve as container or exec session id: it becomes part of a file name.
pub fn valid_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && OsStr::new(id) != ".."
        && id != "."
}
