//! Images whose files lie in wait for the runtime.

use std::fs;

use pinnace_conformance::cri::ContainerConfigParts as _;
use pinnace_conformance::images::Layer;
use pinnace_conformance::node::Node;
use serde_json::json;

use crate::ground::{Canary, SECRET, attempt, image};

/// Directories of the image are links to the host: whatever is mounted, made or written there stays inside.
#[tokio::test]
async fn links_in_place_of_directories_lead_nowhere() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let pod = node.run_pod("links", |_| {}).await;
    let volume = node.world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    for (number, (name, target)) in [
        ("proc", canary.at("")),
        ("proc", "vol".into()),
        ("sys", canary.at("")),
        ("sys", canary.climbing()),
        ("tmp", canary.at("/dir")),
        ("dev", canary.at("")),
        ("dev", canary.climbing()),
        ("dev", "hop".into()),
        ("dev/pts", canary.at("/dir")),
        ("dev/shm", canary.at("/dir")),
        ("dev/mqueue", canary.at("/dir")),
        ("dev/fd", canary.at("/dir")),
        ("dev/ptmx", canary.at("/dir/ptmx")),
        ("etc", canary.at("")),
        ("etc", canary.climbing()),
        ("run", canary.at("/dir")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut layer = Layer::new();
        if !name.contains('/') {
            layer = layer.whiteout(name);
        }
        let layer = layer.symlink(name, &target).symlink("hop", &canary.at("")).directory("vol", 0o755);
        let id = image(&node, &format!("links-{number}"), layer, json!({ "User": "0:0" })).await;
        let script =
            "cat /file /dir/ptmx /tmp/ptmx /etc/file /dev/file 2>/dev/null; ls /dev /etc >/dev/null 2>&1
                      touch /tmp/touched /etc/touched /run/touched 2>/dev/null; echo ended";
        let outcome = attempt(&node, &pod, &format!("c{number}"), &id, script, |config| {
            config.mount(&volume, "/tmp/deep/volume");
            config.mount(&volume, "/run/volume");
        })
        .await;
        assert!(!outcome.text().contains(SECRET), "/{name} -> {target}: {outcome:?}");
        if matches!(name, "proc" | "sys") {
            assert!(outcome.is_refused(), "/{name} -> {target}: {outcome:?}");
        }
        canary.assert_untouched(&node);
    }
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
}

/// Files that the runtime puts into a container, and those that it reads, as links to the host, pipes and devices.
#[tokio::test]
async fn files_that_the_runtime_writes_are_never_followed_out() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let pod = node.run_pod("written", |_| {}).await;
    let places = ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "run/.containerenv"];
    let all = |entry: &dyn Fn(Layer, &str) -> Layer| {
        places.iter().fold(Layer::new(), |layer, place| entry(layer, place))
    };
    for (form, layer) in [
        ("absolute", all(&|layer, place| layer.symlink(place, &canary.at("/file")))),
        ("climbing", all(&|layer, place| layer.symlink(place, &format!("{}/file", canary.climbing())))),
        ("dangling", all(&|layer, place| layer.symlink(place, &canary.at("/new")))),
        ("magic", all(&|layer, place| layer.symlink(place, &format!("/proc/1/root{}", canary.at("/file"))))),
        ("pipe", all(&|layer, place| layer.fifo(place, 0o666))),
        ("device", all(&|layer, place| layer.device(place, 0o666, b'c', 1, 2))),
    ] {
        let id = image(&node, &format!("written-{form}"), layer, json!({})).await;
        let outcome = attempt(&node, &pod, form, &id, "timeout 1 cat /etc/hosts", |_| {}).await;
        assert!(!outcome.text().contains(SECRET), "{form}: {outcome:?}");
        canary.assert_untouched(&node);
    }
}

