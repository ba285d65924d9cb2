//! Images by whatever name a request uses for them, and what is known of them.

pub mod remove;

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use pinnace_registry::Reference;
use pinnace_store::ImageRecord;

use crate::container::record::Status;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// The image with this tag, digest reference, id, or unique beginning of an id. What cannot be a name of an image is no
/// error: there is just no such image (as the CRI wants it).
pub fn find(node: &Node, name: &str) -> Option<Arc<ImageRecord>> {
    // What the node's configuration refuses to look for may be here all the same.
    let reference = node.registry.reference(name).ok().or_else(|| name.parse::<Reference>().ok());
    let named = reference.and_then(|reference| node.store.image(&reference.to_string()));
    named.or_else(|| node.store.image(name))
}

/// The image's configuration, verified when it was stored.
pub fn configuration(node: &Node, image: &ImageRecord) -> Result<ImageConfiguration, Error> {
    let what = || format!("configuration of image {}", image.id);
    let bytes = node.store.blob(image.id.digest()).within(what)?;
    serde_json::from_slice(&bytes)
        .map_err(|source| crate::record::Error::Json { path: image.id.to_string().into(), source })
        .within(what)
}

/// A name as people write it; one that is none stays as it is.
pub fn familiar(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// The containers made from an image, with whether they run.
pub fn users(node: &Node, image: &ImageRecord) -> Vec<(String, bool)> {
    let id = image.id.to_string();
    let containers = node.pod_containers().into_iter().filter(|container| container.record().image.id == id);
    let of_pods = containers
        .map(|container| (container.id.to_string(), matches!(container.status(), Status::Running { .. })));
    let local = node.local.containers.all().into_iter().filter(|local| local.with(|it| it.image_id == id));
    of_pods.chain(local.map(|local| (local.record().name, local.state().is_alive()))).collect()
}

/// When an image was made, in seconds since the epoch; 0 if it does not say.
pub fn created(image: &ImageRecord) -> i64 {
    let parsed = image.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    parsed.map_or(0, |time| time.as_second())
}
