//! Pull: the same pull as the CRI's, with its progress.

use std::time::{Duration, Instant};

use pinnace_admin_api::v1;
use pinnace_pull::{Meter, Phase, Progress, Pull, PullRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::{Error, Within as _};
use crate::node::Node;

/// How often progress is told at most.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// Starts the pull; the caller going away ends it, unless others wait for the same.
pub fn answer(
    node: &Node,
    request: v1::PullRequest,
) -> Result<ReceiverStream<Result<v1::PullEvent, Status>>, Error> {
    let name = request.image;
    let reference = node.registry.reference(&name).within(|| format!("pull image {name}"))?;
    let pull = node.puller.start(PullRequest::new(reference));
    let (events, stream) = mpsc::channel(4);
    let closing = node.closing.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = closing.cancelled() => {}
            () = events.closed() => {}
            () = tell(pull, &name, &events) => {}
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn tell(pull: Pull, name: &str, events: &mpsc::Sender<Result<v1::PullEvent, Status>>) {
    let progress = pull.progress();
    let mut meter = Meter::default();
    let mut told = None;
    let mut interval = tokio::time::interval(INTERVAL);
    let mut ended = std::pin::pin!(pull.finish());
    let result = loop {
        tokio::select! {
            result = &mut ended => break result,
            _ = interval.tick() => {
                let now = progress.borrow().clone();
                let speed = meter.sample(now.done_bytes(), Instant::now());
                let message = message(&now, speed);
                if told.as_ref() != Some(&message) {
                    let event = v1::pull_event::Event::Progress(message.clone());
                    if events.send(Ok(v1::PullEvent { event: Some(event) })).await.is_err() {
                        return;
                    }
                    told = Some(message);
                }
            }
        }
    };
    let last = match result {
        Ok(pulled) => {
            let image = v1::PulledImage {
                reference: pulled.reference.to_string(),
                id: pulled.image_id.to_string(),
                repo_digest: pulled.reference.repo_digest(&pulled.repo_digest),
                fetched_bytes: pulled.fetched_bytes,
            };
            Ok(v1::PullEvent { event: Some(v1::pull_event::Event::Image(image)) })
        }
        Err(error) => {
            let error: Result<(), Error> = Err(error).within(|| format!("pull image {name}"));
            Err(error.err().map(Status::from).unwrap_or_else(|| Status::internal("pull")))
        }
    };
    // Without a reader there is nobody to tell.
    let _ = events.send(last).await;
}

/// On the wire.
pub fn message(progress: &Progress, bytes_per_second: u64) -> v1::PullProgress {
    let (done_bytes, total_bytes) = (progress.done_bytes(), progress.total_bytes());
    let remaining = total_bytes.saturating_sub(done_bytes);
    v1::PullProgress {
        layers: progress
            .layers
            .iter()
            .map(|layer| v1::LayerProgress {
                digest: layer.digest.to_string(),
                done_bytes: layer.done_bytes,
                total_bytes: layer.total_bytes,
                phase: phase(layer.phase).into(),
            })
            .collect(),
        done_bytes,
        total_bytes,
        bytes_per_second,
        remaining_ms: remaining.saturating_mul(1000).checked_div(bytes_per_second),
    }
}

fn phase(phase: Phase) -> v1::LayerPhase {
    match phase {
        Phase::Waiting => v1::LayerPhase::Waiting,
        Phase::Fetching => v1::LayerPhase::Fetching,
        Phase::Finishing => v1::LayerPhase::Finishing,
        Phase::Done => v1::LayerPhase::Done,
        Phase::Present => v1::LayerPhase::Present,
    }
}
