//! Sockets that the service manager opened for this process: the receiving half of sd_listen_fds(3).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};

/// SD_LISTEN_FDS_START: behind standard input, output and error.
const FIRST: RawFd = 3;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over what `LISTEN_FDS` counts if `LISTEN_PID` names this process, and makes it close-on-exec. The first call
/// gets it, later calls and processes that were not meant get nothing.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    let mut fds = Vec::new();
    for raw in FIRST..FIRST.saturating_add(count) {
        // SAFETY: only borrowed for one fcntl, which answers EBADF when the number names nothing; the loop ends there.
        let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
        // SAFETY: the number is open (fcntl has just said so), and by the protocol that LISTEN_PID binds to this very
        // process it was opened for us by our parent before exec, so nothing else in this process owns it; TAKEN
        // lets this happen once.
        fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
    }
    Ok(fds)
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_taken_that_was_not_passed() {
        // The test runner was not activated: descriptors 3 and up belong to others and must be left alone.
        assert!(super::take().unwrap().is_empty());
    }
}
