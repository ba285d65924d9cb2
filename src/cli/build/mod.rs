//! `build`: an image from a Dockerfile and a directory.

mod context;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use pinnace_admin_api::v1;
use pinnace_admin_api::v1::build_event::Event;

use crate::archives::{input, send};
use crate::client::{Client, Target, refusal};

/// Largest Dockerfile and largest secret.
const TEXT_MAX: u64 = 1 << 20;

/// Flags of `build`.
#[derive(Debug, Args)]
pub struct Build {
    /// The directory with the files, or - for a tar or a Dockerfile on standard input
    context: PathBuf,
    /// The Dockerfile [default: CONTEXT/Dockerfile]; - is standard input
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// A name for the image
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
    /// The stage that is wanted
    #[arg(long, default_value = "")]
    target: String,
    /// NAME=VALUE, or NAME for the value that the environment has
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// A label besides those of the Dockerfile
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Pull base images even if they are here
    #[arg(long)]
    pull: bool,
    /// id=ID[,src=FILE|,env=NAME]: something that RUN --mount=type=secret can have
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// What a RUN has that does not say: default, none or host
    #[arg(long, default_value = "default")]
    network: String,
    /// os/architecture
    #[arg(long, default_value = "")]
    platform: String,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = Progress::Auto)]
    progress: Progress,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Print nothing but the image's id
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    target_daemon: Target,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Progress {
    /// `tty` on a terminal.
    Auto,
    /// Everything, line by line.
    Plain,
    /// Steps, with output of those that fail.
    Tty,
    /// Nothing.
    Quiet,
}

/// What is sent besides the start.
enum Files {
    None,
    Tar(Box<dyn io::Read + Send>),
}

impl Build {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let (name, dockerfile, files) = self.read()?;
        let start = v1::BuildStart {
            dockerfile,
            dockerfile_name: name,
            tags: self.tag.clone(),
            target: self.target.clone(),
            args: self.args(),
            labels: pairs(&self.label),
            no_cache: self.no_cache,
            pull: self.pull,
            network: self.network.clone(),
            platform: self.platform.clone(),
            secrets: self.secrets()?,
        };
        let mut client = Client::connect(&self.target_daemon.socket).await?;
        let first = v1::BuildInput { input: Some(v1::build_input::Input::Start(start)) };
        let wrap = |data| v1::BuildInput { input: Some(v1::build_input::Input::Context(data)) };
        let from: Box<dyn io::Read + Send> = match files {
            Files::None => Box::new(io::empty()),
            Files::Tar(from) => from,
        };
        let (stream, sending) = send(Some(first), from, wrap);
        let answer = client.admin_builds.build(stream).await;
        // What could not be read is the reason, whatever the daemon made of the rest.
        sending.await?.context("read the context")?;
        let mut events = answer.map_err(failed)?.into_inner();
        let mut shown = Shown::new(match self.progress {
            _ if self.quiet => Progress::Quiet,
            Progress::Auto if io::stderr().is_terminal() => Progress::Tty,
            Progress::Auto => Progress::Plain,
            asked => asked,
        });
        loop {
            match events.message().await.map_err(failed)?.and_then(|event| event.event) {
                Some(Event::Image(image)) => {
                    shown.end(&image)?;
                    if let Some(file) = &self.iidfile {
                        std::fs::write(file, &image.id)
                            .with_context(|| format!("write {}", file.display()))?;
                    }
                    if self.quiet {
                        writeln!(io::stdout(), "{}", image.id)?;
                    }
                    return Ok(());
                }
                Some(event) => shown.event(event)?,
                None => bail!("build: the daemon ended it without a result"),
            }
        }
    }

    /// The Dockerfile with its name, and the context.
    fn read(&self) -> anyhow::Result<(String, String, Files)> {
        let is_stdin = |path: &Path| path == Path::new("-");
        if is_stdin(&self.context) {
            return self.read_stdin();
        }
        if !self.context.is_dir() {
            bail!("{} is not a directory", self.context.display());
        }
        let (name, text, ignore) = match &self.file {
            Some(file) if is_stdin(file) => {
                ("Dockerfile".to_owned(), text(input(None)?, "standard input")?, None)
            }
            Some(file) => (file.display().to_string(), text_of(file)?, Some(file.clone())),
            None => {
                let default = self.context.join("Dockerfile");
                let file = if default.exists() { default } else { self.context.join("Containerfile") };
                if !file.exists() {
                    bail!("there is no Dockerfile in {}: name one with -f", self.context.display());
                }
                let name =
                    file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                (name, text_of(&file)?, Some(file))
            }
        };
        let ignore = context::ignore(&self.context, ignore.as_deref())?;
        let tar = context::tar(self.context.clone(), ignore)?;
        Ok((name, text, Files::Tar(Box::new(tar))))
    }

    /// A tar with a Dockerfile in it, or the Dockerfile itself.
    fn read_stdin(&self) -> anyhow::Result<(String, String, Files)> {
        let mut bytes = Vec::new();
        input(None)?.take(TEXT_MAX).read_to_end(&mut bytes).context("read standard input")?;
        let is_tar = bytes.get(257..262) == Some(b"ustar")
            || bytes.starts_with(&[0x1f, 0x8b])
            || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if !is_tar {
            let text = String::from_utf8(bytes).context("the Dockerfile on standard input is not UTF-8")?;
            return Ok(("Dockerfile".to_owned(), text, Files::None));
        }
        let mut rest = io::stdin();
        let mut whole = bytes;
        rest.read_to_end(&mut whole).context("read standard input")?;
        let wanted = self.file.clone().unwrap_or_else(|| "Dockerfile".into());
        let text = context::find(&whole, &wanted)?;
        Ok((wanted.display().to_string(), text, Files::Tar(Box::new(io::Cursor::new(whole)))))
    }

    /// Build arguments; a name alone takes what the environment has. `SOURCE_DATE_EPOCH` is taken as it is.
    fn args(&self) -> HashMap<String, String> {
        let mut args = HashMap::new();
        if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
            args.insert("SOURCE_DATE_EPOCH".to_owned(), epoch);
        }
        for argument in &self.build_arg {
            match argument.split_once('=') {
                Some((name, value)) => drop(args.insert(name.to_owned(), value.to_owned())),
                None => {
                    if let Ok(value) = std::env::var(argument) {
                        args.insert(argument.clone(), value);
                    }
                }
            }
        }
        args
    }

    fn secrets(&self) -> anyhow::Result<Vec<v1::BuildSecret>> {
        self.secret
            .iter()
            .map(|text| {
                let fields: HashMap<&str, &str> =
                    text.split(',').filter_map(|field| field.split_once('=')).collect();
                let id = *fields.get("id").with_context(|| format!("--secret {text:?} has no id="))?;
                let file = fields.get("src").or_else(|| fields.get("source"));
                let value = match (file, fields.get("env")) {
                    (Some(file), _) => bytes_of(Path::new(file))?,
                    (None, variable) => {
                        let variable = variable.unwrap_or(&id);
                        std::env::var_os(variable)
                            .map(std::os::unix::ffi::OsStringExt::into_vec)
                            .with_context(|| {
                                format!("--secret {text:?}: the environment has no {variable}")
                            })?
                    }
                };
                Ok(v1::BuildSecret { id: id.to_owned(), value })
            })
            .collect()
    }
}

