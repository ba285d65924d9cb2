//! Dockerfiles: what they say. Nothing here touches a file, a network or a container.
//!
//! ```text
//! text ──[parse]──► instructions ──[command]──► commands ──[stages]──► what has to be built for a target, and on what it waits
//!        directives, continuations,   typed, by keyword      FROM, ARG before FROM, AS, --from
//!        heredocs, flags
//! command + scope ──[expand]──► words without variables      command + run config ──[apply]──► run config
//! .dockerignore ──[ignore]──► which paths are in the context
//! ```
//! The rules are BuildKit's, for that is what Dockerfiles are tested with; where it is lax by accident this is too, because files
//! out there rely on it. Every error carries the lines that it is about ([`Error::shown`]).

pub mod apply;
pub mod command;
mod error;
pub mod expand;
pub mod ignore;
pub mod parse;
pub mod pattern;
pub mod stages;

pub use command::Command;
pub use error::{Error, excerpt};
pub use expand::Scope;
pub use parse::{Dockerfile, Heredoc, Instruction};
pub use stages::{Base, Plan, Stage};
