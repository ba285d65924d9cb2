//! `list` and `ps`.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use crate::runtime::Runtime;
use crate::state::{Container, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How to print them
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Only the ids
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Processes {
    /// How to print them: ps(1)'s table, or the numbers
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Container id
    id: String,
    /// Options of ps(1)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "-ef")]
    options: Vec<String>,
}

impl Arguments {
    /// `list`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let found = containers(runtime)?;
        let mut out = std::io::stdout().lock();
        if self.quiet {
            for (container, _) in &found {
                writeln!(out, "{}", container.record.id)?;
            }
            return Ok(());
        }
        if self.format == Format::Json {
            let states: Vec<_> = found.iter().map(|(container, status)| container.state(*status)).collect();
            writeln!(out, "{}", serde_json::to_string(&states)?)?;
            return Ok(());
        }
        let width = found.iter().map(|(container, _)| container.record.id.len()).max().unwrap_or(0).max(2);
        writeln!(out, "{:width$}  {:>8}  {:9}  {:30}  BUNDLE", "ID", "PID", "STATUS", "CREATED")?;
        for (container, status) in &found {
            let record = &container.record;
            let pid = record.process.filter(|_| *status != Status::Stopped).map_or(0, |process| process.pid);
            let (id, created, bundle) = (&record.id, &record.created, record.bundle.display());
            writeln!(out, "{id:width$}  {pid:>8}  {:9}  {created:30}  {bundle}", status.name())?;
        }
        Ok(())
    }
}

/// All that can be read; one that is just being removed is not there.
fn containers(runtime: &Runtime) -> anyhow::Result<Vec<(Container, Status)>> {
    let entries = match fs::read_dir(&runtime.root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", runtime.root.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let container = name.to_str().and_then(|id| Container::find(runtime, id).ok());
        if let Some((container, status)) =
            container.and_then(|it| it.status().ok().map(|status| (it, status)))
        {
            found.push((container, status));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.record.id.cmp(&other.record.id));
    Ok(found)
}

impl Processes {
    /// `ps`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let container = Container::find(runtime, &self.id)?;
        container.expect(&[Status::Created, Status::Running, Status::Paused], "list the processes of")?;
        let pids: Vec<i32> =
            container.cgroup()?.pids()?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        let mut out = std::io::stdout().lock();
        if self.format == Format::Json {
            writeln!(out, "{}", serde_json::to_string(&pids)?)?;
            return Ok(());
        }
        let listed = Command::new("ps").args(&self.options).output().context("run ps")?;
        if !listed.status.success() {
            bail!("ps: {}", String::from_utf8_lossy(&listed.stderr).trim());
        }
        let text = String::from_utf8_lossy(&listed.stdout);
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default();
        let column = head.split_whitespace().position(|name| name == "PID").context("ps: no column PID")?;
        writeln!(out, "{head}")?;
        for line in lines {
            let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
            if pid.is_some_and(|pid: i32| pids.contains(&pid)) {
                writeln!(out, "{line}")?;
            }
        }
        Ok(())
    }
}
