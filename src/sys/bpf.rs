//! bpf(2), as far as a cgroup v2 device filter needs it: load, attach, replace, list, detach.
//!
//! Each command has its own prefix of the kernel's `union bpf_attr`; the kernel takes the size it is
//! given and treats the rest as zero (bpf(2)).

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// Programs the kernel accepts on one cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;
const NAME_BYTES: usize = 16;

/// One eBPF instruction, `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u8,
    /// Destination register in the low nibble, source register in the high one.
    pub registers: u8,
    /// Signed jump or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_BYTES],
}

#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first 80 bytes of `struct bpf_prog_info`: everything up to and including the name.
#[repr(C)]
struct ProgramInfo {
    before_name: [u64; 8],
    name: [u8; NAME_BYTES],
}

/// Loads a device program. `name` (at most 15 bytes of `[A-Za-z0-9_.]`) makes it recognisable later.
pub fn load_device_program(instructions: &[Instruction], name: &str) -> Result<OwnedFd, Errno> {
    let mut prog_name = [0; NAME_BYTES];
    let bytes = name.as_bytes();
    if bytes.len() >= NAME_BYTES {
        return Err(Errno::INVAL);
    }
    prog_name[..bytes.len()].copy_from_slice(bytes);
    let mut attr = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::INVAL)?,
        insns: address(instructions.as_ptr()),
        license: address(c"Apache-2.0".as_ptr()),
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    // SAFETY: `LoadAttr` is the command's prefix of bpf_attr; the instruction slice and the licence string
    // outlive the call, and the kernel only reads `insn_cnt` instructions of eight bytes.
    let fd = unsafe { bpf(PROG_LOAD, &mut attr) }?;
    owned(fd)
}

/// Attaches a program to a cgroup v2 directory; with `replacing`, atomically in that program's place.
/// Several programs may be attached (systemd may have one): a device is usable only if all agree.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replacing: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: number(cgroup)?,
        attach_bpf_fd: number(program)?,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI | if replacing.is_some() { F_REPLACE } else { 0 },
        replace_bpf_fd: replacing.map(number).transpose()?.unwrap_or(0),
    };
    // SAFETY: `AttachAttr` is the command's prefix of bpf_attr and holds descriptors, no pointers.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches one program from a cgroup v2 directory.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: number(cgroup)?,
        attach_bpf_fd: number(program)?,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    // SAFETY: as in `attach_device_program`.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(drop)
}

/// Ids of the programs attached to this directory itself (not those it inherits).
pub fn attached_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target_fd: number(cgroup)?,
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: address(ids.as_mut_ptr()),
        prog_cnt: u32::try_from(ids.len()).map_err(|_| Errno::INVAL)?,
        padding: 0,
    };
    // SAFETY: `QueryAttr` is the command's prefix of bpf_attr; the kernel writes at most `prog_cnt` ids into
    // the array, which outlives the call, and the count back into `attr`.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    let count = usize::try_from(attr.prog_cnt).map_err(|_| Errno::INVAL)?;
    Ok(ids[..count.min(MAX_PROGRAMS)].to_vec())
}

/// Opens a loaded program by id. ENOENT when it is gone.
pub fn open_program(id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = IdAttr { prog_id: id, next_id: 0, open_flags: 0 };
    // SAFETY: `IdAttr` is the command's prefix of bpf_attr and holds no pointers.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    owned(fd)
}

/// The name a program was loaded under.
pub fn program_name(program: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut info = ProgramInfo { before_name: [0; 8], name: [0; NAME_BYTES] };
    let mut attr = InfoAttr {
        bpf_fd: number(program)?,
        info_len: u32::try_from(size_of::<ProgramInfo>()).map_err(|_| Errno::INVAL)?,
        info: address(std::ptr::from_mut(&mut info)),
    };
    // SAFETY: `InfoAttr` is the command's prefix of bpf_attr; the kernel writes at most `info_len` bytes into
    // `info`, which outlives the call and is valid for every bit pattern. The pointer fields inside are zero,
    // so the kernel writes through none of them.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    let end = info.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES);
    Ok(String::from_utf8_lossy(&info.name[..end]).into_owned())
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

fn number(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF)
}

fn owned(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the caller got this number from a bpf command that returns a fresh descriptor (close-on-exec by
    // the kernel's own rule), and hands it over exactly once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `T` is a prefix of `union bpf_attr` for `command`, and every pointer in it is valid for what the command
/// does with it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<libc::c_long, Errno> {
    loop {
        // SAFETY: the caller vouches for the contents; the size given is that of the live value. The kernel
        // keeps no pointer after it returns.
        let returned =
            unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
        if returned >= 0 {
            return Ok(returned);
        }
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
        // EAGAIN: the verifier was interrupted by a signal (bpf(2)).
        if errno != Errno::AGAIN && errno != Errno::INTR {
            return Err(errno);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const MOV_R0_IMMEDIATE: u8 = 0xb7;
    const EXIT: u8 = 0x95;

    fn constant(verdict: i32) -> [Instruction; 2] {
        [
            Instruction { code: MOV_R0_IMMEDIATE, registers: 0, offset: 0, immediate: verdict },
            Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 },
        ]
    }

    #[test]
    fn a_loaded_program_keeps_its_name() {
        let program = load_device_program(&constant(1), "pinnace_test").unwrap();
        assert_eq!(program_name(program.as_fd()).unwrap(), "pinnace_test");
    }

    #[test]
    fn the_verifier_has_the_last_word() {
        // Device programs may return 0 or 1, nothing else; and r0 must be set before exit.
        let never_set = [Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 }];
        assert!(load_device_program(&never_set, "x").is_err());
        assert_eq!(load_device_program(&constant(1), "a_name_of_16_byt").err(), Some(Errno::INVAL));
    }

    #[test]
    fn only_cgroup_directories_take_programs() {
        let program = load_device_program(&constant(1), "x").unwrap();
        let plain = std::fs::File::open("/").unwrap();
        assert!(attach_device_program(plain.as_fd(), program.as_fd(), None).is_err());
        assert!(attached_device_programs(plain.as_fd()).is_err());
        assert_eq!(open_program(u32::MAX).err(), Some(Errno::NOENT));
    }
}
