//! Usage of containers and pods, read from the kernel when somebody asks; nothing is sampled in between.
//!
//! The rate of CPU use is taken over the time between two askings ([`rate`]); the size of a writable layer, where it
//! has to be walked, is remembered for [`LAYER_LIFE`].

mod processes;
pub mod rate;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pinnace_cgroup::{Cgroup, CgroupPath, Detail, Usage};

pub use self::processes::{Counters, Interface, Processes, interfaces};
use self::rate::CpuWindow;
use crate::clock;
use crate::container::Container;
use crate::container::record::{ContainerRecord, Status};
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::sandbox::record::{Phase, SandboxNetwork};
use crate::table::lock;

/// How long the size of a writable layer is good for: the kubelet asks every ten seconds.
const LAYER_LIFE: Duration = Duration::from_secs(10);

/// What is remembered of a container or sandbox from one asking to the next.
#[derive(Debug, Default)]
pub struct Memory {
    cpu: Mutex<CpuWindow>,
    layer: Mutex<Option<(Instant, pinnace_store::Usage)>>,
}

/// A container at one moment.
#[derive(Debug)]
pub struct ContainerSample {
    /// As it was when it was looked at.
    pub record: Arc<ContainerRecord>,
    /// `CLOCK_REALTIME` ns.
    pub at_ns: i64,
    /// What it uses, while it runs.
    pub usage: Option<Usage>,
    /// Cores × 10⁹, while it runs.
    pub cpu_nano_cores: Option<u64>,
    /// Its writable layer; none if it cannot be measured just now.
    pub layer: Option<pinnace_store::Usage>,
}

/// A sandbox at one moment.
#[derive(Debug)]
pub struct SandboxSample {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// `CLOCK_REALTIME` ns.
    pub at_ns: i64,
    /// What the pod uses, containers that have come and gone included; none when it is not ready.
    pub usage: Option<Usage>,
    /// Cores × 10⁹.
    pub cpu_nano_cores: Option<u64>,
    /// Its interfaces; empty on the host's network.
    pub interfaces: Vec<Interface>,
    /// Its containers.
    pub containers: Vec<ContainerSample>,
}

/// Looks at a container. Blocks for some file reads.
pub fn container(node: &Node, container: &Container) -> ContainerSample {
    let record = container.record();
    let mut sample = ContainerSample {
        at_ns: clock::realtime_ns(),
        usage: None,
        cpu_nano_cores: None,
        layer: layer(node, container),
        record: Arc::new(record),
    };
    if let Status::Running { started_at_ns, .. } = sample.record.status
        && let Some(cgroup) = cgroup(node, &sample.record.cgroup_path)
    {
        let usage = cgroup.usage();
        sample.cpu_nano_cores = rate(&container.stats, &usage, sample.at_ns, started_at_ns);
        sample.usage = Some(usage);
    }
    sample
}

/// Looks at a sandbox and its containers. Blocks for some file reads.
pub fn sandbox(node: &Node, sandbox: &Arc<Sandbox>, containers: &[Arc<Container>]) -> SandboxSample {
    let at_ns = clock::realtime_ns();
    let ready = sandbox.phase() == Phase::Ready;
    let record = sandbox.record();
    let path = record.own_cgroup.as_ref().or(sandbox.config.cgroup_parent.as_ref());
    let usage = path.filter(|_| ready).and_then(|path| cgroup(node, path)).map(|cgroup| cgroup.usage());
    let own_network = ready && !matches!(record.network, SandboxNetwork::Host);
    SandboxSample {
        at_ns,
        cpu_nano_cores: usage.and_then(|usage| rate(&sandbox.stats, &usage, at_ns, sandbox.created_at_ns)),
        usage,
        interfaces: if own_network { interfaces(record.monitor_pid) } else { Vec::new() },
        containers: containers.iter().map(|each| self::container(node, each)).collect(),
        sandbox: Arc::clone(sandbox),
    }
}

/// What metrics show of a container beyond its sample.
pub fn detail(node: &Node, record: &ContainerRecord) -> Option<(Detail, Processes)> {
    let cgroup = cgroup(node, &record.cgroup_path)?;
    let pids = cgroup.pids().unwrap_or_default();
    Some((cgroup.detail(), Processes::of(pids.into_iter().map(|pid| pid.as_raw_nonzero().get()))))
}

/// The cgroup, unless it is gone.
fn cgroup(node: &Node, path: &str) -> Option<Cgroup> {
    Cgroup::open(&node.hierarchy, &CgroupPath::of_parent(path).ok()?).ok()
}

fn rate(memory: &Memory, usage: &Usage, at_ns: i64, since_ns: i64) -> Option<u64> {
    let age = u64::try_from(at_ns.saturating_sub(since_ns)).unwrap_or(0);
    Some(lock(&memory.cpu).rate(Instant::now(), usage.cpu_ns?, Duration::from_nanos(age)))
}

fn layer(node: &Node, container: &Container) -> Option<pinnace_store::Usage> {
    if node.store.counts_usage(container.id.as_str()) {
        return node.store.usage(container.id.as_str()).ok();
    }
    let known = *lock(&container.stats.layer);
    if let Some((measured, usage)) = known
        && measured.elapsed() < LAYER_LIFE
    {
        return Some(usage);
    }
    // It may be on its way out.
    let usage = node.store.usage(container.id.as_str()).ok()?;
    *lock(&container.stats.layer) = Some((Instant::now(), usage));
    Some(usage)
}
