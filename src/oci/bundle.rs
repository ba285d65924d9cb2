//! A bundle: config.json read, checked, and put into the words that lowering understands.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxDeviceCgroup, LinuxIdMapping, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxResources, Spec,
};
use pinnace_cgroup::CgroupPath;
use pinnace_launcher::namespaces::Range;
use pinnace_spec::defaults;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::runtime::Runtime;
use crate::state::{CONFIG, read_json};

/// Stands for the container's own user namespace in the list of namespaces, which lowering knows only as a pod's.
pub(crate) const OWN_USER_NAMESPACE: &str = "/own-user-namespace";

/// A bundle that can be lowered.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute.
    pub directory: PathBuf,
    /// As it is on disk.
    pub spec: Spec,
    /// Absolute.
    pub rootfs: PathBuf,
    /// Id maps of a user namespace of its own.
    pub user: Option<Maps>,
}

/// Id maps.
#[derive(Debug)]
pub(crate) struct Maps {
    pub uids: Vec<Range>,
    pub gids: Vec<Range>,
}

impl Bundle {
    /// Reads it.
    pub fn load(directory: &Path) -> anyhow::Result<Self> {
        let directory =
            fs::canonicalize(directory).with_context(|| format!("bundle {}", directory.display()))?;
        let spec: Spec = read_json(&directory.join(CONFIG))?;
        check_version(spec.version())?;
        let Some(root) = spec.root() else { bail!("root: is missing") };
        let rootfs = directory.join(root.path());
        let rootfs = fs::canonicalize(&rootfs).with_context(|| format!("root.path {}", rootfs.display()))?;
        if !rootfs.is_dir() {
            bail!("root.path {} is not a directory", rootfs.display());
        }
        let user = user_namespace(&spec)?;
        Ok(Self { directory, spec, rootfs, user })
    }

    /// The spec without what the caller of the launch sees to: hooks, id maps, paths relative to the bundle.
    pub fn lowerable(&self) -> anyhow::Result<Spec> {
        let mut spec = self.spec.clone();
        spec.set_hooks(None);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for mount in &mut mounts {
            let binds = |option: &String| option == "bind" || option == "rbind";
            let is_bind =
                mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(binds);
            if let Some(source) = mount.source().clone().filter(|source| is_bind && source.is_relative()) {
                mount.set_source(Some(self.directory.join(source)));
            }
        }
        spec.set_mounts(Some(mounts));
        let mut linux = match spec.linux().clone() {
            Some(linux) => linux,
            None => without_linux()?,
        };
        if self.user.is_some() {
            linux.set_uid_mappings(None).set_gid_mappings(None);
            for namespace in linux.namespaces_mut().iter_mut().flatten() {
                if namespace.typ() == LinuxNamespaceType::User {
                    namespace.set_path(Some(OWN_USER_NAMESPACE.into()));
                }
            }
        }
        spec.set_linux(Some(linux));
        Ok(spec)
    }

    /// A detached copy of the root file system's mounts.
    pub fn rootfs(&self) -> anyhow::Result<OwnedFd> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, &self.rootfs, flags).with_context(|| format!("clone {}", self.rootfs.display()))
    }

    /// Where its cgroup is to be.
    pub fn cgroup(&self, runtime: &Runtime, id: &str) -> anyhow::Result<CgroupPath> {
        let path = self.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        cgroup_path(path, runtime.systemd_cgroup, id)
    }

    /// Its limits. Devices that every program expects are allowed, as all runtimes do.
    pub fn resources(&self) -> LinuxResources {
        let resources = self.spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        let mut resources = resources.unwrap_or_default();
        let mut rules: Vec<LinuxDeviceCgroup> = resources.devices().clone().unwrap_or_default();
        rules.extend(defaults::device_rules().into_iter().filter(LinuxDeviceCgroup::allow));
        resources.set_devices(Some(rules));
        resources
    }
}

/// A relative path is taken from the root of the hierarchies, none is a place of our own.
fn cgroup_path(path: Option<&Path>, systemd: bool, id: &str) -> anyhow::Result<CgroupPath> {
    if systemd {
        bail!(
            "--systemd-cgroup: pinnace oci makes cgroups by itself; give it a cgroup path, without this flag"
        );
    }
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(CgroupPath::root().join("pinnace-oci")?.join(id)?);
    };
    let Some(text) = path.to_str() else { bail!("linux.cgroupsPath: is not UTF-8") };
    if text.matches(':').count() == 2 && !text.contains('/') {
        bail!("linux.cgroupsPath {text}: is systemd's form, which needs --systemd-cgroup");
    }
    let path = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
    CgroupPath::try_from(path.as_str()).context("linux.cgroupsPath")
}

/// 1.x is what this is written for.
fn check_version(version: &str) -> anyhow::Result<()> {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u64>> = numbers.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_slice() {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => bail!("ociVersion {version:?}: only 1.x is supported"),
        _ => bail!("ociVersion {version:?}: is not a version"),
    }
}

fn user_namespace(spec: &Spec) -> anyhow::Result<Option<Maps>> {
    let Some(linux) = spec.linux() else { return Ok(None) };
    let own = linux.namespaces().iter().flatten().find(|it| it.typ() == LinuxNamespaceType::User);
    let uids = ranges(linux.uid_mappings().as_deref().unwrap_or_default());
    let gids = ranges(linux.gid_mappings().as_deref().unwrap_or_default());
    match own {
        Some(namespace) if namespace.path().is_some() => Ok(None),
        Some(_) if uids.is_empty() || gids.is_empty() => {
            bail!("linux.uidMappings, linux.gidMappings: a user namespace needs both")
        }
        Some(_) => Ok(Some(Maps { uids, gids })),
        None if uids.is_empty() && gids.is_empty() => Ok(None),
        None => bail!("linux.uidMappings, linux.gidMappings: there is no user namespace in linux.namespaces"),
    }
}

fn ranges(mappings: &[LinuxIdMapping]) -> Vec<Range> {
    let range = |mapping: &LinuxIdMapping| Range {
        outside: mapping.host_id(),
        inside: mapping.container_id(),
        length: mapping.size(),
    };
    mappings.iter().map(range).collect()
}

impl Maps {
    /// The id outside of an id inside.
    pub fn root(ranges: &[Range]) -> anyhow::Result<u32> {
        let of = ranges.iter().find(|range| range.inside == 0).map(|range| range.outside);
        of.context("linux.uidMappings, linux.gidMappings: id 0 of the container is not mapped")
    }
}

fn without_linux() -> anyhow::Result<Linux> {
    let mount = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Mount).build()?;
    Ok(LinuxBuilder::default().namespaces(vec![mount]).build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_paths() {
        let path = |text: &str| cgroup_path(Some(Path::new(text)), false, "c1").map(|path| path.to_string());
        assert_eq!(cgroup_path(None, false, "c1").unwrap().to_string(), "/pinnace-oci/c1");
        assert_eq!(path("").unwrap(), "/pinnace-oci/c1");
        assert_eq!(path("/a/b").unwrap(), "/a/b");
        assert_eq!(path("a/b").unwrap(), "/a/b");
        assert!(path("/a/../b").is_err());
        assert!(path("system.slice:cri:c1").unwrap_err().to_string().contains("--systemd-cgroup"));
        assert!(cgroup_path(Some(Path::new("a:b:c")), true, "c1").is_err());
    }

    #[test]
    fn versions() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0", "1.0.0-rc1+x"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["", "1", "1.0", "2.0.0", "0.9.0", "x.y.z"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }
}
