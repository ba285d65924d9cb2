//! The plugins executed natively against the plugins' own programs, on the real kernel: the same configurations, what
//! each leaves in the kernel and on disk, what passes, and that either removes what the other made.
//!
//! The programs are Debian's containernetworking-plugins; the other ends are `ip`, `bridge`, `tc`, `iptables-save`. Every
//! run has a machine of its own. They need root.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod cases;
mod executor;
mod measure;
mod snapshot;
#[path = "../kernel/world.rs"]
#[allow(dead_code)]
mod world;
