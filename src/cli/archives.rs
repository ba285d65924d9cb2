//! `save`, `load`, `import`: images as files.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_admin_api::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::client::{Client, Target, refusal};
use crate::human::{short, size};

const CHUNK_BYTES: usize = 1 << 20;

/// Flags of `save`.
#[derive(Debug, Args)]
pub struct Save {
    /// Names or ids; by id an image has no name in the archive
    #[arg(required = true)]
    images: Vec<String>,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

impl Save {
    /// Does it. A file is there as a whole or not at all.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.output.is_none() && io::stdout().is_terminal() {
            bail!("cowardly refusing to save to a terminal: use -o FILE or a pipe");
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let request = v1::SaveRequest { images: self.images };
        let mut chunks = client.admin_images.save(request).await.map_err(refusal("save"))?.into_inner();
        let mut output = Output::open(self.output.as_deref())?;
        while let Some(chunk) = chunks.message().await.map_err(refusal("save"))? {
            output.write(&chunk.data)?;
        }
        output.finish()
    }
}

/// A file that gets its name when it is complete, or standard output.
pub struct Output {
    to: Box<dyn io::Write>,
    file: Option<(PathBuf, PathBuf)>,
}

impl Output {
    /// Begins.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self { to: Box::new(io::stdout()), file: None }) };
        // Devices and pipes are written to as they are.
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let file =
                File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
            return Ok(Self { to: Box::new(file), file: None });
        }
        let name = path.file_name().with_context(|| format!("{} is no file name", path.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
        Ok(Self { to: Box::new(file), file: Some((temporary, path.to_owned())) })
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.to.write_all(bytes)?)
    }

    /// It is complete.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.to.flush()?;
        if let Some((temporary, path)) = self.file.take() {
            std::fs::rename(&temporary, &path).with_context(|| format!("create {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.file {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Sends what a reader gives, wrapped, on a thread that may wait for it. The stream ends early if the reader fails; the error
/// is what the thread answers.
pub fn send<T: Send + 'static>(
    first: Option<T>,
    mut from: impl Read + Send + 'static,
    wrap: fn(Vec<u8>) -> T,
) -> (ReceiverStream<T>, tokio::task::JoinHandle<io::Result<()>>) {
    let (sender, stream) = mpsc::channel(4);
    let sending = tokio::task::spawn_blocking(move || {
        if let Some(first) = first
            && sender.blocking_send(first).is_err()
        {
            return Ok(());
        }
        loop {
            let mut bytes = Vec::with_capacity(CHUNK_BYTES);
            from.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut bytes)?;
            if bytes.is_empty() || sender.blocking_send(wrap(bytes)).is_err() {
                return Ok(());
            }
        }
    });
    (ReceiverStream::new(stream), sending)
}

/// A file, or standard input for none and for `-`.
pub fn input(path: Option<&Path>) -> anyhow::Result<Box<dyn Read + Send>> {
    match path {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            Ok(Box::new(file))
        }
        _ if io::stdin().is_terminal() => {
            bail!("there is nothing on standard input: name a file, or use a pipe")
        }
        _ => Ok(Box::new(io::stdin())),
    }
}

/// Flags of `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// Read from a file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    target: Target,
}

impl Load {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let from = input(self.input.as_deref())?;
        let mut client = Client::connect(&self.target.socket).await?;
        let (stream, sending) = send(None, from, |data| v1::Chunk { data });
        let answer = client.admin_images.load(stream).await;
        let mut events = answer.map_err(refusal("load"))?.into_inner();
        let mut shown = !self.quiet && io::stderr().is_terminal();
        while let Some(event) = events.message().await.map_err(refusal("load"))? {
            match event.event {
                Some(v1::load_event::Event::Progress(progress)) if shown => {
                    let line = format!(
                        "\r\x1b[K{} {}/{}",
                        short(&progress.layer),
                        size(progress.done_bytes),
                        size(progress.total_bytes)
                    );
                    shown = io::stderr().write_all(line.as_bytes()).is_ok();
                }
                Some(v1::load_event::Event::Image(image)) => {
                    if shown {
                        io::stderr().write_all(b"\r\x1b[K")?;
                    }
                    for tag in &image.tags {
                        writeln!(io::stdout(), "Loaded image: {tag}")?;
                    }
                    if image.tags.is_empty() {
                        writeln!(io::stdout(), "Loaded image ID: {}", image.id)?;
                    }
                }
                _ => {}
            }
        }
        Ok(sending.await??)
    }
}

/// Flags of `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// A tar of a root file system, plain or compressed; - is standard input
    file: PathBuf,
    /// The name to give
    name: Option<String>,
    /// What the history says
    #[arg(short, long, default_value = "")]
    message: String,
    /// os/architecture of the image
    #[arg(long, default_value = "")]
    platform: String,
    #[command(flatten)]
    target: Target,
}

impl Import {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let from = input(Some(&self.file))?;
        let mut client = Client::connect(&self.target.socket).await?;
        let start = v1::ImportStart {
            name: self.name.unwrap_or_default(),
            message: self.message,
            platform: self.platform,
        };
        let first = v1::ImportInput { input: Some(v1::import_input::Input::Start(start)) };
        let wrap = |data| v1::ImportInput { input: Some(v1::import_input::Input::Data(data)) };
        let (stream, sending) = send(Some(first), from, wrap);
        let made = client.admin_images.import(stream).await.map_err(refusal("import"))?.into_inner();
        sending.await??;
        writeln!(io::stdout(), "{}", made.id)?;
        Ok(())
    }
}
