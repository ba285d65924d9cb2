//! `inspect`: everything that is known of containers, volumes and images, as JSON.

use std::io::{self, Write as _};

use anyhow::bail;
use clap::{Args, ValueEnum};
use pinnace_admin_api::v1;
use serde_json::Value;

use crate::client::{Client, Target, refusal};
use crate::container::volume_value;
use crate::template::Template;

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Names or ids
    #[arg(required = true)]
    names: Vec<String>,
    /// What they are names of; without, containers come first, then volumes, then images
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// A Go template for each, or json
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Show how much containers have written
    #[arg(short, long)]
    size: bool,
    #[command(flatten)]
    target: Target,
}

/// Things that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
}

impl Inspect {
    /// The same for one kind only: `image inspect`.
    pub fn of(self, kind: Kind) -> Self {
        Self { kind: Some(kind), ..self }
    }

    /// Does it. What is not there is told at the end, after everything that is.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in &self.names {
            match self.find(&mut client, name).await? {
                Ok(value) => found.push(value),
                Err(why) => missing.push(why),
            }
        }
        let text = match &self.format {
            Some(format) => {
                let template = Template::parse(format)?;
                let lines = found.iter().map(|value| template.text(value).map(|line| line + "\n"));
                lines.collect::<anyhow::Result<String>>()?
            }
            None => serde_json::to_string_pretty(&Value::Array(found))? + "\n",
        };
        io::stdout().write_all(text.as_bytes())?;
        if missing.is_empty() { Ok(()) } else { bail!(missing.join("\n")) }
    }

    /// What it is, or why it is not known.
    async fn find(&self, client: &mut Client, name: &str) -> anyhow::Result<Result<Value, String>> {
        let wants = |kind| self.kind.is_none_or(|wanted| wanted == kind);
        let kind = self.kind.and_then(|kind| kind.to_possible_value());
        let kind = kind.map_or("object".to_owned(), |value| value.get_name().to_owned());
        let mut why = format!("no such {kind}: {name}");
        if wants(Kind::Container) {
            let request = v1::InspectContainerRequest { container: name.to_owned(), size: self.size };
            match client.containers.inspect(request).await {
                Ok(answer) => return Ok(Ok(serde_json::from_str(&answer.into_inner().json)?)),
                Err(status) if status.code() == tonic::Code::NotFound => {
                    if let Some((_, hint)) = status.message().split_once("; ") {
                        why = format!("{why}; {hint}");
                    }
                }
                Err(status) => return Err(refusal("inspect")(status)),
            }
        }
        if wants(Kind::Volume) {
            match client.volumes.inspect_volume(v1::VolumeSelector { name: name.to_owned() }).await {
                Ok(answer) => return Ok(Ok(volume_value(&answer.into_inner()))),
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(refusal("inspect")(status)),
            }
        }
        if wants(Kind::Image) {
            match client.admin_images.inspect(v1::InspectRequest { image: name.to_owned() }).await {
                Ok(image) => return Ok(Ok(serde_json::from_str(&image.into_inner().json)?)),
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(refusal("inspect")(status)),
            }
        }
        Ok(Err(why))
    }
}
