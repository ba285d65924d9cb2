//! The context: the files of a directory that `.dockerignore` does not leave out, as a tar.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use pinnace_build::ignore::Ignore;
use tokio::sync::mpsc;

/// Chunks that wait for being sent.
const CHUNKS: usize = 4;

/// The rules: `<Dockerfile>.dockerignore` first, else the context's.
pub fn ignore(context: &Path, dockerfile: Option<&Path>) -> anyhow::Result<Ignore> {
    let own = dockerfile.map(|file| {
        let mut name = file.as_os_str().to_owned();
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    let file = own.filter(|file| file.exists()).unwrap_or_else(|| context.join(".dockerignore"));
    if !file.exists() {
        return Ok(Ignore::default());
    }
    let text = super::text_of(&file)?;
    Ignore::parse(&text).map_err(|reason| anyhow::anyhow!("{}: {reason}", file.display()))
}

/// The context as a stream that a thread of its own fills.
pub fn tar(context: PathBuf, ignore: Ignore) -> anyhow::Result<impl Read + Send> {
    let (sender, receiver) = mpsc::channel::<io::Result<Vec<u8>>>(CHUNKS);
    std::thread::Builder::new()
        .name("context".to_owned())
        .spawn(move || {
            let out = io::BufWriter::with_capacity(1 << 20, Sender(sender.clone()));
            let mut archive = tar::Builder::new(out);
            archive.follow_symlinks(false);
            let written = add(&mut archive, &context, Path::new(""), &ignore)
                .and_then(|()| archive.into_inner())
                .and_then(|mut out| out.flush());
            if let Err(error) = written {
                let _ = sender.blocking_send(Err(error));
            }
        })
        .context("start a thread")?;
    Ok(Receiver { from: receiver, current: io::Cursor::new(Vec::new()) })
}

struct Sender(mpsc::Sender<io::Result<Vec<u8>>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(bytes.to_vec())).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Receiver {
    from: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: io::Cursor<Vec<u8>>,
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.from.blocking_recv() {
                Some(bytes) => self.current = io::Cursor::new(bytes?),
                None => return Ok(0),
            }
        }
    }
}

/// Adds what is below a directory, in the order of names. Everything belongs to root: whose a file is on this machine means
/// nothing in the image.
fn add<W: Write>(archive: &mut tar::Builder<W>, root: &Path, at: &Path, ignore: &Ignore) -> io::Result<()> {
    let mut names: Vec<_> = std::fs::read_dir(root.join(at))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort_unstable();
    for name in names {
        let path = at.join(&name);
        let full = root.join(&path);
        let shown = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", full.display()));
        let metadata = std::fs::symlink_metadata(&full).map_err(shown)?;
        let ignored = ignore.is_ignored(&path.to_string_lossy());
        if metadata.is_dir() {
            if ignored && ignore.may_skip(&path.to_string_lossy()) {
                continue;
            }
            if !ignored {
                append(archive, &path, &metadata, tar::EntryType::Directory, io::empty()).map_err(shown)?;
            }
            add(archive, root, &path, ignore)?;
            continue;
        }
        if ignored {
            continue;
        }
        let kind = metadata.file_type();
        if kind.is_symlink() {
            let target = std::fs::read_link(&full).map_err(shown)?;
            let mut header = header(&metadata, tar::EntryType::Symlink);
            archive.append_link(&mut header, &path, &target).map_err(shown)?;
        } else if kind.is_file() {
            let file = File::open(&full).map_err(shown)?;
            append(archive, &path, &metadata, tar::EntryType::Regular, file.take(metadata.len()))
                .map_err(shown)?;
        }
        // Sockets, pipes and devices are no files to copy.
    }
    Ok(())
}

fn header(metadata: &std::fs::Metadata, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &Path,
    metadata: &std::fs::Metadata,
    kind: tar::EntryType,
    content: impl Read,
) -> io::Result<()> {
    let mut header = header(metadata, kind);
    if kind == tar::EntryType::Regular {
        header.set_size(metadata.len());
    }
    archive.append_data(&mut header, path, content)
}

/// A file of a tar, plain or gzip, as text.
pub fn find(tar: &[u8], wanted: &Path) -> anyhow::Result<String> {
    let from: Box<dyn Read> = if tar.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::read::MultiGzDecoder::new(tar))
    } else {
        Box::new(tar)
    };
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries().context("read the tar on standard input")? {
        let entry = entry.context("read the tar on standard input")?;
        let path = entry.path().context("read the tar on standard input")?.into_owned();
        if path.strip_prefix("./").unwrap_or(&path) == wanted.strip_prefix("./").unwrap_or(wanted) {
            return super::text(Box::new(io::Cursor::new(read(entry)?)), &wanted.display().to_string());
        }
    }
    anyhow::bail!("the tar on standard input has no {}", wanted.display())
}

fn read(entry: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(super::TEXT_MAX).read_to_end(&mut bytes).context("read the tar on standard input")?;
    Ok(bytes)
}
