//! The network on the real kernel. Every test has a network namespace of its own that plays the machine, so that
//! nothing of the machine they run on is touched. They need root.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod host_local;
mod host_ports;
mod lifecycle;
mod measure;
mod traffic;
mod world;
