//! The user's program: working directory, descriptors, lookup, execve.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, OFlags, Uid, accessat, fchown, fstat, makedev, stat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{fchdir, getcwd};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::control::Control;
use super::target::{self, Kind, Links};
use super::terminal::Terminal;
use crate::failure::{At, Failure};
use crate::plan::Process;

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to do about a working directory that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Refuse,
}

/// Opens the working directory, as root and inside the root. `None` when root may not (a network file system that
/// squashes root): then the user has to, see [`change_directory`].
pub(super) fn working_directory(
    root: BorrowedFd<'_>,
    path: &[u8],
    missing: Missing,
) -> Result<Option<OwnedFd>, Failure> {
    if !path.starts_with(b"/") {
        return Err(Failure::refused("cwd", path, "not an absolute path"));
    }
    let opened = match missing {
        Missing::Create => target::open_or_make(root, path, Kind::Directory, Links::Follow),
        Missing::Refuse => target::open(root, path, Links::Follow),
    };
    match opened {
        Ok(directory) => {
            if !target::is_directory(directory.as_fd()).at("cwd", "fstat", path)? {
                return Err(Failure::syscall("cwd", "openat2", Errno::NOTDIR, path));
            }
            Ok(Some(directory))
        }
        Err(Errno::ACCESS) => Ok(None),
        Err(errno) => Err(Failure::syscall("cwd", "openat2", errno, path)),
    }
}

/// Goes there, by now as the user, and makes sure that it is inside the root (CVE-2024-21626).
pub(super) fn change_directory(
    directory: Option<BorrowedFd<'_>>,
    root: BorrowedFd<'_>,
    path: &[u8],
) -> Result<(), Failure> {
    match directory {
        Some(directory) => fchdir(directory),
        None => target::open(root, path, Links::Follow).and_then(fchdir),
    }
    .at("cwd", "fchdir", path)?;
    let is = getcwd(Vec::new()).at("cwd", "getcwd", path)?;
    // The kernel says "(unreachable)/..." for a place outside the root.
    if is.to_bytes().starts_with(b"/") {
        return Ok(());
    }
    Err(Failure::refused("cwd", path, "outside the root of the container"))
}

/// Descriptors 0, 1 and 2 to be.
#[derive(Debug)]
pub(super) struct Stdio<'a> {
    fds: [Option<BorrowedFd<'a>>; 3],
    null: Option<OwnedFd>,
}

