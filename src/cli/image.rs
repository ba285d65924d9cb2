//! `pinnace image`: verbs about images.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use pinnace_admin_api::v1::{ExplainRequest, ExplainResponse};

use crate::archives::{Import, Load, Save};
use crate::build::Build;
use crate::client::{Client, Target, refusal};
use crate::images::{History, Images, Prune, Rmi, Tag, Tree};
use crate::inspect::{Inspect, Kind};
use crate::pull::Pull;
use crate::pulls::Pulls;
use crate::push::Push;

/// What a user can ask about images.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Tell what would decide a pull: the meaning of the name, servers in order, credentials, and the files that say so
    Explain(Explain),
    /// List images
    #[command(visible_alias = "list")]
    Ls(Images),
    /// Pull an image, and show how far it is
    Pull(Pull),
    /// Show the pulls that are under way, also those of the kubelet
    Pulls(Pulls),
    /// Build an image from a Dockerfile
    Build(Box<Build>),
    /// Push an image to its registry
    Push(Push),
    /// Give an image one more name
    Tag(Tag),
    /// Remove names and images
    #[command(visible_alias = "remove")]
    Rm(Rmi),
    /// Everything that is known of images, as JSON
    Inspect(Inspect),
    /// The steps that made an image
    History(History),
    /// Write images to an archive
    Save(Save),
    /// Take the images of an archive
    Load(Load),
    /// Make an image of a root file system
    Import(Import),
    /// Remove images without a name
    Prune(Prune),
    /// Layers as they lie on each other: what is shared, and what it costs
    Tree(Tree),
}

/// Flags of `image explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The image, as a pod would name it
    image: String,
    #[command(flatten)]
    target: Target,
}

impl Image {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Explain(explain) => explain.run().await,
            Self::Ls(images) => images.run().await,
            Self::Pull(pull) => pull.run().await,
            Self::Pulls(pulls) => pulls.run().await,
            Self::Build(build) => build.run().await,
            Self::Push(push) => push.run().await,
            Self::Tag(tag) => tag.run().await,
            Self::Rm(rmi) => rmi.run().await,
            Self::Inspect(inspect) => inspect.of(Kind::Image).run().await,
            Self::History(history) => history.run().await,
            Self::Save(save) => save.run().await,
            Self::Load(load) => load.run().await,
            Self::Import(import) => import.run().await,
            Self::Prune(prune) => prune.run().await,
            Self::Tree(tree) => tree.run().await,
        }
    }
}

impl Explain {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = ExplainRequest { image: self.image.clone() };
        let explained = client.admin_images.explain(request).await.map_err(refusal("explain"))?;
        io::stdout().write_all(text(&self.image, &explained.into_inner()).as_bytes())?;
        Ok(())
    }
}

fn text(name: &str, explained: &ExplainResponse) -> String {
    let mut text = format!("{name} means {}\n", explained.reference);
    for note in &explained.notes {
        let file = if note.file.is_empty() { "(nothing configured)" } else { &note.file };
        let _ = writeln!(text, "  {file}: {}", note.text);
    }
    let _ = writeln!(text, "asked in this order:");
    for (position, server) in explained.servers.iter().enumerate() {
        let role = if server.is_mirror { "mirror" } else { "registry" };
        let _ = writeln!(text, "{:>3}. {}  repository {}", position + 1, server.url, server.repository);
        let mut row = |name: &str, value: &str| {
            let _ = writeln!(text, "     {name:<12} {value}");
        };
        row("is", role);
        if !server.decided_by.is_empty() {
            row("named by", &server.decided_by);
        }
        let uses = match (server.resolves, server.pulls) {
            (true, true) => "tags and content",
            (true, false) => "tags only",
            (false, true) => "content only",
            (false, false) => "nothing",
        };
        row("asked for", uses);
        row("trust", &server.trust);
        row("credentials", &server.credentials);
        if server.client_certificate {
            row("certificate", "ours is shown");
        }
        if !server.headers.is_empty() {
            row("headers", &server.headers.join(", "));
        }
        if !server.proxy.is_empty() {
            row("proxy", &server.proxy);
        }
    }
    text
}
