//! epoll(7), and what its events are about.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::log::Origin;

/// A thing with a descriptor that events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// SIGCHLD.
    Signals,
    /// `monitor.sock`.
    Listener,
    /// A daemon.
    Connection(u32),
    /// Init of a task that has not begun to run.
    Control(u32),
    /// Output of a task.
    Output(u32, Origin),
    /// Stdin of a task.
    Input(u32),
    /// Where an attached client writes.
    Feed(u32),
    /// Where an attached client reads.
    Copy(u32),
}

impl Source {
    fn encode(self) -> u64 {
        let (kind, id) = match self {
            Self::Signals => (0, 0),
            Self::Listener => (1, 0),
            Self::Connection(id) => (2, id),
            Self::Control(id) => (3, id),
            Self::Output(id, Origin::Stdout) => (4, id),
            Self::Output(id, Origin::Stderr) => (5, id),
            Self::Input(id) => (6, id),
            Self::Feed(id) => (7, id),
            Self::Copy(id) => (8, id),
        };
        kind << 32 | u64::from(id)
    }

    fn decode(data: u64) -> Option<Self> {
        let id = u32::try_from(data & 0xffff_ffff).ok()?;
        Some(match data >> 32 {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Connection(id),
            3 => Self::Control(id),
            4 => Self::Output(id, Origin::Stdout),
            5 => Self::Output(id, Origin::Stderr),
            6 => Self::Input(id),
            7 => Self::Feed(id),
            8 => Self::Copy(id),
            _ => return None,
        })
    }
}

/// Readiness asked for; hang-ups and errors come unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest(EventFlags);

impl Interest {
    pub const NONE: Self = Self(EventFlags::empty());
    pub const READ: Self = Self(EventFlags::IN);
    pub const WRITE: Self = Self(EventFlags::OUT);
    pub const BOTH: Self = Self(EventFlags::IN.union(EventFlags::OUT));
}

/// The epoll instance.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Begins to watch; EPERM for files that are always ready.
    pub fn watch(&self, fd: BorrowedFd<'_>, source: Source, interest: Interest) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(source.encode()), interest.0)
    }

    pub fn change(&self, fd: BorrowedFd<'_>, source: Source, interest: Interest) -> Result<(), Errno> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(source.encode()), interest.0)
    }

    /// Stops watching. Needed before closing, for a child may hold a copy of the description.
    pub fn forget(&self, fd: impl AsFd) {
        // Fails when it was not watched, which is the goal.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, at most until the deadline; appends to `ready` what happened to what.
    pub fn wait(&self, deadline: Option<Instant>, ready: &mut Vec<Ready>) -> Result<(), Errno> {
        let timeout = deadline
            .map(|at| at.saturating_duration_since(Instant::now()))
            // Rounded up by the kernel's clock, else a loop would spin through the last fraction.
            .map(|left| left + Duration::from_micros(100))
            .and_then(|left| Timespec::try_from(left).ok());
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; 32];
        let (events, _) = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        for event in events {
            let (flags, data) = (event.flags, event.data);
            if let Some(source) = Source::decode(data.u64()) {
                let gone = EventFlags::HUP | EventFlags::ERR;
                ready.push(Ready {
                    source,
                    read: flags.intersects(EventFlags::IN | gone),
                    write: flags.contains(EventFlags::OUT),
                    gone: flags.intersects(gone),
                });
            }
        }
        Ok(())
    }
}

/// One event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub source: Source,
    /// Something, or the end of file, can be read.
    pub read: bool,
    /// There is room for writing.
    pub write: bool,
    /// The other end is gone.
    pub gone: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_the_kernel() {
        for id in [0, 7, u32::MAX] {
            for source in [
                Source::Signals,
                Source::Listener,
                Source::Connection(id),
                Source::Control(id),
                Source::Output(id, Origin::Stdout),
                Source::Output(id, Origin::Stderr),
                Source::Input(id),
                Source::Feed(id),
                Source::Copy(id),
            ] {
                assert_eq!(Source::decode(source.encode()), Some(source));
            }
        }
        assert_eq!(Source::decode(u64::MAX), None);
    }
}
