//! `logs`.

use std::io::{self, Write as _};

use anyhow::bail;
use clap::Args;
use pinnace_admin_api::v1;

use super::human;
use crate::client::{Client, Target};
use crate::exit::Exit;

/// Flags of `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on with what it writes, until it ends
    #[arg(short, long)]
    follow: bool,
    /// From then on: a time, or a duration before now
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Until then: a time, or a duration before now
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    tail: String,
    /// Show the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// The container: id, beginning of it, or name
    container: String,
    #[command(flatten)]
    target: Target,
}

impl Logs {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let tail = match self.tail.as_str() {
            "all" => None,
            text => match text.parse::<i64>() {
                Ok(lines) => u64::try_from(lines).ok(),
                Err(_) => bail!("--tail {text:?} is no number of lines, nor all"),
            },
        };
        let time = |text: &Option<String>| text.as_deref().map(human::parse_time).transpose();
        let request = v1::LogsRequest {
            container: self.container,
            follow: self.follow,
            since_ns: time(&self.since)?.unwrap_or(0),
            until_ns: time(&self.until)?.unwrap_or(0),
            tail,
            stdout: true,
            stderr: true,
        };
        let mut client = Client::connect(&self.target.socket).await?;
        let refused = |status: tonic::Status| Exit::refused(&status, 1);
        let mut entries = client.containers.logs(request).await.map_err(refused)?.into_inner();
        // A part goes on where the one before has ended.
        let mut at_start = true;
        while let Some(entry) = entries.message().await.map_err(refused)? {
            let time = (self.timestamps && at_start).then(|| format!("{} ", human::time(entry.at_ns)));
            at_start = entry.content.ends_with(b"\n");
            let line = [time.unwrap_or_default().as_bytes(), &entry.content].concat();
            if entry.stderr {
                io::stderr().write_all(&line)?;
            } else {
                let mut stdout = io::stdout();
                stdout.write_all(&line)?;
                stdout.flush()?;
            }
        }
        Ok(())
    }
}
