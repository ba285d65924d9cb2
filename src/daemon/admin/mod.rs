//! The admin API: a file per RPC, each converting the wire to our types at the top and back at the bottom.
//!
//! Like CRI types, its types go no further down than this folder.

mod archives;
mod builds;
pub mod containers;
mod explain;
mod images;
mod pull;
mod push;
mod system;
mod watch_pulls;

use std::sync::Arc;

use pinnace_admin_api::v1;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::node::Node;

/// All services over one node.
#[derive(Clone, Debug)]
pub struct Services {
    node: Arc<Node>,
}

impl Services {
    /// Serves this node.
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl v1::images_server::Images for Services {
    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        Ok(Response::new(explain::answer(&self.node, request.into_inner()).await?))
    }

    async fn pull(
        &self,
        request: Request<v1::PullRequest>,
    ) -> Result<Response<BoxStream<v1::PullEvent>>, Status> {
        Ok(Response::new(Box::pin(pull::answer(&self.node, request.into_inner())?)))
    }

    async fn watch_pulls(
        &self,
        _: Request<v1::WatchPullsRequest>,
    ) -> Result<Response<BoxStream<v1::WatchPullsResponse>>, Status> {
        Ok(Response::new(Box::pin(watch_pulls::answer(&self.node)?)))
    }

    async fn push(
        &self,
        request: Request<v1::PushRequest>,
    ) -> Result<Response<BoxStream<v1::PushEvent>>, Status> {
        Ok(Response::new(Box::pin(push::answer(&self.node, request.into_inner())?)))
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Ok(Response::new(images::list(&self.node)))
    }

    async fn inspect(
        &self,
        request: Request<v1::InspectRequest>,
    ) -> Result<Response<v1::InspectResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.node.blocking(move |node| images::inspect(node, request)).await?))
    }

    async fn tag(&self, request: Request<v1::TagRequest>) -> Result<Response<v1::TagResponse>, Status> {
        Ok(Response::new(images::tag(&self.node, request.into_inner()).await?))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        Ok(Response::new(images::remove(&self.node, request.into_inner()).await?))
    }

    async fn prune(&self, request: Request<v1::PruneRequest>) -> Result<Response<v1::PruneResponse>, Status> {
        Ok(Response::new(images::prune(&self.node, request.into_inner()).await?))
    }

    async fn save(
        &self,
        request: Request<v1::SaveRequest>,
    ) -> Result<Response<BoxStream<v1::Chunk>>, Status> {
        Ok(Response::new(Box::pin(archives::save(&self.node, request.into_inner())?)))
    }

    async fn load(
        &self,
        request: Request<Streaming<v1::Chunk>>,
    ) -> Result<Response<BoxStream<v1::LoadEvent>>, Status> {
        Ok(Response::new(Box::pin(archives::load(&self.node, request.into_inner()).await?)))
    }

    async fn import(
        &self,
        request: Request<Streaming<v1::ImportInput>>,
    ) -> Result<Response<v1::ImportResponse>, Status> {
        Ok(Response::new(archives::import(&self.node, request.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl v1::system_server::System for Services {
    async fn disk_usage(
        &self,
        _: Request<v1::DiskUsageRequest>,
    ) -> Result<Response<v1::DiskUsageResponse>, Status> {
        Ok(Response::new(self.node.blocking(system::disk_usage).await?))
    }

    async fn fsck(&self, request: Request<v1::FsckRequest>) -> Result<Response<v1::FsckResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.node.blocking(move |node| system::fsck(node, request)).await?))
    }

    async fn prune_builds(
        &self,
        request: Request<v1::PruneBuildsRequest>,
    ) -> Result<Response<v1::PruneBuildsResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.node.blocking(move |node| system::prune_builds(node, request)).await?))
    }
}

#[tonic::async_trait]
impl v1::builds_server::Builds for Services {
    async fn build(
        &self,
        request: Request<Streaming<v1::BuildInput>>,
    ) -> Result<Response<BoxStream<v1::BuildEvent>>, Status> {
        Ok(Response::new(Box::pin(builds::answer(&self.node, request.into_inner()).await?)))
    }
}
