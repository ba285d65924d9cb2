//! Attacks that worked on the runtimes before this one, each tried for real: through the CRI, with hostile images,
//! requests, racing volumes and siblings, against a canary on the host.
//!
//! `README.md` here is the table: advisory, why it cannot happen, test.
//! `PINNACE_RACE_ROUNDS=20000 cargo test -p pinnace-conformance --test security race` runs the races for long.

#![allow(clippy::large_futures, reason = "a test awaits one future on a stack of its own")]
#![allow(clippy::unwrap_used, missing_docs, missing_debug_implementations, reason = "all of this is tests")]

mod apparmor;
mod daemon;
mod devices;
mod ground;
mod identity;
mod image;
mod labels;
mod race;
mod request;
mod table;
