//! Probes: startup, liveness and readiness, each by exec, HTTP, TCP and gRPC.
//!
//! One pod per mechanism has a container per kind, each with a switch that says whether its probe succeeds.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic_prost::ProstCodec;

use crate::ground::{Ground, busybox};

const KINDS: [(&str, u16); 3] = [("startup", 8081), ("readiness", 8082), ("liveness", 8083)];

/// How a mechanism is made to succeed and to fail.
struct Mechanism {
    /// The probe of a container that has this port.
    probe: fn(u16, &str) -> Value,
    /// Shell that runs once.
    begin: &'static str,
    /// Shell that runs ten times a second.
    repeat: &'static str,
    /// Services that a gRPC server says are fine; other mechanisms look for a file in the container.
    services: Option<Arc<Mutex<BTreeSet<String>>>>,
}

impl Mechanism {
    fn container(&self, kind: &str, port: u16) -> Value {
        // Only a container that must live is well from its beginning.
        let at_first = if kind == "liveness" { "touch /www/health" } else { "" };
        let script = format!(
            "mkdir -p /www; {at_first}\ntrap 'exit 0' TERM\nserver=\nport={port}\n{}\n\
             while :; do\n{}\nsleep 0.1\ndone",
            self.begin, self.repeat
        );
        let mut container = busybox(kind, &script);
        let mut probe = (self.probe)(port, kind);
        probe["periodSeconds"] = 1.into();
        probe["timeoutSeconds"] = 5.into();
        probe["failureThreshold"] = if kind == "startup" { 200 } else { 1 }.into();
        container[format!("{kind}Probe")] = probe;
        container
    }

    async fn switch(&self, ground: &Ground, pod: &str, kind: &str, on: bool) {
        match (&self.services, on) {
            (Some(services), true) => drop(services.lock().unwrap().insert(kind.into())),
            (Some(services), false) => drop(services.lock().unwrap().remove(kind)),
            (None, true) => drop(ground.sh(pod, kind, "touch /www/health").await),
            (None, false) => drop(ground.sh(pod, kind, "rm /www/health").await),
        }
    }
}

async fn every_kind(ground: &Ground, pod: &str, mechanism: &Mechanism) {
    let containers: Vec<_> = KINDS.iter().map(|&(kind, port)| mechanism.container(kind, port)).collect();
    ground.deploy(pod, json!({ "containers": containers })).await;
    let running = |seen: &crate::ground::Seen| KINDS.iter().all(|(kind, _)| seen.running(kind)).then_some(());
    ground.until(pod, "all containers running", running).await;
    let server = match &mechanism.services {
        Some(services) => Some(serve_health(ground, pod, services.clone()).await),
        None => None,
    };

    // Neither has been switched on.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = ground.now(pod);
    assert_eq!(seen.container("startup")["started"], false, "{pod}: {seen:?}");
    assert!(!seen.ready("startup") && !seen.ready("readiness"), "{pod}: {seen:?}");
    mechanism.switch(ground, pod, "startup", true).await;
    mechanism.switch(ground, pod, "readiness", true).await;
    ground.until(pod, "started", |seen| (seen.container("startup")["started"] == true).then_some(())).await;
    ground.until(pod, "ready", |seen| (seen.ready("startup") && seen.ready("readiness")).then_some(())).await;
    // Startup probes are over; readiness is asked on.
    mechanism.switch(ground, pod, "startup", false).await;
    mechanism.switch(ground, pod, "readiness", false).await;
    ground.until(pod, "not ready any more", |seen| (!seen.ready("readiness")).then_some(())).await;
    assert!(ground.now(pod).ready("startup"), "{pod}");

    let first = ground.now(pod).id("liveness");
    mechanism.switch(ground, pod, "liveness", false).await;
    ground.until(pod, "a restart", |seen| (seen.restarts("liveness") >= 1).then_some(())).await;
    if mechanism.services.is_some() {
        mechanism.switch(ground, pod, "liveness", true).await;
    }
    let seen = ground
        .until(pod, "the container again", |seen| {
            (seen.running("liveness") && seen.last("liveness").is_some()).then(|| seen.clone())
        })
        .await;
    assert_ne!(seen.id("liveness"), first, "{pod}");
    for kind in ["startup", "readiness"] {
        assert_eq!(seen.restarts(kind), 0, "{pod}: only the container whose liveness probe fails: {seen:?}");
    }
    drop(server);
    ground.remove(pod).await;
}

