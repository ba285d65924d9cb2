//! `stats`: what containers use, drawn over every second.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use pinnace_admin_api::v1;
use serde_json::{Value, json};

use super::{format, human};
use crate::client::{Client, Target};
use crate::exit::Exit;
use crate::table::{Table, terminal_width};

/// Flags of `stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// Look once
    #[arg(long)]
    no_stream: bool,
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Cut nothing
    #[arg(long)]
    no_trunc: bool,
    /// `table …`, a template for each, or json
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Containers; without any, all that run
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Stats {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request =
            v1::StatsRequest { containers: self.containers.clone(), stream: !self.no_stream, all: self.all };
        let refused = |status: tonic::Status| Exit::refused(&status, 1);
        let mut frames = client.containers.stats(request).await.map_err(refused)?.into_inner();
        let drawn = !self.no_stream && io::stdout().is_terminal();
        while let Some(frame) = frames.message().await.map_err(refused)? {
            if drawn {
                // Home, and erase what is below (ECMA-48 CUP, ED).
                write!(io::stdout(), "\x1b[H\x1b[J")?;
            }
            self.print(&frame.containers)?;
            io::stdout().flush()?;
        }
        Ok(())
    }

    fn print(&self, containers: &[v1::ContainerStats]) -> anyhow::Result<()> {
        let rows: Vec<_> = containers.iter().map(|container| self.value(container)).collect();
        if let Some(format) = &self.format {
            return format::print(format, &rows);
        }
        let titles =
            ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
        let mut table = Table::new(&titles);
        let keys = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"];
        for row in &rows {
            table.row(keys.map(|key| row.get(key).map(cell).unwrap_or_default()));
        }
        let width = if self.no_trunc { None } else { terminal_width() };
        Ok(io::stdout().write_all(table.within(width).as_bytes())?)
    }

    fn value(&self, stats: &v1::ContainerStats) -> Value {
        let id = if self.no_trunc { &stats.id } else { stats.id.get(..12).unwrap_or(&stats.id) };
        let hundredths = match stats.memory_limit_bytes {
            0 => 0,
            limit => u128::from(stats.memory_bytes) * 10_000 / u128::from(limit),
        };
        json!({
            "ID": id,
            "Container": id,
            "Name": stats.name,
            "CPUPerc": format!("{:.2}%", stats.cpu_percent),
            "MemUsage": format!(
                "{} / {}",
                human::binary_size(stats.memory_bytes),
                human::binary_size(stats.memory_limit_bytes)
            ),
            "MemPerc": format!("{}.{:02}%", hundredths / 100, hundredths % 100),
            "NetIO": format!("{} / {}", crate::human::size(stats.net_received_bytes), crate::human::size(stats.net_sent_bytes)),
            "BlockIO": format!(
                "{} / {}",
                crate::human::size(stats.block_read_bytes),
                crate::human::size(stats.block_written_bytes)
            ),
            "PIDs": stats.pids,
        })
    }
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}
