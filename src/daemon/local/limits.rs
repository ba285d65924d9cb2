//! Update: limits and the restart policy, also while it runs.

use std::sync::Arc;

use pinnace_cgroup::{Cgroup, CgroupPath};

use super::LocalContainer;
use super::record::Restart;
use crate::container;
use crate::container::record::Resources;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// What changes; 0 and empty leave it as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// CPU and memory.
    pub resources: Resources,
    /// Most processes; negative is unlimited.
    pub pids: i64,
    /// When it is started again.
    pub restart: Option<Restart>,
}

/// Makes a change.
pub async fn update(node: &Node, local: Arc<LocalContainer>, change: Change) -> Result<(), Error> {
    node.mutation(|node| async move {
        let _turn = local.turn.lock().await;
        let what = format!("update container {}", local.record().name);
        let changed = Arc::clone(&local);
        node.blocking(move |node| apply(node, &changed, change)).await.within(|| what)?;
        local.tell(&node.local, "update", &[]);
        Ok(())
    })
    .await
}

fn apply(node: &Node, local: &LocalContainer, change: Change) -> Result<(), Error> {
    let (mut merged, pids, auto_remove) = local.with(|record| {
        let settings = &record.settings;
        let pids = if change.pids == 0 { settings.pids } else { change.pids };
        (container::update::merge(settings.resources.clone(), change.resources), pids, settings.auto_remove)
    });
    if change.restart.is_some_and(|restart| restart != Restart::No) && auto_remove {
        return Err(Error::invalid(
            "restart",
            "goes against removing the container when it has ended (--rm)",
        ));
    }
    merged.oom_score_adj = local.with(|record| record.settings.oom_score_adj);
    if let Some(container) = local.live() {
        let mut resources = container::spec::resources(&merged)?;
        resources.set_pids(container::spec::pids_limit(pids));
        let path = container.record().cgroup_path;
        Cgroup::open(&node.hierarchy, &CgroupPath::try_from(path.as_str())?)?.update(&resources)?;
        container.change(|record| record.resources = merged.clone())?;
    }
    local.change(|record| {
        record.settings.resources = merged;
        record.settings.pids = pids;
        if let Some(restart) = change.restart {
            record.settings.restart = restart;
        }
    })
}
