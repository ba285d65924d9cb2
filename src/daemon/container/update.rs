//! UpdateContainerResources: change limits of a container that is created or runs.

use std::sync::Arc;

use oci_spec::runtime::{LinuxResources, Spec};
use pinnace_cgroup::{Cgroup, CgroupPath, Scope};

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
        apply(&node, &container, change).await.within(|| what)
    })
    .await
}

async fn apply(node: &Arc<Node>, container: &Arc<Container>, change: Resources) -> Result<(), Error> {
    let record = container.record();
    let merged = merge(record.resources.clone(), change);
    let resources = spec::resources(&merged)?;
    match container.status() {
        // It may end at any time: the kubelet learns that from the status, not from this.
        Status::Exited(_) => return Ok(()),
        Status::Running { .. } => {
            let cgroup = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(record.cgroup_path.as_str())?)?;
            let before = spec::resources(&record.resources)?;
            write(node, cgroup, resources.clone(), before).await?;
        }
        Status::Created | Status::Starting => {}
    }
    let updated = Arc::clone(container);
    node.blocking(move |_| remember(&updated, &merged, resources)).await
}

/// To the files, where the kernel says what it refuses, then to systemd, which would not.
async fn write(
    node: &Arc<Node>,
    cgroup: Cgroup,
    resources: LinuxResources,
    before: LinuxResources,
) -> Result<(), Error> {
    let (files, wanted) = (cgroup.clone(), resources.clone());
    node.blocking(move |_| Ok(files.update(&wanted)?)).await?;
    let Some(systemd) = node.systemd.as_ref().filter(|_| Scope::of(cgroup.path()).is_some()) else {
        return Ok(());
    };
    match systemd.update(&cgroup, &resources).await {
        // Written again, for systemd rounds.
        Ok(()) => node.blocking(move |_| Ok(cgroup.update(&resources)?)).await,
        Err(error) => {
            let restored = node.blocking(move |_| Ok(cgroup.update(&before)?)).await;
            if let Err(error) = restored {
                tracing::warn!(error = error.chain(), "old limits could not be written back");
            }
            Err(error.into())
        }
    }
}

fn remember(container: &Container, merged: &Resources, resources: LinuxResources) -> Result<(), Error> {
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
