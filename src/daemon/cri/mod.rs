//! The CRI services: a file per RPC, each converting the wire to our types at the top and back at the bottom.
//!
//! CRI types go no further down than this folder. RPCs that are not here yet answer `UNIMPLEMENTED`, by the default methods
//! of the generated traits; [`UNIMPLEMENTED`] lists them.

mod attach;
mod container_config;
mod container_status;
mod create_container;
mod events;
mod exec;
mod exec_sync;
mod image;
mod image_fs_info;
mod list_containers;
mod list_pod_sandbox;
mod metrics;
mod mounts;
mod pod_sandbox_status;
mod port_forward;
mod pull_image;
mod runtime_config;
mod runtime_status;
mod sandbox_config;
mod security;
mod signal;
mod stats;
mod status;
mod streams;
mod update_container_resources;
mod update_pod_sandbox_resources;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pinnace_cri_api::v1;
use tonic::{Request, Response};

use crate::error::Error;
use crate::node::Node;
use crate::streaming::Streaming;

/// RPCs that later work builds.
pub const UNIMPLEMENTED: &[&str] = &["CheckpointContainer", "CheckpointPod", "RestorePod"];

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version of the CRI that `VersionResponse` speaks of; the kubelet expects exactly this.
const KUBELET_API_VERSION: &str = "0.1.0";

/// Both services over one node.
#[derive(Clone, Debug)]
pub struct Services {
    node: Arc<Node>,
    streaming: Arc<Streaming>,
}

impl Services {
    /// Serves this node; streams are served by `streaming`.
    pub fn new(node: Arc<Node>, streaming: Arc<Streaming>) -> Self {
        Self { node, streaming }
    }
}

type Answer<T> = Result<Response<T>, tonic::Status>;

/// Answers of a stream.
type Streamed<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, tonic::Status>> + Send>>;

/// Most items in one message of a list that is streamed: far below the 16 MiB that clients take, whatever the labels.
const BATCH: usize = 500;

/// A list in batches: each item once, from one look at the node, and no message for an empty list.
fn batches<T: Send + 'static, M: Send + 'static>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> Streamed<M> {
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || {
        let batch: Vec<T> = items.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then(|| Ok(message(batch)))
    });
    Box::pin(futures_util::stream::iter(messages))
}

/// Ends a call the way its code deserves to be logged: a caller's mistakes quietly, ours aloud.
fn answer<T>(rpc: &'static str, result: Result<T, crate::error::Error>) -> Answer<T> {
    result.map(Response::new).map_err(|error| {
        if error.code() == crate::error::Code::Internal {
            tracing::error!(rpc, error = error.chain(), "call failed");
        } else {
            tracing::debug!(rpc, error = error.chain(), "call refused");
        }
        error.into()
    })
}

