//! Networks of CNI configurations: executed by the daemon, by the reference plugins' programs, and by programs that do
//! whatever a program can do wrong.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pinnace_conformance::images::catalog::NGINX_PAGE;
use pinnace_conformance::images::debian;
use pinnace_conformance::node::{Node, Pod};
use pinnace_cri_api::v1::*;
use serde_json::{Value, json};
use tonic::Code;

use crate::network::{nginx, page};

/// Does what the pod's name says, and notes every call.
const ODD: &str = r#"#!/bin/sh
dir=${0%/*}
pod=${CNI_ARGS#*K8S_POD_NAME=}
pod=${pod%%;*}
cat >"$dir/$CNI_COMMAND-$pod.json"
echo "$CNI_ARGS" >"$dir/args-$pod"
echo "$CNI_COMMAND $pod $CNI_CONTAINERID" >>"$dir/calls"
result='{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],
 "ips":[{"address":"10.1.2.3/24","interface":0},{"address":"fd00::3/64","interface":0}]}'
case $CNI_COMMAND-$pod in
ADD-hang) sleep 300 ;;
ADD-garbage) echo 'eth0 is up' ;;
ADD-partial) printf '{"cniVersion":"1.0.0","ips":[{"addr' ;;
ADD-words) echo 'no route to the moon' >&2; exit 3 ;;
ADD-crash) echo "$result"; kill -KILL $$ ;;
ADD-nothing) echo '{"cniVersion":"1.0.0"}' ;;
ADD-held) while [ -e "$dir/hold" ]; do sleep 0.05; done; echo "$result" ;;
ADD-*) echo "$result" ;;
STATUS-*)
    [ ! -e "$dir/unable" ] || { echo '{"cniVersion":"1.1.0","code":51,"msg":"no addresses left"}'; exit 1; }
    ;;
DEL-*)
    [ ! -e "$dir/refuse" ] || { echo 'not today' >&2; exit 7; }
    [ ! -e "$dir/hang" ] || sleep 300
    ;;
esac
"#;

/// How long what is owed may take to be paid once it can be.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with directories for configurations and programs.
pub struct Ground {
    pub node: Node,
    dir: tempfile::TempDir,
}

impl Ground {
    /// `settings` are lines of `[cni]`; there is no configuration yet.
    pub fn start(mode: &str, settings: &str, programs: &[PathBuf]) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("pinnace-cni-").tempdir().unwrap();
        let (conf, bin) = (dir.path().join("conf"), dir.path().join("bin"));
        fs::create_dir(&conf).unwrap();
        fs::create_dir(&bin).unwrap();
        let mut bin_dirs = vec![bin];
        bin_dirs.extend_from_slice(programs);
        let section =
            format!("[cni]\nmode = {mode:?}\nconf_dirs = [{conf:?}]\nbin_dirs = {bin_dirs:?}\n{settings}\n");
        let node = Node::start_changed(|config| config.replace("[cni]\nmode = \"built-in\"\n", &section))?;
        Some(Self { node, dir })
    }

    /// A node whose network is the odd plugin, twice.
    fn odd(timeout: &str) -> Option<Self> {
        let ground = Self::start("cni", &format!("timeout = {timeout:?}"), &[])?;
        ground.install("odd");
        let plugins = json!([{"type": "odd"}, {"type": "odd", "capabilities": {
            "portMappings": true, "bandwidth": true, "dns": true, "cgroupPath": true,
            "io.kubernetes.cri.pod-annotations": true,
        }}]);
        ground.write(&list("1.0.0", plugins).to_string());
        Some(ground)
    }

    fn install(&self, name: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.bin(name);
        fs::write(&path, ODD).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.dir.path().join("bin").join(name)
    }

    /// Replaces the configuration as an installer does: under another name first.
    pub fn write(&self, text: &str) {
        let path = self.dir.path().join("conf/10-net.conflist");
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.bin("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn called(&self, operation: &str, pod: &str, id: &str) -> usize {
        let wanted = format!("{operation} {pod} {id}");
        self.calls().iter().filter(|call| call.starts_with(&wanted)).count()
    }

    /// Names of what DELs are owed for.
    pub fn owed(&self) -> BTreeSet<String> {
        names(&self.node.daemon.root.join("cni"))
    }

    async fn network_condition(&self) -> (RuntimeCondition, Value, String) {
        let request = StatusRequest { verbose: true };
        let answer = self.node.cri.runtime().status(request).await.unwrap().into_inner();
        let mut conditions = answer.status.unwrap().conditions.into_iter();
        let network = conditions.find(|condition| condition.r#type == "NetworkReady").unwrap();
        let config =
            answer.info.get("cniconfig").map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
        (network, config, answer.info.get("lastCNILoadStatus").cloned().unwrap_or_default())
    }

    async fn ips(&self, pod: &str) -> Vec<IpAddr> {
        let network = self.node.cri.pod_status(pod).await.unwrap().network.unwrap();
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        std::iter::once(network.ip).chain(more).map(|ip| ip.parse().unwrap()).collect()
    }
}

/// Bridge, addresses and host ports, as most nodes have them.
pub fn bridge(data: &Path) -> Value {
    let ipam = json!({
        "type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.77.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    list(
        "1.0.0",
        json!([
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]),
    )
}

/// Debian's programs of the reference plugins.
fn programs() -> Vec<PathBuf> {
    vec![debian::unpacked("containernetworking-plugins").join("usr/lib/cni")]
}

fn list(version: &str, plugins: Value) -> Value {
    json!({"cniVersion": version, "name": "net", "plugins": plugins})
}

/// The files of a directory that are not hidden.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bridge, addresses and host ports, executed natively or by programs; everything else is the same.
async fn bridge_with_ports(native: bool) {
    let programs = if native { Vec::new() } else { programs() };
    let Some(ground) = Ground::start("cni", &format!("native = {native}"), &programs) else { return };
    let node = &ground.node;
    let data = ground.dir.path().join("addresses");
    let given =
        || names(&data.join("net")).into_iter().filter(|name| name.starts_with("10.")).collect::<Vec<_>>();
    ground.write(&bridge(&data).to_string());
    let (condition, config, loaded) = ground.network_condition().await;
    assert!(condition.status, "{condition:?}");
    assert_eq!(
        (config["Networks"][0]["native"].as_bool(), loaded.as_str()),
        (Some(native), "OK"),
        "{config}"
    );

    let with_port = |config: &mut PodSandboxConfig| {
        config.port_mappings.push(PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: 80,
            host_port: 8080,
            host_ip: String::new(),
        });
    };
    // The bridge and the chains that all ports share are made once.
    let first = node.run_pod("first", with_port).await;
    node.remove(&first.id).await;
    let before = node.baseline().await;

    let image = node.image("nginx").await;
    let server = nginx(node, "server", with_port).await;
    let client = node.run_pod("client", |_| {}).await;
    let ips = ground.ips(&server.id).await;
    let [ip] = ips[..] else { panic!("{ips:?}") };
    assert!(ip.to_string().starts_with("10.77.0."), "{ip}");
    assert!(given().contains(&ip.to_string()), "{ip} is not among {:?}", given());
    assert_eq!((given().len(), ground.owed().len()), (2, 2));
    for address in [SocketAddr::new(ip, 80), "10.77.0.1:8080".parse().unwrap()] {
        assert_eq!(page(&node.world, address).as_deref(), Some(NGINX_PAGE), "from the node: {address}");
        let got = node.script(&client, &format!("wget -q -O - http://{address}/"), |_| {}).await;
        assert_eq!(got, NGINX_PAGE, "from a pod: {address}");
    }
    assert_eq!(node.script(&client, "ls /sys/class/net", |_| {}).await, "eth0\nlo\n");
    assert_eq!(node.script(&client, "cat /sys/class/net/lo/operstate", |_| {}).await, "unknown\n");

    node.cri.stop_pod(&server.id).await.unwrap();
    if native {
        // When its device has gone, which nobody waits for.
        eventually("the address is given back", || !given().contains(&ip.to_string())).await;
    }
    assert!(!given().contains(&ip.to_string()), "{ip} is still taken");
    assert!(node.world.connect("10.77.0.1:8080".parse().unwrap()).is_err(), "the port is still served");
    assert!(!node.world.sh("ip -o link").contains("pinnace0"), "the built-in bridge is there");
    node.remove(&server.id).await;
    node.remove(&client.id).await;
    node.cri.remove_image(&image).await.unwrap();
    eventually("all is given back", || given().is_empty() && ground.owed().is_empty()).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn standard_plugins_are_executed_natively() {
    bridge_with_ports(true).await;
}

#[tokio::test]
async fn standard_plugins_are_executed_as_programs() {
    bridge_with_ports(false).await;
}

#[tokio::test]
async fn a_chain_of_five_programs() {
    let Some(ground) = Ground::start("cni", "", &programs()) else { return };
    let node = &ground.node;
    let ipam = json!({
        "type": "host-local", "dataDir": ground.dir.path().join("addresses"),
        "ranges": [[{"subnet": "10.78.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
    });
    ground.write(
        &list(
            "1.0.0",
            json!([
                {"type": "ptp", "ipMasq": true, "ipam": ipam},
                {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
                {"type": "firewall", "backend": "iptables"},
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            ]),
        )
        .to_string(),
    );
    let change = |config: &mut PodSandboxConfig| {
        let mapping = PortMapping { container_port: 80, host_port: 8081, ..PortMapping::default() };
        config.port_mappings.push(mapping);
        for direction in ["ingress", "egress"] {
            config.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), "20M".into());
        }
    };
    // Chains that all pods share, and tables, are made once.
    let first = node.run_pod("first", change).await;
    node.remove(&first.id).await;
    let before = node.baseline().await;
    let (_, config, _) = ground.network_condition().await;
    assert_eq!(config["Networks"][0]["whyNotNative"], "no native plugin ptp", "{config}");

    let image = node.image("nginx").await;
    let server = nginx(node, "server", change).await;
    let [ip] = ground.ips(&server.id).await[..] else { panic!("more than one address") };
    for address in [SocketAddr::new(ip, 80), "10.78.0.1:8081".parse().unwrap()] {
        assert_eq!(page(&node.world, address).as_deref(), Some(NGINX_PAGE), "{address}");
    }
    node.image("busybox").await;
    let inside = node.script(&server, "cat /proc/sys/net/core/somaxconn", |_| {}).await;
    assert_eq!(inside, "500\n", "tuning");
    let forward = node.world.sh("iptables -S CNI-FORWARD");
    assert!(forward.contains(&format!("-d {ip}/32")), "firewall: {forward}");
    let queues = node.world.sh("tc qdisc show");
    assert_eq!(queues.matches("qdisc tbf").count(), 2, "bandwidth: {queues}");
    node.remove(&server.id).await;
    node.cri.remove_image(&image).await.unwrap();
    assert_eq!(ground.owed(), BTreeSet::new());
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn pods_on_a_link_of_the_node_by_macvlan() {
    let Some(ground) = Ground::start("cni", "", &programs()) else { return };
    let node = &ground.node;
    node.world.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up");
    let ipam = json!({
        "type": "host-local", "dataDir": ground.dir.path().join("addresses"),
        "ranges": [[{"subnet": "10.79.0.0/24"}], [{"subnet": "fd79::/64"}]],
    });
    let macvlan = json!({"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": ipam});
    ground.write(&list("0.3.1", json!([macvlan, {"type": "tuning", "mtu": 1400}])).to_string());
    let before = node.baseline().await;
    let image = node.image("nginx").await;
    let server = nginx(node, "server", |_| {}).await;
    let client = node.run_pod("client", |_| {}).await;
    let ips = ground.ips(&server.id).await;
    assert!(ips.iter().any(IpAddr::is_ipv4) && ips.iter().any(IpAddr::is_ipv6), "{ips:?}");
    node.image("busybox").await;
    for ip in ips {
        let address = SocketAddr::new(ip, 80);
        let got = node.script(&client, &format!("wget -q -O - http://{address}/"), |_| {}).await;
        assert_eq!(got, NGINX_PAGE, "{address}");
    }
    assert_eq!(node.script(&client, "cat /sys/class/net/eth0/mtu", |_| {}).await, "1400\n");
    node.remove(&server.id).await;
    node.remove(&client.id).await;
    node.cri.remove_image(&image).await.unwrap();
    assert_eq!(ground.owed(), BTreeSet::new());
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn plugins_tell_how_they_are_and_clear_what_is_nobodys() {
    let Some(mut ground) = Ground::start("cni", "", &[]) else { return };
    ground.install("odd");
    ground.write(&list("1.1.0", json!([{"type": "odd"}])).to_string());
    let kept = ground.node.run_pod("kept", |_| {}).await;
    eventually("STATUS is asked for", || ground.called("STATUS", "", "") > 0).await;
    assert!(ground.network_condition().await.0.status);
    fs::write(ground.bin("unable"), "").unwrap();
    let mut told = String::new();
    for _ in 0..200 {
        let (condition, ..) = ground.network_condition().await;
        if !condition.status {
            assert_eq!(condition.reason, "NetworkPluginNotReady");
            told = condition.message;
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(told.contains("no addresses left"), "{told:?}");
    fs::remove_file(ground.bin("unable")).unwrap();
    ground.node.daemon.kill();
    let _ = fs::remove_file(ground.bin("GC-.json"));
    ground.node.restart();
    eventually("GC is asked for", || ground.bin("GC-.json").exists()).await;
    eventually("GC was told", || fs::read(ground.bin("GC-.json")).is_ok_and(|text| !text.is_empty())).await;
    let gc: Value = serde_json::from_slice(&fs::read(ground.bin("GC-.json")).unwrap()).unwrap();
    let valid = json!([{"containerID": kept.id, "ifname": "eth0"}]);
    assert_eq!(gc["cni.dev/valid-attachments"], valid);
    assert!(ground.network_condition().await.0.status);
    ground.node.remove(&kept.id).await;
    assert_eq!(ground.owed(), BTreeSet::new());
}

#[tokio::test]
async fn misbehaving_plugins_concern_their_pod_only() {
    let Some(ground) = Ground::odd("2s") else { return };
    let node = &ground.node;
    let before = node.baseline().await;
    for (name, code, expected) in [
        ("hang", Code::DeadlineExceeded, "did not end within 2s and was killed"),
        ("garbage", Code::Internal, "plugin odd returned \"eth0 is up\""),
        ("partial", Code::Internal, "plugin odd returned \"{"),
        ("words", Code::Internal, "plugin odd exit status: 3: no route to the moon"),
        ("crash", Code::Internal, "plugin odd signal: 9"),
        ("nothing", Code::FailedPrecondition, "network net gave the pod no address"),
    ] {
        let (bad, good) = (node.pod(name), node.pod(&format!("beside-{name}")));
        let (failed, ran) = tokio::join!(node.cri.run_pod(&bad), node.cri.run_pod(&good));
        node.assert_fails(failed, code, expected);
        let ran = ran.unwrap();
        assert_eq!(ground.ips(&ran).await.len(), 2, "{name}");
        assert_eq!(node.cri.pods().await.unwrap().len(), 1, "{name}");
        assert!(ground.called("DEL", name, "") >= 1, "{name}: {:?}", ground.calls());
        node.remove(&ran).await;
        assert_eq!(ground.owed(), BTreeSet::new(), "{name}");
    }
    // A program that is not there: DEL cannot be called either and is owed, until it is installed.
    ground.write(&list("1.0.0", json!([{"type": "odd"}, {"type": "absent"}])).to_string());
    let failed = node.cri.run_pod(&node.pod("missing")).await;
    node.assert_fails(failed, Code::FailedPrecondition, "ADD of network net: plugin absent is in none of");
    assert_eq!(ground.owed().len(), 1);
    ground.install("absent");
    eventually("the DEL is paid", || ground.owed().is_empty()).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn plugins_are_told_what_the_kubelet_says() {
    let Some(ground) = Ground::odd("10s") else { return };
    let pod = ground
        .node
        .run_pod("told", |config| {
            config.port_mappings = vec![
                PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() },
                PortMapping { container_port: 443, ..PortMapping::default() },
            ];
            config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
        })
        .await;
    let told: Value = serde_json::from_slice(&fs::read(ground.bin("ADD-told.json")).unwrap()).unwrap();
    let runtime = &told["runtimeConfig"];
    assert_eq!(
        runtime["portMappings"],
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}])
    );
    assert_eq!(runtime["bandwidth"], json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX}));
    assert_eq!(runtime["dns"]["servers"], json!(["10.96.0.10"]));
    assert_eq!(runtime["cgroupPath"], json!(pod.config.linux.as_ref().unwrap().cgroup_parent));
    assert_eq!(runtime["io.kubernetes.cri.pod-annotations"]["kubernetes.io/ingress-bandwidth"], "10M");
    let args = fs::read_to_string(ground.bin("args-told")).unwrap();
    let expected = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=told;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID=uid-told",
        pod.id
    );
    assert_eq!(args.trim(), expected);
    assert_eq!(
        ground.ips(&pod.id).await,
        ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]
    );

    let mut config = ground.node.pod("rate");
    config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "fast".into());
    let refused = ground.node.cri.run_pod(&config).await;
    ground.node.assert_fails(refused, Code::InvalidArgument, "kubernetes.io/egress-bandwidth");
}

#[tokio::test]
async fn del_that_fails_or_hangs_is_owed_and_paid_later() {
    let Some(ground) = Ground::odd("2s") else { return };
    let node = &ground.node;
    let before = node.baseline().await;
    for trouble in ["refuse", "hang"] {
        let name = format!("del-{trouble}");
        let pod = node.run_pod(&name, |_| {}).await;
        fs::write(ground.bin(trouble), "").unwrap();
        let began = Instant::now();
        node.remove(&pod.id).await;
        assert!(began.elapsed() < Duration::from_secs(15), "{trouble}: {:?}", began.elapsed());
        assert_eq!(node.cri.pods().await.unwrap(), []);
        assert_eq!(ground.owed().len(), 1, "{trouble}");
        assert!(ground.called("DEL", &name, &pod.id) >= 1, "{trouble}");
        // Others come and go meanwhile.
        let other = node.run_pod("meanwhile", |_| {}).await;
        fs::remove_file(ground.bin(trouble)).unwrap();
        node.remove(&other.id).await;
        eventually("the DEL is paid", || ground.owed().is_empty()).await;
    }
    let (_, config, _) = ground.network_condition().await;
    assert!(config["failedDels"].as_u64().unwrap() >= 2, "{config}");
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn killed_between_add_and_record_pays_at_the_next_start() {
    let Some(mut ground) = Ground::odd("20s") else { return };
    let before = ground.node.baseline().await;
    let kept = ground.node.run_pod("kept", |_| {}).await;
    fs::write(ground.bin("hold"), "").unwrap();
    let (cri, config) = (ground.node.cri.clone(), ground.node.pod("held"));
    let call = tokio::spawn(async move { cri.run_pod(&config).await });
    eventually("ADD is called", || ground.called("ADD", "held", "") == 1).await;
    ground.node.daemon.kill();
    call.abort();
    fs::remove_file(ground.bin("hold")).unwrap();
    assert_eq!(ground.owed().len(), 2);
    ground.node.restart();
    eventually("the DEL is paid", || ground.owed().len() == 1).await;
    assert!(ground.called("DEL", "held", "") >= 2, "{:?}", ground.calls());

    assert_eq!(ground.called("DEL", "kept", ""), 0, "{:?}", ground.calls());
    assert_eq!(ground.ips(&kept.id).await.len(), 2);
    ground.node.remove(&kept.id).await;
    assert_eq!(ground.called("DEL", "kept", &kept.id), 2);
    assert_eq!(ground.owed(), BTreeSet::new());
    ground.node.assert_nothing_left(&before);
}

#[tokio::test]
async fn bad_configuration_is_named_and_its_repair_counts_at_once() {
    let Some(ground) = Ground::start("auto", "", &[]) else { return };
    let node = &ground.node;
    ground.install("odd");
    // Nothing there: the built-in network.
    let (condition, config, _) = ground.network_condition().await;
    assert!(condition.status && config.is_null(), "{condition:?} {config}");
    let built_in = node.run_pod("built-in", |_| {}).await;
    assert!(ground.ips(&built_in.id).await[0].to_string().starts_with("10.88."));

    ground.write("{\"name\": \"net\", \"plu");
    let (condition, _, loaded) = ground.network_condition().await;
    assert!(!condition.status && condition.reason == "NetworkPluginNotReady", "{condition:?}");
    let dir = ground.dir.path().join("conf").display().to_string();
    for part in [dir.as_str(), "10-net.conflist: not a JSON object", "EOF"] {
        assert!(condition.message.contains(part) && loaded.contains(part), "{part}: {condition:?} {loaded}");
    }
    let refused = node.cri.run_pod(&node.pod("early")).await;
    node.assert_fails(refused, Code::Unavailable, "10-net.conflist");
    assert_eq!(node.cri.pods().await.unwrap().len(), 1);

    ground.write(&list("1.0.0", json!([{"type": "odd"}])).to_string());
    let pod: Pod = node.run_pod("late", |_| {}).await;
    assert_eq!(ground.ips(&pod.id).await[0].to_string(), "10.1.2.3");
    let (condition, config, loaded) = ground.network_condition().await;
    assert!(condition.status && loaded == "OK", "{condition:?} {loaded}");
    assert_eq!(config["Networks"][0]["whyNotNative"], "no native plugin odd", "{config}");
    // Each is detached from what it was attached to; and without any file it is not the built-in network's turn again.
    fs::remove_file(ground.dir.path().join("conf/10-net.conflist")).unwrap();
    assert!(!ground.network_condition().await.0.status);
    node.remove(&built_in.id).await;
    node.remove(&pod.id).await;
    assert_eq!(ground.called("DEL", "late", &pod.id), 1);
    assert_eq!(ground.owed(), BTreeSet::new());
}
