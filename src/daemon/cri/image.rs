//! ListImages, ImageStatus, RemoveImage.

use std::collections::HashMap;

use pinnace_cri_api::v1;
use pinnace_store::ImageRecord;

use crate::container::volumes;
use crate::error::{Error, Within as _};
use crate::image::{configuration, find};
use crate::node::Node;

/// One entry per image id, with all its tags and digests; the filter names one image.
pub fn list(node: &Node, filter: Option<&v1::ImageSpec>) -> v1::ListImagesResponse {
    let records = match filter.map(|spec| spec.image.as_str()) {
        None | Some("") => node.store.images(),
        Some(name) => find(node, name).into_iter().collect(),
    };
    v1::ListImagesResponse { images: records.iter().map(|record| message(node, record)).collect() }
}

/// A missing image is an empty answer, not an error.
pub fn status(node: &Node, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, Error> {
    let name = name("image", request.image)?;
    let Some(record) = find(node, &name) else { return Ok(v1::ImageStatusResponse::default()) };
    let info = if request.verbose { info(node, &record)? } else { HashMap::new() };
    Ok(v1::ImageStatusResponse { image: Some(message(node, &record)), info })
}

/// Drops every name of the image and what only it needed; an image that is not here is removed already.
pub async fn remove(node: &Node, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse, Error> {
    let name = name("image", request.image)?;
    let what = format!("remove image {name}");
    node.mutation(|node| async move {
        node.blocking(move |node| {
            if let Some(record) = find(node, &name) {
                if let Some(user) = volumes::user_of_image(node, &record.id.to_string()) {
                    return Err(Error::State {
                        subject: format!("image {}", record.id),
                        state: format!("mounted into container {user}"),
                        hint: "an image that is a volume can be removed after its containers".to_owned(),
                    });
                }
                if let Some(user) = node.local.user_of_image(&record.id.to_string()) {
                    return Err(Error::State {
                        subject: format!("image {}", record.id),
                        state: format!("the image of container {}", user.record().name),
                        hint: "that container is of the command line; remove it first (pinnace rm)"
                            .to_owned(),
                    });
                }
                node.store.remove_image(&record.id)?;
            }
            Ok(())
        })
        .await
        .within(|| what)
    })
    .await?;
    Ok(v1::RemoveImageResponse {})
}

/// The name in an ImageSpec.
pub fn name(field: &str, spec: Option<v1::ImageSpec>) -> Result<String, Error> {
    match spec.map(|spec| spec.image) {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(Error::invalid(format!("{field}.image"), "is empty")),
    }
}

fn message(node: &Node, record: &ImageRecord) -> v1::Image {
    let repo_tags: Vec<_> = record.tags().map(ToString::to_string).collect();
    let pinned =
        repo_tags.iter().any(|tag| node.config.image.pinned_images.iter().any(|pin| pin.matches(tag)));
    // Either a number or a name: what the image's USER says.
    let user = record.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<u32>().ok();
    v1::Image {
        id: record.id.to_string(),
        repo_tags,
        repo_digests: record.digests().map(ToString::to_string).collect(),
        size: record.size_bytes,
        uid: match (uid, user) {
            (Some(uid), _) => Some(v1::Int64Value { value: uid.into() }),
            (None, "") => Some(v1::Int64Value { value: 0 }),
            (None, _) => None,
        },
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: Some(v1::ImageSpec { image: record.id.to_string(), ..Default::default() }),
        // What a container of the command line is made of is not for the kubelet to collect.
        pinned: pinned || record.pinned || node.local.user_of_image(&record.id.to_string()).is_some(),
    }
}

/// `info.info`: the configuration as `imageSpec`, as the peers have it, and the layers.
fn info(node: &Node, record: &ImageRecord) -> Result<HashMap<String, String>, Error> {
    let value = serde_json::json!({
        "imageSpec": configuration(node, record)?,
        "chain": record.layers,
    });
    Ok(HashMap::from([("info".to_owned(), value.to_string())]))
}
