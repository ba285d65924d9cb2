//! DiskUsage, Fsck, PruneBuilds: the store as a whole.

use std::collections::{HashMap, HashSet};

use pinnace_admin_api::v1;
use pinnace_store::{Fault, Outcome, Repair};

use crate::error::{Error, Within as _};
use crate::image::{created, familiar, users};
use crate::node::Node;

/// What takes the disk.
pub fn disk_usage(node: &Node) -> Result<v1::DiskUsageResponse, Error> {
    let accounts = node.store.accounts().within(|| "count what is on disk".to_owned())?;
    let records: HashMap<_, _> = node.store.images().into_iter().map(|image| (image.id, image)).collect();
    let images = accounts.images.iter().map(|account| {
        let record = records.get(&account.id);
        v1::ImageUsage {
            id: account.id.to_string(),
            tags: account
                .names
                .iter()
                .filter(|name| !name.contains('@'))
                .map(|name| familiar(name))
                .collect(),
            own_bytes: account.own.bytes,
            shared_bytes: account.shared.bytes,
            containers: record.map_or(0, |image| users(node, image).len() as u64),
            created: record.map_or(0, |image| created(image)),
        }
    });
    let containers = accounts
        .snapshots
        .iter()
        .map(|account| v1::ContainerUsage { id: account.key.clone(), bytes: account.usage.bytes });
    let of_images: HashSet<_> = records.values().flat_map(|image| image.layers.clone()).collect();
    let mut counted = HashSet::new();
    let mut builds_bytes = 0;
    let builds = node.store.cached_steps().into_iter().map(|step| {
        let bytes =
            step.layer.and_then(|layer| node.store.layer(&layer).ok()).map_or(0, |info| info.disk_bytes);
        let shared = step.layer.is_some_and(|layer| of_images.contains(&layer));
        if let Some(layer) = step.layer.filter(|_| !shared)
            && counted.insert(layer)
        {
            builds_bytes += bytes;
        }
        v1::BuildStep {
            key: step.key.clone(),
            description: step.description.clone(),
            layer: step.layer.map(|layer| layer.to_string()).unwrap_or_default(),
            bytes,
            used_at: i64::try_from(step.used_at).unwrap_or(i64::MAX),
            shared,
        }
    });
    Ok(v1::DiskUsageResponse {
        images: images.collect(),
        images_bytes: accounts.images_total.bytes,
        containers: containers.collect(),
        builds: builds.collect(),
        builds_bytes,
        unreferenced_bytes: accounts.reclaimable.bytes,
    })
}

/// Whether the store is whole.
pub fn fsck(node: &Node, request: v1::FsckRequest) -> Result<v1::FsckResponse, Error> {
    let repair = if request.repair { Repair::Yes } else { Repair::No };
    let report = node.store.fsck(repair).within(|| "check the store".to_owned())?;
    let findings = report.findings.into_iter().map(|finding| v1::FsckFinding {
        fault: fault(&finding.fault),
        outcome: outcome(finding.outcome).to_owned(),
        images: finding.images.iter().map(ToString::to_string).collect(),
        containers: finding.snapshots,
    });
    Ok(v1::FsckResponse {
        whole_layers: report.whole_layers,
        unprovable_layers: report.unprovable_layers,
        whole_blobs: report.whole_blobs,
        whole_images: report.whole_images,
        findings: findings.collect(),
    })
}

fn fault(fault: &Fault) -> String {
    match fault {
        Fault::Layer(layer) => format!("layer {layer} is not what was taken in"),
        Fault::LayerMetadata(layer) => format!("the metadata of layer {layer} are damaged"),
        Fault::Blob(digest) => format!("blob {digest} does not have its digest"),
        Fault::ImageRecord(image) => format!("the record of image {image} is damaged"),
        Fault::ImageParts(image) => format!("image {image} lacks a part"),
        Fault::StrayLayer(name) => format!("{name} is no layer of anything"),
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Reported => "reported",
        Outcome::Rebuilt => "made again",
        Outcome::Dropped => "removed; pull the images again",
        Outcome::Condemned => "kept for its containers only; pull the images again",
    }
}

/// What builds remember goes.
pub fn prune_builds(node: &Node, request: v1::PruneBuildsRequest) -> Result<v1::PruneBuildsResponse, Error> {
    let until = u64::try_from(request.until).unwrap_or(0);
    let steps = node.store.forget_steps(|step| until == 0 || step.used_at < until)?;
    if until == 0 {
        // What steps keep between builds.
        crate::record::remove_directory(&crate::build::caches::directory(node))?;
    }
    Ok(v1::PruneBuildsResponse { steps: steps as u64, freed_bytes: node.store.gc()?.freed.bytes })
}
