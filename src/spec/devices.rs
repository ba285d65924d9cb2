//! Device nodes: the default set, the host's, and lowering to the plan.
//!
//! A container's `/dev` is a tmpfs of its own in which init makes the nodes; what may be opened is decided by the device
//! rules of its control group, which start from deny-all (GHSA-g54h-m393-cpwq).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use pinnace_launcher::plan;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::lower::Slots;
use crate::{Error, validate};

/// Nodes for a container and the rules that let it open them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Devices {
    /// For `linux.devices`.
    pub nodes: Vec<LinuxDevice>,
    /// For `linux.resources.devices`.
    pub rules: Vec<LinuxDeviceCgroup>,
}

/// Path, major and minor number of the devices that every container has (OCI runtime spec, default devices).
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Link and target, likewise.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Below `/dev`: mounts and links of each container's own, and what belongs to the host's terminals and management.
const NOT_THE_HOSTS: [&str; 9] =
    ["pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".lxd-mounts", ".udev"];

const DEPTH: usize = 16;

/// A device of the host for a container: one node, a link to one, or every node of a directory tree.
///
/// `permissions` is a subset of `rwm`; empty means all three.
pub fn host_device(host_path: &Path, container_path: &Path, permissions: &str) -> Result<Devices, Error> {
    validate::host_path("device", host_path)?;
    let container_path = validate::container_path("device", container_path)?;
    let access = access(permissions)?;
    let failed = |errno| Error::Device { path: host_path.to_owned(), errno };
    let file = pin(CWD.as_fd(), host_path.as_os_str(), Links::Follow).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let mut nodes = Vec::new();
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        walk(&file, host_path, &container_path, &[], DEPTH, &mut nodes)?;
        if nodes.is_empty() {
            return Err(Error::invalid("device", format!("{} has no devices in it", host_path.display())));
        }
    } else {
        let device = node(&stat, container_path);
        nodes.push(
            device.ok_or_else(|| {
                Error::invalid("device", format!("{} is not a device", host_path.display()))
            })?,
        );
    }
    let rules = nodes.iter().map(|node| rule(node, &access)).collect();
    Ok(Devices { nodes, rules })
}

/// A device that is known by its number, whether or not the host has a node of it.
pub fn numbered(
    container_path: &Path,
    typ: LinuxDeviceType,
    major: i64,
    minor: i64,
    permissions: &str,
) -> Result<Devices, Error> {
    let access = access(permissions)?;
    let mut node = LinuxDevice::default();
    node.set_path(validate::container_path("device", container_path)?);
    node.set_typ(typ);
    node.set_major(major);
    node.set_minor(minor);
    node.set_file_mode(None);
    // A pipe is not a device to a control group.
    let rules = if typ == LinuxDeviceType::P { Vec::new() } else { vec![rule(&node, &access)] };
    Ok(Devices { nodes: vec![node], rules })
}

/// Every device node below the host's `/dev`, for a privileged container.
pub fn all_host_devices() -> Result<Vec<LinuxDevice>, Error> {
    let path = Path::new("/dev");
    let failed = |errno| Error::Device { path: path.to_owned(), errno };
    let directory = pin(CWD.as_fd(), path.as_os_str(), Links::Follow).map_err(failed)?;
    let mut nodes = Vec::new();
    walk(&directory, path, path, &NOT_THE_HOSTS, DEPTH, &mut nodes)?;
    Ok(nodes)
}

/// Gives every node a detached mount of the host's node of that path and number, for a machine (a guest, a container) that
/// may not make nodes itself (a user namespace may not either). Where the host has no such node, init's `mknod(2)` decides.
pub(crate) fn with_fallbacks(devices: &mut [plan::Device], slots: &mut Slots) -> Result<(), Error> {
    for device in devices {
        // A device can have another path in the container; udev keeps a link by number.
        let kind = match FileType::from_raw_mode(device.mode) {
            FileType::BlockDevice => "block",
            _ => "char",
        };
        let by_number = PathBuf::from(format!("/dev/{kind}/{}:{}", device.major, device.minor));
        for path in [PathBuf::from(OsStr::from_bytes(&device.path)), by_number] {
            let Ok(pinned) = pin(CWD.as_fd(), path.as_os_str(), Links::Follow) else {
                continue;
            };
            let failed = |errno| Error::Device { path: path.clone(), errno };
            let stat = rustix::fs::fstat(&pinned).map_err(failed)?;
            let same = FileType::from_raw_mode(stat.st_mode) == FileType::from_raw_mode(device.mode)
                && stat.st_rdev == rustix::fs::makedev(device.major, device.minor);
            if !same {
                continue;
            }
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            device.fallback = Some(slots.push(open_tree(&pinned, c"", flags).map_err(failed)?));
            break;
        }
    }
    Ok(())
}

