//! Containers and Volumes of the admin API.

mod copy;
mod create;
mod events;
mod list;
mod session;
mod stats;
mod volumes;

use std::sync::Arc;

use pinnace_admin_api::v1;
use pinnace_spec::signal;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::error::{Error, Within as _};
use crate::local::{self, LocalContainer, limits, logs, remove, start, stop};
use crate::node::Node;

/// Key of the metadata of a refusal: docker's exit code for it, where it has one.
const EXIT_CODE: &str = "pinnace-exit-code";

type Answer<T> = Result<Response<T>, Status>;

/// Both services over one node.
#[derive(Clone, Debug)]
pub struct Containers {
    node: Arc<Node>,
}

impl Containers {
    /// Serves this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn find(&self, container: &str) -> Result<Arc<LocalContainer>, Error> {
        self.node.local.find(container)
    }
}

/// A failed start, with the code that the client ends with.
fn refused(error: Error) -> Status {
    let code = start::exit_code(&error);
    let mut status = Status::from(error);
    if let Ok(value) = code.to_string().parse() {
        status.metadata_mut().insert(EXIT_CODE, value);
    }
    status
}

fn signal(text: &str) -> Result<Option<i32>, Error> {
    match text {
        "" => Ok(None),
        text => signal::parse(text).map(Some).map_err(|error| Error::invalid("signal", error.to_string())),
    }
}

fn nothing() -> Answer<v1::Nothing> {
    Ok(Response::new(v1::Nothing {}))
}

#[tonic::async_trait]
impl v1::containers_server::Containers for Containers {
    async fn create(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let v1::CreateContainerRequest { name, settings } = request.into_inner();
        let settings = create::settings(settings.unwrap_or_default())?;
        let created = Box::pin(local::create::create(&self.node, &name, settings)).await?;
        let record = created.container.record();
        Ok(Response::new(v1::CreateContainerResponse {
            id: record.id.to_string(),
            name: record.name,
            warnings: created.warnings,
        }))
    }

