//! Stats: what containers use, once or every second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinnace_admin_api::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;

use crate::error::Error;
use crate::local::LocalContainer;
use crate::node::Node;
use crate::stats;

/// Between two looks: CPU use is what was used between them.
const INTERVAL: Duration = Duration::from_secs(1);

/// CPU time when a container was looked at last.
type Seen = HashMap<String, (Instant, u64)>;

/// Answers Stats.
pub fn answer(node: &Node, request: v1::StatsRequest) -> Result<BoxStream<v1::StatsFrame>, Error> {
    let named: Vec<_> =
        request.containers.iter().map(|name| node.local.find(name)).collect::<Result<_, _>>()?;
    let node = node.shared()?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut seen = Seen::new();
        let mut first = true;
        loop {
            let mut containers = if named.is_empty() { node.local.containers.all() } else { named.clone() };
            if named.is_empty() && !request.all {
                containers.retain(|local| local.state().is_running());
            }
            let mut known = std::mem::take(&mut seen);
            let looked = node.blocking(move |node| {
                let looked = containers.iter().map(|local| look(node, local, &mut known)).collect::<Vec<_>>();
                Ok((looked, known))
            });
            let Ok((containers, known)) = looked.await else { return };
            seen = known;
            // The first look has nothing to compare with.
            if !first && sender.send(Ok(v1::StatsFrame { containers })).await.is_err() {
                return;
            }
            if !first && !request.stream {
                return;
            }
            first = false;
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = sender.closed() => return,
                () = node.closing.cancelled() => return,
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn look(node: &Node, local: &Arc<LocalContainer>, seen: &mut Seen) -> v1::ContainerStats {
    let record = local.record();
    let cpus =
        std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let mut message = v1::ContainerStats {
        id: record.id.to_string(),
        name: record.name,
        online_cpus: cpus,
        ..Default::default()
    };
    let Some(container) = local.live() else { return message };
    let sample = stats::sandbox(node, &container.sandbox, std::slice::from_ref(&container));
    if let Some(usage) = sample.containers.first().and_then(|sample| sample.usage) {
        let now = Instant::now();
        if let Some(cpu_ns) = usage.cpu_ns
            && let Some((at, before)) = seen.insert(message.id.clone(), (now, cpu_ns))
        {
            let elapsed = now.duration_since(at).as_secs_f64();
            let used = Duration::from_nanos(cpu_ns.saturating_sub(before)).as_secs_f64();
            message.cpu_percent = if elapsed > 0.0 { used / elapsed * 100.0 } else { 0.0 };
        }
        if let Some(memory) = usage.memory {
            message.memory_bytes = memory.working_set_bytes;
            message.memory_limit_bytes =
                memory.limit_bytes.unwrap_or_else(machine_memory).min(machine_memory());
        }
        message.pids = usage.tasks.unwrap_or(0);
    }
    for interface in &sample.interfaces {
        message.net_received_bytes = message.net_received_bytes.saturating_add(interface.received.bytes);
        message.net_sent_bytes = message.net_sent_bytes.saturating_add(interface.sent.bytes);
    }
    if let Some((detail, _)) = stats::detail(node, &container.record()) {
        for disk in &detail.io {
            message.block_read_bytes = message.block_read_bytes.saturating_add(disk.read_bytes);
            message.block_written_bytes = message.block_written_bytes.saturating_add(disk.write_bytes);
        }
    }
    message
}

fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}
