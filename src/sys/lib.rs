//! Every unsafe block: system calls that no safe crate offers.

pub mod activation;
pub mod bpf;
pub mod clone;
pub mod descriptor;
pub mod mount;
pub mod netlink;
pub mod process;
pub mod quota;
pub mod seccomp;
pub mod writeback;

fn last_errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}
