//! CRI logs.

use std::fs;

use crate::harness::*;
use pinnace_launcher::protocol::{ContainerRef, Request};

#[test]
fn records_have_the_format_that_the_kubelet_parses() {
    let mut pod = Pod::new();
    pod.run("c1", "echo out; echo err >&2; printf tail");
    let log = pod.log("c1");
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_by_key(|line| line.split(' ').nth(1));
    let fields: Vec<Vec<&str>> = lines.iter().map(|line| line.splitn(4, ' ').collect()).collect();
    assert_eq!(fields[0][1..], ["stderr", "F", "err"]);
    assert_eq!(fields[1][1..], ["stdout", "F", "out"]);
    assert_eq!(fields[2][1..], ["stdout", "P", "tail"]);
    for field in &fields {
        let time = field[0];
        assert_eq!(time.len(), "2026-01-01T00:00:00.000000000Z".len());
        assert!(time.starts_with("20") && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
}

#[test]
fn everything_that_the_program_wrote_is_there() {
    let mut pod = Pod::new();
    // The last bytes are written right before the end, and a grandchild keeps the pipe open.
    let (output, _) = pod.run("c1", "seq 1 20000; echo end");
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).chain(["end\n".to_owned()]).collect();
    assert_eq!(output, expected);

    let mut pod = Pod::with(|setup| setup.share_pid = true);
    let image = pod.image.path().to_owned();
    let mut planned = Planned::shell(&image, "sleep 30 & seq 1 2000; echo end");
    planned.plan.namespaces.as_mut().unwrap().pod_pid = true;
    let before = std::time::Instant::now();
    let (output, exited) = pod.run_planned("c1", planned).unwrap();
    assert!(output.ends_with("2000\nend\n"), "{output}");
    assert_eq!(exited.code, 0);
    assert!(before.elapsed() < std::time::Duration::from_secs(10), "waited for a grandchild");
}

#[test]
fn long_lines_are_split() {
    let mut pod = Pod::new();
    pod.run("c1", "head -c 40000 /dev/zero | tr '\\0' x; echo");
    let log = pod.log("c1");
    let parts: Vec<(&str, usize)> = log
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(4, ' ').collect();
            (fields[2], fields[3].len())
        })
        .collect();
    assert_eq!(parts, [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384)]);
}

#[test]
fn reopening_loses_no_line() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned =
        Planned::shell(&image, "i=0; while ! test -e /tmp/stop; do echo line$i; i=$((i+1)); done");
    pod.log_to("c1", &mut planned);
    pod.launch("c1", &planned).unwrap();
    let reopen = || Request::ReopenLog(ContainerRef { container_id: "c1".to_owned() });
    for round in 0..5 {
        eventually("the log grows", || fs::metadata(pod.log_path("c1")).is_ok_and(|it| it.len() > 1000));
        fs::rename(pod.log_path("c1"), pod.logs.path().join(format!("old{round}"))).unwrap();
        pod.call(reopen(), &[]).unwrap();
        assert!(pod.log_path("c1").exists(), "answered before the new file is in use");
    }
    fs::write(image.join("tmp/stop"), "").unwrap();
    pod.exit("c1");
    let mut content = String::new();
    for name in (0..5).map(|round| format!("old{round}")).chain(["c1.log".to_owned()]) {
        content.push_str(&fs::read_to_string(pod.logs.path().join(name)).unwrap());
    }
    for (n, line) in content.lines().enumerate() {
        assert_eq!(line.split(' ').nth(3), Some(format!("line{n}").as_str()));
    }
    assert_eq!(pod.call(reopen(), &[]).unwrap_err().stage, "state");
}

#[test]
fn a_full_disk_stops_neither_container_nor_monitor() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    // A log directory with room for one page.
    let disk = small_disk();
    let mut planned =
        Planned::shell(&image, "i=0; while [ $i -lt 3000 ]; do echo line$i; i=$((i+1)); done; exit 4");
    let slot = planned.slot(disk);
    planned.stdio().log_directory = Some(slot);
    planned.stdio().log_path = b"c1.log".to_vec();
    pod.launch("c1", &planned).unwrap();
    assert_eq!(pod.exit("c1").code, 4);
    assert!(pod.hello().containers[0].log_dropped_bytes > 0);
    let mut text = vec![0; 65536];
    let flags = rustix::fs::OFlags::RDONLY;
    let file = rustix::fs::openat(&planned.fds[slot as usize], "c1.log", flags, 0.into()).unwrap();
    let length = rustix::io::read(&file, &mut text).unwrap();
    assert!(length > 1000 && text.starts_with(b"20"));
}

fn small_disk() -> std::os::fd::OwnedFd {
    use rustix::mount::*;
    use std::os::fd::AsFd;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(context.as_fd(), "size", "4k").unwrap();
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

#[test]
fn the_log_is_a_regular_file_below_its_directory() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let canary = Canary::new();
    std::os::unix::fs::symlink(canary.path().join("file"), pod.logs.path().join("link")).unwrap();
    std::os::unix::fs::symlink(canary.path(), pod.logs.path().join("directory")).unwrap();
    rustix::fs::mkfifoat(open_directory(pod.logs.path()), "fifo", 0o600.into()).unwrap();
    for path in ["link", "directory/new", "fifo", "../up", "/abs", ""] {
        let mut planned = Planned::new(&image, &["true"]);
        pod.log_to("c1", &mut planned);
        planned.stdio().log_path = path.as_bytes().to_vec();
        assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "log", "{path}");
    }
    canary.assert_untouched();
}
