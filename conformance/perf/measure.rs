//! The measurements: each takes a runtime and adds samples to a [`Report`].

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _, container_config, pod_config};
use pinnace_cri_api::v1::{ContainerConfig, ListContainerStatsRequest, PodSandboxConfig};
use rustix::time::{ClockId, clock_gettime};

use crate::report::{Report, Unit};
use crate::runtime::Runtime;

const CONTAINER: &str = "main";

/// How often each list is asked for.
const LISTS: usize = 20;

/// Which network the pods have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Addresses of their own.
    Bridge,
    /// That of the machine.
    Host,
}

/// A pod with one container, as the kubelet asks for both.
struct Pod<'a> {
    runtime: &'a Runtime,
    config: PodSandboxConfig,
    container: ContainerConfig,
    log_directory: String,
    cgroup_parent: String,
}

/// One that runs.
struct Running<'a> {
    pod: Pod<'a>,
    id: String,
    container: String,
}

/// How long each step of a start took.
struct Start {
    run: Duration,
    create: Duration,
    start: Duration,
    /// Until the container's own process said what time it is.
    first: Duration,
}

impl<'a> Pod<'a> {
    fn new(runtime: &'a Runtime, name: &str, network: Network) -> Pod<'a> {
        let mut config = pod_config(name, &runtime.logs());
        if network == Network::Host {
            config.on_host_network();
        }
        let mut container = container_config(CONTAINER, &runtime.image, &["/bin/workload", "tick"]);
        container.security().no_new_privs = true;
        for index in 0..6 {
            container.env(&format!("SERVICE_{index}_PORT_443_TCP_ADDR"), "10.96.0.1");
        }
        // What the kubelet mounts into every pod.
        let volumes = Path::new(&config.log_directory).join("volumes");
        container.mount(&volumes.join("etc-hosts"), "/etc/hosts");
        container.mount(&volumes.join("termination-log"), "/dev/termination-log");
        container.mount(&volumes.join("token"), "/var/run/secrets/kubernetes.io/serviceaccount").readonly =
            true;
        let cgroup_parent = config.linux().cgroup_parent.clone();
        let log_directory = config.log_directory.clone();
        Pod { runtime, config, container, log_directory, cgroup_parent }
    }

    /// What the kubelet does before.
    fn prepare(&self) {
        self.runtime.prepare_pod(&self.log_directory, CONTAINER, &self.cgroup_parent);
        let volumes = self.runtime.world.inside(&self.log_directory).join("volumes");
        fs::create_dir_all(volumes.join("token")).expect("make a volume");
        for (name, text) in
            [("etc-hosts", "127.0.0.1 localhost\n"), ("termination-log", ""), ("token/token", "x")]
        {
            fs::write(volumes.join(name), text).expect("write a volume");
        }
    }

    async fn start(self) -> (Running<'a>, Start) {
        let cri = &self.runtime.cri;
        let name = self.runtime.kind.name();
        let began = monotonic();
        let id = cri.run_pod(&self.config).await.unwrap_or_else(|s| panic!("{name}: RunPodSandbox: {s:?}"));
        let ran = monotonic();
        let container = cri.create(&id, &self.config, &self.container).await;
        let container = container.unwrap_or_else(|s| panic!("{name}: CreateContainer: {s:?}"));
        let created = monotonic();
        cri.start(&container).await.unwrap_or_else(|s| panic!("{name}: StartContainer: {s:?}"));
        let started = monotonic();
        let log = Path::new(&self.log_directory).join(&self.container.log_path);
        let first = first_tick(&self.runtime.world.inside(log)).await - began;
        let times = Start { run: ran - began, create: created - ran, start: started - created, first };
        (Running { pod: self, id, container }, times)
    }
}

impl Running<'_> {
    /// Stops and removes the pod with its running container.
    async fn remove(self) -> Duration {
        let (cri, name) = (&self.pod.runtime.cri, self.pod.runtime.kind.name());
        let began = Instant::now();
        cri.stop_pod(&self.id).await.unwrap_or_else(|s| panic!("{name}: StopPodSandbox: {s:?}"));
        cri.remove_pod(&self.id).await.unwrap_or_else(|s| panic!("{name}: RemovePodSandbox: {s:?}"));
        let took = began.elapsed();
        self.pod.runtime.forget_pod(&self.pod.log_directory, &self.pod.cgroup_parent);
        took
    }
}

/// Pods one after the other: start, first instruction, stop and remove.
pub async fn sequential(runtime: &Runtime, network: Network, pods: usize, tag: &str, report: &mut Report) {
    let label = match network {
        Network::Bridge => "bridge",
        Network::Host => "host network",
    };
    for index in 0..pods {
        let pod = Pod::new(runtime, &format!("{tag}-{label}-{index}").replace(' ', "-"), network);
        pod.prepare();
        let (running, times) = pod.start().await;
        let removal = running.remove().await;
        let mut add =
            |what: &str, time: Duration| report.time(runtime.kind, &format!("{label}: {what}"), time);
        add("RunPodSandbox", times.run);
        add("CreateContainer", times.create);
        add("StartContainer", times.start);
        add("start, the three together", times.run + times.create + times.start);
        add("start, to the process's first instruction", times.first);
        add("stop and remove", removal);
    }
}

