//! Devices of the host.

use std::fs;
use std::os::unix::fs::symlink;

use pinnace_conformance::cri::ContainerConfigParts as _;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

fn device(host: &std::path::Path, container: &str, permissions: &str) -> Device {
    let host_path = host.display().to_string();
    Device { container_path: container.into(), host_path, permissions: permissions.into() }
}

#[tokio::test]
async fn device_link_and_directory_are_there_as_permitted() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("devices", |_| {}).await;
    let dir = node.world.dir().join("devices");
    fs::create_dir_all(dir.join("tree/deep")).unwrap();
    let at = dir.display();
    // Loopback block devices 7:*, which no container has by itself.
    node.world.sh(&format!(
        "mknod -m 644 {at}/one b 7 100; mknod {at}/tree/two b 7 101; mknod {at}/tree/deep/three c 1 5"
    ));
    symlink("one", dir.join("link")).unwrap();
    let script = "stat -c '%F %a %u:%g %t:%T' /dev/mine /dev/link /dev/all/two /dev/all/deep/three
                  head -c 2 /dev/all/deep/three | wc -c; (: </dev/reader) && echo read
                  (: >/dev/reader) 2>/dev/null && echo written || echo refused";
    let said = node
        .script(&pod, script, |config| {
            config.devices = vec![
                device(&dir.join("one"), "/dev/mine", "rwm"),
                device(&dir.join("link"), "/dev/link", ""),
                device(&dir.join("tree"), "/dev/all", "r"),
            ];
            // The control device of loop devices, which no container has by itself, to be read only.
            node.world.sh(&format!("mknod -m 666 {at}/reader c 10 237"));
            config.devices.push(device(&dir.join("reader"), "/dev/reader", "r"));
        })
        .await;
    let expected = "block special file 644 0:0 7:64\nblock special file 644 0:0 7:64\nblock special file 644 0:0 7:65\n\
                    character special file 644 0:0 1:5\n2\nread\nrefused\n";
    assert_eq!(said, expected);
    let image = node.images.image_id("busybox");
    for (wrong, code, named) in [
        (device(&dir.join("absent"), "/dev/x", "rwm"), Code::NotFound, "absent"),
        (device(&dir.join("one"), "/dev/x", "rwx"), Code::InvalidArgument, "permissions"),
        (
            device(&node.world.dir().join("config.toml"), "/dev/x", "rwm"),
            Code::InvalidArgument,
            "not a device",
        ),
    ] {
        let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
        config.devices = vec![wrong];
        node.assert_fails(node.cri.create(&pod.id, &pod.config, &config).await, code, named);
    }
    node.remove(&pod.id).await;
}

#[tokio::test]
async fn device_belongs_to_the_pods_user_where_configured() {
    let change = |config: String| config + "[container]\ndevice_ownership = true\n";
    let Some(node) = Node::start_changed(change) else { return };
    node.image("busybox").await;
    let pod = node.run_pod("owned", |_| {}).await;
    let path = node.world.dir().join("device");
    node.world.sh(&format!("mknod -m 600 {} c 1 5", path.display()));
    let said = node
        .script(&pod, "stat -c %u:%g /dev/mine /dev/null", |config| {
            config.security().run_as_user = Some(Int64Value { value: 1234 });
            config.security().run_as_group = Some(Int64Value { value: 5678 });
            config.devices = vec![device(&path, "/dev/mine", "rwm")];
        })
        .await;
    assert_eq!(said, "1234:5678\n0:0\n");
}
