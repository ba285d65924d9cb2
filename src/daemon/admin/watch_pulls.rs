//! WatchPulls: how far every pull is, also those of the kubelet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use pinnace_admin_api::v1;
use pinnace_pull::Meter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::pull::{INTERVAL, message};
use crate::error::Error;
use crate::node::Node;

/// Looks now and then, and tells what has changed.
pub fn answer(node: &Node) -> Result<ReceiverStream<Result<v1::WatchPullsResponse, Status>>, Error> {
    let (events, stream) = mpsc::channel(4);
    let node = node.shared()?;
    tokio::spawn(async move {
        let closing = node.closing.clone();
        tokio::select! {
            () = closing.cancelled() => {}
            () = events.closed() => {}
            () = tell(node, &events) => {}
        }
    });
    Ok(ReceiverStream::new(stream))
}

async fn tell(node: Arc<Node>, events: &mpsc::Sender<Result<v1::WatchPullsResponse, Status>>) {
    let mut meters: HashMap<String, Meter> = HashMap::new();
    let mut told = None;
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        let now = Instant::now();
        let pulls: Vec<v1::RunningPull> = node
            .puller
            .running()
            .into_iter()
            .map(|pull| {
                let (reference, progress) = (pull.reference.to_string(), pull.progress.borrow().clone());
                let speed = meters.entry(reference.clone()).or_default().sample(progress.done_bytes(), now);
                v1::RunningPull { reference, progress: Some(message(&progress, speed)) }
            })
            .collect();
        meters.retain(|reference, _| pulls.iter().any(|pull| pull.reference == *reference));
        let totals = node.puller.totals();
        let totals = v1::PullTotals {
            started: totals.started,
            succeeded: totals.succeeded,
            failed: totals.failed,
            fetched_bytes: totals.fetched_bytes,
        };
        let response = v1::WatchPullsResponse { pulls, totals: Some(totals) };
        if told.as_ref() != Some(&response) {
            if events.send(Ok(response.clone())).await.is_err() {
                return;
            }
            told = Some(response);
        }
    }
}
