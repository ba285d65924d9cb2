//! Stop, kill, restart, pause, unpause.

use std::sync::Arc;
use std::time::Duration;

use pinnace_cgroup::{Cgroup, CgroupPath};

use super::record::State;
use super::{LocalContainer, start};
use crate::container;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// Seconds between stop signal and SIGKILL, as docker has it.
const GRACE_S: i64 = 10;

/// For ever, as far as a clock can be added to.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long clearing up after an end may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What nobody can ignore.
pub const SIGKILL: i32 = 9;

/// Stops a container; one that does not run is stopped already, and one that waits to be started again rests.
pub async fn stop(
    node: &Node,
    local: Arc<LocalContainer>,
    timeout_s: Option<i64>,
    signal: Option<i32>,
) -> Result<(), Error> {
    node.mutation(|node| async move {
        let what = format!("stop container {}", local.record().name);
        stop_local(&node, &local, timeout_s, signal).await.within(|| what)
    })
    .await
}

/// The same within a mutation.
pub async fn stop_local(
    node: &Arc<Node>,
    local: &Arc<LocalContainer>,
    timeout_s: Option<i64>,
    signal: Option<i32>,
) -> Result<(), Error> {
    if !local.state().is_alive() {
        return Ok(());
    }
    by_hand(node, local).await?;
    if let Some(container) = local.live() {
        if let State::Running { paused: true, .. } = local.state() {
            thaw(node, local).await?;
        }
        if let Some(signal) = signal {
            container.change(|record| record.stop_signal = signal)?;
        }
        let seconds = timeout_s.or(local.with(|it| it.settings.stop_timeout_s)).unwrap_or(GRACE_S);
        let grace = u64::try_from(seconds).map_or(FOR_EVER, Duration::from_secs);
        container::stop::stop_container(node, &container, grace).await?;
    }
    let mut state = local.follow();
    let rested = state.wait_for(|state| !state.is_alive());
    if tokio::time::timeout(PATIENCE, rested).await.is_err() {
        return Err(Error::Deadline { what: "clearing up after the container".to_owned(), limit: PATIENCE });
    }
    local.tell(&node.local, "stop", &[]);
    Ok(())
}

/// Whatever the restart policy says, it does not count now.
async fn by_hand(node: &Arc<Node>, local: &Arc<LocalContainer>) -> Result<(), Error> {
    let stopped = Arc::clone(local);
    node.blocking(move |_| {
        stopped.change(|record| {
            record.stopped_by_hand = true;
            if let State::Restarting(ended) = &record.state {
                record.state = State::Exited(ended.clone());
            }
        })
    })
    .await?;
    local.wake.notify_waiters();
    Ok(())
}

/// Sends a signal.
pub async fn kill(node: &Node, local: Arc<LocalContainer>, signal: i32) -> Result<(), Error> {
    node.mutation(|node| async move {
        let what = format!("kill container {}", local.record().name);
        let container = local.running().within(|| what.clone())?;
        if signal == SIGKILL || signal == container.record().stop_signal {
            by_hand(&node, &local).await?;
        }
        container::stop::send(&container, signal).await.within(|| what)?;
        if signal == SIGKILL && matches!(local.state(), State::Running { paused: true, .. }) {
            // Frozen processes of cgroup v1 die when they are thawed.
            thaw(&node, &local).await?;
        }
        local.tell(&node.local, "kill", &[("signal", signal.to_string())]);
        Ok(())
    })
    .await
}

/// Stops and starts it.
pub async fn restart(
    node: &Node,
    local: Arc<LocalContainer>,
    timeout_s: Option<i64>,
    signal: Option<i32>,
) -> Result<(), Error> {
    stop(node, Arc::clone(&local), timeout_s, signal).await?;
    start::start(node, Arc::clone(&local), None).await?;
    local.tell(&node.local, "restart", &[]);
    Ok(())
}

/// Freezes it.
pub async fn pause(node: &Node, local: Arc<LocalContainer>) -> Result<(), Error> {
    node.mutation(|node| async move {
        let what = format!("pause container {}", local.record().name);
        if let State::Running { paused: true, .. } = local.state() {
            return Err(already(&local, "paused", "unpause it first")).within(|| what);
        }
        freeze(&node, &local).await.within(|| what)?;
        local.tell(&node.local, "pause", &[]);
        Ok(())
    })
    .await
}

/// Lets it go on.
pub async fn unpause(node: &Node, local: Arc<LocalContainer>) -> Result<(), Error> {
    node.mutation(|node| async move {
        let what = format!("unpause container {}", local.record().name);
        match local.state() {
            State::Running { paused: true, .. } => thaw(&node, &local).await.within(|| what)?,
            _ => return Err(already(&local, "not paused", "only a paused one can go on")).within(|| what),
        }
        local.tell(&node.local, "unpause", &[]);
        Ok(())
    })
    .await
}

fn already(local: &LocalContainer, state: &str, hint: &str) -> Error {
    Error::State {
        subject: format!("container {}", local.record().name),
        state: state.to_owned(),
        hint: hint.to_owned(),
    }
}

/// Freezes it, and remembers that.
pub(super) async fn freeze(node: &Arc<Node>, local: &Arc<LocalContainer>) -> Result<(), Error> {
    set_frozen(node, local, true).await
}

/// Thaws it, and remembers that.
pub(super) async fn thaw(node: &Arc<Node>, local: &Arc<LocalContainer>) -> Result<(), Error> {
    set_frozen(node, local, false).await
}

async fn set_frozen(node: &Arc<Node>, local: &Arc<LocalContainer>, wanted: bool) -> Result<(), Error> {
    let container = local.running()?;
    let local = Arc::clone(local);
    node.blocking(move |node| {
        let path = container.record().cgroup_path;
        let cgroup = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(path.as_str())?)?;
        if wanted {
            cgroup.freeze()?
        } else {
            cgroup.thaw()?
        }
        local.change(|record| {
            if let State::Running { paused, .. } = &mut record.state {
                *paused = wanted;
            }
        })
    })
    .await
}
