//! Where log lines go: standard error, as text or JSON, through one filter.
//!
//! Under systemd the journal stamps each line itself, so text there has no time of its own. Colours only reach a
//! terminal.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt;

use crate::config::LogFormat;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("log filter {filter:?}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// This process logs already.
    #[error("logging is set up already")]
    Twice,
}

/// Reads a filter: a level, or comma-separated `part=level`.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(text)
}

/// Sends what this process logs from now on to standard error.
pub fn init(level: &str, format: LogFormat) -> Result<(), LoggingError> {
    let filter = filter(level).map_err(|source| LoggingError::Filter { filter: level.to_owned(), source })?;
    // systemd.exec(5): set where standard error goes to the journal.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !io::stderr().is_terminal();
    let lines = fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
        LogFormat::Auto if journal => lines.without_time().try_init(),
        LogFormat::Auto | LogFormat::Text => lines.try_init(),
    }
    .map_err(|_| LoggingError::Twice)
}
