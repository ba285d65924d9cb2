//! Mounts: putting the list of an OCI spec together, and lowering it to the plan.
//!
//! Order is the spec's; a list made with [`merge`] goes from the root downwards. Bind sources become descriptors here.

mod cgroup;
mod options;
mod source;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use pinnace_launcher::plan;
use pinnace_sys::mount as attr;

use crate::lower::{MissingSource, Slots, Source};
use crate::{Error, Facts, validate};
use options::{Bind, Options};
use source::Subject;

/// One list of defaults and requested mounts: a requested mount replaces the default of the same destination, and one at
/// `/dev` also those below it. Of several requests for one destination the last counts. Sorted by depth, stable, so that no
/// mount hides an earlier one below it.
pub fn merge(defaults: Vec<Mount>, requested: Vec<Mount>) -> Result<Vec<Mount>, Error> {
    let mut merged: Vec<Mount> = Vec::with_capacity(defaults.len() + requested.len());
    let devices_replaced =
        requested.iter().any(|mount| destination(mount).is_ok_and(|path| path == Path::new("/dev")));
    for mount in defaults {
        let path = destination(&mount)?;
        if !(devices_replaced && path != Path::new("/dev") && path.starts_with("/dev")) {
            place(&mut merged, mount, path);
        }
    }
    for mount in requested {
        let path = destination(&mount)?;
        place(&mut merged, mount, path);
    }
    merged.sort_by_key(|mount| mount.destination().components().count());
    Ok(merged)
}

/// A bind mount of the OCI spec.
pub fn bind(destination: impl Into<PathBuf>, source: impl Into<PathBuf>, options: &[&str]) -> Mount {
    mount(destination, "bind", source, options)
}

/// A mount of the OCI spec.
pub fn mount(
    destination: impl Into<PathBuf>,
    fstype: &str,
    source: impl Into<PathBuf>,
    options: &[&str],
) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(fstype.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

/// What the mounts of a spec lower to.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) mounts: Vec<plan::Mount>,
    pub(crate) links: Vec<plan::Link>,
    pub(crate) read_only_paths: Vec<Vec<u8>>,
    pub(crate) dev: Dev,
}

/// What stands at `/dev`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dev {
    /// What the image has.
    #[default]
    Image,
    /// A new file system: devices and links are made in it.
    Own,
    /// A directory of the host, which has its devices; nothing is made in it.
    Bound,
}

/// What lowering a mount needs to know.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) missing_source: MissingSource,
    pub(crate) host_cgroup_namespace: bool,
    /// SELinux label of new file systems.
    pub(crate) label: Option<&'a str>,
}

pub(crate) fn lower(
    mounts: &[Mount],
    sources: &mut HashMap<PathBuf, Source>,
    surroundings: &Surroundings<'_>,
    slots: &mut Slots,
) -> Result<Output, Error> {
    if mounts.len() > validate::MOUNTS {
        return Err(Error::invalid(
            "mounts",
            format!("{} of them, {} at most", mounts.len(), validate::MOUNTS),
        ));
    }
    let mut output = Output::default();
    for mount in mounts {
        lower_one(mount, sources, surroundings, slots, &mut output)?;
    }
    Ok(output)
}

