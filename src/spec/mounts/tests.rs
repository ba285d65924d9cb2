use std::fs;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::*;
use crate::Code;

fn surroundings(facts: &Facts) -> Surroundings<'_> {
    Surroundings { facts, missing_source: MissingSource::Refuse, host_cgroup_namespace: false, label: None }
}

fn lowered(list: &[Mount]) -> Result<(Output, Vec<OwnedFd>), Error> {
    lowered_with(list, HashMap::new(), MissingSource::Refuse)
}

fn lowered_with(
    list: &[Mount],
    mut sources: HashMap<PathBuf, Source>,
    missing_source: MissingSource,
) -> Result<(Output, Vec<OwnedFd>), Error> {
    let facts = Facts::detect().unwrap();
    let mut slots = Slots::new();
    let around = Surroundings { missing_source, ..surroundings(&facts) };
    let output = lower(list, &mut sources, &around, &mut slots)?;
    Ok((output, slots.into_descriptors()))
}

/// Runs in a thread of its own that leaves the mount namespace of all others and takes no part in their mount events. Its
/// directory is removed when the thread, and with it every mount there, is gone.
fn in_private_mounts(run: impl FnOnce(&Path) + Send) {
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS)
                .unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            run(directory.path());
        });
        thread.join().unwrap();
    });
    let path = directory.path().to_owned();
    directory.close().unwrap();
    assert!(!path.exists());
}

fn mount_tmpfs(at: &Path) {
    rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>)
        .unwrap();
}

fn statvfs_flags(tree: &OwnedFd, path: &str) -> rustix::fs::StatVfsMountFlags {
    let at = openat(tree, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    rustix::fs::fstatvfs(&at).unwrap().f_flag
}

#[test]
fn merge_replaces_and_sorts() {
    let defaults = vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &[]),
        mount("/dev/pts", "devpts", "devpts", &[]),
        mount("/dev/shm", "tmpfs", "shm", &[]),
        mount("/sys", "sysfs", "sysfs", &[]),
    ];
    let destinations = |mounts: &[Mount]| -> Vec<String> {
        mounts.iter().map(|mount| mount.destination().display().to_string()).collect()
    };
    let merged = merge(
        defaults.clone(),
        vec![
            bind("/data/sub/", "/b", &["rbind"]),
            bind("/data", "/a", &["rbind"]),
            bind("//dev//shm", "/s", &["rbind"]),
            bind("/data", "/c", &["rbind"]),
        ],
    )
    .unwrap();
    assert_eq!(
        destinations(&merged),
        ["/proc", "/dev", "/sys", "/data", "/dev/pts", "/dev/shm", "/data/sub"]
    );
    assert_eq!(merged[3].source().as_deref(), Some(Path::new("/c")));
    assert_eq!(merged[5].source().as_deref(), Some(Path::new("/s")));
    let merged = merge(defaults, vec![bind("/dev", "/dev", &["rbind"])]).unwrap();
    assert_eq!(destinations(&merged), ["/proc", "/dev", "/sys"]);
    assert!(merge(vec![], vec![bind("relative", "/x", &[])]).is_err());
}

#[test]
fn a_missing_source_is_named() {
    let error = lowered(&[bind("/data", "/nonexistent/x", &["rbind"])]).unwrap_err();
    assert_eq!(error.to_string(), "mount /data: source /nonexistent/x");
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "No such file or directory (os error 2)"
    );
    assert_eq!(error.code(), Code::NotFound);
}

#[test]
fn a_missing_source_is_made_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/../c");
    let list = [bind("/data", &path, &["rbind"])];
    assert!(lowered(&list).is_err());
    assert!(!directory.path().join("a").exists());
    let (_, descriptors) = lowered_with(&list, HashMap::new(), MissingSource::CreateDirectory).unwrap();
    assert_eq!(descriptors.len(), 1);
    for made in ["a", "a/b", "a/c"] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs::metadata(directory.path().join(made)).unwrap().permissions().mode(),
            0o40755,
            "{made}"
        );
    }
    std::os::unix::fs::symlink("/nonexistent/y", directory.path().join("dangling")).unwrap();
    let list = [bind("/data", directory.path().join("dangling"), &["rbind"])];
    assert!(lowered_with(&list, HashMap::new(), MissingSource::CreateDirectory).is_err());
    fs::write(directory.path().join("file"), "").unwrap();
    let list = [bind("/data", directory.path().join("file/x"), &["rbind"])];
    assert!(lowered_with(&list, HashMap::new(), MissingSource::CreateDirectory).is_err());
}

