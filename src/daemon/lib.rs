//! `pinnace serve`: the CRI server.
//!
//! ```text
//! build/      Dockerfiles carried out
//! admin/      the same for the API of our own
//! cri/        a file per RPC: wire to our types and back            the only place that knows CRI messages
//! sandbox/    run, stop, remove a pod: record, network, monitor
//! container/  create, start, stop, remove, exec: snapshot, spec, plan
//! network/    the built-in network, or that of a CNI configuration
//! monitor     the other end of a pod's monitor
//! recover     memory from records and monitors, at start
//! node        what all of them work on
//! ```
//! The daemon plans; the monitors act. It never forks, and no thread of its runtime ever changes a namespace.

pub mod admin;
pub mod apparmor;
pub mod build;
pub mod clock;
pub mod config;
pub mod container;
pub mod cri;
pub mod error;
pub mod events;
pub mod handlers;
pub mod id;
pub mod image;
pub mod local;
mod logging;
pub mod monitor;
pub mod network;
pub mod node;
pub mod operation;
pub mod owner_map;
pub mod readiness;
pub mod record;
pub mod recover;
pub mod sandbox;
pub mod selinux;
pub mod serve;
pub mod socket;
pub mod state_lock;
pub mod stats;
pub mod streaming;
pub mod table;

pub use serve::serve;
