//! Errors on stderr and, for callers that cannot see that, in a file.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;

/// Form of the file's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Where errors go beside stderr.
#[derive(Debug)]
pub(crate) struct Log {
    pub file: Option<PathBuf>,
    pub format: Format,
}

impl Log {
    /// Tells on stderr what went wrong without being the end of what was asked for.
    pub fn warn(error: &anyhow::Error) {
        let _ = writeln!(std::io::stderr(), "pinnace oci: warning: {error:#}");
    }

    /// Tells an error with its causes. Nobody reading is no reason to do anything else.
    pub fn error(&self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        let _ = writeln!(std::io::stderr(), "pinnace oci: {message}");
        let Some(path) = &self.file else { return };
        let time = jiff::Timestamp::now();
        let line = match self.format {
            Format::Text => format!("time=\"{time}\" level=error msg={message:?}\n"),
            Format::Json => {
                let line = serde_json::json!({ "level": "error", "msg": message, "time": time.to_string() });
                format!("{line}\n")
            }
        };
        let file = OpenOptions::new().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
