//! The client against registries that behave, registries that do not, and a real one.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod auth;
mod debian;
mod fetch;
mod mirror;
mod registries;
mod resolve;
mod world;