fn lower_one(
    mount: &Mount,
    sources: &mut HashMap<PathBuf, Source>,
    surroundings: &Surroundings<'_>,
    slots: &mut Slots,
    output: &mut Output,
) -> Result<(), Error> {
    let destination = destination(mount)?;
    let field = format!("mount {}", destination.display());
    if destination == Path::new("/") {
        return Err(Error::invalid(field, "the root file system comes from the image"));
    }
    let mapped = [mount.uid_mappings(), mount.gid_mappings()];
    let mapped = mapped.iter().any(|mappings| mappings.as_ref().is_some_and(|list| !list.is_empty()));
    let source = mount.source().as_deref().and_then(|path| sources.get(path));
    if mapped && !matches!(source, Some(Source::Mapped(_))) {
        return Err(Error::unsupported(field, "an id-mapped mount"));
    }
    let options = Options::parse(&field, mount.options().as_deref().unwrap_or_default())?;
    let fstype = mount.typ().as_deref().unwrap_or("");
    let reach = options.bind.or(matches!(fstype, "bind").then_some(Bind::Mount));
    let mut lowered = match reach {
        Some(reach) => {
            if destination == Path::new("/dev") {
                output.dev = Dev::Bound;
            }
            lower_bind(&destination, mount, &options, reach, sources, surroundings, slots)?
        }
        None => match fstype {
            "cgroup" => {
                let host = surroundings.host_cgroup_namespace;
                refuse_tree_options(&field, &options)?;
                return cgroup::lower(&destination, &options, &surroundings.facts.cgroups, host, output);
            }
            "cgroup2" => {
                let host = surroundings.host_cgroup_namespace;
                refuse_tree_options(&field, &options)?;
                cgroup::unified(&destination, &options, &surroundings.facts.cgroups, host)
            }
            _ => {
                let new = new_filesystem(&field, &destination, fstype, &options, surroundings)?;
                if destination == Path::new("/dev") {
                    output.dev = Dev::Own;
                }
                new
            }
        },
    };
    // What is written below these later on must not land in a place of the image's choice (rule R4).
    lowered.no_symlinks |= destination == Path::new("/proc") || destination == Path::new("/sys");
    output.mounts.push(lowered);
    Ok(())
}

fn lower_bind(
    destination: &Path,
    mount: &Mount,
    options: &Options,
    reach: Bind,
    sources: &mut HashMap<PathBuf, Source>,
    surroundings: &Surroundings<'_>,
    slots: &mut Slots,
) -> Result<plan::Mount, Error> {
    let field = format!("mount {}", destination.display());
    if let Some(option) = options.data.first() {
        return Err(Error::invalid(field, format!("option {option} does not apply to a bind mount")));
    }
    if options.copy_up {
        return Err(Error::invalid(field, "option tmpcopyup does not apply to a bind mount"));
    }
    let Some(path) = mount.source().as_deref() else {
        return Err(Error::invalid(field, "a bind mount needs a source"));
    };
    let subject = Subject { destination, source: path };
    let propagation = options.propagation.unwrap_or(attr::PRIVATE);
    let mut sub_path = Vec::new();
    let tree: OwnedFd = match sources.get(path) {
        Some(Source::PodShm) => {
            if options.own.clear != 0 || !options.tree.is_empty() {
                return Err(Error::invalid(
                    field,
                    "the pod's shared memory takes only options that restrict it",
                ));
            }
            return Ok(plan::Mount {
                target: source::bytes(destination.to_owned()),
                source: Some(plan::MountSource::PodShm(true)),
                attributes: options.own.all_set(),
                ..plan::Mount::default()
            });
        }
        Some(Source::Tree(_)) => match sources.remove(path) {
            Some(Source::Tree(tree)) => tree,
            _ => return Err(Error::invalid(field, "its source is used already")),
        },
        Some(Source::Part(..)) => match sources.remove(path) {
            Some(Source::Part(tree, part)) => {
                sub_path = source::bytes(part);
                tree
            }
            _ => return Err(Error::invalid(field, "its source is used already")),
        },
        Some(Source::Pinned(pinned)) => {
            check_proc(&field, destination, pinned)?;
            source::check_propagation(subject, pinned.as_fd(), propagation)?;
            source::clone(subject, pinned.as_fd(), reach)?
        }
        Some(Source::Mapped(_)) | None => {
            let pinned = source::pin(subject, surroundings.missing_source)?;
            check_proc(&field, destination, &pinned)?;
            source::check_propagation(subject, pinned.as_fd(), propagation)?;
            source::clone(subject, pinned.as_fd(), reach)?
        }
    };
    let is_mapped = mount.uid_mappings().as_ref().is_some_and(|list| !list.is_empty());
    if let Some(Source::Mapped(namespace)) = sources.get(path)
        && is_mapped
    {
        source::map_owners(subject, tree.as_fd(), namespace.as_fd())?;
    }
    let (attributes, recursive) = bind_attributes(subject, &tree, options)?;
    Ok(plan::Mount {
        target: source::bytes(destination.to_owned()),
        source: Some(plan::MountSource::Tree(slots.push(tree))),
        attributes,
        recursive,
        propagation,
        sub_path,
        ..plan::Mount::default()
    })
}