/// Nodes and links of the plan: the default ones and those of the spec, which win.
pub(crate) fn lower(devices: &[LinuxDevice]) -> Result<(Vec<plan::Device>, Vec<plan::Link>), Error> {
    if devices.len() > validate::DEVICES {
        let text = format!("{} of them, {} at most", devices.len(), validate::DEVICES);
        return Err(Error::invalid("linux.devices", text));
    }
    let mut lowered: Vec<plan::Device> = DEFAULT
        .iter()
        .map(|(path, major, minor)| plan::Device {
            path: path.as_bytes().to_vec(),
            mode: FileType::CharacterDevice.as_raw_mode() | 0o666,
            major: *major,
            minor: *minor,
            ..plan::Device::default()
        })
        .collect();
    let mut links: Vec<plan::Link> = LINKS
        .iter()
        .map(|(path, target)| plan::Link {
            path: path.as_bytes().to_vec(),
            target: target.as_bytes().to_vec(),
        })
        .collect();
    let mut at: std::collections::HashMap<Vec<u8>, usize> =
        lowered.iter().enumerate().map(|(index, device)| (device.path.clone(), index)).collect();
    for (index, device) in devices.iter().enumerate() {
        let device = lower_one(&format!("linux.devices[{index}]"), device)?;
        links.retain(|link| link.path != device.path);
        match at.get(&device.path) {
            Some(known) => lowered[*known] = device,
            None => {
                at.insert(device.path.clone(), lowered.len());
                lowered.push(device);
            }
        }
    }
    Ok((lowered, links))
}

fn lower_one(field: &str, device: &LinuxDevice) -> Result<plan::Device, Error> {
    const MAJOR_LIMIT: u32 = 1 << 12;
    const MINOR_LIMIT: u32 = 1 << 20;
    let path = validate::container_path(field, device.path())?;
    if !path.starts_with("/dev") || path == Path::new("/dev") {
        return Err(Error::unsupported(field, format!("a device outside /dev ({})", path.display())));
    }
    let typ = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(Error::invalid(field, "type a is for device rules")),
    };
    let number = |name: &str, value: i64, limit: u32| {
        let value = u32::try_from(value).ok().filter(|value| *value < limit);
        value
            .ok_or_else(|| Error::invalid(field, format!("{name} number is not between 0 and {}", limit - 1)))
    };
    let (major, minor) = if typ == FileType::Fifo {
        (0, 0)
    } else {
        (number("major", device.major(), MAJOR_LIMIT)?, number("minor", device.minor(), MINOR_LIMIT)?)
    };
    // Go writes os.FileMode, whose type bits lie above; of the permissions, setuid and sticky mean nothing here.
    let permissions = device.file_mode().unwrap_or(0o666) & 0o777;
    Ok(plan::Device {
        path: path.as_os_str().as_bytes().to_vec(),
        mode: typ.as_raw_mode() | permissions,
        major,
        minor,
        uid: owner(field, device.uid())?,
        gid: owner(field, device.gid())?,
        fallback: None,
    })
}

fn owner(field: &str, id: Option<u32>) -> Result<u32, Error> {
    match id {
        // chown(2) takes it as "leave as it is".
        Some(u32::MAX) => Err(Error::invalid(field, "owner 4294967295 is not an id")),
        id => Ok(id.unwrap_or(0)),
    }
}

fn access(permissions: &str) -> Result<String, Error> {
    let set = |letter: char| permissions.matches(letter).count() == 1;
    match permissions {
        "" => Ok("rwm".to_owned()),
        _ if permissions.len() == "rwm".chars().filter(|letter| set(*letter)).count() => {
            Ok(permissions.to_owned())
        }
        _ => Err(Error::invalid("device", format!("permissions {permissions:?} are not made of r, w and m"))),
    }
}