impl<'a> Stdio<'a> {
    /// Chooses them, and gives pipes to the user, who may want to open `/dev/stdout` anew.
    pub fn choose(
        root: BorrowedFd<'_>,
        terminal: Option<&'a Terminal>,
        given: [Option<BorrowedFd<'a>>; 3],
        process: &Process,
    ) -> Result<Self, Failure> {
        if let Some(terminal) = terminal {
            return Ok(Self { fds: [Some(terminal.user_end()); 3], null: None });
        }
        if process.uid != 0 {
            for fd in given.iter().flatten() {
                own(*fd, process.uid, process.gid)?;
            }
        }
        let null = if given.iter().any(Option::is_none) { container_null(root) } else { None };
        Ok(Self { fds: given, null })
    }

    /// Puts them in place. Where there is no usable `/dev/null` in the container, the monitor's stays.
    pub fn install(&self) -> Result<(), Failure> {
        let null = self.null.as_ref().map(AsFd::as_fd).unwrap_or(rustix::stdio::stdin());
        let [stdin, stdout, stderr] = self.fds.map(|fd| fd.unwrap_or(null));
        // stdin last: until then it is the /dev/null of the other two.
        dup2_stdout(stdout).at("exec", "dup2", "stdout")?;
        dup2_stderr(stderr).at("exec", "dup2", "stderr")?;
        dup2_stdin(stdin).at("exec", "dup2", "stdin")
    }
}

/// Puts descriptors in place from 3 on, open across execve, and everything else that is still needed above them. Returns
/// the start socket's new place.
pub(super) fn inherit(
    inherited: &[BorrowedFd<'_>],
    control: &Control<'_>,
    start_socket: Option<BorrowedFd<'_>>,
) -> Result<Option<OwnedFd>, Failure> {
    const FIRST: u32 = 3;
    let count = u32::try_from(inherited.len()).unwrap_or(u32::MAX);
    let above = FIRST.checked_add(count).and_then(|above| i32::try_from(above).ok());
    let above = above.ok_or_else(|| Failure::refused("exec", "", "too many descriptors to hand on"))?;
    let lift = |fd: BorrowedFd<'_>| fcntl_dupfd_cloexec(fd, above).at("exec", "fcntl", "");
    let start_socket = start_socket.map(lift).transpose()?;
    if !inherited.is_empty() {
        let lifted = inherited.iter().map(|fd| lift(*fd)).collect::<Result<Vec<_>, _>>()?;
        control.replace(lift(control.as_fd())?);
        for (number, fd) in (FIRST..).zip(&lifted) {
            pinnace_sys::descriptor::place(fd.as_fd(), number).at("exec", "dup2", number.to_string())?;
        }
    }
    Ok(start_socket)
}

/// Makes the streams the program's from outside its user namespace, whose root has no say over them. `root` is that root's
/// numbers outside.
pub(crate) fn give(
    fds: [Option<BorrowedFd<'_>>; 3],
    process: &Process,
    root: (u32, u32),
) -> Result<(), Failure> {
    let unmapped = || Failure::refused("user", "", "an id of the program is not mapped");
    let uid = root.0.checked_add(process.uid).ok_or_else(unmapped)?;
    let gid = root.1.checked_add(process.gid).ok_or_else(unmapped)?;
    fds.into_iter().flatten().try_for_each(|fd| own(fd, uid, gid))
}

fn own(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Failure> {
    let stat = fstat(fd).at("exec", "fstat", "stdio")?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    // Devices, files and directories of somebody else are not ours to give away.
    if !matches!(kind, FileType::Fifo | FileType::Socket) || (stat.st_uid, stat.st_gid) == (uid, gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    fchown(fd, Some(uid), Some(gid)).at("exec", "fchown", "stdio")
}

/// The container's `/dev/null`, if that is what it is (rule R4).
fn container_null(root: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = target::open(root, b"/dev/null", Links::Follow).ok()?;
    let is_null = |fd: &OwnedFd| {
        fstat(fd).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == makedev(1, 3)
        })
    };
    if !is_null(&path) {
        return None;
    }
    // Looked up once more, for an O_PATH descriptor cannot be opened without a procfs; checked once more, too. NONBLOCK
    // in case it has become a FIFO.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    let null = target::open_with(root, b"/dev/null", flags, Links::Follow).ok()?;
    rustix::fs::fcntl_setfl(&null, OFlags::RDWR).ok()?;
    is_null(&null).then_some(null)
}

/// What is executed.
#[derive(Debug)]
pub(super) struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    /// Arguments and environment, checked: a NUL would cut them short, and an entry without a name is nobody's variable
    /// (rule R9).
    pub fn of(process: &Process) -> Result<Self, Failure> {
        let terminated = |bytes: &Vec<u8>| {
            CString::new(bytes.clone()).map_err(|_| Failure::refused("exec", bytes, "contains a NUL byte"))
        };
        let args = process.args.iter().map(terminated).collect::<Result<Vec<_>, _>>()?;
        let env = process.env.iter().map(terminated).collect::<Result<Vec<_>, _>>()?;
        if args.first().is_none_or(|name| name.is_empty()) {
            return Err(Failure::syscall("exec", "", Errno::NOENT, "").because("no program given"));
        }
        for entry in &env {
            if entry.to_bytes().iter().position(|byte| *byte == b'=').is_none_or(|at| at == 0) {
                return Err(Failure::refused("exec", entry.as_bytes(), "not of the form KEY=value"));
            }
        }
        Ok(Self { args, env })
    }

    fn name(&self) -> &CStr {
        self.args.first().map_or(c"", |name| name)
    }

    /// The file, found as execvp(3) does, with the user's permissions.
    pub fn look_up(&self) -> Result<CString, Failure> {
        let name = self.name();
        if name.to_bytes().contains(&b'/') {
            return Ok(name.to_owned());
        }
        let path = self.env.iter().rev().find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let mut verdict = Errno::NOENT;
        for directory in path.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
            // An empty entry is the working directory.
            let mut candidate = if directory.is_empty() { b"." } else { directory }.to_vec();
            candidate.push(b'/');
            candidate.extend_from_slice(name.to_bytes());
            let Ok(candidate) = CString::new(candidate) else { continue };
            match executable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(Errno::ACCESS) => verdict = Errno::ACCESS,
                Err(_) => {}
            }
        }
        let failure = Failure::syscall("exec", "execve", verdict, name.to_bytes());
        Err(match verdict {
            Errno::ACCESS => failure,
            _ => failure.because("executable file not found in $PATH"),
        })
    }

    /// execve(2); returns only what went wrong.
    pub fn execute(&self, path: &CStr) -> Failure {
        let Err(errno) = nix::unistd::execve(path, &self.args, &self.env);
        let failure = Failure::syscall("exec", "execve", super::errno(errno), self.name().to_bytes());
        match errno {
            nix::errno::Errno::ENOENT if stat(path).is_ok() => {
                failure.because("its interpreter or loader is missing")
            }
            nix::errno::Errno::ENOENT => failure.because("no such file"),
            nix::errno::Errno::ENOEXEC => failure.because("wrong architecture, or a script without #!"),
            _ => failure,
        }
    }
}

fn executable(path: &CStr) -> Result<(), Errno> {
    if FileType::from_raw_mode(stat(path)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())
}
