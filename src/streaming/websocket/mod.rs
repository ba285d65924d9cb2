//! The WebSocket protocols: channels in messages, and SPDY in messages.
//!
//! A WebSocket has no flow control of its own either: see [`crate::spdy`] for what that means. The library answers
//! pings while messages are read.

pub mod channel;
pub(crate) mod connection;
pub(crate) mod port_forward;
pub(crate) mod remote_command;
pub(crate) mod tunnel;

use channel::Encoding;

use crate::remote_command::status::StatusFormat;

/// SPDY for port-forward, in binary messages.
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// One of the channel protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// What the client asks for; nothing at all is the oldest.
    pub name: &'static str,
    pub encoding: Encoding,
    pub format: StatusFormat,
}

/// Exec and attach.
pub(crate) const REMOTE_COMMAND: [Dialect; 6] = [
    Dialect { name: "v5.channel.k8s.io", encoding: Encoding::BinaryWithClose, format: StatusFormat::Json },
    Dialect { name: "v4.channel.k8s.io", encoding: Encoding::Binary, format: StatusFormat::Json },
    Dialect { name: "v4.base64.channel.k8s.io", encoding: Encoding::Base64, format: StatusFormat::Json },
    Dialect { name: "channel.k8s.io", encoding: Encoding::Binary, format: StatusFormat::Text },
    Dialect { name: "base64.channel.k8s.io", encoding: Encoding::Base64, format: StatusFormat::Text },
    Dialect { name: "", encoding: Encoding::Binary, format: StatusFormat::Text },
];

/// Port-forward with the ports fixed by the request.
pub(crate) const PORT_FORWARD: [Dialect; 3] = [
    Dialect { name: "v4.channel.k8s.io", encoding: Encoding::Binary, format: StatusFormat::Text },
    Dialect { name: "v4.base64.channel.k8s.io", encoding: Encoding::Base64, format: StatusFormat::Text },
    Dialect { name: "", encoding: Encoding::Binary, format: StatusFormat::Text },
];
