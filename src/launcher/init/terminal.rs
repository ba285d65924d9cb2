//! A pseudo terminal from the container's own devpts.
//!
//! The user's end is opened by `TIOCGPTPEER` on the master, not by a path that could have been swapped, and what is
//! bound to `/dev/console` is that descriptor (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fchown, fstat, fstatfs, makedev, openat2};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::mounts::{attach, bind};
use super::target::{self, Kind, Links};
use crate::failure::{At, Failure};
use crate::packet;
use crate::plan::Process;

const STAGE: &str = "terminal";
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Both ends.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    user_end: OwnedFd,
}

impl Terminal {
    /// Opens a new one, owned by the process's user and with the size asked for.
    pub fn open(root: BorrowedFd<'_>, process: &Process) -> Result<Self, Failure> {
        let pts = target::open(root, b"/dev/pts", Links::Refuse).at(STAGE, "openat2", "/dev/pts")?;
        let is_devpts =
            |fd: &OwnedFd| fstatfs(fd).map(|at| i128::from(at.f_type) == i128::from(DEVPTS_SUPER_MAGIC));
        if !is_devpts(&pts).at(STAGE, "fstatfs", "/dev/pts")? {
            return Err(Failure::refused(STAGE, "/dev/pts", "not a devpts"));
        }
        // NO_XDEV: nothing mounted over the file of a running container.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let master =
            openat2(&pts, "ptmx", flags, Mode::empty(), resolve).at(STAGE, "openat2", "/dev/pts/ptmx")?;
        let stat = fstat(&master).at(STAGE, "fstat", "/dev/pts/ptmx")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != makedev(5, 2)
        {
            return Err(Failure::refused(STAGE, "/dev/pts/ptmx", "not a terminal multiplexer"));
        }
        unlockpt(&master).at(STAGE, "TIOCSPTLCK", "/dev/pts/ptmx")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let user_end = ioctl_tiocgptpeer(&master, flags).at(STAGE, "TIOCGPTPEER", "/dev/pts/ptmx")?;
        if process.uid != 0 {
            fchown(&user_end, Some(Uid::from_raw(process.uid)), None::<Gid>).at(STAGE, "fchown", "tty")?;
        }
        // Before the program can ask for it.
        if let Some(size) = size(process.rows, process.columns) {
            tcsetwinsize(&master, size).at(STAGE, "TIOCSWINSZ", "tty")?;
        }
        Ok(Self { master, user_end })
    }

    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    pub fn user_end(&self) -> BorrowedFd<'_> {
        self.user_end.as_fd()
    }

    /// Gives the master to whoever asked for it, beside the name that the user's end has in the container.
    pub fn send(&self, socket: BorrowedFd<'_>) -> Result<(), Failure> {
        let name = rustix::termios::ttyname(&self.user_end, Vec::new());
        let name = name.as_ref().map_or(&b"/dev/pts/ptmx"[..], |name| name.as_bytes());
        packet::send(socket, name, &[self.master.as_fd()]).at(STAGE, "sendmsg", "console socket")
    }

    /// Makes it the controlling terminal of this session.
    pub fn control(&self) -> Result<(), Failure> {
        rustix::process::ioctl_tiocsctty(&self.user_end).at(STAGE, "TIOCSCTTY", "tty")
    }

    /// Shows it as `/dev/console`.
    pub fn bind_console(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        let path = b"/dev/console";
        let place = match target::open_or_make(root, path, Kind::File, Links::Refuse) {
            // An image or volume that has no such place does without a console.
            Err(Errno::ROFS) => return Ok(()),
            other => other.at(STAGE, "openat2", path)?,
        };
        let copy = bind(self.user_end.as_fd()).at(STAGE, "open_tree", path)?;
        attach(copy.as_fd(), place.as_fd()).at(STAGE, "move_mount", path)
    }
}

/// A terminal size, unless it leaves the choice to the kernel.
pub(crate) fn size(rows: u32, columns: u32) -> Option<Winsize> {
    let bound = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    (rows != 0 || columns != 0).then(|| Winsize {
        ws_row: bound(rows),
        ws_col: bound(columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}
