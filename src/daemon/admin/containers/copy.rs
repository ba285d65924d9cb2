//! StatPath, CopyFrom, CopyTo, Export: archives in chunks, made and taken apart by a blocking thread.

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;

use pinnace_admin_api::v1;
use pinnace_admin_api::v1::copy_input::Input;
use pinnace_store::Access;
use rustix::fs::FileType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Status, Streaming};

use crate::error::{Error, Within as _};
use crate::local::LocalContainer;
use crate::local::archive::{self, Place};
use crate::node::Node;

/// Chunks that wait for the network.
const QUEUED: usize = 8;

const CHUNK_BYTES: usize = 256 << 10;

/// Answers StatPath.
pub async fn stat(node: &Node, request: v1::PathRequest) -> Result<v1::PathStat, Error> {
    let local = node.local.find(&request.container)?;
    let what = format!("{} in container {}", request.path, local.record().name);
    let _turn = local.turn.lock().await;
    let looked = Arc::clone(&local);
    let found = node.blocking(move |node| {
        Place::of(node, &looked, &request.path, Access::ReadOnly)?.find(request.follow)
    });
    let found = found.await.within(|| what)?;
    let kind = FileType::from_raw_mode(found.stat.st_mode);
    let nanoseconds = i64::try_from(found.stat.st_mtime_nsec).unwrap_or(0);
    Ok(v1::PathStat {
        name: found.name,
        is_directory: kind == FileType::Directory,
        is_symlink: kind == FileType::Symlink,
        size: u64::try_from(found.stat.st_size).unwrap_or(0),
        mode: found.stat.st_mode & 0o7777,
        link_target: found.link.unwrap_or_default(),
        modified_at_ns: found.stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
    })
}

/// Answers CopyFrom.
pub fn from(node: &Node, request: v1::PathRequest) -> Result<BoxStream<v1::ArchiveChunk>, Error> {
    let local = node.local.find(&request.container)?;
    let what = format!("copy {} from container {}", request.path, local.record().name);
    stream(node, local, what, move |node, local, to| {
        Place::of(node, local, &request.path, Access::ReadOnly)?.pack(request.follow, to)
    })
}

/// Answers Export.
pub fn export(node: &Node, container: &str) -> Result<BoxStream<v1::ArchiveChunk>, Error> {
    let local = node.local.find(container)?;
    let what = format!("export container {}", local.record().name);
    stream(node, local, what, |node, local, to| archive::export(node, local, to))
}

fn stream(
    node: &Node,
    local: Arc<LocalContainer>,
    what: String,
    work: impl FnOnce(&Node, &LocalContainer, &mut dyn Write) -> Result<(), Error> + Send + 'static,
) -> Result<BoxStream<v1::ArchiveChunk>, Error> {
    let node = node.shared()?;
    let (sender, receiver) = mpsc::channel(QUEUED);
    tokio::spawn(async move {
        // Not started meanwhile: a writable layer is mounted once at a time.
        let _turn = local.turn.lock().await;
        let (packed, chunks) = (Arc::clone(&local), sender.clone());
        let done = node.blocking(move |node| {
            let mut to = BufWriter::with_capacity(CHUNK_BYTES, Chunks(chunks));
            work(node, &packed, &mut to)?;
            to.flush().map_err(Error::io("send", "archive"))
        });
        if let Err(error) = done.await.within(|| what) {
            // A client that has gone is not told.
            let _: Result<_, _> = sender.send(Err(error.into())).await;
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Sends what is written to it.
struct Chunks(mpsc::Sender<Result<v1::ArchiveChunk, Status>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let piece = &bytes[..bytes.len().min(CHUNK_BYTES)];
        self.0.blocking_send(Ok(v1::ArchiveChunk { data: piece.to_vec() })).map_err(gone)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers CopyTo.
pub async fn to(node: &Node, mut incoming: Streaming<v1::CopyInput>) -> Result<(), Status> {
    let Some(Input::Start(start)) = incoming.message().await?.and_then(|message| message.input) else {
        return Err(Error::invalid("input", "the first message does not say where to copy to").into());
    };
    let local = node.local.find(&start.container)?;
    let what = format!("copy to {} in container {}", start.directory, local.record().name);
    let (sender, receiver) = mpsc::channel(QUEUED);
    let reading = tokio::spawn(async move {
        loop {
            match incoming.message().await {
                Ok(Some(message)) => {
                    if let Some(Input::Data(bytes)) = message.input
                        && sender.send(Ok(bytes)).await.is_err()
                    {
                        // It has what it wants, or has failed.
                        return;
                    }
                }
                Ok(None) => return,
                Err(status) => {
                    let cut = io::Error::new(io::ErrorKind::UnexpectedEof, status.message().to_owned());
                    let _: Result<_, _> = sender.send(Err(cut)).await;
                    return;
                }
            }
        }
    });
    let unpacked = node.mutation(|node| async move {
        let _turn = local.turn.lock().await;
        let unpacked = Arc::clone(&local);
        let done = node.blocking(move |node| {
            let place = Place::of(node, &unpacked, &start.directory, Access::ReadWrite)?;
            let from = Incoming { receiver, rest: Vec::new(), at: 0 };
            place.unpack(from, start.keep_owners)
        });
        done.await.within(|| what)
    });
    let unpacked = unpacked.await;
    reading.abort();
    Ok(unpacked?)
}

/// Reads what comes.
struct Incoming {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: Vec<u8>,
    at: usize,
}

impl Read for Incoming {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            match self.receiver.blocking_recv() {
                Some(chunk) => (self.rest, self.at) = (chunk?, 0),
                None => return Ok(0),
            }
        }
        let count = to.len().min(self.rest.len() - self.at);
        to[..count].copy_from_slice(&self.rest[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
