//! ImageFsInfo: what images and writable layers take. The kubelet reads entry 0, and stats its mountpoint.

use pinnace_cri_api::v1;

use crate::clock;
use crate::error::Error;
use crate::node::Node;

/// Images from the store's own accounts; writable layers from the file system's quota, or
/// walked, off the reactor.
pub async fn answer(node: &Node) -> Result<v1::ImageFsInfoResponse, Error> {
    let (images, containers) =
        node.blocking(|node| Ok((node.store.images_usage(), node.store.snapshots_usage()?))).await?;
    let mountpoint = node.config.daemon.root.display().to_string();
    let usage = |usage: pinnace_store::Usage| v1::FilesystemUsage {
        timestamp: clock::realtime_ns(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: mountpoint.clone() }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    };
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![usage(images)],
        container_filesystems: vec![usage(containers)],
    })
}
