//! The program as a transient service, a registry in this process, and what systemd says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pinnace_conformance::cri::{self, Cri};
use pinnace_conformance::daemon;
use pinnace_conformance::images::{Layout, MANIFEST, catalog};
use pinnace_conformance::process::poll;
use pinnace_conformance::serve::{Serving, serve};
use pinnace_conformance::skip;
use pinnace_cri_api::v1::*;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How long units and containers may take to change.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The service of the tests that need no package.
pub const UNIT: &str = "pinnace-test.service";

/// Whether this machine may be changed; says so if not.
pub fn may_change(test: &str) -> bool {
    let may = std::env::var_os("PINNACE_HOST_TESTS").is_some();
    if !may {
        skip(test, "PINNACE_HOST_TESTS is not set: the machine would be changed");
    }
    may
}

/// Images over HTTP, as far as a pull needs it.
pub struct Images {
    /// Where it can be pulled.
    pub busybox: String,
    _serving: Serving,
}

impl Images {
    /// On a free port.
    pub async fn serve() -> Images {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let busybox = format!("{}/busybox:1", listener.local_addr().unwrap());
        let serving = serve(listener, |stream| answer(stream, catalog::layout()));
        Images { busybox, _serving: serving }
    }
}

async fn answer(stream: TcpStream, layout: Layout) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if stream.read_line(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let found = match path.rsplit_once('/') {
            Some(("/v2", "")) => Some((String::from("application/json"), b"{}".to_vec(), String::new())),
            Some((place, reference)) => {
                let digest = if reference.starts_with("sha256:") {
                    reference.to_owned()
                } else {
                    layout.find("busybox").digest
                };
                let bytes = layout.read(&digest);
                let kind = if place.ends_with("manifests") { MANIFEST } else { "application/octet-stream" };
                Some((kind.to_owned(), bytes, digest))
            }
            None => None,
        };
        let Some((kind, bytes, digest)) = found else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\ndocker-content-digest: {digest}\r\n\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).await?;
        if method != "HEAD" {
            stream.write_all(&bytes).await?;
        }
        stream.flush().await?;
    }
}

/// A running service and a client of it.
pub struct Host {
    pub cri: Cri,
    pub images: Images,
    pub dir: tempfile::TempDir,
}

impl Host {
    /// A transient service with more lines of configuration; its images stay on the machine.
    pub async fn start(more: &str) -> Host {
        let dir = tempfile::Builder::new().prefix("pw-host-").tempdir_in("/run").unwrap();
        let config = dir.path().join("config.toml");
        let fixed = "[daemon]\nlog_level = \"info\"\n[cni]\nmode = \"built-in\"\n[network]\npool_size = 2\n";
        fs::write(&config, format!("{fixed}{more}")).unwrap();
        let host = Host { cri: Cri::new(&dir.path().join("cri.sock")), images: Images::serve().await, dir };
        host.serve();
        host.cri.pull(&host.images.busybox).await.unwrap();
        host
    }

    /// Starts the service, which does not run. A unit in a file, for a transient one cannot be started again while what it
    /// has left still runs.
    pub fn serve(&self) {
        let dir = self.dir.path().display();
        let unit = format!(
            "[Service]\nType=notify\nDelegate=yes\nKillMode=process\nOOMScoreAdjust=-999\nTasksMax=infinity\n\
             TimeoutStartSec=300\nExecStart={} serve --config {dir}/config.toml --root /var/lib/pinnace-test \
             --run {dir}/run --socket {dir}/cri.sock\n",
            daemon::program().display(),
        );
        fs::write(Path::new("/run/systemd/system").join(UNIT), unit).unwrap();
        sh(&format!("systemctl daemon-reload; systemctl start {UNIT}"));
    }

    /// `kill -9` and the end of the unit; containers stay.
    pub fn kill(&self) {
        sh(&format!("systemctl kill --kill-who=main --signal=KILL {UNIT}; true"));
        let gone = poll(LIMIT, || (show(UNIT, "MainPID") == "0").then_some(()));
        assert!(gone.is_some(), "{UNIT} lives");
    }

    /// A pod of a kubelet with the systemd driver.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let mut pod = pod(name, self.dir.path());
        if let Some(linux) = &mut pod.linux {
            linux.cgroup_parent = slice(name);
        }
        pod
    }

    /// Runs a pod with one container.
    pub async fn run(&self, pod: &PodSandboxConfig, container: &ContainerConfig) -> (String, String) {
        let id = self.cri.run_pod(pod).await.unwrap();
        let created = self.cri.create(&id, pod, container).await.unwrap();
        self.cri.start(&created).await.unwrap_or_else(|status| panic!("{status:?}\n{}", journal()));
        (id, created)
    }
}

impl Drop for Host {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", journal());
        }
        let _ = Command::new("systemctl").args(["stop", UNIT]).status();
        // What a failed test has left must not be in the way of the next one.
        let _ = Command::new("systemctl").args(["kill", "--signal=KILL", UNIT]).output();
    }
}

/// The slice that a kubelet makes for a burstable pod.
pub fn slice(name: &str) -> String {
    format!("kubepods-burstable-pod{}.slice", name.replace('-', "_"))
}

/// Directory of a slice's or scope's cgroup as systemd says.
pub fn cgroup(unit: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(show(unit, "ControlGroup").trim_start_matches('/'))
}

pub fn scope(container: &str) -> String {
    format!("pinnace-{container}.scope")
}

/// A pod without a cgroup parent, with its log directory.
pub fn pod(name: &str, dir: &Path) -> PodSandboxConfig {
    let mut pod = cri::pod_config(name, &dir.join("logs"));
    fs::create_dir_all(&pod.log_directory).unwrap();
    if let Some(linux) = &mut pod.linux {
        linux.cgroup_parent = String::new();
    }
    pod
}

pub fn container(
    image: &str,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerResources),
) -> ContainerConfig {
    let mut config = cri::container_config("main", image, &["sh", "-c", script]);
    if let Some(resources) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
        change(resources);
    }
    config
}

/// A property of a unit.
pub fn show(unit: &str, property: &str) -> String {
    sh(&format!("systemctl show --value -p {property} {unit}"))
}

/// Waits until systemd has forgotten a unit.
pub fn gone(unit: &str) {
    let gone = poll(LIMIT, || (show(unit, "ActiveState") == "inactive").then_some(()));
    assert!(gone.is_some(), "{unit}: {}", sh(&format!("systemctl status {unit}; true")));
}

/// What a shell prints; it must succeed.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    assert!(output.status.success(), "{script}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn journal() -> String {
    sh("journalctl --no-pager -n 40 -o cat; true")
}
