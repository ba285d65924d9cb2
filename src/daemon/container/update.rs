//! UpdateContainerResources: change limits of a container that is created or runs; all of them or none.
//!
//! ```text
//! cgroup files ─► oom_score_adj of its processes ─► config.json ─► container.json
//!      ◄──────────────────── what fails takes back what went before it
//! ```

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
    let before = record.resources.clone();
    let merged = merge(before.clone(), change);
    let resources = spec::resources(&merged)?;
    let updated = Arc::clone(container);
    match container.status() {
        // It may end at any time: the kubelet learns that from the status, not from this.
        Status::Exited(_) => return Ok(()),
        Status::Created | Status::Starting => {
            return node.blocking(move |_| remember(&updated, &merged, resources)).await;
        }
        Status::Running { .. } => {}
    }
    let cgroup = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(record.cgroup_path.as_str())?)?;
    let (files, wanted) = (cgroup.clone(), resources.clone());
    let previous = node.blocking(move |_| Ok(files.update(&wanted)?)).await?;
    let told = tell_systemd(node, &cgroup, &resources).await;
    let (files, old_score) = (cgroup.clone(), before.oom_score_adj);
    let outcome = node
        .blocking(move |node| {
            let rest = told.and_then(|()| {
                if merged.oom_score_adj != old_score {
                    score(node, &files, merged.oom_score_adj)?;
                }
                remember(&updated, &merged, resources)
            });
            rest.inspect_err(|_| {
                let reverted = files.revert(&previous).map_err(Error::from);
                if let Err(error) = reverted.and_then(|()| score(node, &files, old_score)) {
                    tracing::error!(container_id = %updated.id, error = error.chain(), "take an update back");
                }
            })
        })
        .await;
    if outcome.is_err()
        && let Err(error) = tell_systemd(node, &cgroup, &spec::resources(&before)?).await
    {
        tracing::error!(container_id = %container.id, error = error.chain(), "take an update of a unit back");
    }
    outcome
}

/// After the files, where the kernel says what it refuses, systemd, which would not; and the files again, for it rounds.
async fn tell_systemd(node: &Arc<Node>, cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Error> {
    let Some(systemd) = node.systemd.as_ref().filter(|_| Scope::of(cgroup.path()).is_some()) else {
        return Ok(());
    };
    systemd.update(cgroup, resources).await?;
    let (files, wanted) = (cgroup.clone(), resources.clone());
    node.blocking(move |_| Ok(files.update(&wanted).map(drop)?)).await
}

/// In spec and record, of which the record is the last word.
fn remember(container: &Container, merged: &Resources, mut resources: LinuxResources) -> Result<(), Error> {
    let path = Container::spec_path(&container.directory);
    let before: Spec = disk::read(&path)?;
    let mut spec = before.clone();
    if let Some(linux) = spec.linux_mut() {
        // What an update does not speak of.
        let old = linux.resources().clone().unwrap_or_default();
        resources.set_devices(old.devices().clone());
        resources.set_pids(*old.pids());
        linux.set_resources(Some(resources));
    }
    if let Some(process) = spec.process_mut() {
        // Execs take it from here.
        process.set_oom_score_adj(i32::try_from(merged.oom_score_adj).ok());
    }
    disk::write(&path, &spec)?;
    container.change(|record| record.resources = merged.clone()).map_err(|error| {
        if let Err(error) = disk::write(&path, &before) {
            tracing::error!(container_id = %container.id, %error, "take an update of the spec back");
        }
        error.into()
    })
}

/// Sets the OOM score of every process, as far as this process may; one that ends meanwhile is fine.
fn score(node: &Node, cgroup: &Cgroup, value: i64) -> Result<(), Error> {
    let value = node.facts.oom_score_adj_floor.map_or(value, |floor| value.max(floor.into()));
    for pid in cgroup.pids()? {
        let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
        match std::fs::write(&path, value.to_string()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            // What procfs says of a process that has just ended.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            written => written.map_err(Error::io("write", path))?,
        }
    }
    Ok(())
}

/// What is set in `new` over what was; 0 and empty leave it.
pub(crate) fn merge(mut old: Resources, new: Resources) -> Resources {
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
