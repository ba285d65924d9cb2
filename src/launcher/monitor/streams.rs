//! Output to log and attached clients, input from attached clients.
//!
//! Only [`Monitor::balance`] decides what is listened to: output waits while a lossless copy is behind, a feed waits while
//! stdin is full.

use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::Monitor;
use super::poller::{Interest, Poller, Source};
use super::task::{Input, Output, Phase, Task};
use crate::failure::{At, Failure};
use crate::log::{self, Lines, Origin};
use crate::protocol::{Detached, FromMonitor, Reply};

/// Read in one go; a pipe holds 64 KiB.
pub(super) const CHUNK: usize = 32 * 1024;

/// More than a terminal buffers.
const TERMINAL_BYTES: usize = 256 * 1024;

/// What a slow reader may be behind before its copy loses output.
const BEHIND: usize = 256 * 1024;

/// A client's joined streams, whose end its daemon is told.
#[derive(Debug)]
pub(super) struct Attachment {
    connection: u32,
    id: u64,
    lost_bytes: u64,
}

/// Where an attached client's input comes from.
#[derive(Debug)]
pub(super) struct Feed {
    task: u32,
    attachment: Option<u32>,
    fd: OwnedFd,
    watched: bool,
}

/// Where a copy of output goes.
#[derive(Debug)]
pub(super) struct Copy {
    task: u32,
    attachment: Option<u32>,
    origin: Origin,
    fd: OwnedFd,
    queue: Vec<u8>,
    lossless: bool,
    lost_bytes: u64,
    /// Close when the queue is empty.
    closing: bool,
    /// None for files, which are always ready.
    interest: Option<Interest>,
}

impl Copy {
    /// Writes and keeps the rest; `false` when nobody reads any more.
    fn push(&mut self, bytes: &[u8]) -> bool {
        if !self.queue.is_empty() {
            if self.lossless || self.queue.len() + bytes.len() <= BEHIND {
                self.queue.extend_from_slice(bytes);
            } else {
                self.lost_bytes = self.lost_bytes.saturating_add(bytes.len() as u64);
            }
            return true;
        }
        match write_some(&self.fd, bytes) {
            Ok(rest) => {
                self.queue.extend_from_slice(rest);
                true
            }
            Err(_) => false,
        }
    }

    fn flush(&mut self) -> bool {
        let queue = std::mem::take(&mut self.queue);
        self.push(&queue)
    }

    fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }
}

/// Writes what fits; returns the rest.
fn write_some<'a>(fd: &OwnedFd, mut bytes: &'a [u8]) -> Result<&'a [u8], Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(bytes)
}

/// A descriptor that never makes us wait.
pub(super) fn nonblocking(fd: &OwnedFd) -> Result<(), Failure> {
    fcntl_getfl(fd).and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK)).at("stdio", "fcntl", "")
}

impl Monitor {
    /// Begins to read a stream of a task.
    pub(super) fn add_output(&mut self, id: u32, origin: Origin, fd: OwnedFd) -> Result<(), Failure> {
        nonblocking(&fd)?;
        self.poller.watch(fd.as_fd(), Source::Output(id, origin), Interest::READ).at(
            "stdio",
            "epoll_ctl",
            "",
        )?;
        if let Some(task) = self.tasks.get_mut(&id) {
            let lines = Lines::new(origin, task.max_line_bytes);
            *task.output(origin) = Some(Output { fd, lines, watched: true });
        }
        Ok(())
    }

