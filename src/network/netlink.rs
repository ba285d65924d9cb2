//! A synchronous netlink socket: one `send` for a row of requests, typed errors with the kernel's own text.
//!
//! The kernel works a request off inside `send`, in the caller's context, and queues every reply before it
//! returns (netlink(7)); therefore replies are read without waiting and a lost reply is an error, never a hang.
//! A dump produces its next part inside `recv`, so the same holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pinnace_sys::netlink::Instruction;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname, recv, send,
    socket_with, sockopt,
};

use crate::message::{self, Message, Request, Subject, flag};

/// Large enough for any one datagram: the kernel caps dump parts at 32 KiB.
const DATAGRAM_MAX: usize = 64 * 1024;
const DUMP_ATTEMPTS: u32 = 5;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The kernel refused one message of the request.
    #[error("{operation} {name}: {errno}{}", Explanation(.explanation.as_deref()))]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Of which object.
        name: String,
        /// The kernel's answer.
        errno: Errno,
        /// The kernel's text, if it gave one.
        explanation: Option<String>,
    },
    /// The socket could not be made or used.
    #[error("netlink {call}")]
    Socket {
        /// The system call.
        call: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A request did not fit into netlink's 16-bit lengths.
    #[error("{operation} {name}: request too long")]
    TooLong {
        /// What was asked.
        operation: &'static str,
        /// Of which object.
        name: String,
    },
    /// The kernel did not answer.
    #[error("{operation} {name}: no answer from the kernel")]
    NoAnswer {
        /// What was asked.
        operation: &'static str,
        /// Of which object.
        name: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { errno, .. } => Some(*errno),
            NetlinkError::Socket { source, .. } => Some(*source),
            NetlinkError::TooLong { .. } | NetlinkError::NoAnswer { .. } => None,
        }
    }

    /// Whether the object that was named does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL))
    }
}

struct Explanation<'a>(Option<&'a str>);

impl std::fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

/// The netlink families that are spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes.
    Route,
    /// nf_tables, conntrack.
    Netfilter,
}

impl Family {
    fn protocol(self) -> Option<Protocol> {
        match self {
            // NETLINK_ROUTE is 0, which is the default protocol.
            Family::Route => None,
            Family::Netfilter => Some(rustix::net::netlink::NETFILTER),
        }
    }
}

