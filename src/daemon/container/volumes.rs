//! Volumes: what a container mounts that is not simply a path of the host.
//!
//! A volume that the image declares is a directory of the container's own below the root directory, filled with what the
//! image has there and gone with the container:
//!
//! ```text
//! <root>/volumes/<container>/<number>
//! ```
//! An image as a volume is a view of its layers in the store, `<container>-image-<number of the mount>`; the view keeps
//! the layers for as long as the container is there, whatever becomes of the image's names.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::Config as ImageConfig;
use pinnace_launcher::copy_tree;
use pinnace_spec::image;
use pinnace_store::{Access, ImageRecord, MountOptions};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, openat2};
use rustix::io::Errno;

use super::record::ContainerRecord;
use super::request::{ContainerRequest, ImageMount};
use crate::error::Error;
use crate::id::ContainerId;
use crate::node::Node;
use crate::owner_map::OwnerMap;
use crate::record as disk;
use crate::sandbox::Sandbox;

/// What the kernel and the pod provide in every container; an image cannot have it otherwise.
const PROVIDED: [&str; 6] = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Between a container's id and the number of its mount, in the key of a view.
const VIEW: &str = "-image-";

/// A volume of the image.
#[derive(Debug)]
pub struct Volume {
    /// Path in the container.
    pub destination: PathBuf,
    /// Its directory.
    pub source: PathBuf,
}

/// Where the volumes of all containers are.
pub fn directory(node: &Node) -> PathBuf {
    node.config.daemon.root.join("volumes")
}

/// Makes the volumes that the image declares and the request does not mount something else at.
pub fn make(
    node: &Node,
    id: &ContainerId,
    sandbox: &Sandbox,
    rootfs: BorrowedFd<'_>,
    config: Option<&ImageConfig>,
    request: &ContainerRequest,
) -> Result<Vec<Volume>, Error> {
    if !node.config.container.image_volumes {
        return Ok(Vec::new());
    }
    let taken = |path: &Path| {
        request.mounts.iter().any(|mount| Path::new(&mount.container_path) == path)
            || PROVIDED.iter().any(|provided| path.starts_with(provided))
    };
    let wanted = image::volumes(config)?.into_iter().filter(|path| !taken(path));
    let own = directory(node).join(id.as_str());
    let owner = sandbox.config.user_namespace.as_ref().map_or((0, 0), OwnerMap::root);
    wanted
        .enumerate()
        .map(|(number, destination)| {
            let source = own.join(number.to_string());
            disk::make_directory(&source)?;
            fill(rootfs, &destination, &source, owner)?;
            Ok(Volume { destination, source })
        })
        .collect()
}

/// Copies what the image has at `destination`; without that the volume is an empty directory of root's, mode 0755.
pub(crate) fn fill(
    rootfs: BorrowedFd<'_>,
    destination: &Path,
    source: &Path,
    owner: (u32, u32),
) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |errno: Errno| Error::io("fill the image's volume", path)(errno.into())
    };
    let volume = crate::sandbox::run::open_directory(source)?;
    // Links lead where they would lead in the container (CVE-2022-23648).
    let found = openat2(
        rootfs,
        destination,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    match found {
        Ok(directory) => copy_tree::copy(directory.as_fd(), volume.as_fd()).map_err(failed(destination)),
        Err(Errno::NOENT) => {
            let mode = Mode::from_raw_mode(0o755);
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            chownat(&volume, ".", Some(uid), Some(gid), AtFlags::empty())
                .and_then(|()| chmodat(&volume, ".", mode, AtFlags::empty()))
                .map_err(failed(source))
        }
        Err(errno) => Err(failed(destination)(errno)),
    }
}

/// Makes the views of the images that the request mounts; each is mounted once to see that it has what is asked for.
pub fn make_views(
    node: &Node,
    id: &ContainerId,
    request: &ContainerRequest,
) -> Result<Vec<Option<Arc<ImageRecord>>>, Error> {
    let one = |(number, mount): (usize, &super::request::MountRequest)| {
        let Some(wanted) = &mount.image else { return Ok(None) };
        view(node, &view_key(id, number), wanted).map(Some).map_err(|error| Error::ImageVolume {
            image: wanted.image.clone(),
            destination: mount.container_path.clone(),
            source: Box::new(error),
        })
    };
    request.mounts.iter().enumerate().map(one).collect()
}

fn view(node: &Node, key: &str, wanted: &ImageMount) -> Result<Arc<ImageRecord>, Error> {
    let image =
        crate::image::find(node, &wanted.image).ok_or_else(|| Error::ImageNotFound(wanted.image.clone()))?;
    node.store.view(key, &image.layers)?;
    let root =
        node.store.mount(key, &MountOptions { access: Access::ReadOnly, ..MountOptions::default() })?;
    if !wanted.sub_path.is_empty() {
        openat2(
            &root,
            wanted.sub_path.as_str(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(|errno| Error::io("find image_sub_path", &wanted.sub_path)(errno.into()))?;
    }
    Ok(image)
}

/// Mounts the view for the mount with this number.
pub fn mount_view(
    node: &Node,
    id: &ContainerId,
    number: usize,
    user_namespace: Option<BorrowedFd<'_>>,
    selinux_context: Option<&str>,
) -> Result<OwnedFd, Error> {
    let access = Access::ReadOnly;
    let options = MountOptions { access, user_namespace, selinux_context, ..MountOptions::default() };
    Ok(node.store.mount(&view_key(id, number), &options)?)
}

/// How a spec names the view as a source; no such path exists.
pub fn view_source(number: usize) -> PathBuf {
    PathBuf::from(format!("/run/pinnace/image/{number}"))
}

fn view_key(id: &ContainerId, number: usize) -> String {
    format!("{id}{VIEW}{number}")
}

/// The container that a snapshot of the store belongs to.
pub fn owner(snapshot: &str) -> &str {
    snapshot.split_once(VIEW).map_or(snapshot, |(container, _)| container)
}

/// Removes the volumes and views of a container; those that are gone are fine.
pub fn remove(node: &Node, id: &ContainerId) -> Result<(), Error> {
    for (key, _, _) in node.store.snapshots() {
        if key.strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with(VIEW)) {
            node.store.remove(&key)?;
        }
    }
    Ok(disk::remove_directory(&directory(node).join(id.as_str()))?)
}

/// A container that mounts this image as a volume.
pub fn user_of_image(node: &Node, image: &str) -> Option<ContainerId> {
    let mounts = |record: &ContainerRecord| {
        record.mounts.iter().any(|mount| mount.image.as_ref().is_some_and(|view| view.id == image))
    };
    node.containers.all().iter().map(|container| container.record()).find(mounts).map(|record| record.id)
}
