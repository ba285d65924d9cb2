//! Every answer that a request can have.

use crate::{Ground, http};

const SPDY: [(&str, &str); 2] = [("Connection", "keep-alive, Upgrade"), ("Upgrade", "spdy/3.1")];
const WEB_SOCKET: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

async fn answer(url: &str, method: &str, headers: &[&[(&str, &str)]]) -> http::Response {
    http::request(url, method, &headers.concat(), b"").await.1
}

#[tokio::test]
async fn spdy_takes_the_first_of_the_clients_versions_that_it_knows() {
    let ground = Ground::new().await;
    let version = "X-Stream-Protocol-Version";
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[(version, "v5.channel.k8s.io"), (version, "v4.channel.k8s.io")], "v4.channel.k8s.io"),
        (&[(version, "v5.channel.k8s.io, v3.channel.k8s.io,v4.channel.k8s.io")], "v3.channel.k8s.io"),
        (&[(version, "v2.channel.k8s.io")], "v2.channel.k8s.io"),
        (&[(version, "channel.k8s.io")], "channel.k8s.io"),
    ];
    for (offered, chosen) in cases {
        for method in ["POST", "GET"] {
            let response = answer(&ground.exec("cat", "io"), method, &[&SPDY, offered]).await;
            assert_eq!(response.status, 101);
            assert_eq!(response.values("x-stream-protocol-version"), [chosen]);
            assert_eq!(response.values("upgrade"), ["SPDY/3.1"]);
            assert_eq!(response.values("connection"), ["Upgrade"]);
        }
    }
}

#[tokio::test]
async fn unknown_versions_are_told_the_known_ones() {
    let ground = Ground::new().await;
    let url = ground.exec("cat", "io");
    let offered = [("X-Stream-Protocol-Version", "v9.channel.k8s.io")];
    let response = answer(&url, "POST", &[&SPDY, &offered]).await;
    assert_eq!(response.status, 403);
    assert_eq!(
        response.values("x-accepted-stream-protocol-versions"),
        ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
    );
    let offered = [("Sec-WebSocket-Protocol", "v9.channel.k8s.io")];
    assert_eq!(answer(&url, "GET", &[&WEB_SOCKET, &offered]).await.status, 403);
    assert_eq!(answer(&url, "POST", &[&SPDY]).await.status, 400, "no version at all");
    assert_eq!(answer(&url, "POST", &[]).await.status, 400, "no upgrade");
    assert_eq!(answer(&url, "POST", &[&SPDY[1..], &offered]).await.status, 400, "no Connection: Upgrade");
    assert_eq!(answer(&url, "DELETE", &[&SPDY, &offered]).await.status, 405);
    assert_eq!(answer(&url, "POST", &[&WEB_SOCKET]).await.status, 405);
    assert_eq!(answer(&url, "GET", &[&WEB_SOCKET[..2]]).await.status, 426);
    assert_eq!(answer(&url, "GET", &[&WEB_SOCKET[..3]]).await.status, 400, "no key");
    // The token survives refusals, and works exactly once.
    let offered = [("X-Stream-Protocol-Version", "v4.channel.k8s.io")];
    assert_eq!(answer(&url, "POST", &[&SPDY, &offered]).await.status, 101);
    assert_eq!(answer(&url, "POST", &[&SPDY, &offered]).await.status, 404);
    let wrong = ground.exec("cat", "io").replace("/exec/", "/attach/");
    assert_eq!(answer(&wrong, "POST", &[&SPDY, &offered]).await.status, 404);
    let longer = format!("{}/x", ground.exec("cat", "io"));
    assert_eq!(answer(&longer, "POST", &[&SPDY, &offered]).await.status, 404);
}

#[tokio::test]
async fn web_socket_takes_the_first_of_the_clients_protocols_that_it_knows() {
    let ground = Ground::new().await;
    for (offered, chosen) in [
        ("v5.channel.k8s.io", Some("v5.channel.k8s.io")),
        ("v9.channel.k8s.io, v4.channel.k8s.io", Some("v4.channel.k8s.io")),
        ("v4.base64.channel.k8s.io", Some("v4.base64.channel.k8s.io")),
        ("base64.channel.k8s.io,channel.k8s.io", Some("base64.channel.k8s.io")),
        ("channel.k8s.io", Some("channel.k8s.io")),
        ("", None),
    ] {
        let offered = [("Sec-WebSocket-Protocol", offered)];
        let headers: &[_] = if chosen.is_some() { &offered } else { &[] };
        let response = answer(&ground.exec("cat", "io"), "GET", &[&WEB_SOCKET, headers]).await;
        assert_eq!(response.status, 101);
        assert_eq!(response.values("sec-websocket-protocol"), chosen.as_slice());
        // The example of RFC 6455, section 1.3.
        assert_eq!(response.values("sec-websocket-accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
        assert!(response.values("sec-websocket-extensions").is_empty());
    }
}

#[tokio::test]
async fn port_forward_knows_its_own_protocols() {
    let ground = Ground::new().await;
    let url = ground.port_forward(&[]);
    let spdy = |name| [("X-Stream-Protocol-Version", name)];
    let response = answer(&url, "POST", &[&SPDY, &spdy("v4.channel.k8s.io")]).await;
    assert_eq!(response.status, 403);
    assert_eq!(response.values("x-accepted-stream-protocol-versions"), ["portforward.k8s.io"]);
    let channels = [("Sec-WebSocket-Protocol", "v4.channel.k8s.io")];
    assert_eq!(answer(&url, "GET", &[&WEB_SOCKET, &channels]).await.status, 400, "no ports");
    assert_eq!(answer(&url, "POST", &[&SPDY, &spdy("portforward.k8s.io")]).await.status, 101);
    let tunnel = [("Sec-WebSocket-Protocol", "SPDY/3.1+portforward.k8s.io")];
    let response = answer(&ground.port_forward(&[]), "GET", &[&WEB_SOCKET, &tunnel]).await;
    assert_eq!(response.status, 101);
    assert_eq!(response.values("sec-websocket-protocol"), ["SPDY/3.1+portforward.k8s.io"]);
}
