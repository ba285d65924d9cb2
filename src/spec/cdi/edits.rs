//! What a file asks for, done to a spec.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::document::{DeviceNode, Edits, Mount};
use crate::{devices, mounts, process};

/// Does it; says what cannot be done.
pub(super) fn apply(spec: &mut Spec, edits: &Edits) -> Result<(), String> {
    refuse(edits)?;
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        for entry in &edits.env {
            process::replace(&mut env, entry);
        }
        process.set_env(Some(env));
        if !edits.additional_gids.is_empty() {
            let mut user = process.user().clone();
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            // As in the reference implementation: nobody gets root's group from a file.
            let wanted = edits.additional_gids.iter().copied().filter(|gid| *gid != 0);
            for gid in wanted {
                if !groups.contains(&gid) {
                    groups.push(gid);
                }
            }
            user.set_additional_gids(Some(groups));
            process.set_user(user);
        }
    }
    for node in &edits.device_nodes {
        let path = node.path.display().to_string();
        device(spec, node).map_err(|reason| format!("device node {path}: {reason}"))?;
    }
    if !edits.mounts.is_empty() {
        let present = spec.mounts().clone().unwrap_or_default();
        let wanted = edits.mounts.iter().map(mount).collect();
        spec.set_mounts(Some(mounts::merge(present, wanted).map_err(|error| error.to_string())?));
    }
    Ok(())
}

fn refuse(edits: &Edits) -> Result<(), String> {
    if let Some(hook) = edits.hooks.first() {
        let (name, path) = (&hook.hook_name, hook.path.display());
        return Err(format!("it needs the {name} hook {path}; hooks are not supported"));
    }
    if edits.intel_rdt.is_some() {
        return Err("it needs intelRdt, a class of service, which is not supported".to_owned());
    }
    if let Some(device) = edits.net_devices.first() {
        let name = &device.host_interface_name;
        return Err(format!("it needs the network device {name:?} to be moved, which is not supported"));
    }
    Ok(())
}

fn mount(wanted: &Mount) -> oci_spec::runtime::Mount {
    let kind = wanted.kind.as_deref().unwrap_or("");
    let mut options: Vec<&str> = wanted.options.iter().map(String::as_str).collect();
    // Without a word it is a path of the host that is meant: nothing else has a hostPath.
    let kind = if kind.is_empty() || kind == "none" { "bind" } else { kind };
    if kind == "bind" && !options.iter().any(|option| ["bind", "rbind"].contains(option)) {
        options.push("rbind");
    }
    mounts::mount(&wanted.container_path, kind, &wanted.host_path, &options)
}

/// What the file leaves out is the host's device's.
fn device(spec: &mut Spec, node: &DeviceNode) -> Result<(), String> {
    let host_path = node.host_path.as_deref().unwrap_or(&node.path);
    let permissions = node.permissions.as_deref().unwrap_or("");
    let given = match (node.kind.as_deref().filter(|kind| !kind.is_empty()), node.major, node.minor) {
        (Some("p"), ..) => Some((LinuxDeviceType::P, 0, 0)),
        (Some("b"), Some(major), Some(minor)) => Some((LinuxDeviceType::B, major, minor)),
        (Some("c" | "u"), Some(major), Some(minor)) => Some((LinuxDeviceType::C, major, minor)),
        _ => None,
    };
    let mut found = match given {
        Some((kind, major, minor)) => devices::numbered(&node.path, kind, major, minor, permissions),
        None => devices::host_device(host_path, &node.path, permissions),
    }
    .map_err(|error| chain(&error))?;
    let process = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let (uid, gid) = process.unwrap_or((0, 0));
    for device in &mut found.nodes {
        check(node, device, host_path)?;
        if let Some(mode) = node.file_mode {
            device.set_file_mode(Some(mode));
        }
        // As in the reference implementation: who is not root owns it unless somebody is named.
        device.set_uid(node.uid.or_else(|| Some(uid).filter(|uid| *uid != 0)).or(device.uid()));
        device.set_gid(node.gid.or_else(|| Some(gid).filter(|gid| *gid != 0)).or(device.gid()));
    }
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut known = linux.devices().clone().unwrap_or_default();
    known.retain(|device| found.nodes.iter().all(|new| new.path() != device.path()));
    known.append(&mut found.nodes);
    linux.set_devices(Some(known));
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.append(&mut found.rules);
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    Ok(())
}

/// A file that was written for another device than there is now gives the wrong one away.
fn check(node: &DeviceNode, device: &oci_spec::runtime::LinuxDevice, host_path: &Path) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{} has another {what} than the file says", host_path.display()));
    match node.kind.as_deref() {
        Some("b") if device.typ() != LinuxDeviceType::B => return wrong("type"),
        Some("c" | "u") if device.typ() != LinuxDeviceType::C => return wrong("type"),
        _ => {}
    }
    if device.typ() == LinuxDeviceType::P {
        return Ok(());
    }
    match (node.major, node.minor) {
        (Some(major), _) if major != device.major() => wrong("major number"),
        (_, Some(minor)) if minor != device.minor() => wrong("minor number"),
        _ => Ok(()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