/// The account files of the image are read by the daemon itself.
#[tokio::test]
async fn account_files_cannot_hang_or_fill_the_daemon() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let pod = node.run_pod("accounts", |_| {}).await;
    let line = format!("root:x:0:0:{}:/:/bin/sh\n", "x".repeat(12 << 20));
    for (number, (place, layer)) in [
        ("etc/passwd", Layer::new().fifo("etc/passwd", 0o666)),
        ("etc/passwd", Layer::new().symlink("etc/passwd", &canary.at("/fifo"))),
        ("etc/passwd", Layer::new().symlink("etc/passwd", "/dev/zero")),
        ("etc/group", Layer::new().symlink("etc/group", "/proc/kmsg")),
        ("etc/group", Layer::new().fifo("etc/group", 0o666)),
        ("etc/passwd", Layer::new().device("etc/passwd", 0o666, b'c', 1, 5)),
        ("etc/group", Layer::new().device("etc/group", 0o666, b'c', 1, 5)),
        ("etc/passwd", Layer::new().file("etc/passwd", 0o644, &line)),
        ("etc/group", Layer::new().file("etc/group", 0o644, &line)),
    ]
    .into_iter()
    .enumerate()
    {
        let id = image(&node, &format!("accounts-{number}"), layer, json!({ "User": "worker" })).await;
        let before = std::time::Instant::now();
        let outcome = attempt(&node, &pod, &format!("c{number}"), &id, "id", |_| {}).await;
        assert!(before.elapsed().as_secs() < 5, "{place}: {number} took {:?}", before.elapsed());
        // Without the file there is no such user; a group file that cannot be read may count as none.
        assert!(outcome.is_refused() || place == "etc/group", "{number}: {outcome:?}");
    }
    canary.assert_untouched(&node);
}

/// The image's volumes are directories of the image, whatever they are called.
#[tokio::test]
async fn volumes_of_an_image_show_nothing_of_the_host() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let pod = node.run_pod("volumes", |_| {}).await;
    let climbing = format!("/../../../../../../..{}", canary.at(""));
    for (number, volume) in [
        "/link",
        "/climb",
        "/proc",
        "/proc/self/attr",
        "/sys/fs/cgroup",
        "/",
        "/../../etc",
        &climbing,
        "/magic/x",
    ]
    .into_iter()
    .enumerate()
    {
        let layer = Layer::new()
            .symlink("link", &canary.at(""))
            .symlink("climb", &canary.climbing())
            .symlink("magic", "/proc/self/root");
        let config = json!({ "Volumes": { volume: {} } });
        let id = image(&node, &format!("volumes-{number}"), layer, config).await;
        let script = "cat /link/file /climb/file \"$V/file\" 2>/dev/null; touch /link/x /climb/x \"$V/x\" 2>/dev/null
                      cat /proc/self/attr/current 2>/dev/null; grep -q ' /proc proc ' /proc/self/mounts && echo real";
        let outcome =
            attempt(&node, &pod, &format!("c{number}"), &id, script, |config| config.env("V", volume)).await;
        assert!(!outcome.text().contains(SECRET), "{volume}: {outcome:?}");
        // What lies over /proc would take the writes of labels and sysctls (CVE-2019-16884).
        assert!(outcome.is_refused() || outcome.text().contains("real"), "{volume}: {outcome:?}");
        canary.assert_untouched(&node);
    }
}