/// A netlink socket. It belongs to the network namespace of the thread that opened it, for ever.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket for requests in the calling thread's network namespace.
    pub fn open(family: Family) -> Result<Self, NetlinkError> {
        let fd =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, family.protocol())
                .map_err(|source| NetlinkError::Socket { call: "socket", source })?;
        // Older kernels only give less text.
        let _ = pinnace_sys::netlink::explain_errors(fd.as_fd());
        Ok(Socket { fd, sequence: 0 })
    }

    /// Makes room for requests of up to `bytes`, beyond net.core.wmem_max (needs CAP_NET_ADMIN).
    pub fn allow_requests_of(&self, bytes: usize) -> Result<(), NetlinkError> {
        sockopt::set_socket_send_buffer_size_force(&self.fd, bytes)
            .map_err(|source| NetlinkError::Socket { call: "setsockopt SO_SNDBUFFORCE", source })
    }

    /// The kernel's number for this socket, which notifications carry as their cause.
    pub fn port(&self) -> Result<u32, NetlinkError> {
        // The kernel binds at the first send; binding to 0 asks for it now.
        bind(&self.fd, &SocketAddrNetlink::new(0, 0))
            .map_err(|source| NetlinkError::Socket { call: "bind", source })?;
        let address =
            getsockname(&self.fd).map_err(|source| NetlinkError::Socket { call: "getsockname", source })?;
        let address = SocketAddrNetlink::try_from(address)
            .map_err(|source| NetlinkError::Socket { call: "getsockname", source })?;
        Ok(address.pid())
    }

    /// A new request whose numbers no earlier one of this socket had.
    pub fn request(&self) -> Request {
        Request::new(self.sequence.wrapping_add(1))
    }

    /// Sends all messages at once; the verdict is the first failure, or success of all.
    ///
    /// rtnetlink works through the whole row even after a failure.
    pub fn execute(&mut self, request: Request) -> Result<(), NetlinkError> {
        self.exchange(request, |_| ())
    }

    /// Like [`Socket::execute`], and gives every other reply to `on_reply`.
    pub fn exchange(
        &mut self,
        request: Request,
        on_reply: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        let last = usize::try_from(request.len()).unwrap_or(usize::MAX).saturating_sub(1);
        self.exchange_acknowledged(request, last, on_reply)
    }

    /// Like [`Socket::exchange`] for a row whose last message cannot be acknowledged.
    pub fn exchange_acknowledged(
        &mut self,
        mut request: Request,
        position: usize,
        mut on_reply: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        let Some(awaited) = request.acknowledge(position) else {
            return Ok(());
        };
        self.send(&request)?;
        let mut acknowledged = false;
        let mut failure = None;
        let mut buffer = [0u8; 8192];
        while let Some(length) = self.receive(&mut buffer)? {
            for message in message::messages(&buffer[..length]) {
                if request.subject(message.sequence).is_none() {
                    continue;
                }
                if message.kind != message::NLMSG_ERROR {
                    on_reply(message);
                    continue;
                }
                acknowledged |= message.sequence == awaited;
                failure = failure.or_else(|| refusal(&request, message));
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if acknowledged => Ok(()),
            None => Err(no_answer(&request, awaited)),
        }
    }

    /// Reads all objects that a get request names. Repeats if they changed meanwhile.
    pub fn dump<T>(
        &mut self,
        subject: &Subject,
        kind: u16,
        header: &[u8],
        attributes: impl Fn(&mut message::Attributes<'_>),
        mut parse: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            found.clear();
            let mut request = self.request();
            request.message(subject.clone(), kind, flag::DUMP, header, &attributes);
            if self.read_dump(&request, &mut parse, &mut found)? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Refused {
            operation: subject.operation,
            name: subject.name.clone(),
            errno: Errno::INTR,
            explanation: Some("changed at every attempt to read it".to_owned()),
        })
    }

    /// Returns whether the dump was consistent.
    fn read_dump<T>(
        &mut self,
        request: &Request,
        parse: &mut impl FnMut(Message<'_>) -> Option<T>,
        found: &mut Vec<T>,
    ) -> Result<bool, NetlinkError> {
        self.send(request)?;
        let sequence = request.last_sequence();
        let mut buffer = vec![0u8; DATAGRAM_MAX];
        let mut consistent = true;
        loop {
            let Some(length) = self.receive(&mut buffer)? else {
                return Err(no_answer(request, sequence));
            };
            for message in message::messages(&buffer[..length]).filter(|m| m.sequence == sequence) {
                consistent &= message.flags & flag::DUMP_INTERRUPTED == 0;
                match message.kind {
                    // A dump that fails midway says so in the payload of its end.
                    message::NLMSG_DONE | message::NLMSG_ERROR => {
                        return refusal(request, message).map_or(Ok(consistent), Err);
                    }
                    _ => found.extend(parse(message)),
                }
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), NetlinkError> {
        self.sequence = request.last_sequence();
        let subject = request.subject(request.last_sequence());
        let Some(bytes) = request.bytes() else {
            return Err(NetlinkError::TooLong {
                operation: subject.map_or("request", |s| s.operation),
                name: subject.map_or_else(String::new, |s| s.name.clone()),
            });
        };
        let sent = rustix::io::retry_on_intr(|| send(&self.fd, bytes, SendFlags::empty()))
            .map_err(|source| NetlinkError::Socket { call: "send", source })?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(NetlinkError::Socket { call: "send", source: Errno::MSGSIZE })
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, NetlinkError> {
        receive(self.fd.as_fd(), buffer)
    }
}

/// A socket that only listens for changes.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

/// Which datagrams a [`Listener`] wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those of this message type whose family byte, the first of the payload, is this.
    Kind(u16, u8),
    /// Those that the socket with this port did not cause.
    NotFrom(u32),
}

impl Which {
    /// Classic BPF, which loads numbers in network byte order.
    fn program(self) -> Vec<Instruction> {
        const LOAD_WORD: u16 = 0x20;
        const LOAD_HALF: u16 = 0x28;
        const LOAD_BYTE: u16 = 0x30;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let one = |code, operand| Instruction { code, if_true: 0, if_false: 0, operand };
        let unless = |operand, skip| Instruction { code: JUMP_IF_EQUAL, if_true: 0, if_false: skip, operand };
        let (accept, drop) = (one(RETURN, u32::MAX), one(RETURN, 0));
        match self {
            Which::Kind(kind, family) => {
                let kind = u16::from_be_bytes(kind.to_ne_bytes()).into();
                let header = u32::try_from(message::HEADER_LEN).unwrap_or(16);
                vec![
                    one(LOAD_HALF, 4),
                    unless(kind, 3),
                    one(LOAD_BYTE, header),
                    unless(family.into(), 1),
                    accept,
                    drop,
                ]
            }
            Which::NotFrom(port) => {
                vec![one(LOAD_WORD, 12), unless(u32::from_be_bytes(port.to_ne_bytes()), 1), drop, accept]
            }
        }
    }
}

/// What a [`Listener`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// All that was waiting was given to the caller.
    Everything,
    /// The kernel dropped some: the caller must look for itself.
    Gaps,
}

impl Listener {
    /// Listens to the multicast groups in `mask` (bit 0 is group 1) of the calling thread's namespace.
    pub fn open(family: Family, mask: u32) -> Result<Self, NetlinkError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, family.protocol())
            .map_err(|source| NetlinkError::Socket { call: "socket", source })?;
        // Bursts come when many pods end at once; without the room they are only noticed by looking again.
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, 1024 * 1024);
        bind(&fd, &SocketAddrNetlink::new(0, mask))
            .map_err(|source| NetlinkError::Socket { call: "bind", source })?;
        Ok(Listener { fd })
    }

    /// Lets only datagrams pass whose first message `which` describes, so that nobody is woken for others.
    pub fn narrow(&self, which: Which) -> Result<(), NetlinkError> {
        pinnace_sys::netlink::filter(self.fd.as_fd(), &which.program())
            .map_err(|source| NetlinkError::Socket { call: "setsockopt SO_ATTACH_FILTER", source })
    }

    /// Gives every message that is waiting to `on_message`.
    pub fn drain(
        &self,
        buffer: &mut Vec<u8>,
        mut on_message: impl FnMut(Message<'_>),
    ) -> Result<Heard, NetlinkError> {
        buffer.resize(DATAGRAM_MAX, 0);
        let mut heard = Heard::Everything;
        loop {
            match receive(self.fd.as_fd(), buffer) {
                Ok(Some(length)) => message::messages(&buffer[..length]).for_each(&mut on_message),
                Ok(None) => return Ok(heard),
                Err(NetlinkError::Socket { source: Errno::NOBUFS, .. }) => heard = Heard::Gaps,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, NetlinkError> {
    let received =
        rustix::io::retry_on_intr(|| recv(fd, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC));
    match received {
        Ok((_, length)) if length > buffer.len() => {
            Err(NetlinkError::Socket { call: "recv", source: Errno::MSGSIZE })
        }
        Ok((length, _)) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        Err(source) => Err(NetlinkError::Socket { call: "recv", source }),
    }
}

/// Turns an error message (or the end of a dump) into an error, unless it says success.
fn refusal(request: &Request, message: Message<'_>) -> Option<NetlinkError> {
    let code = message::u32_at(message.payload, 0)?.cast_signed();
    if code == 0 {
        return None;
    }
    let subject = request.subject(message.sequence);
    // An error is followed by the header of the request; the whole request too, unless it was capped.
    let skip = if message.kind == message::NLMSG_DONE {
        4
    } else if message.flags & flag::CAPPED != 0 {
        4 + message::HEADER_LEN
    } else {
        let length = message::u32_at(message.payload, 4).and_then(|l| usize::try_from(l).ok()).unwrap_or(0);
        4 + length.min(message.payload.len()).next_multiple_of(4)
    };
    let explanation = (message.flags & flag::ACK_TLVS != 0)
        .then(|| message.payload.get(skip..))
        .flatten()
        .and_then(|tail| message::attributes(tail).find(|a| a.kind == message::NLMSGERR_ATTR_MSG))
        .and_then(|attribute| attribute.text().map(str::to_owned));
    Some(NetlinkError::Refused {
        operation: subject.map_or("request", |s| s.operation),
        name: subject.map_or_else(String::new, |s| s.name.clone()),
        // The kernel's error numbers end at 4095 (MAX_ERRNO).
        errno: Errno::from_raw_os_error(code.saturating_neg().clamp(1, 4095)),
        explanation,
    })
}

fn no_answer(request: &Request, sequence: u32) -> NetlinkError {
    let subject = request.subject(sequence);
    NetlinkError::NoAnswer {
        operation: subject.map_or("request", |s| s.operation),
        name: subject.map_or_else(String::new, |s| s.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_error_reply_becomes_an_error_or_success(
            payload in proptest::collection::vec(any::<u8>(), 0..80), flags in any::<u16>()
        ) {
            let mut request = Request::new(1);
            let subject = Subject { operation: "create link", name: "x".to_owned() };
            request.message(subject, 16, 0, &[], |_| ());
            let message = Message { kind: 2, flags, sequence: 1, port: 0, payload: &payload };
            let success = payload.len() < 4 || payload[..4] == [0; 4];
            prop_assert_eq!(refusal(&request, message).is_none(), success);
        }
    }
}
