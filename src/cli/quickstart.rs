//! `quickstart`: from nothing to a running container and back, on any machine that can run this program.
//!
//! ```text
//!  this program ──► image (its own file, compressed) ──► registry in this process, on loopback
//!       │                                                     │ PullImage
//!       └── starts itself as a private daemon ──► pod on a bridge of its own ──► page, log, exec
//! ```
//! Nothing is downloaded or installed. The daemon's state, its socket, the bridge, the subnet and the cgroup are
//! made for this run, so another runtime on the machine is not met; and all of it is taken away again, also after an
//! error and after Ctrl-C. With `--keep` it stays until `pinnace quickstart --stop DIR`.

mod image;
pub mod inside;
mod link;
mod node;
mod pod;
mod progress;
mod subnet;

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;
use image::Image;
use node::Node;
use progress::Progress;

/// The flags of `quickstart`.
#[derive(Debug, Args)]
pub struct Quickstart {
    /// Leave the daemon and the pod running, to look around
    #[arg(long)]
    keep: bool,
    /// End what an earlier --keep left running in DIR
    #[arg(long, value_name = "DIR", conflicts_with = "keep")]
    stop: Option<PathBuf>,
}

impl Quickstart {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        if !rustix::process::geteuid().is_root() {
            let program = std::env::current_exe()?;
            bail!("namespaces, mounts and a bridge need root: sudo {} quickstart", program.display());
        }
        let mut progress = Progress::default();
        if let Some(dir) = self.stop {
            let node = Node::open(&dir)?;
            return progress.step("take everything away", node.tear_down()).await;
        }

        let mut node = Node::prepare()?;
        let result = tokio::select! {
            result = walk(&mut node, &mut progress) => result,
            name = interrupted() => {
                writeln!(io::stdout(), "interrupted")?;
                Err(anyhow::anyhow!("interrupted by {}", name?))
            }
        };
        if self.keep && result.is_ok() {
            progress.table()?;
            return node.keep();
        }
        if result.is_err() {
            node.show_log()?;
        }
        let clean = progress.step("take everything away", node.tear_down()).await;
        match (result, clean) {
            (Err(error), Err(second)) => bail!("{error:#}; then {second:#}"),
            (result, clean) => result.and(clean)?,
        }
        progress.table()?;
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "\nNext: `pinnace quickstart --keep` leaves it running for crictl; `pinnace serve` is the real daemon."
        )?;
        Ok(())
    }
}

/// Everything between an empty machine and an executed command.
async fn walk(node: &mut Node, progress: &mut Progress) -> anyhow::Result<()> {
    let image = progress
        .step_with("make an image of this program", async {
            let image = tokio::task::spawn_blocking(Image::of_this_program).await??;
            let note = format!(
                "{:.1} MB, compressed to {:.1} MB",
                mega(image.layer_bytes),
                mega(image.blob_bytes as u64)
            );
            Ok((image, note))
        })
        .await?;
    let registry = progress
        .step_with("serve it from a registry in this process", async {
            let registry = image.serve().await?;
            let note = registry.registry();
            Ok((registry, note))
        })
        .await?;
    let mut client = progress
        .step_with("start a private daemon", async {
            let client = node.start().await?;
            Ok((client, node.socket().display().to_string()))
        })
        .await?;
    let reference = Image::reference(&registry);
    let id = progress
        .step_with("pull the image", async {
            let id = Box::pin(pod::pull(&mut client, &reference)).await?;
            let note = id.clone();
            Ok((id, note))
        })
        .await?;
    drop(registry);
    tour(node, &mut client, &id, &reference, progress).await
}

/// A pod and what can be done with it.
async fn tour(
    node: &Node,
    client: &mut Client,
    image: &str,
    reference: &str,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let pod = progress
        .step_with("start a pod with one container", async {
            let pod = Box::pin(pod::start(client, node, image, reference)).await?;
            let note = format!("address {}", pod.address);
            Ok((pod, note))
        })
        .await?;
    let page = progress.step("fetch a page from it", pod.fetch()).await?;
    quote(&page)?;
    let log = progress.step("read its log", pod.log(node)).await?;
    quote(&log)?;
    let look = progress.step("run a command in it", pod.exec(client)).await?;
    quote(&look)
}

fn quote(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for line in text.lines() {
        writeln!(out, "      | {line}")?;
    }
    Ok(())
}

fn mega(bytes: u64) -> f64 {
    // Only shown, with one digit: an f64 is exact far beyond any file.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / 1e6
}

async fn interrupted() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("watch for SIGHUP")?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}
