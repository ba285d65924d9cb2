//! The OCI distribution client: references, hosts, authentication, fetch.
//!
//! ```text
//! Reference ──► plan: servers in order ──► Repository
//!                 ▲ registries (registries.conf), hosts (certs.d), auth_file
//!                                               │ resolve: index → platform → manifest → config
//!                                               │ fetch_blob: bytes in order, resumed after cuts
//!                                               ▼
//!                exchange: redirects, challenges (token), deadlines, address policy (dns, origin)
//!                                               ▼
//!                               reqwest over rustls (tls), HTTP/1.1
//! ```
//!
//! Everything a registry sends is hostile until its digest says otherwise: bodies are bounded,
//! documents have one meaning ([`manifest`]), and a secret goes to the registry it is for
//! ([`auth`]), to its token service, and nowhere else.
//!
//! [`server`] is the other side: a small registry for loopback, used by the quickstart and by tests.

pub mod auth;
mod auth_file;
mod blob;
mod challenge;
mod client;
mod dns;
pub mod error;
mod exchange;
pub mod explain;
pub mod hosts;
pub mod manifest;
mod origin;
mod plan;
mod platform;
pub mod reference;
mod registries;
mod retry;
pub mod server;
mod tls;
mod token;
mod upload;

pub use auth::{Auth, AuthFields};
pub use blob::BlobStream;
pub use client::{Client, DOCUMENT_MAX, Options, Repository, Resolved};
pub use error::{Error, ErrorKind};
pub use explain::Explanation;
pub use manifest::Descriptor;
pub use platform::Platform;
pub use reference::Reference;
pub use upload::Source;
