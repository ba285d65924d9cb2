//! Processes of a world, seen from outside: by `/proc` of this machine and by pidfd.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process that this test started, held so that a signal can never reach another one.
#[derive(Debug)]
pub struct Process {
    /// Its id in this machine's PID namespace.
    pub pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Takes hold of a living process.
    pub fn hold(pid: u32) -> io::Result<Process> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Process { pid, fd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    /// Sends a signal; a process that is gone already is fine.
    pub fn signal(&self, signal: Signal) {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("signal {signal:?} to process {}: {error}", self.pid),
        }
    }
}

/// Processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Waits for a child, at most so long.
pub fn wait_at_most(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    poll(limit, || child.try_wait().expect("wait for a child"))
}

/// A limit of time as this machine needs it: `PINNACE_TEST_PATIENCE` times as long where it is set, for one whose
/// processor is emulated.
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let text = std::env::var("PINNACE_TEST_PATIENCE").unwrap_or_default();
        text.parse().unwrap_or(1).max(1)
    });
    limit.saturating_mul(*factor)
}

/// Asks until there is an answer, at most so long. The pauses are short beside what is waited for.
pub fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patient(limit);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
