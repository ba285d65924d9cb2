//! Health: a command that is run in the container now and then, and what its exit codes say.
//!
//! ```text
//!            0                      0
//! starting ─────► healthy ◄──────────────── unhealthy
//!     │              │   retries in a row        ▲
//!     └──────────────┴───────────────────────────┘
//!       retries in a row, after the start period
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::record::{HealthCheck, State};
use super::{LocalContainer, create};
use crate::clock;
use crate::container::Container;
use crate::container::exec::{Command, Exec};
use crate::container::record::Status;
use crate::error::Error;
use crate::node::Node;
use crate::table::lock;

/// Results that are kept for who looks.
const KEPT: usize = 5;

/// Bytes of output that are kept of each.
const OUTPUT_BYTES: usize = 4096;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// How a container is.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// `None` without a check.
    pub status: Option<Judgement>,
    /// Failures in a row.
    pub failing: u32,
    /// The last checks, the newest last.
    pub log: VecDeque<Checked>,
}

/// What the checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing yet.
    Starting,
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy,
}

impl Judgement {
    /// As docker writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// `CLOCK_REALTIME` ns.
    pub start_ns: i64,
    /// `CLOCK_REALTIME` ns.
    pub end_ns: i64,
    /// 0 is well; -1 when it could not be run or took too long.
    pub code: i32,
    /// What it wrote.
    pub output: String,
}

impl Health {
    /// Takes a result in; whether the judgement changes.
    fn take(&mut self, checked: Checked, retries: u32, in_start_period: bool) -> bool {
        let before = self.status;
        if checked.code == 0 {
            self.failing = 0;
            self.status = Some(Judgement::Healthy);
        } else if !(in_start_period && before == Some(Judgement::Starting)) {
            self.failing = self.failing.saturating_add(1);
            if self.failing >= retries {
                self.status = Some(Judgement::Unhealthy);
            }
        }
        if self.log.len() == KEPT {
            self.log.pop_front();
        }
        self.log.push_back(checked);
        self.status != before
    }
}

/// Checks a container that was started until it ends, if it has a check.
pub fn watch(node: &Arc<Node>, local: &Arc<LocalContainer>, container: &Arc<Container>) {
    let check = local.with(create::health);
    *lock(&local.health) =
        Health { status: check.as_ref().map(|_| Judgement::Starting), ..Health::default() };
    let Some(check) = check else { return };
    let (node, local, container) = (Arc::clone(node), Arc::clone(local), Arc::clone(container));
    tokio::spawn(async move {
        let mut status = container.follow();
        let closing = node.closing.clone();
        tokio::select! {
            () = Box::pin(repeat(&node, &local, &container, &check)) => {}
            _ = status.wait_for(|status| matches!(status, Status::Exited(_))) => {}
            () = closing.cancelled() => {}
        }
    });
}

async fn repeat(node: &Arc<Node>, local: &LocalContainer, container: &Arc<Container>, check: &HealthCheck) {
    let or = |own: Duration, default| if own.is_zero() { default } else { own };
    let begun = Instant::now();
    let retries = if check.retries == 0 { RETRIES } else { check.retries };
    loop {
        let in_start_period = begun.elapsed() < check.start_period;
        let starting = lock(&local.health).status == Some(Judgement::Starting);
        let pause = if in_start_period && starting {
            or(check.start_interval, START_INTERVAL)
        } else {
            or(check.interval, INTERVAL)
        };
        tokio::time::sleep(pause).await;
        if !matches!(local.state(), State::Running { paused: false, .. }) {
            continue;
        }
        let start_ns = clock::realtime_ns();
        let timeout = or(check.timeout, TIMEOUT);
        let (code, output) = match Box::pin(run(node, container, check, timeout)).await {
            Ok(result) => result,
            Err(error) => (-1, error.chain()),
        };
        let checked = Checked { start_ns, end_ns: clock::realtime_ns(), code, output };
        let changed = {
            let mut health = lock(&local.health);
            let in_start_period = begun.elapsed() < check.start_period;
            health.take(checked, retries, in_start_period).then_some(health.status).flatten()
        };
        if let Some(judgement) = changed {
            local.tell(&node.local, format!("health_status: {}", judgement.name()), &[]);
        }
    }
}

async fn run(
    node: &Arc<Node>,
    container: &Arc<Container>,
    check: &HealthCheck,
    timeout: Duration,
) -> Result<(i32, String), Error> {
    let args = match check.test.split_first() {
        Some((kind, line)) if kind == "CMD-SHELL" => {
            vec!["/bin/sh".to_owned(), "-c".to_owned(), line.join(" ")]
        }
        Some((_, args)) => args.to_vec(),
        None => Vec::new(),
    };
    let command = Command { args, stdout: true, stderr: true, ..Command::default() };
    let (mut exec, streams) = Exec::start(node, container, command).await?;
    let mut kept = Vec::new();
    let work = async {
        for end in [streams.stdout, streams.stderr].into_iter().flatten() {
            let end = tokio::net::unix::pipe::Receiver::from_owned_fd(end);
            let mut end = end.map_err(Error::io("register", "pipe of a health check"))?;
            let mut chunk = [0; 1024];
            while let Ok(count @ 1..) = end.read(&mut chunk).await {
                let room = OUTPUT_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(&chunk[..count.min(room)]);
            }
        }
        exec.ended().await
    };
    let ended = tokio::time::timeout(timeout, work).await;
    let killed = if ended.is_err() { exec.kill(node).await } else { Ok(()) };
    exec.clear(node).await;
    killed?;
    let limit = || Error::Deadline { what: "the health check".to_owned(), limit: timeout };
    let exited = ended.map_err(|_| limit())??;
    Ok((exited.code, String::from_utf8_lossy(&kept).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(code: i32) -> Checked {
        Checked { start_ns: 0, end_ns: 0, code, output: String::new() }
    }

    #[test]
    fn failures_in_a_row_are_bad_and_one_success_is_good() {
        let mut health = Health { status: Some(Judgement::Starting), ..Health::default() };
        assert!(!health.take(checked(1), 2, true), "in the start period nothing counts");
        assert!(!health.take(checked(1), 2, false));
        assert!(health.take(checked(1), 2, false));
        assert_eq!(health.status, Some(Judgement::Unhealthy));
        assert!(health.take(checked(0), 2, false));
        assert_eq!((health.status, health.failing), (Some(Judgement::Healthy), 0));
        assert_eq!(health.log.len(), 4);
    }
}
