//! What all assertions share: a node whose kubelet runs static pods on pinnace, and what the kubelet says about them.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pinnace_conformance::cri::Cri;
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::PLAIN;
use pinnace_conformance::world::World;
use pinnace_cri_api::v1::{PodSandbox, PodSandboxState};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::kubelet::Kubelet;

/// The name of the node, which the kubelet adds to the names of its static pods.
pub const NODE: &str = "node";

/// How long what the kubelet is asked for may take, with many pods on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

/// The kubelet's HTTPS API, seen from inside of the world.
pub const API: &str = "https://127.0.0.1:10250";

/// The shared ground.
pub struct Ground {
    /// The kubelet; assertions that run side by side only write and remove manifests.
    pub kubelet: RwLock<Kubelet>,
    /// The node without its kubelet.
    pub node: RwLock<Node>,
    /// The machine.
    pub world: Arc<World>,
    said: Mutex<BTreeMap<String, Arc<Value>>>,
}

/// What the kubelet says about a pod.
#[derive(Clone, Debug)]
pub struct Seen(Arc<Value>);

impl Ground {
    /// Starts everything.
    pub fn start(program: &Path) -> Option<Arc<Ground>> {
        let node = Node::start()?;
        for image in ["busybox", "busybox-zstd", "nginx", "configured"] {
            node.push(image);
        }
        let world = Arc::clone(&node.world);
        let mut kubelet = Kubelet::new(Arc::clone(&world), program);
        kubelet.start(&kubelet.configuration(&node.daemon.socket));
        Some(Arc::new(Ground {
            kubelet: RwLock::new(kubelet),
            node: RwLock::new(node),
            world,
            said: Mutex::default(),
        }))
    }

