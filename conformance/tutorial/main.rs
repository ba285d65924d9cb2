//! The tutorial: every docker command of a beginner's page on images and containers, typed at a terminal with `pinnace` in
//! the place of `docker`, and what the page promises about them.

#![allow(clippy::large_futures, reason = "a test awaits one future on a stack of its own")]
#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod commands;
mod promises;
mod shell;
