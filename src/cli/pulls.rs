//! `pinnace image pulls`: every pull that is under way, also those of the kubelet.

use std::io::{self, Write as _};

use clap::Args;
use pinnace_admin_api::v1::{WatchPullsRequest, WatchPullsResponse};

use crate::client::{Client, Target, refusal};
use crate::pull::{size, text};

/// Flags of `image pulls`.
#[derive(Debug, Args)]
pub struct Pulls {
    /// Go on, and print again whenever something has changed
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    target: Target,
}

impl Pulls {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let answer = client.admin_images.watch_pulls(WatchPullsRequest {}).await;
        let mut states = answer.map_err(refusal("pulls"))?.into_inner();
        while let Some(state) = states.message().await.map_err(refusal("pulls"))? {
            io::stdout().write_all(lines(&state).as_bytes())?;
            if !self.watch {
                break;
            }
        }
        Ok(())
    }
}

fn lines(state: &WatchPullsResponse) -> String {
    let mut lines = String::new();
    for pull in &state.pulls {
        let progress = pull.progress.as_ref().map(text).unwrap_or_default();
        // The last line is of the image as a whole.
        let whole = progress.lines().last().unwrap_or_default().to_owned();
        lines += &format!("{}  {whole}\n", pull.reference);
    }
    if let Some(totals) = &state.totals {
        lines += &format!(
            "{} under way; since the start {} begun, {} done, {} failed, {} fetched\n",
            state.pulls.len(),
            totals.started,
            totals.succeeded,
            totals.failed,
            size(totals.fetched_bytes)
        );
    }
    lines
}