/// `true` in a running container.
pub async fn exec(runtime: &Runtime, count: usize, tag: &str, report: &mut Report) {
    let pod = Pod::new(runtime, &format!("{tag}-exec"), Network::Bridge);
    pod.prepare();
    let (running, _) = pod.start().await;
    for round in 0..=count {
        let began = Instant::now();
        let done = runtime.cri.exec(&running.container, &["/bin/workload", "true"], 10).await;
        let done = done.unwrap_or_else(|status| panic!("{}: ExecSync: {status:?}", runtime.kind.name()));
        assert_eq!(done.exit_code, 0, "{}: ExecSync", runtime.kind.name());
        // The first one may have to make what the others find.
        if round > 0 {
            report.time(runtime.kind, "ExecSync true", began.elapsed());
        }
    }
    running.remove().await;
}

/// Many pods at once: rate of starting, memory while all of them idle, rate of removing.
pub async fn crowd(runtime: &Runtime, pods: usize, concurrency: usize, tag: &str, report: &mut Report) {
    let empty = runtime.pss_kb();
    let prepared: Vec<Pod<'_>> = (0..pods)
        .map(|index| {
            let pod = Pod::new(runtime, &format!("{tag}-crowd-{index}"), Network::Bridge);
            pod.prepare();
            pod
        })
        .collect();
    let began = Instant::now();
    let running: Vec<Running<'_>> = stream::iter(prepared)
        .map(|pod| async { pod.start().await.0 })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    let started = began.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let full = runtime.pss_kb();
    let began = Instant::now();
    stream::iter(running).map(Running::remove).buffer_unordered(concurrency).collect::<Vec<_>>().await;
    let removed = began.elapsed();

    #[allow(clippy::cast_precision_loss, reason = "counts and kilobytes are far below 2^52")]
    let (count, empty, full) = (pods as f64, empty as f64, full as f64);
    let kind = runtime.kind;
    report.add(
        kind,
        &format!("starts at concurrency {concurrency}"),
        Unit::PerSecond,
        count / started.as_secs_f64(),
    );
    report.add(
        kind,
        &format!("removals at concurrency {concurrency}"),
        Unit::PerSecond,
        count / removed.as_secs_f64(),
    );
    report.add(kind, &format!("memory per idle pod, at {pods}"), Unit::Kilobytes, (full - empty) / count);
    report.add(kind, "memory of the daemon without pods", Unit::Kilobytes, empty);
}

/// Lists of many running pods, asked for one after the other.
pub async fn lists(runtime: &Runtime, pods: usize, concurrency: usize, tag: &str, report: &mut Report) {
    let prepared: Vec<Pod<'_>> = (0..pods)
        .map(|index| {
            let pod = Pod::new(runtime, &format!("{tag}-listed-{index}"), Network::Bridge);
            pod.prepare();
            pod
        })
        .collect();
    let running: Vec<Running<'_>> = stream::iter(prepared)
        .map(|pod| async { pod.start().await.0 })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (cri, name) = (&runtime.cri, runtime.kind.name());
    // The first of each may have to make what the others find.
    for round in 0..=LISTS {
        let began = Instant::now();
        let listed = cri.containers().await.unwrap_or_else(|s| panic!("{name}: ListContainers: {s:?}"));
        let containers = began.elapsed();
        assert_eq!(listed.len(), pods, "{name}: ListContainers");
        let began = Instant::now();
        let request = ListContainerStatsRequest::default();
        let stats = cri.runtime().list_container_stats(request).await;
        let stats = stats.unwrap_or_else(|s| panic!("{name}: ListContainerStats: {s:?}")).into_inner().stats;
        let statistics = began.elapsed();
        assert_eq!(stats.len(), pods, "{name}: ListContainerStats");
        if round > 0 {
            report.time(runtime.kind, &format!("ListContainers of {pods}"), containers);
            report.time(runtime.kind, &format!("ListContainerStats of {pods}"), statistics);
        }
        // As the kubelet: not back to back.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stream::iter(running).map(Running::remove).buffer_unordered(concurrency).collect::<Vec<_>>().await;
}

/// What the workload printed first: its clock is ours.
async fn first_tick(log: &Path) -> Duration {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        // RFC3339 stdout F TEXT
        if let Some(word) = text.lines().next().and_then(|line| line.split(' ').nth(3))
            && text.contains('\n')
        {
            return Duration::from_nanos(word.parse().expect("a time in the log"));
        }
        assert!(Instant::now() < deadline, "{}: nothing was logged", log.display());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).expect("the clock starts at zero");
    Duration::new(seconds, u32::try_from(now.tv_nsec).expect("below a second"))
}
