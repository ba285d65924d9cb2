//! `pinnace oci`: the command line of an ordinary OCI runtime, with runc's flags.
//!
//! ```text
//! caller (containerd's shim, conmon, buildah)
//!   └─ pinnace oci create ─ plan, descriptors ─► pinnace-monitor ─clone3─► init, held at <root>/<id>/start.sock
//!        └─ tells the monitor to leave, and ends ──────── gone             │  the caller's own child from here on
//!   └─ pinnace oci start ─────────────── connects ────────────────────────►│ execve, or why not
//! ```
//! Nothing of pinnace stays beside such a container: the monitor that launched it ends with `create`, so that the
//! container's process becomes the child of whoever reaps the caller's orphans, as those who use an OCI runtime expect.
//! Plan, monitor and init are those of the daemon's containers.
//!
//! ```text
//! <root>/<id>/            0700; its existence is the id's reservation
//! ├── state.json          what is known of the container, replaced by rename
//! ├── config.json         the bundle's, as it was at creation
//! ├── start.sock          init waits at it; nobody listens once the program runs
//! └── lock                held by every operation that changes something
//! ```
//! The status is not recorded but seen: the process of that number and start time lives, has been started, is frozen.

mod bundle;
mod create;
mod delete;
mod exec;
mod features;
mod foreground;
mod hooks;
mod kill;
mod list;
mod log;
mod monitor;
mod process;
mod run;
mod runtime;
mod spec;
mod start;
mod state;
mod update;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};

use crate::log::{Format, Log};
use crate::runtime::Runtime;

/// The name under which the program is this command line alone: a link of that name can be given to others as their runtime.
pub const NAME: &str = "pinnace-oci";

/// Version of the runtime spec that is implemented.
pub const SPEC_VERSION: &str = "1.2.1";

/// What could not be done; a program that ended has statuses below.
const FAILED: u8 = 1;

/// The arguments with the subcommand put in, when the program was called by [`NAME`].
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<OsString> = given.into_iter().collect();
    let called = given.first().map(PathBuf::from);
    if called.as_deref().and_then(|path| path.file_name()).is_some_and(|name| name == NAME) {
        given.insert(1, "oci".into());
    }
    given
}

/// Containers by the OCI runtime spec, for containerd, podman, buildah and other callers of runc
#[derive(Debug, Args)]
#[command(disable_version_flag = true, arg_required_else_help = true)]
pub struct Oci {
    #[command(flatten)]
    global: Global,
    /// Print the versions of program and runtime spec
    #[arg(long, short = 'v')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Global {
    /// Directory of the containers' state
    #[arg(long, value_name = "DIR", default_value = "/run/pinnace-oci")]
    root: PathBuf,
    /// Append errors to this file, beside stderr
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of what is appended
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log_format: Format,
    /// Taken for compatibility; errors are always complete
    #[arg(long)]
    debug: bool,
    /// Expect `linux.cgroupsPath` to be `slice:prefix:name`
    #[arg(long)]
    systemd_cgroup: bool,
    /// Taken for compatibility: `auto`, `true` or `false`; pinnace runs as root
    #[arg(long, value_name = "BOOL", hide = true)]
    rootless: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a container, up to its program
    Create(create::Arguments),
    /// Execute the program of a created container
    Start(start::Arguments),
    /// Print the state of a container
    State(state::Arguments),
    /// Send a signal to a container
    Kill(kill::Arguments),
    /// Remove a stopped container
    Delete(delete::Arguments),
    /// Create and start a container
    Run(run::Arguments),
    /// Run another process in a container
    Exec(exec::Arguments),
    /// List containers
    List(list::Arguments),
    /// List the processes of a container
    Ps(list::Processes),
    /// Freeze a container
    Pause(state::Arguments),
    /// Let a frozen container go on
    Resume(state::Arguments),
    /// Change the limits of a container
    Update(update::Arguments),
    /// Write a config.json to start from
    Spec(spec::Arguments),
    /// Print what this runtime can do
    Features,
}

impl Oci {
    /// Does it.
    pub fn run(self) -> ExitCode {
        let log = Log { file: self.global.log.clone(), format: self.global.log_format };
        let failed =
            if matches!(self.command, Some(Command::Exec(_) | Command::Run(_))) { 255 } else { FAILED };
        match self.execute() {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                log.error(&error);
                ExitCode::from(failed)
            }
        }
    }

    fn execute(self) -> anyhow::Result<u8> {
        if self.version {
            let version = env!("CARGO_PKG_VERSION");
            writeln!(std::io::stdout(), "{NAME} version {version}\nspec: {SPEC_VERSION}")?;
            return Ok(0);
        }
        let Some(command) = self.command else { bail!("no command is given; --help lists them") };
        let runtime = Runtime { root: self.global.root, systemd_cgroup: self.global.systemd_cgroup };
        let done = |()| 0;
        match command {
            Command::Create(arguments) => arguments.run(&runtime).map(done),
            Command::Start(arguments) => arguments.run(&runtime).map(done),
            Command::State(arguments) => arguments.print(&runtime).map(done),
            Command::Kill(arguments) => arguments.run(&runtime).map(done),
            Command::Delete(arguments) => arguments.run(&runtime).map(done),
            Command::Run(arguments) => arguments.run(&runtime),
            Command::Exec(arguments) => arguments.run(&runtime),
            Command::List(arguments) => arguments.run(&runtime).map(done),
            Command::Ps(arguments) => arguments.run(&runtime).map(done),
            Command::Pause(arguments) => arguments.pause(&runtime).map(done),
            Command::Resume(arguments) => arguments.resume(&runtime).map(done),
            Command::Update(arguments) => arguments.run(&runtime).map(done),
            Command::Spec(arguments) => arguments.run().map(done),
            Command::Features => features::print().map(done),
        }
    }
}
