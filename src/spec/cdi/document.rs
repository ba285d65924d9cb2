//! The form of a file.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};

use super::name::{check_device, check_kind};

/// Versions of the specification whose files are understood.
const VERSIONS: [&str; 11] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "1.1.1"];

/// What the OCI runtime spec calls them.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A file: devices of one kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) devices: Vec<Device>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

/// What is done to the spec of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Edits {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) net_devices: Vec<NetDevice>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) hooks: Vec<Hook>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<serde_json::Value>,
    #[serde(default, rename = "additionalGids", deserialize_with = "null_is_default")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub(super) path: PathBuf,
    pub(super) host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    #[serde(rename = "name")]
    _name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: PathBuf,
    #[serde(default, rename = "args")]
    _args: Option<Vec<String>>,
    #[serde(default, rename = "env")]
    _env: Option<Vec<String>>,
    #[serde(default, rename = "timeout")]
    _timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// Programs of Go write an empty list as null.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Document {
    /// Reads a file as a whole; what is said of it names no file.
    pub(super) fn parse(bytes: &[u8], json: bool) -> Result<Self, String> {
        let parsed: Result<Self, String> = if json {
            serde_json::from_slice(bytes).map_err(|error| error.to_string())
        } else {
            serde_yaml_ng::from_slice(bytes).map_err(|error| error.to_string())
        };
        let document = parsed?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("cdiVersion {:?} is none of {}", self.cdi_version, VERSIONS.join(", ")));
        }
        check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("has no devices".to_owned());
        }
        self.container_edits.check().map_err(|reason| format!("containerEdits: {reason}"))?;
        let mut names = HashSet::new();
        for device in &self.devices {
            check_device(&device.name)?;
            if !names.insert(&device.name) {
                return Err(format!("has device {:?} twice", device.name));
            }
            device.container_edits.check().map_err(|reason| format!("device {:?}: {reason}", device.name))?;
        }
        Ok(())
    }
}

impl Edits {
    /// What can be wrong without looking at the machine.
    fn check(&self) -> Result<(), String> {
        if let Some(entry) = self.env.iter().find(|entry| entry.find('=').unwrap_or(0) == 0) {
            return Err(format!("env {entry:?} is not KEY=value"));
        }
        for node in &self.device_nodes {
            if let Some(kind) = node.kind.as_deref().filter(|kind| !["b", "c", "u", "p", ""].contains(kind)) {
                return Err(format!(
                    "device node {}: type {kind:?} is none of b, c, u, p",
                    node.path.display()
                ));
            }
            let permissions = node.permissions.as_deref().unwrap_or("");
            if !permissions.chars().all(|letter| "rwm".contains(letter)) {
                let path = node.path.display();
                return Err(format!(
                    "device node {path}: permissions {permissions:?} are not made of r, w and m"
                ));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("hookName {:?} is none of {}", hook.hook_name, HOOKS.join(", ")));
            }
        }
        Ok(())
    }
}
