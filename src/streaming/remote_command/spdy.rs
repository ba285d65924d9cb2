//! Exec and attach over SPDY: the client opens a stream for each of its ends, told apart by a header.

use std::time::Duration;

use super::session::{self, Command, Ends};
use super::status::StatusFormat;
use crate::link::Lost;
use crate::runtime::{Failure, Runtime};
use crate::spdy::connection::{Connection, Stream};

/// The versions of the protocol, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    V2,
    V3,
    V4,
}

impl Version {
    pub const ALL: [Version; 4] = [Version::V4, Version::V3, Version::V2, Version::V1];

    pub fn name(self) -> &'static str {
        match self {
            Version::V1 => "channel.k8s.io",
            Version::V2 => "v2.channel.k8s.io",
            Version::V3 => "v3.channel.k8s.io",
            Version::V4 => "v4.channel.k8s.io",
        }
    }

    fn format(self) -> StatusFormat {
        if self >= Version::V4 { StatusFormat::Json } else { StatusFormat::Text }
    }
}

/// The streams that have been opened.
#[derive(Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Serves one session and closes the connection.
pub(crate) async fn serve(
    mut connection: Connection,
    command: Command,
    version: Version,
    runtime: &dyn Runtime,
    stream_creation_timeout: Duration,
    drain: Duration,
) {
    let mut opened = Opened::default();
    let opening = open(&mut connection, &command, version, &mut opened);
    let complete = match tokio::time::timeout(stream_creation_timeout, opening).await {
        Ok(Ok(())) => true,
        Ok(Err(Lost)) => return connection.close().await,
        Err(_) => false,
    };
    connection.streams.close();
    if let Some(error) = opened.error {
        if complete {
            let ends = Ends {
                stdin: opened.stdin.map(|stream| stream.incoming),
                stdout: opened.stdout.map(|stream| stream.outgoing),
                stderr: opened.stderr.map(|stream| stream.outgoing),
                resize: opened.resize.map(|stream| stream.incoming),
                error: error.outgoing,
                format: version.format(),
            };
            session::run(command, ends, runtime, &connection.link, drain).await;
        } else {
            let late = Err(Failure::new("timed out waiting for the client to open its streams"));
            let _ = session::tell(&error.outgoing, version.format(), &late).await;
        }
    }
    connection.close().await;
}

/// Accepts streams until all that the request asks for are there.
async fn open(
    connection: &mut Connection,
    command: &Command,
    version: Version,
    opened: &mut Opened,
) -> Result<(), Lost> {
    let resize = command.tty() && version >= Version::V3;
    let wanted = [true, command.stdin(), command.stdout(), command.stderr(), resize];
    let mut missing = wanted.iter().filter(|wanted| **wanted).count();
    while missing > 0 {
        let stream = connection.streams.recv().await.ok_or(Lost)?;
        let (wanted, place) = match stream.headers.value("streamtype") {
            Some("error") => (true, &mut opened.error),
            Some("stdin") => (command.stdin(), &mut opened.stdin),
            Some("stdout") => (command.stdout(), &mut opened.stdout),
            Some("stderr") => (command.stderr(), &mut opened.stderr),
            Some("resize") => (resize, &mut opened.resize),
            _ => {
                stream.refuse().await?;
                continue;
            }
        };
        if wanted && place.is_none() {
            stream.accept().await?;
            *place = Some(stream);
            missing -= 1;
        } else {
            stream.refuse().await?;
        }
    }
    Ok(())
}
