//! Mounts of a ContainerConfig.

use pinnace_cri_api::v1;

use super::sandbox_config::absolute;
use crate::container::request::{Access, MountRequest, Propagation};
use crate::error::Error;

/// Reads the list; a later issue adds images as sources and idmapped volumes.
pub fn parse(mounts: Vec<v1::Mount>) -> Result<Vec<MountRequest>, Error> {
    mounts.into_iter().enumerate().map(|(index, mount)| one(index, mount)).collect()
}

fn one(index: usize, mount: v1::Mount) -> Result<MountRequest, Error> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    let unsupported = |name: &str| Err(Error::invalid(field(name), "is not supported yet"));
    if mount.image.is_some_and(|image| !image.image.is_empty()) || !mount.image_sub_path.is_empty() {
        return unsupported("image");
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return unsupported("uidMappings");
    }
    if !mount.mount_options.is_empty() {
        return unsupported("mount_options");
    }
    absolute(&field("container_path"), &mount.container_path)?;
    absolute(&field("host_path"), &mount.host_path)?;
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
        access,
        selinux_relabel: mount.selinux_relabel,
        propagation,
    })
}
