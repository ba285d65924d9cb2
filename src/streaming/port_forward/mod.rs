//! Port-forward: a client's connections into a sandbox.

mod carry;
pub(crate) mod spdy;

pub(crate) use carry::carry;