fn rule(device: &LinuxDevice, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(device.typ()));
    rule.set_major(Some(device.major()));
    rule.set_minor(Some(device.minor()));
    rule.set_access(Some(access.to_owned()));
    rule
}

fn node(stat: &Stat, path: PathBuf) -> Option<LinuxDevice> {
    let typ = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => LinuxDeviceType::C,
        FileType::BlockDevice => LinuxDeviceType::B,
        _ => return None,
    };
    let mut device = LinuxDevice::default();
    device.set_path(path);
    device.set_typ(typ);
    device.set_major(i64::from(rustix::fs::major(stat.st_rdev)));
    device.set_minor(i64::from(rustix::fs::minor(stat.st_rdev)));
    device.set_file_mode(Some(stat.st_mode & 0o777));
    device.set_uid(Some(stat.st_uid));
    device.set_gid(Some(stat.st_gid));
    Some(device)
}

/// Nodes below a directory, links not followed, names in order.
fn walk(
    directory: &OwnedFd,
    host_path: &Path,
    container_path: &Path,
    except: &[&str],
    depth: usize,
    nodes: &mut Vec<LinuxDevice>,
) -> Result<(), Error> {
    let failed = |errno| Error::Device { path: host_path.to_owned(), errno };
    let readable = rustix::fs::openat(
        directory,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let mut names = Vec::new();
    for entry in Dir::new(readable).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") && !except.iter().any(|out| out.as_bytes() == name) {
            names.push(name);
        }
    }
    names.sort();
    for name in names {
        let name = OsStr::from_bytes(&name);
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Devices come and go.
            Err(Errno::NOENT) => continue,
            stat => stat.map_err(failed)?,
        };
        let (host, container) = (host_path.join(name), container_path.join(name));
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if depth == 0 {
                return Err(Error::invalid("device", format!("{} is too deep", host.display())));
            }
            let below = match pin(directory.as_fd(), name, Links::Refuse) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                below => below.map_err(|errno| Error::Device { path: host.clone(), errno })?,
            };
            walk(&below, &host, &container, &[], depth - 1, nodes)?;
        } else if let Some(device) = node(&stat, container) {
            if nodes.len() == validate::DEVICES {
                return Err(Error::invalid(
                    "device",
                    format!("more than {} below {}", validate::DEVICES, host_path.display()),
                ));
            }
            nodes.push(device);
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    Follow,
    Refuse,
}

