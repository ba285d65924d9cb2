//! StopContainer: the stop signal, a grace period, SIGKILL; done when the exit was seen.

use std::sync::Arc;
use std::time::Duration;

use pinnace_launcher::protocol::{Request, Signal};
use tokio::time::{Instant, timeout_at};

use super::record::{ContainerRecord, Status};
use super::{Container, exit, external, stuck};
use crate::error::{Error, Within as _};
use crate::node::Node;
use crate::table::lock;

const SIGKILL: i32 = 9;

/// Pauses between looks at what a process hears.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Stops a container; one that is unknown or does not run is stopped already. Goes on if the caller goes away.
pub async fn stop(node: &Node, id: &str, grace: Duration) -> Result<(), Error> {
    let container = match node.container(id) {
        Err(Error::ContainerNotFound(_)) => return Ok(()),
        found => found?,
    };
    node.mutation(|node| async move { stop_container(&node, &container, grace).await }).await
}

/// The same for a container at hand. A second stop cannot extend the first one's grace, only shorten it.
pub async fn stop_container(
    node: &Arc<Node>,
    container: &Arc<Container>,
    grace: Duration,
) -> Result<(), Error> {
    let mut status = container.follow();
    // A start that is under way ends soon, one way or the other.
    let _ = status.wait_for(|status| *status != Status::Starting).await;
    if !is_running(container) {
        return Ok(());
    }
    let what = || format!("stop container {}", container.id);
    let (first, deadline) = {
        let asked = Instant::now() + grace;
        let mut earliest = lock(&container.stop_deadline);
        let deadline = earliest.map_or(asked, |known| known.min(asked));
        (earliest.replace(deadline).is_none(), deadline)
    };
    if first && !grace.is_zero() {
        let record = container.record();
        let ended = status.wait_for(|status| matches!(status, Status::Exited(_)));
        let is_heard = tokio::select! {
            () = heard(&record) => true,
            _ = timeout_at(deadline, ended) => false,
        };
        if is_heard && let Err(error) = ask(node, container, record.stop_signal).await {
            if container.sandbox.monitor().is_none() {
                return Err(error).within(what);
            }
            // It has ended at this very moment, which the monitor knows first; else the kill comes at the deadline.
            tracing::debug!(container_id = %container.id, error = error.chain(), "stop signal not sent");
        }
    }
    if timeout_at(deadline, status.wait_for(|status| matches!(status, Status::Exited(_)))).await.is_ok() {
        return Ok(());
    }
    kill(node, container).await;
    let limit = node.config.container.kill_timeout;
    let exited = status.wait_for(|status| matches!(status, Status::Exited(_)));
    let is_gone = tokio::time::timeout(limit, exited).await.is_ok();
    if is_gone { Ok(()) } else { Err(left(node, container, limit).await).within(what) }
}

/// What is said of a container that does not die: the kernel ends a process only where it can be interrupted.
async fn left(node: &Node, container: &Container, limit: Duration) -> Error {
    let path = container.record().cgroup_path;
    let processes = node.blocking(move |node| stuck::processes(node, &path)).await.unwrap_or_default();
    if processes.is_empty() {
        return Error::Deadline { what: "the killed process".to_owned(), limit };
    }
    Error::Undead { processes, limit }
}

fn is_running(container: &Container) -> bool {
    matches!(container.status(), Status::Running { .. })
}

/// Waits until the first process would hear its stop signal. The kernel drops a signal that the first process of a PID
/// namespace neither handles nor blocks (pid_namespaces(7)), and for its first milliseconds no program does: a stop right
/// after a start would wait out its whole grace.
async fn heard(record: &ContainerRecord) {
    let Status::Running { pid, .. } = record.status else { return };
    let mut pause = SHORTEST_PAUSE;
    while !record.shared_pid && !hears(pid, record.stop_signal) {
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Whether a process handles or blocks a signal, by proc_pid_status(5); one that is gone need not be waited for.
fn hears(pid: i32, signal: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let masks = text.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigCgt:").or_else(|| line.strip_prefix("SigBlk:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    let bit = u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or(0);
    signal == SIGKILL || masks.fold(0, std::ops::BitOr::bitor) & bit != 0
}

/// Its own PID namespace makes the first process's end everybody's; without one each is killed.
async fn kill(node: &Arc<Node>, container: &Arc<Container>) {
    match send(container, SIGKILL).await {
        Ok(()) if !container.record().shared_pid => {}
        Ok(()) => exit::kill(node, container).await,
        Err(error) => {
            tracing::warn!(container_id = %container.id, error = error.chain(), "kill without the monitor");
            if container.sandbox.monitor().is_none() {
                exit::without_monitor(node, container).await;
            } else {
                exit::kill(node, container).await;
            }
        }
    }
}

/// The stop signal goes by the external runtime, if there is one.
async fn ask(node: &Node, container: &Container, signal: i32) -> Result<(), Error> {
    match external::runtime(node, container)? {
        Some(runtime) => external::kill(container, runtime, signal).await,
        None => send(container, signal).await,
    }
}

/// Sends a signal to its first process.
pub(crate) async fn send(container: &Container, signal: i32) -> Result<(), Error> {
    let monitor =
        container.sandbox.monitor().ok_or_else(|| Error::MonitorGone(container.sandbox.id.clone()))?;
    let request = Signal { container_id: container.id.to_string(), signal, ..Signal::default() };
    monitor.request(Request::Signal(request), &[]).await.map(drop)
}