pub async fn exec_probes_of_every_kind(ground: &Ground) {
    let mechanism = Mechanism {
        probe: |_, _| json!({ "exec": { "command": ["test", "-e", "/www/health"] } }),
        begin: "",
        repeat: "",
        services: None,
    };
    every_kind(ground, "probe-exec", &mechanism).await;
}

pub async fn http_probes_of_every_kind(ground: &Ground) {
    let mechanism = Mechanism {
        probe: |port, _| json!({ "httpGet": { "path": "/health", "port": port } }),
        begin: "httpd -f -p $port -h /www &",
        repeat: "",
        services: None,
    };
    every_kind(ground, "probe-http", &mechanism).await;
}

pub async fn tcp_probes_of_every_kind(ground: &Ground) {
    let mechanism = Mechanism {
        probe: |port, _| json!({ "tcpSocket": { "port": port } }),
        begin: "",
        // Listens while there is the file.
        repeat: "if [ -e /www/health ]; then\n[ -n \"$server\" ] || { httpd -f -p $port -h /www & server=$!; }\n\
                 elif [ -n \"$server\" ]; then kill $server; wait $server || :; server=; fi",
        services: None,
    };
    every_kind(ground, "probe-tcp", &mechanism).await;
}

pub async fn grpc_probes_of_every_kind(ground: &Ground) {
    let mechanism = Mechanism {
        probe: |_, kind| json!({ "grpc": { "port": GRPC_PORT, "service": kind } }),
        begin: "",
        repeat: "",
        services: Some(Arc::new(Mutex::new(["liveness".to_string()].into()))),
    };
    every_kind(ground, "probe-grpc", &mechanism).await;
}

const GRPC_PORT: u16 = 9090;

/// A server that ends when this is dropped.
struct HealthServer(tokio::task::JoinHandle<()>);

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Serves `grpc.health.v1.Health` from this process, on a socket in the pod's network.
async fn serve_health(ground: &Ground, pod: &str, services: Arc<Mutex<BTreeSet<String>>>) -> HealthServer {
    let namespace = ground.sh(pod, "startup", "readlink /proc/self/ns/net").await;
    let listener = ground.world.in_network_named(namespace.trim(), || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, GRPC_PORT))?;
        listener.set_nonblocking(true).map(|()| listener)
    });
    let listener = listener.and_then(tokio::net::TcpListener::from_std).expect("listen in the pod");
    let server = tonic::transport::Server::builder().add_service(Health(services));
    HealthServer(tokio::spawn(async move {
        let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
    }))
}

#[derive(Clone)]
struct Health(Arc<Mutex<BTreeSet<String>>>);

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    /// 1 is SERVING, 2 is NOT_SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

type Boxed<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl UnaryService<HealthCheckRequest> for Health {
    type Response = HealthCheckResponse;
    type Future = Boxed<tonic::Response<HealthCheckResponse>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<HealthCheckRequest>) -> Self::Future {
        let serving = self.0.lock().unwrap().contains(&request.into_inner().service);
        let status = if serving { 1 } else { 2 };
        Box::pin(async move { Ok(tonic::Response::new(HealthCheckResponse { status })) })
    }
}

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl tower::Service<http::Request<Body>> for Health {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let health = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
            Ok(Grpc::new(codec).unary(health, request).await)
        })
    }
}
