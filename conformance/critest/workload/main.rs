//! What shell scripts cannot be in the images of critest: a set-uid program, and a first process without a shell.
//!
//! - `nnp` prints the effective user id, which set-uid has changed unless no_new_privs forbids it;
//! - anything else waits for SIGTERM.

use std::io::Write as _;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    if std::env::args().next().is_some_and(|name| name.ends_with("nnp")) {
        let line = format!("Effective uid: {}\n", rustix::process::geteuid().as_raw());
        return match std::io::stdout().write_all(line.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    match signals.thread_block().and_then(|()| signals.wait()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
