//! Mounts, devices, masks, namespaces, working directory.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use crate::harness::*;
use pinnace_launcher::plan::{Device, Mount, MountSource, NewFilesystem, Sysctl};
use pinnace_launcher::protocol::{Request, Setup};

const RDONLY: u64 = 1;

fn volume(planned: &mut Planned, path: &std::path::Path, target: &str) -> usize {
    let slot = planned.slot(tree(path));
    planned.plan.mounts.push(Mount {
        target: target.into(),
        source: Some(MountSource::Tree(slot)),
        ..Mount::default()
    });
    planned.plan.mounts.len() - 1
}

#[test]
fn the_container_sees_its_root_and_nothing_of_the_host() {
    let mut pod = Pod::new();
    let (output, exited) = pod.run("c1", "ls -a /; cat /proc/self/mountinfo; readlink /proc/1/root; echo $$");
    assert_eq!(exited.code, 0);
    assert!(output.starts_with(".\n..\nbin\ndev\netc\nproc\nsys\ntmp\n"), "{output}");
    let mounts: Vec<&str> = output.lines().filter(|line| line.contains(" - ")).collect();
    let targets: Vec<&str> = mounts.iter().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(targets, ["/", "/proc", "/dev", "/dev/pts"]);
    assert!(mounts.iter().all(|line| !line.contains("shared:") && !line.contains("master:")), "{mounts:?}");
    assert!(output.ends_with("/\n1\n"), "{output}");
}

#[test]
fn every_namespace_is_another_one() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let kinds = ["mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind};")).concat();
    let mut planned = Planned::shell(&image, &script);
    planned.plan.namespaces.as_mut().unwrap().create = NEWNET | NEWCGROUP;
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    for (kind, inside) in kinds.iter().zip(output.lines()) {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside, host.to_str().unwrap(), "{kind}");
    }
    // Without asking for them, the pod's: ipc and uts shared by its containers, the rest the host's or its own.
    let of = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let [one, two] =
        ["c2", "c3"].map(|id| pod.launch(id, &Planned::new(&image, &["sleep", "600"])).unwrap().pid);
    let same = kinds.map(|kind| of(one, kind) == of(two, kind));
    assert_eq!(same, [false, false, true, true, true, true]);

    let mut planned = Planned::shell(&image, "readlink /proc/self/ns/pid");
    planned.plan.namespaces.as_mut().unwrap().host_pid = true;
    let (output, _) = pod.run_planned("c4", planned).unwrap();
    assert_eq!(output.trim(), fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap());
}

#[test]
fn containers_can_share_pid_namespaces() {
    let mut pod = Pod::with(|setup| setup.share_pid = true);
    let image = pod.image.path().to_owned();
    let mut planned = Planned::new(&image, &["sleep", "600"]);
    planned.plan.namespaces.as_mut().unwrap().pod_pid = true;
    pod.launch("c1", &planned).unwrap();
    let mut planned =
        Planned::shell(&image, "cat /proc/1/comm; ps | grep -c 'sleep 60[0]'; cat /proc/1/status");
    planned.plan.namespaces.as_mut().unwrap().pod_pid = true;
    let (output, _) = pod.run_planned("c2", planned).unwrap();
    assert!(output.starts_with("pinnace-init\n1\n"), "{output}");
    assert!(output.contains("CapBnd:") && output.contains("CapEff:\t0000000000000000\n"), "{output}");

    // TARGET: beside a container with a PID namespace of its own.
    pod.launch("c3", &Planned::new(&image, &["sleep", "601"])).unwrap();
    let mut planned = Planned::shell(&image, "cat /proc/1/cmdline | tr '\\0' ' '");
    planned.plan.namespaces.as_mut().unwrap().target_container = "c3".to_owned();
    let (output, _) = pod.run_planned("c4", planned).unwrap();
    assert_eq!(output.trim(), "sleep 601");
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.namespaces.as_mut().unwrap().target_container = "c4".to_owned();
    assert_eq!(pod.launch("c5", &planned).unwrap_err().stage, "state");

    // Orphans go to PID 1 and are reaped there.
    let mut planned = Planned::shell(&image, "sh -c 'sleep 0.1 &'; sleep 0.5; ps | grep -c '[Z] '");
    planned.plan.namespaces.as_mut().unwrap().pod_pid = true;
    let (output, _) = pod.run_planned("c6", planned).unwrap();
    assert_eq!(output.trim(), "0");
}

