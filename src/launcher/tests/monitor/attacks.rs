//! Hostile images, volumes and siblings: every test is an advisory of a sibling project, or a class of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::harness::*;
use pinnace_launcher::plan::{Capabilities, Mount, MountSource};

/// A sibling that exchanges two names of a shared volume all the time.
struct Racer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    fn swapping(volume: &Path, one: &'static str, other: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (volume, stopped) = (open_directory(volume), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&volume, one, &volume, other, flags).unwrap();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn replace_with_link(image: &Path, name: &str, target: &str) {
    let path = image.join(name);
    if path.is_dir() {
        fs::remove_dir_all(&path).unwrap();
    }
    symlink(target, path).unwrap();
}

/// CVE-2019-18837, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867
#[test]
fn proc_and_sys_through_links_are_refused() {
    let mut pod = Pod::new();
    let canary = Canary::new();
    let absolute = canary.path().to_str().unwrap().to_owned();
    for name in ["proc", "sys"] {
        for target in ["/tmp", "tmp", "../../../../tmp", "/vol/x", &absolute] {
            let image = image();
            replace_with_link(image.path(), name, target);
            let mut planned = Planned::new(image.path(), &["true"]);
            let mut sys = planned.plan.mounts[0].clone();
            sys.target = b"/sys".to_vec();
            if let Some(MountSource::New(new)) = &mut sys.source {
                new.fstype = "sysfs".to_owned();
            }
            planned.plan.mounts.push(sys);
            let failure = pod.launch("c1", &planned).unwrap_err();
            assert_eq!(failure.stage, "mount", "/{name} -> {target}");
            assert!(failure.to_string().contains("symbolic link"), "{failure}");
        }
        // Not a directory at all.
        let image = image();
        fs::remove_dir(image.path().join(name)).unwrap();
        fs::write(image.path().join(name), "").unwrap();
        let mut planned = Planned::new(image.path(), &["true"]);
        planned.plan.mounts[0].target = format!("/{name}").into_bytes();
        assert_eq!(pod.launch("c1", &planned).unwrap_err().errno, 20);
    }
    canary.assert_untouched();
}

