//! `system`: what takes the disk, whether it is whole, and how it comes back.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::bail;
use clap::{Args, Subcommand};
use pinnace_admin_api::v1;
use serde_json::json;

use crate::client::{Client, Target, refusal};
use crate::human::{ago, short, size};
use crate::table::Table;
use crate::template::Template;

/// What a user can ask about the node.
#[derive(Debug, Subcommand)]
pub enum System {
    /// What images, containers and builds take on disk
    Df(Df),
    /// Print the state and the features of the daemon
    Info(Target),
    /// Remove what nobody needs: unnamed images, and what builds remember
    Prune(Prune),
    /// Read everything in the store and tell what is damaged
    Fsck(Fsck),
}

impl System {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Df(df) => df.run().await,
            Self::Info(target) => crate::info::info(&target).await,
            Self::Prune(prune) => prune.run().await,
            Self::Fsck(fsck) => fsck.run().await,
        }
    }
}

/// Flags of `system df`.
#[derive(Debug, Args)]
pub struct Df {
    /// Every image, container and step
    #[arg(short, long)]
    verbose: bool,
    /// A Go template for each kind, or json
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "verbose")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

impl Df {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let usage = client
            .admin_system
            .disk_usage(v1::DiskUsageRequest {})
            .await
            .map_err(refusal("disk usage"))?
            .into_inner();
        let text = match &self.format {
            Some(format) => {
                let template = Template::parse(format)?;
                crate::images::formatted(
                    &template,
                    kinds(&usage).into_iter().map(|kind| {
                        json!({"Type": kind.name, "TotalCount": kind.count, "Active": kind.active,
                        "Size": size(kind.bytes), "Reclaimable": kind.reclaimable()})
                    }),
                )?
            }
            None if self.verbose => verbose(&usage),
            None => {
                let mut table = Table::new(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
                for kind in kinds(&usage) {
                    let (count, active) = (kind.count.to_string(), kind.active.to_string());
                    table.row([kind.name.to_owned(), count, active, size(kind.bytes), kind.reclaimable()]);
                }
                table.text()
            }
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

struct KindUsage {
    name: &'static str,
    count: usize,
    active: usize,
    bytes: u64,
    idle_bytes: u64,
}

impl KindUsage {
    fn reclaimable(&self) -> String {
        let percent = (u128::from(self.idle_bytes) * 100).checked_div(u128::from(self.bytes)).unwrap_or(0);
        format!("{} ({percent}%)", size(self.idle_bytes))
    }
}

fn kinds(usage: &v1::DiskUsageResponse) -> Vec<KindUsage> {
    let idle: u64 =
        usage.images.iter().filter(|image| image.containers == 0).map(|image| image.own_bytes).sum();
    vec![
        KindUsage {
            name: "Images",
            count: usage.images.len(),
            active: usage.images.iter().filter(|image| image.containers > 0).count(),
            bytes: usage.images_bytes + usage.unreferenced_bytes,
            idle_bytes: idle + usage.unreferenced_bytes,
        },
        KindUsage {
            name: "Containers",
            count: usage.containers.len(),
            active: usage.containers.len(),
            bytes: usage.containers.iter().map(|container| container.bytes).sum(),
            idle_bytes: 0,
        },
        KindUsage {
            name: "Build Cache",
            count: usage.builds.len(),
            active: usage.builds.iter().filter(|step| step.shared).count(),
            bytes: usage.builds_bytes,
            idle_bytes: usage.builds_bytes,
        },
    ]
}

fn verbose(usage: &v1::DiskUsageResponse) -> String {
    let mut text = String::from("Images space usage:\n\n");
    let mut table = Table::new(&[
        "REPOSITORY:TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ]);
    for image in &usage.images {
        let names = if image.tags.is_empty() { "<none>".to_owned() } else { image.tags.join(",") };
        table.row([
            names,
            short(&image.id),
            ago(image.created),
            size(image.own_bytes + image.shared_bytes),
            size(image.shared_bytes),
            size(image.own_bytes),
            image.containers.to_string(),
        ]);
    }
    text.push_str(&table.text());
    text.push_str("\nContainers space usage:\n\n");
    let mut table = Table::new(&["CONTAINER ID", "SIZE"]);
    usage.containers.iter().for_each(|container| table.row([short(&container.id), size(container.bytes)]));
    text.push_str(&table.text());
    let _ = write!(text, "\nBuild cache usage: {}\n\n", size(usage.builds_bytes));
    let mut table = Table::new(&["CACHE ID", "SIZE", "LAST USED", "SHARED", "STEP"]);
    for step in &usage.builds {
        let shown: String = step.description.chars().take(60).collect();
        let used = ago(step.used_at);
        table.row([short(&step.key), size(step.bytes), used, step.shared.to_string(), shown]);
    }
    text.push_str(&table.text());
    text
}

/// Flags of `system prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Every image that no container uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

impl Prune {
    async fn run(self) -> anyhow::Result<()> {
        let images = if self.all { "all images that no container uses" } else { "all dangling images" };
        let warning = format!("WARNING! This will remove:\n  - {images}\n  - what builds remember\n");
        if !self.force && !crate::confirm(&warning)? {
            return Ok(());
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::PruneRequest { all: self.all, ..Default::default() };
        let images = client.admin_images.prune(request).await.map_err(refusal("prune"))?.into_inner();
        let request = v1::PruneBuildsRequest { until: 0 };
        let builds = client.admin_system.prune_builds(request).await.map_err(refusal("prune"))?.into_inner();
        let mut text = String::new();
        if !images.deleted.is_empty() || !images.untagged.is_empty() {
            text.push_str("Deleted Images:\n");
            for name in &images.untagged {
                let _ = writeln!(text, "untagged: {name}");
            }
            for name in &images.deleted {
                let _ = writeln!(text, "deleted: {name}");
            }
            text.push('\n');
        }
        if builds.steps > 0 {
            let _ = writeln!(text, "Forgotten build steps: {}\n", builds.steps);
        }
        let _ = writeln!(text, "Total reclaimed space: {}", size(images.freed_bytes + builds.freed_bytes));
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Flags of `system fsck`.
#[derive(Debug, Args)]
pub struct Fsck {
    /// Make again what can be made again, remove what is damaged otherwise
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    target: Target,
}

impl Fsck {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::FsckRequest { repair: self.repair };
        let report = client.admin_system.fsck(request).await.map_err(refusal("fsck"))?.into_inner();
        let mut text = String::new();
        for finding in &report.findings {
            let _ = writeln!(text, "{}: {}", finding.fault, finding.outcome);
            for image in &finding.images {
                let _ = writeln!(text, "  of image {image}");
            }
            for container in &finding.containers {
                let _ = writeln!(text, "  of container {container}");
            }
        }
        let _ = writeln!(
            text,
            "{} layers, {} documents and {} images are whole",
            report.whole_layers, report.whole_blobs, report.whole_images
        );
        if report.unprovable_layers > 0 {
            let _ = writeln!(text, "of {} unpacked layers nothing can be proven", report.unprovable_layers);
        }
        io::stdout().write_all(text.as_bytes())?;
        if report.findings.is_empty() || self.repair {
            return Ok(());
        }
        bail!("the store is damaged: `pinnace system fsck --repair` mends what it can")
    }
}
