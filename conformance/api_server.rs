//! As much of an API server as `kubectl exec`, `attach` and `port-forward` need, for one pod. What upgrades goes byte for
//! byte to the URL that the runtime answers with, as the kubelet has it.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use pinnace_cri_api::v1::{AttachRequest, ExecRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::cri::Cri;
use crate::node::Node;
use crate::serve::{Serving, serve};
use crate::world::World;

/// More than the head of any request that kubectl makes.
const LONGEST_HEAD: usize = 64 << 10;

/// The pod, and its only container, as kubectl sees them.
#[derive(Clone, Debug)]
pub struct Served {
    /// Name of the pod, which is in the namespace `default`.
    pub name: String,
    /// Id of its sandbox.
    pub sandbox: String,
    /// Id of its container, which is called `main` and has a standard input.
    pub container: String,
    /// Whether that has a terminal.
    pub tty: bool,
}

/// A server, and where it listens in the world.
#[derive(Debug)]
pub struct ApiServer {
    /// `http://…`
    pub url: String,
    upgrades: Upgrades,
    _serving: Serving,
}

/// What clients asked to change to, in lower case.
type Upgrades = Arc<Mutex<BTreeSet<String>>>;

struct Connection {
    cri: Cri,
    upgrades: Upgrades,
    world: Arc<World>,
    pod: Served,
}

impl ApiServer {
    /// Serves a pod of a node, until it is dropped.
    pub fn start(node: &Node, pod: Served) -> ApiServer {
        let listener = node.world.in_network(|| {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
            listener.set_nonblocking(true).map(|()| listener)
        });
        let listener = listener.and_then(TcpListener::from_std).expect("listen in the world");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (socket, world, upgrades) = (node.daemon.socket.clone(), node.world.clone(), Upgrades::default());
        let seen = upgrades.clone();
        let serving = serve(listener, move |stream| {
            let (cri, world, pod, upgrades) = (Cri::new(&socket), world.clone(), pod.clone(), seen.clone());
            let connection = Connection { cri, upgrades, world, pod };
            async move { connection.serve(stream).await }
        });
        ApiServer { url, upgrades, _serving: serving }
    }

    /// What clients have asked to change to, such as `websocket`.
    pub fn upgrades(&self) -> Vec<String> {
        self.upgrades.lock().expect("no test panicked with it").iter().cloned().collect()
    }
}

impl Connection {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        while let Some(head) = head(&mut stream).await? {
            let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
            let target = line.split(' ').nth(1).unwrap_or_default();
            let url = Url::parse("http://localhost").and_then(|base| base.join(target));
            let url = url.map_err(|error| io::Error::other(format!("{target}: {error}")))?;
            let pod = format!("/api/v1/namespaces/default/pods/{}", self.pod.name);
            let Some(door) = url.path().strip_prefix(&pod).filter(|door| !door.is_empty()) else {
                respond(&mut stream, self.object(url.path() == pod, url.path())).await?;
                continue;
            };
            let lower = headers.to_lowercase();
            let upgrade = lower.lines().find_map(|line| line.strip_prefix("upgrade: "));
            let upgrade = upgrade.unwrap_or_default().trim().to_owned();
            self.upgrades.lock().expect("no test panicked with it").insert(upgrade);
            let streaming = self.streaming_url(door, &url).await.map_err(io::Error::other)?;
            let streaming = Url::parse(&streaming).map_err(io::Error::other)?;
            let address = streaming.socket_addrs(|| None)?;
            let address = address.first().copied().ok_or(io::ErrorKind::NotFound)?;
            let runtime = self.world.connect(address)?;
            runtime.set_nonblocking(true)?;
            let mut runtime = TcpStream::from_std(runtime)?;
            let method = line.split(' ').next().unwrap_or_default();
            let path = streaming.path();
            runtime.write_all(format!("{method} {path} HTTP/1.1\r\n{headers}").as_bytes()).await?;
            return copy_bidirectional(&mut stream, &mut runtime).await.map(drop);
        }
        Ok(())
    }

    /// What the runtime answers to the request that stands behind a subresource.
    async fn streaming_url(&self, door: &str, url: &Url) -> Result<String, tonic::Status> {
        let is = |name: &str| url.query_pairs().any(|(key, value)| key == name && value == "true");
        let container_id = self.pod.container.clone();
        let (stdin, stdout, stderr, tty) = (is("stdin"), is("stdout"), is("stderr"), is("tty"));
        match door {
            "/exec" => {
                let cmd = url.query_pairs().filter(|(key, _)| key == "command");
                let cmd = cmd.map(|(_, word)| word.into_owned()).collect();
                self.cri.exec_url(ExecRequest { container_id, cmd, tty, stdin, stdout, stderr }).await
            }
            "/attach" => {
                self.cri.attach_url(AttachRequest { container_id, stdin, tty, stdout, stderr }).await
            }
            "/portforward" => self.cri.port_forward_url(&self.pod.sandbox, &[]).await,
            _ => Err(tonic::Status::not_found(format!("{door} is no subresource"))),
        }
    }

    fn object(&self, is_pod: bool, path: &str) -> Option<Value> {
        if is_pod {
            let container = json!({ "name": "main", "image": "busybox", "stdin": true, "tty": self.pod.tty });
            return Some(json!({
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": { "name": self.pod.name, "namespace": "default" },
                "spec": { "containers": [container] },
                "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
            }));
        }
        match path {
            "/version" => Some(json!({ "major": "1", "minor": "32", "gitVersion": "v1.32.0" })),
            "/api" => Some(json!({ "kind": "APIVersions", "versions": ["v1"] })),
            "/apis" => Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
            "/api/v1" => Some(json!({
                "kind": "APIResourceList",
                "groupVersion": "v1",
                "resources": [{
                    "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "shortNames": ["po"],
                    "verbs": ["get", "list"],
                }],
            })),
            _ => None,
        }
    }
}

/// The head of the next request with its empty line; `None` at the end. Nothing behind it is taken from the stream.
async fn head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if head.len() == LONGEST_HEAD || stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.extend(byte);
    }
    String::from_utf8(head).map(Some).map_err(io::Error::other)
}

async fn respond(stream: &mut TcpStream, object: Option<Value>) -> io::Result<()> {
    let status = if object.is_some() { "200 OK" } else { "404 Not Found" };
    let missing = || json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 });
    let body = object.unwrap_or_else(missing).to_string();
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).await
}
