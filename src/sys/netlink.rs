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
}