    /// Gives a task a stdin that can be fed.
    pub(super) fn add_input(&mut self, id: u32, fd: OwnedFd) -> Result<(), Failure> {
        nonblocking(&fd)?;
        self.poller.watch(fd.as_fd(), Source::Input(id), Interest::NONE).at("stdio", "epoll_ctl", "")?;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.input = Some(Input { fd, queue: Vec::new(), closing: false, interest: Interest::NONE });
        }
        self.balance(id);
        Ok(())
    }

    /// Init's terminal has come: it is stdout, and stdin when that was asked for.
    pub(super) fn add_terminal(&mut self, id: u32, master: OwnedFd) -> Result<(), Failure> {
        let Some(task) = self.tasks.get(&id).filter(|task| !task.hung_up) else { return Ok(()) };
        if task.interactive {
            let input = rustix::io::fcntl_dupfd_cloexec(&master, 3).at("terminal", "fcntl", "")?;
            self.add_input(id, input)?;
        }
        self.add_output(id, Origin::Stdout, master)
    }

    /// Joins a client's descriptors to a task; `told` is the connection that hears of the end, and its name for it.
    pub(super) fn attach(
        &mut self,
        id: u32,
        stdin: Option<OwnedFd>,
        outputs: [(Origin, Option<OwnedFd>); 2],
        lossless: bool,
        told: Option<(u32, u64)>,
    ) -> Result<(), Failure> {
        let attachment = told.map(|(connection, id)| {
            let name = self.name();
            self.attachments.insert(name, Attachment { connection, id, lost_bytes: 0 });
            name
        });
        let joined = self.join(id, stdin, outputs, lossless, attachment);
        if joined.is_err() {
            // The refusal is the answer; nothing is left whose end could be told.
            if let Some(name) = attachment {
                self.attachments.remove(&name);
                let copies = self.copies.iter().filter(|(_, copy)| copy.attachment == attachment);
                for name in copies.map(|(name, _)| *name).collect::<Vec<_>>() {
                    self.drop_copy(name);
                }
            }
        } else if let Some(name) = attachment {
            self.end_attachment(name);
        }
        self.balance(id);
        joined
    }

    fn join(
        &mut self,
        id: u32,
        stdin: Option<OwnedFd>,
        outputs: [(Origin, Option<OwnedFd>); 2],
        lossless: bool,
        attachment: Option<u32>,
    ) -> Result<(), Failure> {
        for (origin, fd) in outputs {
            let Some(fd) = fd else { continue };
            nonblocking(&fd)?;
            let name = self.name();
            let interest = match self.poller.watch(fd.as_fd(), Source::Copy(name), Interest::NONE) {
                Ok(()) => Some(Interest::NONE),
                Err(Errno::PERM) => None,
                Err(errno) => return Err(Failure::syscall("attach", "epoll_ctl", errno, "stdout")),
            };
            let copy = Copy {
                task: id,
                attachment,
                origin,
                fd,
                queue: Vec::new(),
                lossless,
                lost_bytes: 0,
                closing: false,
                interest,
            };
            // A stream that is over already, or a terminal's stderr, which never is: the client is told by its end.
            if self.has_output(id, origin) {
                self.copies.insert(name, copy);
            } else {
                self.poller.forget(&copy.fd);
            }
        }
        let takes_input = self.tasks.get(&id).is_some_and(|task| task.input.is_some() || task.interactive);
        // A container without stdin: closing our end tells the client.
        if let Some(fd) = stdin.filter(|_| takes_input) {
            nonblocking(&fd)?;
            let name = self.name();
            self.poller.watch(fd.as_fd(), Source::Feed(name), Interest::READ).at(
                "attach",
                "epoll_ctl",
                "stdin",
            )?;
            self.feeds.insert(name, Feed { task: id, attachment, fd, watched: true });
        }
        Ok(())
    }

    /// Whether a task has, or will have, such a stream.
    fn has_output(&mut self, id: u32, origin: Origin) -> bool {
        let Some(task) = self.tasks.get_mut(&id) else { return false };
        let awaits_terminal =
            task.terminal && origin == Origin::Stdout && matches!(task.phase, Phase::Born(_));
        awaits_terminal || task.output(origin).is_some()
    }

    /// Tells the end of an attachment, if that is what has come.
    fn end_attachment(&mut self, name: u32) {
        let joined = self.copies.values().any(|copy| copy.attachment == Some(name))
            || self.feeds.values().any(|feed| feed.attachment == Some(name));
        if joined {
            return;
        }
        if let Some(Attachment { connection, id, lost_bytes }) = self.attachments.remove(&name) {
            let detached = Reply::Detached(Detached { attach_id: id, lost_bytes });
            self.tell(connection, &FromMonitor { id: 0, reply: Some(detached) }, Vec::new());
        }
    }

    /// Output is there, or its end.
    pub(super) fn on_output(&mut self, id: u32, origin: Origin) {
        if self.read_output(id, origin, CHUNK).is_none() {
            self.end_output(id, origin);
        }
        self.balance(id);
    }

    /// Reads at most `most` bytes at once and passes them on; how many came, or none at the end of the stream.
    fn read_output(&mut self, id: u32, origin: Origin, most: usize) -> Option<usize> {
        let task = self.tasks.get_mut(&id)?;
        let fd = &task.output(origin).as_ref()?.fd;
        // Not kept: nearly all monitors are idle nearly always, and freed pages are given back.
        let mut chunk = Vec::with_capacity(most.min(CHUNK));
        let length = match rustix::io::read(fd, spare_capacity(&mut chunk)) {
            Ok(0) => return None,
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Some(0),
            // EIO: the last user of a terminal has closed it.
            Err(_) => return None,
        };
        record(task, origin, &chunk);
        let mut gone = Vec::new();
        for (name, copy) in &mut self.copies {
            if copy.task == id && copy.origin == origin && !copy.push(&chunk) {
                gone.push(*name);
            }
        }
        for name in gone {
            self.lose_copy(name);
        }
        Some(length)
    }

    /// Reads what was written before the task's first process ended. Not more: a child that it has left behind may write
    /// for ever. A terminal's read(2) first takes over what is on its way from the other end, so that an empty one is
    /// really empty.
    pub(super) fn drain(&mut self, id: u32) {
        for origin in [Origin::Stdout, Origin::Stderr] {
            let Some(task) = self.tasks.get_mut(&id) else { return };
            let terminal = task.terminal;
            let Some(output) = task.output(origin) else { continue };
            let mut left = match rustix::io::ioctl_fionread(&output.fd) {
                Ok(waiting) if !terminal => usize::try_from(waiting).unwrap_or(CHUNK),
                _ => TERMINAL_BYTES,
            };
            let ended = loop {
                if left == 0 {
                    break self.is_at_end(id, origin);
                }
                match self.read_output(id, origin, left) {
                    Some(0) => break false,
                    Some(length) => left -= length.min(left),
                    None => break true,
                }
            };
            if ended {
                self.end_output(id, origin);
            }
        }
        self.balance(id);
    }

    /// Whether a stream that has just been read empty has no writer left.
    fn is_at_end(&mut self, id: u32, origin: Origin) -> bool {
        let Some(task) = self.tasks.get_mut(&id) else { return true };
        let Some(output) = task.output(origin) else { return true };
        let mut fds = [PollFd::new(&output.fd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok()
            && fds
                .iter()
                .all(|fd| fd.revents().contains(PollFlags::HUP) && !fd.revents().contains(PollFlags::IN))
    }

    /// A stream is over: its last line is written, its copies end.
    pub(super) fn end_output(&mut self, id: u32, origin: Origin) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(mut output) = task.output(origin).take() else { return };
        self.poller.forget(&output.fd);
        if let Some(log) = &mut task.log {
            let mut records = Vec::new();
            output.lines.finish(&log::rfc3339(log::now_ns()), &mut records);
            log.append(&records);
        }
        self.end_copies(id, Some(origin));
    }

    /// Copies of a task close when they have been delivered.
    pub(super) fn end_copies(&mut self, id: u32, only: Option<Origin>) {
        let mut done = Vec::new();
        for (name, copy) in &mut self.copies {
            if copy.task == id && only.is_none_or(|origin| origin == copy.origin) {
                copy.closing = true;
                if !copy.is_behind() {
                    done.push(*name);
                }
            }
        }
        for name in done {
            self.drop_copy(name);
        }
    }

    /// Room for a client's copy, or the client is gone.
    pub(super) fn on_copy(&mut self, name: u32, gone: bool) {
        let Some(copy) = self.copies.get_mut(&name) else { return };
        let id = copy.task;
        let alive = copy.flush() && !gone;
        if !alive {
            self.lose_copy(name);
        } else if copy.closing && !copy.is_behind() {
            self.drop_copy(name);
        }
        self.balance(id);
    }

    /// Nobody reads a copy any more. An exec session's terminal has no other reader: it is hung up, as a line that drops.
    fn lose_copy(&mut self, name: u32) {
        let Some(id) = self.copies.get(&name).map(|copy| copy.task) else { return };
        self.drop_copy(name);
        if let Some(task) = self.tasks.get_mut(&id).filter(|task| task.terminal && !task.is_container()) {
            task.hung_up = true;
            self.close_input(id);
            self.end_output(id, Origin::Stdout);
        }
    }

    fn drop_copy(&mut self, name: u32) {
        let Some(copy) = self.copies.remove(&name) else { return };
        self.poller.forget(&copy.fd);
        let Some(name) = copy.attachment else { return };
        if let Some(attachment) = self.attachments.get_mut(&name) {
            attachment.lost_bytes = attachment.lost_bytes.saturating_add(copy.lost_bytes);
        }
        // Before its end is told, or the client could take what it has for all there is.
        drop(copy);
        self.end_attachment(name);
    }

    /// A client has input for a task, or has no more.
    pub(super) fn on_feed(&mut self, name: u32) {
        let Some(feed) = self.feeds.get(&name) else { return };
        let id = feed.task;
        let Some(input) = self.tasks.get_mut(&id).and_then(|task| task.input.as_mut()) else {
            return self.balance(id);
        };
        if input.queue.is_empty() {
            let mut chunk = Vec::with_capacity(CHUNK);
            match rustix::io::read(&feed.fd, spare_capacity(&mut chunk)) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok(0) | Err(_) => self.end_feed(name),
                Ok(_) => match write_some(&input.fd, &chunk) {
                    Ok(rest) => input.queue.extend_from_slice(rest),
                    Err(_) => self.close_input(id),
                },
            }
        }
        self.balance(id);
    }

    fn end_feed(&mut self, name: u32) {
        let Some(task) = self.drop_feed(name).and_then(|task| self.tasks.get_mut(&task)) else { return };
        // A terminal has no half to close: who wants to end its input types ^D.
        if let Some(input) = task.input.as_mut().filter(|_| task.stdin_once && !task.terminal) {
            input.closing = true;
        }
    }

    /// Whose it was.
    fn drop_feed(&mut self, name: u32) -> Option<u32> {
        let feed = self.feeds.remove(&name)?;
        self.poller.forget(&feed.fd);
        let Feed { task, attachment, .. } = feed;
        if let Some(name) = attachment {
            self.end_attachment(name);
        }
        Some(task)
    }

    /// Room in a task's stdin, or nobody reads it any more.
    pub(super) fn on_input(&mut self, id: u32, gone: bool) {
        let Some(input) = self.tasks.get_mut(&id).and_then(|task| task.input.as_mut()) else { return };
        let queue = std::mem::take(&mut input.queue);
        match write_some(&input.fd, &queue) {
            Ok(rest) if !gone => {
                input.queue = rest.to_vec();
                self.balance(id);
            }
            _ => self.close_input(id),
        }
    }

    /// Closes a task's stdin, and what would have been fed into it.
    pub(super) fn close_input(&mut self, id: u32) {
        if let Some(input) = self.tasks.get_mut(&id).and_then(|task| {
            task.interactive = false;
            task.input.take()
        }) {
            self.poller.forget(&input.fd);
        }
        let feeds: Vec<u32> =
            self.feeds.iter().filter(|(_, feed)| feed.task == id).map(|(name, _)| *name).collect();
        for name in feeds {
            self.drop_feed(name);
        }
    }

    /// Makes the poller listen to just what can go on.
    pub(super) fn balance(&mut self, id: u32) {
        let mut stalled = false;
        for (name, copy) in self.copies.iter_mut().filter(|(_, copy)| copy.task == id) {
            stalled |= copy.lossless && copy.is_behind();
            if let Some(interest) = &mut copy.interest {
                let wanted = if copy.queue.is_empty() { Interest::NONE } else { Interest::WRITE };
                set_interest(&self.poller, &copy.fd, Source::Copy(*name), interest, wanted);
            }
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        for origin in [Origin::Stdout, Origin::Stderr] {
            if let Some(output) = task.output(origin).as_mut().filter(|output| output.watched == stalled) {
                output.watched = !stalled;
                set_watched(&self.poller, &output.fd, Source::Output(id, origin), !stalled);
            }
        }
        let mut ready = false;
        let mut close = false;
        if let Some(input) = &mut task.input {
            ready = input.queue.is_empty() && !input.closing;
            close = input.queue.is_empty() && input.closing;
            let wanted = if input.queue.is_empty() { Interest::NONE } else { Interest::WRITE };
            set_interest(&self.poller, &input.fd, Source::Input(id), &mut input.interest, wanted);
        }
        for (name, feed) in self.feeds.iter_mut().filter(|(_, feed)| feed.task == id) {
            if feed.watched != ready {
                feed.watched = ready;
                set_watched(&self.poller, &feed.fd, Source::Feed(*name), ready);
            }
        }
        if close {
            self.close_input(id);
        }
    }
}

fn set_interest(poller: &Poller, fd: &OwnedFd, source: Source, is: &mut Interest, wanted: Interest) {
    if *is != wanted && poller.change(fd.as_fd(), source, wanted).is_ok() {
        *is = wanted;
    }
}

/// Listens or not. A hang-up is reported even to those who want nothing, so that what has to wait is not watched at all.
fn set_watched(poller: &Poller, fd: &OwnedFd, source: Source, watched: bool) {
    if watched {
        // It was watched before: it is of a kind that can be.
        let _ = poller.watch(fd.as_fd(), source, Interest::READ);
    } else {
        poller.forget(fd);
    }
}

/// Appends a chunk of output to the task's log.
fn record(task: &mut Task, origin: Origin, chunk: &[u8]) {
    let Task { log: Some(log), stdout, stderr, .. } = task else { return };
    let output = match origin {
        Origin::Stdout => stdout,
        Origin::Stderr => stderr,
    };
    if let Some(output) = output {
        let mut records = Vec::with_capacity(chunk.len() + 128);
        output.lines.feed(chunk, &log::rfc3339(log::now_ns()), &mut records);
        log.append(&records);
    }
}
