//! Project quota: quotactl_fd(2) and the project of a directory, which neither rustix nor nix offers.
//!
//! A project is a number that directories carry and what is made below them inherits. ext4 and XFS count space and
//! inodes by project, and refuse what goes beyond a project's limit.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::last_errno;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
/// What is made in the directory belongs to its project.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

const PRJQUOTA: u32 = 2;
const Q_GETQUOTA: u32 = 0x80_0007;
const Q_SETQUOTA: u32 = 0x80_0008;
/// `XQM_CMD(5)`; ext4 answers it too.
const Q_XGETQSTAT: u32 = (0x58 << 8) + 5;
/// In `dqb_valid`: both limits of the blocks, and of the inodes.
const QIF_LIMITS: u32 = 1 | 4;
/// In `qs_flags`: projects are counted, and their limits hold.
const FS_QUOTA_PDQ: (u16, u16) = (1 << 4, 1 << 5);
/// Limits of space are in these.
const BLOCK_BYTES: u64 = 1024;

/// `struct fs_quota_stat` of linux/dqblk_xfs.h, as far as it is looked at.
#[repr(C)]
struct QuotaStat {
    version: i8,
    flags: u16,
    rest: [u64; 16],
}

/// What a file system does with projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not know them.
    Off,
    /// It counts what they take.
    Counted,
    /// It counts, and limits hold.
    Enforced,
}

/// What a project takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What the file system of an open file does with projects.
pub fn state(file: BorrowedFd<'_>) -> Result<State, Errno> {
    let mut stat = QuotaStat { version: 1, flags: 0, rest: [0; 16] };
    match control(file, Q_XGETQSTAT, 0, std::ptr::from_mut(&mut stat).cast()) {
        Ok(()) if stat.flags & FS_QUOTA_PDQ.1 != 0 => Ok(State::Enforced),
        Ok(()) if stat.flags & FS_QUOTA_PDQ.0 != 0 => Ok(State::Counted),
        // No quota of this kind or of any; a kernel without quota, or before 5.14.
        Ok(()) | Err(Errno::NOSYS | Errno::SRCH | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => {
            Ok(State::Off)
        }
        Err(errno) => Err(errno),
    }
}

/// Puts an empty directory into a project, and with it all that will be made below. It must be open for reading.
pub fn join_project(directory: BorrowedFd<'_>, project: u32) -> Result<(), Errno> {
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open, and the kernel writes one `struct fsxattr` into what the pointer is to.
    let got = unsafe {
        libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR.into(), std::ptr::from_mut(&mut attributes))
    };
    if got != 0 {
        return Err(last_errno());
    }
    attributes.projid = project;
    attributes.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: the same, and the kernel only reads.
    let set = unsafe {
        libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR.into(), std::ptr::from_ref(&attributes))
    };
    if set == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Limits the space of a project, in bytes rounded up to whole KiB; 0 is no limit. There is none for inodes then.
pub fn limit_project(file: BorrowedFd<'_>, project: u32, bytes: u64) -> Result<(), Errno> {
    let mut limits = empty();
    limits.dqb_bhardlimit = bytes.div_ceil(BLOCK_BYTES);
    limits.dqb_valid = QIF_LIMITS;
    control(file, Q_SETQUOTA, project, std::ptr::from_mut(&mut limits).cast())
}

/// What a project takes, without walking anything.
pub fn project_usage(file: BorrowedFd<'_>, project: u32) -> Result<Taken, Errno> {
    let mut found = empty();
    match control(file, Q_GETQUOTA, project, std::ptr::from_mut(&mut found).cast()) {
        Ok(()) => Ok(Taken { bytes: found.dqb_curspace, inodes: found.dqb_curinodes }),
        // XFS says so of a project that it has never seen.
        Err(Errno::NOENT) => Ok(Taken::default()),
        Err(errno) => Err(errno),
    }
}

fn empty() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

/// `address` must be to what `command` reads or writes.
fn control(file: BorrowedFd<'_>, command: u32, id: u32, address: *mut libc::c_void) -> Result<(), Errno> {
    // SAFETY: every caller in this file gives a pointer to a live structure of the kind, or larger than, the command
    // works on; the descriptor is open.
    let answer = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), (command << 8) | PRJQUOTA, id, address)
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_system_without_quota_says_so() {
        assert_eq!(size_of::<FsXattr>(), 28);
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(state(proc.as_fd()), Ok(State::Off));
        assert!(join_project(proc.as_fd(), 7).is_err());
        assert!(project_usage(proc.as_fd(), 7).is_err());
        assert!(limit_project(proc.as_fd(), 7, 1 << 20).is_err());
    }
}
