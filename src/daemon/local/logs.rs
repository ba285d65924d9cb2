//! What a container has written, from its log; with follow what it writes, until it ends.
//!
//! The monitor writes the log in the CRI's form, `<time> <stream> F|P <content>`, where P is a part whose line goes on.
//! Lives follow each other in one file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

use super::LocalContainer;
use crate::error::Error;
use crate::node::Node;
use crate::readiness::readable;

/// Name of the log in the container's directory.
pub const NAME: &str = "log";

/// Entries that wait for who reads slowly.
const QUEUED: usize = 64;

/// What is wanted of a log.
#[derive(Clone, Debug)]
pub struct Query {
    /// Go on with what it writes.
    pub follow: bool,
    /// `CLOCK_REALTIME` ns; 0 is the beginning.
    pub since_ns: i64,
    /// `CLOCK_REALTIME` ns; 0 is no end.
    pub until_ns: i64,
    /// The last so many lines.
    pub tail: Option<u64>,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// A line, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `CLOCK_REALTIME` ns.
    pub at_ns: i64,
    /// Of standard error.
    pub stderr: bool,
    /// With its line end, unless it is a part.
    pub content: Vec<u8>,
}

impl Query {
    fn wants(&self, entry: &Entry) -> bool {
        (if entry.stderr { self.stderr } else { self.stdout })
            && entry.at_ns >= self.since_ns
            && (self.until_ns == 0 || entry.at_ns <= self.until_ns)
    }
}

/// Reads a log in the background.
pub fn read(
    node: &Node,
    local: Arc<LocalContainer>,
    query: Query,
) -> Result<mpsc::Receiver<Result<Entry, Error>>, Error> {
    let node = node.shared()?;
    let (entries, receiver) = mpsc::channel(QUEUED);
    tokio::spawn(async move {
        let closing = node.closing.clone();
        let reading = Box::pin(copy(&node, &local, &query, &entries));
        let read = tokio::select! {
            read = reading => read,
            () = closing.cancelled() => Ok(()),
            () = entries.closed() => return,
        };
        if let Err(error) = read {
            // Nobody listens any more.
            let _: Result<_, _> = entries.send(Err(error)).await;
        }
    });
    Ok(receiver)
}

