//! A daemon's connection as the monitor sees it: requests put together from packets, replies queued.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::poller::Interest;
use crate::failure::Failure;
use crate::packet::{self, DESCRIPTORS_PER_REQUEST, Received};
use crate::protocol::{FromMonitor, Request, ToMonitor};
use crate::slots::Slots;

/// Replies that wait for a daemon that does not read; one more and the connection is closed. It will come back and ask
/// for the state.
const OUTBOX: usize = 4096;

/// One daemon.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    /// Whether it has said hello, and so gets events.
    pub greeted: bool,
    /// Request whose descriptors are being collected, and these.
    collecting: (u64, Vec<OwnedFd>),
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    pub interest: Interest,
}

/// What came over a connection.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A whole request.
    Request(u64, Box<Request>, Slots),
    /// Something that is to be answered with a failure.
    Unusable(u64, Failure),
    /// Nothing more now.
    Nothing,
    /// The daemon went away.
    Closed,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            greeted: false,
            collecting: (0, Vec::new()),
            outbox: VecDeque::new(),
            interest: Interest::READ,
        }
    }

    /// The next request.
    pub fn receive(&mut self) -> Incoming {
        loop {
            let (bytes, fds) = match packet::receive(self.socket.as_fd(), RecvFlags::DONTWAIT) {
                Ok(Received::Packet(bytes, fds)) => (bytes, fds),
                Ok(Received::Closed) => return Incoming::Closed,
                Err(Errno::AGAIN) => return Incoming::Nothing,
                Err(errno @ (Errno::MFILE | Errno::NFILE)) => {
                    return Incoming::Unusable(0, Failure::syscall("protocol", "recvmsg", errno, ""));
                }
                Err(_) => return Incoming::Closed,
            };
            let message = match ToMonitor::decode(bytes.as_slice()) {
                Ok(message) => message,
                Err(error) => {
                    return Incoming::Unusable(0, Failure::refused("protocol", "", error.to_string()));
                }
            };
            let id = message.id;
            if self.collecting.0 != id {
                self.collecting = (id, Vec::new());
            }
            self.collecting.1.extend(fds);
            if self.collecting.1.len() > DESCRIPTORS_PER_REQUEST {
                self.collecting.1.clear();
                return Incoming::Unusable(id, Failure::refused("protocol", "", "too many descriptors"));
            }
            match message.request {
                Some(Request::Attachments(_)) => {}
                Some(Request::Large(large)) => return self.large(id, large.bytes),
                Some(request) => return Incoming::Request(id, Box::new(request), self.slots()),
                None => {
                    self.collecting.1.clear();
                    return Incoming::Unusable(id, Failure::refused("protocol", "", "unknown request"));
                }
            }
        }
    }

    fn large(&mut self, id: u64, bytes: u64) -> Incoming {
        let request = self
            .collecting
            .1
            .pop()
            .ok_or(Errno::BADF)
            .and_then(|memfd| packet::unsealed(memfd, bytes))
            .map_err(|errno| Failure::syscall("protocol", "memfd", errno, ""))
            .and_then(|body| {
                ToMonitor::decode(body.as_slice())
                    .map_err(|error| Failure::refused("protocol", "", error.to_string()))
            });
        let slots = self.slots();
        match request {
            Ok(ToMonitor { request: Some(Request::Attachments(_) | Request::Large(_)) | None, .. }) => {
                Incoming::Unusable(id, Failure::refused("protocol", "", "unknown request"))
            }
            Ok(ToMonitor { request: Some(request), .. }) => Incoming::Request(id, Box::new(request), slots),
            Err(failure) => Incoming::Unusable(id, failure),
        }
    }

    fn slots(&mut self) -> Slots {
        Slots::new(std::mem::take(&mut self.collecting.1))
    }

    /// Sends or queues a message with descriptors; `false` when the connection has to be given up.
    pub fn send(&mut self, message: &FromMonitor, descriptors: Vec<OwnedFd>) -> bool {
        if self.outbox.len() >= OUTBOX {
            return false;
        }
        self.outbox.push_back((message.encode_to_vec(), descriptors));
        self.flush()
    }

    /// Sends what is queued; `false` when the connection has to be given up.
    pub fn flush(&mut self) -> bool {
        while let Some((bytes, descriptors)) = self.outbox.front() {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match packet::send(self.socket.as_fd(), bytes, &descriptors) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether everything has been sent.
    pub fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }
}