#[test]
fn a_source_is_what_it_was_when_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("volume");
    fs::write(&path, "original").unwrap();
    std::os::unix::fs::symlink("volume", directory.path().join("link")).unwrap();
    let (output, descriptors) =
        lowered(&[bind("/data", directory.path().join("link"), &["bind", "ro"])]).unwrap();
    // CVE-2017-1002101: swapped between preparation and mount.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    let mount = &output.mounts[0];
    assert_eq!(mount.source, Some(plan::MountSource::Tree(0)));
    assert_eq!((mount.attributes, mount.recursive, mount.propagation), (attr::RDONLY, false, attr::PRIVATE));
    let stat = rustix::fs::fstat(&descriptors[0]).unwrap();
    assert_eq!(stat.st_size, 8);
}

#[test]
fn magic_links_are_no_sources() {
    let list = [bind("/data", "/proc/self/root", &["rbind"])];
    assert_eq!(lowered(&list).unwrap_err().code(), Code::InvalidArgument);
    let own = fs::File::open("/etc/passwd").unwrap();
    let path = crate::lower::proc_path(own.as_fd());
    assert_eq!(lowered(&[bind("/data", path, &["bind"])]).unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn recursion_and_attributes_on_the_real_kernel() {
    in_private_mounts(|directory| {
        let volume = directory.join("volume");
        fs::create_dir(&volume).unwrap();
        mount_tmpfs(&volume);
        fs::create_dir(volume.join("sub")).unwrap();
        mount_tmpfs(&volume.join("sub"));
        fs::write(volume.join("sub/file"), "").unwrap();
        use rustix::fs::StatVfsMountFlags as Flags;

        let one = |options: &[&str]| {
            let (mut output, mut descriptors) = lowered(&[bind("/data", &volume, options)]).unwrap();
            (output.mounts.remove(0), descriptors.remove(0))
        };
        let exists = |tree: &OwnedFd| openat(tree, "sub/file", OFlags::PATH, Mode::empty()).is_ok();
        let (_, tree) = one(&["bind"]);
        assert!(!exists(&tree));
        let (_, tree) = one(&["rbind"]);
        assert!(exists(&tree));

        // One set at one reach is init's to apply.
        let (mount, tree) = one(&["rbind", "rro"]);
        assert_eq!((mount.attributes, mount.recursive), (attr::RDONLY, true));
        assert!(!statvfs_flags(&tree, "sub").contains(Flags::RDONLY));
        // Two are split: the recursive one is applied here.
        let (mount, tree) = one(&["rbind", "rro", "noexec"]);
        assert_eq!((mount.attributes, mount.recursive), (attr::NOEXEC, false));
        assert!(statvfs_flags(&tree, "sub").contains(Flags::RDONLY));
        assert!(statvfs_flags(&tree, ".").contains(Flags::RDONLY));
        // What the plan cannot take away is taken away here, without touching the host's mount.
        let (restricted, tree) = one(&["rbind", "noatime"]);
        assert_eq!(restricted.attributes, 0);
        assert!(statvfs_flags(&tree, ".").contains(Flags::NOATIME));
        assert!(!statvfs_flags(&tree, "sub").contains(Flags::NOATIME));
        let host = fs::File::open(&volume).unwrap();
        assert!(!rustix::fs::fstatvfs(&host).unwrap().f_flag.intersects(Flags::NOATIME | Flags::RDONLY));
    });
}

#[test]
fn exec_is_given_back_only_when_named_and_read_only_stays() {
    in_private_mounts(|directory| {
        use rustix::fs::StatVfsMountFlags as Flags;
        use rustix::mount::{MountFlags, mount, mount_remount};
        let flags = MountFlags::NOEXEC | MountFlags::NOSUID;
        mount("tmpfs", directory, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
        mount_remount(directory, MountFlags::BIND | MountFlags::RDONLY | flags, c"").unwrap();
        for (options, noexec) in [(&["rbind", "rw"][..], true), (&["rbind", "exec"], false)] {
            let (_, descriptors) = lowered(&[bind("/data", directory, options)]).unwrap();
            let found = statvfs_flags(&descriptors[0], ".");
            assert_eq!(found.contains(Flags::NOEXEC), noexec, "{options:?}");
            assert!(found.contains(Flags::RDONLY | Flags::NOSUID), "{options:?}");
        }
    });
}

#[test]
fn propagation_needs_a_source_that_takes_part() {
    in_private_mounts(|directory| {
        mount_tmpfs(directory);
        let with = |option: &str| lowered(&[bind("/data", directory, &["rbind", option])]);
        for (kind, slave, shared) in
            [(MountPropagationFlags::PRIVATE, false, false), (MountPropagationFlags::SHARED, true, true)]
        {
            mount_change(directory, kind).unwrap();
            assert_eq!(with("rslave").is_ok(), slave, "{kind:?}");
            assert_eq!(with("rshared").is_ok(), shared, "{kind:?}");
            assert!(with("rprivate").is_ok());
        }
        let (output, _) = with("rshared").unwrap();
        assert_eq!(output.mounts[0].propagation, attr::SHARED);
        mount_change(directory, MountPropagationFlags::PRIVATE).unwrap();
        let error = with("rshared").unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        let at = directory.display();
        assert_eq!(
            error.to_string(),
            format!("mount /data: source {at} is mounted at {at}, which is not a shared mount")
        );
    });
}

#[test]
fn special_sources() {
    let directory = tempfile::tempdir().unwrap();
    let open = || rustix::fs::open(directory.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let subject = Subject { destination: Path::new("/t"), source: Path::new("/t") };
    let tree = source::clone(subject, open().as_fd(), Bind::Mount).unwrap();
    let sources = || {
        HashMap::from([
            (PathBuf::from("/pod/shm"), Source::PodShm),
            (PathBuf::from("/pinned"), Source::Pinned(open())),
        ])
    };
    let mut with_tree = sources();
    with_tree.insert("/tree".into(), Source::Tree(tree));
    let list = [
        bind("/dev/shm", "/pod/shm", &["rbind", "nosuid", "nodev", "noexec", "ro", "rprivate"]),
        bind("/p1", "/pinned", &["rbind"]),
        bind("/p2", "/pinned", &["rbind"]),
        bind("/t", "/tree", &["rbind", "ro"]),
    ];
    let (output, descriptors) = lowered_with(&list, with_tree, MissingSource::Refuse).unwrap();
    let found: Vec<_> = output.mounts.iter().map(|mount| mount.source.clone().unwrap()).collect();
    use plan::MountSource::{PodShm, Tree};
    assert_eq!(found, [PodShm(true), Tree(0), Tree(1), Tree(2)]);
    assert_eq!(output.mounts[0].attributes, attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::RDONLY);
    assert_eq!(descriptors.len(), 3);
    // A tree serves one mount: its name means nothing on the host afterwards.
    let tree = source::clone(subject, open().as_fd(), Bind::Mount).unwrap();
    let sources = HashMap::from([(PathBuf::from("/no/such/tree"), Source::Tree(tree))]);
    let twice = [bind("/a", "/no/such/tree", &["rbind"]), bind("/b", "/no/such/tree", &["rbind"])];
    assert_eq!(lowered_with(&twice, sources, MissingSource::Refuse).unwrap_err().code(), Code::NotFound);
}

#[test]
fn kernel_file_systems() {
    let (output, descriptors) = lowered(&crate::defaults::mounts()[..6]).unwrap();
    assert!(descriptors.is_empty());
    assert_eq!(output.dev, Dev::Own);
    let by_target =
        |target: &str| output.mounts.iter().find(|mount| mount.target == target.as_bytes()).unwrap();
    for target in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
        assert!(by_target(target).no_symlinks, "{target}");
        assert_eq!(by_target(target).optional, target == "/dev/mqueue", "{target}");
    }
    let Some(plan::MountSource::New(devpts)) = &by_target("/dev/pts").source else { panic!() };
    assert_eq!(devpts.options, ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]);
    assert_eq!(by_target("/dev").attributes, attr::NOSUID | 0x20);
    assert_eq!(by_target("/sys").attributes & attr::RDONLY, attr::RDONLY);
}

#[test]
fn labels_go_to_file_systems_that_take_them() {
    let facts = Facts::detect().unwrap();
    let around =
        Surroundings { label: Some("system_u:object_r:container_file_t:s0:c1,c2"), ..surroundings(&facts) };
    let list = &crate::defaults::mounts()[..6];
    let output = lower(list, &mut HashMap::new(), &around, &mut Slots::new()).unwrap();
    for mount in output.mounts {
        let Some(plan::MountSource::New(new)) = mount.source else { panic!() };
        let labelled = new.options.iter().any(|option| option.starts_with("context=system_u"));
        assert_eq!(labelled, matches!(new.fstype.as_str(), "tmpfs" | "devpts"), "{}", new.fstype);
    }
}

#[test]
fn a_bound_dev_is_the_hosts() {
    let (output, _) = lowered(&[bind("/dev", "/dev", &["rbind"])]).unwrap();
    assert_eq!(output.dev, Dev::Bound);
    assert_eq!(lowered(&[]).unwrap().0.dev, Dev::Image);
}

#[test]
fn proc_is_a_proc() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let file = directory.path().join("file");
    for taken in [
        bind("/proc", "/proc", &["rbind"]),
        mount("/proc", "proc", "proc", &[]),
        bind("/proc/cpuinfo", &file, &["bind"]),
        bind("/proc/sys/kernel/ns_last_pid", &file, &["bind"]),
    ] {
        let (output, _) = lowered(std::slice::from_ref(&taken)).unwrap();
        // It asks for a directory at the target, which a file's is not.
        assert_eq!(output.mounts[0].no_symlinks, taken.destination() == Path::new("/proc"), "{taken:?}");
    }
    for refused in [
        bind("/proc", directory.path(), &["rbind"]),
        bind("/proc", "/proc/self", &["rbind"]),
        bind("/proc", "/proc/sys", &["rbind"]),
        mount("/proc", "tmpfs", "tmpfs", &[]),
        bind("/proc/self/attr", directory.path(), &["rbind"]),
        bind("/proc/../proc/sys/kernel", directory.path(), &["rbind"]),
        bind("/proc/cpuinfo/x", &file, &["bind"]),
        mount("/proc/scsi", "tmpfs", "tmpfs", &[]),
        mount("/proc/x", "proc", "proc", &[]),
    ] {
        let error = lowered(std::slice::from_ref(&refused)).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{refused:?}: {error}");
    }
}

#[test]
fn refused_mounts() {
    let mut mapped = bind("/x", "/tmp", &["rbind"]);
    mapped.set_uid_mappings(Some(vec![oci_spec::runtime::LinuxIdMapping::default()]));
    let mut nowhere = bind("/x", "/tmp", &["rbind"]);
    nowhere.set_source(None);
    for (refused, code) in [
        (bind("/", "/tmp", &["rbind"]), Code::InvalidArgument),
        (bind("/x/..", "/tmp", &["rbind"]), Code::InvalidArgument),
        (bind("", "/tmp", &["rbind"]), Code::InvalidArgument),
        (bind("/x\0y", "/tmp", &["rbind"]), Code::InvalidArgument),
        (bind("/x", "tmp", &["rbind"]), Code::InvalidArgument),
        (bind("/x", "/tmp\0", &["rbind"]), Code::InvalidArgument),
        (nowhere, Code::InvalidArgument),
        (bind("/x", "/tmp", &["rbind", "size=4m"]), Code::InvalidArgument),
        (bind("/x", "/tmp", &["rbind", "tmpcopyup"]), Code::InvalidArgument),
        (bind("/x", "/tmp", &["rbind", "idmap"]), Code::FailedPrecondition),
        (mapped, Code::FailedPrecondition),
        (mount("/x", "", "", &[]), Code::InvalidArgument),
        (mount("/x", "ext4", "/dev/sda", &[]), Code::FailedPrecondition),
        (mount("/x", "overlay", "overlay", &["lowerdir=/"]), Code::FailedPrecondition),
        (mount("/x", "tmpfs", "tmpfs", &["rro"]), Code::InvalidArgument),
        (mount("/x", "mqueue", "mqueue", &["tmpcopyup"]), Code::InvalidArgument),
    ] {
        let error = lowered(std::slice::from_ref(&refused)).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), code, "{refused:?}: {error}");
    }
    let many = vec![mount("/x", "tmpfs", "tmpfs", &[]); validate::MOUNTS + 1];
    assert!(lowered(&many).is_err());
}
