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
