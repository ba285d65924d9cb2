//! The part of SPDY/3.1 that Kubernetes speaks.
//!
//! The client opens every stream; the server answers, sends data and ends. Flow control by window is left out, as in
//! every peer: `SETTINGS` and `WINDOW_UPDATE` are accepted and ignored, and back-pressure is that of TCP.
//! [`frame`] and [`header_block`] parse bytes and do no I/O; `connection` reads and writes them.

pub(crate) mod connection;
mod dictionary;
pub mod frame;
pub mod header_block;
