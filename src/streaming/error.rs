//! Why the server cannot be started, and why it gives out no URL.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// A TLS file cannot be read, or holds nothing of its kind.
    #[error("read {path}")]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A TLS file cannot be looked at.
    #[error("look at {path}")]
    TlsFileStatus {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Certificate, key and authorities are no usable set.
    #[error("use the certificate {certificate}")]
    TlsSet {
        /// The certificate's file.
        certificate: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities can verify nobody.
    #[error("use the client authorities {path}")]
    TlsAuthorities {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        source: rustls::server::VerifierBuilderError,
    },
}

/// Why no URL can be given out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too many URLs were given out and not used: the gRPC code is `RESOURCE_EXHAUSTED`.
    #[error("{limit} streaming requests wait for their client already")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// The kernel gives no random bytes.
    #[error("random bytes for a streaming URL: {errno}")]
    Random {
        /// What the kernel says.
        errno: rustix::io::Errno,
    },
}
