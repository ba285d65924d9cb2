//! Packets with descriptors over a unix `SOCK_SEQPACKET` socket, shared by daemon and monitor.
//!
//! Nothing here blocks: a full or empty socket is `EAGAIN`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};

/// `SCM_MAX_FD`: most descriptors that one packet carries.
pub(crate) const DESCRIPTORS_PER_PACKET: usize = 253;

/// Most descriptors of one request, packets of attachments included.
pub(crate) const DESCRIPTORS_PER_REQUEST: usize = 4096;

/// Largest packet that is read; the socket's send buffer bounds it anyway.
const PACKET_BYTES: usize = 1 << 20;

/// Largest body in a memfd.
const BODY_BYTES: u64 = 64 << 20;

/// First byte of init's words about what went wrong; a [`Failure`](crate::protocol::Failure) follows.
pub(crate) const FAILED: u8 = b'F';

/// What came.
#[derive(Debug)]
pub(crate) enum Received {
    /// One packet and the descriptors beside it.
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// The other end closed.
    Closed,
}

/// Sends one packet; all or nothing.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_PACKET))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Receives one packet; `flags` decide whether to wait (`RecvFlags::DONTWAIT` does not).
pub(crate) fn receive(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<Received, Errno> {
    // Ask for the length first: a buffer for the largest packet would cost every monitor its pages.
    let mut none = [0u8; 0];
    let length = loop {
        match recv(socket, &mut none[..], flags | RecvFlags::PEEK | RecvFlags::TRUNC) {
            Ok((_, length)) => break length,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(errno) => return Err(errno),
        }
    };
    if length == 0 {
        return Ok(Received::Closed);
    }
    if length > PACKET_BYTES {
        return Err(Errno::MSGSIZE);
    }
    let mut bytes = vec![0u8; length];
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_PACKET))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            fds.extend(rights);
        }
    }
    // A descriptor that could not be installed (EMFILE) is cut off silently but for this flag.
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE);
    }
    bytes.truncate(message.bytes);
    Ok(Received::Packet(bytes, fds))
}

/// A memfd that holds `bytes` and can never change (rule R6).
pub(crate) fn sealed(name: &str, bytes: &[u8], flags: MemfdFlags) -> Result<OwnedFd, Errno> {
    let memfd = memfd_create(name, flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&memfd, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    fcntl_add_seals(&memfd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(memfd)
}

/// The content of a sealed memfd of exactly that many bytes.
#[cfg_attr(not(feature = "monitor"), allow(dead_code))]
pub(crate) fn unsealed(memfd: impl AsFd, bytes: u64) -> Result<Vec<u8>, Errno> {
    let memfd = memfd.as_fd();
    if !fcntl_get_seals(memfd)?.contains(SealFlags::SHRINK | SealFlags::WRITE) {
        return Err(Errno::PERM);
    }
    let length = u64::try_from(fstat(memfd)?.st_size).unwrap_or(0);
    if length != bytes || length > BODY_BYTES {
        return Err(Errno::MSGSIZE);
    }
    let mut body = vec![0u8; usize::try_from(length).map_err(|_| Errno::MSGSIZE)?];
    let mut filled = 0;
    while let Some(rest) = body.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(memfd, rest, filled as u64) {
            Ok(0) => return Err(Errno::MSGSIZE),
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn descriptors_arrive_with_their_packet_and_close_on_exec() {
        let (near, far) = pair();
        let memfd = sealed("x", b"hello", MemfdFlags::empty()).unwrap();
        send(near.as_fd(), b"one", &[memfd.as_fd(), memfd.as_fd()]).unwrap();
        send(near.as_fd(), b"two", &[]).unwrap();
        let Received::Packet(bytes, fds) = receive(far.as_fd(), RecvFlags::DONTWAIT).unwrap() else {
            panic!("closed");
        };
        assert_eq!((bytes.as_slice(), fds.len()), (&b"one"[..], 2));
        assert!(rustix::io::fcntl_getfd(&fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(unsealed(&fds[1], 5).unwrap(), b"hello");
        assert_eq!(unsealed(&fds[1], 4).err(), Some(Errno::MSGSIZE));
        assert!(matches!(
            receive(far.as_fd(), RecvFlags::DONTWAIT).unwrap(),
            Received::Packet(bytes, fds) if bytes == b"two" && fds.is_empty()
        ));
        assert_eq!(receive(far.as_fd(), RecvFlags::DONTWAIT).err(), Some(Errno::AGAIN));
        drop(near);
        assert!(matches!(receive(far.as_fd(), RecvFlags::DONTWAIT).unwrap(), Received::Closed));
    }

    #[test]
    fn sealed_bytes_cannot_be_changed() {
        let memfd = sealed("x", b"hello", MemfdFlags::empty()).unwrap();
        assert_eq!(rustix::io::pwrite(&memfd, b"J", 0).err(), Some(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&memfd, 0).err(), Some(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&memfd, 9).err(), Some(Errno::PERM));
        let open = memfd_create("y", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(unsealed(&open, 0).err(), Some(Errno::PERM));
    }
}
