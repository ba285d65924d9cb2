//! Push, with its progress.

use std::time::Duration;

use pinnace_admin_api::v1;
use pinnace_push::{Phase, Progress, PushRequest};
use pinnace_registry::Auth;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::{Error, Within as _};
use crate::image::find;
use crate::node::Node;

/// How often progress is told at most.
const INTERVAL: Duration = Duration::from_millis(200);

/// Starts the push; the caller going away ends it.
pub fn answer(
    node: &Node,
    request: v1::PushRequest,
) -> Result<ReceiverStream<Result<v1::PushEvent, Status>>, Error> {
    let name = request.image;
    let what = || format!("push image {name}");
    let reference = node.registry.reference(&name).within(what)?;
    let image = find(node, &name).ok_or_else(|| Error::ImageNotFound(name.clone())).within(what)?;
    let auth = request.credentials.map(|given| Auth::basic(given.username, given.password));
    let (progress, changes) = watch::channel(Progress::default());
    let pusher = node.pusher.clone();
    let (events, stream) = mpsc::channel(4);
    let closing = node.closing.clone();
    tokio::spawn(async move {
        let pushing = Box::pin(pusher.push(PushRequest { image, reference, auth }, progress));
        tokio::select! {
            () = closing.cancelled() => {}
            () = events.closed() => {}
            () = tell(pushing, &name, changes, &events) => {}
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn tell(
    mut pushing: impl Future<Output = Result<pinnace_push::PushedImage, pinnace_push::Error>> + Unpin,
    name: &str,
    changes: watch::Receiver<Progress>,
    events: &mpsc::Sender<Result<v1::PushEvent, Status>>,
) {
    let mut told = Progress::default();
    let mut interval = tokio::time::interval(INTERVAL);
    let result = loop {
        tokio::select! {
            result = &mut pushing => break result,
            _ = interval.tick() => {
                let now = changes.borrow().clone();
                if now != told {
                    let event = v1::push_event::Event::Progress(message(&now));
                    if events.send(Ok(v1::PushEvent { event: Some(event) })).await.is_err() {
                        return;
                    }
                    told = now;
                }
            }
        }
    };
    let last = match result {
        Ok(pushed) => {
            let progress = v1::push_event::Event::Progress(message(&changes.borrow()));
            let _ = events.send(Ok(v1::PushEvent { event: Some(progress) })).await;
            let image = v1::PushedImage {
                reference: pushed.reference.to_string(),
                digest: pushed.digest.to_string(),
                size_bytes: pushed.size,
                sent_bytes: pushed.sent_bytes,
            };
            Ok(v1::PushEvent { event: Some(v1::push_event::Event::Image(image)) })
        }
        Err(error) => Err(Error::from(error).within(format!("push image {name}")).into()),
    };
    // Without a reader there is nobody to tell.
    let _ = events.send(last).await;
}

fn message(progress: &Progress) -> v1::PushProgress {
    let layers = progress.layers.iter().map(|layer| v1::PushedLayer {
        layer: layer.diff_id.to_string(),
        done_bytes: layer.done_bytes,
        total_bytes: layer.total_bytes,
        phase: match layer.phase {
            Phase::Waiting => v1::PushPhase::Waiting,
            Phase::Preparing => v1::PushPhase::Preparing,
            Phase::Pushing => v1::PushPhase::Pushing,
            Phase::Pushed => v1::PushPhase::Pushed,
            Phase::Exists => v1::PushPhase::Exists,
            Phase::Mounted => v1::PushPhase::Mounted,
        }
        .into(),
    });
    v1::PushProgress { layers: layers.collect() }
}
