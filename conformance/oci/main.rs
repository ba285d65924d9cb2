//! `pinnace oci` as its callers use it. Most cases are named after those of runtime-tools' validation and youki's contest,
//! and ask the same.

#![allow(clippy::unwrap_used, missing_docs, missing_debug_implementations, reason = "all of this is tests")]

mod ground;
mod hooks;
mod inside;
mod kinds;
mod lifecycle;
mod resources;
