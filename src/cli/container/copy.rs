//! `cp`, `export`: archives between here and a container.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_admin_api::v1;
use pinnace_admin_api::v1::copy_input::Input;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{Client, Target};
use crate::exit::Exit;

const QUEUED: usize = 8;
const CHUNK_BYTES: usize = 256 << 10;

/// Flags of `cp`.
#[derive(Debug, Args)]
pub struct Cp {
    /// Keep owners
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link that is the source
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path here, or - for an archive on standard input
    source: String,
    /// CONTAINER:PATH, a path here, or - for an archive on standard output
    destination: String,
    #[command(flatten)]
    target: Target,
}

/// `container:path`; a path that begins with `/` or `.` is one here.
fn split(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['/', '.']) {
        return None;
    }
    text.split_once(':').filter(|(container, _)| !container.is_empty())
}

/// What of a path is copied where, as docker has it: `dir/.` is what is in it.
struct Ends {
    /// The directory that is unpacked in.
    directory: PathBuf,
    /// The name that the source has there; `None` leaves its own.
    rename: Option<String>,
}

impl Ends {
    /// By what is at the destination; `exists` with whether it is a directory.
    fn of(
        source_is_directory: bool,
        contents: bool,
        destination: &str,
        exists: Option<bool>,
        parent_exists: bool,
    ) -> anyhow::Result<Self> {
        let path = PathBuf::from(destination);
        let parent =
            || path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let name = || path.file_name().map(|name| name.to_string_lossy().into_owned());
        match exists {
            Some(true) if contents => Ok(Self { directory: path, rename: Some(".".to_owned()) }),
            Some(true) => Ok(Self { directory: path, rename: None }),
            Some(false) if source_is_directory => {
                bail!("cannot copy a directory onto the file {destination}")
            }
            Some(false) => Ok(Self { directory: parent(), rename: name() }),
            None if destination.ends_with('/') && !source_is_directory => {
                bail!("no such directory: {destination}")
            }
            None if !parent_exists => bail!("no such directory: {}", parent().display()),
            None => Ok(Self { directory: parent(), rename: name() }),
        }
    }
}

