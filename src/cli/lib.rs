//! The client verbs, over gRPC only.
//!
//! A verb is a subcommand of the program: its flags, what it asks the daemon, and how it prints the answer. Verbs know
//! the CRI and the admin API, and nothing of the daemon's insides; those that need the CRI alone work against any runtime's
//! socket.

mod archives;
mod build;
mod client;
mod container;
mod exit;
mod human;
mod image;
mod images;
mod info;
mod inspect;
mod manual;
mod pull;
mod pulls;
mod push;
mod quickstart;
mod system;
mod table;
mod template;

use std::io::{self, IsTerminal as _, Write as _};

use clap::Subcommand;

use anyhow::{Context as _, bail};

pub use archives::{Import, Load, Save};
pub use build::Build;
pub use client::Target;
pub use container::{Group, Verbs, Volume};
pub use exit::Exit;
pub use image::Image;
pub use images::{History, Images, Rmi, Tag};
pub use inspect::Inspect;
pub use manual::{Completion, Man};
pub use pull::Pull;
pub use push::Push;
pub use quickstart::Quickstart;
pub use quickstart::inside::Inside;
pub use system::System;

/// What a user can ask for.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the versions of this program and of the daemon
    Version(Target),
    /// Print the state and the features of the daemon
    Info(Target),
    /// Pull an image, and show how far it is
    Pull(Pull),
    /// Build an image from a Dockerfile
    Build(Box<Build>),
    /// Push an image to its registry
    Push(Push),
    /// List images
    Images(Images),
    /// Give an image one more name
    Tag(Tag),
    /// Remove names and images
    Rmi(Rmi),
    /// The steps that made an image
    History(History),
    /// Everything that is known of things, as JSON
    Inspect(Inspect),
    /// Write images to an archive
    Save(Save),
    /// Take the images of an archive
    Load(Load),
    /// Make an image of a root file system
    Import(Import),
    /// Images: all that one does with them
    #[command(subcommand)]
    Image(Image),
    /// The node: its disk, its state
    #[command(subcommand)]
    System(System),
    /// What docker has for containers
    #[command(flatten)]
    Verbs(Verbs),
    /// Containers: all of their verbs, and prune
    #[command(subcommand)]
    Container(Group),
    /// Volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Print a script that completes commands in a shell
    Completion(Completion),
    /// Write manual pages
    Man(Man),
    /// Run a container from nothing: private daemon, image of this program, pod, page, log, exec, clean-up
    Quickstart(Quickstart),
    /// What runs in the container of `quickstart`
    #[command(hide = true, subcommand)]
    QuickstartInside(Inside),
}

impl Verb {
    /// Does it; `command` is the whole program's, for what is generated from it.
    pub fn run(self, command: impl FnOnce() -> clap::Command) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(async {
            match self {
                Verb::Version(target) => info::version(&target).await,
                Verb::Info(target) => info::info(&target).await,
                Verb::Pull(pull) => pull.run().await,
                Verb::Build(build) => build.run().await,
                Verb::Push(push) => push.run().await,
                Verb::Images(images) => images.run().await,
                Verb::Tag(tag) => tag.run().await,
                Verb::Rmi(rmi) => rmi.run().await,
                Verb::History(history) => history.run().await,
                Verb::Inspect(inspect) => inspect.run().await,
                Verb::Save(save) => save.run().await,
                Verb::Load(load) => load.run().await,
                Verb::Import(import) => import.run().await,
                Verb::Image(image) => image.run().await,
                Verb::System(system) => system.run().await,
                Verb::Verbs(verbs) => Box::pin(verbs.run()).await,
                Verb::Container(group) => Box::pin(group.run()).await,
                Verb::Volume(volume) => volume.run().await,
                Verb::Completion(completion) => completion.run(command()),
                Verb::Man(man) => man.run(command()),
                Verb::Quickstart(quickstart) => quickstart.run().await,
                Verb::QuickstartInside(inside) => inside.run().await,
            }
        });
        // What still runs on other threads does not matter to anybody any more.
        runtime.shutdown_background();
        match result {
            // `pinnace info | head -1`: whoever reads has enough.
            Err(error) if is_broken_pipe(&error) => Ok(()),
            result => result,
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Asks a person whether to go on. Without one there is no answer, so it has to be said on the command line.
fn confirm(what: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("{what}\nnobody can be asked: say --force");
    }
    write!(io::stdout(), "{what}\nAre you sure you want to continue? [y/N] ")?;
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The time that was so long ago (`30s`, `10m`, `24h`, `7d`), in seconds since the epoch.
fn before(age: &str) -> anyhow::Result<i64> {
    let wrong = || format!("{age:?} is no duration: 30s, 10m, 24h, 7d");
    let unit = age.chars().last().with_context(wrong)?;
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => bail!(wrong()),
    };
    let number: i64 = age.trim_end_matches(unit).parse().with_context(wrong)?;
    Ok(human::now().saturating_sub(number.saturating_mul(scale)))
}

/// RFC 3339 in seconds since the epoch.
fn timestamp(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_second())
}
