//! Volumes and what surrounds them.

use std::fs;
use std::os::unix::fs::symlink;

use pinnace_conformance::cri::ContainerConfigParts as _;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

#[tokio::test]
async fn files_and_directories_of_the_host_are_there() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.image("busybox").await;
    let volume = node.world.dir().join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    fs::write(volume.join("sub/file"), "from the host\n").unwrap();
    fs::write(volume.join("hosts"), "127.0.0.1 from-the-kubelet\n").unwrap();
    symlink(volume.join("sub"), volume.join("link")).unwrap();
    let pod = node.run_pod("volumes", |_| {}).await;
    let script = "cat /data/sub/file; echo written >/data/new; cat /etc/hosts; cat /deep/er/file
                  cat /linked/file; [ -f /dev/termination-log ]; echo last words >/dev/termination-log";
    let said = node
        .script(&pod, script, |config| {
            config.mount(&volume, "/data");
            config.mount(&volume.join("hosts"), "/etc/hosts");
            config.mount(&volume.join("sub/file"), "/deep/er/file");
            config.mount(&volume.join("link"), "/linked");
            fs::write(volume.join("termination"), "").unwrap();
            config.mount(&volume.join("termination"), "/dev/termination-log");
        })
        .await;
    let from_host = "from the host\n";
    assert_eq!(said, format!("{from_host}127.0.0.1 from-the-kubelet\n{from_host}{from_host}"));
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "written\n");
    assert_eq!(fs::read_to_string(volume.join("termination")).unwrap(), "last words\n");
    let config = node.container(&pod.config, "status", &image, &["true"]);
    let ended = node
        .run_to_end(&pod, config, |config| {
            let mount = config.mount(&volume, "/data");
            mount.readonly = true;
        })
        .await;
    let mount = ended.status.mounts.iter().find(|mount| mount.container_path == "/data").expect("the mount");
    assert_eq!((&*mount.host_path, mount.readonly), (&*volume.display().to_string(), true));
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn read_only_is_read_only() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let volume = node.world.dir().join("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    // A mount below the source, which only a recursive read-only mount covers.
    node.world.sh(&format!("mount -t tmpfs tmpfs {}/inner", volume.display()));
    let pod = node.run_pod("read-only", |_| {}).await;
    let script = "touch /v/f 2>&1 || true; touch /v/inner/f 2>&1 && echo inner written || true";
    let said = node.script(&pod, script, |config| config.mount(&volume, "/v").readonly = true).await;
    assert!(said.contains("Read-only file system") && said.contains("inner written"), "{said}");
    let recursive = |config: &mut ContainerConfig| {
        let mount = config.mount(&volume, "/v");
        (mount.readonly, mount.recursive_read_only) = (true, true);
    };
    let said = node.script(&pod, script, recursive).await;
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    let image = node.images.image_id("busybox");
    let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
    config.mount(&volume, "/v").recursive_read_only = true;
    let answer = node.cri.create(&pod.id, &pod.config, &config).await;
    node.assert_fails(answer, Code::InvalidArgument, "recursive_read_only");
    node.remove(&pod.id).await;
    node.world.sh(&format!("umount {}/inner", volume.display()));
}

#[tokio::test]
async fn propagation_goes_the_ways_it_was_asked_to() {
    let Some(node) = Node::start() else { return };
    let volume = node.world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let at = volume.display();
    node.world.sh(&format!("mount -t tmpfs tmpfs {at}; mkdir {at}/host {at}/inside"));
    let image = node.image("busybox").await;
    let pod = node.run_pod("propagation", |config| {
        use pinnace_conformance::cri::PodConfig as _;
        config.security().privileged = true;
    });
    let pod = pod.await;
    for (name, propagation, host_to_container, container_to_host) in [
        ("private", MountPropagation::PropagationPrivate, false, false),
        ("slave", MountPropagation::PropagationHostToContainer, true, false),
        ("shared", MountPropagation::PropagationBidirectional, true, true),
    ] {
        let mut config = node.container(&pod.config, name, &image, &["sleep", "4244"]);
        config.security().privileged = true;
        config.security().masked_paths.clear();
        config.security().readonly_paths.clear();
        config.mount(&volume, "/v").propagation = propagation.into();
        let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
        node.world.sh(&format!("mount -t tmpfs -o size=4k tmpfs {at}/host; touch {at}/host/seen"));
        let seen = node.cri.sh(&running.container, "ls /v/host | wc -l").await;
        assert_eq!(seen == "1\n", host_to_container, "{name}: from the host");
        node.cri.sh(&running.container, "mount -t tmpfs tmpfs /v/inside; touch /v/inside/seen").await;
        let seen = node.world.sh(&format!("ls {at}/inside | wc -l"));
        assert_eq!(seen == "1\n", container_to_host, "{name}: from the container");
        node.cri.sh(&running.container, "umount /v/inside").await;
        node.cri.remove(&running.container).await.unwrap();
        node.world.sh(&format!("umount {at}/host"));
    }
    node.remove(&pod.id).await;
    node.world.sh(&format!("umount {at}"));
}

#[tokio::test]
async fn missing_source_is_an_error_and_is_not_made() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("missing", |_| {}).await;
    let absent = node.world.dir().join("not/there");
    let mut config = node.container(&pod.config, "main", &image, &["true"]);
    config.mount(&absent, "/data");
    let answer = node.run_in(&pod.id, &pod.config, &config).await;
    let (code, text) = pinnace_conformance::cri::failure(answer);
    assert!(
        [Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition].contains(&code),
        "{code:?}: {text}"
    );
    assert!(text.contains(&absent.display().to_string()), "{text}");
    assert!(!absent.exists(), "the source was made");
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn mount_point_cannot_leave_the_root() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let volume = node.world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "mounted\n").unwrap();
    let pod = node.run_pod("escape", |_| {}).await;
    let canary = node.world.dir().join("canary");
    fs::create_dir(&canary).unwrap();
    // A volume with a link that leads out, as a destination for a second mount.
    symlink(&canary, volume.join("out")).unwrap();
    let mut config = node.container(&pod.config, "link", &image, &["sh", "-c", "ls /v; sleep 0"]);
    config.mount(&volume, "/v");
    config.mount(&volume.join("file"), "/v/out/planted");
    let _ = node.run_in(&pod.id, &pod.config, &config).await;
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0, "something was made outside the container");
    let mut config = node.container(&pod.config, "dots", &image, &["true"]);
    config.mount(&volume.join("file"), "/../../../../tmp/planted");
    node.assert_fails(node.cri.create(&pod.id, &pod.config, &config).await, Code::InvalidArgument, "planted");
}
