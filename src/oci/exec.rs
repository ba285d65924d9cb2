//! `exec`: another process in a container, by way of a monitor that knows it by a pidfd.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use pinnace_launcher::plan;
use pinnace_launcher::protocol::{Exec, ForeignContainer, ForeignUser, Reply, Request};
use pinnace_spec::process::whole;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::create::{CONTAINER, dial_console, stdio, write_pid};
use crate::foreground::{self, Console, Signals};
use crate::log::Log;
use crate::monitor::{self, Monitor};
use crate::process;
use crate::runtime::{Runtime, open_directory, with_host};
use crate::state::{Container, Status};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Do not wait for its end
    #[arg(long, short)]
    detach: bool,
    /// Write its process id to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that gets the terminal's master
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// Pass on this many descriptors from 3 on
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Also in a paused container, where it waits
    #[arg(long)]
    ignore_paused: bool,
    #[command(flatten)]
    process: process::ProcessArguments,
}

impl Arguments {
    /// `exec`; the status to end with.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<u8> {
        let container = Container::find(runtime, &self.process.id)?;
        match container.status()? {
            Status::Created | Status::Running => {}
            Status::Paused if self.ignore_paused => {}
            status => bail!("cannot exec in container {}: it is {}", self.process.id, status.name()),
        }
        let spec = container.spec()?;
        let process = self.process.process(&spec)?;
        let terminal = process.terminal().unwrap_or(false);
        let (process, warnings) = with_host(|host| Ok(whole(&spec, &process, host)?))?;
        for warning in warnings {
            Log::warn(&anyhow::anyhow!(warning));
        }
        let (ours, theirs) = match (terminal, &self.console_socket) {
            (true, Some(path)) => (None, Some(dial_console(path)?)),
            (true, None) if self.detach => {
                bail!("--tty: its other end needs a receiver, give --console-socket")
            }
            (true, None) => Console::pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            (false, Some(_)) => bail!("--console-socket: the process has no terminal"),
            (false, None) => (None, None),
        };
        let signals = if self.detach { None } else { Some(Signals::take()?) };
        let (mut monitor, pid) = self.begin(&container, process, theirs)?;
        if let Some(path) = &self.pid_file {
            write_pid(path, pid)?;
        }
        let Some(signals) = signals else { return monitor.leave().map(|()| 0) };
        let master = ours.map(Console::master).transpose()?;
        let opened = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        match opened {
            Some(process) => foreground::wait(&mut monitor, &signals, process.as_fd(), master),
            // Over already: only its status is left to be heard.
            None => foreground::wait(&mut monitor, &signals, std::io::stdin().as_fd(), master),
        }
    }

    fn begin(
        &self,
        container: &Container,
        process: plan::Process,
        console: Option<OwnedFd>,
    ) -> anyhow::Result<(Monitor, i32)> {
        let program = monitor::program()?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        let mut slot = |descriptor: OwnedFd| {
            descriptors.push(descriptor);
            plan::Slot::try_from(descriptors.len() - 1).unwrap_or(plan::Slot::MAX)
        };
        let join = container.cgroup()?.join_fds()?;
        let user = container.record.user;
        let exec = Exec {
            exec_id: "exec".to_owned(),
            container_id: CONTAINER.to_owned(),
            process: Some(process),
            cgroup: Some(plan::CgroupJoin {
                tasks: join.tasks.into_iter().map(&mut slot).collect(),
                directory: join.clone_into.map(&mut slot),
                oom_counter: None,
                group_oom_counter: None,
            }),
            stdio: Some(stdio(console, self.preserve_fds, &mut slot)?),
            external: None,
            foreign: Some(ForeignContainer {
                process: slot(container.pidfd()?),
                user: user.map(|user| ForeignUser { own: user.own, root_uid: user.uid, root_gid: user.gid }),
            }),
        };
        // A run directory of its own: that of the container may be another exec's right now.
        let directory = ExecDirectory::make(container)?;
        let run_directory = open_directory(&directory.0)?;
        let id = &container.record.id;
        let mut monitor = Monitor::begin(program.as_fd(), id, run_directory.as_fd(), self.detach, None)?;
        let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        match monitor.ask(Request::Exec(exec), &borrowed)? {
            Reply::Launched(launched) => Ok((monitor, launched.pid)),
            other => bail!("the monitor answered an exec with {other:?}"),
        }
    }
}

/// Where the session's monitor has its socket, which nobody uses.
#[derive(Debug)]
struct ExecDirectory(PathBuf);

impl ExecDirectory {
    fn make(container: &Container) -> anyhow::Result<Self> {
        let path = container.directory.join(format!("exec-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for ExecDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
