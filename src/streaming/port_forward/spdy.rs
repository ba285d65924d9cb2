//! Port-forward over SPDY: the client opens two streams for each connection, one for data and one for errors.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::carry;
use crate::link::Lost;
use crate::runtime::Runtime;
use crate::spdy::connection::{Connection, Stream};
use crate::spdy::frame::CANCEL;

/// The one version there is.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";

/// What two streams have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The client's own name for the connection.
    Request(String),
    /// Clients before that had one: the number of the error stream, which data follows by two.
    ErrorStream(u32),
}

#[derive(Debug)]
struct Half {
    key: Key,
    port: u16,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Error,
}

impl Half {
    /// What a stream's headers say; `None` if they are wrong.
    fn of(stream: &Stream) -> Option<Half> {
        let number = stream.outgoing.stream;
        let part = match stream.headers.value("streamtype")? {
            "data" => Part::Data,
            "error" => Part::Error,
            _ => return None,
        };
        let port = stream.headers.value("port")?.parse().ok().filter(|port| *port != 0)?;
        let key = match (stream.headers.value("requestid"), part) {
            (Some(id), _) if !id.is_empty() => Key::Request(id.to_owned()),
            (_, Part::Error) => Key::ErrorStream(number),
            (_, Part::Data) => Key::ErrorStream(number.checked_sub(2)?),
        };
        Some(Half { key, port, part })
    }
}

/// A pair of which one stream is missing.
struct Waiting {
    deadline: Instant,
    part: Part,
    stream: Stream,
}

/// Serves a client's connections until it leaves, then closes.
pub(crate) async fn serve(
    mut connection: Connection,
    sandbox_id: String,
    runtime: Arc<dyn Runtime>,
    stream_creation_timeout: Duration,
) {
    let sandbox: Arc<str> = sandbox_id.into();
    let mut waiting: HashMap<Key, Waiting> = HashMap::new();
    let mut forwards = JoinSet::new();
    let lost = connection.link.lost.clone();
    loop {
        let deadline = waiting.values().map(|pair| pair.deadline).min();
        tokio::select! {
            stream = connection.streams.recv() => {
                let Some(stream) = stream else { break };
                let pair = match join(&mut waiting, stream, stream_creation_timeout).await {
                    Ok(Some(pair)) => pair,
                    Ok(None) => continue,
                    Err(Lost) => break,
                };
                let (runtime, sandbox, lost) = (runtime.clone(), sandbox.clone(), lost.clone());
                forwards.spawn(async move {
                    let Pair { port, data, error } = pair;
                    tokio::select! {
                        () = carry(&*runtime, &sandbox, port, data.incoming, data.outgoing, error.outgoing) => {}
                        () = lost.cancelled() => {}
                    }
                });
            }
            () = sleep_until(deadline) => {
                let now = Instant::now();
                let late: Vec<_> = waiting.extract_if(|_, pair| pair.deadline <= now).collect();
                for (key, pair) in late {
                    if give_up(&key, pair).await.is_err() {
                        break;
                    }
                }
            }
            Some(_) = forwards.join_next() => {}
            () = lost.cancelled() => break,
        }
    }
    lost.cancel();
    while forwards.join_next().await.is_some() {}
    connection.close().await;
}

/// Both streams of a connection.
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

/// Accepts a stream, and joins it to its other half if that is there.
async fn join(
    waiting: &mut HashMap<Key, Waiting>,
    stream: Stream,
    stream_creation_timeout: Duration,
) -> Result<Option<Pair>, Lost> {
    let Some(Half { key, port, part }) = Half::of(&stream) else {
        stream.refuse().await?;
        return Ok(None);
    };
    if waiting.get(&key).is_some_and(|other| other.part == part) {
        stream.refuse().await?;
        return Ok(None);
    }
    stream.accept().await?;
    let Some(other) = waiting.remove(&key) else {
        let deadline = Instant::now() + stream_creation_timeout;
        waiting.insert(key, Waiting { deadline, part, stream });
        return Ok(None);
    };
    Ok(Some(match part {
        Part::Data => Pair { port, data: stream, error: other.stream },
        Part::Error => {
            let port = Half::of(&other.stream).map_or(port, |data| data.port);
            Pair { port, data: other.stream, error: stream }
        }
    }))
}

/// Tells the client that half of a connection is missing.
async fn give_up(key: &Key, pair: Waiting) -> Result<(), Lost> {
    if pair.part == Part::Error {
        let name = match key {
            Key::Request(id) => format!("request {id}"),
            Key::ErrorStream(number) => format!("error stream {number}"),
        };
        let text = format!("timed out waiting for the data stream of {name}");
        pair.stream.outgoing.text(text.as_bytes()).await?;
        pair.stream.outgoing.finish().await?;
    }
    pair.stream.outgoing.reset(CANCEL).await
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
