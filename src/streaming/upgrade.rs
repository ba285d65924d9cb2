//! What a client's request turns the connection into, or why it does not.

use http::header::{
    ALLOW, CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::port_forward;
use crate::remote_command::spdy::Version;
use crate::token::Request;
use crate::websocket::{self, Dialect};

const SPDY: &str = "SPDY/3.1";
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What is spoken from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Protocol {
    RemoteCommandSpdy(Version),
    PortForwardSpdy,
    RemoteCommandWebSocket(Dialect),
    PortForwardWebSocket(Dialect),
    PortForwardTunnel,
}

/// An answer: its status, headers and text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub text: String,
}

impl Answer {
    pub fn refusal(status: StatusCode, text: impl Into<String>) -> Answer {
        Answer { status, headers: Vec::new(), text: text.into() }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Answer {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }
}

/// Decides about a request: a protocol with the answer that starts it, or a refusal.
pub(crate) fn negotiate(
    request: &Request,
    method: &Method,
    headers: &HeaderMap,
) -> Result<(Protocol, Answer), Answer> {
    let upgrades = values(headers, &CONNECTION).any(|value| value.eq_ignore_ascii_case("upgrade"));
    let asks_for =
        |name: &str| upgrades && values(headers, &UPGRADE).any(|value| value.eq_ignore_ascii_case(name));
    let (web_socket, spdy) = (asks_for("websocket"), asks_for(SPDY));
    if method != Method::GET && (web_socket || method != Method::POST) {
        let refusal = Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "the method is not allowed here");
        return Err(refusal.with(ALLOW, if web_socket { "GET" } else { "GET, POST" }));
    }
    if web_socket {
        negotiate_web_socket(request, headers)
    } else if spdy {
        negotiate_spdy(request, headers)
    } else {
        let text = "unable to upgrade: the request asks neither for SPDY/3.1 nor for a WebSocket";
        Err(Answer::refusal(StatusCode::BAD_REQUEST, text))
    }
}

fn negotiate_spdy(request: &Request, headers: &HeaderMap) -> Result<(Protocol, Answer), Answer> {
    let offered: Vec<_> = values(headers, &PROTOCOL_VERSION).collect();
    if offered.is_empty() {
        let text = "unable to upgrade: X-Stream-Protocol-Version is required";
        return Err(Answer::refusal(StatusCode::BAD_REQUEST, text));
    }
    let known: Vec<(&'static str, Protocol)> = match request {
        Request::PortForward(_) => vec![(port_forward::spdy::PROTOCOL, Protocol::PortForwardSpdy)],
        Request::Exec(_) | Request::Attach(_) => Version::ALL
            .iter()
            .map(|version| (version.name(), Protocol::RemoteCommandSpdy(*version)))
            .collect(),
    };
    let Some((name, protocol)) = choose(&offered, &known) else { return Err(unknown(&offered, &known)) };
    let answer = Answer::refusal(StatusCode::SWITCHING_PROTOCOLS, "")
        .with(CONNECTION, "Upgrade")
        .with(UPGRADE, SPDY)
        .with(PROTOCOL_VERSION, name);
    Ok((protocol, answer))
}

fn negotiate_web_socket(request: &Request, headers: &HeaderMap) -> Result<(Protocol, Answer), Answer> {
    if !values(headers, &SEC_WEBSOCKET_VERSION).any(|version| version == "13") {
        let refusal = Answer::refusal(
            StatusCode::UPGRADE_REQUIRED,
            "unable to upgrade: WebSocket version 13 is spoken",
        );
        return Err(refusal.with(SEC_WEBSOCKET_VERSION, "13"));
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        let text = "unable to upgrade: Sec-WebSocket-Key is required";
        return Err(Answer::refusal(StatusCode::BAD_REQUEST, text));
    };
    let known: Vec<(&'static str, Protocol)> = match request {
        Request::PortForward(_) => {
            let channels = websocket::PORT_FORWARD
                .iter()
                .map(|dialect| (dialect.name, Protocol::PortForwardWebSocket(*dialect)));
            [(websocket::TUNNEL, Protocol::PortForwardTunnel)].into_iter().chain(channels).collect()
        }
        Request::Exec(_) | Request::Attach(_) => websocket::REMOTE_COMMAND
            .iter()
            .map(|dialect| (dialect.name, Protocol::RemoteCommandWebSocket(*dialect)))
            .collect(),
    };
    let offered: Vec<_> = values(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    let chosen = if offered.is_empty() { choose(&[""], &known) } else { choose(&offered, &known) };
    let Some((name, protocol)) = chosen else { return Err(unknown(&offered, &known)) };
    if let (Protocol::PortForwardWebSocket(dialect), Request::PortForward(request)) = (&protocol, request) {
        let most = websocket::port_forward::most_ports(*dialect);
        if request.ports.is_empty() || request.ports.len() > most || request.ports.contains(&0) {
            let text = format!("unable to forward: this protocol needs 1 to {most} ports in the request");
            return Err(Answer::refusal(StatusCode::BAD_REQUEST, text));
        }
    }
    let mut answer = Answer::refusal(StatusCode::SWITCHING_PROTOCOLS, "")
        .with(CONNECTION, "Upgrade")
        .with(UPGRADE, "websocket");
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        answer.headers.push((SEC_WEBSOCKET_ACCEPT, accept));
    }
    if !name.is_empty() {
        answer = answer.with(SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok((protocol, answer))
}

/// The first of the client's that is known.
fn choose(offered: &[&str], known: &[(&'static str, Protocol)]) -> Option<(&'static str, Protocol)> {
    offered.iter().find_map(|offer| known.iter().find(|(name, _)| name == offer)).cloned()
}

fn unknown(offered: &[&str], known: &[(&'static str, Protocol)]) -> Answer {
    let offered: String = offered.join(", ").chars().take(256).collect();
    let mut refusal = Answer::refusal(
        StatusCode::FORBIDDEN,
        format!("unable to upgrade: none of the protocols is known: {offered}"),
    );
    for (name, _) in known.iter().filter(|(name, _)| !name.is_empty()) {
        refusal = refusal.with(ACCEPTED_VERSIONS, name);
    }
    refusal
}

/// The values of a header that may be repeated, or hold several behind commas.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}
