//! What Exec and Attach ask alike.

use crate::error::Error;

/// `streams` are stdin, stdout and stderr.
pub fn check(container_id: &str, tty: bool, streams: [bool; 3]) -> Result<(), Error> {
    let [_, _, stderr] = streams;
    if container_id.is_empty() {
        return Err(Error::invalid("container_id", "is empty"));
    }
    if tty && stderr {
        return Err(Error::invalid("stderr", "is not there with tty: a terminal has one output"));
    }
    if !streams.contains(&true) {
        return Err(Error::invalid("stdin, stdout, stderr", "at least one must be true"));
    }
    Ok(())
}
