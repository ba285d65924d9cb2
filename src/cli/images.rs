//! `images`, `tag`, `rmi`, `history`, `image prune`, `image tree`: images as this node has them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_admin_api::v1;
use serde_json::{Value, json};

use crate::client::{Client, Target, refusal};
use crate::human::{ago, short, size};
use crate::table::Table;
use crate::template::Template;

const NONE: &str = "<none>";

/// Flags of `images`.
#[derive(Debug, Args)]
pub struct Images {
    /// Only images of this repository, with this tag if it has one
    repository: Option<String>,
    /// Also images without a name that others were made from (there are none here: every image is shown)
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Only some: dangling=true|false, label=KEY[=VALUE], before=IMAGE, since=IMAGE, reference=PATTERN
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// A Go template for each image, or json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// One line of `images`: a name of an image, or an image without one.
struct Row<'a> {
    image: &'a v1::Image,
    repository: String,
    tag: String,
    digest: String,
}

impl Images {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let listed =
            client.admin_images.list(v1::ListRequest {}).await.map_err(refusal("images"))?.into_inner();
        let mut rows: Vec<Row<'_>> =
            listed.images.iter().flat_map(|image| rows(image, self.digests)).collect();
        if let Some(wanted) = &self.repository {
            rows.retain(|row| is_of(row, wanted));
        }
        for filter in &self.filter {
            apply(filter, &listed.images, &mut rows)?;
        }
        let out = self.text(&rows)?;
        io::stdout().write_all(out.as_bytes())?;
        Ok(())
    }

    fn id(&self, id: &str) -> String {
        if self.no_trunc { id.to_owned() } else { short(id) }
    }

    fn text(&self, rows: &[Row<'_>]) -> anyhow::Result<String> {
        if self.quiet {
            let mut text = String::new();
            let mut seen = Vec::new();
            for row in rows.iter().filter(|row| self.repository.is_none() || !row.image.id.is_empty()) {
                if !seen.contains(&&row.image.id) {
                    seen.push(&row.image.id);
                    let _ = writeln!(text, "{}", self.id(&row.image.id));
                }
            }
            return Ok(text);
        }
        if let Some(format) = &self.format {
            return formatted(&Template::parse(format)?, rows.iter().map(|row| self.fields(row)));
        }
        let mut head = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        if self.digests {
            head.insert(2, "DIGEST");
        }
        let mut table = Table::new(&head);
        for row in rows {
            let mut cells = vec![
                row.repository.clone(),
                row.tag.clone(),
                self.id(&row.image.id),
                if row.image.created == 0 { "N/A".to_owned() } else { ago(row.image.created) },
                size(row.image.size_bytes),
            ];
            if self.digests {
                cells.insert(2, row.digest.clone());
            }
            table.row(cells);
        }
        Ok(table.text())
    }

    fn fields(&self, row: &Row<'_>) -> Value {
        let image = row.image;
        json!({
            "Repository": row.repository,
            "Tag": row.tag,
            "ID": self.id(&image.id),
            "Digest": row.digest,
            "CreatedSince": if image.created == 0 { "N/A".to_owned() } else { ago(image.created) },
            "CreatedAt": image.created,
            "Size": size(image.size_bytes),
            "UniqueSize": size(image.own_bytes),
            "SharedSize": size(image.size_bytes.saturating_sub(image.own_bytes)),
            "VirtualSize": size(image.size_bytes),
            "Containers": image.containers,
        })
    }
}

/// A line for each value, under a head if the template asks for one.
pub fn formatted(template: &Template, values: impl Iterator<Item = Value>) -> anyhow::Result<String> {
    formatted_as(template, values, |name| match name {
        "ID" => "IMAGE ID".to_owned(),
        "CreatedSince" => "CREATED".to_owned(),
        "CreatedAt" => "CREATED AT".to_owned(),
        name => name.to_uppercase(),
    })
}

/// The same with other words for the fields in the head.
pub fn formatted_as(
    template: &Template,
    values: impl Iterator<Item = Value>,
    head: impl Fn(&str) -> String,
) -> anyhow::Result<String> {
    let mut lines: Vec<String> = Vec::new();
    if template.table {
        lines.push(template.head(head));
    }
    for value in values {
        lines.push(template.text(&value)?);
    }
    if !template.table {
        return Ok(lines.iter().map(|line| format!("{line}\n")).collect());
    }
    let cells = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let mut rows = lines.iter().map(|line| cells(line));
    let head = rows.next().unwrap_or_default();
    let mut table = Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>());
    rows.for_each(|row| table.row(row));
    Ok(table.text())
}

