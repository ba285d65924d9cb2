//! `delete`: what `create` made is taken away, then poststop hooks.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use pinnace_cgroup::{Cgroup, CgroupPath, Hierarchy};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::create::REAPING;
use crate::hooks;
use crate::log::Log;
use crate::runtime::Runtime;
use crate::state::{Container, Status};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Kill it if it has not stopped; one that does not exist is no error
    #[arg(long, short)]
    force: bool,
    /// Container id
    id: String,
}

impl Arguments {
    /// `delete`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let directory = runtime.directory(&self.id)?;
        if self.force && !directory.exists() {
            return Ok(());
        }
        let (container, _lock) = match Container::find_locked(runtime, &self.id) {
            Err(error) if self.force && directory.exists() => {
                // A creation that was interrupted before it made anything else.
                let removed = fs::remove_dir_all(&directory);
                return removed.with_context(|| format!("remove {} ({error:#})", directory.display()));
            }
            other => other?,
        };
        if !self.force {
            container.expect(&[Status::Stopped], "delete")?;
        }
        delete(&container)
    }
}

/// Kills what is left of it and removes everything.
pub(crate) fn delete(container: &Container) -> anyhow::Result<()> {
    let id = &container.record.id;
    let path = CgroupPath::try_from(container.record.cgroup.as_str())?;
    if let Ok(pidfd) = container.pidfd() {
        // Ended meanwhile is as good.
        let _ = pinnace_sys::process::signal(std::os::fd::AsFd::as_fd(&pidfd), 9);
        if let Ok(cgroup) = Cgroup::open(&Hierarchy::detect()?, &path) {
            cgroup.kill_all()?;
            cgroup.thaw()?;
        }
        wait(&pidfd, REAPING);
    }
    // Gone already is fine.
    if let Ok(cgroup) = Cgroup::open(&Hierarchy::detect()?, &path) {
        cgroup.kill_all()?;
        cgroup.remove(REAPING).with_context(|| format!("delete container {id}"))?;
    }
    let hooks = container.spec().and_then(|spec| hooks::Lowered::of(spec.hooks().as_ref()));
    fs::remove_dir_all(&container.directory)
        .with_context(|| format!("remove {}", container.directory.display()))?;
    let state = hooks::state(&container.record, Status::Stopped);
    for error in
        hooks.map_or_else(|error| vec![error], |hooks| hooks::run_all("poststop", &hooks.poststop, &state))
    {
        Log::warn(&error.context(format!("container {id} is deleted")));
    }
    Ok(())
}

/// Until the process has ended, whoever reaps it.
fn wait(pidfd: &std::os::fd::OwnedFd, patience: Duration) {
    let timeout = Timespec::try_from(patience).ok();
    // The removal of the cgroup is the check that counts.
    let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref());
}
