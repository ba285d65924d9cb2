//! `inspect`: everything that is known of things, as JSON.

use std::io::{self, Write as _};

use anyhow::bail;
use clap::{Args, ValueEnum};
use pinnace_admin_api::v1;
use serde_json::Value;

use crate::client::{Client, Target, refusal};
use crate::template::Template;

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Names or ids
    #[arg(required = true)]
    names: Vec<String>,
    /// What they are names of
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// A Go template for each, or json
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Things that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// An image.
    Image,
}

impl Inspect {
    /// The same for images only: `image inspect`.
    pub fn of_images(self) -> Self {
        Self { kind: Some(Kind::Image), ..self }
    }

    /// Does it. What is not there is told at the end, after everything that is.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in &self.names {
            match image(&mut client, name).await? {
                Some(value) => found.push(value),
                None => missing.push(format!("no such {}: {name}", self.kind.map_or("object", |_| "image"))),
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
}

async fn image(client: &mut Client, name: &str) -> anyhow::Result<Option<Value>> {
    let request = v1::InspectRequest { image: name.to_owned() };
    match client.admin_images.inspect(request).await {
        Ok(image) => Ok(Some(serde_json::from_str(&image.into_inner().json)?)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(refusal("inspect")(status)),
    }
}
