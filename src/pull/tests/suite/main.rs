//! Pulls from a loopback registry into a real store.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod failure;
mod image;
mod resume;
mod sharing;
mod world;
