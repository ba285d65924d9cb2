//! CRI container logs: one file, a line for every line.
//!
//! ```text
//! 2026-10-12T06:07:08.123456789Z stdout F a whole line
//! 2026-10-12T06:07:08.123456789Z stderr P the first 16 KiB of a long line, or a last one without a newline
//! ```
//! Writing never makes the container wait or die: what the file cannot take (ENOSPC, EIO, EDQUOT) is dropped and counted,
//! and the file is opened anew, at most once a second, until it works again. With a limit, a file that would outgrow it is
//! replaced by an empty one of its name: what was written is gone for who opens it later, and nothing fills the disk. The file is a regular one below the log
//! directory's descriptor, reached through no link (rule R24).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::failure::{At, Failure};

/// Longest content of a line unless the daemon says otherwise; what the kubelet and other runtimes assume.
const LINE_BYTES: usize = 16 * 1024;

const RETRY: Duration = Duration::from_secs(1);

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Stdout,
    Stderr,
}

impl Origin {
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts one stream into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    origin: Origin,
    longest: usize,
    /// The line so far.
    begun: Vec<u8>,
}

impl Lines {
    pub fn new(origin: Origin, max_line_bytes: u32) -> Self {
        let longest = match usize::try_from(max_line_bytes) {
            Ok(0) | Err(_) => LINE_BYTES,
            Ok(bytes) => bytes,
        };
        Self { origin, longest, begun: Vec::new() }
    }

    /// Appends to `out` what is complete once `chunk` has come.
    pub fn feed(&mut self, chunk: &[u8], time: &str, out: &mut Vec<u8>) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let newline = rest.iter().position(|byte| *byte == b'\n');
            let line_end = newline.unwrap_or(rest.len());
            let room = self.longest - self.begun.len();
            if line_end > room {
                let (part, more) = rest.split_at(room);
                self.record(part, 'P', time, out);
                rest = more;
            } else if newline.is_some() {
                let (line, more) = rest.split_at(line_end);
                self.record(line, 'F', time, out);
                rest = more.get(1..).unwrap_or_default();
            } else {
                self.begun.extend_from_slice(rest);
                return;
            }
        }
    }

    /// Appends a last line that had no newline.
    pub fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.record(b"", 'P', time, out);
        }
    }

    fn record(&mut self, end: &[u8], tag: char, time: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(time.as_bytes());
        for word in [" ", self.origin.word(), " ", tag.encode_utf8(&mut [0; 4]), " "] {
            out.extend_from_slice(word.as_bytes());
        }
        out.extend_from_slice(&self.begun);
        out.extend_from_slice(end);
        out.push(b'\n');
        // Not `clear`: a monitor lives as long as its pod, and this may have grown to 16 KiB.
        self.begun = Vec::new();
    }
}

/// One container's log file.
#[derive(Debug)]
pub(crate) struct Log {
    directory: OwnedFd,
    path: Vec<u8>,
    file: Option<OwnedFd>,
    /// Longest file; 0 is no limit.
    limit: u64,
    /// Its length, as far as written here.
    length: u64,
    /// The file ends in the middle of a record.
    torn: bool,
    dropped: u64,
    retry_at: Option<Instant>,
}

impl Log {
    /// Opens the log, making the directories of its path.
    pub fn open(directory: OwnedFd, path: &[u8], limit: u64) -> Result<Self, Failure> {
        let file = open_file(directory.as_fd(), path)?;
        let (path, length) = (path.to_vec(), length(&file));
        Ok(Self { directory, path, file: Some(file), limit, length, torn: false, dropped: 0, retry_at: None })
    }

    /// Opens the path anew, after the old file was renamed; on failure the old file stays in use.
    pub fn reopen(&mut self) -> Result<(), Failure> {
        let file = open_file(self.directory.as_fd(), &self.path)?;
        self.length = length(&file);
        self.file = Some(file);
        self.torn = false;
        self.retry_at = None;
        Ok(())
    }