/// CVE-2026-41579, CVE-2026-47766 and its successors: links at every depth of /dev.
#[test]
fn dev_links_lead_nowhere_on_the_host() {
    let mut pod = Pod::new();
    let canary = Canary::new();
    fs::write(canary.path().join("sub").join("ptmx"), "").unwrap();
    let host = canary.path().to_str().unwrap().to_owned();
    let chain = [("a", "b"), ("b", "c")];
    for (name, target) in [
        ("dev", host.clone()),
        ("dev", format!("../../../../..{host}")),
        ("dev", "a".to_owned()),
        ("dev/pts", format!("{host}/sub")),
        ("dev/shm", host.clone()),
        ("dev/mqueue", host.clone()),
        ("dev/fd", host.clone()),
        ("dev/null", format!("{host}/file")),
        ("dev/ptmx", format!("{host}/sub/ptmx")),
    ] {
        let image = image();
        replace_with_link(image.path(), name, &target);
        for (name, target) in chain {
            symlink(target, image.path().join(name)).unwrap();
        }
        symlink(&host, image.path().join("c")).unwrap();
        let mut planned = Planned::shell(image.path(), "ls /dev >/dev/null; echo ran");
        planned.plan.mounts.push(Mount {
            target: b"/dev/shm".to_vec(),
            source: Some(MountSource::PodShm(true)),
            ..Mount::default()
        });
        // It runs with the link read inside the root, or it is refused; the host does not notice.
        let id = "c1";
        match pod.run_planned(id, planned) {
            Ok((output, _)) => {
                assert_eq!(output, "ran\n", "{name} -> {target}");
                pod.forget(id).unwrap();
                fs::remove_file(pod.log_path(id)).unwrap();
            }
            Err(failure) => {
                assert!(["mount", "device", "link"].contains(&failure.stage.as_str()), "{failure}")
            }
        }
        assert!(canary.path().join("sub/ptmx").exists());
        assert_eq!(fs::read_dir(canary.path().join("sub")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(canary.path()).unwrap().count(), 3);
    }
    fs::remove_file(canary.path().join("sub/ptmx")).unwrap();
    canary.assert_untouched();
}

/// CVE-2021-30465, CVE-2024-45310: a sibling swaps directories of a shared volume for links during the launch.
#[test]
fn mount_targets_in_a_racing_volume_stay_inside() {
    let mut pod = Pod::new();
    let canary = Canary::new();
    let shared = tempfile::tempdir().unwrap();
    fs::create_dir(shared.path().join("dir")).unwrap();
    symlink(format!("../../../../../..{}", canary.path().display()), shared.path().join("link")).unwrap();
    let payload = tempfile::tempdir().unwrap();
    {
        let _racer = Racer::swapping(shared.path(), "dir", "link");
        for round in 0..100 {
            let mut planned = Planned::shell(pod.image.path(), "grep -c volume /proc/self/mountinfo");
            let slot = planned.slot(tree(shared.path()));
            let mut mounts = vec![Mount {
                target: b"/volume".to_vec(),
                source: Some(MountSource::Tree(slot)),
                ..Mount::default()
            }];
            for n in 0..5 {
                let slot = planned.slot(tree(payload.path()));
                mounts.push(Mount {
                    target: format!("/volume/dir/made{round}-{n}/deep").into_bytes(),
                    source: Some(MountSource::Tree(slot)),
                    ..Mount::default()
                });
            }
            planned.plan.mounts.extend(mounts);
            if let Ok(_launched) = pod.launch(&format!("c{round}"), &planned) {
                pod.exit(&format!("c{round}"));
            }
        }
    }
    canary.assert_untouched();
    assert_eq!(fs::read_dir(payload.path()).unwrap().count(), 0);
}

/// CVE-2024-21626: a working directory by way of a leaked descriptor.
#[test]
fn the_working_directory_cannot_leave_the_root() {
    let mut pod = Pod::new();
    for number in 0..64 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/1/fd/{number}"), "/w".to_owned()] {
            let link = pod.image.path().join("w");
            let _ = fs::remove_file(&link);
            symlink(format!("/proc/self/fd/{number}"), &link).unwrap();
            let mut planned = Planned::new(pod.image.path(), &["true"]);
            planned.process().cwd = path.clone().into_bytes();
            let failure = pod.launch("c1", &planned).unwrap_err();
            assert_eq!(failure.stage, "cwd", "{path}: {failure}");
        }
    }
    let image = pod.image.path().to_owned();
    pod.launch("c1", &Planned::new(&image, &["sleep", "600"])).unwrap();
    for number in 0..16 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/1/fd/{number}/.."), "/w".to_owned()] {
            let mut session = process(&["pwd"]);
            session.cwd = path.clone().into_bytes();
            assert_eq!(pod.exec("c1", session).unwrap_err().stage, "cwd", "{path}");
        }
    }
    let mut session = process(&["pwd"]);
    session.cwd = b"/tmp/../../../..".to_vec();
    assert_eq!(pod.exec("c1", session).unwrap().0, "/\n");
    let mut session = process(&["pwd"]);
    session.cwd = b"relative".to_vec();
    assert_eq!(pod.exec("c1", session).unwrap_err().stage, "cwd");
}