    async fn start(&self, request: Request<v1::ContainerSelector>) -> Answer<v1::Nothing> {
        let local = self.find(&request.into_inner().container)?;
        start::start(&self.node, local, None).await.map_err(refused)?;
        nothing()
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<v1::Nothing> {
        let request = request.into_inner();
        let local = self.find(&request.container)?;
        stop::stop(&self.node, local, request.timeout_s, signal(&request.signal)?).await?;
        nothing()
    }

    async fn kill(&self, request: Request<v1::KillRequest>) -> Answer<v1::Nothing> {
        let request = request.into_inner();
        let local = self.find(&request.container)?;
        stop::kill(&self.node, local, signal(&request.signal)?.unwrap_or(stop::SIGKILL)).await?;
        nothing()
    }

    async fn restart(&self, request: Request<v1::StopRequest>) -> Answer<v1::Nothing> {
        let request = request.into_inner();
        let local = self.find(&request.container)?;
        let signal = signal(&request.signal)?;
        Box::pin(stop::restart(&self.node, local, request.timeout_s, signal)).await.map_err(refused)?;
        nothing()
    }

    async fn pause(&self, request: Request<v1::ContainerSelector>) -> Answer<v1::Nothing> {
        stop::pause(&self.node, self.find(&request.into_inner().container)?).await?;
        nothing()
    }

    async fn unpause(&self, request: Request<v1::ContainerSelector>) -> Answer<v1::Nothing> {
        stop::unpause(&self.node, self.find(&request.into_inner().container)?).await?;
        nothing()
    }

    async fn remove(&self, request: Request<v1::RemoveContainerRequest>) -> Answer<v1::Nothing> {
        let v1::RemoveContainerRequest { container, force, volumes } = request.into_inner();
        let local = self.find(&container)?;
        remove::remove(&self.node, &local, remove::Options { force, volumes }).await?;
        nothing()
    }

    async fn rename(&self, request: Request<v1::RenameRequest>) -> Answer<v1::Nothing> {
        let v1::RenameRequest { container, name } = request.into_inner();
        remove::rename(&self.node, self.find(&container)?, &name).await?;
        nothing()
    }

    async fn update(&self, request: Request<v1::UpdateContainerRequest>) -> Answer<v1::Nothing> {
        let v1::UpdateContainerRequest { container, limits, restart } = request.into_inner();
        let limits = limits.unwrap_or_default();
        let change = limits::Change {
            pids: limits.pids,
            resources: create::resources(&limits)?,
            restart: restart.map(create::restart).transpose()?,
        };
        limits::update(&self.node, self.find(&container)?, change).await?;
        nothing()
    }

    async fn list(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        Ok(Response::new(list::answer(&self.node, request.into_inner()).await?))
    }

    async fn inspect(&self, request: Request<v1::InspectContainerRequest>) -> Answer<v1::ContainerJson> {
        let v1::InspectContainerRequest { container, size } = request.into_inner();
        let local = self.find(&container)?;
        let value = self.node.blocking(move |node| local::inspect::inspect(node, &local, size)).await?;
        Ok(Response::new(v1::ContainerJson { json: value.to_string() }))
    }

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<BoxStream<v1::LogEntry>> {
        let request = request.into_inner();
        let local = self.find(&request.container)?;
        let query = logs::Query {
            follow: request.follow,
            since_ns: request.since_ns,
            until_ns: request.until_ns,
            tail: request.tail,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let entries = logs::read(&self.node, local, query)?;
        let message = |entry: Result<logs::Entry, Error>| {
            let logs::Entry { at_ns, stderr, content } = entry?;
            Ok(v1::LogEntry { at_ns, stderr, content })
        };
        let stream = tokio_stream::StreamExt::map(ReceiverStream::new(entries), message);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<v1::SessionInput>>,
    ) -> Answer<BoxStream<v1::SessionOutput>> {
        Box::pin(session::answer(&self.node, request.into_inner())).await
    }

    async fn exec(
        &self,
        request: Request<Streaming<v1::SessionInput>>,
    ) -> Answer<BoxStream<v1::SessionOutput>> {
        Box::pin(session::answer(&self.node, request.into_inner())).await
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Answer<v1::WaitResponse> {
        let v1::WaitRequest { container, condition } = request.into_inner();
        let local = self.find(&container)?;
        let mut state = local.follow();
        let closing = self.node.closing.clone();
        let waiting = async {
            match condition.as_str() {
                "" | "not-running" => {}
                "next-exit" => {
                    let _ = state.wait_for(local::record::State::is_running).await;
                }
                "removed" => {
                    let _ = local.follow_removal().wait_for(|removed| *removed).await;
                }
                other => return Err(Error::invalid("condition", format!("{other:?} is not known"))),
            }
            let ended = state.wait_for(|state| !state.is_running()).await;
            Ok(ended.map(|state| state.code()).unwrap_or_default())
        };
        let exit_code = tokio::select! {
            code = waiting => code?,
            () = closing.cancelled() => Err(Error::ShuttingDown)?,
        };
        Ok(Response::new(v1::WaitResponse { exit_code }))
    }

    async fn top(&self, request: Request<v1::TopRequest>) -> Answer<v1::TopResponse> {
        let v1::TopRequest { container, columns } = request.into_inner();
        let local = self.find(&container)?;
        let table = self.node.blocking(move |node| local::top::top(node, &local, &columns)).await?;
        let rows = table.rows.into_iter().map(|values| v1::StringList { values });
        Ok(Response::new(v1::TopResponse { titles: table.titles, processes: rows.collect() }))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Answer<BoxStream<v1::StatsFrame>> {
        Ok(Response::new(stats::answer(&self.node, request.into_inner())?))
    }

    async fn stat_path(&self, request: Request<v1::PathRequest>) -> Answer<v1::PathStat> {
        Ok(Response::new(copy::stat(&self.node, request.into_inner()).await?))
    }

    async fn copy_from(&self, request: Request<v1::PathRequest>) -> Answer<BoxStream<v1::ArchiveChunk>> {
        Ok(Response::new(copy::from(&self.node, request.into_inner())?))
    }

    async fn copy_to(&self, request: Request<Streaming<v1::CopyInput>>) -> Answer<v1::Nothing> {
        Box::pin(copy::to(&self.node, request.into_inner())).await?;
        nothing()
    }

    async fn diff(&self, request: Request<v1::ContainerSelector>) -> Answer<v1::DiffResponse> {
        let local = self.find(&request.into_inner().container)?;
        let what = format!("compare container {}", local.record().name);
        let changes = self.node.blocking(move |node| local::diff::diff(node, &local)).await;
        let message = |change: local::diff::Change| v1::Change {
            kind: match change.kind {
                local::diff::Kind::Modified => v1::change::Kind::Modified.into(),
                local::diff::Kind::Added => v1::change::Kind::Added.into(),
                local::diff::Kind::Deleted => v1::change::Kind::Deleted.into(),
            },
            path: change.path.to_string_lossy().into_owned(),
        };
        let changes = changes.within(|| what)?.into_iter().map(message).collect();
        Ok(Response::new(v1::DiffResponse { changes }))
    }

    async fn export(&self, request: Request<v1::ContainerSelector>) -> Answer<BoxStream<v1::ArchiveChunk>> {
        Ok(Response::new(copy::export(&self.node, &request.into_inner().container)?))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Answer<v1::CommitResponse> {
        let v1::CommitRequest { container, reference, message, author, changes, pause } =
            request.into_inner();
        let local = self.find(&container)?;
        let request = local::commit::Request { reference, message, author, changes, pause };
        let image_id = Box::pin(local::commit::commit(&self.node, local, request)).await?;
        Ok(Response::new(v1::CommitResponse { image_id }))
    }

    async fn prune(
        &self,
        request: Request<v1::PruneContainersRequest>,
    ) -> Answer<v1::PruneContainersResponse> {
        let filters = list::Labels::parse(&request.into_inner().filters)?;
        let matches = |labels: &_, created_at_ns| filters.match_all(labels, created_at_ns);
        let pruned = remove::prune(&self.node, matches).await?;
        Ok(Response::new(v1::PruneContainersResponse {
            removed: pruned.removed,
            reclaimed_bytes: pruned.bytes,
        }))
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Answer<BoxStream<v1::ContainerEvent>> {
        Ok(Response::new(events::answer(&self.node, request.into_inner())?))
    }
}
