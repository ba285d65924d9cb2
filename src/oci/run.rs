//! `run`: create, start, and in the foreground wait and delete.

use std::os::fd::AsFd as _;

use anyhow::bail;
use clap::Args;

use crate::create::{self, Created, Options, dial_console};
use crate::delete::delete;
use crate::foreground::{self, Console, Signals};
use crate::runtime::Runtime;
use crate::start::start;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Do not wait for its end
    #[arg(long, short)]
    detach: bool,
    /// Do not delete it after its end
    #[arg(long)]
    keep: bool,
    /// Container id, unique below `--root`
    id: String,
}

impl Arguments {
    /// `run`; the status to end with.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<u8> {
        let terminal = self.options.wants_terminal()?;
        let (ours, theirs) = match (terminal, &self.options.console_socket) {
            (true, Some(path)) => (None, Some(dial_console(path)?)),
            (true, None) if self.detach => {
                bail!("process.terminal: its other end needs a receiver, give --console-socket")
            }
            (true, None) => Console::pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))?,
            (false, Some(_)) => bail!("--console-socket: the program has no terminal (process.terminal)"),
            (false, None) => (None, None),
        };
        let signals = if self.detach { None } else { Some(Signals::take()?) };
        let Created { mut container, mut monitor } =
            create::create(runtime, &self.id, &self.options, theirs, self.detach)?;
        if let Err(error) = start(&mut container) {
            // What did not start is of no use to anybody.
            let _ = delete(&container);
            return Err(error);
        }
        let Some(signals) = signals else { return monitor.leave().map(|()| 0) };
        let master = ours.map(Console::master).transpose()?;
        let status = match container.pidfd() {
            Ok(process) => foreground::wait(&mut monitor, &signals, process.as_fd(), master)?,
            // Over already: only its status is left to be heard.
            Err(_) => foreground::wait(&mut monitor, &signals, std::io::stdin().as_fd(), master)?,
        };
        if !self.keep {
            delete(&container)?;
        }
        Ok(status)
    }
}
