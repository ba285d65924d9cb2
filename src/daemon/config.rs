//! The configuration: one TOML file, checked as a whole before anything is touched.
//!
//! ```text
//! config.toml ─parse─► document ─keys (types, ranges, spelling)─► sections ─what spans keys─► Config
//!                         └───────────── every problem, with file, line and column ─────────────┘
//! ```
//! The keys are declared once, in [`keys`]: name, type, default and documentation stand side by side, and the parser,
//! the defaults and the reference text ([`reference`], `deploy/config.toml`) all come from that table. A [`Config`]
//! can only be made by [`Config::load`], so whoever holds one holds values that were checked. Flags of the command
//! line replace four keys (the three places and the log level); everything else has one home, the file.

mod document;
pub mod keys;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use keys::{Cni, Container, Daemon, Image, Network, Streaming, reference};
pub use values::{
    CgroupDriver, CniMode, LayerForm, LogFormat, PinnedImage, Rlimit, SeccompDefault, SelinuxMode, Subnet,
};

use document::Document;

/// Read when no `--config` is given; its absence then means the defaults.
pub const DEFAULT_FILE: &str = "/etc/pinnace/config.toml";

/// The kernel's `sun_path` holds 108 bytes with the final NUL (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Everything that `pinnace serve` was told, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[image]`
    pub image: Image,
    /// `[network]`
    pub network: Network,
    /// `[cni]`
    pub cni: Cni,
    /// `[container]`
    pub container: Container,
    /// `[streaming]`
    pub streaming: Streaming,
    /// `[runtimes.NAME]`: the programs of external OCI runtimes, by handler.
    pub runtimes: BTreeMap<String, PathBuf>,
}

/// What the command line says instead of the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--root`
    pub root: Option<PathBuf>,
    /// `--run`
    pub run: Option<PathBuf>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--log-level`
    pub log_level: Option<String>,
}

/// One thing that is wrong in the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE:COLUMN`, or the flag.
    pub place: String,
    /// What is wrong, and the likely cure.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: read configuration", path.display())]
    Read {
        /// The file that was named or is the default.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file was read and is wrong; all that is wrong with it is here.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

impl Config {
    /// The defaults of every key: what an empty file means.
    #[must_use]
    pub fn defaults() -> Config {
        let mut document = Document::empty();
        let config = Config::read(&mut document);
        debug_assert!(document.problems.is_empty(), "a default is wrong: {:?}", document.problems);
        config
    }

    /// Reads `file`, or [`DEFAULT_FILE`] if it exists, or nothing; applies `overrides`; checks the whole.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        Config::parse(&path.display().to_string(), &text, overrides)
    }

    /// Reads `text`, which came from the file called `name`.
    pub fn parse(name: &str, text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut document = Document::parse(name, text);
        let mut config = Config::read(&mut document);
        document.refuse_leftovers(keys::SECTIONS);
        config.override_by(overrides, &mut document);
        if document.problems.is_empty() {
            config.check_whole(&mut document);
        }
        if document.problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid(document.problems)) }
    }

    /// The unix socket that the daemon serves on.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.daemon.socket.clone().unwrap_or_else(|| self.daemon.run.join("pinnace.sock"))
    }

    fn read(document: &mut Document<'_>) -> Config {
        Config {
            daemon: Daemon::read(document),
            image: Image::read(document),
            network: Network::read(document),
            cni: Cni::read(document),
            container: Container::read(document),
            streaming: Streaming::read(document),
            runtimes: document.take_named("runtimes", &["path", "type"], values::runtime),
        }
    }

    fn override_by(&mut self, overrides: &Overrides, document: &mut Document<'_>) {
        let mut path = |flag: &str, value: &Option<PathBuf>| {
            let value = value.as_ref()?;
            match values::check_path(value) {
                Ok(path) => Some(path),
                Err(message) => {
                    document.problems.push(Problem { place: flag.into(), message });
                    None
                }
            }
        };
        if let Some(root) = path("--root", &overrides.root) {
            self.daemon.root = root;
        }
        if let Some(run) = path("--run", &overrides.run) {
            self.daemon.run = run;
        }
        if let Some(socket) = path("--socket", &overrides.socket) {
            self.daemon.socket = Some(socket);
        }
        if let Some(level) = &overrides.log_level {
            match values::check_log_level(level) {
                Ok(level) => self.daemon.log_level = level,
                Err(message) => {
                    document.problems.push(Problem { place: "--log-level".into(), message });
                }
            }
        }
    }

    /// What no single key can know.
    fn check_whole(&self, document: &mut Document<'_>) {
        let Daemon { root, run, .. } = &self.daemon;
        if root.starts_with(run) || run.starts_with(root) {
            // run is emptied at boot, root must survive it; and each carries its own lock.
            document.problem(
                "daemon",
                "run",
                format!("{} and root {} must not lie in each other", run.display(), root.display()),
            );
        }
        let socket = self.socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            let length = socket.as_os_str().len();
            document.problem(
                "daemon",
                "socket",
                format!("{} has {length} bytes, a unix socket can have {SOCKET_PATH_MAX}", socket.display()),
            );
        }
        if self.network.ipv4_subnet.is_none() && self.network.ipv6_subnet.is_none() {
            document.problem("network", "ipv4_subnet", "and ipv6_subnet cannot both be empty".into());
        }
        let Streaming { tls_certificate, tls_key, tls_client_ca, .. } = &self.streaming;
        if tls_certificate.is_some() != tls_key.is_some() {
            document.problem(
                "streaming",
                "tls_certificate",
                "and tls_key are given together or not at all".into(),
            );
        }
        if tls_client_ca.is_some() && tls_certificate.is_none() {
            document.problem("streaming", "tls_client_ca", "needs tls_certificate and tls_key".into());
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}: {}", problem.place, problem.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
