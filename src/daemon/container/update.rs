//! UpdateContainerResources: change limits of a container that is created or runs.

use std::sync::Arc;

use oci_spec::runtime::Spec;
use pinnace_cgroup::{Cgroup, CgroupPath};

use super::record::{Resources, Status};
use super::{Container, spec};
use crate::error::{Error, Within as _};
use crate::node::Node;
use crate::record as disk;

/// Applies what is set in `change`; what is 0 or empty there stays as it is.
pub async fn update(node: &Node, id: &str, change: Resources) -> Result<(), Error> {
    let container = node.container(id)?;
    node.mutation(|node| async move {
        let _turn = container.operation.lock().await;
        let what = format!("update container {}", container.id);
        let updated = Arc::clone(&container);
        node.blocking(move |node| apply(node, &updated, change)).await.within(|| what)
    })
    .await
}

fn apply(node: &Node, container: &Container, change: Resources) -> Result<(), Error> {
    let record = container.record();
    let merged = merge(record.resources.clone(), change);
    let resources = spec::resources(&merged)?;
    match container.status() {
        // It may end at any time: the kubelet learns that from the status, not from this.
        Status::Exited(_) => return Ok(()),
        Status::Running { .. } => {
            Cgroup::open(&node.hierarchy, &CgroupPath::try_from(record.cgroup_path.as_str())?)?
                .update(&resources)?;
        }
        Status::Created | Status::Starting => {}
    }
    let path = Container::spec_path(&container.directory);
    let mut spec: Spec = disk::read(&path)?;
    if let Some(linux) = spec.linux_mut() {
        let mut resources = resources;
        resources.set_devices(linux.resources().as_ref().and_then(|old| old.devices().clone()));
        linux.set_resources(Some(resources));
    }
    disk::write(&path, &spec)?;
    container.change(|record| record.resources = merged.clone())?;
    Ok(())
}

fn merge(mut old: Resources, new: Resources) -> Resources {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut old.cpu_period_us, new.cpu_period_us);
    number(&mut old.cpu_quota_us, new.cpu_quota_us);
    number(&mut old.cpu_shares, new.cpu_shares);
    number(&mut old.memory_limit_bytes, new.memory_limit_bytes);
    number(&mut old.memory_swap_limit_bytes, new.memory_swap_limit_bytes);
    number(&mut old.oom_score_adj, new.oom_score_adj);
    for (old, new) in [(&mut old.cpuset_cpus, new.cpuset_cpus), (&mut old.cpuset_mems, new.cpuset_mems)] {
        if !new.is_empty() {
            *old = new;
        }
    }
    old.hugepage_limits.extend(new.hugepage_limits);
    old.unified.extend(new.unified);
    old
}
