//! Plan, monitor and init: what runs beside and becomes a container.
//!
//! ```text
//! daemon ── client ──ToMonitor + descriptors──► monitor ──clone3──► init ──execve──► the user's program
//!                   ◄──FromMonitor────────────          ◄─control─
//! ```
//! [`plan`] and [`protocol`] are the contract, [`client`] is the daemon's half. The rest is the program
//! `pinnace-monitor`, one per pod (feature `monitor`, on by default; the daemon leaves it out).

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests look at files as anybody does"))]

pub mod client;
pub mod copy_tree;
mod failure;
pub mod hook;
pub mod namespaces;
mod packet;
pub mod plan;
pub mod protocol;

#[cfg(feature = "monitor")]
mod init;
#[cfg(feature = "monitor")]
mod log;
#[cfg(feature = "monitor")]
pub mod monitor;
#[cfg(feature = "monitor")]
mod procfs;
#[cfg(feature = "monitor")]
mod slots;