    /// Asks the kubelet for its pods again and again; never ends.
    pub async fn watch(self: Arc<Ground>) {
        loop {
            let ground = Arc::clone(&self);
            let pods = tokio::task::spawn_blocking(move || ground.plain("/pods")).await.ok().flatten();
            // Without an answer the last one stands: the kubelet may be between two runs.
            if let Some(pods) = pods.and_then(|text| serde_json::from_str::<Value>(&text).ok()) {
                let items = pods["items"].as_array().cloned().unwrap_or_default();
                let named = items.into_iter().filter_map(|pod| {
                    let name =
                        pod["metadata"]["name"].as_str()?.strip_suffix(&format!("-{NODE}"))?.to_string();
                    Some((name, Arc::new(pod)))
                });
                *self.said.lock().unwrap() = named.collect();
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Stops the kubelet, does something, and starts it with a changed configuration. What it said before is forgotten.
    pub async fn restart_kubelet(&self, between: impl FnOnce(), change: impl FnOnce(&mut Value)) {
        let socket = self.node.read().await.daemon.socket.clone();
        let mut kubelet = self.kubelet.write().await;
        kubelet.stop();
        between();
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.said.lock().unwrap().clear();
        let mut configuration = kubelet.configuration(&socket);
        change(&mut configuration);
        kubelet.start(&configuration);
    }

    /// A client of the runtime.
    pub async fn cri(&self) -> Cri {
        self.node.read().await.cri.clone()
    }

    /// Deploys a pod. `spec` is completed by what all pods of this suite have: a short grace.
    pub async fn deploy(&self, name: &str, spec: Value) {
        self.deploy_with(name, json!({}), spec).await;
    }

    /// The same with more metadata.
    pub async fn deploy_with(&self, name: &str, metadata: Value, mut spec: Value) {
        let mut all = json!({ "name": name, "namespace": "default" });
        for (key, value) in metadata.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        if spec["terminationGracePeriodSeconds"].is_null() {
            spec["terminationGracePeriodSeconds"] = 2.into();
        }
        let manifest = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": all, "spec": spec });
        self.kubelet.read().await.write(name, &manifest);
    }

    /// Removes a pod's manifest and waits until nothing of the pod runs.
    pub async fn remove(&self, name: &str) {
        self.kubelet.read().await.remove(name);
        self.gone(name).await;
    }

    /// Waits until the kubelet has forgotten a pod and its sandbox is down. The kubelet removes what is down only once a
    /// minute.
    pub async fn gone(&self, name: &str) {
        let full = format!("{name}-{NODE}");
        let end = Instant::now() + LIMIT;
        loop {
            let pods = self.cri().await.pods().await.expect("ListPodSandbox");
            let ready = i32::from(PodSandboxState::SandboxReady);
            let is_left = |pod: &&PodSandbox| {
                pod.state == ready && pod.metadata.as_ref().is_some_and(|metadata| metadata.name == full)
            };
            let left: Vec<_> = pods.iter().filter(is_left).collect();
            if left.is_empty() && !self.said.lock().unwrap().contains_key(name) {
                return;
            }
            assert!(Instant::now() < end, "{name} does not go away: {left:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits for what the kubelet says about a pod.
    pub async fn until<T>(&self, name: &str, what: &str, mut look: impl FnMut(&Seen) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let seen = self.said.lock().unwrap().get(name).cloned().map(Seen);
            if let Some(answer) = seen.as_ref().and_then(&mut look) {
                return answer;
            }
            if Instant::now() >= end {
                let status = seen.map(|seen| serde_json::to_string_pretty(&seen.0["status"]));
                let status = status.transpose().ok().flatten().unwrap_or_default();
                panic!("{name}: not seen: {what}\n{status}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the kubelet says about a pod now.
    pub fn now(&self, name: &str) -> Seen {
        let seen = self.said.lock().unwrap().get(name).cloned();
        Seen(seen.unwrap_or_else(|| panic!("the kubelet knows no {name}")))
    }

    /// Waits until a pod is ready.
    pub async fn ready(&self, name: &str) -> Seen {
        self.until(name, "ready", |seen| seen.is("Ready").then(|| seen.clone())).await
    }

    /// Waits until all containers of a pod have ended for good.
    pub async fn ended(&self, name: &str) -> Seen {
        self.until(name, "an end", |seen| {
            ["Succeeded", "Failed"].contains(&seen.phase()).then(|| seen.clone())
        })
        .await
    }

    /// Deploys a pod of one busybox container and waits until it has ended; what it printed. It must succeed.
    pub async fn script(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut spec = json!({ "restartPolicy": "Never", "containers": [busybox("main", script)] });
        change(&mut spec);
        self.deploy(name, spec).await;
        let seen = self.ended(name).await;
        let output = self.output(name, "main");
        assert_eq!(seen.phase(), "Succeeded", "{name}: {output}\n{seen:?}");
        self.remove(name).await;
        output
    }

    /// What a container wrote, as the kubelet's API tells it.
    pub fn output(&self, name: &str, container: &str) -> String {
        self.get(&format!("/containerLogs/default/{name}-{NODE}/{container}"))
    }

    /// Runs a shell script in a container, by the runtime's ExecSync.
    pub async fn sh(&self, name: &str, container: &str, script: &str) -> String {
        let id = self.now(name).id(container);
        self.cri().await.sh(&id, script).await
    }

    /// GET from the kubelet's HTTPS API; must succeed.
    pub fn get(&self, path: &str) -> String {
        self.curl(&["--fail-with-body"], path)
            .unwrap_or_else(|(code, text)| panic!("GET {path}: {code}: {text}"))
    }

    /// JSON from the kubelet's HTTPS API.
    pub fn json(&self, path: &str) -> Value {
        let text = self.get(path);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("GET {path}: {error}: {text}"))
    }

    /// A request to the kubelet's HTTPS API with curl.
    pub fn curl(&self, arguments: &[&str], path: &str) -> Result<String, (i32, String)> {
        let mut command = self.world.command("curl");
        command.args(["--silent", "--show-error", "--insecure", "--noproxy", "*"]).args(arguments);
        let output = command.arg(format!("{API}{path}")).output().expect("run curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err((output.status.code().unwrap_or(-1), format!("{text}{errors}")))
    }

    /// GET from the kubelet's read-only port.
    pub fn plain(&self, path: &str) -> Option<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10255));
        let mut stream = self.world.connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {NODE}\r\n\r\n").ok()?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200 ").then(|| body.to_string())
    }

    /// Where the kubelet has the logs of a container.
    pub async fn log_directory(&self, name: &str, container: &str) -> PathBuf {
        let uid = self.now(name).0["metadata"]["uid"].as_str().unwrap_or_default().to_string();
        let pod = format!("default_{name}-{NODE}_{uid}");
        self.kubelet.read().await.logs().join(pod).join(container)
    }
}

impl Seen {
    /// `Running` and so on.
    pub fn phase(&self) -> &str {
        self.0["status"]["phase"].as_str().unwrap_or_default()
    }

    /// Whether a condition is true.
    pub fn is(&self, condition: &str) -> bool {
        let conditions = self.0["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|c| c["type"] == condition && c["status"] == "True")
    }

    /// The status of a container.
    pub fn container(&self, name: &str) -> &Value {
        let lists = ["containerStatuses", "initContainerStatuses"];
        let mut all = lists.iter().flat_map(|list| self.0["status"][list].as_array().into_iter().flatten());
        all.find(|status| status["name"] == name).unwrap_or(&Value::Null)
    }

    /// How often a container was started again.
    pub fn restarts(&self, name: &str) -> u64 {
        self.container(name)["restartCount"].as_u64().unwrap_or(0)
    }

    /// Whether a container is ready.
    pub fn ready(&self, name: &str) -> bool {
        self.container(name)["ready"] == true
    }

    /// Whether a container runs.
    pub fn running(&self, name: &str) -> bool {
        self.container(name)["state"]["running"].is_object()
    }

    /// How a container that does not run any more ended.
    pub fn terminated(&self, name: &str) -> Option<&Value> {
        let state = &self.container(name)["state"]["terminated"];
        state.is_object().then_some(state)
    }

    /// How the run before this one ended.
    pub fn last(&self, name: &str) -> Option<&Value> {
        let state = &self.container(name)["lastState"]["terminated"];
        state.is_object().then_some(state)
    }

    /// The id of a container in the runtime.
    pub fn id(&self, name: &str) -> String {
        let id = self.container(name)["containerID"].as_str().unwrap_or_default();
        id.strip_prefix("pinnace://").unwrap_or_else(|| panic!("{name}: container ID {id:?}")).to_string()
    }

    /// The pod's address.
    pub fn ip(&self) -> &str {
        self.0["status"]["podIP"].as_str().unwrap_or_default()
    }

    /// The whole object.
    pub fn object(&self) -> &Value {
        &self.0
    }
}

/// The reference of an image of the catalogue.
pub fn image(name: &str) -> String {
    format!("{PLAIN}/{name}:1")
}

/// A busybox container that runs a shell script.
pub fn busybox(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": image("busybox"), "command": ["sh", "-euc", script] })
}

/// A script that does nothing until it is told to end, and then ends at once.
pub const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

/// The same as a container.
pub fn idle(name: &str) -> Value {
    busybox(name, IDLE)
}
