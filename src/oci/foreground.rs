//! Waiting beside a process: signals are passed on, a terminal is copied, the end becomes our own status.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::monitor::Monitor;

/// Output of a terminal whose program has ended may still be on its way.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// Signals that are passed on; SIGWINCH is about the terminal.
const PASSED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGWINCH,
];

/// The signals of this process, from before there is anybody to pass them to.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Takes them over.
    pub fn take() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        PASSED.into_iter().for_each(|signal| set.add(signal));
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }
}

/// A console socket whose other end is ours.
#[derive(Debug)]
pub(crate) struct Console(OwnedFd);

impl Console {
    /// Both ends: ours, and the one to give away.
    pub fn pair() -> anyhow::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    /// The terminal's master, once it has been sent.
    pub fn master(self) -> anyhow::Result<OwnedFd> {
        let mut bytes = [0u8; 4096];
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&self.0, &mut [io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        master.context("no terminal came over the console socket")
    }
}

/// Our own terminal without echo and line editing, until this is dropped.
#[derive(Debug)]
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        Self(tcsetattr(io::stdin(), OptionalActions::Now, &raw).is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal may be gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Waits for the end of the monitor's process; its status, 128 + n after signal n.
pub(crate) fn wait(
    monitor: &mut Monitor,
    signals: &Signals,
    process: BorrowedFd<'_>,
    master: Option<OwnedFd>,
) -> anyhow::Result<u8> {
    let _raw = master.as_ref().map(|master| {
        resize(master);
        Raw::enter()
    });
    let mut input = master.is_some();
    loop {
        if let Some(exited) = monitor.exited()? {
            if let Some(master) = &master {
                while readable(master, LAST_OUTPUT)? && copy(master.as_fd(), io::stdout().as_fd())? {}
            }
            return Ok(u8::try_from(exited.code).unwrap_or(u8::MAX));
        }
        let stdin = io::stdin();
        let told = monitor.readiness();
        let mut ready =
            vec![PollFd::from_borrowed_fd(told, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
        if let Some(master) = &master {
            ready.push(PollFd::new(master, PollFlags::IN));
        }
        if input {
            ready.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        let events: Vec<PollFlags> = ready.iter().map(PollFd::revents).collect();
        pass_on(signals, process, master.as_ref())?;
        let Some(master) = &master else { continue };
        // At its end the terminal says EIO; the process's own end is told by the monitor.
        if events.get(2).is_some_and(|events| !events.is_empty())
            && !copy(master.as_fd(), io::stdout().as_fd())?
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        if events.get(3).is_some_and(|events| !events.is_empty()) {
            input = copy(stdin.as_fd(), master.as_fd())?;
        }
    }
}

fn pass_on(signals: &Signals, process: BorrowedFd<'_>, master: Option<&OwnedFd>) -> anyhow::Result<()> {
    while let Some(signal) = signals.0.read_signal()? {
        let number = i32::try_from(signal.ssi_signo)?;
        match master {
            Some(master) if number == Signal::SIGWINCH as i32 => resize(master),
            // Ended meanwhile is told by the monitor.
            _ => drop(pinnace_sys::process::signal(process, number)),
        }
    }
    Ok(())
}

fn resize(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        // The program may be gone.
        let _ = tcsetwinsize(master, size);
    }
}

fn readable(fd: &OwnedFd, patience: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(patience).ok();
    Ok(poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref())? > 0)
}

/// Copies what is there; `false` at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let mut bytes = [0u8; 8192];
    let mut rest = match rustix::io::read(from, &mut bytes[..]) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        Ok(length) => bytes.get(..length).unwrap_or_default(),
        Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
        Err(errno) => return Err(errno).context("read"),
    };
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(0) => bail!("write: nothing was taken"),
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)?),
            Err(Errno::IO | Errno::PIPE) => return Ok(false),
            Err(errno) => return Err(errno).context("write"),
        }
    }
    Ok(true)
}
