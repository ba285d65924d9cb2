//! Names and images go: by the rules of `docker rmi`, which knows single names, while the CRI removes an image as a whole.
//!
//! - A name that is not the last one is taken away, and that is all.
//! - With the last name of an image the image goes, unless a container was made from it; force takes the name away then and
//!   the image stays without one, as long as no container runs.
//! - An id means all names; if they are in more than one repository that must be forced.

use std::sync::Arc;

use pinnace_registry::Reference;
use pinnace_store::ImageRecord;

use crate::container::volumes;
use crate::error::Error;
use crate::image::{familiar, find, users};
use crate::node::Node;

/// What has gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names, as people write them.
    pub untagged: Vec<String>,
    /// The image and its layers.
    pub deleted: Vec<String>,
    /// Bytes given back.
    pub freed_bytes: u64,
}

/// Removes what a name or id means.
pub fn remove(node: &Node, text: &str, force: bool) -> Result<Removed, Error> {
    let image = find(node, text).ok_or_else(|| Error::ImageNotFound(text.to_owned()))?;
    let reference = node.registry.reference(text).ok().or_else(|| text.parse::<Reference>().ok());
    let name = reference.map(|reference| reference.to_string());
    let Some(name) = name.filter(|name| image.names().any(|known| known == name)) else {
        return by_id(node, &image, text, force);
    };
    let mut doomed = vec![name.clone()];
    let repository = repository(&name);
    let of_repository = |known: &&str| self::repository(known) == repository;
    // Digests of a repository go with its last tag.
    if !image.tags().filter(of_repository).any(|tag| tag != name) {
        doomed
            .extend(image.digests().filter(of_repository).filter(|known| *known != name).map(str::to_owned));
    }
    if image.names().all(|known| doomed.iter().any(|gone| gone == known)) {
        if let Err(error) = free(node, &image, &familiar(&name), force) {
            // Forced, and only ended containers: the name goes, the image stays.
            if !force || users(node, &image).iter().any(|(_, running)| *running) {
                return Err(error);
            }
            return untag(node, doomed);
        }
        return whole(node, &image);
    }
    untag(node, doomed)
}

fn by_id(node: &Node, image: &Arc<ImageRecord>, text: &str, force: bool) -> Result<Removed, Error> {
    let mut repositories: Vec<String> = image.names().map(repository).collect();
    repositories.sort_unstable();
    repositories.dedup();
    if repositories.len() > 1 && !force {
        return Err(Error::Conflict(format!(
            "unable to delete {text} (must be forced) - image is referenced in multiple repositories"
        )));
    }
    free(node, image, text, force)?;
    whole(node, image)
}

/// Whether an image may go, or who stands against it.
fn free(node: &Node, image: &ImageRecord, text: &str, force: bool) -> Result<(), Error> {
    let short = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect::<String>();
    let id = image.id.to_string();
    if let Some(container) = volumes::user_of_image(node, &id) {
        return Err(Error::Conflict(format!(
            "unable to delete {text} (cannot be forced) - image is mounted into container {}",
            short(&container.to_string())
        )));
    }
    let users = users(node, image);
    if let Some((container, _)) = users.iter().find(|(_, running)| *running) {
        return Err(Error::Conflict(format!(
            "unable to delete {text} (cannot be forced) - image is being used by running container {}",
            short(container)
        )));
    }
    match users.first() {
        Some((container, _)) if !force => Err(Error::Conflict(format!(
            "unable to delete {text} (must be forced) - container {} is using its referenced image {}",
            short(container),
            short(&id)
        ))),
        Some((container, _)) if image.names().next().is_none() => Err(Error::Conflict(format!(
            "unable to delete {text} (cannot be forced) - image has no name and container {} is made from it",
            short(container)
        ))),
        Some(_) => {
            Err(Error::Conflict(format!("unable to delete {text} - ended containers are made from it")))
        }
        None => Ok(()),
    }
}

fn untag(node: &Node, names: Vec<String>) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    for name in names {
        node.store.untag(&name)?;
        removed.untagged.push(familiar(&name));
    }
    Ok(removed)
}

/// Removes an image with all its names, and says what went with it.
pub fn whole(node: &Node, image: &ImageRecord) -> Result<Removed, Error> {
    let mut removed = Removed { untagged: image.names().map(familiar).collect(), ..Removed::default() };
    let collected = node.store.remove_image(&image.id)?;
    removed.freed_bytes = collected.map_or(0, |collected| collected.freed.bytes);
    removed.deleted.push(image.id.to_string());
    let gone = image.layers.iter().rev().filter(|layer| !node.store.has_layer(layer));
    removed.deleted.extend(gone.map(ToString::to_string));
    Ok(removed)
}

/// `host/path` of a name.
fn repository(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.repository())
}
