//! `rename`, `update`, `container prune`.

use std::io::{self, Write as _};

use clap::Args;
use pinnace_admin_api::v1;

use super::human;
use super::{Several, filters, settings};
use crate::client::{Client, Target};
use crate::exit::Exit;

/// Flags of `rename`.
#[derive(Debug, Args)]
pub struct Rename {
    /// The container: id, beginning of it, or name
    container: String,
    /// Its name from now on
    name: String,
    #[command(flatten)]
    target: Target,
}

impl Rename {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::RenameRequest { container: self.container, name: self.name };
        client.containers.rename(request).await.map_err(|status| Exit::refused(&status, 1))?;
        Ok(())
    }
}

/// Flags of `update`.
#[derive(Debug, Args)]
pub struct Update {
    /// CPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Relative weight
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    cpu_shares: Option<i64>,
    /// The CPUs that it may use, as 0-2,5
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The memory nodes that it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Memory and swap together; -1 is unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Processes; -1 is unlimited
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// When it is started again: no, on-failure[:RETRIES], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    #[command(flatten)]
    several: Several,
}

impl Update {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let bytes = |text: &Option<String>| {
            text.as_deref().map(human::parse_bytes_or_unlimited).transpose().map(Option::unwrap_or_default)
        };
        let limits = v1::Limits {
            nano_cpus: self.cpus.as_deref().map(human::parse_cpus).transpose()?.unwrap_or(0),
            memory_bytes: bytes(&self.memory)?,
            memory_swap_bytes: bytes(&self.memory_swap)?,
            pids: self.pids_limit.unwrap_or(0),
            cpu_shares: self.cpu_shares.unwrap_or(0),
            cpuset_cpus: self.cpuset_cpus.unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.unwrap_or_default(),
        };
        let restart = self.restart.as_deref().map(settings::restart).transpose()?;
        self.several
            .each(async |client, container| {
                let (limits, restart) = (Some(limits.clone()), restart.clone());
                client
                    .containers
                    .update(v1::UpdateContainerRequest { container, limits, restart })
                    .await
                    .map(drop)
            })
            .await
    }
}

/// Flags of `container prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that match: label, until
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Prune {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let filters = filters(&self.filter)?;
        if !self.force && !crate::confirm("This will remove all stopped containers.")? {
            return Ok(());
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::PruneContainersRequest { filters };
        let answer = client.containers.prune(request).await.map_err(|status| Exit::refused(&status, 1))?;
        let answer = answer.into_inner();
        let mut text = String::new();
        if !answer.removed.is_empty() {
            text.push_str("Deleted Containers:\n");
            answer.removed.iter().for_each(|id| text.push_str(&format!("{id}\n")));
            text.push('\n');
        }
        text.push_str(&format!("Total reclaimed space: {}\n", crate::human::size(answer.reclaimed_bytes)));
        Ok(io::stdout().write_all(text.as_bytes())?)
    }
}