#[test]
fn a_container_s_children_die_with_it_and_the_pod_stays() {
    let mut pod = Pod::new();
    let (_, exited) = pod.run("c1", "sleep 600 & exit 0");
    assert_eq!(exited.code, 0);
    assert_eq!(pod.run("c2", "hostname").0, "pod\n");
}

#[test]
fn the_root_can_be_read_only_and_volumes_are_not() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let data = tempfile::tempdir().unwrap();
    let mut planned = Planned::shell(
        &image,
        "touch /x; touch /data/deep/y && touch /locked/z; touch /dev/w && echo fine; pwd",
    );
    planned.plan.rootfs_read_only = true;
    planned.process().cwd = b"/made/for/me".to_vec();
    volume(&mut planned, data.path(), "/data/deep");
    let locked = volume(&mut planned, data.path(), "/locked");
    planned.plan.mounts[locked].attributes = RDONLY;
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    assert_eq!(
        output,
        "touch: /x: Read-only file system\ntouch: /locked/z: Read-only file system\nfine\n/made/for/me\n"
    );
    assert!(data.path().join("y").exists());
}

#[test]
fn masked_and_read_only_paths_are_what_they_say() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    fs::create_dir(image.join("secrets")).unwrap();
    fs::write(image.join("secrets/key"), "key").unwrap();
    fs::write(image.join("etc/one"), "1").unwrap();
    fs::write(image.join("etc/two"), "2").unwrap();
    let script = "exec 2>&1; wc -c </etc/one; wc -c </etc/two; ls /secrets | wc -l; wc -c </proc/version
        ls /proc/irq | wc -l; echo x >/etc/one && echo swallowed; touch /secrets/y; touch /proc/irq/x
        echo x >/proc/sys/kernel/domainname; cat /proc/sys/kernel/ostype; stat -c %t:%T /etc/one /etc/two";
    let mut planned = Planned::shell(&image, script);
    let paths = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect::<Vec<_>>();
    planned.plan.masked_paths = paths(&[
        "/etc/one",
        "/proc/version",
        "/secrets",
        "/etc/two",
        "/no/such",
        "/etc/one/below",
        "/proc/irq",
    ]);
    planned.plan.read_only_paths = paths(&["/proc/sys", "/proc/nosuch", "/etc"]);
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    assert_eq!(
        output.lines().map(|line| line.trim_start_matches("sh: ")).collect::<Vec<_>>(),
        [
            "0",
            "0",
            "0",
            "0",
            "0",
            "swallowed",
            "touch: /secrets/y: Read-only file system",
            "touch: /proc/irq/x: Read-only file system",
            "can't create /proc/sys/kernel/domainname: Read-only file system",
            "Linux",
            "1:3",
            "1:3",
        ]
    );
}

#[test]
fn devices_and_links_are_as_planned() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::shell(
        &image,
        "echo lost >/dev/null; head -c 3 /dev/zero | wc -c; readlink /dev/ptmx; stat -c '%a %u %g %t %T' /dev/net/tun /dev/null
        test -p /dev/fifo && echo fifo",
    );
    planned.plan.devices.push(Device {
        path: b"/dev/net/tun".to_vec(),
        mode: 0o020_620,
        major: 10,
        minor: 200,
        uid: 7,
        gid: 8,
        fallback: None,
    });
    planned.plan.devices.push(Device { path: b"/dev/fifo".to_vec(), mode: 0o010_600, ..Device::default() });
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    assert_eq!(output, "3\npts/ptmx\n620 7 8 a c8\n666 0 0 1 3\nfifo\n");

    // Something else is in its place, or it is no node.
    for (path, mode) in
        [("/bin/sh", 0o020_666), ("/dev/file", 0o100_666), ("/dev", 0o020_666), ("/", 0o020_666)]
    {
        let mut planned = Planned::new(&image, &["true"]);
        planned.plan.devices =
            vec![Device { path: path.into(), mode, major: 1, minor: 3, ..Device::default() }];
        assert_eq!(pod.launch("c2", &planned).unwrap_err().stage, "device", "{path}");
    }
}

