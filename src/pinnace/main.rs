//! A Kubernetes container runtime in one program.

mod serve;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use pinnace_daemon::config::ConfigError;

/// EX_USAGE of sysexits(3): the command line or the configuration is wrong.
const USAGE: u8 = 64;

/// The same for `run`, whose other codes are those of containers.
const DOCKER_USAGE: u8 = 125;

#[derive(Parser)]
#[command(name = "pinnace", version, about, max_term_width = 110)]
enum Command {
    /// Run the daemon: serve the CRI for the kubelet and crictl
    Serve(serve::Arguments),
    /// Be an OCI runtime: runc's commands and flags
    Oci(Box<pinnace_oci::Oci>),
    #[command(flatten)]
    Client(pinnace_cli::Verb),
}

fn main() -> ExitCode {
    let command = match Command::try_parse_from(pinnace_oci::arguments(std::env::args_os())) {
        Ok(command) => command,
        Err(error) => {
            let _ = error.print();
            return match (error.use_stderr(), std::env::args().nth(1).as_deref()) {
                (false, _) => ExitCode::SUCCESS,
                // As docker has it: the codes below are the container's.
                (true, Some("run")) => ExitCode::from(DOCKER_USAGE),
                (true, _) => ExitCode::from(USAGE),
            };
        }
    };
    let result = match command {
        Command::Serve(arguments) => arguments.run(),
        Command::Oci(oci) => return oci.run(),
        Command::Client(verb) => verb.run(<Command as clap::CommandFactory>::command),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(exit) = error.downcast_ref::<pinnace_cli::Exit>() {
        if !exit.message.is_empty() {
            let _ = writeln!(std::io::stderr(), "pinnace: {exit}");
        }
        return ExitCode::from(exit.code);
    }
    let _ = writeln!(std::io::stderr(), "pinnace: {error:#}");
    if error.is::<ConfigError>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}