async fn copy(
    node: &Arc<Node>,
    local: &Arc<LocalContainer>,
    query: &Query,
    entries: &mpsc::Sender<Result<Entry, Error>>,
) -> Result<(), Error> {
    let path = local.log_path();
    let mut state = local.follow();
    // Before it is read, so that nothing falls between.
    let watch = query.follow.then(|| Watch::new(&local.directory)).transpose()?;
    let watch = watch.map(|watch| readable(watch, "inotify")).transpose()?;
    let mut reader: Option<Reader> = None;
    let mut tail = query.tail;
    loop {
        // Whether it lives is asked before the log is read: what it wrote last is in it then.
        let alive = state.borrow_and_update().is_alive();
        if reader.is_none() {
            reader = Reader::open(&path)?;
        }
        if let Some(mut open) = reader.take() {
            let (wanted, sender, most) = (query.clone(), entries.clone(), tail.take());
            reader = Some(
                node.blocking(move |_| {
                    open.pass(&wanted, most, &sender)?;
                    Ok(open)
                })
                .await?,
            );
        }
        let late = query.until_ns != 0 && crate::clock::realtime_ns() > query.until_ns;
        let Some(watch) = watch.as_ref().filter(|_| alive && !late) else { return Ok(()) };
        tokio::select! {
            ready = watch.readable() => {
                let mut ready = ready.map_err(Error::io("watch", &path))?;
                watch.get_ref().0.drain();
                ready.clear_ready();
            }
            changed = state.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Told when something in a directory is written.
#[derive(Debug)]
struct Watch(Inotify);

impl Watch {
    fn new(directory: &Path) -> Result<Self, Error> {
        let failed = |errno: nix::errno::Errno| Error::io("watch", directory)(errno.into());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        inotify.add_watch(directory, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE).map_err(failed)?;
        Ok(Self(inotify))
    }

    /// What it was does not matter.
    fn drain(&self) {
        while self.0.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
struct Reader {
    file: BufReader<File>,
    line: Vec<u8>,
}

impl Reader {
    /// `None` if it has not written anything yet.
    fn open(path: &Path) -> Result<Option<Self>, Error> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { file: BufReader::with_capacity(1 << 16, file), line: Vec::new() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open log", path)(error)),
        }
    }

    /// Passes on what there is by now; a record that is not whole yet is kept for the next time. Blocks.
    fn pass(
        &mut self,
        query: &Query,
        tail: Option<u64>,
        entries: &mpsc::Sender<Result<Entry, Error>>,
    ) -> Result<(), Error> {
        let most = tail.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        let mut last: VecDeque<Vec<Entry>> = VecDeque::new();
        let mut whole = true;
        loop {
            let read = self.file.read_until(b'\n', &mut self.line).map_err(Error::io("read", "log"))?;
            if read == 0 || !self.line.ends_with(b"\n") {
                break;
            }
            let parsed = parse(&self.line);
            self.line.clear();
            let Some(entry) = parsed.filter(|entry| query.wants(entry)) else { continue };
            let Some(most) = most else {
                if entries.blocking_send(Ok(entry)).is_err() {
                    return Ok(());
                }
                continue;
            };
            let ends = entry.content.ends_with(b"\n");
            match last.back_mut() {
                Some(line) if !whole => line.push(entry),
                _ => last.push_back(vec![entry]),
            }
            whole = ends;
            if last.len() > most {
                last.pop_front();
            }
        }
        for entry in last.into_iter().flatten() {
            if entries.blocking_send(Ok(entry)).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A record of the log. What is none is skipped.
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let at = text()?.parse::<jiff::Timestamp>().ok()?;
    let stderr = match text()? {
        "stdout" => false,
        "stderr" => true,
        _ => return None,
    };
    let partial = text()?.starts_with('P');
    let mut content = fields.next()?.to_vec();
    if partial {
        content.pop();
    }
    Some(Entry { at_ns: i64::try_from(at.as_nanosecond()).ok()?, stderr, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(tail: Option<u64>) -> Query {
        Query { follow: false, since_ns: 0, until_ns: 0, tail, stdout: true, stderr: true }
    }

    fn passed(log: &str, query: &Query) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, log).unwrap();
        let (sender, mut receiver) = mpsc::channel(64);
        Reader::open(&path).unwrap().unwrap().pass(query, query.tail, &sender).unwrap();
        drop(sender);
        let mut text = Vec::new();
        while let Some(entry) = receiver.blocking_recv() {
            text.extend(entry.unwrap().content);
        }
        String::from_utf8(text).unwrap()
    }

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n2026-01-01T00:00:02.000000000Z stderr F two\n\
        2026-01-01T00:00:03.000000000Z stdout P thr\n2026-01-01T00:00:03.000000000Z stdout F ee\n\
        2026-01-01T00:00:04.000000000Z stdout P end\n2026-01-01T00:00:05.0";

    #[test]
    fn lines_are_put_together_and_a_torn_record_waits() {
        assert_eq!(passed(LOG, &query(None)), "one\ntwo\nthree\nend");
    }

    #[test]
    fn the_tail_counts_lines_and_not_parts() {
        assert_eq!(passed(LOG, &query(Some(2))), "three\nend");
        assert_eq!(passed(LOG, &query(Some(0))), "");
    }

    #[test]
    fn streams_and_times_are_chosen() {
        assert_eq!(passed(LOG, &Query { stdout: false, ..query(None) }), "two\n");
        let second = 1_000_000_000;
        let since = "2026-01-01T00:00:02Z".parse::<jiff::Timestamp>().unwrap();
        let since_ns = i64::try_from(since.as_nanosecond()).unwrap();
        assert_eq!(
            passed(LOG, &Query { since_ns, until_ns: since_ns + second, ..query(None) }),
            "two\nthree\n"
        );
    }
}
