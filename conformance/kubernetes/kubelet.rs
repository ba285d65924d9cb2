//! A kubelet without an API server, in a world.
//!
//! ```text
//! <world>/kubelet/   config.json  root/  pki/  plugins/  kubelet.log
//!                    manifests/   a file per static pod
//!                    pods/        the logs of containers
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pinnace_conformance::process::{Process, poll, wait_at_most};
use pinnace_conformance::world::World;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::ground::NODE;

/// The address of the node.
pub const ADDRESS: &str = "192.0.2.10";

/// How long the kubelet may take to serve, and to go away.
const LIMIT: Duration = Duration::from_secs(60);

/// What the kubelet wants of the machine. It writes what differs, and these are the whole machine's: it gets files of ours
/// instead, in a mount namespace that shares everything else with the world.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The kubelet and its places.
pub struct Kubelet {
    world: Arc<World>,
    program: PathBuf,
    dir: PathBuf,
    running: Option<(Child, Process)>,
}

impl Kubelet {
    /// Prepares the world for a kubelet; it does not run yet.
    pub fn new(world: Arc<World>, program: &Path) -> Kubelet {
        let dir = world.dir().join("kubelet");
        for name in ["root", "pki", "manifests", "pods", "plugins", "sysctl"] {
            fs::create_dir_all(dir.join(name)).expect("make a directory");
        }
        // Links to the logs go to /var/log/containers, wherever the logs are.
        world.sh(&format!(
            "mkdir -p /var/log; mount -t tmpfs -o mode=0755 tmpfs /var/log
             ip link add node0 type veth peer name node1; ip address add {ADDRESS}/24 dev node0
             ip link set node0 up; ip link set node1 up
             ip route add default dev node0"
        ));
        let mut script = String::from("mount --make-rprivate /proc\n");
        for (index, (name, value)) in SYSCTLS.iter().enumerate() {
            let file = dir.join("sysctl").join(index.to_string());
            fs::write(&file, format!("{value}\n")).expect("write a value");
            script.push_str(&format!("mount --bind '{}' /proc/sys/{name}\n", file.display()));
        }
        script.push_str("exec \"$@\"\n");
        fs::write(dir.join("enter.sh"), script).expect("write a script");
        Kubelet { world, program: program.into(), dir, running: None }
    }

    /// What every run is configured with.
    pub fn configuration(&self, socket: &Path) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
            "staticPodPath": self.dir.join("manifests"),
            "podLogsDir": self.logs(),
            "volumePluginDir": self.dir.join("plugins"),
            "fileCheckFrequency": "1s",
            "syncFrequency": "5s",
            "registerNode": false,
            // Both ask the API server.
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "readOnlyPort": 10255,
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "failSwapOn": false,
            // How full this machine is says nothing about pinnace.
            "evictionHard": {
                "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionPressureTransitionPeriod": "1s",
            "imageMinimumGCAge": "1ms",
            "serializeImagePulls": false,
            "containerLogMaxSize": "64Ki",
            "containerLogMaxFiles": 3,
            "containerLogMonitorInterval": "3s",
            "crashLoopBackOff": { "maxContainerRestartPeriod": "3s" },
            "featureGates": { "PodAndContainerStatsFromCRI": true },
        })
    }

    /// Starts it; returns when it serves.
    pub fn start(&mut self, configuration: &Value) {
        assert!(self.running.is_none(), "the kubelet is running");
        let config = self.dir.join("config.json");
        fs::write(&config, configuration.to_string()).expect("write the kubelet's configuration");
        let log = fs::File::options().create(true).append(true).open(self.log()).expect("open a log");
        let mut command = self.world.command("unshare");
        command.args(["--mount", "--propagation", "unchanged", "sh", "-eu"]).arg(self.dir.join("enter.sh"));
        command.arg(&self.program).arg("--config").arg(config);
        command.arg("--root-dir").arg(self.dir.join("root")).arg("--cert-dir").arg(self.dir.join("pki"));
        command.args(["--hostname-override", NODE, "--node-ip", ADDRESS, "--v", "4"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate a file")).stderr(log);
        let (mut child, process) =
            self.world.try_spawn(&mut command).unwrap_or_else(|error| panic!("{error}"));
        let address: SocketAddr = "127.0.0.1:10248".parse().expect("an address");
        let serving = poll(LIMIT, || {
            if let Some(status) = child.try_wait().expect("wait for the kubelet") {
                panic!("the kubelet: {status}\n{}", self.last_lines());
            }
            std::thread::sleep(Duration::from_millis(100));
            self.world.connect(address).ok()
        });
        self.running = Some((child, process));
        assert!(serving.is_some(), "the kubelet does not serve\n{}", self.last_lines());
    }

    /// SIGTERM, as systemd stops it.
    pub fn stop(&mut self) {
        if let Some((mut child, process)) = self.running.take() {
            process.signal(Signal::TERM);
            if wait_at_most(&mut child, LIMIT).is_none() {
                process.signal(Signal::KILL);
                let _ = wait_at_most(&mut child, LIMIT);
            }
        }
    }

    /// Writes the manifest of a pod, all at once.
    pub fn write(&self, name: &str, manifest: &Value) {
        let (fresh, file) = (self.dir.join(format!("{name}.new")), self.manifest(name));
        let written = fs::write(&fresh, manifest.to_string()).and_then(|()| fs::rename(&fresh, &file));
        written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// Removes the manifest of a pod.
    pub fn remove(&self, name: &str) {
        let file = self.manifest(name);
        fs::remove_file(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// Removes all manifests.
    pub fn remove_all(&self) {
        for entry in fs::read_dir(self.dir.join("manifests")).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// Where the logs of pods are.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("pods")
    }

    /// Its own log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("kubelet.log")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{name}.json"))
    }

    fn last_lines(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let skip = text.lines().count().saturating_sub(40);
        text.lines().skip(skip).fold(String::new(), |lines, line| lines + "  | " + line + "\n")
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if let Some((mut child, process)) = self.running.take() {
            process.signal(Signal::KILL);
            let _ = wait_at_most(&mut child, LIMIT);
        }
    }
}
