//! ListMetricDescriptors, ListPodSandboxMetrics: what cAdvisor would show of pods and containers, under its names, so that
//! a node needs no cAdvisor (KEP-2371).
//!
//! A sample's labels are those of its pod or container, then the family's own, in the order of the descriptor. Values are
//! whole numbers on this wire, so times are in whole seconds.

use std::path::Path;
use std::sync::Arc;

use pinnace_cgroup::{Detail, DeviceIo, Usage};
use pinnace_cri_api::v1;

use crate::container::record::{ContainerRecord, Status};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::stats::{self, ContainerSample, Interface, Processes};

/// Labels of every sample. `container`, `pod` and `namespace` are what dashboards join by.
const COMMON_LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

use v1::MetricType::{Counter, Gauge};

/// A metric with its own labels, which the sample that belongs to it must give in the same number.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: v1::MetricType,
    labels: &'static [&'static str],
}

macro_rules! families {
    ($($id:ident $name:literal $kind:ident [$($label:literal),*] $help:literal)*) => {
        $(const $id: Family = Family { name: $name, help: $help, kind: $kind, labels: &[$($label),*] };)*
        const FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    BLKIO "container_blkio_device_usage_total" Counter ["device", "major", "minor", "operation"] "Bytes transferred per block device and operation."
    CFS_PERIODS "container_cpu_cfs_periods_total" Counter [] "Enforcement periods of the CPU quota that have elapsed."
    CFS_THROTTLED_PERIODS "container_cpu_cfs_throttled_periods_total" Counter [] "Enforcement periods in which the CPU quota ran out."
    CFS_THROTTLED "container_cpu_cfs_throttled_seconds_total" Counter [] "Time for which the CPU quota held tasks back, in seconds."
    CPU_SYSTEM "container_cpu_system_seconds_total" Counter [] "CPU time in the kernel, in seconds."
    CPU_USAGE "container_cpu_usage_seconds_total" Counter ["cpu"] "CPU time, in seconds."
    CPU_USER "container_cpu_user_seconds_total" Counter [] "CPU time in programs, in seconds."
    FILE_DESCRIPTORS "container_file_descriptors" Gauge [] "Open file descriptors."
    FS_INODES_FREE "container_fs_inodes_free" Gauge ["device"] "Free inodes of the file system of the writable layer."
    FS_INODES_TOTAL "container_fs_inodes_total" Gauge ["device"] "Inodes of the file system of the writable layer."
    FS_LIMIT "container_fs_limit_bytes" Gauge ["device"] "Limit of the writable layer, or the size of its file system, in bytes."
    FS_READS_BYTES "container_fs_reads_bytes_total" Counter ["device"] "Bytes read from block devices."
    FS_READS "container_fs_reads_total" Counter ["device"] "Read operations on block devices."
    FS_USAGE "container_fs_usage_bytes" Gauge ["device"] "Size of the writable layer, in bytes."
    FS_WRITES_BYTES "container_fs_writes_bytes_total" Counter ["device"] "Bytes written to block devices."
    FS_WRITES "container_fs_writes_total" Counter ["device"] "Write operations on block devices."
    HUGETLB_MAX "container_hugetlb_max_usage_bytes" Gauge ["pagesize"] "Most huge page memory ever in use, in bytes."
    HUGETLB "container_hugetlb_usage_bytes" Gauge ["pagesize"] "Huge page memory in use, in bytes."
    LAST_SEEN "container_last_seen" Gauge [] "When this was measured, in seconds since the epoch."
    MEMORY_CACHE "container_memory_cache" Gauge [] "Page cache, in bytes."
    MEMORY_FAILCNT "container_memory_failcnt" Counter [] "How often the memory limit was hit."
    MEMORY_FAILURES "container_memory_failures_total" Counter ["failure_type", "scope"] "Page faults."
    MEMORY_KERNEL "container_memory_kernel_usage" Gauge [] "Kernel memory, in bytes."
    MEMORY_MAPPED_FILE "container_memory_mapped_file" Gauge [] "Files that are mapped into memory, in bytes."
    MEMORY_MAX "container_memory_max_usage_bytes" Gauge [] "Most memory ever in use, in bytes."
    MEMORY_RSS "container_memory_rss" Gauge [] "Anonymous memory, in bytes."
    MEMORY_SWAP "container_memory_swap" Gauge [] "Swap in use, in bytes."
    MEMORY_USAGE "container_memory_usage_bytes" Gauge [] "Memory in use, page cache included, in bytes."
    MEMORY_WORKING_SET "container_memory_working_set_bytes" Gauge [] "Memory in use without inactive page cache, in bytes."
    RECEIVE_BYTES "container_network_receive_bytes_total" Counter ["interface"] "Bytes received."
    RECEIVE_ERRORS "container_network_receive_errors_total" Counter ["interface"] "Errors on receipt."
    RECEIVE_DROPPED "container_network_receive_packets_dropped_total" Counter ["interface"] "Packets dropped on receipt."
    RECEIVE_PACKETS "container_network_receive_packets_total" Counter ["interface"] "Packets received."
    TRANSMIT_BYTES "container_network_transmit_bytes_total" Counter ["interface"] "Bytes sent."
    TRANSMIT_ERRORS "container_network_transmit_errors_total" Counter ["interface"] "Errors on sending."
    TRANSMIT_DROPPED "container_network_transmit_packets_dropped_total" Counter ["interface"] "Packets dropped on sending."
    TRANSMIT_PACKETS "container_network_transmit_packets_total" Counter ["interface"] "Packets sent."
    OOM_EVENTS "container_oom_events_total" Counter [] "Processes that the OOM killer has taken."
    PRESSURE_CPU_STALLED "container_pressure_cpu_stalled_seconds_total" Counter [] "Time for which no task had a CPU, in seconds."
    PRESSURE_CPU_WAITING "container_pressure_cpu_waiting_seconds_total" Counter [] "Time for which some task waited for a CPU, in seconds."
    PRESSURE_IO_STALLED "container_pressure_io_stalled_seconds_total" Counter [] "Time for which all tasks waited for storage, in seconds."
    PRESSURE_IO_WAITING "container_pressure_io_waiting_seconds_total" Counter [] "Time for which some task waited for storage, in seconds."
    PRESSURE_MEMORY_STALLED "container_pressure_memory_stalled_seconds_total" Counter [] "Time for which all tasks waited for memory, in seconds."
    PRESSURE_MEMORY_WAITING "container_pressure_memory_waiting_seconds_total" Counter [] "Time for which some task waited for memory, in seconds."
    PROCESSES "container_processes" Gauge [] "Processes."
    SOCKETS "container_sockets" Gauge [] "Open sockets."
    SPEC_CPU_PERIOD "container_spec_cpu_period" Gauge [] "Period of the CPU quota, in microseconds."
    SPEC_CPU_QUOTA "container_spec_cpu_quota" Gauge [] "CPU quota, in microseconds per period."
    SPEC_CPU_SHARES "container_spec_cpu_shares" Gauge [] "Relative CPU weight."
    SPEC_MEMORY_LIMIT "container_spec_memory_limit_bytes" Gauge [] "Memory limit, in bytes; 0 is none."
    SPEC_MEMORY_RESERVATION "container_spec_memory_reservation_limit_bytes" Gauge [] "Memory that is protected from reclaim, in bytes; 0 is none."
    SPEC_MEMORY_SWAP "container_spec_memory_swap_limit_bytes" Gauge [] "Limit of memory and swap together, in bytes; 0 is none."
    START_TIME "container_start_time_seconds" Gauge [] "When it was started, in seconds since the epoch."
    THREADS "container_threads" Gauge [] "Threads."
    THREADS_MAX "container_threads_max" Gauge [] "Most threads it may have; 0 is unlimited."
    ULIMITS "container_ulimits_soft" Gauge ["ulimit"] "Soft limits of the first process; the largest number is unlimited."
}

/// What there is.
pub fn descriptors() -> v1::ListMetricDescriptorsResponse {
    let keys = |family: &Family| COMMON_LABELS.iter().chain(family.labels).map(ToString::to_string).collect();
    let message = |family: &&Family| v1::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: keys(family),
    };
    v1::ListMetricDescriptorsResponse { descriptors: FAMILIES.iter().map(message).collect() }
}