/// `repository` and `tag` of `repository:tag`.
fn split_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, NONE),
    }
}

fn rows(image: &v1::Image, digests: bool) -> Vec<Row<'_>> {
    let digest_of = |repository: &str| {
        let found = image.digests.iter().filter_map(|name| name.split_once('@'));
        let mut found = found.filter(|(known, _)| *known == repository);
        found.next().map_or(NONE.to_owned(), |(_, digest)| digest.to_owned())
    };
    let mut rows: Vec<Row<'_>> = image
        .tags
        .iter()
        .map(|name| {
            let (repository, tag) = split_tag(name);
            let digest = digest_of(repository);
            Row { image, repository: repository.to_owned(), tag: tag.to_owned(), digest }
        })
        .collect();
    // What was pulled by digest has no tag.
    for (repository, digest) in image.digests.iter().filter_map(|name| name.split_once('@')) {
        let tagged = rows.iter().any(|row| row.repository == repository);
        let listed = rows.iter().any(|row| row.repository == repository && row.digest == digest);
        if !tagged || (digests && !listed) {
            rows.push(Row {
                image,
                repository: repository.to_owned(),
                tag: NONE.to_owned(),
                digest: digest.to_owned(),
            });
        }
    }
    if rows.is_empty() {
        rows.push(Row { image, repository: NONE.to_owned(), tag: NONE.to_owned(), digest: NONE.to_owned() });
    }
    rows
}

fn is_of(row: &Row<'_>, wanted: &str) -> bool {
    let (repository, tag) = split_tag(wanted);
    matches(repository, &row.repository) && (tag == NONE || tag == row.tag)
}

fn apply(filter: &str, all: &[v1::Image], rows: &mut Vec<Row<'_>>) -> anyhow::Result<()> {
    let (key, value) =
        filter.split_once('=').with_context(|| format!("filter {filter:?} is not KEY=VALUE"))?;
    let made = |name: &str| {
        let found = all.iter().find(|image| {
            image.tags.iter().chain(&image.names).any(|tag| tag == name || tag == &format!("{name}:latest"))
                || image.id.trim_start_matches("sha256:").starts_with(name.trim_start_matches("sha256:"))
        });
        found.map(|image| image.created).with_context(|| format!("filter {filter:?}: no such image"))
    };
    match key {
        "dangling" => {
            let wanted: bool = match value {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => bail!("filter {filter:?}: true or false"),
            };
            rows.retain(|row| (row.image.tags.is_empty() && row.image.digests.is_empty()) == wanted);
        }
        "label" => rows.retain(|row| match value.split_once('=') {
            Some((key, value)) => row.image.labels.get(key).is_some_and(|has| has == value),
            None => row.image.labels.contains_key(value),
        }),
        "before" => {
            let created = made(value)?;
            rows.retain(|row| row.image.created < created);
        }
        "since" => {
            let created = made(value)?;
            rows.retain(|row| row.image.created > created);
        }
        "reference" => rows.retain(|row| {
            matches(value, &row.repository) || matches(value, &format!("{}:{}", row.repository, row.tag))
        }),
        _ => bail!("unknown filter {key:?}: dangling, label, before, since and reference are known"),
    }
    Ok(())
}

/// A pattern with `*` and `?`, which do not stand for a slash.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') if text.get(t) != Some(&'/') => (p, t) = (p + 1, t + 1),
            Some(c) if text.get(t) == Some(c) => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) if text.get(from) != Some(&'/') => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern.get(p..).is_none_or(|rest| rest.iter().all(|c| *c == '*'))
}

/// Flags of `tag`.
#[derive(Debug, Args)]
pub struct Tag {
    /// A name or id of an image here
    source: String,
    /// The name to give
    name: String,
    #[command(flatten)]
    target: Target,
}

impl Tag {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::TagRequest { source: self.source, target: self.name };
        client.admin_images.tag(request).await.map_err(refusal("tag"))?;
        Ok(())
    }
}

