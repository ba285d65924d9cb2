//! seccomp(2): put a classic BPF program in front of the calling thread's system calls.
//!
//! The program arrives as bytes (8 per instruction, native byte order, `struct sock_filter`), compiled
//! long before: nothing here allocates, so a cloned child may call it.

#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Bytes of one `struct sock_filter`.
pub const INSTRUCTION_BYTES: usize = 8;
/// The kernel's limit (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

const SET_MODE_FILTER: libc::c_ulong = 1;
const GET_ACTION_AVAIL: libc::c_ulong = 2;
const FILTER_FLAG_TSYNC: u32 = 1;
const FILTER_FLAG_NEW_LISTENER: u32 = 1 << 3;
const FILTER_FLAG_TSYNC_ESRCH: u32 = 1 << 4;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const u8,
}

/// Loads a program for the calling thread; it survives execve and cannot be taken off again.
///
/// The caller has `no_new_privs` set or holds CAP_SYS_ADMIN in its user namespace, else EACCES.
/// `flags` are `SECCOMP_FILTER_FLAG_*`. With `NEW_LISTENER` the notification descriptor comes back
/// (close-on-exec, the kernel sees to that). EINVAL for an empty, ragged or over-long program.
pub fn load(program: &[u8], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    let instructions = program.len() / INSTRUCTION_BYTES;
    if !program.len().is_multiple_of(INSTRUCTION_BYTES)
        || instructions == 0
        || instructions > MAX_INSTRUCTIONS
    {
        return Err(Errno::INVAL);
    }
    let len = libc::c_ushort::try_from(instructions).map_err(|_| Errno::INVAL)?;
    // Without this a failed TSYNC would return a thread id, which could be mistaken for a descriptor.
    let flags = if flags & FILTER_FLAG_TSYNC != 0 { flags | FILTER_FLAG_TSYNC_ESRCH } else { flags };
    let fprog = Program { len, filter: program.as_ptr() };
    // SAFETY: `fprog` and the `len * 8` bytes it points to live across the call; the kernel copies them
    // with copy_from_user, so the byte pointer needs no alignment, and it validates every instruction.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            libc::c_ulong::from(flags),
            std::ptr::from_ref(&fprog),
        )
    };
    if returned < 0 {
        return Err(last_errno());
    }
    if flags & FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = RawFd::try_from(returned).map_err(|_| Errno::BADF)?;
    // SAFETY: with NEW_LISTENER and without a bare TSYNC a non-negative return is a fresh descriptor
    // that nobody else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether this kernel knows a filter action (`SECCOMP_RET_*` without its data bits).
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads four bytes at the pointer, which is a live u32.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            GET_ACTION_AVAIL,
            libc::c_ulong::from(0u32),
            std::ptr::from_ref(&action),
        )
    };
    returned == 0
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_programs_the_kernel_could_misread() {
        assert_eq!(load(&[], 0).err(), Some(Errno::INVAL));
        assert_eq!(load(&[0; 7], 0).err(), Some(Errno::INVAL));
        assert_eq!(load(&vec![0; INSTRUCTION_BYTES * (MAX_INSTRUCTIONS + 1)], 0).err(), Some(Errno::INVAL));
    }

    #[test]
    fn kernel_verdict_reaches_the_caller() {
        // An instruction the verifier refuses: code 0xffff.
        assert_eq!(load(&[0xff, 0xff, 0, 0, 0, 0, 0, 0], 0).err(), Some(Errno::INVAL));
        // An unknown flag is refused before the program is looked at.
        assert_eq!(load(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f], 1 << 31).err(), Some(Errno::INVAL));
    }

    #[test]
    fn knows_which_actions_exist() {
        assert!(action_available(0x7fff_0000), "SECCOMP_RET_ALLOW");
        assert!(action_available(0x8000_0000), "SECCOMP_RET_KILL_PROCESS");
        assert!(!action_available(0x1234_0000));
    }
}
