//! The CRI streaming server: exec, attach and port-forward over SPDY/3.1 and WebSocket.
//!
//! It knows the wire and nothing of containers: what a client asks for is done by a [`Runtime`]. A CRI call
//! registers a request and answers with its URL; the client comes to that URL once and the streams flow.
//!
//! ```text
//! server ─► client ─► upgrade ──┬─ spdy::connection ──────┬─► remote_command   exec, attach ─┐
//! accept    HTTP      which     ├─ websocket::tunnel ─────┤                                  ├─► Runtime
//!                     protocol  └─ websocket::connection ─┴─► port_forward                  ─┘
//! ```
//!
//! A connection has one task that reads and one that writes. Between them and a session lie bounded queues of bytes
//! (`queue`, per stream) and of frames (`link`, per connection), so memory is flat whichever side is slow. A session
//! is never dropped: when its client is lost it notices, drops its streams and hangs the process up.
//!
//! What the client sends is parsed by functions without I/O, which are public for the fuzzers:
//! [`spdy::frame`], [`spdy::header_block`], [`websocket::channel`], [`remote_command::resize`].

mod client;
mod error;
mod link;
mod options;
mod port_forward;
mod queue;
pub mod remote_command;
mod runtime;
mod server;
mod socket;
pub mod spdy;
mod tls;
mod token;
mod upgrade;
pub mod websocket;

pub use error::{Error, TokenError};
pub use options::{Options, TlsFiles};
pub use runtime::{
    AttachRequest, Control, Duplex, ExecRequest, ExitStatus, Failure, PortForwardRequest, Runtime, Session,
    TerminalSize,
};
pub use server::Server;
