//! `pinnace-monitor`: started by the daemon with a socket as stdin, one per pod. See [`pinnace_launcher::monitor`].
//! With the argument `namespaces` it is what [`pinnace_launcher::namespaces`] starts.

use std::io::Write;
use std::process::ExitCode;

use pinnace_launcher::namespaces;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let ended = match (arguments.next(), arguments.next()) {
        (Some(argument), Some(flags)) if argument == namespaces::ARGUMENT => namespaces::hold(&flags),
        _ => pinnace_launcher::monitor::run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Whoever started us may not listen.
            let _ = writeln!(std::io::stderr(), "pinnace-monitor: {failure}");
            ExitCode::FAILURE
        }
    }
}
