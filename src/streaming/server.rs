//! Listening, and the URLs that clients come to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{self, Service};
use crate::error::{Error, TokenError};
use crate::options::Options;
use crate::runtime::{AttachRequest, ExecRequest, PortForwardRequest, Runtime};
use crate::socket::{self, Socket};
use crate::tls::Tls;
use crate::token::{Request, Tokens};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept (no descriptors left), how long the next waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After the grace, how long hung up sessions may take to end.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(5);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// A listening server. Dropping it hangs up every session; [`Server::shutdown`] is the orderly way.
pub struct Server {
    address: SocketAddr,
    base: String,
    tokens: Arc<Tokens>,
    /// Cancelled first: no more clients.
    closing: CancellationToken,
    /// Cancelled last: sessions end.
    hang_up: CancellationToken,
    tasks: TaskTracker,
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
        let tls = options.tls.clone().map(Tls::read).transpose()?;
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let base = base_url(&options, address);
        let tokens = Arc::new(Tokens::new(options.token_life, options.max_tokens));
        let (closing, hang_up, tasks) =
            (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let service = Arc::new(Service {
            tokens: tokens.clone(),
            runtime,
            options,
            hang_up: hang_up.clone(),
            tasks: tasks.clone(),
        });
        tasks.spawn(accept(listener, tls, service, closing.clone()));
        Ok(Server { address, base, tokens, closing, hang_up, tasks })
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
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.hang_up.cancel();
        if tokio::time::timeout(HANG_UP_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = self.tasks.len(), "streaming sessions do not end");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.cancel();
        self.hang_up.cancel();
    }
}

async fn accept(listener: TcpListener, tls: Option<Tls>, service: Arc<Service>, closing: CancellationToken) {
    let places = Arc::new(Semaphore::new(service.options.max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closing.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "streaming connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(
                limit = service.options.max_connections,
                "streaming connection refused, too many are open"
            );
            refuse(stream);
            continue;
        };
        if let Err(error) = socket::prepare(&stream) {
            tracing::debug!(%error, "streaming connection cannot be set up");
            continue;
        }
        let acceptor = tls.as_ref().map(Tls::acceptor);
        let task = service.clone();
        service.tasks.spawn(async move {
            let socket = match acceptor {
                None => Socket::Plain(stream),
                Some(acceptor) => {
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => Socket::Tls(Box::new(stream)),
                        Ok(Err(error)) => return tracing::debug!(%error, "streaming client's TLS fails"),
                        Err(_) => return tracing::debug!("streaming client's TLS takes too long"),
                    }
                }
            };
            client::serve(socket, task).await;
            drop(place);
        });
    }
}

/// Says why, as far as the socket takes it at once.
fn refuse(mut stream: TcpStream) {
    let _ = futures_util::FutureExt::now_or_never(stream.write_all(FULL));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_can_be_dialled() {
        let base = |listen: &str, public_host: Option<&str>| {
            let options = Options { public_host: public_host.map(str::to_owned), ..Options::default() };
            base_url(&options, listen.parse().unwrap())
        };
        assert_eq!(base("127.0.0.1:80", None), "http://127.0.0.1:80");
        assert_eq!(base("0.0.0.0:80", None), "http://127.0.0.1:80");
        assert_eq!(base("[::]:80", None), "http://[::1]:80");
        assert_eq!(base("[fe80::1]:80", None), "http://[fe80::1]:80");
        assert_eq!(base("0.0.0.0:80", Some("node.example")), "http://node.example:80");
        assert_eq!(base("0.0.0.0:80", Some("2001:db8::1")), "http://[2001:db8::1]:80");
    }
}
