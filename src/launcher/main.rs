//! `pinnace-monitor`: started by the daemon with a socket as stdin, one per pod. See [`pinnace_launcher::monitor`].

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match pinnace_launcher::monitor::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Whoever started us may not listen.
            let _ = writeln!(std::io::stderr(), "pinnace-monitor: {failure}");
            ExitCode::FAILURE
        }
    }
}
