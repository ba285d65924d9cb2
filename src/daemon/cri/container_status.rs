//! ContainerStatus.

use std::collections::HashMap;

use pinnace_cri_api::v1;

use super::container_config::resources_message;
use super::list_containers::{image, metadata, state};
use super::list_pod_sandbox::map;
use super::sandbox_config::id_mappings;
use super::signal;
use crate::container::Container;
use crate::container::record::{ContainerRecord, MountView, Status};
use crate::error::Error;
use crate::node::Node;
use crate::record as disk;

/// Answers from memory; it works on after the image was removed.
pub fn answer(
    node: &Node,
    request: &v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Error> {
    let container = node.container(&request.container_id)?;
    Ok(v1::ContainerStatusResponse {
        status: Some(status(&container)),
        info: if request.verbose { info(&container)? } else { HashMap::new() },
    })
}

/// A container as the CRI shows it.
pub fn status(container: &Container) -> v1::ContainerStatus {
    let record = container.record();
    let mut status = v1::ContainerStatus {
        id: record.id.to_string(),
        metadata: Some(metadata(&record)),
        state: state(&record.status),
        created_at: record.created_at_ns,
        image: Some(image(&record)),
        image_ref: record.image.reference.clone(),
        labels: map(&record.labels),
        annotations: map(&record.annotations),
        mounts: record.mounts.iter().map(mount).collect(),
        log_path: record.log_path.clone(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources_message(&record.resources)),
            windows: None,
        }),
        image_id: record.image.id.clone(),
        user: Some(user(&record)),
        stop_signal: signal::value(record.stop_signal),
        ..Default::default()
    };
    match record.status {
        Status::Created | Status::Starting => {}
        Status::Running { started_at_ns, .. } => status.started_at = started_at_ns,
        Status::Exited(exit) => {
            status.started_at = exit.started_at_ns;
            status.finished_at = exit.finished_at_ns;
            status.exit_code = exit.code;
            status.reason = exit.reason;
            status.message = exit.message;
        }
    }
    status
}

fn mount(mount: &MountView) -> v1::Mount {
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation: mount.propagation,
        recursive_read_only: mount.recursive_read_only,
        image: mount.image.as_ref().map(|image| v1::ImageSpec {
            image: image.reference.clone(),
            user_specified_image: image.user_specified.clone(),
            image_ref: image.id.clone(),
            ..Default::default()
        }),
        image_sub_path: mount.image_sub_path.clone(),
        mount_options: mount.options.clone(),
        uid_mappings: mount.owners.as_ref().map(|owners| id_mappings(&owners.uids)).unwrap_or_default(),
        gid_mappings: mount.owners.as_ref().map(|owners| id_mappings(&owners.gids)).unwrap_or_default(),
    }
}

fn user(record: &ContainerRecord) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: record.user.uid.into(),
            gid: record.user.gid.into(),
            supplemental_groups: record.user.groups.iter().copied().map(i64::from).collect(),
        }),
    }
}

/// `info.info`: `pid`, `sandboxID` and `runtimeSpec` are what scripts read from the peers' answers.
fn info(container: &Container) -> Result<HashMap<String, String>, Error> {
    let record = container.record();
    let spec: serde_json::Value = disk::read(&Container::spec_path(&container.directory))?;
    let pid = match record.status {
        Status::Running { pid, .. } => pid,
        _ => 0,
    };
    let value = serde_json::json!({
        "pid": pid,
        "sandboxID": record.sandbox_id,
        "snapshotKey": record.id,
        "privileged": record.privileged,
        "runtimeSpec": spec,
        "record": record,
    });
    Ok(HashMap::from([("info".to_owned(), value.to_string())]))
}