/// The plan has one set of attributes at one reach. What it cannot say is done here, on the detached tree that nobody else
/// sees: taking attributes away, access times (a field, not bits), and a recursive set beside another one.
fn bind_attributes(subject: Subject<'_>, tree: &OwnedFd, options: &Options) -> Result<(u64, bool), Error> {
    let (own, all) = (options.own, options.tree);
    let here = |attributes: options::Attributes| options::Attributes { set: 0, ..attributes };
    source::change(subject, tree.as_fd(), attr::Reach::Tree, &here(all))?;
    source::change(subject, tree.as_fd(), attr::Reach::Mount, &here(own))?;
    if own.set & !all.set == 0 && all.set != 0 {
        return Ok((all.set, true));
    }
    let set = options::Attributes { set: all.set, ..options::Attributes::default() };
    source::change(subject, tree.as_fd(), attr::Reach::Tree, &set)?;
    Ok((own.set, false))
}

fn new_filesystem(
    field: &str,
    destination: &Path,
    fstype: &str,
    options: &Options,
    surroundings: &Surroundings<'_>,
) -> Result<plan::Mount, Error> {
    refuse_tree_options(field, options)?;
    let optional = match fstype {
        "proc" | "sysfs" | "tmpfs" | "devpts" => false,
        // Not in every kernel.
        "mqueue" => true,
        "" => return Err(Error::invalid(field, "has neither a type nor the option bind")),
        other => return Err(Error::unsupported(field, format!("file system {other:?}"))),
    };
    if destination.starts_with("/proc") && !(fstype == "proc" && destination == Path::new("/proc")) {
        return Err(Error::invalid(field, "only proc may be mounted there"));
    }
    if options.copy_up && fstype != "tmpfs" {
        return Err(Error::invalid(field, "option tmpcopyup needs a tmpfs"));
    }
    let mut data = options.data.clone();
    // No mount label for proc and sysfs: SELinux knows their files itself.
    if let Some(label) = surroundings.label.filter(|_| matches!(fstype, "tmpfs" | "devpts")) {
        data.push(format!("context={label}"));
    }
    Ok(plan::Mount {
        target: source::bytes(destination.to_owned()),
        source: Some(plan::MountSource::New(plan::NewFilesystem {
            fstype: fstype.to_owned(),
            options: data,
        })),
        attributes: options.own.all_set(),
        propagation: options.propagation.unwrap_or(0),
        // An image whose /dev is a link would have devices and links made where it leads (CVE-2026-41579).
        no_symlinks: destination.starts_with("/dev"),
        optional,
        copy_up: options.copy_up,
        ..plan::Mount::default()
    })
}

/// A new file system has nothing below it.
fn refuse_tree_options(field: &str, options: &Options) -> Result<(), Error> {
    if options.tree.is_empty() {
        Ok(())
    } else {
        Err(Error::invalid(field, "recursive options (rro, rnosuid, ...) apply to bind mounts"))
    }
}

/// CVE-2019-16884, CVE-2019-19921: what stands at `/proc` has to be one.
fn check_proc(field: &str, destination: &Path, pinned: &OwnedFd) -> Result<(), Error> {
    /// Files that tools like lxcfs put over the kernel's own.
    const FILES: [&str; 10] = [
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "uptime",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
    ];
    let Ok(below) = destination.strip_prefix("/proc") else {
        return Ok(());
    };
    if below.as_os_str().is_empty() {
        if source::is_procfs_root(pinned.as_fd()) {
            return Ok(());
        }
        return Err(Error::invalid(field, "its source is not a proc file system"));
    }
    if FILES.iter().any(|file| below == Path::new(file)) {
        return Ok(());
    }
    Err(Error::invalid(field, "nothing may be mounted there"))
}

fn destination(mount: &Mount) -> Result<PathBuf, Error> {
    validate::container_path("mounts.destination", mount.destination())
}

/// Puts a mount in, or in the place of the one with its destination.
fn place(list: &mut Vec<Mount>, mut mount: Mount, path: PathBuf) {
    mount.set_destination(path);
    match list.iter_mut().find(|other| other.destination() == mount.destination()) {
        Some(other) => *other = mount,
        None => list.push(mount),
    }
}

#[cfg(test)]
mod tests;
