//! Namespaces of a pod that has a user namespace: made by a short-lived process of the monitor's program, then held by
//! descriptor.
//!
//! ```text
//! maker (the daemon)                                     holder (`pinnace-monitor namespaces`)
//!   spawn ──────────────────────────────────────────────►  unshare(CLONE_NEWUSER)
//!         ◄──────────────────────────────────────────u──
//!   uid_map, gid_map ─────────────────────────────────o─►  unshare(network, IPC, UTS), owned by the user namespace
//!         ◄──────────────────────────────────────────n──
//!   open /proc/<holder>/ns/*, close ────────────────────►  ends
//! ```
//! The daemon has threads, so it can neither unshare a user namespace nor fork without executing.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Argument that makes the program a holder; the second one is the flags, in decimal.
pub const ARGUMENT: &str = "namespaces";

/// The holder does a handful of system calls.
const PATIENCE: Duration = Duration::from_secs(10);

/// A range of ids outside and where it begins inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id outside.
    pub outside: u32,
    /// First id inside.
    pub inside: u32,
    /// How many.
    pub length: u32,
}

/// Which namespaces to make beside the user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A network namespace.
    pub network: bool,
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace.
    pub uts: bool,
}

/// A user namespace and those that it owns.
#[derive(Debug)]
pub struct Made {
    /// The user namespace.
    pub user: OwnedFd,
    /// As wanted.
    pub network: Option<OwnedFd>,
    /// As wanted.
    pub ipc: Option<OwnedFd>,
    /// As wanted.
    pub uts: Option<OwnedFd>,
}

/// Namespaces could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make a user namespace: {step}")]
pub struct Error {
    /// Which step failed.
    pub step: &'static str,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

fn failed<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error { step, source: source.into() }
}

/// Ends the holder when it is dropped, and waits for that.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes them with the monitor's sealed program. Blocks for a few milliseconds.
pub fn make(program: BorrowedFd<'_>, uids: &[Range], gids: &[Range], wanted: Wanted) -> Result<Made, Error> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(failed("socketpair"))?;
    set_socket_timeout(&near, Timeout::Recv, Some(PATIENCE)).map_err(failed("setsockopt"))?;
    let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("pinnace-namespaces")
        .args([ARGUMENT, &flags(wanted).to_string()])
        .env_clear()
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed("start the program"))?;
    let holder = Holder(child);
    let pid = holder.0.id();
    hear(&near, b'u').map_err(failed("unshare the user namespace"))?;
    for (file, map) in [("uid_map", uids), ("gid_map", gids)] {
        let lines = map.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length));
        #[allow(clippy::disallowed_methods, reason = "the host's procfs, of a child that is not reaped yet")]
        std::fs::write(format!("/proc/{pid}/{file}"), lines.collect::<String>())
            .map_err(failed("write the id maps"))?;
    }
    rustix::io::write(&near, b"o").map_err(failed("tell the holder"))?;
    hear(&near, b'n').map_err(failed("unshare what the user namespace owns"))?;
    let open = |name: &str| {
        openat(CWD, format!("/proc/{pid}/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed("open the namespaces"))
    };
    Ok(Made {
        user: open("user")?,
        network: wanted.network.then(|| open("net")).transpose()?,
        ipc: wanted.ipc.then(|| open("ipc")).transpose()?,
        uts: wanted.uts.then(|| open("uts")).transpose()?,
    })
}

fn flags(wanted: Wanted) -> u64 {
    use pinnace_sys::clone::{NEWIPC, NEWNET, NEWUTS};
    let flag = |wanted, flag| if wanted { flag } else { 0 };
    flag(wanted.network, NEWNET) | flag(wanted.ipc, NEWIPC) | flag(wanted.uts, NEWUTS)
}

/// Waits for one byte; the other end closes when it fails.
fn hear(socket: &OwnedFd, wanted: u8) -> Result<(), Errno> {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(socket, &mut byte[..]) {
            Ok(1) if byte == [wanted] => return Ok(()),
            Ok(_) => return Err(Errno::PERM),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The holder: runs until the maker closes its end.
#[cfg(feature = "monitor")]
pub fn hold(flags: &std::ffi::OsStr) -> Result<(), crate::protocol::Failure> {
    use crate::failure::{At, Failure};
    use crate::init::errno;
    use nix::sched::{CloneFlags, unshare};
    let stage = "namespace";
    let bits = flags.to_str().and_then(|text| text.parse().ok());
    let owned = bits
        .map(CloneFlags::from_bits_retain)
        .ok_or_else(|| Failure::refused(stage, flags.as_encoded_bytes(), "not a number"))?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).at(stage, "fcntl", "stdin")?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(errno).at(stage, "unshare", "user")?;
    rustix::io::write(&socket, b"u").at(stage, "write", "")?;
    hear(&socket, b'o').at(stage, "read", "")?;
    if !owned.is_empty() {
        unshare(owned).map_err(errno).at(stage, "unshare", "network, ipc, uts")?;
    }
    rustix::io::write(&socket, b"n").at(stage, "write", "")?;
    // The end of it is the maker's.
    let mut byte = [0u8; 1];
    while matches!(rustix::io::read(&socket, &mut byte[..]), Ok(1) | Err(Errno::INTR)) {}
    Ok(())
}
