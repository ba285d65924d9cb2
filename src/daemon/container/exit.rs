//! What happens when a container's first process ends.

use std::sync::Arc;

use pinnace_cgroup::{Cgroup, CgroupError, CgroupPath};
use pinnace_launcher::protocol::{ContainerRef, Exited, Request};

use super::record::{ContainerRecord, Exit, Status};
use super::{Container, external};
use crate::clock;
use crate::node::Node;
use crate::sandbox::remove::remove_cgroup;

/// Changes the record of something that has happened; a full disk is logged, not believed.
pub fn settle(container: &Container, change: impl Fn(&mut ContainerRecord)) {
    if let Err(error) = container.observe(change) {
        tracing::error!(container_id = %container.id, %error, "record of an exit not written");
    }
}

/// The monitor saw it end.
pub async fn observed(node: &Arc<Node>, container: &Arc<Container>, exited: &Exited) {
    // A start that failed while the process was held has had its end already.
    if !matches!(container.status(), Status::Exited(_)) {
        let exit = Exit::observed(exited);
        tracing::info!(container_id = %container.id, code = exit.code, reason = exit.reason, "container exited");
        ended(node, container, exit).await;
    }
    // Only now that the exit is recorded may the monitor forget it.
    if let Some(monitor) = container.sandbox.monitor() {
        let forget = Request::Forget(ContainerRef { container_id: container.id.to_string() });
        if let Err(error) = monitor.request(forget, &[]).await {
            tracing::debug!(container_id = %container.id, error = error.chain(), "monitor did not forget");
        }
    }
}

/// It has ended, one way or another: what it left running ends, its record says so, its cgroup goes.
pub async fn ended(node: &Arc<Node>, container: &Arc<Container>, exit: Exit) {
    let record = container.record();
    if record.shared_pid {
        // Its PID namespace lives on, and with it what the first process started.
        kill(node, container).await;
    }
    // Before somebody who saw the end removes the bundle.
    external::delete(node, container).await;
    settle(container, |record| record.status = Status::Exited(exit.clone()));
    let path = record.cgroup_path;
    let removed = node.blocking(move |node| remove_cgroup(node, &path.as_str().try_into()?)).await;
    if let Err(error) = removed {
        tracing::warn!(container_id = %container.id, error = error.chain(), "cgroup of an exited container stays");
    }
}

/// Nobody watches it any more: what the monitor has left on disk is the truth, else the end is unknown.
pub async fn without_monitor(node: &Arc<Node>, container: &Arc<Container>) {
    let started_at_ns = match container.status() {
        Status::Running { started_at_ns, .. } => started_at_ns,
        Status::Starting => 0,
        Status::Created | Status::Exited(_) => return,
    };
    kill(node, container).await;
    let exit = match exit_record(container) {
        Some(exited) => Exit::observed(&exited),
        None => Exit::unknown(started_at_ns, clock::realtime_ns()),
    };
    ended(node, container, exit).await;
}

fn exit_record(container: &Container) -> Option<Exited> {
    let name = pinnace_launcher::protocol::exit_record_name(container.id.as_str());
    let bytes = std::fs::read(container.sandbox.directory.join(name)).ok()?;
    prost::Message::decode(bytes.as_slice()).ok()
}

/// SIGKILL for every process in the container's cgroup.
pub async fn kill(node: &Node, container: &Container) {
    let path = container.record().cgroup_path;
    let killed = node.blocking(move |node| {
        match Cgroup::open(&node.hierarchy, &CgroupPath::try_from(path.as_str())?) {
            Err(CgroupError::NotFound { .. }) => Ok(()),
            found => Ok(found?.kill_all()?),
        }
    });
    if let Err(error) = killed.await {
        tracing::error!(container_id = %container.id, error = error.chain(), "kill a container's processes");
    }
}
