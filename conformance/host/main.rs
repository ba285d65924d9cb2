//! A real host: pinnace as a service of systemd, in the machine's own namespaces.
//!
//! These tests change the machine that they run on: units, cgroups, packages. They run where `PINNACE_HOST_TESTS` is set,
//! which `conformance/guest` does in a machine that is thrown away, one after the other (`--test-threads 1`).

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod driver;
mod ground;
mod package;