#[test]
fn shm_belongs_to_the_pod() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let shm = || Mount {
        target: b"/dev/shm".to_vec(),
        source: Some(MountSource::PodShm(true)),
        ..Mount::default()
    };
    let run = |pod: &mut Pod, id: &str, script: &str| {
        let mut planned = Planned::shell(&image, script);
        planned.plan.mounts.push(shm());
        pod.run_planned(id, planned).unwrap().0
    };
    run(&mut pod, "c1", "echo shared >/dev/shm/x");
    let script = "cat /dev/shm/x; stat -c %a /dev/shm; dd if=/dev/zero of=/dev/shm/big bs=1024 count=2048 2>&1 | grep -c space
        grep /dev/shm /proc/mounts";
    let output = run(&mut pod, "c2", script);
    assert!(output.starts_with("shared\n1777\n1\nshm /dev/shm tmpfs rw,nosuid,nodev,noexec,"), "{output}");
    assert!(output.contains("size=1024k"), "{output}");

    let mut pod = Pod::with(|setup| setup.ipc = false);
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.mounts.push(shm());
    let failure = pod.launch("c1", &planned).unwrap_err();
    assert!(failure.to_string().contains("no shm"), "{failure}");
}

#[test]
fn sysctls_reach_the_pod_s_namespaces_and_no_others() {
    let host = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let sysctl = |key: &str, value: &str| Sysctl { key: key.to_owned(), value: value.to_owned() };
    let mut pod = Pod::with(|setup| setup.sysctls = vec![sysctl("kernel.shmmni", "123")]);
    let image = pod.image.path().to_owned();
    assert_eq!(pod.run("c1", "cat /proc/sys/kernel/shmmni").0, "123\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), host);

    let mut planned = Planned::shell(&image, "cat /proc/sys/net/ipv4/ip_default_ttl");
    planned.plan.namespaces.as_mut().unwrap().create = NEWNET;
    planned.plan.sysctls = vec![sysctl("net.ipv4.ip_default_ttl", "77")];
    assert_eq!(pod.run_planned("c2", planned).unwrap().0, "77\n");

    // The pod has the host's network: not ours to change.
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.sysctls = vec![sysctl("net.ipv4.ip_default_ttl", "77")];
    assert_eq!(pod.launch("c3", &planned).unwrap_err().stage, "sysctl");
    for key in ["kernel.core_pattern", "net.ipv4.ip_default_ttl", "vm.overcommit_memory"] {
        let mut pod = Pod::unset();
        let setup = Setup {
            ipc: true,
            hostname: "pod".to_owned(),
            sysctls: vec![sysctl(key, "1")],
            ..Setup::default()
        };
        let run = open_directory(pod.run.path());
        assert_eq!(pod.call(Request::Setup(setup), &[run.as_fd()]).unwrap_err().stage, "sysctl", "{key}");
    }
}

#[test]
fn new_file_systems_take_options_and_explain_bad_ones() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    fs::create_dir_all(image.join("cache/sub")).unwrap();
    fs::write(image.join("cache/file"), "from the image").unwrap();
    symlink("file", image.join("cache/link")).unwrap();
    fs::set_permissions(image.join("cache/sub"), std::os::unix::fs::PermissionsExt::from_mode(0o2750))
        .unwrap();
    let tmpfs = |options: &[&str]| Mount {
        target: b"/cache".to_vec(),
        source: Some(MountSource::New(NewFilesystem {
            fstype: "tmpfs".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        })),
        attributes: NOSUID | NODEV,
        copy_up: true,
        ..Mount::default()
    };
    let mut planned = Planned::shell(
        &image,
        "cat /cache/link; stat -c %a /cache/sub; echo new >/cache/file; grep cache /proc/mounts",
    );
    planned.plan.mounts.push(tmpfs(&["size=64k", "mode=700"]));
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    assert!(output.starts_with("from the image2750\ntmpfs /cache tmpfs rw,nosuid,nodev,"), "{output}");
    assert_eq!(fs::read_to_string(image.join("cache/file")).unwrap(), "from the image");

    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.mounts.push(tmpfs(&["size=lots"]));
    let failure = pod.launch("c2", &planned).unwrap_err();
    assert!(failure.to_string().contains("size"), "{failure}");
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.mounts.push(Mount {
        source: Some(MountSource::New(NewFilesystem { fstype: "nosuchfs".to_owned(), options: vec![] })),
        ..tmpfs(&[])
    });
    assert_eq!(pod.launch("c2", &planned).unwrap_err().syscall, "fsopen");
    planned.plan.mounts.last_mut().unwrap().optional = true;
    planned.fds[0] = tree(&image);
    pod.launch("c2", &planned).unwrap();
}

