//! Exit codes that are the container's, or docker's for what went wrong.

/// Ends the program with a code, after its message if it has one.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Exit {
    /// The program's exit code.
    pub code: u8,
    /// What is said on standard error; empty is nothing.
    pub message: String,
}

/// Docker's code for its own failures: the flags, the daemon.
pub const DAEMON: u8 = 125;

/// Key of the metadata by which the daemon tells docker's exit code.
const METADATA: &str = "pinnace-exit-code";

impl Exit {
    /// Nothing to say, for the container has said it.
    pub fn silent(code: i32) -> anyhow::Error {
        Self { code: byte(code), message: String::new() }.into()
    }

    /// A failure with docker's code for it.
    pub fn refused(status: &tonic::Status, otherwise: u8) -> anyhow::Error {
        let told = status.metadata().get(METADATA).and_then(|value| value.to_str().ok()?.parse().ok());
        Self { code: told.unwrap_or(otherwise), message: status.message().to_owned() }.into()
    }
}

/// What a parent can see of a code.
fn byte(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// `Ok` for 0, else the code.
pub fn with(code: i32) -> anyhow::Result<()> {
    if byte(code) == 0 { Ok(()) } else { Err(Exit::silent(code)) }
}
