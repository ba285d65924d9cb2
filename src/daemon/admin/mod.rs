//! The admin API: a file per RPC, each converting the wire to our types at the top and back at the bottom.
//!
//! Like CRI types, its types go no further down than this folder.

mod explain;
mod pull;

use std::sync::Arc;

use pinnace_admin_api::v1;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

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
}
