//! Containers: docker's verbs over the admin API.

mod change;
mod commit;
mod copy;
mod format;
mod human;
mod life;
mod list;
mod logs;
mod look;
mod run;
mod session;
mod settings;
mod stats;
mod volume;

use clap::{Args, Subcommand};

use crate::client::{Client, Target};
use crate::inspect::{Inspect, Kind};

pub use volume::{Volume, value as volume_value};

/// What a user can ask of containers.
#[derive(Debug, Subcommand)]
pub enum Verbs {
    /// Make a container and run it
    #[command(disable_help_flag = true)]
    Run(Box<run::Run>),
    /// Make a container without starting it
    #[command(disable_help_flag = true)]
    Create(Box<run::Create>),
    /// Start containers that do not run
    Start(life::Start),
    /// Stop containers: the stop signal, ten seconds, SIGKILL
    Stop(life::Stop),
    /// Stop and start containers
    Restart(life::Restart),
    /// Send a signal to containers
    Kill(life::Kill),
    /// Freeze containers
    Pause(life::Named),
    /// Let frozen containers go on
    Unpause(life::Named),
    /// Wait until containers do not run, and print their exit codes
    Wait(life::Wait),
    /// Remove containers
    Rm(life::Rm),
    /// Give a container another name
    Rename(change::Rename),
    /// Change limits and restart policies of containers
    Update(change::Update),
    /// Join the streams of a container that runs
    Attach(run::Attach),
    /// Run a further command in a container that runs
    Exec(run::Exec),
    /// Print what a container has written
    Logs(logs::Logs),
    /// List containers
    Ps(list::Ps),
    /// List the processes of a container
    Top(look::Top),
    /// Show what containers use
    Stats(stats::Stats),
    /// List published ports of a container
    Port(look::Port),
    /// List what a container has changed of its image
    Diff(look::Diff),
    /// Copy files between a container and this machine
    Cp(copy::Cp),
    /// Write all files of a container as a tar archive
    Export(copy::Export),
    /// Make an image of a container
    Commit(commit::Commit),
    /// Show what happens to containers and volumes
    Events(look::Events),
}

/// `container VERB`.
#[derive(Debug, Subcommand)]
pub enum Group {
    /// List containers
    #[command(visible_alias = "list")]
    Ls(list::Ps),
    /// Print everything about containers, as JSON
    Inspect(Inspect),
    /// Remove all containers that do not run
    Prune(change::Prune),
    /// The verbs that there are without `container`, too
    #[command(flatten)]
    Verb(Verbs),
}

impl Verbs {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Run(run) => Box::pin(run.run()).await,
            Self::Create(create) => Box::pin(create.run()).await,
            Self::Start(start) => Box::pin(start.run()).await,
            Self::Stop(stop) => stop.run().await,
            Self::Restart(restart) => restart.run().await,
            Self::Kill(kill) => kill.run().await,
            Self::Pause(named) => life::pause(named).await,
            Self::Unpause(named) => life::unpause(named).await,
            Self::Wait(wait) => wait.run().await,
            Self::Rm(rm) => rm.run().await,
            Self::Rename(rename) => rename.run().await,
            Self::Update(update) => update.run().await,
            Self::Attach(attach) => Box::pin(attach.run()).await,
            Self::Exec(exec) => Box::pin(exec.run()).await,
            Self::Logs(logs) => logs.run().await,
            Self::Ps(ps) => ps.run().await,
            Self::Top(top) => top.run().await,
            Self::Stats(stats) => stats.run().await,
            Self::Port(port) => port.run().await,
            Self::Diff(diff) => diff.run().await,
            Self::Cp(cp) => Box::pin(cp.run()).await,
            Self::Export(export) => export.run().await,
            Self::Commit(commit) => commit.run().await,
            Self::Events(events) => events.run().await,
        }
    }
}

impl Group {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Ls(ps) => ps.run().await,
            Self::Inspect(inspect) => inspect.of(Kind::Container).run().await,
            Self::Prune(prune) => prune.run().await,
            Self::Verb(verb) => verb.run().await,
        }
    }
}

/// Containers by id, beginning of it, or name.
#[derive(Debug, Args)]
pub struct Several {
    /// Containers: ids, beginnings of ids, names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Several {
    /// Does something to each in their order and prints the name as it was given; goes on after a failure, and fails at the
    /// end.
    async fn each<F>(self, mut work: F) -> anyhow::Result<()>
    where
        F: AsyncFnMut(&mut Client, String) -> Result<(), tonic::Status>,
    {
        use std::io::Write as _;
        let mut client = Client::connect(&self.target.socket).await?;
        let mut failed = false;
        for container in self.containers {
            match work(&mut client, container.clone()).await {
                Ok(()) => writeln!(std::io::stdout(), "{container}")?,
                Err(status) => {
                    writeln!(std::io::stderr(), "pinnace: {}", status.message())?;
                    failed = true;
                }
            }
        }
        if failed { Err(crate::exit::Exit::silent(1)) } else { Ok(()) }
    }
}

/// Filters `key=value`.
fn filters(given: &[String]) -> anyhow::Result<Vec<pinnace_admin_api::v1::Filter>> {
    let filter = |text: &String| {
        let (key, value) =
            text.split_once('=').ok_or_else(|| anyhow::anyhow!("--filter {text}: is not KEY=VALUE"))?;
        let value = match key {
            "until" => human::parse_time(value)?.to_string(),
            _ => value.to_owned(),
        };
        Ok(pinnace_admin_api::v1::Filter { key: key.to_owned(), value })
    };
    given.iter().map(filter).collect()
}
