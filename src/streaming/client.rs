//! One client's connection: its HTTP request, and what that is upgraded to.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::link::Link;
use crate::options::Options;
use crate::remote_command::Command;
use crate::runtime::{PortForwardRequest, Runtime};
use crate::socket::Socket;
use crate::spdy::connection::{Connection, Limits};
use crate::token::{Request, Tokens};
use crate::upgrade::{Answer, Protocol, negotiate};
use crate::websocket::tunnel;
use crate::{port_forward, remote_command, websocket};

/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest request that is read.
const MAX_REQUEST_LENGTH: usize = 64 * 1024;

/// Most headers that a request may have.
const MAX_HEADERS: usize = 100;

/// What every connection shares.
pub(crate) struct Service {
    pub tokens: Arc<Tokens>,
    pub runtime: Arc<dyn Runtime>,
    pub options: Options,
    pub hang_up: CancellationToken,
    pub tasks: TaskTracker,
}

/// An accepted request on its way to its session.
struct Accepted {
    request: Request,
    protocol: Protocol,
    upgrade: OnUpgrade,
}

/// Answers the client's one request; runs the session to its end if the answer is an upgrade.
pub(crate) async fn serve(socket: Socket, service: Arc<Service>) {
    let accepted: Mutex<Option<Accepted>> = Mutex::new(None);
    let answer = service_fn(|mut request: http::Request<Incoming>| {
        let answer = match accept(&service, &mut request) {
            Ok((session, answer)) => {
                *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                answer
            }
            Err(refusal) => refusal,
        };
        std::future::ready(Ok::<_, Infallible>(response(answer)))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_REQUEST_LENGTH)
        .max_headers(MAX_HEADERS);
    let connection = http.serve_connection(TokioIo::new(socket), answer).with_upgrades();
    let served = tokio::select! {
        served = connection => served,
        () = service.hang_up.cancelled() => return,
    };
    if let Err(error) = served {
        tracing::debug!(%error, "streaming request cannot be served");
    }
    let Some(Accepted { request, protocol, upgrade }) =
        accepted.into_inner().unwrap_or_else(PoisonError::into_inner)
    else {
        return;
    };
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "streaming connection cannot be upgraded"),
    };
    let Ok(Parts { io, read_buf, .. }) = Upgraded::downcast::<TokioIo<Socket>>(upgraded) else { return };
    let activity = session(io.into_inner(), read_buf.to_vec(), request, protocol, &service);
    Box::pin(activity).await;
}

/// Looks the request up and uses its token up, unless it is refused: a refused client may come again.
fn accept(service: &Service, request: &mut http::Request<Incoming>) -> Result<(Accepted, Answer), Answer> {
    let unknown =
        || Answer::refusal(StatusCode::NOT_FOUND, "no such streaming request: unknown, used or too old");
    let path = request.uri().path().to_owned();
    let (segment, token) =
        path.strip_prefix('/').and_then(|path| path.split_once('/')).ok_or_else(unknown)?;
    let wanted = service.tokens.look_up(segment, token).ok_or_else(unknown)?;
    let (protocol, answer) = negotiate(&wanted, request.method(), request.headers())?;
    if !service.tokens.spend(token) {
        return Err(unknown());
    }
    Ok((Accepted { request: wanted, protocol, upgrade: hyper::upgrade::on(request) }, answer))
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let Answer { status, headers, text } = answer;
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().append(name, value);
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    response
}

/// Runs a session to its end, which comes at the latest when nothing has moved for the idle time.
async fn session(io: Socket, buffered: Vec<u8>, request: Request, protocol: Protocol, service: &Service) {
    let lost = service.hang_up.child_token();
    let _guard = lost.clone().drop_guard();
    let (link, outbound) = Link::new(lost.clone());
    let idle = {
        let (activity, limit, lost) = (link.activity.clone(), service.options.idle_timeout, lost.clone());
        async move {
            activity.idle(limit).await;
            lost.cancel();
        }
    };
    let Options { stream_creation_timeout, drain, stall_timeout, .. } = service.options;
    let runtime = &*service.runtime;
    let running = async {
        match (protocol, request) {
            (Protocol::RemoteCommandSpdy(version), request) => {
                let Some(command) = command(request) else { return };
                let probe = io.probe();
                let limits = Limits { stall: None };
                let connection = Connection::open(io, buffered, probe, limits, link, outbound);
                remote_command::spdy::serve(
                    connection,
                    command,
                    version,
                    runtime,
                    stream_creation_timeout,
                    drain,
                )
                .await;
            }
            (Protocol::RemoteCommandWebSocket(dialect), request) => {
                let Some(command) = command(request) else { return };
                websocket::remote_command::serve(
                    io,
                    buffered,
                    (link, outbound),
                    command,
                    dialect,
                    runtime,
                    drain,
                )
                .await;
            }
            (Protocol::PortForwardWebSocket(dialect), Request::PortForward(request)) => {
                websocket::port_forward::serve(io, buffered, (link, outbound), request, dialect, runtime)
                    .await;
            }
            (protocol, Request::PortForward(PortForwardRequest { sandbox_id, .. })) => {
                let probe = io.probe();
                let limits = Limits { stall: Some(stall_timeout) };
                let runtime = service.runtime.clone();
                if protocol == Protocol::PortForwardTunnel {
                    let (inner, carrier) = tunnel::open(io, buffered, lost.clone()).await;
                    let connection = Connection::open(inner, Vec::new(), probe, limits, link, outbound);
                    port_forward::spdy::serve(connection, sandbox_id, runtime, stream_creation_timeout).await;
                    let _ = carrier.await;
                } else {
                    let connection = Connection::open(io, buffered, probe, limits, link, outbound);
                    port_forward::spdy::serve(connection, sandbox_id, runtime, stream_creation_timeout).await;
                }
            }
            (
                Protocol::PortForwardSpdy | Protocol::PortForwardTunnel | Protocol::PortForwardWebSocket(_),
                _,
            ) => {}
        }
    };
    // The session is never dropped: once its client is lost it ends by itself, after it has hung up the process.
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => return,
        () = idle => {}
    }
    running.await;
}

fn command(request: Request) -> Option<Command> {
    match request {
        Request::Exec(request) => Some(Command::Exec(request)),
        Request::Attach(request) => Some(Command::Attach(request)),
        Request::PortForward(_) => None,
    }
}
