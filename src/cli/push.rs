//! `push`: bars on a terminal, the digest at the end.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::bail;
use clap::Args;
use pinnace_admin_api::v1;
use pinnace_admin_api::v1::push_event::Event;

use crate::client::{Client, Target, refusal};
use crate::human::{short, size};

/// Flags of `push`.
#[derive(Debug, Args)]
pub struct Push {
    /// A name of an image here, with the tag to push
    image: String,
    /// Print nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// Credentials, instead of those that the node has for the registry
    #[arg(long, value_name = "USER:PASSWORD", env = "PINNACE_CREDENTIALS", hide_env_values = true)]
    creds: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Push {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let credentials = match self.creds.as_deref().map(|creds| creds.split_once(':')) {
            None => None,
            Some(Some((username, password))) => {
                Some(v1::Credentials { username: username.to_owned(), password: password.to_owned() })
            }
            Some(None) => bail!("--creds is USER:PASSWORD"),
        };
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::PushRequest { image: self.image.clone(), credentials };
        let mut events = client.admin_images.push(request).await.map_err(refusal("push"))?.into_inner();
        let mut bars = crate::pull::Bars::new(!self.quiet && io::stderr().is_terminal());
        let mut told = Vec::new();
        loop {
            let event = match events.message().await {
                Ok(event) => event.and_then(|event| event.event),
                Err(status) => {
                    bars.clear()?;
                    return Err(refusal("push")(status));
                }
            };
            match event {
                Some(Event::Progress(progress)) => {
                    if bars.shown() {
                        bars.draw_text(&text(&progress))?;
                    } else if !self.quiet {
                        tell_ends(&progress, &mut told)?;
                    }
                    if progress.layers.iter().all(|layer| end(layer.phase()).is_some()) {
                        bars.keep();
                    }
                }
                Some(Event::Image(image)) => {
                    bars.keep();
                    if self.quiet {
                        writeln!(io::stdout(), "{}", image.reference)?;
                    } else {
                        let tag = image.reference.rsplit(':').next().unwrap_or_default();
                        writeln!(io::stdout(), "{tag}: digest: {} size: {}", image.digest, image.size_bytes)?;
                    }
                    return Ok(());
                }
                None => {
                    bars.clear()?;
                    bail!("push: the daemon ended it without a result");
                }
            }
        }
    }
}

fn end(phase: v1::PushPhase) -> Option<&'static str> {
    match phase {
        v1::PushPhase::Pushed => Some("Pushed"),
        v1::PushPhase::Exists => Some("Layer already exists"),
        v1::PushPhase::Mounted => Some("Mounted from another repository"),
        v1::PushPhase::Waiting | v1::PushPhase::Preparing | v1::PushPhase::Pushing => None,
    }
}

/// Without a terminal: a line for each layer that is done.
fn tell_ends(progress: &v1::PushProgress, told: &mut Vec<String>) -> io::Result<()> {
    for layer in &progress.layers {
        if let Some(what) = end(layer.phase())
            && !told.contains(&layer.layer)
        {
            writeln!(io::stdout(), "{}: {what}", short(&layer.layer))?;
            told.push(layer.layer.clone());
        }
    }
    Ok(())
}

fn text(progress: &v1::PushProgress) -> String {
    let mut text = String::new();
    for layer in &progress.layers {
        let what = match layer.phase() {
            v1::PushPhase::Waiting => "Waiting".to_owned(),
            v1::PushPhase::Preparing => {
                format!("Preparing  {}/{}", size(layer.done_bytes), size(layer.total_bytes))
            }
            v1::PushPhase::Pushing => {
                let bar = crate::pull::bar(layer.done_bytes, layer.total_bytes);
                format!("Pushing {bar} {}/{}", size(layer.done_bytes), size(layer.total_bytes))
            }
            done => end(done).unwrap_or_default().to_owned(),
        };
        let _ = writeln!(text, "{}: {what}", short(&layer.layer));
    }
    text
}