/// CVE-2019-5736: the program behind /proc/self/exe of a child on its way into the container.
#[test]
fn the_monitor_s_program_cannot_be_overwritten() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    fs::write(image.join("script"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(image.join("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let before = fs::read(env!("CARGO_BIN_EXE_pinnace-monitor")).unwrap();
    // The monitor runs once more, inside and without a socket: it can only fail.
    let planned = Planned::new(&image, &["/script"]);
    if pod.launch("c1", &planned).is_ok() {
        assert_ne!(pod.exit("c1").code, 0);
    }
    let exe = format!("/proc/{}/exe", pod.child.id());
    let flags = rustix::fs::OFlags::WRONLY;
    assert!(rustix::fs::open(&exe, flags, rustix::fs::Mode::empty()).is_err());
    let read = rustix::fs::open(&exe, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    assert!(rustix::fs::fcntl_get_seals(&read).unwrap().contains(rustix::fs::SealFlags::WRITE));
    assert_eq!(fs::read(env!("CARGO_BIN_EXE_pinnace-monitor")).unwrap(), before);
}

/// CVE-2016-9962: an exec session's child is in the PID namespace before it executes; nobody inside may look at it.
#[test]
fn sessions_cannot_be_watched_on_their_way_in() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    // A process is called so until it has executed `true`. Whoever can see a descriptor beyond the three of that sees
    // one of the monitor's.
    let script = "while ! test -e /tmp/stop; do
            for p in /proc/[0-9]*; do
                if grep -q pinnace $p/comm 2>/dev/null; then
                    echo seen; ls -l $p/fd/ 2>/dev/null | grep -E ' ([3-9]|[1-9][0-9]+) ->' && echo LEAK
                fi
            done
        done";
    let mut planned = Planned::shell(&image, script);
    pod.log_to("c1", &mut planned);
    pod.launch("c1", &planned).unwrap();
    for _ in 0..300 {
        pod.exec("c1", process(&["true"])).unwrap();
    }
    fs::write(image.join("tmp/stop"), "").unwrap();
    pod.exit("c1");
    let content = pod.content("c1");
    assert!(content.contains("seen"), "none was ever caught on its way");
    assert!(!content.contains("LEAK"), "{content}");
}

/// CVE-2025-31133, CVE-2025-52565: a container whose /dev is a directory that a sibling changes all the time.
#[test]
fn masks_do_not_use_what_the_container_calls_null() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let dev = tempfile::tempdir().unwrap();
    let canary = Canary::new();
    symlink("/proc/sys/kernel/core_pattern", dev.path().join("trap")).unwrap();
    symlink(canary.path().join("file"), dev.path().join("null")).unwrap();
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    {
        let _racer = Racer::swapping(dev.path(), "trap", "null");
        for round in 0..50 {
            let id = format!("c{round}");
            let mut planned =
                Planned::shell(&image, "wc -c </proc/version; stat -c %t:%T /proc/version /proc/uptime");
            let slot = planned.slot(tree(dev.path()));
            planned.plan.mounts.truncate(1);
            planned.plan.mounts.push(Mount {
                target: b"/dev".to_vec(),
                source: Some(MountSource::Tree(slot)),
                ..Mount::default()
            });
            planned.plan.devices.clear();
            planned.plan.links.clear();
            planned.plan.masked_paths = vec![b"/proc/version".to_vec(), b"/proc/uptime".to_vec()];
            let (output, _) = pod.run_planned(&id, planned).unwrap();
            assert_eq!(output, "0\n1:3\n1:3\n");
        }
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
    canary.assert_untouched();
}

/// A terminal only from a real devpts: an image or a volume cannot offer a file of its own instead.
#[test]
fn terminals_come_from_devpts_only() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    fs::create_dir(image.join("dev/pts")).unwrap();
    fs::write(image.join("dev/pts/ptmx"), "").unwrap();
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.mounts.truncate(1);
    planned.plan.devices.clear();
    planned.plan.links.clear();
    planned.process().terminal = true;
    assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "terminal");
}

/// With all capabilities, too, there is no way back to what was before the pivot.
#[test]
fn a_privileged_container_finds_no_old_root() {
    let mut pod = Pod::new();
    let canary = Canary::new();
    let script = format!(
        "umount -l /dev/pts; umount -l /dev; umount -l /proc; umount -l /; cd /; cd ..; cd ..; ls {0} 2>&1; ls -a / | tr '\\n' ' '",
        canary.path().display()
    );
    let mut planned = Planned::shell(pod.image.path(), &script);
    planned.process().capabilities = Some(Capabilities {
        bounding: u64::MAX,
        effective: u64::MAX,
        permitted: u64::MAX,
        ..Capabilities::default()
    });
    let (output, _) = pod.run_planned("c1", planned).unwrap();
    assert!(output.contains("No such file"), "{output}");
    canary.assert_untouched();
}
