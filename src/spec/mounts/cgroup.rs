//! `/sys/fs/cgroup` inside a container.
//!
//! Version 2 is one mount. Version 1 is a tmpfs with a directory for each hierarchy and a link for each controller that
//! shares one:
//! ```text
//! /sys/fs/cgroup            tmpfs
//! ├── cpu,cpuacct           cgroup -o cpu,cpuacct
//! ├── cpu -> cpu,cpuacct
//! ├── cpuacct -> cpu,cpuacct
//! └── systemd               cgroup -o name=systemd
//! ```
//! Seen from a cgroup namespace each is rooted at the container's own group; from the host's namespace it is the host's tree.

use std::path::Path;

use pinnace_launcher::plan;
use pinnace_sys::mount as attr;

use super::options::Options;
use super::{Output, source};
use crate::Error;
use crate::facts::{CgroupLayout, Hierarchy};

/// Lowers a mount of type `cgroup`, which means whatever the host has.
pub(crate) fn lower(
    destination: &Path,
    options: &Options,
    layout: &CgroupLayout,
    host_namespace: bool,
    output: &mut Output,
) -> Result<(), Error> {
    match layout {
        CgroupLayout::Unified { options: hosts } => {
            let hosts = if host_namespace { hosts.as_slice() } else { &[] };
            output.mounts.push(filesystem(destination, "cgroup2", hosts, options.own.all_set()));
            Ok(())
        }
        CgroupLayout::Legacy { hierarchies } => {
            legacy(destination, hierarchies, options.own.all_set(), output);
            Ok(())
        }
        CgroupLayout::Absent => Err(Error::unmet(
            format!("mount {}", destination.display()),
            "this machine has no control groups mounted at /sys/fs/cgroup",
        )),
    }
}

/// A mount of type `cgroup2`.
pub(crate) fn unified(
    destination: &Path,
    options: &Options,
    layout: &CgroupLayout,
    host_namespace: bool,
) -> plan::Mount {
    let hosts = match layout {
        CgroupLayout::Unified { options } if host_namespace => options.as_slice(),
        _ => &[],
    };
    let mut mount = filesystem(destination, "cgroup2", hosts, options.own.all_set());
    if let Some(plan::MountSource::New(new)) = &mut mount.source {
        new.options.extend(options.data.iter().cloned());
    }
    mount
}

fn legacy(destination: &Path, hierarchies: &[Hierarchy], attributes: u64, output: &mut Output) {
    // The directories and links have to be made before it can become read-only, which is what `read_only_paths` is for.
    let base = attributes & !attr::RDONLY;
    output.mounts.push(filesystem(destination, "tmpfs", &["mode=755".to_owned()], base));
    for hierarchy in hierarchies {
        let target = destination.join(&hierarchy.directory);
        output.mounts.push(filesystem(&target, "cgroup", &hierarchy.options, attributes));
        for controller in &hierarchy.options {
            if hierarchy.options.len() > 1 && *controller != hierarchy.directory && !controller.contains('=')
            {
                output.links.push(plan::Link {
                    path: source::bytes(destination.join(controller)),
                    target: hierarchy.directory.clone().into_bytes(),
                });
            }
        }
    }
    if attributes & attr::RDONLY != 0 {
        output.read_only_paths.push(source::bytes(destination.to_owned()));
    }
}

fn filesystem(destination: &Path, fstype: &str, options: &[String], attributes: u64) -> plan::Mount {
    let new = plan::NewFilesystem { fstype: fstype.to_owned(), options: options.to_vec() };
    plan::Mount {
        target: source::bytes(destination.to_owned()),
        source: Some(plan::MountSource::New(new)),
        attributes,
        no_symlinks: true,
        ..plan::Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &[&str]) -> Options {
        let list: Vec<String> = list.iter().map(|option| (*option).to_owned()).collect();
        Options::parse("f", &list).unwrap()
    }

    fn types(output: &Output) -> Vec<(String, String, Vec<String>, u64)> {
        let one = |mount: &plan::Mount| match &mount.source {
            Some(plan::MountSource::New(new)) => (
                String::from_utf8(mount.target.clone()).unwrap(),
                new.fstype.clone(),
                new.options.clone(),
                mount.attributes,
            ),
            other => panic!("{other:?}"),
        };
        output.mounts.iter().map(one).collect()
    }

    #[test]
    fn version_1() {
        let hierarchy = |directory: &str, options: &[&str]| Hierarchy {
            directory: directory.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let layout = CgroupLayout::Legacy {
            hierarchies: vec![
                hierarchy("cpu,cpuacct", &["cpu", "cpuacct"]),
                hierarchy("memory", &["memory"]),
                hierarchy("systemd", &["name=systemd"]),
            ],
        };
        let mut output = Output::default();
        let options = parsed(&["ro", "nosuid", "noexec", "nodev", "relatime"]);
        lower(Path::new("/sys/fs/cgroup"), &options, &layout, false, &mut output).unwrap();
        let all = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let row = |target: &str, fstype: &str, options: &[&str], attributes| {
            (
                target.to_owned(),
                fstype.to_owned(),
                options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>(),
                attributes,
            )
        };
        assert_eq!(
            types(&output),
            [
                row("/sys/fs/cgroup", "tmpfs", &["mode=755"], all & !attr::RDONLY),
                row("/sys/fs/cgroup/cpu,cpuacct", "cgroup", &["cpu", "cpuacct"], all),
                row("/sys/fs/cgroup/memory", "cgroup", &["memory"], all),
                row("/sys/fs/cgroup/systemd", "cgroup", &["name=systemd"], all),
            ]
        );
        let links: Vec<&[u8]> = output.links.iter().map(|link| link.path.as_slice()).collect();
        assert_eq!(links, [&b"/sys/fs/cgroup/cpu"[..], b"/sys/fs/cgroup/cpuacct"]);
        assert!(output.links.iter().all(|link| link.target == b"cpu,cpuacct"));
        assert_eq!(output.read_only_paths, [b"/sys/fs/cgroup".to_vec()]);
        let mut output = Output::default();
        lower(Path::new("/sys/fs/cgroup"), &parsed(&["rw"]), &layout, true, &mut output).unwrap();
        assert!(output.read_only_paths.is_empty());
    }

    #[test]
    fn version_2_repeats_the_hosts_options_only_in_the_hosts_namespace() {
        let layout =
            CgroupLayout::Unified { options: vec!["nsdelegate".into(), "memory_recursiveprot".into()] };
        for (host, expected) in [(true, &["nsdelegate", "memory_recursiveprot"][..]), (false, &[])] {
            let mut output = Output::default();
            lower(Path::new("/sys/fs/cgroup"), &parsed(&["ro"]), &layout, host, &mut output).unwrap();
            let rows = types(&output);
            assert_eq!((rows.len(), rows[0].1.as_str(), rows[0].3), (1, "cgroup2", attr::RDONLY));
            assert_eq!(rows[0].2, expected);
            let mount = unified(Path::new("/sys/fs/cgroup"), &parsed(&["ro"]), &layout, host);
            assert_eq!(output.mounts, [mount]);
        }
        let absent =
            lower(Path::new("/c"), &parsed(&[]), &CgroupLayout::Absent, false, &mut Output::default());
        assert_eq!(absent.unwrap_err().code(), crate::Code::FailedPrecondition);
    }
}
