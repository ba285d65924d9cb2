//! ContainerStats, ListContainerStats, PodSandboxStats, ListPodSandboxStats.
//!
//! A container that goes while it is looked at keeps its place in a list with what was still there; it never fails the list.

use std::sync::Arc;

use pinnace_cgroup::{Memory, Pressure, Stall, Swap, Usage};
use pinnace_cri_api::v1;

use super::list_containers;
use super::list_pod_sandbox::{self, map};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::stats::{self, ContainerSample, Interface, SandboxSample};

/// One container; NotFound if there is none.
pub async fn container(node: &Node, id: &str) -> Result<v1::ContainerStats, Error> {
    let container = node.container(id)?;
    node.blocking(move |node| Ok(container_message(node, &stats::container(node, &container)))).await
}

/// The containers that match: id (or prefix), sandbox and labels.
pub async fn containers(
    node: &Node,
    filter: Option<v1::ContainerStatsFilter>,
) -> Result<Vec<v1::ContainerStats>, Error> {
    let filter = filter.unwrap_or_default();
    let wanted = v1::ContainerFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
        state: None,
    };
    let containers = list_containers::select(node, &wanted);
    node.blocking(move |node| {
        Ok(containers.iter().map(|each| container_message(node, &stats::container(node, each))).collect())
    })
    .await
}

/// One sandbox; NotFound if there is none.
pub async fn sandbox(node: &Node, id: &str) -> Result<v1::PodSandboxStats, Error> {
    let sandbox = node.sandbox(id)?;
    node.blocking(move |node| {
        let containers = node.containers_of(&sandbox.id);
        Ok(sandbox_message(node, &stats::sandbox(node, &sandbox, &containers)))
    })
    .await
}

/// The sandboxes that match: id (or prefix) and labels.
pub async fn sandboxes(
    node: &Node,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Result<Vec<v1::PodSandboxStats>, Error> {
    let filter = filter.unwrap_or_default();
    let wanted = v1::PodSandboxFilter { id: filter.id, label_selector: filter.label_selector, state: None };
    let sandboxes = list_pod_sandbox::select(node, &wanted);
    node.blocking(move |node| {
        let mut containers = node.containers_by_sandbox();
        let message = |sandbox: &Arc<Sandbox>| {
            let own = containers.remove(&sandbox.id).unwrap_or_default();
            sandbox_message(node, &stats::sandbox(node, sandbox, &own))
        };
        Ok(sandboxes.iter().map(message).collect())
    })
    .await
}

fn container_message(node: &Node, sample: &ContainerSample) -> v1::ContainerStats {
    let record = &sample.record;
    let usage = sample.usage.unwrap_or_default();
    let running = sample.usage.is_some();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: record.id.to_string(),
            metadata: Some(list_containers::metadata(record)),
            labels: map(&record.labels),
            annotations: map(&record.annotations),
        }),
        cpu: running.then(|| cpu(&usage, sample.cpu_nano_cores, sample.at_ns)),
        memory: usage.memory.map(|memory| self::memory(&memory, usage.memory_pressure, sample.at_ns)),
        swap: usage.swap.map(|swap| self::swap(&swap, sample.at_ns)),
        io: usage.io_pressure.map(|pressure| io(pressure, sample.at_ns)),
        writable_layer: sample.layer.map(|layer| v1::FilesystemUsage {
            timestamp: sample.at_ns,
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: node.config.daemon.root.display().to_string(),
            }),
            used_bytes: value(layer.bytes),
            inodes_used: value(layer.inodes),
        }),
    }
}

fn sandbox_message(node: &Node, sample: &SandboxSample) -> v1::PodSandboxStats {
    let sandbox = &sample.sandbox;
    let usage = sample.usage.unwrap_or_default();
    let running = sample.usage.is_some();
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.id.to_string(),
            metadata: Some(list_pod_sandbox::metadata(&sandbox.config.name)),
            labels: map(&sandbox.config.labels),
            annotations: map(&sandbox.config.annotations),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: running.then(|| cpu(&usage, sample.cpu_nano_cores, sample.at_ns)),
            memory: usage.memory.map(|memory| self::memory(&memory, usage.memory_pressure, sample.at_ns)),
            network: network(&sample.interfaces, sample.at_ns),
            process: usage
                .tasks
                .map(|tasks| v1::ProcessUsage { timestamp: sample.at_ns, process_count: value(tasks) }),
            containers: sample.containers.iter().map(|each| container_message(node, each)).collect(),
            io: usage.io_pressure.map(|pressure| io(pressure, sample.at_ns)),
        }),
        windows: None,
    }
}

// Wrapper messages say "there is a number", which 0 in a plain field could not.
#[expect(clippy::unnecessary_wraps, reason = "fields of messages are options")]
fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn cpu(usage: &Usage, nano_cores: Option<u64>, timestamp: i64) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp,
        usage_core_nano_seconds: usage.cpu_ns.and_then(value),
        usage_nano_cores: nano_cores.and_then(value),
        psi: usage.cpu_pressure.map(psi),
    }
}

fn memory(memory: &Memory, pressure: Option<Pressure>, timestamp: i64) -> v1::MemoryUsage {
    let available = memory.limit_bytes.map(|limit| limit.saturating_sub(memory.working_set_bytes));
    v1::MemoryUsage {
        timestamp,
        working_set_bytes: value(memory.working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(memory.usage_bytes),
        rss_bytes: value(memory.rss_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: pressure.map(psi),
    }
}

fn swap(swap: &Swap, timestamp: i64) -> v1::SwapUsage {
    let available = swap.limit_bytes.map(|limit| limit.saturating_sub(swap.usage_bytes));
    v1::SwapUsage {
        timestamp,
        swap_available_bytes: available.and_then(value),
        swap_usage_bytes: value(swap.usage_bytes),
    }
}

fn io(pressure: Pressure, timestamp: i64) -> v1::IoUsage {
    v1::IoUsage { timestamp, psi: Some(psi(pressure)) }
}

fn psi(pressure: Pressure) -> v1::PsiStats {
    let data = |stall: Stall| v1::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

/// The pod's own interface first; a pod without one has no network usage.
fn network(interfaces: &[Interface], timestamp: i64) -> Option<v1::NetworkUsage> {
    let message = |interface: &Interface| v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    };
    let is_default = |interface: &&Interface| interface.name == pinnace_network::SANDBOX_IFNAME;
    let default = interfaces.iter().find(is_default).or(interfaces.first())?;
    Some(v1::NetworkUsage {
        timestamp,
        default_interface: Some(message(default)),
        interfaces: interfaces.iter().filter(|each| each.name != default.name).map(message).collect(),
    })
}
