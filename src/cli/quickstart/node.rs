//! A private daemon on private state, and its complete removal.
//!
//! ```text
//! $TMPDIR/pinnace-quickstart-XXXXXXXX/      0700
//!   quickstart.json    what was made outside of this directory
//!   config.toml, root/, run/, logs/           the daemon's
//!   daemon.log                                its standard error
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};

use super::{link, pod, subnet};
use crate::client::Client;

/// How long the daemon may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where cgroup hierarchies are: the only one of v2, or one directory each of v1.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Forwarding of the machine's network namespace, ip-sysctl(7).
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What was made for this run.
#[derive(Debug)]
pub struct Node {
    dir: PathBuf,
    bridge: String,
    network: Ipv4Addr,
    cgroup: String,
    /// Whether this machine forwarded IPv4 packets before; the bridge switches that on.
    forwarded: bool,
    daemon: Option<Daemon>,
}

#[derive(Debug)]
struct Daemon {
    pid: Pid,
    pidfd: OwnedFd,
    /// In clock ticks since boot: with it a recycled pid is told from ours.
    started: u64,
    /// Only where this process is its parent.
    child: Option<Child>,
}

impl Node {
    /// Chooses names and a network that nobody here uses, and makes the directory. Nothing runs yet.
    pub fn prepare() -> anyhow::Result<Node> {
        let (id, dir) = loop {
            let mut random = [0; 4];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
            let id = hex::encode(random);
            let dir = std::env::temp_dir().join(format!("pinnace-quickstart-{id}"));
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) if !link::exists(&format!("pnq{id}")) => break (id, fs::canonicalize(dir)?),
                Ok(()) => fs::remove_dir(dir)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("make {}", dir.display())),
            }
        };
        let seed = u16::from_str_radix(&id[..4], 16)?;
        let network = match subnet::free(seed) {
            Ok(network) => network,
            Err(error) => {
                fs::remove_dir(&dir)?;
                return Err(error);
            }
        };
        let bridge = format!("pnq{id}");
        let cgroup = format!("/pinnace-quickstart-{id}");
        let forwarded = fs::read_to_string(IP_FORWARD).is_ok_and(|text| text.trim() == "1");
        Ok(Node { dir, bridge, network, cgroup, forwarded, daemon: None })
    }

    /// Finds what an earlier run with `--keep` left.
    pub fn open(dir: &Path) -> anyhow::Result<Node> {
        let dir = fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
        let file = dir.join("quickstart.json");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("{} is not the directory of a quickstart", dir.display()))?;
        let record: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        let field = |name: &str| {
            let text = record.get(name).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| anyhow!("{} has no {name}", file.display()))
        };
        let number = |name: &str| record.get(name).and_then(Value::as_u64);
        let pid = number("pid").and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let daemon = match (pid, number("started")) {
            (Some(pid), Some(started)) => Daemon::find(pid, started)?,
            _ => None,
        };
        let (bridge, cgroup) = (field("bridge")?, field("cgroup")?);
        if !bridge.starts_with("pnq") || !cgroup.starts_with("/pinnace-quickstart-") || cgroup.contains("..")
        {
            bail!("{} names what no quickstart makes", file.display());
        }
        let network = field("network")?.parse().with_context(|| file.display().to_string())?;
        let forwarded = record.get("forwarded").and_then(Value::as_bool).unwrap_or(true);
        Ok(Node { dir, bridge, network, cgroup, forwarded, daemon })
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/pinnace.sock")
    }

    /// Where containers log.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Starts the daemon and waits until it answers.
    pub async fn start(&mut self) -> anyhow::Result<Client> {
        DirBuilder::new().mode(0o700).create(self.logs())?;
        let config = self.dir.join("config.toml");
        fs::write(&config, self.config())?;
        let log = File::create(self.dir.join("daemon.log"))?;
        let child = Command::new("/proc/self/exe")
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for this process, which then ends the daemon in order.
            .process_group(0)
            .spawn()
            .context("start the daemon")?;
        // Known from here on: whatever interrupts the waiting, the end finds it.
        self.daemon = Some(Daemon::started(child)?);
        self.record()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&self.socket()).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.daemon.as_mut().and_then(Daemon::ended) {
                bail!("the daemon ended at once: {status}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn config(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let path = |path: PathBuf| quoted(&path.display().to_string());
        // Without masquerading and host ports the daemon has no reason to touch forwarding or the packet filter.
        format!(
            "[daemon]\nroot = {}\nrun = {}\n\n[network]\nbridge = {}\nipv4_subnet = \"{}/24\"\nipv6_subnet = \"\"\n\
             ip_masq = false\nhost_ports = false\npool_size = 1\n\n\
             [cni]\nmode = \"built-in\"\n\n[container]\ncgroup_parent = {}\n",
            path(self.dir.join("root")),
            path(self.dir.join("run")),
            quoted(&self.bridge),
            self.network,
            quoted(&self.cgroup),
        )
    }

    fn record(&self) -> anyhow::Result<()> {
        let daemon = self.daemon.as_ref();
        let record = json!({
            "bridge": self.bridge,
            "network": self.network.to_string(),
            "cgroup": self.cgroup,
            "forwarded": self.forwarded,
            "pid": daemon.map(|daemon| daemon.pid.as_raw_nonzero().get()),
            "started": daemon.map(|daemon| daemon.started),
        });
        Ok(fs::write(self.dir.join("quickstart.json"), record.to_string())?)
    }

    /// Leaves it running and says how to reach and how to end it.
    pub fn keep(self) -> anyhow::Result<()> {
        let socket = self.socket();
        let program = std::env::current_exe()?;
        let mut out = io::stdout().lock();
        writeln!(out, "\nIt goes on running. Look around:")?;
        writeln!(out, "  crictl --runtime-endpoint unix://{} ps", socket.display())?;
        writeln!(out, "  {} info --socket {}", program.display(), socket.display())?;
        writeln!(out, "End it:\n  {} quickstart --stop {}", program.display(), self.dir.display())?;
        Ok(())
    }

    /// What the daemon said last, for a person who has to find out what went wrong.
    pub fn show_log(&self) -> anyhow::Result<()> {
        const LINES: usize = 20;
        let Ok(log) = fs::read_to_string(self.dir.join("daemon.log")) else { return Ok(()) };
        let lines: Vec<&str> = log.lines().collect();
        let mut out = io::stderr().lock();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            writeln!(out, "daemon | {line}")?;
        }
        Ok(())
    }

    /// Takes away everything, in the order in which it was made, and goes on when a step fails.
    pub async fn tear_down(mut self) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        let mut note = |what: &str, result: anyhow::Result<()>| {
            if let Err(error) = result {
                problems.push(format!("{what}: {error:#}"));
            }
        };
        if self.socket().exists() && self.daemon.as_ref().is_some_and(Daemon::runs) {
            let socket = self.socket();
            let removal = tokio::time::timeout(PATIENCE, Box::pin(pod::remove_all(&socket))).await;
            note("remove pods and images", removal.map_err(Into::into).and_then(|result| result));
        }
        if let Some(daemon) = self.daemon.take() {
            note("stop the daemon", daemon.stop());
        }
        note("end what is left running", self.end_processes());
        note("remove the bridge", link::delete(&self.bridge));
        note("restore IPv4 forwarding", self.restore_forwarding());
        note("unmount", self.unmount());
        note("remove the cgroups", self.remove_cgroups());
        // Never through a mount: what is mounted there may not be ours to delete.
        if mounts_below(&self.dir)?.is_empty() {
            note("remove the directory", fs::remove_dir_all(&self.dir).map_err(Into::into));
        }
        if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) }
    }

    fn restore_forwarding(&self) -> anyhow::Result<()> {
        if self.forwarded { Ok(()) } else { Ok(fs::write(IP_FORWARD, "0")?) }
    }

    /// Kills what uses our directory or is in our cgroups: after an orderly end nothing is.
    fn end_processes(&self) -> anyhow::Result<()> {
        let mut killed = 0;
        for pid in pids()? {
            let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if !self.owns(pid) {
                continue;
            }
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            if !gone_within(&pidfd, PATIENCE)? {
                bail!("process {} does not end", pid.as_raw_nonzero());
            }
            killed += 1;
        }
        if killed == 0 { Ok(()) } else { bail!("{killed} processes had to be killed") }
    }

    fn owns(&self, pid: Pid) -> bool {
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        if pid == rustix::process::getpid() {
            return false;
        }
        let in_cgroup = fs::read_to_string(proc.join("cgroup")).is_ok_and(|text| {
            text.lines().any(|line| {
                let path = line.splitn(3, ':').nth(2).unwrap_or_default();
                path == self.cgroup || path.starts_with(&format!("{}/", self.cgroup))
            })
        });
        let holds = || {
            fs::read_dir(proc.join("fd")).is_ok_and(|mut fds| {
                fds.any(|fd| {
                    let target = fd.and_then(|fd| fs::read_link(fd.path()));
                    target.is_ok_and(|target| target.starts_with(&self.dir))
                })
            })
        };
        in_cgroup || holds()
    }

    fn unmount(&self) -> anyhow::Result<()> {
        // The last ones first: they lie on the earlier ones.
        for mount in mounts_below(&self.dir)?.iter().rev() {
            rustix::mount::unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .with_context(|| mount.display().to_string())?;
        }
        Ok(())
    }

    fn remove_cgroups(&self) -> anyhow::Result<()> {
        let name = self.cgroup.trim_start_matches('/');
        let mut roots = vec![PathBuf::from(CGROUPS)];
        roots.extend(fs::read_dir(CGROUPS)?.filter_map(|entry| Some(entry.ok()?.path())));
        for root in roots {
            remove_cgroup(&root.join(name))?;
        }
        Ok(())
    }
}

