//! Options of netlink sockets that no safe crate sets.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Asks for error replies that carry the kernel's own explanation and not a copy of the request.
///
/// Sets `NETLINK_EXT_ACK` and `NETLINK_CAP_ACK` (netlink(7)). Kernels before 4.12 and 4.3 lack them; the
/// error is returned and the socket works as before.
pub fn explain_errors(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    enable(socket, libc::NETLINK_EXT_ACK)?;
    enable(socket, libc::NETLINK_CAP_ACK)
}

/// One instruction of a classic BPF program, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub if_true: u8,
    /// Instructions to skip if it does not.
    pub if_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Makes the kernel drop messages to this socket for which the program returns 0, before anyone is woken
/// (`SO_ATTACH_FILTER`, socket(7)).
pub fn filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<(), Errno> {
    let mut instructions: Vec<libc::sock_filter> = program
        .iter()
        .map(|one| libc::sock_filter { code: one.code, jt: one.if_true, jf: one.if_false, k: one.operand })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `socket` is open for the whole call; `program` and the `len` instructions it points to are alive
    // and of the kernel's layout, and the kernel checks and copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(16),
        )
    };
    if result == 0 { Ok(()) } else { Err(crate::last_errno()) }
}

fn enable(socket: BorrowedFd<'_>, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: `socket` is open for the whole call, `on` is a live c_int and the length given is its size; the
    // kernel only reads from the pointer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4),
        )
    };
    if result == 0 { Ok(()) } else { Err(crate::last_errno()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::*;

    #[test]
    fn options_are_accepted_by_a_netlink_socket_only() {
        let netlink =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        explain_errors(netlink.as_fd()).unwrap();
        let unix = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        assert_eq!(explain_errors(unix.as_fd()), Err(Errno::OPNOTSUPP));
    }

    #[test]
    fn a_filter_drops_what_it_says() {
        use rustix::net::{SendFlags, recv, send, socketpair};

        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        let load_first_byte = Instruction { code: 0x30, if_true: 0, if_false: 0, operand: 0 };
        let is_seven = Instruction { code: 0x15, if_true: 0, if_false: 1, operand: 7 };
        let accept = Instruction { code: 0x06, if_true: 0, if_false: 0, operand: u32::MAX };
        let drop = Instruction { operand: 0, ..accept };
        filter(far.as_fd(), &[load_first_byte, is_seven, accept, drop]).unwrap();
        send(&near, &[7, 1], SendFlags::empty()).unwrap();
        let _ = send(&near, &[8, 2], SendFlags::empty());
        let mut buffer = [0u8; 4];
        assert_eq!(recv(&far, &mut buffer, rustix::net::RecvFlags::empty()).unwrap().0, 2);
        assert_eq!(buffer[..2], [7, 1]);
        assert_eq!(recv(&far, &mut buffer, rustix::net::RecvFlags::empty()), Err(Errno::AGAIN));
        assert_eq!(filter(far.as_fd(), &[]), Err(Errno::INVAL));
    }
}
