//! Events: those that are remembered, and what comes.

use pinnace_admin_api::v1;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::clock;
use crate::error::Error;
use crate::local::events::Event;
use crate::node::Node;

/// Events that wait for the network.
const QUEUED: usize = 64;

const KNOWN: [&str; 6] = ["container", "event", "image", "label", "type", "volume"];

/// Answers Events.
pub fn answer(node: &Node, request: v1::EventsRequest) -> Result<BoxStream<v1::ContainerEvent>, Error> {
    if let Some(filter) = request.filters.iter().find(|filter| !KNOWN.contains(&filter.key.as_str())) {
        let reason = format!("{:?} is not known; known are {}", filter.key, KNOWN.join(", "));
        return Err(Error::invalid("filters", reason));
    }
    let node = node.shared()?;
    let since = (request.since_ns != 0).then_some(request.since_ns);
    let (earlier, mut coming) = node.local.events.listen(since);
    let (sender, receiver) = mpsc::channel(QUEUED);
    tokio::spawn(async move {
        let until_ns = request.until_ns;
        let wanted =
            |event: &Event| (until_ns == 0 || event.at_ns <= until_ns) && matches(event, &request.filters);
        for event in earlier.into_iter().filter(wanted) {
            if sender.send(Ok(message(event))).await.is_err() {
                return;
            }
        }
        let late = async {
            match until_ns {
                0 => std::future::pending().await,
                until => {
                    let left = u64::try_from(until.saturating_sub(clock::realtime_ns())).unwrap_or(0);
                    tokio::time::sleep(std::time::Duration::from_nanos(left)).await;
                }
            }
        };
        tokio::pin!(late);
        loop {
            let event = tokio::select! {
                event = coming.recv() => event,
                () = &mut late => return,
                () = sender.closed() => return,
                () = node.closing.cancelled() => return,
            };
            let answer = match event {
                Ok(event) if wanted(&event) => Ok(message(event)),
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    Err(Status::data_loss(format!("{missed} events were not taken in time and are missing")))
                }
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let over = answer.is_err();
            if sender.send(answer).await.is_err() || over {
                return;
            }
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Filters of one key are alternatives.
fn matches(event: &Event, filters: &[v1::Filter]) -> bool {
    KNOWN.iter().all(|key| {
        let mut of_key = filters.iter().filter(|filter| filter.key == *key).peekable();
        of_key.peek().is_none() || of_key.any(|filter| fits(event, key, &filter.value))
    })
}

fn fits(event: &Event, key: &str, value: &str) -> bool {
    let attribute = |key: &str| event.attributes.get(key).map(String::as_str);
    match key {
        "type" => event.kind == value,
        "event" => event.action == value || event.action.split(':').next() == Some(value),
        "container" => {
            event.kind == "container" && (event.id.starts_with(value) || attribute("name") == Some(value))
        }
        "volume" => event.kind == "volume" && event.id == value,
        "image" => attribute("image") == Some(value),
        _ => match value.split_once('=') {
            Some((label, value)) => attribute(label) == Some(value),
            None => attribute(value).is_some(),
        },
    }
}

fn message(event: Event) -> v1::ContainerEvent {
    v1::ContainerEvent {
        at_ns: event.at_ns,
        kind: event.kind.to_owned(),
        action: event.action,
        id: event.id,
        attributes: event.attributes.into_iter().collect(),
    }
}
