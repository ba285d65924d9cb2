//! Version, Status, RuntimeConfig, ImageFsInfo: what a kubelet asks before anything runs.

use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;

#[tokio::test]
async fn version_is_what_the_kubelet_expects() {
    let Some(node) = Node::start() else { return };
    let version = node.cri.runtime().version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_name, "pinnace");
    assert_eq!(version.runtime_api_version, "v1");
    let numbers: Vec<_> = version.runtime_version.splitn(3, '.').collect();
    assert!(numbers.len() == 3 && numbers[0].parse::<u32>().is_ok(), "{version:?} is not semantic");
}

#[tokio::test]
async fn status_reports_both_conditions_and_the_default_handler() {
    let Some(node) = Node::start() else { return };
    let ask =
        async |verbose| node.cri.runtime().status(StatusRequest { verbose }).await.unwrap().into_inner();
    let status = ask(false).await;
    let conditions = status.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == name).expect(name);
        assert!(condition.status, "{condition:?}");
    }
    assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()), "no default handler");
    assert!(status.features.unwrap().supplemental_groups_policy);
    assert!(status.info.is_empty(), "detail nobody asked for");
    let verbose = ask(true).await;
    assert!(verbose.info.contains_key("config"), "{:?}", verbose.info.keys());
    for (key, text) in &verbose.info {
        assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{key} is no JSON: {text}");
    }
}

#[tokio::test]
async fn cgroup_driver_is_cgroupfs_where_no_systemd_runs() {
    let Some(node) = Node::start() else { return };
    let config = node.cri.runtime().runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), CgroupDriver::Cgroupfs);
}

#[tokio::test]
async fn image_file_system_is_known_before_there_is_an_image() {
    let Some(node) = Node::start() else { return };
    let ask = async || {
        let info = node.cri.images().image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
        info.image_filesystems.into_iter().next().expect("an image file system")
    };
    let empty = ask().await;
    assert!(empty.timestamp > 0);
    let mountpoint = empty.fs_id.clone().unwrap().mountpoint;
    assert!(rustix::fs::statfs(node.world.inside(&mountpoint)).is_ok(), "{mountpoint} is no directory");
    node.image("busybox").await;
    let used = |usage: &FilesystemUsage| usage.used_bytes.as_ref().expect("used_bytes").value;
    let size = u64::try_from(node.images.read(&node.images.manifest("busybox").digest).len()).unwrap();
    // What is in use may be counted a moment later.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(15);
    while used(&ask().await) < used(&empty) + size {
        assert!(std::time::Instant::now() < end, "a pulled image does not count: {:?}", ask().await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Whoever finds an RPC missing finds it in this list, and what is in the list is missing.
#[tokio::test]
async fn what_is_not_there_yet_is_listed_and_says_so() {
    let Some(node) = Node::start() else { return };
    let mut runtime = node.cri.runtime();
    let mut images = node.cri.images();
    let mut missing = Vec::new();
    macro_rules! ask {
        ($client:ident: $($rpc:ident $method:ident $request:ident),+ $(,)?) => {$(
            if let Err(status) = $client.$method($request::default()).await
                && status.code() == tonic::Code::Unimplemented
            {
                missing.push(stringify!($rpc));
            }
        )+};
    }
    ask!(runtime:
        Attach attach AttachRequest, CheckpointContainer checkpoint_container CheckpointContainerRequest,
        CheckpointPod checkpoint_pod CheckpointPodRequest, ContainerStats container_stats ContainerStatsRequest,
        ContainerStatus container_status ContainerStatusRequest,
        CreateContainer create_container CreateContainerRequest, Exec exec ExecRequest,
        ExecSync exec_sync ExecSyncRequest, GetContainerEvents get_container_events GetEventsRequest,
        ListContainerStats list_container_stats ListContainerStatsRequest,
        ListContainers list_containers ListContainersRequest,
        ListMetricDescriptors list_metric_descriptors ListMetricDescriptorsRequest,
        ListPodSandbox list_pod_sandbox ListPodSandboxRequest,
        ListPodSandboxMetrics list_pod_sandbox_metrics ListPodSandboxMetricsRequest,
        ListPodSandboxStats list_pod_sandbox_stats ListPodSandboxStatsRequest,
        PodSandboxStats pod_sandbox_stats PodSandboxStatsRequest,
        PodSandboxStatus pod_sandbox_status PodSandboxStatusRequest, PortForward port_forward PortForwardRequest,
        RemoveContainer remove_container RemoveContainerRequest,
        RemovePodSandbox remove_pod_sandbox RemovePodSandboxRequest,
        ReopenContainerLog reopen_container_log ReopenContainerLogRequest,
        RestorePod restore_pod RestorePodRequest, RunPodSandbox run_pod_sandbox RunPodSandboxRequest,
        RuntimeConfig runtime_config RuntimeConfigRequest, StartContainer start_container StartContainerRequest,
        Status status StatusRequest, StopContainer stop_container StopContainerRequest,
        StopPodSandbox stop_pod_sandbox StopPodSandboxRequest,
        StreamContainerStats stream_container_stats StreamContainerStatsRequest,
        StreamContainers stream_containers StreamContainersRequest,
        StreamPodSandboxMetrics stream_pod_sandbox_metrics StreamPodSandboxMetricsRequest,
        StreamPodSandboxStats stream_pod_sandbox_stats StreamPodSandboxStatsRequest,
        StreamPodSandboxes stream_pod_sandboxes StreamPodSandboxesRequest,
        UpdateContainerResources update_container_resources UpdateContainerResourcesRequest,
        UpdatePodSandboxResources update_pod_sandbox_resources UpdatePodSandboxResourcesRequest,
        UpdateRuntimeConfig update_runtime_config UpdateRuntimeConfigRequest, Version version VersionRequest,
    );
    ask!(images:
        ImageFsInfo image_fs_info ImageFsInfoRequest, ImageStatus image_status ImageStatusRequest,
        ListImages list_images ListImagesRequest, PullImage pull_image PullImageRequest,
        RemoveImage remove_image RemoveImageRequest, StreamImages stream_images StreamImagesRequest,
    );
    missing.sort_unstable();
    let status = runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(config["unimplemented"], serde_json::json!(missing));
}