    /// Bytes that were lost.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped
    }

    /// Appends whole records.
    pub fn append(&mut self, records: &[u8]) {
        if self.limit == 0 {
            return self.write(records);
        }
        let mut rest = records;
        while !rest.is_empty() {
            let room = usize::try_from(self.limit.saturating_sub(self.length)).unwrap_or(usize::MAX);
            let fits = if rest.len() <= room { rest.len() } else { after_newline(&rest[..room], true) };
            // A record that fits into no file has one of its own.
            let (piece, more) = match fits {
                0 if self.length == 0 => rest.split_at(after_newline(rest, false)),
                0 => match replace_file(self.directory.as_fd(), &self.path) {
                    Ok(file) => {
                        (self.file, self.length, self.torn) = (Some(file), 0, false);
                        continue;
                    }
                    // A limit is a limit.
                    Err(_) => {
                        self.dropped += rest.len() as u64;
                        return;
                    }
                },
                fits => rest.split_at(fits),
            };
            self.write(piece);
            rest = more;
        }
    }

    fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.file.is_none() && !self.revive() {
            self.dropped += records.len() as u64;
            return;
        }
        let Some(file) = &self.file else { return };
        let mut rest = records;
        // Ends the record that was torn, so that it does not swallow the next one.
        if self.torn && rustix::io::write(file, b"\n") == Ok(1) {
            self.torn = false;
        }
        while !rest.is_empty() && !self.torn {
            match rustix::io::write(file, rest) {
                Ok(written) => {
                    self.length += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if rest.is_empty() {
            return;
        }
        self.dropped += rest.len() as u64;
        self.torn |= rest.len() < records.len()
            && records.get(records.len() - rest.len() - 1).is_some_and(|byte| *byte != b'\n');
        self.file = None;
        self.retry_at = Some(Instant::now() + RETRY);
    }

    fn revive(&mut self) -> bool {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        match open_file(self.directory.as_fd(), &self.path) {
            Ok(file) => (self.length, self.file) = (length(&file), Some(file)),
            Err(_) => self.retry_at = Some(Instant::now() + RETRY),
        }
        self.file.is_some()
    }
}

/// Where the text after the last newline begins, or after the first one; 0 and all of it without one.
fn after_newline(text: &[u8], last: bool) -> usize {
    let is_newline = |byte: &u8| *byte == b'\n';
    match last {
        true => text.iter().rposition(is_newline).map_or(0, |at| at + 1),
        false => text.iter().position(is_newline).map_or(text.len(), |at| at + 1),
    }
}

fn length(file: &OwnedFd) -> u64 {
    fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// How every log is opened.
const APPEND: OFlags = OFlags::WRONLY
    .union(OFlags::APPEND)
    .union(OFlags::CREATE)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

const MODE: Mode = Mode::from_raw_mode(0o640);

/// An empty file under that name; who has the old one open goes on reading it.
fn replace_file(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Failure> {
    let (parent, name) = open_parent(directory, path)?;
    let at = parent.as_ref().map_or(directory, AsFd::as_fd);
    let new = [b".", name, b".new"].concat();
    match unlinkat(at, new.as_slice(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(Failure::syscall("log", "unlinkat", errno, &new)),
    }
    let file =
        openat2(at, new.as_slice(), APPEND | OFlags::EXCL, MODE, RESOLVE).at("log", "openat2", &new)?;
    renameat(at, new.as_slice(), at, name).at("log", "renameat", path)?;
    Ok(file)
}

fn open_file(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Failure> {
    let (parent, name) = open_parent(directory, path)?;
    let at = parent.as_ref().map_or(directory, AsFd::as_fd);
    let file = openat2(at, name, APPEND, MODE, RESOLVE).at("log", "openat2", path)?;
    let mode = fstat(&file).at("log", "fstat", path)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::RegularFile {
        return Err(Failure::refused("log", path, "not a regular file"));
    }
    Ok(file)
}

/// The directory that the file is in, made if it is missing, and the file's name; none for the log directory itself.
fn open_parent<'p>(
    directory: BorrowedFd<'_>,
    path: &'p [u8],
) -> Result<(Option<OwnedFd>, &'p [u8]), Failure> {
    let (parents, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&b""[..], path),
    };
    let whole = path.split(|byte| *byte == b'/');
    if name.is_empty() || whole.clone().any(|part| part.is_empty() || part == b"." || part == b"..") {
        return Err(Failure::refused("log", path, "not a plain relative path"));
    }
    let mut opened: Option<OwnedFd> = None;
    for part in parents.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        let at = opened.as_ref().map_or(directory, AsFd::as_fd);
        match mkdirat(at, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::syscall("log", "mkdirat", errno, path)),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        opened = Some(openat2(at, part, flags, Mode::empty(), RESOLVE).at("log", "openat2", path)?);
    }
    Ok((opened, name))
}

/// `CLOCK_REALTIME` now, in nanoseconds.
pub(crate) fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// RFC 3339 with nanoseconds, UTC.
pub(crate) fn rfc3339(ns: i64) -> String {
    let (seconds, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Gregorian date of a day counted from 1970-01-01, computed in eras of 400 years that begin on the first of March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, openat, symlinkat};

    const TIME: &str = "T";

    #[test]
    fn a_file_that_would_outgrow_its_limit_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let fd = openat(CWD, directory.path(), OFlags::PATH | OFlags::CLOEXEC, 0.into()).unwrap();
        let mut log = Log::open(fd, b"c/0.log", 10).unwrap();
        let path = directory.path().join("c/0.log");
        let read = || std::fs::read_to_string(&path).unwrap();
        log.append(b"one\n");
        log.append(b"two\n");
        let mut follower = std::fs::File::open(&path).unwrap();
        log.append(b"three\n");
        assert_eq!(read(), "three\n");
        let mut old = String::new();
        std::io::Read::read_to_string(&mut follower, &mut old).unwrap();
        assert_eq!(old, "one\ntwo\n", "who reads already loses nothing");
        // One record is never cut, and what a restart finds counts.
        log.append(b"a record that is longer than all\n");
        assert_eq!(read(), "a record that is longer than all\n");
        log.reopen().unwrap();
        log.append(b"x\n");
        assert_eq!(read(), "x\n");
        std::fs::rename(&path, directory.path().join("rotated")).unwrap();
        log.reopen().unwrap();
        log.append(b"nine888\n");
        assert_eq!((read().as_str(), log.dropped_bytes()), ("nine888\n", 0));
        // Many records at once: what does not fit goes into the next file.
        log.append(b"a\nb\nc\nd\ne\nf\ng\nh\n");
        assert_eq!((read().as_str(), log.dropped_bytes()), ("g\nh\n", 0));
        assert_eq!(std::fs::read_dir(directory.path().join("c")).unwrap().count(), 1);
    }

    fn fed(chunks: &[&[u8]], longest: u32) -> String {
        let mut lines = Lines::new(Origin::Stdout, longest);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, TIME, &mut out);
        }
        lines.finish(TIME, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_whole_whatever_the_chunks() {
        assert_eq!(fed(&[b"a\nb", b"c", b"\n\n"], 0), "T stdout F a\nT stdout F bc\nT stdout F \n");
        assert_eq!(fed(&[b"no newline"], 0), "T stdout P no newline\n");
        assert_eq!(fed(&[], 0), "");
    }

    #[test]
    fn long_lines_are_split_exactly() {
        assert_eq!(fed(&[b"abcdefgh\n"], 4), "T stdout P abcd\nT stdout F efgh\n");
        assert_eq!(fed(&[b"abcd\n"], 4), "T stdout F abcd\n");
        assert_eq!(fed(&[b"ab", b"cdef", b"\n"], 4), "T stdout P abcd\nT stdout F ef\n");
        let line = vec![b'x'; LINE_BYTES * 2 + 1];
        let records = fed(&[&line, b"\n"], 0);
        let lengths: Vec<_> = records.lines().map(|line| line.len() - "T stdout P ".len()).collect();
        assert_eq!(lengths, [LINE_BYTES, LINE_BYTES, 1]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339(1_767_225_599_999_999_999), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn only_a_regular_file_below_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let fd = || openat(CWD, directory.path(), OFlags::PATH | OFlags::CLOEXEC, 0.into()).unwrap();
        symlinkat(outside.path().join("file"), fd(), "link").unwrap();
        symlinkat(outside.path(), fd(), "dirlink").unwrap();
        rustix::fs::mkfifoat(fd(), "fifo", 0o600.into()).unwrap();
        for bad in ["link", "dirlink/x", "../x", "/x", "a/../x", "", "a/", "fifo", "a//b"] {
            let failure = Log::open(fd(), bad.as_bytes(), 0).err().unwrap_or_else(|| panic!("{bad} opened"));
            assert_eq!(failure.stage, "log");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let mut log = Log::open(fd(), b"pod/container/0.log", 0).unwrap();
        log.append(b"one\n");
        std::fs::rename(directory.path().join("pod/container/0.log"), directory.path().join("old")).unwrap();
        log.append(b"two\n");
        log.reopen().unwrap();
        log.append(b"three\n");
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("old"), "one\ntwo\n");
        assert_eq!(read("pod/container/0.log"), "three\n");
        let mode = std::fs::metadata(directory.path().join("old")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o640);
    }
}
