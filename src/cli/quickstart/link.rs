//! Deleting one network interface: a single rtnetlink(7) request.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_DELLINK: u16 = 17;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// Whether there is an interface of that name.
pub fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Deletes it; it is no error if there is none.
pub fn delete(name: &str) -> anyhow::Result<()> {
    let index = match fs::read_to_string(format!("/sys/class/net/{name}/ifindex")) {
        Ok(text) => text.trim().parse::<i32>().with_context(|| format!("index of {name}"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context(format!("index of {name}")),
    };
    match request(&message(index)) {
        Ok(0) => Ok(()),
        Ok(error) if Errno::from_raw_os_error(-error) == Errno::NODEV => Ok(()),
        Ok(error) => bail!("delete {name}: {}", io::Error::from_raw_os_error(-error)),
        Err(error) => Err(error).context(format!("delete {name}")),
    }
}

/// `struct nlmsghdr`, then `struct ifinfomsg` with nothing but the index.
fn message(index: i32) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_DELLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    message
}

/// Sends it and returns the kernel's verdict: 0 or a negative errno.
fn request(message: &[u8]) -> anyhow::Result<i32> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 of this family is NETLINK_ROUTE.
        None,
    )?;
    rustix::net::sendto(&socket, message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0_u8; 4096];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let verdict = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, verdict) {
        (Some(NLMSG_ERROR), Some(verdict)) if length >= 20 => Ok(verdict),
        _ => bail!("an answer that is no acknowledgement"),
    }
}