/// Flags of `rmi`.
#[derive(Debug, Args)]
pub struct Rmi {
    /// Names or ids
    #[arg(required = true)]
    images: Vec<String>,
    /// Also where several names or an ended container stand against it
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

impl Rmi {
    /// Does it; what fails does not keep the others.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let mut failed = Vec::new();
        for image in self.images {
            let request = v1::RemoveRequest { image: image.clone(), force: self.force };
            match client.admin_images.remove(request).await {
                Ok(removed) => {
                    let removed = removed.into_inner();
                    io::stdout().write_all(gone(&removed.untagged, &removed.deleted).as_bytes())?;
                }
                Err(status) if self.force && status.code() == tonic::Code::NotFound => {}
                Err(status) => failed.push(refusal(&format!("remove {image}"))(status).to_string()),
            }
        }
        if failed.is_empty() { Ok(()) } else { bail!(failed.join("\n")) }
    }
}

fn gone(untagged: &[String], deleted: &[String]) -> String {
    let mut text = String::new();
    for name in untagged {
        let _ = writeln!(text, "Untagged: {name}");
    }
    for name in deleted {
        let _ = writeln!(text, "Deleted: {name}");
    }
    text
}

/// Flags of `image prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Every image that no container uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only some: until=DURATION (10m, 24h, 7d), label=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Prune {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let what = if self.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if !self.force && !crate::confirm(&format!("WARNING! This will remove {what}."))? {
            return Ok(());
        }
        let mut request = v1::PruneRequest { all: self.all, ..Default::default() };
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("until", age)) => request.until = crate::before(age)?,
                Some(("label", label)) => request.labels.push(label.to_owned()),
                _ => bail!("filter {filter:?}: until and label are known"),
            }
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let pruned = client.admin_images.prune(request).await.map_err(refusal("prune"))?.into_inner();
        let mut text = String::new();
        if !pruned.untagged.is_empty() || !pruned.deleted.is_empty() {
            text = format!("Deleted Images:\n{}\n", gone(&pruned.untagged, &pruned.deleted).to_lowercase());
        }
        let _ = writeln!(text, "Total reclaimed space: {}", size(pruned.freed_bytes));
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// Flags of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// A name or id
    image: String,
    /// Sizes in bytes and times as they are
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    human: bool,
    /// Do not shorten
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// A Go template for each step, or json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Longest command that is shown without `--no-trunc`.
const COMMAND_CHARS: usize = 45;

impl History {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::InspectRequest { image: self.image.clone() };
        let image = client.admin_images.inspect(request).await.map_err(refusal("history"))?.into_inner();
        let rows: Vec<Value> = image.history.iter().map(|step| self.fields(step)).collect();
        let text = if self.quiet {
            rows.iter().map(|row| format!("{}\n", row["ID"].as_str().unwrap_or_default())).collect()
        } else {
            let format = self.format.as_deref();
            let format =
                format.unwrap_or("table {{.ID}}\t{{.Created}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}");
            let template = Template::parse(format)?;
            let text = formatted(&template, rows.into_iter())?;
            // Docker's head for this table.
            text.replacen("IMAGE ID", "IMAGE   ", 1).replacen("CREATEDBY ", "CREATED BY", 1)
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    fn fields(&self, step: &v1::HistoryStep) -> Value {
        let id = match (step.id.as_str(), self.no_trunc) {
            ("", _) => "<missing>".to_owned(),
            (id, true) => id.to_owned(),
            (id, false) => short(id),
        };
        let mut command: String = step.created_by.split_whitespace().collect::<Vec<_>>().join(" ");
        if !self.no_trunc && command.chars().count() > COMMAND_CHARS {
            command = command.chars().take(COMMAND_CHARS - 1).chain(['…']).collect();
        }
        let created = crate::timestamp(&step.created);
        json!({
            "ID": id,
            "Created": match (created, self.human) {
                (Some(created), true) => ago(created),
                (None, true) => "N/A".to_owned(),
                (_, false) => step.created.clone(),
            },
            "CreatedSince": created.map_or("N/A".to_owned(), ago),
            "CreatedAt": step.created,
            "CreatedBy": command,
            "Size": if self.human { size(step.size_bytes) } else { step.size_bytes.to_string() },
            "Comment": step.comment,
        })
    }
}

/// Flags of `image tree`.
#[derive(Debug, Args)]
pub struct Tree {
    #[command(flatten)]
    target: Target,
}

impl Tree {
    /// Does it: every layer once, below the one it lies on.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let images =
            client.admin_images.list(v1::ListRequest {}).await.map_err(refusal("images"))?.into_inner();
        io::stdout().write_all(tree(&images.images).as_bytes())?;
        Ok(())
    }
}