impl Cp {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        match (split(&self.source), split(&self.destination)) {
            (Some((container, path)), None) => self.copy_out(&mut client, container, path).await,
            (None, Some((container, path))) => self.copy_in(&mut client, container, path).await,
            (Some(_), Some(_)) => bail!("copying between containers is not supported: copy to here first"),
            (None, None) => bail!("say which container: CONTAINER:PATH must be one of the two"),
        }
    }

    async fn copy_out(&self, client: &mut Client, container: &str, path: &str) -> anyhow::Result<()> {
        let request = v1::PathRequest {
            container: container.to_owned(),
            path: path.to_owned(),
            follow: self.follow_link,
        };
        let refused = |status: tonic::Status| Exit::refused(&status, 1);
        let stat = client.containers.stat_path(request.clone()).await.map_err(refused)?.into_inner();
        if self.destination == "-" {
            refuse_terminal()?;
            let chunks = client.containers.copy_from(request).await.map_err(refused)?.into_inner();
            return copy(chunks, io::stdout()).await;
        }
        let here = Path::new(&self.destination);
        let exists = here.metadata().ok().map(|metadata| metadata.is_dir());
        let parent = here.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let contents = stat.is_directory && (path.ends_with("/.") || path == "/" || path == ".");
        let ends = Ends::of(stat.is_directory, contents, &self.destination, exists, parent.is_dir())?;
        let chunks = client.containers.copy_from(request).await.map_err(refused)?.into_inner();
        let (reader, writing) = piped(chunks);
        let keep_owners = self.archive;
        let unpacked = tokio::task::spawn_blocking(move || unpack(reader, &ends, keep_owners)).await?;
        writing.await??;
        let bytes = unpacked?;
        if !self.quiet {
            writeln!(
                io::stderr(),
                "Successfully copied {} to {}",
                crate::human::size(bytes),
                self.destination
            )?;
        }
        Ok(())
    }

    async fn copy_in(&self, client: &mut Client, container: &str, path: &str) -> anyhow::Result<()> {
        let stat = |path: String| v1::PathRequest { container: container.to_owned(), path, follow: true };
        let exists = match client.containers.stat_path(stat(path.to_owned())).await {
            Ok(found) => Some(found.into_inner().is_directory),
            Err(status)
                if status.code() == tonic::Code::NotFound
                    && !status.message().contains("no such container") =>
            {
                None
            }
            Err(status) => return Err(Exit::refused(&status, 1)),
        };
        let start = |directory: &Path| v1::CopyStart {
            container: container.to_owned(),
            directory: directory.to_string_lossy().into_owned(),
            keep_owners: true,
        };
        if self.source == "-" {
            if exists != Some(true) {
                bail!("{path} in {container} is not a directory; an archive is unpacked in one");
            }
            return send(client, start(Path::new(path)), |to| {
                io::copy(&mut io::stdin().lock(), to).map(drop).context("read the archive")
            })
            .await;
        }
        let source = PathBuf::from(&self.source);
        let metadata = if self.follow_link { source.metadata() } else { source.symlink_metadata() };
        let metadata = metadata.with_context(|| format!("find {}", self.source))?;
        let parent = Path::new(path).parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let parent_exists = match exists {
            Some(_) => true,
            None => client
                .containers
                .stat_path(stat(parent))
                .await
                .is_ok_and(|found| found.into_inner().is_directory),
        };
        let contents = metadata.is_dir() && self.source.ends_with("/.");
        let ends = Ends::of(metadata.is_dir(), contents, path, exists, parent_exists)?;
        let mut start = start(&ends.directory);
        start.keep_owners = self.archive;
        let follow = self.follow_link;
        let own = source.canonicalize().unwrap_or_else(|_| source.clone());
        let own = own.file_name().unwrap_or(OsStr::new(".")).to_string_lossy().into_owned();
        let name = match (&ends.rename, source.file_name()) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.to_string_lossy().into_owned(),
            (None, None) => own,
        };
        let size = Counted::default();
        let counted = size.clone();
        send(client, start, move |to| {
            let mut builder = tar::Builder::new(Counting { to, counted });
            builder.follow_symlinks(false);
            if metadata.is_dir() {
                builder.append_dir_all(&name, &source)
            } else if follow || !metadata.is_symlink() {
                let mut file =
                    std::fs::File::open(&source).with_context(|| format!("open {}", source.display()))?;
                builder.append_file(&name, &mut file)
            } else {
                builder.append_path_with_name(&source, &name)
            }
            .with_context(|| format!("read {}", source.display()))?;
            builder.into_inner().context("send the archive")?.flush().context("send the archive")
        })
        .await?;
        if !self.quiet {
            let bytes = size.0.load(std::sync::atomic::Ordering::Relaxed);
            writeln!(
                io::stderr(),
                "Successfully copied {} to {container}:{path}",
                crate::human::size(bytes)
            )?;
        }
        Ok(())
    }
}

fn refuse_terminal() -> anyhow::Result<()> {
    if io::stdout().is_terminal() {
        bail!("an archive is nothing for a terminal: send it to a file or a program");
    }
    Ok(())
}

async fn copy(mut chunks: Streaming<v1::ArchiveChunk>, mut to: impl Write) -> anyhow::Result<()> {
    while let Some(chunk) = chunks.message().await.map_err(|status| Exit::refused(&status, 1))? {
        to.write_all(&chunk.data)?;
    }
    Ok(to.flush()?)
}

type Writing = tokio::task::JoinHandle<anyhow::Result<()>>;

