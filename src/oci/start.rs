//! `start`: init goes on from where it waits.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_launcher::client;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::hooks;
use crate::log::Log;
use crate::runtime::{Runtime, open_directory, path_of};
use crate::state::{Container, START_SOCKET, Status};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Container id
    id: String,
}

impl Arguments {
    /// `start`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let (mut container, lock) = Container::find_locked(runtime, &self.id)?;
        let started = start(&mut container);
        drop(lock);
        started
    }
}

/// Starts a created container: hooks and execve in init, then poststart hooks.
pub(crate) fn start(container: &mut Container) -> anyhow::Result<()> {
    let id = container.record.id.clone();
    container.expect(&[Status::Created], "start")?;
    let spec = container.spec()?;
    if spec.process().is_none() {
        bail!("cannot start container {id}: its config.json has no process");
    }
    let hooks = hooks::Lowered::of(spec.hooks().as_ref())?;
    let directory = open_directory(&container.directory)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path_of(directory.as_fd(), START_SOCKET))?;
    match connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::CONNREFUSED | Errno::NOENT) => {
            bail!("cannot start container {id}: its process does not wait for that")
        }
        Err(errno) => return Err(errno).context("connect to the start socket"),
    }
    // Whatever comes now, it has been started once.
    container.record.started = true;
    container.save()?;
    client::await_start(socket).with_context(|| format!("start container {id}"))?;
    let state = hooks::state(&container.record, container.status()?);
    for error in hooks::run_all("poststart", &hooks.poststart, &state) {
        Log::warn(&error.context(format!("container {id} runs")));
    }
    Ok(())
}
