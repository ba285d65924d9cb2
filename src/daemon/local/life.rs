//! From a start to its end, and to the next start if the restart policy wants one.

use std::sync::Arc;
use std::time::Duration;

use super::record::{Ended, State};
use super::{LocalContainer, remove, start};
use crate::clock;
use crate::container::Container;
use crate::container::record::{Exit, Status};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox;

/// The first wait of the restart policy; each is twice the one before.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Who has run so long is not one that keeps falling over.
const WELL: Duration = Duration::from_secs(10);

/// Sees a container that was started to its end, in the background.
pub fn follow(node: &Arc<Node>, local: &Arc<LocalContainer>, container: Arc<Container>) {
    // Not one of the tracked tasks: shutdown does not wait for containers.
    tokio::spawn(live(Arc::clone(node), Arc::clone(local), Some(container), None));
}

/// Does what follows the end of a container that nobody has seen.
pub fn follow_end(node: &Arc<Node>, local: &Arc<LocalContainer>, ended: Ended) {
    tokio::spawn(live(Arc::clone(node), Arc::clone(local), None, Some(ended)));
}

async fn live(
    node: Arc<Node>,
    local: Arc<LocalContainer>,
    mut container: Option<Arc<Container>>,
    mut known: Option<Ended>,
) {
    let mut wait = SHORTEST_WAIT;
    loop {
        let ended = match (container.take(), known.take()) {
            (Some(container), _) => match ended(&node, &container).await {
                Some(ended) => ended,
                None => return,
            },
            (None, Some(ended)) => ended,
            (None, None) => return,
        };
        if let Err(error) = clear(&node, &local).await {
            tracing::error!(container_id = %local.id, error = error.chain(), "clear up after a container");
        }
        let ran = ended.finished_at_ns.saturating_sub(ended.started_at_ns);
        if u64::try_from(ran).is_ok_and(|ran| Duration::from_nanos(ran) >= WELL) {
            wait = SHORTEST_WAIT;
        }
        let code = ended.code;
        let again = local.with(|it| it.settings.restart.again(code, it.restarts, it.stopped_by_hand));
        let woken = local.wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        local.observe(|record| {
            record.ports.clear();
            record.state = if again {
                record.restarts = record.restarts.saturating_add(1);
                State::Restarting(ended.clone())
            } else {
                State::Exited(ended.clone())
            };
        });
        local.tell(&node.local, "die", &[("exitCode", code.to_string())]);
        tracing::info!(container_id = %local.id, code, again, "local container exited");
        if !again {
            if local.with(|record| record.settings.auto_remove) {
                remove_by_itself(&node, &local);
            }
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = woken => {}
            () = node.closing.cancelled() => return,
        }
        wait = LONGEST_WAIT.min(wait * 2);
        let _turn = local.turn.lock().await;
        // It was stopped, removed or started meanwhile.
        if !matches!(local.state(), State::Restarting(_)) {
            return;
        }
        match Box::pin(start::begin(&node, &local, None)).await {
            Ok((next, _)) => container = Some(next),
            Err(error) => {
                let now = clock::realtime_ns();
                known = Some(Ended {
                    code: start::exit_code(&error),
                    started_at_ns: now,
                    finished_at_ns: now,
                    oom_killed: false,
                    error: error.chain(),
                });
            }
        }
    }
}

/// How it ended; `None` when the daemon goes first.
async fn ended(node: &Node, container: &Container) -> Option<Ended> {
    let mut status = container.follow();
    let ended = status.wait_for(|status| matches!(status, Status::Exited(_)));
    let status = tokio::select! {
        status = ended => status.ok()?.clone(),
        () = node.closing.cancelled() => return None,
    };
    match status {
        Status::Exited(exit) => Some(of_exit(&exit)),
        Status::Created | Status::Starting | Status::Running { .. } => None,
    }
}

/// The end of the container as that of the local one.
pub fn of_exit(exit: &Exit) -> Ended {
    Ended {
        code: exit.code,
        started_at_ns: exit.started_at_ns,
        finished_at_ns: exit.finished_at_ns,
        oom_killed: exit.reason == "OOMKilled",
        error: exit.message.clone(),
    }
}

/// Takes back what is left of a life: the sandbox with the container in it. The snapshot stays.
pub(super) async fn clear(node: &Arc<Node>, local: &Arc<LocalContainer>) -> Result<(), Error> {
    local.set_live(None);
    match node.sandboxes.exact(local.id.as_str()) {
        Some(sandbox) => {
            let _turn = sandbox.operation.write().await;
            Box::pin(sandbox::remove::remove_sandbox(node, &sandbox)).await
        }
        None => Ok(()),
    }
}

/// The container asked to be removed when it has ended (`--rm`).
pub fn remove_by_itself(node: &Arc<Node>, local: &Arc<LocalContainer>) {
    let (node, local) = (Arc::clone(node), Arc::clone(local));
    let tracker = node.tasks.clone();
    tracker.spawn(async move {
        let options = remove::Options { force: true, volumes: true };
        if let Err(error) = remove::remove(&node, &local, options).await {
            tracing::error!(container_id = %local.id, error = error.chain(), "remove a container that has ended");
        }
    });
}