/// Opens without side effect: some devices act when they are opened.
fn pin(directory: std::os::fd::BorrowedFd<'_>, path: &OsStr, links: Links) -> Result<OwnedFd, Errno> {
    let flags = match links {
        Links::Follow => OFlags::PATH | OFlags::CLOEXEC,
        Links::Refuse => OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY,
    };
    rustix::fs::openat(directory, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;

    use super::*;

    fn device(path: &str, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default().path(path).typ(typ).major(major).minor(minor).build().unwrap()
    }

    #[test]
    fn default_devices_are_this_kernels() {
        for (path, major, minor) in DEFAULT {
            let stat = rustix::fs::stat(path).unwrap();
            assert_eq!(
                (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
                (major, minor),
                "{path}"
            );
        }
        let (devices, links) = lower(&[]).unwrap();
        assert_eq!(devices.len(), 6);
        assert!(devices.iter().all(|device| device.mode == 0o20666));
        assert_eq!(links.len(), 5);
    }

    #[test]
    fn the_specs_devices_win() {
        let mut tty = device("/dev/../dev/tty", LinuxDeviceType::C, 5, 0);
        tty.set_file_mode(Some(0o100_620));
        tty.set_gid(Some(5));
        let fuse = device("/dev/fuse", LinuxDeviceType::U, 10, 229);
        let ptmx = device("/dev/ptmx", LinuxDeviceType::C, 5, 2);
        let pipe = device("/dev/p", LinuxDeviceType::P, -1, -1);
        let (devices, links) = lower(&[tty, fuse, ptmx, pipe]).unwrap();
        assert_eq!(devices.len(), 9);
        let tty = devices.iter().find(|device| device.path == b"/dev/tty").unwrap();
        assert_eq!((tty.mode, tty.gid), (0o20620, 5));
        assert_eq!(devices.last().map(|pipe| (pipe.mode, pipe.major)), Some((0o10666, 0)));
        assert!(links.iter().all(|link| link.path != b"/dev/ptmx"));
    }

    #[test]
    fn fallbacks_are_nodes_of_the_same_number() {
        let other = device("/dev/zero", LinuxDeviceType::C, 1, 3);
        let (mut devices, _) = lower(&[other]).unwrap();
        let mut slots = Slots::new();
        with_fallbacks(&mut devices, &mut slots).unwrap();
        let descriptors = slots.into_descriptors();
        assert_eq!(descriptors.len(), 5);
        for device in devices {
            match device.fallback {
                None => assert_eq!(device.path, b"/dev/zero"),
                Some(slot) => {
                    let stat = rustix::fs::fstat(&descriptors[usize::try_from(slot).unwrap()]).unwrap();
                    assert_eq!(stat.st_rdev, rustix::fs::makedev(device.major, device.minor));
                }
            }
        }
    }

    #[test]
    fn refused_devices() {
        let mut unowned = device("/dev/x", LinuxDeviceType::C, 1, 3);
        unowned.set_uid(Some(u32::MAX));
        for refused in [
            device("/etc/null", LinuxDeviceType::C, 1, 3),
            device("/dev", LinuxDeviceType::C, 1, 3),
            device("/dev/../etc/x", LinuxDeviceType::C, 1, 3),
            device("dev/x", LinuxDeviceType::C, 1, 3),
            device("/dev/x", LinuxDeviceType::A, 1, 3),
            device("/dev/x", LinuxDeviceType::C, -1, 3),
            device("/dev/x", LinuxDeviceType::C, 4096, 3),
            device("/dev/x", LinuxDeviceType::B, 1, 1 << 20),
            device("/dev/x", LinuxDeviceType::B, i64::MAX, i64::MIN),
            unowned,
        ] {
            assert!(lower(std::slice::from_ref(&refused)).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn host_devices_one_link_and_tree() {
        let null = host_device(Path::new("/dev/null"), Path::new("/dev/nothing"), "r").unwrap();
        assert_eq!(null.nodes[0].path(), Path::new("/dev/nothing"));
        assert_eq!((null.nodes[0].major(), null.nodes[0].minor()), (1, 3));
        assert_eq!(null.rules[0].access().as_deref(), Some("r"));
        assert!(null.rules[0].allow());

        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let zero = host_device(&link, Path::new("/dev/z"), "").unwrap();
        assert_eq!((zero.nodes[0].minor(), zero.rules[0].access().as_deref()), (5, Some("rwm")));

        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        let mode = Mode::from_raw_mode(0o640);
        let number = rustix::fs::makedev(1, 7);
        rustix::fs::mknodat(CWD, tree.join("sub/full"), FileType::CharacterDevice, mode, number).unwrap();
        std::fs::write(tree.join("file"), "").unwrap();
        std::os::unix::fs::symlink("/dev", tree.join("away")).unwrap();
        let found = host_device(&tree, Path::new("/dev/tree"), "rw").unwrap();
        assert_eq!(found.nodes.len(), 1);
        assert_eq!(found.nodes[0].path(), Path::new("/dev/tree/sub/full"));

        let missing = host_device(&directory.path().join("none"), Path::new("/dev/x"), "rwm").unwrap_err();
        assert_eq!(missing.code(), crate::Code::NotFound);
        assert!(host_device(&tree.join("file"), Path::new("/dev/x"), "rwm").is_err());
        for permissions in ["x", "rr", "rwmx", "rwmr"] {
            assert!(
                host_device(Path::new("/dev/null"), Path::new("/dev/x"), permissions).is_err(),
                "{permissions}"
            );
        }
    }

    #[test]
    fn all_of_the_hosts_devices() {
        let devices = all_host_devices().unwrap();
        assert!(devices.iter().any(|device| device.path() == Path::new("/dev/null")));
        for own in ["/dev/pts", "/dev/shm", "/dev/console", "/dev/ptmx"] {
            assert!(!devices.iter().any(|device| device.path().starts_with(own)), "{own}");
        }
        lower(&devices).unwrap();
    }
}
