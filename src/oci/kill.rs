//! `kill`: a signal to the container's process, or to all of them.

use anyhow::Context as _;
use clap::Args;
use pinnace_spec::signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::AsFd as _;

use crate::runtime::Runtime;
use crate::state::{Container, Status};

const SIGKILL: i32 = 9;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// To every process of the container
    #[arg(long, short)]
    all: bool,
    /// Container id
    id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

impl Arguments {
    /// `kill`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let number = parse(&self.signal)?;
        let container = Container::find(runtime, &self.id)?;
        let status = container.status()?;
        if self.all && status == Status::Stopped {
            // What is left of a container that shares a PID namespace; callers ask for it at the end.
            return signal_all(&container, number);
        }
        container.expect(&[Status::Created, Status::Running, Status::Paused], "kill")?;
        if self.all {
            return signal_all(&container, number);
        }
        let pidfd = container.pidfd()?;
        pinnace_sys::process::signal(pidfd.as_fd(), number)
            .with_context(|| format!("signal container {}", self.id))?;
        if number == SIGKILL && status == Status::Paused {
            // On v1 a frozen process does not even die.
            container.cgroup()?.thaw()?;
        }
        Ok(())
    }
}

/// `KILL`, `SIGKILL`, `9`; 0 asks whether it lives.
pub(crate) fn parse(text: &str) -> anyhow::Result<i32> {
    if text == "0" {
        return Ok(0);
    }
    Ok(signal::parse(text)?)
}

fn signal_all(container: &Container, number: i32) -> anyhow::Result<()> {
    let Ok(cgroup) = container.cgroup() else { return Ok(()) };
    if number == SIGKILL {
        return Ok(cgroup.kill_all()?);
    }
    for pid in cgroup.pids()? {
        // Gone meanwhile is as good.
        let Some(pidfd) = pidfd(pid) else { continue };
        if cgroup.pids()?.contains(&pid) {
            let _ = pinnace_sys::process::signal(pidfd.as_fd(), number);
        }
    }
    Ok(())
}

fn pidfd(pid: Pid) -> Option<std::os::fd::OwnedFd> {
    pidfd_open(pid, PidfdFlags::empty()).ok()
}