/// How long the caller waits (gRPC over HTTP/2, `grpc-timeout`).
fn time_limit(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[tonic::async_trait]
impl v1::runtime_service_server::RuntimeService for Services {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: "pinnace".to_owned(),
            runtime_version: VERSION.to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        answer("Status", runtime_status::answer(&self.node, &request.into_inner()).await)
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        answer("RuntimeConfig", Ok(runtime_config::read(&self.node)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        answer("UpdateRuntimeConfig", runtime_config::update(&self.node, request.into_inner()).await)
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let result = async {
            let external = self.node.handlers.find("runtime_handler", &request.runtime_handler)?.is_some();
            let config = sandbox_config::parse(request.config, request.runtime_handler)?;
            if external && config.user_namespace.is_some() {
                let field = "config.linux.security_context.namespace_options.userns_options";
                return Err(Error::invalid(
                    field,
                    "pods of external runtimes have the host's user namespace",
                ));
            }
            let pod_sandbox_id = crate::sandbox::run::run(&self.node, config).await?.to_string();
            Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
        };
        answer("RunPodSandbox", result.await)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let result = crate::sandbox::stop::stop(&self.node, &id).await;
        answer("StopPodSandbox", result.map(|()| v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let result = crate::sandbox::remove::remove(&self.node, &id).await;
        answer("RemovePodSandbox", result.map(|()| v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        answer("PodSandboxStatus", pod_sandbox_status::answer(&self.node, &request.into_inner()))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let items = list_pod_sandbox::list(&self.node, &filter);
        answer("ListPodSandbox", Ok(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        answer("CreateContainer", create_container::answer(&self.node, request.into_inner()).await)
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let result = crate::container::start::start(&self.node, &id).await;
        answer("StartContainer", result.map(|()| v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let request = request.into_inner();
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let result = crate::container::stop::stop(&self.node, &request.container_id, grace).await;
        answer("StopContainer", result.map(|()| v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let result = crate::container::remove::remove(&self.node, &id).await;
        answer("RemoveContainer", result.map(|()| v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let containers = list_containers::list(&self.node, &filter);
        answer("ListContainers", Ok(v1::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        answer("ContainerStatus", container_status::answer(&self.node, &request.into_inner()))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let result = update_container_resources::answer(&self.node, request.into_inner()).await;
        answer("UpdateContainerResources", result)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let result = update_pod_sandbox_resources::answer(&self.node, request.into_inner()).await;
        answer("UpdatePodSandboxResources", result)
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let result = crate::container::exec::reopen_log(&self.node, &id).await;
        answer("ReopenContainerLog", result.map(|()| v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        answer("ExecSync", exec_sync::answer(&self.node, request.into_inner()).await)
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        answer("Exec", exec::answer(&self.node, &self.streaming, request.into_inner()))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        answer("Attach", attach::answer(&self.node, &self.streaming, request.into_inner()))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        answer("PortForward", port_forward::answer(&self.node, &self.streaming, request.into_inner()))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Streamed<v1::StreamPodSandboxesResponse>> {
        let items = list_pod_sandbox::list(&self.node, &request.into_inner().filter.unwrap_or_default());
        Ok(Response::new(batches(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Streamed<v1::StreamContainersResponse>> {
        let items = list_containers::list(&self.node, &request.into_inner().filter.unwrap_or_default());
        Ok(Response::new(batches(items, |containers| v1::StreamContainersResponse { containers })))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let result = stats::container(&self.node, &request.into_inner().container_id).await;
        answer("ContainerStats", result.map(|stats| v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let result = stats::containers(&self.node, request.into_inner().filter).await;
        answer("ListContainerStats", result.map(|stats| v1::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Streamed<v1::StreamContainerStatsResponse>> {
        let result = stats::containers(&self.node, request.into_inner().filter).await;
        let message = |container_stats| v1::StreamContainerStatsResponse { container_stats };
        answer("StreamContainerStats", result.map(|items| batches(items, message)))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let result = stats::sandbox(&self.node, &request.into_inner().pod_sandbox_id).await;
        answer("PodSandboxStats", result.map(|stats| v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let result = stats::sandboxes(&self.node, request.into_inner().filter).await;
        answer("ListPodSandboxStats", result.map(|stats| v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Streamed<v1::StreamPodSandboxStatsResponse>> {
        let result = stats::sandboxes(&self.node, request.into_inner().filter).await;
        let message = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        answer("StreamPodSandboxStats", result.map(|items| batches(items, message)))
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Streamed<v1::ContainerEventResponse>> {
        Ok(Response::new(events::stream(&self.node)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        Ok(Response::new(metrics::descriptors()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let result = metrics::pods(&self.node).await;
        answer(
            "ListPodSandboxMetrics",
            result.map(|pod_metrics| v1::ListPodSandboxMetricsResponse { pod_metrics }),
        )
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Streamed<v1::StreamPodSandboxMetricsResponse>> {
        let result = metrics::pods(&self.node).await;
        let message = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        answer("StreamPodSandboxMetrics", result.map(|items| batches(items, message)))
    }
}

#[tonic::async_trait]
impl v1::image_service_server::ImageService for Services {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        answer("ListImages", Ok(image::list(&self.node, filter.as_ref())))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        answer("ImageStatus", image::status(&self.node, request.into_inner()))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let limit = time_limit(request.metadata());
        answer("PullImage", pull_image::answer(&self.node, request.into_inner(), limit).await)
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        answer("RemoveImage", image::remove(&self.node, request.into_inner()).await)
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Streamed<v1::StreamImagesResponse>> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        let images = image::list(&self.node, filter.as_ref()).images;
        Ok(Response::new(batches(images, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        answer("ImageFsInfo", image_fs_info::answer(&self.node).await)
    }
}
