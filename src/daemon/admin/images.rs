//! List, Inspect, Tag, Remove, Prune: images as the command line knows them.

use std::collections::HashMap;

use pinnace_admin_api::v1;
use pinnace_image::{Config, Facts};
use pinnace_registry::Reference;
use pinnace_store::{DiffId, ImageRecord};

use crate::error::{Error, Within as _};
use crate::image::remove::{self, Removed};
use crate::image::{created, familiar, find, users};
use crate::node::Node;

/// How many images have each layer.
type Sharing = HashMap<DiffId, u64>;

fn sharing(node: &Node) -> Sharing {
    let mut sharing = Sharing::new();
    for image in node.store.images() {
        let mut layers = image.layers.clone();
        layers.sort_unstable();
        layers.dedup();
        layers.into_iter().for_each(|layer| *sharing.entry(layer).or_default() += 1);
    }
    sharing
}

fn message(node: &Node, image: &ImageRecord, sharing: &Sharing) -> v1::Image {
    let mut own_bytes = 0;
    let layers: Vec<v1::Layer> = image
        .layers
        .iter()
        .filter_map(|diff_id| node.store.layer(diff_id).ok())
        .map(|info| {
            let images = sharing.get(&info.diff_id).copied().unwrap_or(1);
            own_bytes += if images == 1 { info.disk_bytes } else { 0 };
            v1::Layer {
                diff_id: info.diff_id.to_string(),
                tar_bytes: info.tar_bytes,
                disk_bytes: info.disk_bytes,
                images,
            }
        })
        .collect();
    v1::Image {
        id: image.id.to_string(),
        tags: image.tags().map(familiar).collect(),
        digests: image.digests().map(familiar).collect(),
        size_bytes: image.size_bytes,
        own_bytes,
        created: created(image),
        labels: image.labels.clone().into_iter().collect(),
        containers: users(node, image).len() as u64,
        layers,
        names: image.names().map(str::to_owned).collect(),
    }
}

/// All images.
pub fn list(node: &Node) -> v1::ListResponse {
    let sharing = sharing(node);
    let mut images: Vec<_> = node.store.images().iter().map(|image| message(node, image, &sharing)).collect();
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.tags.cmp(&b.tags)));
    v1::ListResponse { images }
}

/// One image.
pub fn inspect(node: &Node, request: v1::InspectRequest) -> Result<v1::InspectResponse, Error> {
    let name = request.image;
    let image = find(node, &name).ok_or(Error::ImageNotFound(name))?;
    let what = || format!("inspect image {}", image.id);
    let bytes = node.store.blob(image.id.digest()).within(what)?;
    let config = Config::parse(&bytes)
        .map_err(|source| crate::record::Error::Json { path: image.id.to_string().into(), source })
        .within(what)?;
    let facts = Facts {
        id: image.id.to_string(),
        repo_tags: image.tags().map(familiar).collect(),
        repo_digests: image.digests().map(familiar).collect(),
        size_bytes: image.size_bytes,
        layer_bytes: image
            .layers
            .iter()
            .map(|layer| node.store.layer(layer).map(|info| info.tar_bytes))
            .collect::<Result<_, _>>()
            .within(what)?,
    };
    let history = pinnace_image::history(&facts, &config)
        .into_iter()
        .map(|row| v1::HistoryStep {
            id: row.id,
            created: row.created,
            created_by: row.created_by,
            size_bytes: row.size_bytes,
            comment: row.comment,
        })
        .collect();
    Ok(v1::InspectResponse {
        image: Some(message(node, &image, &sharing(node))),
        json: pinnace_image::inspect(&facts, &config).to_string(),
        history,
    })
}

/// One more name.
pub async fn tag(node: &Node, request: v1::TagRequest) -> Result<v1::TagResponse, Error> {
    let v1::TagRequest { source, target } = request;
    let what = format!("tag {source} as {target}");
    node.mutation(|node| async move {
        node.blocking(move |node| {
            let image = find(node, &source).ok_or(Error::ImageNotFound(source))?;
            let name = tag_name(&target)?;
            node.store.tag(&image.id, &name)?;
            Ok(v1::TagResponse { name })
        })
        .await
    })
    .await
    .within(|| what)
}

/// The name of an image that is given here: with a tag, and no digest. Names without a registry are Docker Hub's, whatever this
/// node does when it looks for one.
pub fn tag_name(text: &str) -> Result<String, Error> {
    let reference: Reference = text.parse()?;
    reference
        .repo_tag()
        .ok_or_else(|| Error::invalid("name", format!("{text:?} has a digest; a name has a tag")))
}

/// A name or an image goes.
pub async fn remove(node: &Node, request: v1::RemoveRequest) -> Result<v1::RemoveResponse, Error> {
    let v1::RemoveRequest { image, force } = request;
    let Removed { untagged, deleted, freed_bytes } = node
        .mutation(
            move |node| async move { node.blocking(move |node| remove::remove(node, &image, force)).await },
        )
        .await?;
    Ok(v1::RemoveResponse { untagged, deleted, freed_bytes })
}

/// What nobody needs goes.
pub async fn prune(node: &Node, request: v1::PruneRequest) -> Result<v1::PruneResponse, Error> {
    node.mutation(move |node| async move { node.blocking(move |node| prune_now(node, &request)).await })
        .await
        .within(|| "prune images".to_owned())
}

fn prune_now(node: &Node, request: &v1::PruneRequest) -> Result<v1::PruneResponse, Error> {
    let mut pruned = v1::PruneResponse::default();
    for image in node.store.images() {
        let named = image.names().next().is_some();
        let pinned = image.pinned
            || image.tags().any(|tag| node.config.image.pinned_images.iter().any(|pin| pin.matches(tag)));
        let labelled = request.labels.iter().all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => image.labels.get(key).is_some_and(|has| has == value),
            None => image.labels.contains_key(wanted),
        });
        let old = request.until == 0 || created(&image) < request.until;
        let used = !users(node, &image).is_empty()
            || crate::container::volumes::user_of_image(node, &image.id.to_string()).is_some();
        if pinned || !labelled || !old || used || (named && !request.all) {
            continue;
        }
        if request.dry_run {
            pruned.untagged.extend(image.names().map(familiar));
            pruned.deleted.push(image.id.to_string());
            pruned.freed_bytes += image.size_bytes;
            continue;
        }
        let removed = remove::whole(node, &image)?;
        pruned.untagged.extend(removed.untagged);
        pruned.deleted.extend(removed.deleted);
        pruned.freed_bytes += removed.freed_bytes;
    }
    if !request.dry_run {
        pruned.freed_bytes += node.store.gc()?.freed.bytes;
    }
    Ok(pruned)
}
