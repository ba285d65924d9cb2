//! The monitor on the real kernel, through the client: every test starts a monitor of its own and runs busybox in it.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod attach;
mod attacks;
mod cgroups;
mod exec;
mod harness;
mod identity;
mod lifecycle;
mod logs;
mod rootfs;
