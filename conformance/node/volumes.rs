//! Volumes that images declare, and images as volumes.

use std::fs;

use pinnace_conformance::cri::{ContainerConfigParts as _, failure, image_spec};
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

#[tokio::test]
async fn volume_of_the_image_is_filled_and_anonymous() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.image("configured").await;
    let pod = node.run_pod("image-volume", |_| {}).await;
    let run = async |name: &str, change: &dyn Fn(&mut ContainerConfig)| {
        let script = "cat /volume/*; stat -c '%a %u:%g' /volume; echo more >/volume/written && echo ok";
        let config = node.container(&pod.config, name, &image, &["sh", "-uc", script]);
        node.run_to_end(&pod, config, |config| {
            config.security().run_as_user = Some(Int64Value { value: 0 });
            change(config);
        })
        .await
        .stdout
    };
    let fresh = "kept by the image\n755 0:0\nok\n";
    assert_eq!(run("one", &|_| {}).await, fresh);
    assert_eq!(run("two", &|_| {}).await, fresh, "a volume is shared between containers");
    let read_only = run("read-only", &|config| config.security().readonly_rootfs = true).await;
    assert_eq!(read_only, fresh, "a volume stays writable on a read-only root");
    let empty = node.world.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let mounted = run("mounted", &|config| drop(config.mount(&empty, "/volume").host_path.clone())).await;
    assert!(mounted.ends_with("ok\n") && !mounted.contains("kept"), "the pod's mount wins: {mounted}");
    assert!(empty.join("written").exists());
    assert_eq!(fs::read_dir(node.daemon.root.join("volumes")).unwrap().count(), 3);
    node.remove(&pod.id).await;
    node.cri.remove_image(&image).await.unwrap();
    node.assert_nothing_left(&before);
}

/// What a test wants of an image as a volume.
fn mount_image(config: &mut ContainerConfig, image: &str, sub_path: &str) {
    config.mounts.push(Mount {
        container_path: "/image".into(),
        image: Some(image_spec(image)),
        image_sub_path: sub_path.into(),
        readonly: true,
        ..Mount::default()
    });
}

#[tokio::test]
async fn image_as_a_volume_is_read_only_and_held() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    node.image("busybox").await;
    let reference = node.push("configured");
    let volume = node.cri.pull(&reference).await.unwrap();
    let pod = node.run_pod("image-mount", |_| {}).await;
    for (sub_path, script, expected) in [
        (
            "",
            "cat /image/volume/from-image; touch /image/x 2>&1 || true",
            "kept by the image\ntouch: /image/x: Read-only file system\n",
        ),
        (
            "volume",
            "cat /image/from-image; rm /image/from-image 2>/dev/null || echo kept",
            "kept by the image\nkept\n",
        ),
        (
            "volume/from-image",
            "cat /image; echo x 2>/dev/null >/image || echo kept",
            "kept by the image\nkept\n",
        ),
    ] {
        let said = node.script(&pod, script, |config| mount_image(config, &reference, sub_path)).await;
        assert_eq!(said, expected, "{sub_path:?}");
    }
    let mut config =
        node.container(&pod.config, "holder", &node.images.image_id("busybox"), &["sleep", "4243"]);
    mount_image(&mut config, &reference, "volume");
    let holder = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let status = node.cri.status(&holder.container).await.unwrap();
    let mount = &status.mounts[0];
    let shown = mount.image.as_ref().expect("the image");
    assert!(shown.image.contains("@sha256:"), "no digest: {shown:?}");
    assert_eq!((&*shown.image_ref, &*shown.user_specified_image), (&*volume, &*reference));
    assert_eq!((&*mount.image_sub_path, mount.readonly, &*mount.host_path), ("volume", true, ""));
    node.assert_fails(
        node.cri.remove_image(&volume).await,
        Code::FailedPrecondition,
        "mounted into container",
    );
    assert_eq!(node.cri.sh(&holder.container, "cat /image/from-image").await, "kept by the image\n");
    node.remove(&pod.id).await;
    node.cri.remove_image(&volume).await.unwrap();
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn image_volume_that_cannot_be_is_refused() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("image-mount", |_| {}).await;
    let before = node.baseline().await;
    let attempt = async |name: &str, change: &dyn Fn(&mut ContainerConfig)| {
        let mut config = node.container(&pod.config, name, &image, &["true"]);
        mount_image(&mut config, &image, "");
        change(&mut config);
        failure(node.cri.create(&pod.id, &pod.config, &config).await)
    };
    for (change, code, named) in [
        (
            (|config| config.mounts[0].readonly = false) as fn(&mut ContainerConfig),
            Code::InvalidArgument,
            "readonly",
        ),
        (|config| config.mounts[0].host_path = "/tmp".into(), Code::InvalidArgument, "host_path"),
        (|config| config.mounts[0].image_sub_path = "../etc".into(), Code::InvalidArgument, "image_sub_path"),
        (|config| config.mounts[0].image_sub_path = "/etc".into(), Code::InvalidArgument, "image_sub_path"),
        (|config| config.mounts[0].propagation = 2, Code::InvalidArgument, "propagation"),
        (|config| config.mounts[0].image_sub_path = "not/there".into(), Code::NotFound, "not/there"),
        (
            |config| config.mounts[0].image = Some(image_spec("not.here/at-all:1")),
            Code::NotFound,
            "not.here/at-all",
        ),
    ] {
        let (got, text) = attempt("main", &change).await;
        assert_eq!(got, code, "{text}");
        assert!(text.contains(named), "{text}");
        // The kubelet tells this failure by the beginning of the message.
        assert_eq!(text.starts_with("ImageVolumeMountFailed: "), code == Code::NotFound, "{text}");
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn mount_options_restrict_the_mount_and_what_is_below() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let volume = node.world.dir().join("volume");
    fs::create_dir_all(volume.join("inner")).unwrap();
    node.world.sh(&format!("mount -t tmpfs tmpfs {}/inner", volume.display()));
    let pod = node.run_pod("options", |_| {}).await;
    let script = "for at in /v /v/inner; do cp /bin/busybox $at/true; $at/true 2>&1 || true; done
                  grep ' /v' /proc/self/mountinfo | cut -d' ' -f6";
    let said = node
        .script(&pod, script, |config| {
            let options = ["noexec", "nodev", "nosuid", "noatime"];
            config.mount(&volume, "/v").mount_options = options.map(String::from).into();
        })
        .await;
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
    assert_eq!(said.matches("nosuid,nodev,noexec,noatime").count(), 2, "{said}");
    let mut config = node.container(&pod.config, "wrong", &node.images.image_id("busybox"), &["true"]);
    config.mount(&volume, "/v").mount_options = vec!["suid".into()];
    let answer = node.cri.create(&pod.id, &pod.config, &config).await;
    node.assert_fails(answer, Code::InvalidArgument, "mount_options");
    node.remove(&pod.id).await;
    node.world.sh(&format!("umount {}/inner", volume.display()));
}
