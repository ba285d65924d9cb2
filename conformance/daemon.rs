//! The real program, `pinnace serve`, running in a world.

use std::fmt;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::{Process, poll, wait_at_most};
use crate::world::World;

/// How long the program may take to serve, and to go away.
const LIMIT: Duration = Duration::from_secs(30);

/// Lines of the log that a failed test shows.
const LOG_LINES: usize = 200;

/// One daemon with its places. Dropping it kills the daemon; what it ran goes with the world.
pub struct Daemon {
    world: Arc<World>,
    /// The configuration file.
    pub config: PathBuf,
    /// `--root`
    pub root: PathBuf,
    /// `--run`
    pub run: PathBuf,
    /// `--socket`
    pub socket: PathBuf,
    /// Standard output and error of every run, one after the other.
    pub log: PathBuf,
    running: Option<(Child, Process)>,
}

impl Daemon {
    /// Writes the configuration and starts the program; returns when it accepts connections.
    pub fn start(world: Arc<World>, config: &str) -> Daemon {
        let dir = world.dir();
        let mut daemon = Daemon {
            config: dir.join("config.toml"),
            root: dir.join("root"),
            run: dir.join("run"),
            socket: dir.join("cri.sock"),
            log: dir.join("daemon.log"),
            running: None,
            world,
        };
        daemon.configure(config);
        daemon.start_again();
        daemon
    }

    /// Replaces the configuration; counts from the next start.
    pub fn configure(&self, config: &str) {
        fs::write(&self.config, config).unwrap_or_else(|error| panic!("{}: {error}", self.config.display()));
    }

    /// Starts the program after it has ended.
    pub fn start_again(&mut self) {
        assert!(self.running.is_none(), "the daemon is running");
        let log =
            fs::File::options().create(true).append(true).open(&self.log).expect("open the daemon's log");
        let mut command = self.command("serve");
        command.arg("--config").arg(&self.config).arg("--root").arg(&self.root);
        command.arg("--run").arg(&self.run).arg("--socket").arg(&self.socket);
        command.env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate a file")).stderr(log);
        let spawned = self.world.try_spawn(&mut command);
        let (mut child, process) = spawned.unwrap_or_else(|error| panic!("{error}\n{}", self.last_lines()));
        let serving = poll(LIMIT, || {
            if let Some(status) = child.try_wait().expect("wait for the daemon") {
                panic!("pinnace serve: {status}\n{}", self.last_lines());
            }
            UnixStream::connect(&self.socket).ok()
        });
        self.running = Some((child, process));
        assert!(serving.is_some(), "pinnace serve does not accept connections\n{}", self.last_lines());
    }

    /// The program with one of its verbs, to be run in the world.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = self.world.command(program());
        command.arg(verb);
        command
    }

    /// The daemon's process; it must be running.
    pub fn process(&self) -> &Process {
        &self.running.as_ref().expect("the daemon is running").1
    }

    /// `kill -9`: no instruction of it runs any more when this returns.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM, as systemd stops a service.
    pub fn terminate(&mut self) -> ExitStatus {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        let (mut child, process) = self.running.take().expect("the daemon is running");
        process.signal(signal);
        let status = wait_at_most(&mut child, LIMIT);
        status.unwrap_or_else(|| panic!("the daemon does not end after {signal:?}\n{}", self.last_lines()))
    }

    /// The end of the log.
    pub fn last_lines(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let skip = text.lines().count().saturating_sub(LOG_LINES);
        text.lines().skip(skip).fold(String::new(), |lines, line| lines + "  | " + line + "\n")
    }
}

impl Drop for Daemon {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("end of {}:\n{}", self.log.display(), self.last_lines());
        }
        if let Some((mut child, process)) = self.running.take() {
            process.signal(Signal::KILL);
            let _ = wait_at_most(&mut child, LIMIT);
        }
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon")
            .field("root", &self.root)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// The program under test: `PINNACE_BIN`, else built from this workspace, once.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("PINNACE_BIN") {
        Some(path) => fs::canonicalize(&path).unwrap_or_else(|error| panic!("PINNACE_BIN {path:?}: {error}")),
        None => build(),
    })
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "pinnace", "--bin", "pinnace", "--message-format", "json"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .output()
        .expect("run cargo");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo build --bin pinnace: {}\n{errors}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executable.expect("cargo names the executable it built")
}
