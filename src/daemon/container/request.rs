//! What CreateContainer was asked for, validated; no image, user or path has been looked up yet.

use std::collections::BTreeMap;

use super::record::{ContainerName, ImageView, Resources};
use crate::owner_map::OwnerMap;
use crate::sandbox::record::NamespaceMode;
use crate::selinux;

/// A container to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRequest {
    /// The key within the sandbox.
    pub name: ContainerName,
    /// Image id, digest or tag.
    pub image: String,
    /// What the user's pod spec said, for showing.
    pub user_specified_image: String,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    pub args: Vec<String>,
    /// Replaces the image's working directory; empty means it does not.
    pub working_dir: String,
    /// Added to the image's environment, by key. Values are bytes.
    pub envs: Vec<(String, Vec<u8>)>,
    /// Bind mounts.
    pub mounts: Vec<MountRequest>,
    /// Devices of the host.
    pub devices: Vec<DeviceRequest>,
    /// Devices of the Container Device Interface, `vendor/class=name`, of the field and of annotations.
    pub cdi_devices: Vec<String>,
    /// Returned as given.
    pub labels: BTreeMap<String, String>,
    /// Returned as given.
    pub annotations: BTreeMap<String, String>,
    /// Below the sandbox's log directory; empty means no log.
    pub log_path: String,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Privileges.
    pub security: Security,
    /// Overrides the image's; `None` means it does not.
    pub stop_signal: Option<i32>,
    /// Of a container of the command line: what it is made of is kept elsewhere. `None` for one of the CRI.
    pub kept: Option<Box<Kept>>,
}

/// What a container of the command line is made of, and what it has that one of the CRI has not. Its snapshot is there
/// before it and stays after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its image, which may have lost its names.
    pub image: ImageView,
    /// Layers from the base up.
    pub layers: Vec<pinnace_store::DiffId>,
    /// How it is run: the image's configuration with the container's own in it.
    pub config: Option<oci_spec::image::Config>,
    /// In place of the configuration's, by kind.
    pub rlimits: Vec<oci_spec::runtime::PosixRlimit>,
    /// Most processes; 0 and below is unlimited.
    pub pids: i64,
    /// Further mounts that have no path of the host as source.
    pub mounts: Vec<oci_spec::runtime::Mount>,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host; empty with an image.
    pub host_path: String,
    /// The image to mount instead of a path of the host.
    pub image: Option<ImageMount>,
    /// Shows owners as mapped; `None` shows them as they are.
    pub owners: Option<OwnerMap>,
    /// Further flags, of the mount and everything below: `noexec`, `nodev`, `nosuid` and the like.
    pub options: Vec<String>,
    /// Writable or not.
    pub access: Access,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// How mounts travel.
    pub propagation: Propagation,
}

/// An image as a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMount {
    /// Image id, digest or tag.
    pub image: String,
    /// What the user's pod spec said, for showing.
    pub user_specified: String,
    /// File or directory inside; empty is all of it.
    pub sub_path: String,
}

/// Writable or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writable.
    ReadWrite,
    /// The top mount is read-only.
    ReadOnly,
    /// With everything mounted below.
    RecursiveReadOnly,
}

/// How mounts travel between host and container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the host into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host: a device, a link to one, or a directory of them.
    pub host_path: String,
    /// Subset of `rwm`.
    pub permissions: String,
}

/// Who the program runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRequest {
    /// User id, or `None`.
    pub uid: Option<u32>,
    /// User name in the image; empty for none.
    pub username: String,
    /// Group id.
    pub gid: Option<u32>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Leave the groups of the image's `/etc/group` out.
    pub strict_groups: bool,
}

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// None.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// One of the host: a file for seccomp, a loaded profile for AppArmor.
    Localhost(String),
}

/// Privileges of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// Everything that the host has.
    pub privileged: bool,
    /// Capabilities to add; `ALL` is all.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop; `ALL` is all.
    pub drop_capabilities: Vec<String>,
    /// Capabilities to make ambient.
    pub add_ambient_capabilities: Vec<String>,
    /// PID namespace.
    pub pid: NamespaceMode,
    /// Container whose PID namespace it joins, for [`NamespaceMode::Target`].
    pub target: String,
    /// Network namespace: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// IPC namespace: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// User namespace: that of the pod; `None` is the host's.
    pub user_namespace: Option<OwnerMap>,
    /// Identity.
    pub user: UserRequest,
    /// Read-only root.
    pub read_only_rootfs: bool,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// As given; the kubelet always sends the list.
    pub masked_paths: Vec<String>,
    /// As given.
    pub read_only_paths: Vec<String>,
    /// Seccomp; absent in the request means unconfined.
    pub seccomp: Profile,
    /// AppArmor; `None` means the default where the host has AppArmor.
    pub apparmor: Option<Profile>,
    /// Parts of an SELinux label.
    pub selinux: selinux::Options,
}