#[test]
fn files_are_mounted_on_files_and_dangling_links() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "nameserver 10.0.0.1\n").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", image.join("etc/resolv.conf")).unwrap();
    let mut planned = Planned::shell(&image, "cat /etc/resolv.conf /etc/hosts");
    volume(&mut planned, file.path(), "/etc/resolv.conf");
    volume(&mut planned, file.path(), "/etc/hosts");
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    assert_eq!(output, "nameserver 10.0.0.1\n".repeat(2));

    // A file on a directory is an error that says so.
    let mut planned = Planned::new(&image, &["true"]);
    volume(&mut planned, file.path(), "/etc");
    let failure = pod.launch("c2", &planned).unwrap_err();
    assert_eq!((failure.stage.as_str(), failure.path.as_slice()), ("mount", &b"/etc"[..]));
}

#[test]
fn mounts_propagate_only_when_asked() {
    // A shared mount of our own, in a mount namespace of a thread that ends.
    std::thread::spawn(|| {
        use nix::sched::{CloneFlags, unshare};
        use rustix::mount::*;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let host = tempfile::tempdir().unwrap();
        mount("volume", host.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(host.path(), MountPropagationFlags::SHARED).unwrap();
        for name in ["a", "b"] {
            fs::create_dir(host.path().join(name)).unwrap();
        }
        let mut pod = Pod::new();
        let image = pod.image.path().to_owned();
        let script =
            "while ! grep -q ' /v/a ' /proc/mounts; do sleep 0.01; done; mount -t tmpfs x /v/b; sleep 600";
        for (id, propagation, expected) in [("slave", 1u64 << 19, false), ("shared", 0, true)] {
            let mut planned = Planned::shell(&image, script);
            let at = volume(&mut planned, host.path(), "/v");
            planned.plan.mounts[at].propagation = propagation;
            planned.process().capabilities = Some(pinnace_launcher::plan::Capabilities {
                bounding: u64::MAX,
                effective: u64::MAX,
                permitted: u64::MAX,
                ..Default::default()
            });
            let pid = pod.launch(id, &planned).unwrap().pid;
            mount("late", host.path().join("a"), "tmpfs", MountFlags::empty(), None).unwrap();
            let inside = || fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
            eventually("both mounts are seen inside", || {
                inside().contains(" /v/a ") && inside().contains(" /v/b ")
            });
            let ours = fs::read_to_string("/proc/thread-self/mounts").unwrap();
            let b = host.path().join("b");
            assert_eq!(ours.contains(&format!(" {} ", b.display())), expected, "{id}");
            pod.kill(id, 9).unwrap();
            pod.exit(id);
            for name in ["a", "b"] {
                let _ = unmount(host.path().join(name), UnmountFlags::DETACH);
            }
        }
        unmount(host.path(), UnmountFlags::DETACH).unwrap();
    })
    .join()
    .unwrap();
}
