//! What an operator can set.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Files of the server's TLS. They are read again when they change, without a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain in PEM, the server's own first.
    pub certificate: PathBuf,
    /// The certificate's private key in PEM.
    pub key: PathBuf,
    /// Authorities in PEM, one of which must have signed the certificate of every client. Without it clients
    /// need none.
    pub client_authorities: Option<PathBuf>,
}

/// Where the server listens and what bounds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Host name or address in the URLs. By default the listening address, or loopback if that is a wildcard.
    pub public_host: Option<String>,
    /// Serve TLS; plain text without.
    pub tls: Option<TlsFiles>,
    /// How long a URL can be used after it was given out.
    pub token_life: Duration,
    /// How many URLs may be unused at a time.
    pub max_tokens: usize,
    /// How long a client may take to open the streams it asked for.
    pub stream_creation_timeout: Duration,
    /// A session without a byte in either direction ends after this time.
    pub idle_timeout: Duration,
    /// How many connections there may be at a time.
    pub max_connections: usize,
    /// After a process has ended, how long its output may stay silent before it is taken to be complete: a
    /// grandchild can hold it open for ever.
    pub drain: Duration,
    /// While one connection of a port-forward does not take its bytes, the others of the same client wait. After
    /// this time without progress it is reset for the sake of the others.
    pub stall_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            public_host: None,
            tls: None,
            token_life: Duration::from_secs(60),
            max_tokens: 1000,
            stream_creation_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            max_connections: 1000,
            drain: Duration::from_secs(2),
            stall_timeout: Duration::from_secs(30),
        }
    }
}
