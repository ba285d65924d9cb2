//! Image configs as they are written, and images as they are shown. No store, no network, no containers.
//!
//! A config is bytes with a digest: what one tool wrote, another must be able to change without losing what it does not
//! know. So [`Config`] keeps unknown fields, and has those that only Docker knows (health check, ONBUILD, shell).

mod config;
mod inspect;

pub use config::{Config, Health, History, RootFs, Run, is_layer};
pub use inspect::{Facts, HistoryRow, history, inspect};
