//! The OCI distribution client: references, hosts, authentication, fetch.

pub mod auth;
mod challenge;
mod dns;
pub mod error;
pub mod hosts;
pub mod manifest;
mod origin;
mod platform;
pub mod reference;
mod tls;

pub use auth::{Auth, AuthFields};
pub use error::{Error, ErrorKind};
pub use manifest::Descriptor;
pub use platform::Platform;
pub use reference::Reference;
