//! The control socket between init and monitor, a pair of `SOCK_SEQPACKET` sockets, close-on-exec.
//!
//! ```text
//! init ──T + pty master──► monitor      once, with a terminal
//! init ──P──────────────► monitor       everything is done up to execve
//! init ◄──S────────────── monitor       go on (only when held)
//! init ──F + Failure────► monitor       a step failed; init ends
//! end of file                           after P: execve succeeded; before: init died
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};

use crate::failure::{At, Failure};
use crate::packet::{self, Received};

const TERMINAL: u8 = b'T';
const PREPARED: u8 = b'P';
const START: u8 = b'S';
const FAILED: u8 = b'F';

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
pub(crate) struct Control<'a>(pub BorrowedFd<'a>);

impl Control<'_> {
    /// Reports the failure. By write(2), which a seccomp profile that is already in force can hardly refuse.
    pub fn fail(&self, failure: &Failure) {
        let mut packet = vec![FAILED];
        packet.extend(failure.encode_to_vec());
        // When the monitor is gone nobody is left to tell.
        let _ = rustix::io::write(self.0, &packet);
    }

    /// Hands over the terminal's master.
    pub fn terminal(&self, master: BorrowedFd<'_>) -> Result<(), Failure> {
        packet::send(self.0, &[TERMINAL], &[master]).at("terminal", "sendmsg", "")
    }

    /// Says that all is done up to execve, and waits for the start when `held`.
    pub fn prepared(&self, held: bool) -> Result<(), Failure> {
        rustix::io::write(self.0, &[PREPARED]).at("control", "write", "")?;
        if !held {
            return Ok(());
        }
        let mut byte = [0u8; 1];
        loop {
            match rustix::io::read(self.0, &mut byte[..]) {
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
        (Some((&PREPARED, [])), None) => Word::Prepared,
        (Some((&FAILED, failure)), None) => Word::Failed(
            Failure::decode(failure)
                .unwrap_or_else(|_| Failure::refused("control", "", "init sent an undecodable failure")),
        ),
        _ => return Err(Failure::refused("control", "", "init sent an unknown packet")),
    };
    Ok(Some(word))
}
