//! The control socket between init and monitor, a pair of `SOCK_SEQPACKET` sockets, close-on-exec.
//!
//! ```text
//! init ──T + pty master──► monitor      once, with a terminal
//! init ──H──────────────► monitor       with a pause: the container is there, hooks of the runtime may run
//! init ◄──S────────────── monitor       go on after that
//! init ──P──────────────► monitor       everything is done up to execve
//! init ◄──S────────────── monitor       go on (only when held)
//! init ──F + Failure────► monitor       a step failed; init ends
//! end of file                           after P: execve succeeded; before: init died
//! ```
//! An init that is held at a socket of its own waits there for a connection instead, which then takes the monitor's place.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, accept_with, socketpair};

use crate::failure::{At, Failure};
use crate::packet::{self, FAILED, Received};

const TERMINAL: u8 = b'T';
const PAUSED: u8 = b'H';
const PREPARED: u8 = b'P';
const START: u8 = b'S';

/// Both ends: the monitor's and init's.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).at(
        "control",
        "socketpair",
        "",
    )
}

/// Init's end.
#[derive(Debug)]
pub(crate) struct Control<'a> {
    given: BorrowedFd<'a>,
    /// The same socket at a number that is out of the way.
    moved: OnceCell<OwnedFd>,
    /// Who has started us, in the monitor's place.
    starter: OnceCell<OwnedFd>,
}

impl AsFd for Control<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.starter.get().or(self.moved.get()).map_or(self.given, AsFd::as_fd)
    }
}

impl<'a> Control<'a> {
    /// Talks over this socket.
    pub fn new(given: BorrowedFd<'a>) -> Self {
        Self { given, moved: OnceCell::new(), starter: OnceCell::new() }
    }

    /// The socket as it was given.
    pub fn given(&self) -> BorrowedFd<'a> {
        self.given
    }

    /// Uses another number for the same socket, once.
    pub fn replace(&self, moved: OwnedFd) {
        let _ = self.moved.set(moved);
    }

    /// Reports the failure. By write(2), which a seccomp profile that is already in force can hardly refuse.
    pub fn fail(&self, failure: &Failure) {
        let mut packet = vec![FAILED];
        packet.extend(failure.encode_to_vec());
        // When the monitor is gone nobody is left to tell.
        let _ = rustix::io::write(self, &packet);
    }

    /// Hands over the terminal's master.
    pub fn terminal(&self, master: BorrowedFd<'_>) -> Result<(), Failure> {
        packet::send(self.as_fd(), &[TERMINAL], &[master]).at("terminal", "sendmsg", "")
    }

    /// Says that the container is there, and waits until its runtime has done what it wants to do about that.
    pub fn pause(&self) -> Result<(), Failure> {
        rustix::io::write(self, &[PAUSED]).at("control", "write", "")?;
        self.wait()
    }

    /// Says that all is done up to execve, and waits for the start when `held`, at a socket of its own if there is one.
    pub fn prepared(&self, held: bool, start: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
        rustix::io::write(self, &[PREPARED]).at("control", "write", "")?;
        match (held, start) {
            (false, _) => Ok(()),
            (true, None) => self.wait(),
            (true, Some(listener)) => {
                let starter = loop {
                    match accept_with(listener, SocketFlags::CLOEXEC) {
                        Err(Errno::INTR | Errno::CONNABORTED) => {}
                        other => break other.at("control", "accept4", "")?,
                    }
                };
                // Once in a life.
                let _ = self.starter.set(starter);
                Ok(())
            }
        }
    }

    fn wait(&self) -> Result<(), Failure> {
        let mut byte = [0u8; 1];
        loop {
            match rustix::io::read(self, &mut byte[..]) {
                Ok(1) if byte == [START] => return Ok(()),
                Ok(_) => return Err(Failure::refused("control", "", "the monitor ended before the start")),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Failure::syscall("control", "read", errno, "")),
            }
        }
    }
}

/// Lets a held init go on.
pub(crate) fn start(control: impl AsFd) -> Result<(), Failure> {
    packet::send(control.as_fd(), &[START], &[]).at("control", "sendmsg", "")
}

/// What init said.
#[derive(Debug)]
pub(crate) enum Word {
    Terminal(OwnedFd),
    Paused,
    Prepared,
    Failed(Failure),
    /// Execve, or the end of init.
    End,
}

/// The next word of init, if there is one.
pub(crate) fn hear(control: impl AsFd) -> Result<Option<Word>, Failure> {
    let (bytes, fds) = match packet::receive(control.as_fd(), RecvFlags::DONTWAIT) {
        Ok(Received::Packet(bytes, fds)) => (bytes, fds),
        Ok(Received::Closed) => return Ok(Some(Word::End)),
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(Failure::syscall("control", "recvmsg", errno, "")),
    };
    let word = match (bytes.split_first(), fds.into_iter().next()) {
        (Some((&TERMINAL, [])), Some(master)) => Word::Terminal(master),
        (Some((&PAUSED, [])), None) => Word::Paused,
        (Some((&PREPARED, [])), None) => Word::Prepared,
        (Some((&FAILED, failure)), None) => Word::Failed(
            Failure::decode(failure)
                .unwrap_or_else(|_| Failure::refused("control", "", "init sent an undecodable failure")),
        ),
        _ => return Err(Failure::refused("control", "", "init sent an unknown packet")),
    };
    Ok(Some(word))
}
