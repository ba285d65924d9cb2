//! Mounts of a ContainerConfig.

use pinnace_cri_api::v1;

use super::sandbox_config::{absolute, id_ranges};
use crate::container::request::{Access, ImageMount, MountRequest, Propagation};
use crate::error::Error;
use crate::owner_map::OwnerMap;

/// Options that take something away. What gives is not for a pod to ask for: the host's mount decides.
const OPTIONS: [&str; 8] =
    ["noexec", "nodev", "nosuid", "nosymfollow", "noatime", "nodiratime", "relatime", "strictatime"];

/// Reads the list.
pub fn parse(mounts: Vec<v1::Mount>) -> Result<Vec<MountRequest>, Error> {
    mounts.into_iter().enumerate().map(|(index, mount)| one(index, mount)).collect()
}

fn one(index: usize, mount: v1::Mount) -> Result<MountRequest, Error> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    let image = image(&field, &mount)?;
    if let Some(option) = mount.mount_options.iter().find(|option| !OPTIONS.contains(&option.as_str())) {
        let reason = format!("{option:?} is none of {}", OPTIONS.join(", "));
        return Err(Error::invalid(field("mount_options"), reason));
    }
    let owners = OwnerMap {
        uids: id_ranges(&field("uidMappings"), &mount.uid_mappings)?,
        gids: id_ranges(&field("gidMappings"), &mount.gid_mappings)?,
    };
    if owners.uids.is_empty() != owners.gids.is_empty() {
        return Err(Error::invalid(field("uidMappings"), "and gidMappings need each other"));
    }
    absolute(&field("container_path"), &mount.container_path)?;
    if image.is_none() {
        absolute(&field("host_path"), &mount.host_path)?;
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            let reason = format!("{} is no propagation", mount.propagation);
            return Err(Error::invalid(field("propagation"), reason));
        }
    };
    let access = match (mount.recursive_read_only, mount.readonly) {
        (false, false) => Access::ReadWrite,
        (false, true) => Access::ReadOnly,
        (true, false) => return Err(Error::invalid(field("recursive_read_only"), "needs readonly")),
        (true, true) if propagation != Propagation::Private => {
            return Err(Error::invalid(field("recursive_read_only"), "needs private propagation"));
        }
        (true, true) => Access::RecursiveReadOnly,
    };
    Ok(MountRequest {
        container_path: mount.container_path,
        host_path: mount.host_path,
        image,
        owners: Some(owners).filter(|owners| !owners.uids.is_empty()),
        options: mount.mount_options,
        access,
        selinux_relabel: mount.selinux_relabel,
        propagation,
    })
}

/// An image excludes everything that is about a path of the host.
fn image(field: &dyn Fn(&str) -> String, mount: &v1::Mount) -> Result<Option<ImageMount>, Error> {
    let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) else {
        return match mount.image_sub_path.as_str() {
            "" => Ok(None),
            _ => Err(Error::invalid(field("image_sub_path"), "needs an image")),
        };
    };
    if !mount.host_path.is_empty() {
        return Err(Error::invalid(field("host_path"), "excludes an image"));
    }
    if !mount.readonly {
        return Err(Error::invalid(field("readonly"), "an image can only be mounted read-only"));
    }
    if mount.propagation != i32::from(v1::MountPropagation::PropagationPrivate) {
        return Err(Error::invalid(field("propagation"), "that of an image is private"));
    }
    let sub_path = mount.image_sub_path.as_str();
    if !sub_path.is_empty() {
        absolute(&field("image_sub_path"), &format!("/{sub_path}"))?;
        if sub_path.starts_with('/') {
            return Err(Error::invalid(field("image_sub_path"), "is not relative"));
        }
    }
    Ok(Some(ImageMount {
        image: image.image.clone(),
        user_specified: image.user_specified_image.clone(),
        sub_path: sub_path.to_owned(),
    }))
}
