//! Build: an image from a Dockerfile, told step by step.

use std::collections::BTreeMap;
use std::io::Read as _;

use pinnace_admin_api::v1;
use pinnace_registry::Platform;
use pinnace_store::{Algorithm, DiffId, Lease};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::archives::{CHUNK_BYTES, Spooling};
use crate::build::{self, BuildRequest, Network, Told};
use crate::error::{Error, Within as _};
use crate::node::Node;

type Events = mpsc::Sender<Result<v1::BuildEvent, Status>>;

/// Takes the context, then builds; the caller going away ends it.
pub async fn answer(
    node: &Node,
    mut input: Streaming<v1::BuildInput>,
) -> Result<ReceiverStream<Result<v1::BuildEvent, Status>>, Error> {
    use v1::build_input::Input;
    let mut start = None;
    let mut spooling = None;
    while let Some(message) = input.next().await {
        let Ok(message) = message else { return Err(Error::CallerGone) };
        match message.input {
            Some(Input::Start(first)) if start.is_none() => start = Some(first),
            Some(Input::Context(bytes)) if start.is_some() => {
                if spooling.is_none() {
                    spooling = Some(Spooling::begin(node).await?);
                }
                if let Some(spooling) = &spooling {
                    spooling.push(bytes).await.within(|| "take the context".to_owned())?;
                }
            }
            _ => return Err(Error::invalid("input", "begins with its start, which comes once")),
        }
    }
    let start = start.ok_or_else(|| Error::invalid("input", "is empty"))?;
    let mut request = request(start)?;
    let lease = node.store.lease();
    if let Some(spooling) = spooling {
        let lease = lease.clone();
        let context = node.blocking(move |node| context(node, spooling, &lease)).await;
        request.context = Some(context.within(|| "take the context".to_owned())?);
    }
    let (events, stream) = mpsc::channel(64);
    let node = node.shared()?;
    let tracker = node.tasks.clone();
    tracker.spawn(async move {
        let cancelled = CancellationToken::new();
        let (told, heard) = mpsc::channel(64);
        let gone = {
            let (events, cancelled, closing) = (events.clone(), cancelled.clone(), node.closing.clone());
            async move {
                tokio::select! {
                    () = events.closed() => {}
                    () = closing.cancelled() => {}
                }
                cancelled.cancel();
            }
        };
        let names = request.names.clone();
        let watching = tokio::spawn(gone);
        let telling = tokio::spawn(tell(heard, events.clone()));
        let built = Box::pin(build::build(&node, request, lease, told, cancelled)).await;
        let _ = telling.await;
        watching.abort();
        let last = match built {
            Ok(image) => {
                let image = v1::BuiltImage { id: image.id.to_string(), names };
                Ok(v1::BuildEvent { event: Some(v1::build_event::Event::Image(image)) })
            }
            Err(error) => Err(error.into()),
        };
        // Without a reader there is nobody to tell.
        let _ = events.send(last).await;
        // The context, and what was not remembered.
        if let Err(error) = node.blocking(|node| Ok(node.store.gc()?)).await {
            tracing::warn!(error = error.chain(), "collect after a build");
        }
    });
    Ok(ReceiverStream::new(stream))
}

fn request(start: v1::BuildStart) -> Result<BuildRequest, Error> {
    let network = match start.network.as_str() {
        "" | "default" | "bridge" => Network::Default,
        "none" => Network::None,
        "host" => Network::Host,
        other => return Err(Error::invalid("network", format!("{other:?} is not default, none or host"))),
    };
    let platform = match start.platform.as_str() {
        "" => Platform::host(),
        text => Platform::parse(text).ok_or_else(|| {
            Error::invalid("platform", format!("{text:?} is not os/architecture[/variant]"))
        })?,
    };
    if platform != Platform::host() {
        return Err(Error::invalid(
            "platform",
            format!("{platform}: this machine builds for {}", Platform::host()),
        ));
    }
    let names = start.tags.iter().map(|tag| super::images::tag_name(tag)).collect::<Result<Vec<_>, _>>()?;
    Ok(BuildRequest {
        dockerfile: start.dockerfile,
        dockerfile_name: start.dockerfile_name,
        names,
        target: Some(start.target).filter(|target| !target.is_empty()),
        args: start.args.into_iter().collect::<BTreeMap<_, _>>(),
        labels: start.labels.into_iter().collect(),
        no_cache: start.no_cache,
        pull: start.pull,
        network,
        platform,
        secrets: start.secrets.into_iter().map(|secret| (secret.id, secret.value)).collect(),
        context: None,
    })
}

/// The context as a layer: a tree that nobody can write to.
fn context(node: &Node, spooling: Spooling, lease: &Lease) -> Result<DiffId, Error> {
    let mut file = spooling.plain(node)?;
    let mut ingest = node.store.ingest_layer(lease, Algorithm::Sha256)?;
    let mut piece = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut piece).map_err(pinnace_archive::Error::Read)?;
        if count == 0 {
            break;
        }
        ingest.push(piece.get(..count).unwrap_or_default())?;
    }
    Ok(ingest.finish_new()?.diff_id)
}

async fn tell(mut heard: mpsc::Receiver<Told>, events: Events) {
    use v1::build_event::Event;
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    while let Some(told) = heard.recv().await {
        let event = match told {
            Told::Started { step, stage, position, total, text, line } => Event::Started(v1::StepStarted {
                step,
                stage,
                position: number(position),
                total: number(total),
                text,
                line: number(line),
            }),
            Told::Output { step, data, is_stderr } => Event::Output(v1::StepOutput { step, data, is_stderr }),
            Told::Ended { step, cached, duration_ms, error } => {
                Event::Ended(v1::StepEnded { step, cached, duration_ms, error })
            }
            Told::Warning(text) => Event::Warning(text),
        };
        // Read on without a listener: nobody in the build waits for one that has gone.
        let _ = events.send(Ok(v1::BuildEvent { event: Some(event) })).await;
    }
}