/// A chain of layers, and what goes on from it.
#[derive(Default)]
struct Branch<'a> {
    layer: Option<&'a v1::Layer>,
    next: Vec<Branch<'a>>,
    images: Vec<&'a v1::Image>,
}

fn tree(images: &[v1::Image]) -> String {
    let mut root = Branch::default();
    for image in images {
        let mut at = &mut root;
        for layer in &image.layers {
            let known =
                at.next.iter().position(|next| next.layer.is_some_and(|l| l.diff_id == layer.diff_id));
            let position = known.unwrap_or_else(|| {
                at.next.push(Branch { layer: Some(layer), ..Branch::default() });
                at.next.len() - 1
            });
            let Some(next) = at.next.get_mut(position) else { break };
            at = next;
        }
        at.images.push(image);
    }
    let mut text = String::new();
    draw(&root, "", &mut text);
    let mut layers: HashMap<&str, u64> = HashMap::new();
    images.iter().flat_map(|image| &image.layers).for_each(|layer| {
        layers.insert(&layer.diff_id, layer.disk_bytes);
    });
    let apart: u64 = images.iter().flat_map(|image| &image.layers).map(|layer| layer.disk_bytes).sum();
    let _ = writeln!(
        text,
        "{} images, {} layers: {} on disk, {} if nothing were shared",
        images.len(),
        layers.len(),
        size(layers.values().sum()),
        size(apart)
    );
    text
}

fn draw(branch: &Branch<'_>, indent: &str, text: &mut String) {
    for (position, next) in branch.next.iter().enumerate() {
        let last = position + 1 == branch.next.len();
        let (here, below) = if last { ("└─", "  ") } else { ("├─", "│ ") };
        if let Some(layer) = next.layer {
            let shared =
                if layer.images > 1 { format!("  in {} images", layer.images) } else { String::new() };
            let names: Vec<String> = next
                .images
                .iter()
                .map(|image| {
                    let names =
                        if image.tags.is_empty() { vec![NONE.to_owned()] } else { image.tags.clone() };
                    format!("{} ({})", names.join(", "), short(&image.id))
                })
                .collect();
            let names = if names.is_empty() { String::new() } else { format!("  ◄ {}", names.join("; ")) };
            let _ = writeln!(
                text,
                "{indent}{here} {} {:>8}{shared}{names}",
                short(&layer.diff_id),
                size(layer.disk_bytes)
            );
        }
        draw(next, &format!("{indent}{below}"), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str], layers: &[&str]) -> v1::Image {
        let layer = |id: &&str| v1::Layer {
            diff_id: format!("sha256:{id}"),
            disk_bytes: 1000,
            images: 1,
            ..Default::default()
        };
        v1::Image {
            id: format!("sha256:{id}"),
            tags: tags.iter().map(ToString::to_string).collect(),
            layers: layers.iter().map(layer).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_row_for_each_name() {
        let two = image("a", &["b:1", "host:5000/c:2"], &[]);
        let names: Vec<_> = rows(&two, false).into_iter().map(|row| (row.repository, row.tag)).collect();
        assert_eq!(names, [("b".to_owned(), "1".to_owned()), ("host:5000/c".to_owned(), "2".to_owned())]);
        assert_eq!(rows(&image("a", &[], &[]), false)[0].repository, NONE);
    }

    #[test]
    fn patterns_stop_at_slashes() {
        for (pattern, text, expected) in [
            ("busy*", "busybox", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("b?x", "box", true),
            ("box", "boxes", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn shared_layers_stand_once() {
        let text = tree(&[image("1", &["one:1"], &["base", "a"]), image("2", &[], &["base", "b"])]);
        assert_eq!(text.matches("base").count(), 1, "{text}");
        assert!(text.contains("◄ one:1 (1)") && text.contains("3 layers: 3kB on disk, 4kB"), "{text}");
    }
}
