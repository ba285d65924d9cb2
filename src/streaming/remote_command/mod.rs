//! Exec and attach: a process's streams to a client's, and the status after the last byte.

pub mod resize;
mod session;
pub(crate) mod spdy;
pub(crate) mod status;

pub(crate) use session::{Command, Ends, run};
