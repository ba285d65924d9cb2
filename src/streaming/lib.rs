//! The CRI streaming server: exec, attach and port-forward over SPDY/3.1 and WebSocket.
//!
//! It knows the wire and nothing of containers: what a client asks for is done by a [`Runtime`]. A CRI call
//! registers a request and answers with its URL; the client comes to that URL once and the streams flow.

mod error;
mod options;
mod runtime;
mod server;
mod token;

pub use error::{Error, TokenError};
pub use options::{Options, TlsFiles};
pub use runtime::{
    AttachRequest, Control, Duplex, ExecRequest, ExitStatus, Failure, PortForwardRequest, Runtime, Session,
    TerminalSize,
};
pub use server::Server;