impl Daemon {
    fn started(child: Child) -> anyhow::Result<Daemon> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("pid of the daemon")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let started = start_time(pid).context("start time of the daemon")?;
        Ok(Daemon { pid, pidfd, started, child: Some(child) })
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    /// The process of that number, if it is still the one that started then.
    fn find(pid: Pid, started: u64) -> anyhow::Result<Option<Daemon>> {
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) if start_time(pid) == Some(started) => {
                Ok(Some(Daemon { pid, pidfd, started, child: None }))
            }
            Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno).context("find the daemon"),
        }
    }

    fn runs(&self) -> bool {
        !gone_within(&self.pidfd, Duration::ZERO).unwrap_or(true)
    }

    fn stop(mut self) -> anyhow::Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
            if gone_within(&self.pidfd, PATIENCE)? {
                if let Some(child) = &mut self.child {
                    child.wait()?;
                }
                return if signal == Signal::TERM { Ok(()) } else { bail!("it had to be killed") };
            }
        }
        bail!("process {} does not end", self.pid.as_raw_nonzero())
    }
}

fn gone_within(pidfd: &OwnedFd, patience: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec { tv_sec: i64::try_from(patience.as_secs())?, tv_nsec: 0 };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))? > 0)
}

/// Field 22 of proc_pid_stat(5); the second one can hold anything, so count from its end.
fn start_time(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn pids() -> anyhow::Result<Vec<Pid>> {
    Ok(fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect())
}

fn mounts_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point != dir && point.starts_with(dir)).collect())
}

/// Blanks and backslashes stand as three octal digits in mountinfo (proc(5)).
fn unescape(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(code, plain);
    }
    PathBuf::from(text)
}

/// Directories of a cgroup hold files that need no removing, so this is rmdir from the leaves up.
fn remove_cgroup(dir: &Path) -> anyhow::Result<()> {
    match rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0.into()) {
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    // The kernel says EBUSY for a moment after the last process has gone.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result.with_context(|| dir.display().to_string()),
        }
    }
}