/// The message alone: it has the lines of the Dockerfile in it.
fn failed(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unimplemented => refusal("build")(status),
        _ => anyhow::anyhow!("{}", status.message()),
    }
}

fn pairs(list: &[String]) -> HashMap<String, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    list.iter().map(pair).collect()
}

fn bytes_of(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(TEXT_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > TEXT_MAX {
        bail!("{} is larger than {TEXT_MAX} bytes", path.display());
    }
    Ok(bytes)
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(bytes_of(path)?).with_context(|| format!("{} is not UTF-8", path.display()))
}

fn text(from: Box<dyn io::Read + Send>, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(TEXT_MAX).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
    String::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8"))
}

/// What is shown of a build, on standard error.
struct Shown {
    how: Progress,
    /// Output of steps that run, for the one that fails.
    kept: HashMap<u32, Vec<u8>>,
    /// Beginnings of lines.
    partial: HashMap<u32, Vec<u8>>,
    texts: HashMap<u32, String>,
}

/// How much of a step's output is kept.
const KEPT_BYTES: usize = 64 << 10;

impl Shown {
    fn new(how: Progress) -> Self {
        Self { how, kept: HashMap::new(), partial: HashMap::new(), texts: HashMap::new() }
    }

    fn event(&mut self, event: Event) -> io::Result<()> {
        let mut text = String::new();
        match event {
            Event::Warning(warning) if self.how != Progress::Quiet => {
                let _ = writeln!(text, "WARNING: {warning}");
            }
            Event::Started(started) => {
                let line =
                    format!("[{} {}/{}] {}", started.stage, started.position, started.total, started.text);
                if self.how == Progress::Plain {
                    let _ = writeln!(text, "#{} {line}", started.step);
                }
                self.texts.insert(started.step, line);
            }
            Event::Output(output) if self.how == Progress::Plain => {
                let partial = self.partial.entry(output.step).or_default();
                partial.extend(&output.data);
                while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = partial.drain(..=end).collect();
                    let _ = write!(text, "#{} {}", output.step, String::from_utf8_lossy(&line));
                }
            }
            Event::Output(output) => {
                let kept = self.kept.entry(output.step).or_default();
                kept.extend(&output.data);
                let excess = kept.len().saturating_sub(KEPT_BYTES);
                kept.drain(..excess);
            }
            Event::Ended(ended) => self.ended(&ended, &mut text),
            Event::Image(_) | Event::Warning(_) => {}
        }
        io::stderr().write_all(text.as_bytes())
    }

    fn ended(&mut self, ended: &v1::StepEnded, text: &mut String) {
        let step = ended.step;
        if let Some(rest) = self.partial.remove(&step).filter(|rest| !rest.is_empty()) {
            let _ = writeln!(text, "#{step} {}", String::from_utf8_lossy(&rest));
        }
        let kept = self.kept.remove(&step).unwrap_or_default();
        let seconds = format!("{}.{}s", ended.duration_ms / 1000, ended.duration_ms % 1000 / 100);
        let how = match (ended.error.is_empty(), ended.cached) {
            (true, true) => "CACHED".to_owned(),
            (true, false) => format!("DONE {seconds}"),
            (false, _) => "ERROR".to_owned(),
        };
        match self.how {
            Progress::Plain => {
                let _ = writeln!(text, "#{step} {how}\n");
            }
            Progress::Tty => {
                let line = self.texts.remove(&step).unwrap_or_default();
                let _ = writeln!(text, " => {how:<11} {line}");
                if !ended.error.is_empty() && !kept.is_empty() {
                    let _ = writeln!(text, "------\n{}------", String::from_utf8_lossy(&kept));
                }
            }
            Progress::Quiet if !ended.error.is_empty() => text.push_str(&String::from_utf8_lossy(&kept)),
            Progress::Quiet | Progress::Auto => {}
        }
    }

    fn end(&mut self, image: &v1::BuiltImage) -> io::Result<()> {
        if self.how == Progress::Quiet {
            return Ok(());
        }
        let mut text = format!("built {}\n", image.id);
        for name in &image.names {
            let _ = writeln!(text, "named {name}");
        }
        io::stderr().write_all(text.as_bytes())
    }
}
