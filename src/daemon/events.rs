//! What happens to sandboxes and containers, told to whoever listens (GetContainerEvents, KEP-3386).
//!
//! An event says what changed and when; the state that goes with it is looked up when it is delivered, so it is never older
//! than the event. Events of one container come in the order in which they happened, because they are sent under the lock
//! of its record. Nobody who tells ever waits: a listener that falls [`QUEUED`] events behind loses its stream and, as after
//! every reconnect, lists once.

use tokio::sync::broadcast;

use crate::clock;
use crate::id::SandboxId;

/// Events kept for the slowest listener: a restart of every container of a full node, several times over.
const QUEUED: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// It exists.
    Created,
    /// It runs.
    Started,
    /// It ran and ended, or could not be started.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something that happened to a container, or to a sandbox, whose id then is in both places.
#[derive(Clone, Debug)]
pub struct Event {
    /// The container's id, or the sandbox's.
    pub id: String,
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// What happened.
    pub happened: Happened,
    /// `CLOCK_REALTIME` ns.
    pub at_ns: i64,
}

/// Where events are told and heard. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(QUEUED))
    }
}

impl Events {
    /// Tells of something; never waits, and does nothing if nobody listens.
    pub fn tell(&self, id: &str, sandbox_id: &SandboxId, happened: Happened) {
        if self.0.receiver_count() > 0 {
            let (id, sandbox_id) = (id.to_owned(), sandbox_id.clone());
            // The last listener may just have gone.
            let _: Result<_, _> =
                self.0.send(Event { id, sandbox_id, happened, at_ns: clock::realtime_ns() });
        }
    }

    /// Hears what happens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
