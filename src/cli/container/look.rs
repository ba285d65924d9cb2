//! `top`, `port`, `diff`, `events`.

use std::io::{self, Write as _};

use anyhow::bail;
use clap::Args;
use pinnace_admin_api::v1;
use serde_json::{Value, json};

use super::filters;
use super::human;
use crate::client::{Client, Target};
use crate::exit::Exit;
use crate::table::Table;
use crate::template::Template;

/// Flags of `top`.
#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    target: Target,
    /// The container, and -o with columns as ps(1) has them
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "OPTIONS"])]
    container_and_options: Vec<String>,
}

impl Top {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut words = self.container_and_options.into_iter();
        let container = words.next().unwrap_or_default();
        let mut columns = Vec::new();
        while let Some(word) = words.next() {
            let list = match word.as_str() {
                "-o" | "o" => words.next(),
                // What everybody gives, and what is shown anyway.
                "-ef" | "-e" | "-f" => continue,
                "aux" => Some("user,pid,pcpu,vsz,rss,tty,stat,stime,time,args".to_owned()),
                word => word.strip_prefix("-o").map(ToOwned::to_owned),
            };
            let Some(list) = list else { bail!("{word:?} is not known; known are -o COLUMNS, -ef and aux") };
            columns.extend(list.split(',').map(ToOwned::to_owned));
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::TopRequest { container, columns };
        let answer = client.containers.top(request).await.map_err(|status| Exit::refused(&status, 1))?;
        let answer = answer.into_inner();
        let titles: Vec<_> = answer.titles.iter().map(String::as_str).collect();
        let mut table = Table::new(&titles);
        for process in answer.processes {
            table.row(process.values);
        }
        Ok(table.print()?)
    }
}

/// Flags of `port`.
#[derive(Debug, Args)]
pub struct Port {
    /// The container: id, beginning of it, or name
    container: String,
    /// Only this port of it
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Port {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::InspectContainerRequest { container: self.container.clone(), size: false };
        let answer = client.containers.inspect(request).await.map_err(|status| Exit::refused(&status, 1))?;
        let value: Value = serde_json::from_str(&answer.into_inner().json)?;
        let wanted = self.port.map(|port| if port.contains('/') { port } else { format!("{port}/tcp") });
        let ports = value.pointer("/NetworkSettings/Ports").and_then(Value::as_object);
        let mut shown = false;
        for (port, bindings) in ports.into_iter().flatten() {
            if wanted.as_ref().is_some_and(|wanted| wanted != port) {
                continue;
            }
            for binding in bindings.as_array().into_iter().flatten() {
                let text = |key: &str| binding.get(key).and_then(Value::as_str).unwrap_or_default();
                let address = format!("{}:{}", text("HostIp"), text("HostPort"));
                match wanted {
                    Some(_) => writeln!(io::stdout(), "{address}")?,
                    None => writeln!(io::stdout(), "{port} -> {address}")?,
                }
                shown = true;
            }
        }
        match wanted {
            Some(port) if !shown => bail!("no public port '{port}' published for {}", self.container),
            _ => Ok(()),
        }
    }
}

/// Flags of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The container: id, beginning of it, or name
    container: String,
    #[command(flatten)]
    target: Target,
}

impl Diff {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let selector = v1::ContainerSelector { container: self.container };
        let answer = client.containers.diff(selector).await.map_err(|status| Exit::refused(&status, 1))?;
        for change in answer.into_inner().changes {
            let letter = match change.kind() {
                v1::change::Kind::Modified => 'C',
                v1::change::Kind::Added => 'A',
                v1::change::Kind::Deleted => 'D',
            };
            writeln!(io::stdout(), "{letter} {}", change.path)?;
        }
        Ok(())
    }
}

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Also those since then, as far as they are remembered
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only those that match: container, event, image, label, type, volume
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// A template for each, or json
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Events {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let template = match self.format.as_deref() {
            None | Some("json") => None,
            Some(format) => Some(Template::parse(format)?),
        };
        let time = |text: &Option<String>| text.as_deref().map(human::parse_time).transpose();
        let request = v1::EventsRequest {
            since_ns: time(&self.since)?.unwrap_or(0),
            until_ns: time(&self.until)?.unwrap_or(0),
            filters: filters(&self.filter)?,
        };
        let mut client = Client::connect(&self.target.socket).await?;
        let refused = |status: tonic::Status| Exit::refused(&status, 1);
        let mut events = client.containers.events(request).await.map_err(refused)?.into_inner();
        while let Some(event) = events.message().await.map_err(refused)? {
            let value = json!({
                "Type": event.kind,
                "Action": event.action,
                "status": event.action,
                "id": event.id,
                "Actor": { "ID": event.id, "Attributes": event.attributes },
                "scope": "local",
                "time": event.at_ns / 1_000_000_000,
                "timeNano": event.at_ns,
            });
            let line = match &template {
                Some(template) => template.text(&value)?,
                None if self.format.is_some() => value.to_string(),
                None => {
                    let mut attributes: Vec<_> =
                        event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    attributes.sort();
                    let (at, attributes) = (human::time(event.at_ns), attributes.join(", "));
                    format!("{at} {} {} {} ({attributes})", event.kind, event.action, event.id)
                }
            };
            let mut stdout = io::stdout();
            writeln!(stdout, "{line}")?;
            stdout.flush()?;
        }
        Ok(())
    }
}
