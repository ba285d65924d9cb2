//! Volumes: directories that outlive the containers that mount them.
//!
//! ```text
//! <root>/local/volumes/<name>/volume.json   made last: without it there is no volume
//!                            /_data/        what is mounted
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::{self, MountKind};
use super::{LocalContainer, names};
use crate::clock;
use crate::error::Error;
use crate::id::ContainerId;
use crate::node::Node;
use crate::record as disk;
use crate::table::lock;

/// What is recorded of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// `CLOCK_REALTIME` ns.
    pub created_at_ns: i64,
    /// As given.
    pub labels: BTreeMap<String, String>,
    /// The container that it was made for; `None` for one with a name of its own.
    pub made_for: Option<String>,
}

/// What a volume may be called.
pub fn check_name(name: &str) -> Result<String, Error> {
    match names::check(name) {
        Ok(checked) if checked == name => Ok(checked),
        _ => Err(Error::invalid("volume", format!("{name:?} is no name of a volume, nor an absolute path"))),
    }
}

fn directory(node: &Node, name: &str) -> PathBuf {
    node.local.volumes_directory().join(name)
}

/// What is mounted.
pub fn data(node: &Node, name: &str) -> PathBuf {
    directory(node, name).join("_data")
}

fn record_path(node: &Node, name: &str) -> PathBuf {
    directory(node, name).join("volume.json")
}

/// The volume of that name.
pub fn find(node: &Node, name: &str) -> Result<Volume, Error> {
    let path = record_path(node, name);
    if check_name(name).is_err() || !path.exists() {
        return Err(Error::NoSuchVolume(name.to_owned()));
    }
    Ok(disk::read(&path)?)
}

/// The path of a volume that must be there.
pub fn existing(node: &Node, name: &str) -> Result<String, Error> {
    find(node, name)?;
    Ok(data(node, name).display().to_string())
}

/// Makes a volume; one that is there is fine. Without a name it gets one.
pub fn create(
    node: &Node,
    name: &str,
    labels: BTreeMap<String, String>,
    made_for: Option<&str>,
) -> Result<Volume, Error> {
    let name = match name {
        "" => ContainerId::random().to_string(),
        name => check_name(name)?,
    };
    let _one = lock(&node.local.volumes);
    if let Ok(volume) = find(node, &name) {
        return Ok(volume);
    }
    disk::make_directory(&directory(node, &name))?;
    let data = data(node, &name);
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&data);
    made.map_err(Error::io("create volume", &data))?;
    let volume = Volume {
        name: name.clone(),
        created_at_ns: clock::realtime_ns(),
        labels,
        made_for: made_for.map(ToOwned::to_owned),
    };
    record::write(&record_path(node, &name), &volume)?;
    node.local.events.tell("volume", "create", &name, BTreeMap::new());
    Ok(volume)
}

/// All of them, by name. One that cannot be read is left out.
pub fn all(node: &Node) -> Result<Vec<Volume>, Error> {
    let directory = node.local.volumes_directory();
    let mut volumes = Vec::new();
    for entry in fs::read_dir(&directory).map_err(Error::io("read directory", &directory))? {
        let entry = entry.map_err(Error::io("read directory", &directory))?;
        match find(node, &entry.file_name().to_string_lossy()) {
            Ok(volume) => volumes.push(volume),
            Err(error) => {
                tracing::warn!(volume = ?entry.file_name(), error = error.chain(), "volume not read")
            }
        }
    }
    volumes.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(volumes)
}

/// Names of the containers that mount it.
pub fn users(node: &Node, name: &str) -> Vec<String> {
    let mounts = |local: &LocalContainer| {
        local.with(|record| {
            record.volumes.values().any(|volume| volume == name)
                || record
                    .settings
                    .mounts
                    .iter()
                    .any(|mount| mount.kind == MountKind::Volume && mount.source == name)
        })
    };
    let users = node.local.containers.all();
    users.iter().filter(|local| mounts(local)).map(|local| local.record().name).collect()
}

/// Removes a volume. `own` is for who made it and goes: its use does not count.
pub fn remove(node: &Node, name: &str, own: bool) -> Result<(), Error> {
    let _one = lock(&node.local.volumes);
    if own && find(node, name).is_err() {
        return Ok(());
    }
    find(node, name)?;
    let users = users(node, name);
    if users.len() > usize::from(own) {
        return Err(Error::State {
            subject: format!("volume {name}"),
            state: format!("mounted by {}", users.join(", ")),
            hint: "remove these containers first".to_owned(),
        });
    }
    // The record first: what is left of a removal that is cut short is no volume any more.
    let record = record_path(node, name);
    fs::remove_file(&record).map_err(Error::io("remove", &record))?;
    disk::remove_directory(&directory(node, name))?;
    node.local.events.tell("volume", "destroy", name, BTreeMap::new());
    Ok(())
}

/// Those that were made for a container that did not come to be.
pub fn remove_made_for(node: &Node, container: &str) -> Result<(), Error> {
    for volume in all(node)? {
        if volume.made_for.as_deref() == Some(container) {
            remove(node, &volume.name, true)?;
        }
    }
    Ok(())
}

/// Removes what creations and removals that were cut short have left.
pub fn sweep(node: &Node) -> Result<(), Error> {
    let directory = node.local.volumes_directory();
    for entry in fs::read_dir(&directory).map_err(Error::io("read directory", &directory))? {
        let entry = entry.map_err(Error::io("read directory", &directory))?;
        if !entry.path().join("volume.json").exists() {
            disk::remove_directory(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes those that nobody mounts: such without names, or all.
pub fn prune(node: &Node, all_of_them: bool) -> Result<(Vec<String>, u64), Error> {
    let (mut removed, mut bytes) = (Vec::new(), 0_u64);
    for volume in all(node)? {
        let wanted = all_of_them || volume.made_for.is_some();
        if wanted && users(node, &volume.name).is_empty() {
            let size = size(&data(node, &volume.name));
            // Somebody may mount it just now.
            if remove(node, &volume.name, false).is_ok() {
                removed.push(volume.name);
                bytes = bytes.saturating_add(size);
            }
        }
    }
    Ok((removed, bytes))
}

/// Bytes on disk; links are not followed.
pub fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let own = path.symlink_metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512));
    let children =
        path.symlink_metadata().ok().filter(|it| it.is_dir()).and_then(|_| fs::read_dir(path).ok());
    children.into_iter().flatten().flatten().fold(own, |sum, entry| sum.saturating_add(size(&entry.path())))
}

/// Whether a directory has nothing in it.
pub fn is_empty(path: &Path) -> Result<bool, Error> {
    Ok(fs::read_dir(path).map_err(Error::io("read directory", path))?.next().is_none())
}