/// What comes, for a thread to read; the task ends with what became of it.
fn piped(mut chunks: Streaming<v1::ArchiveChunk>) -> (Incoming, Writing) {
    let (sender, receiver) = mpsc::channel(QUEUED);
    let writing = tokio::spawn(async move {
        while let Some(chunk) = chunks.message().await.map_err(|status| Exit::refused(&status, 1))? {
            if sender.send(chunk.data).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    (Incoming { receiver, rest: Vec::new(), at: 0 }, writing)
}

struct Incoming {
    receiver: mpsc::Receiver<Vec<u8>>,
    rest: Vec<u8>,
    at: usize,
}

impl io::Read for Incoming {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            match self.receiver.blocking_recv() {
                Some(chunk) => (self.rest, self.at) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let count = to.len().min(self.rest.len() - self.at);
        to[..count].copy_from_slice(&self.rest[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Unpacks an archive here; the bytes of its files. What it says about paths outside is refused by `tar`.
fn unpack(from: Incoming, ends: &Ends, keep_owners: bool) -> anyhow::Result<u64> {
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(keep_owners);
    archive.set_unpack_xattrs(false);
    let mut bytes = 0_u64;
    for entry in archive.entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        bytes = bytes.saturating_add(entry.size());
        let path = entry.path().context("read the archive")?.into_owned();
        let renamed = match &ends.rename {
            None => path.clone(),
            Some(name) => {
                let rest: PathBuf = path.components().skip(1).collect();
                if rest.as_os_str().is_empty() { PathBuf::from(name) } else { Path::new(name).join(rest) }
            }
        };
        if renamed.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
            bail!("{} leads out of the archive", path.display());
        }
        let to = ends.directory.join(&renamed);
        if entry.header().entry_type() == tar::EntryType::Link {
            let link = entry.link_name().context("read the archive")?.context("a link to nothing")?;
            let rest: PathBuf = match &ends.rename {
                None => link.into_owned(),
                Some(name) => Path::new(name).join(link.components().skip(1).collect::<PathBuf>()),
            };
            let _ = std::fs::remove_file(&to);
            std::fs::hard_link(ends.directory.join(rest), &to)
                .with_context(|| format!("link {}", to.display()))?;
            continue;
        }
        if entry.header().entry_type() == tar::EntryType::Directory && to.is_dir() {
            continue;
        }
        entry.unpack(&to).with_context(|| format!("write {}", to.display()))?;
    }
    Ok(bytes)
}

/// Sends an archive that a thread writes.
async fn send(
    client: &mut Client,
    start: v1::CopyStart,
    write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(QUEUED);
    let first = v1::CopyInput { input: Some(Input::Start(start)) };
    sender.send(first).await.context("begin to copy")?;
    let writing = tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(CHUNK_BYTES, Outgoing(sender));
        write(&mut to)?;
        to.flush().context("send the archive")
    });
    let sent = client.containers.copy_to(ReceiverStream::new(receiver)).await;
    let written = writing.await?;
    // What the daemon says is why, and what failed here only its consequence.
    sent.map_err(|status| Exit::refused(&status, 1))?;
    written
}

struct Outgoing(mpsc::Sender<v1::CopyInput>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let message = v1::CopyInput { input: Some(Input::Data(piece.to_vec())) };
        self.0.blocking_send(message).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Counted(std::sync::Arc<std::sync::atomic::AtomicU64>);

struct Counting<W> {
    to: W,
    counted: Counted,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        let more = u64::try_from(count).unwrap_or(0);
        self.counted.0.fetch_add(more, std::sync::atomic::Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Write it to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The container: id, beginning of it, or name
    container: String,
    #[command(flatten)]
    target: Target,
}

impl Export {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.output.is_none() {
            refuse_terminal()?;
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let selector = v1::ContainerSelector { container: self.container };
        let chunks = client.containers.export(selector).await.map_err(|status| Exit::refused(&status, 1))?;
        let chunks = chunks.into_inner();
        match &self.output {
            None => copy(chunks, io::stdout()).await,
            Some(path) => {
                let file =
                    std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
                copy(chunks, io::BufWriter::new(file)).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_things_go_is_as_docker_has_it() {
        let to = |directory, contents, destination: &str, exists, parent| {
            Ends::of(directory, contents, destination, exists, parent)
                .map(|ends| (ends.directory.display().to_string(), ends.rename))
                .ok()
        };
        let renamed = |directory: &str, name: &str| Some((directory.to_owned(), Some(name.to_owned())));
        assert_eq!(to(false, false, "/d", Some(true), true), Some(("/d".to_owned(), None)));
        assert_eq!(to(false, false, "/d/f", None, true), renamed("/d", "f"));
        assert_eq!(to(false, false, "/d/f", Some(false), true), renamed("/d", "f"));
        assert_eq!(to(false, false, "/d/", None, true), None);
        assert_eq!(to(true, false, "/d", Some(false), true), None);
        assert_eq!(to(true, true, "/d", Some(true), true), renamed("/d", "."));
        assert_eq!(to(true, false, "/d/new", None, true), renamed("/d", "new"));
        assert_eq!(to(true, false, "/no/new", None, false), None);
        assert_eq!(split("web:/etc"), Some(("web", "/etc")));
        assert_eq!(split("./a:b"), None);
    }
}
