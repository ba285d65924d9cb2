//! `volume`.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use pinnace_admin_api::v1;
use serde_json::json;

use super::settings;
use super::{format, human};
use crate::client::{Client, Target};
use crate::exit::Exit;
use crate::inspect::{Inspect, Kind};
use crate::table::Table;

/// What a user can ask of volumes.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume
    Create(Create),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Print everything about volumes, as JSON
    Inspect(Inspect),
    /// Remove volumes
    Rm(Rm),
    /// Remove volumes that no container mounts
    Prune(Prune),
}

/// Flags of `volume create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Add a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Its name; one is made up without
    name: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Flags of `volume ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
    /// Only those that match: name, dangling
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `table …`, a template for each, or json
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Flags of `volume rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// One that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Flags of `volume prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Also those that were made by name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

fn refused(status: tonic::Status) -> anyhow::Error {
    Exit::refused(&status, 1)
}

impl Volume {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::Ls(ls) => ls.run().await,
            Self::Inspect(inspect) => inspect.of(Kind::Volume).run().await,
            Self::Rm(rm) => rm.run().await,
            Self::Prune(prune) => prune.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let labels = self.label.iter().map(|text| settings::label(text)).collect();
        let request = v1::CreateVolumeRequest { name: self.name.unwrap_or_default(), labels };
        let volume = client.volumes.create_volume(request).await.map_err(refused)?.into_inner();
        Ok(writeln!(io::stdout(), "{}", volume.name)?)
    }
}

impl Ls {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let listed = client.volumes.list_volumes(v1::Nothing {}).await.map_err(refused)?;
        let mut volumes = listed.into_inner().volumes;
        for filter in super::filters(&self.filter)? {
            match filter.key.as_str() {
                "name" => volumes.retain(|volume| volume.name.contains(&filter.value)),
                "dangling" => {
                    let wanted = matches!(filter.value.as_str(), "true" | "1");
                    volumes.retain(|volume| volume.users.is_empty() == wanted);
                }
                other => anyhow::bail!("--filter {other}: is not known; known are name and dangling"),
            }
        }
        if let Some(format) = &self.format {
            return format::print(format, &volumes.iter().map(value).collect::<Vec<_>>());
        }
        if self.quiet {
            for volume in &volumes {
                writeln!(io::stdout(), "{}", volume.name)?;
            }
            return Ok(());
        }
        let mut table = Table::new(&["DRIVER", "VOLUME NAME"]);
        for volume in volumes {
            table.row(["local".to_owned(), volume.name]);
        }
        Ok(table.print()?)
    }
}

/// A volume in docker's form.
pub fn value(volume: &v1::Volume) -> serde_json::Value {
    json!({
        "CreatedAt": human::time(volume.created_at_ns),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume.path,
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    })
}

impl Rm {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let mut failed = false;
        for name in self.names {
            let request = v1::RemoveVolumeRequest { name: name.clone(), force: self.force };
            match client.volumes.remove_volume(request).await {
                Ok(_) => writeln!(io::stdout(), "{name}")?,
                Err(status) => {
                    writeln!(io::stderr(), "pinnace: {}", status.message())?;
                    failed = true;
                }
            }
        }
        if failed { Err(Exit::silent(1)) } else { Ok(()) }
    }
}

impl Prune {
    async fn run(self) -> anyhow::Result<()> {
        let which = if self.all { "all volumes" } else { "anonymous volumes" };
        let warning = format!("This will remove {which} not used by at least one container.");
        if !self.force && !crate::confirm(&warning)? {
            return Ok(());
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::PruneVolumesRequest { all: self.all };
        let answer = client.volumes.prune_volumes(request).await.map_err(refused)?.into_inner();
        let mut text = String::new();
        if !answer.removed.is_empty() {
            text.push_str("Deleted Volumes:\n");
            answer.removed.iter().for_each(|name| text.push_str(&format!("{name}\n")));
            text.push('\n');
        }
        text.push_str(&format!("Total reclaimed space: {}\n", crate::human::size(answer.reclaimed_bytes)));
        Ok(io::stdout().write_all(text.as_bytes())?)
    }
}
