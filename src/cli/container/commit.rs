//! `commit`.

use std::io::{self, Write as _};

use clap::Args;
use pinnace_admin_api::v1;

use crate::client::{Client, Target};
use crate::exit::Exit;

/// Flags of `commit`.
#[derive(Debug, Args)]
pub struct Commit {
    /// For the image's history
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Who made it
    #[arg(short, long, value_name = "NAME", default_value = "", hide_default_value = true)]
    author: String,
    /// A Dockerfile instruction: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Freeze it meanwhile
    #[arg(
        short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set
    )]
    pause: bool,
    /// The container: id, beginning of it, or name
    container: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    reference: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Commit {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::CommitRequest {
            container: self.container,
            reference: self.reference.unwrap_or_default(),
            message: self.message,
            author: self.author,
            changes: self.change,
            pause: self.pause,
        };
        let made = client.containers.commit(request).await.map_err(|status| Exit::refused(&status, 1))?;
        Ok(writeln!(io::stdout(), "{}", made.into_inner().image_id)?)
    }
}
