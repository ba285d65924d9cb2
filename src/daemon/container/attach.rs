//! Joining the streams of a container's first process.
//!
//! The monitor copies output to every attachment and to the log. One that does not read in time loses output instead of
//! making container, log or the others wait; how much it lost is told at its end, as a failure, so that nobody takes what
//! he has for the whole. Only what is written from now on is seen.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use oci_spec::runtime::Spec;
use pinnace_launcher::protocol::{Attach, Detached, Request};
use tokio::sync::oneshot;

use super::Container;
use super::exec::{Streams, Window, monitor_of, pipe, running};
use crate::error::Error;
use crate::monitor::Monitor;
use crate::node::Node;
use crate::record as disk;

/// Which streams to join.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Write its standard input, if it has one.
    pub stdin: bool,
    /// Read its standard output, or its terminal.
    pub stdout: bool,
    /// Read its standard error, which a terminal does not have.
    pub stderr: bool,
    /// Make the container wait for whoever does not read in time, instead of leaving output out.
    pub lossless: bool,
    /// Rows and columns that its terminal is to have.
    pub size: Option<(u16, u16)>,
}

/// A joined container.
#[derive(Debug)]
pub struct Attachment {
    id: u64,
    container: Arc<Container>,
    monitor: Arc<Monitor>,
    detached: oneshot::Receiver<Detached>,
    /// Whether it has a terminal.
    pub terminal: bool,
}

impl Attachment {
    /// Joins a running container.
    pub async fn join(
        node: &Node,
        container: Arc<Container>,
        wanted: Wanted,
    ) -> Result<(Self, Streams), Error> {
        running(&container)?;
        Self::join_held(node, container, wanted).await
    }

    /// Joins a container that is held before its program is executed, or runs.
    pub async fn join_held(
        node: &Node,
        container: Arc<Container>,
        wanted: Wanted,
    ) -> Result<(Self, Streams), Error> {
        let monitor = monitor_of(&container)?;
        let directory = container.directory.clone();
        let terminal = node.blocking(move |_| {
            let spec: Spec = disk::read(&Container::spec_path(&directory))?;
            Ok(spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false))
        });
        let terminal = terminal.await?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        let mut streams = Streams::default();
        let mut push = |descriptor| {
            let slot = u32::try_from(descriptors.len()).ok();
            descriptors.push(descriptor);
            slot
        };
        let id = monitor.next_attach_id();
        let mut request = Attach {
            container_id: container.id.to_string(),
            attach_id: id,
            lossless: wanted.lossless,
            ..Attach::default()
        };
        if wanted.stdin && container.record().stdin {
            let (theirs, ours) = pipe()?;
            (request.stdin, streams.stdin) = (push(theirs), Some(ours));
        }
        if wanted.stdout {
            let (ours, theirs) = pipe()?;
            (request.stdout, streams.stdout) = (push(theirs), Some(ours));
        }
        if wanted.stderr && !terminal {
            let (ours, theirs) = pipe()?;
            (request.stderr, streams.stderr) = (push(theirs), Some(ours));
        }
        let detached = monitor.expect_detached(id);
        let borrowed = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect::<Vec<_>>();
        let joined = monitor.request(Request::Attach(request), &borrowed).await;
        let attachment = Self { id, container, monitor, detached, terminal };
        joined.map(|_| (attachment, streams))
    }

    /// What sets the size of the container's terminal.
    pub fn window(&self) -> Window {
        Window {
            monitor: Arc::clone(&self.monitor),
            container_id: self.container.id.to_string(),
            exec_id: String::new(),
        }
    }

    /// Waits until its streams are over.
    pub async fn over(mut self) -> Result<(), Error> {
        let gone = || Error::MonitorGone(self.container.sandbox.id.clone());
        let Detached { lost_bytes, .. } = (&mut self.detached).await.map_err(|_| gone())?;
        match lost_bytes {
            0 => Ok(()),
            bytes => Err(Error::OutputMissed { container: self.container.id.clone(), bytes }),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.monitor.forget_attachment(self.id);
    }
}
