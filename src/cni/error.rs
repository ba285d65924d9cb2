//! Why a plugin did not do what it was asked.

use std::path::PathBuf;
use std::time::Duration;

use crate::list::PluginType;
use crate::plugin::Operation;
use crate::result::ResultError;

/// Codes of the specification that this program acts on.
pub mod code {
    /// The plugin does not speak the version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A key of the configuration is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown: there is nothing to delete.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A variable of the environment is wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO_FAILURE: u32 = 5;
    /// Something could not be decoded.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration is wrong.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// The same again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// ADD would not work.
    pub const NOT_AVAILABLE: u32 = 50;
    /// ADD would not work, and what is attached may not either.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Something else, as the reference plugins number it.
    pub const INTERNAL: u32 = 999;
}

/// Why one call of one plugin failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// No such program.
    #[error("plugin {kind} is in none of {}", paths(.dirs))]
    NotFound {
        /// The plugin.
        kind: PluginType,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// The program could not be started.
    #[error("start {}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Input or output failed.
    #[error("talk to {}", path.display())]
    Io {
        /// The program.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long, and was killed.
    #[error("{} did not end within {limit:?} and was killed", path.display())]
    TimedOut {
        /// The program.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// It wrote more than a result can be, and was killed.
    #[error("{} wrote more than {limit} bytes and was killed", path.display())]
    TooMuchOutput {
        /// The program.
        path: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// It said why not.
    #[error("plugin {kind}: {message}{}{details} (code {code})", if details.is_empty() { "" } else { "; " })]
    Refused {
        /// The plugin.
        kind: PluginType,
        /// Of the specification, or its own from 100.
        code: u32,
        /// What is wrong.
        message: String,
        /// More about it.
        details: String,
    },
    /// Code that takes the place of the program failed.
    #[error("plugin {kind}, executed natively: {reason}")]
    Native {
        /// The plugin.
        kind: String,
        /// Why, with all causes.
        reason: String,
    },
    /// It ended badly without a word in the form of CNI.
    #[error("plugin {kind} {status}{}{output}", if output.is_empty() { " without a word" } else { ": " })]
    Failed {
        /// The plugin.
        kind: PluginType,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote, cut short.
        output: String,
    },
    /// It ended well and returned nothing.
    #[error("plugin {kind} returned nothing")]
    Empty {
        /// The plugin.
        kind: PluginType,
    },
    /// It ended well and returned something else.
    #[error("plugin {kind} returned {output:?}")]
    Garbage {
        /// The plugin.
        kind: PluginType,
        /// What it wrote, cut short.
        output: String,
        /// What is wrong with it.
        source: ResultError,
    },
}

impl PluginError {
    /// The code of CNI that the plugin gave.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            PluginError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

fn paths(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Why an operation on a network failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of network {network}")]
pub struct NetworkFailure {
    /// What was asked.
    pub operation: Operation,
    /// Of which network.
    pub network: String,
    /// What the plugin did.
    #[source]
    pub source: PluginError,
}
