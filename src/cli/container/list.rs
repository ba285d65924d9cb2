//! `ps`.

use std::io::{self, Write as _};

use clap::Args;
use pinnace_admin_api::v1;
use serde_json::{Value, json};

use super::filters;
use super::{format, human};
use crate::client::{Client, Target, refusal};
use crate::table::Table;

/// Digits of an id that people see.
const SHORT_ID: usize = 12;

/// Letters of a command in the table.
const COMMAND_LETTERS: usize = 20;

/// Flags of `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Only the newest, running or not
    #[arg(short, long)]
    latest: bool,
    /// Only so many of the newest, running or not
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Show how much they have written
    #[arg(short, long)]
    size: bool,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// Only those that match: id, name, label, status, exited, ancestor, before, since, volume, network, health
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `table …`, a template for each, or json
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Ps {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let last = if self.latest { Some(1) } else { self.last };
        let needs_size = self.size || self.format.as_ref().is_some_and(|format| format.contains(".Size"));
        let request = v1::ListContainersRequest {
            all: self.all || last.is_some(),
            size: needs_size,
            filters: filters(&self.filter)?,
        };
        let listed = client.containers.list(request).await.map_err(refusal("list containers"))?;
        let mut containers = listed.into_inner().containers;
        containers.truncate(last.unwrap_or(usize::MAX));
        if self.quiet && self.format.is_none() {
            for container in &containers {
                writeln!(io::stdout(), "{}", self.id(container))?;
            }
            return Ok(());
        }
        if let Some(format) = &self.format {
            let rows: Vec<_> = containers.iter().map(|container| self.value(container)).collect();
            return format::print(format, &rows);
        }
        let mut titles = vec!["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
        titles.extend(self.size.then_some("SIZE"));
        let mut table = Table::new(&titles);
        for container in &containers {
            let mut cells = vec![
                self.id(container),
                container.image.clone(),
                self.command(container),
                human::ago(container.created_at_ns),
                status(container),
                ports(&container.ports),
                container.name.clone(),
            ];
            cells.extend(self.size.then(|| size(container)));
            table.row(cells);
        }
        if self.no_trunc {
            io::stdout().write_all(table.within(None).as_bytes())?;
        } else {
            table.print()?;
        }
        Ok(())
    }

    fn id(&self, container: &v1::ContainerSummary) -> String {
        let id = &container.id;
        if self.no_trunc { id.clone() } else { id.get(..SHORT_ID).unwrap_or(id).to_owned() }
    }

    fn command(&self, container: &v1::ContainerSummary) -> String {
        let command = container.command.join(" ");
        if self.no_trunc || command.chars().count() <= COMMAND_LETTERS {
            return format!("\"{command}\"");
        }
        let cut: String = command.chars().take(COMMAND_LETTERS - 1).collect();
        format!("\"{cut}…\"")
    }

    fn value(&self, container: &v1::ContainerSummary) -> Value {
        let mut labels: Vec<_> =
            container.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort();
        json!({
            "ID": self.id(container),
            "Image": container.image,
            "ImageID": container.image_id,
            "Command": self.command(container),
            "CreatedAt": human::date(container.created_at_ns),
            "RunningFor": human::ago(container.created_at_ns),
            "State": container.state,
            "Status": status(container),
            "Ports": ports(&container.ports),
            "Names": container.name,
            "Labels": labels.join(","),
            "Mounts": container.mounts.join(","),
            "LocalVolumes": container.mounts.len().to_string(),
            "Networks": container.network,
            "Size": size(container),
            "ExitCode": container.exit_code,
        })
    }
}

/// Docker's words.
fn status(container: &v1::ContainerSummary) -> String {
    let health = match container.health.as_str() {
        "" => String::new(),
        "starting" => " (health: starting)".to_owned(),
        health => format!(" ({health})"),
    };
    let up = || format!("Up {}", human::duration(human::now_ns().saturating_sub(container.started_at_ns)));
    match container.state.as_str() {
        "running" => format!("{}{health}", up()),
        "paused" => format!("{} (Paused)", up()),
        "restarting" => {
            format!("Restarting ({}) {}", container.exit_code, human::ago(container.finished_at_ns))
        }
        "exited" => format!("Exited ({}) {}", container.exit_code, human::ago(container.finished_at_ns)),
        _ => "Created".to_owned(),
    }
}

fn ports(ports: &[v1::PortSetting]) -> String {
    let port = |port: &v1::PortSetting| {
        let address = if port.host_address.is_empty() { "0.0.0.0" } else { &port.host_address };
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        format!("{address}:{}->{}/{}", port.host_port, port.container_port, port.protocol)
    };
    ports.iter().map(port).collect::<Vec<_>>().join(", ")
}

fn size(container: &v1::ContainerSummary) -> String {
    let (own, all) =
        (crate::human::size(container.size_rw_bytes), crate::human::size(container.size_root_bytes));
    format!("{own} (virtual {all})")
}