/// Samples of all pods.
pub async fn pods(node: &Node) -> Result<Vec<v1::PodSandboxMetrics>, Error> {
    node.blocking(|node| {
        let mut containers = node.containers_by_sandbox();
        let disk = Disk::of(&node.config.daemon.root, node.config.container.writable_layer_limit);
        let pod = |sandbox: &Arc<Sandbox>| {
            let own = containers.remove(&sandbox.id).unwrap_or_default();
            let sample = stats::sandbox(node, sandbox, &own);
            let of_container = |sample: &ContainerSample| {
                let metrics = container(sandbox, sample, stats::detail(node, &sample.record)?, &disk);
                Some(v1::ContainerMetrics { container_id: sample.record.id.to_string(), metrics })
            };
            v1::PodSandboxMetrics {
                pod_sandbox_id: sandbox.id.to_string(),
                metrics: interfaces(sandbox, &sample.interfaces),
                container_metrics: sample.containers.iter().filter_map(of_container).collect(),
            }
        };
        Ok(node.pods().iter().map(pod).collect())
    })
    .await
}

/// Samples with the same common labels.
struct Samples {
    common: [String; COMMON_LABELS.len()],
    metrics: Vec<v1::Metric>,
}

impl Samples {
    fn push<const N: usize>(&mut self, family: &Family, labels: [&str; N], value: u64) {
        debug_assert_eq!(N, family.labels.len(), "{}", family.name);
        let own = labels.into_iter().map(str::to_owned);
        self.metrics.push(v1::Metric {
            name: family.name.to_owned(),
            timestamp: 0,
            metric_type: family.kind.into(),
            label_values: self.common.iter().cloned().chain(own).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }

    /// If there is a value.
    fn some(&mut self, family: &Family, value: Option<u64>) {
        if let Some(value) = value {
            self.push(family, [], value);
        }
    }
}

fn interfaces(sandbox: &Sandbox, interfaces: &[Interface]) -> Vec<v1::Metric> {
    let name = &sandbox.config.name;
    // The pod's network was its pause container's in the peers, and dashboards know it by the name POD.
    let common = [sandbox.id.as_str(), sandbox.id.as_str(), "", "POD", &name.name, &name.namespace];
    let mut samples = Samples { common: common.map(str::to_owned), metrics: Vec::new() };
    for interface in interfaces {
        let directions = [
            (interface.received, [&RECEIVE_BYTES, &RECEIVE_PACKETS, &RECEIVE_ERRORS, &RECEIVE_DROPPED]),
            (interface.sent, [&TRANSMIT_BYTES, &TRANSMIT_PACKETS, &TRANSMIT_ERRORS, &TRANSMIT_DROPPED]),
        ];
        for (counters, families) in directions {
            let values = [counters.bytes, counters.packets, counters.errors, counters.dropped];
            for (family, value) in families.into_iter().zip(values) {
                samples.push(family, [&interface.name], value);
            }
        }
    }
    samples.metrics
}

fn container(
    sandbox: &Sandbox,
    sample: &ContainerSample,
    (detail, processes): (Detail, Processes),
    disk: &Disk,
) -> Vec<v1::Metric> {
    let record = &sample.record;
    let (pod, image) = (&sandbox.config.name, &record.image.name);
    let common =
        [record.id.as_str(), record.id.as_str(), image, &record.name.name, &pod.name, &pod.namespace];
    let mut samples = Samples { common: common.map(str::to_owned), metrics: Vec::with_capacity(64) };
    samples.push(&LAST_SEEN, [], seconds(u64::try_from(sample.at_ns).unwrap_or(0)));
    if let Status::Running { started_at_ns, .. } = record.status {
        samples.push(&START_TIME, [], seconds(u64::try_from(started_at_ns).unwrap_or(0)));
    }
    of_usage(&mut samples, &sample.usage.unwrap_or_default());
    of_detail(&mut samples, &detail);
    of_processes(&mut samples, &processes);
    of_limits(&mut samples, record);
    of_disk(&mut samples, sample, disk);
    samples.metrics
}

fn seconds(ns: u64) -> u64 {
    ns / 1_000_000_000
}

fn of_usage(samples: &mut Samples, usage: &Usage) {
    if let Some(ns) = usage.cpu_ns {
        samples.push(&CPU_USAGE, ["total"], seconds(ns));
    }
    samples.some(&THREADS, usage.tasks);
    if let Some(memory) = usage.memory {
        samples.push(&MEMORY_USAGE, [], memory.usage_bytes);
        samples.push(&MEMORY_WORKING_SET, [], memory.working_set_bytes);
        samples.push(&MEMORY_RSS, [], memory.rss_bytes);
        samples.push(&MEMORY_CACHE, [], memory.cache_bytes);
        samples.push(&MEMORY_MAPPED_FILE, [], memory.mapped_file_bytes);
        for (kind, value) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
            samples.push(&MEMORY_FAILURES, [kind, "hierarchy"], value);
        }
    }
    samples.some(&MEMORY_SWAP, usage.swap.map(|swap| swap.usage_bytes));
    let pressures = [
        (usage.cpu_pressure, &PRESSURE_CPU_WAITING, &PRESSURE_CPU_STALLED),
        (usage.memory_pressure, &PRESSURE_MEMORY_WAITING, &PRESSURE_MEMORY_STALLED),
        (usage.io_pressure, &PRESSURE_IO_WAITING, &PRESSURE_IO_STALLED),
    ];
    for (pressure, waiting, stalled) in pressures {
        samples.some(waiting, pressure.map(|pressure| pressure.some.total_us / 1_000_000));
        samples.some(stalled, pressure.map(|pressure| pressure.full.total_us / 1_000_000));
    }
}

fn of_detail(samples: &mut Samples, detail: &Detail) {
    samples.some(&CPU_USER, detail.user_ns.map(seconds));
    samples.some(&CPU_SYSTEM, detail.system_ns.map(seconds));
    samples.some(&CFS_PERIODS, detail.cfs_periods);
    samples.some(&CFS_THROTTLED_PERIODS, detail.throttled_periods);
    samples.some(&CFS_THROTTLED, detail.throttled_ns.map(seconds));
    samples.some(&MEMORY_MAX, detail.max_memory_bytes);
    samples.some(&MEMORY_KERNEL, detail.kernel_bytes);
    samples.some(&MEMORY_FAILCNT, detail.limit_hits);
    samples.some(&OOM_EVENTS, detail.oom_kills);
    samples.push(&THREADS_MAX, [], detail.tasks_max.unwrap_or(0));
    for (size, pages) in &detail.huge_pages {
        samples.push(&HUGETLB, [size], pages.usage_bytes);
        if let Some(most) = pages.max_usage_bytes {
            samples.push(&HUGETLB_MAX, [size], most);
        }
    }
    for io in &detail.io {
        let DeviceIo { major, minor, .. } = io;
        let device = block_device(*major, *minor);
        let (major, minor) = (major.to_string(), minor.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
            samples.push(&BLKIO, [&device, &major, &minor, operation], bytes);
        }
        samples.push(&FS_READS_BYTES, [&device], io.read_bytes);
        samples.push(&FS_WRITES_BYTES, [&device], io.write_bytes);
        samples.push(&FS_READS, [&device], io.reads);
        samples.push(&FS_WRITES, [&device], io.writes);
    }
}

fn of_processes(samples: &mut Samples, processes: &Processes) {
    samples.push(&PROCESSES, [], processes.count);
    samples.push(&FILE_DESCRIPTORS, [], processes.file_descriptors);
    samples.push(&SOCKETS, [], processes.sockets);
    for (name, limit) in &processes.soft_limits {
        samples.push(&ULIMITS, [name], limit.unwrap_or(u64::MAX));
    }
}

fn of_limits(samples: &mut Samples, record: &ContainerRecord) {
    let resources = &record.resources;
    // Negative is unlimited, which these metrics show as 0.
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    samples.push(&SPEC_CPU_PERIOD, [], number(resources.cpu_period_us));
    samples.push(&SPEC_CPU_QUOTA, [], number(resources.cpu_quota_us));
    samples.push(&SPEC_CPU_SHARES, [], number(resources.cpu_shares));
    samples.push(&SPEC_MEMORY_LIMIT, [], number(resources.memory_limit_bytes));
    samples.push(&SPEC_MEMORY_SWAP, [], number(resources.memory_swap_limit_bytes));
    let low = resources.unified.get("memory.low").and_then(|value| value.parse().ok());
    samples.push(&SPEC_MEMORY_RESERVATION, [], low.unwrap_or(0));
}

/// The file system that writable layers lie on.
struct Disk {
    device: String,
    /// What a writable layer can grow to: its limit, or all of the file system.
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Disk {
    fn of(root: &Path, limit: Option<u64>) -> Self {
        let device = match rustix::fs::stat(root) {
            Ok(stat) => block_device(rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)),
            Err(_) => String::new(),
        };
        let (bytes, inodes, inodes_free) = match rustix::fs::statvfs(root) {
            Ok(stat) => (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_files, stat.f_ffree),
            Err(_) => (0, 0, 0),
        };
        Self { device, bytes: limit.unwrap_or(bytes), inodes, inodes_free }
    }
}

fn of_disk(samples: &mut Samples, sample: &ContainerSample, disk: &Disk) {
    let device = [disk.device.as_str()];
    samples.push(&FS_LIMIT, device, disk.bytes);
    samples.push(&FS_INODES_TOTAL, device, disk.inodes);
    samples.push(&FS_INODES_FREE, device, disk.inodes_free);
    if let Some(layer) = sample.layer {
        samples.push(&FS_USAGE, device, layer.bytes);
    }
}

/// Path of a block device by its numbers (sysfs(5)), else the numbers: not all have a name, e.g. those of btrfs.
fn block_device(major: u32, minor: u32) -> String {
    let numbers = format!("{major}:{minor}");
    let link = std::fs::read_link(Path::new("/sys/dev/block").join(&numbers));
    match link.ok().as_deref().and_then(Path::file_name) {
        Some(name) => format!("/dev/{}", name.to_string_lossy()),
        None => numbers,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn families_are_distinct_and_say_what_they_are() {
        let names: HashSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            // The convention by which scrapers know counters; the exceptions are cAdvisor's.
            let counts = match family.name {
                "container_memory_failcnt" => true,
                "container_fs_inodes_total" => false,
                name => name.ends_with("_total"),
            };
            assert_eq!(family.kind == Counter, counts, "{}", family.name);
            assert!(family.help.ends_with('.') || family.help.contains("; "), "{}", family.name);
        }
    }
}