/// The program behind /proc/self/exe on the way into the container is the runtime's own.
#[tokio::test]
async fn the_runtime_s_program_cannot_be_reached_from_inside() {
    let Some(node) = Node::start() else { return };
    let program = fs::read_link(format!("/proc/{}/exe", node.daemon.process().pid)).unwrap();
    let before = fs::read(&program).unwrap();
    let pod = node.run_pod("self", |_| {}).await;
    let overwrite = "#!/bin/sh\nfor p in /proc/[0-9]*; do (echo bad >$p/exe) 2>/dev/null && echo WRITTEN $p; done; true\n";
    let layer = Layer::new()
        .file("script", 0o755, "#!/proc/self/exe\n")
        .symlink("link", "/proc/self/exe")
        .file("overwrite", 0o755, overwrite);
    let id = image(&node, "self", layer, json!({})).await;
    for (number, entry) in ["/script", "/link", "/proc/self/exe"].into_iter().enumerate() {
        let outcome = attempt(&node, &pod, &format!("c{number}"), &id, "", |config| {
            config.command = vec![entry.into()];
        })
        .await;
        if let crate::ground::Outcome::Ran(ended) = &outcome {
            assert_ne!(ended.status.exit_code, 0, "{entry}: {outcome:?}");
        }
    }
    let config =
        node.container(&pod.config, "watch", &id, &["/bin/sh", "-c", "while :; do /overwrite; done"]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    for _ in 0..20 {
        for entry in ["/bin/true", "/script", "/proc/self/exe"] {
            let _ = node.cri.exec(&running.container, &[entry], 10).await;
        }
    }
    // The container's own shell is busy, and a file of the container: its own loss only.
    node.cri.stop(&running.container, 0).await.unwrap();
    assert!(fs::read(&program).unwrap() == before, "{} was changed", program.display());
    node.cri.sh(&node.run_script("after", "sleep 100").await.container, "true").await;
}

/// Programs of the image with the names of those that runtimes run as helpers.
#[tokio::test]
async fn programs_of_an_image_are_never_run_for_the_host() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let marker = format!("#!/bin/busybox sh\n/bin/busybox touch {}/ran-$0 /ran\n", canary.at(""));
    let mut layer = Layer::new();
    for directory in ["usr/bin", "usr/sbin", "sbin", "usr/local/bin", "usr/local/sbin"] {
        if !matches!(directory, "usr/bin") {
            layer = layer.directory(directory, 0o755);
        }
        for name in [
            "nft",
            "iptables",
            "ip",
            "mount",
            "umount",
            "newuidmap",
            "newgidmap",
            "passt",
            "unpigz",
            "zstd",
            "xz",
            "nsenter",
            "apparmor_parser",
            "bridge",
            "host-local",
            "loopback",
            "pinnace",
            "pinnace-monitor",
            "systemctl",
        ] {
            layer = layer.file(&format!("{directory}/{name}"), 0o755, &marker);
        }
    }
    layer = layer.file("usr/lib/libnss_files.so.2", 0o755, "no library");
    let config = json!({ "User": "worker", "Volumes": { "/data": {} }, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] });
    let id = image(&node, "helpers", layer, config).await;
    let pod = node.run_pod("helpers", |_| {}).await;
    let config = node.container(&pod.config, "main", &id, &["/bin/busybox", "sleep", "600"]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let said = node.cri.exec(&running.container, &["/bin/busybox", "ls", "/"], 10).await.unwrap();
    assert!(!String::from_utf8_lossy(&said.stdout).contains("ran"), "a program of the image was run");
    node.remove(&pod.id).await;
    canary.assert_untouched(&node);
}

/// The working directory by way of a descriptor that the runtime has open.
#[tokio::test]
async fn working_directories_by_descriptor_are_refused() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let pod = node.run_pod("cwd", |_| {}).await;
    let script = "ls; ls ..; cat file ../../file; ls -l /proc/self/fd; pwd";
    for number in (3..24).chain([40, 63]) {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/1/fd/{number}")] {
            let plain = node.image("busybox").await;
            let outcome = attempt(&node, &pod, &format!("c{number}"), &plain, script, |config| {
                config.working_dir.clone_from(&path);
            })
            .await;
            assert!(outcome.is_refused(), "{path}: {outcome:?}");
        }
    }
    for number in [3, 5, 6, 7, 8, 9, 11] {
        let target = format!("/proc/self/fd/{number}");
        let layer = Layer::new().symlink("w", &target);
        for (kind, directory) in [("direct", &*target), ("link", "/w")] {
            let config = json!({ "WorkingDir": directory });
            let id = image(&node, &format!("cwd-{number}-{kind}"), layer.clone(), config).await;
            let outcome = attempt(&node, &pod, &format!("{kind}-{number}"), &id, script, |_| {}).await;
            assert!(outcome.is_refused(), "{target} {kind}: {outcome:?}");
        }
    }
    canary.assert_untouched(&node);
}
