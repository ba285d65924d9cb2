//! A Kubernetes container runtime in one program.

mod serve;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use pinnace_daemon::config::ConfigError;

/// EX_USAGE of sysexits(3): the command line or the configuration is wrong.
const USAGE: u8 = 64;

#[derive(Parser)]
#[command(name = "pinnace", version, about, max_term_width = 110)]
enum Command {
    /// Run the daemon: serve the CRI for the kubelet and crictl
    Serve(serve::Arguments),
    #[command(flatten)]
    Client(pinnace_cli::Verb),
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match command {
        Command::Serve(arguments) => arguments.run(),
        Command::Client(verb) => verb.run(),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    let _ = writeln!(std::io::stderr(), "pinnace: {error:#}");
    if error.is::<ConfigError>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}
