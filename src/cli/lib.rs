//! The client verbs, over gRPC only.
//!
//! A verb is a subcommand of the program: its flags, what it asks the daemon, and how it prints the answer. Verbs know
//! the CRI and the admin API, and nothing of the daemon's insides; those that need the CRI alone work against any runtime's
//! socket.

mod client;
mod image;
mod info;
mod pull;
mod quickstart;

use std::io;

use clap::Subcommand;

pub use client::Target;
pub use image::Image;
pub use pull::Pull;
pub use quickstart::Quickstart;
pub use quickstart::inside::Inside;

/// What a user can ask for.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Print the versions of this program and of the daemon
    Version(Target),
    /// Print the state and the features of the daemon
    Info(Target),
    /// Pull an image, and show how far it is
    Pull(Pull),
    /// Images: what decides a pull
    #[command(subcommand)]
    Image(Image),
    /// Run a container from nothing: private daemon, image of this program, pod, page, log, exec, clean-up
    Quickstart(Quickstart),
    /// What runs in the container of `quickstart`
    #[command(hide = true, subcommand)]
    QuickstartInside(Inside),
}

impl Verb {
    /// Does it.
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(async {
            match self {
                Verb::Version(target) => info::version(&target).await,
                Verb::Info(target) => info::info(&target).await,
                Verb::Pull(pull) => pull.run().await,
                Verb::Image(image) => image.run().await,
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
