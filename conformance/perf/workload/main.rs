//! What runs in the containers of the benchmark: small and static, so that the runtime's own work is what is measured.
//!
//! - `tick` prints its CLOCK_MONOTONIC in nanoseconds as the first thing it does and waits for SIGTERM;
//! - `pause` waits for SIGTERM, for runtimes that need such an image;
//! - `true` does nothing.

use std::io::Write as _;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use rustix::time::{ClockId, clock_gettime};

fn main() -> ExitCode {
    let now = clock_gettime(ClockId::Monotonic);
    match std::env::args().nth(1).as_deref() {
        Some("tick") => {
            let line = format!("{}\n", now.tv_sec * 1_000_000_000 + now.tv_nsec);
            if std::io::stdout().write_all(line.as_bytes()).is_err() {
                return ExitCode::FAILURE;
            }
            wait()
        }
        Some("pause") => wait(),
        Some("true") => ExitCode::SUCCESS,
        _ => ExitCode::from(64),
    }
}

/// Process 1 of a PID namespace has no default action for signals, so it takes the one it waits for by itself.
fn wait() -> ExitCode {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    match signals.thread_block().and_then(|()| signals.wait()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
