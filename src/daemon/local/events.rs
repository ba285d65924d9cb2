//! What happens to containers of the command line, told to whoever listens, and the last of it to who comes later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::broadcast;

use crate::clock;
use crate::table::lock;

/// Events kept for the slowest listener, and for those who ask for earlier ones.
const KEPT: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// `CLOCK_REALTIME` ns.
    pub at_ns: i64,
    /// `container` or `volume`.
    pub kind: &'static str,
    /// As docker calls it.
    pub action: String,
    /// Whose.
    pub id: String,
    /// Name, image, exit code, labels.
    pub attributes: BTreeMap<String, String>,
}

/// Where events are told and heard.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Mutex::default(), sender: broadcast::Sender::new(KEPT) }
    }
}

impl Events {
    /// Tells of something; never waits.
    pub fn tell(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        id: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let event =
            Event { at_ns: clock::realtime_ns(), kind, action: action.into(), id: id.to_owned(), attributes };
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Under the lock, so that no listener sees one twice or not at all. That nobody listens is no error.
        let _: Result<_, _> = self.sender.send(event);
    }

    /// Those that are remembered since then, and what comes.
    pub fn listen(&self, since_ns: Option<i64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = lock(&self.kept);
        let earlier = match since_ns {
            None => Vec::new(),
            Some(since) => kept.iter().filter(|event| event.at_ns >= since).cloned().collect(),
        };
        (earlier, self.sender.subscribe())
    }
}
