//! A monitor for as long as a command needs one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, bail};
use pinnace_launcher::client::{self, Connection, Event};
use pinnace_launcher::protocol::{Exited, Hello, Reply, Request, Setup, Shutdown, VERSION};

/// A launch can wait for hooks, which have limits of their own.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// A monitor that this process has started. Dropping it ends the monitor and what it has not let go of.
#[derive(Debug)]
pub(crate) struct Monitor {
    child: Child,
    connection: Connection,
    requests: u64,
    exits: Vec<Exited>,
}

impl Monitor {
    /// Starts one that has its socket in `directory` and `user` for a user namespace of its containers. One that leaves is
    /// for [`Monitor::leave`]; the other one hears the end of what it has launched.
    pub fn begin(
        program: BorrowedFd<'_>,
        title: &str,
        directory: BorrowedFd<'_>,
        leaves: bool,
        user: Option<(BorrowedFd<'_>, u32, u32)>,
    ) -> anyhow::Result<Self> {
        let spawned = client::spawn(program, title, Some(io::stderr().as_fd()))?;
        let mut monitor =
            Self { child: spawned.child, connection: spawned.connection, requests: 0, exits: Vec::new() };
        monitor.ask(Request::Hello(Hello { version: VERSION }), &[])?;
        let mut setup = Setup { sandbox_id: title.to_owned(), run_directory: 0, leaves, ..Setup::default() };
        let mut descriptors = vec![directory];
        if let Some((namespace, uid, gid)) = user {
            setup.user = Some(1);
            (setup.root_uid, setup.root_gid) = (uid, gid);
            descriptors.push(namespace);
        }
        monitor.ask(Request::Setup(setup), &descriptors)?;
        Ok(monitor)
    }

    /// Asks for something and waits for the reply; a refusal is an error.
    pub fn ask(&mut self, request: Request, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<Reply> {
        self.requests += 1;
        let exits = &mut self.exits;
        let remember = |event| {
            if let Reply::Exited(exited) = event {
                exits.push(exited);
            }
        };
        Ok(self.connection.call(self.requests, request, descriptors, PATIENCE, remember)?)
    }

    /// The end of the process that was asked for, if it has been told.
    pub fn exited(&mut self) -> anyhow::Result<Option<Exited>> {
        loop {
            if let Some(exited) = self.exits.pop() {
                return Ok(Some(exited));
            }
            match self.connection.recv()? {
                Event::Message(message, _) => {
                    if let Some(Reply::Exited(exited)) = message.reply {
                        self.exits.push(exited);
                    }
                }
                Event::Nothing => return Ok(None),
                Event::Closed => bail!("the monitor ended before its container"),
            }
        }
    }

    /// Readable when something was told.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Ends the monitor and leaves what it has launched, which becomes the child of whoever reaps our orphans.
    pub fn leave(mut self) -> anyhow::Result<()> {
        self.ask(Request::Shutdown(Shutdown { leave: true }), &[])?;
        self.child.wait().context("wait for the monitor")?;
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The monitor's program.
pub(crate) fn program() -> anyhow::Result<OwnedFd> {
    Ok(client::seal(pinnace_monitor_image::BYTES)?)
}
