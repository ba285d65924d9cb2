//! Pods with a user namespace of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _};
use pinnace_conformance::node::{Node, Pod};
use pinnace_cri_api::v1::*;
use tonic::Code;

/// First id of the host that the pods here get.
const FIRST: u32 = 1_000_000;

fn mapping() -> IdMapping {
    IdMapping { host_id: FIRST, container_id: 0, length: 65_536 }
}

fn own() -> Option<UserNamespace> {
    let (uids, gids) = (vec![mapping()], vec![mapping()]);
    Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids, gids })
}

async fn start() -> Option<Node> {
    let node = Node::start()?;
    let status = node.cri.runtime().status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    let features = status.runtime_handlers[0].features.unwrap();
    // Every kernel that the suites run on has them; a probe that is wrong must not hide that.
    assert!(features.user_namespaces);
    assert!(status.features.unwrap().user_namespaces_host_network);
    Some(node)
}

async fn run_pod(node: &Node, name: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod {
    node.run_pod(name, |config| {
        config.namespaces().userns_options = own();
        change(config);
    })
    .await
}

#[tokio::test]
async fn root_inside_is_somebody_outside() {
    let Some(node) = start().await else { return };
    let before = node.baseline().await;
    let image = node.image("configured").await;
    let pod = run_pod(&node, "userns", |_| {}).await;
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u:%g / /etc/passwd /proc /sys /dev /home/worker
                  hostname; touch /root/new /etc/hosts /dev/shm/x; stat -c %u /root/new; cat /volume/from-image
                  echo x >/dev/null; head -c 1 /dev/zero | wc -c; mount -t tmpfs tmpfs /tmp && echo mounted
                  stat -c %u /volume; ip addr add 10.9.9.9/32 dev lo && echo linked; umount /proc 2>/dev/null || echo kept";
    let mut config = node.container(&pod.config, "main", &image, &["sh", "-euc", script]);
    config.namespaces().userns_options = own();
    config.security().run_as_user = Some(Int64Value { value: 0 });
    config.capabilities().add_capabilities = vec!["SYS_ADMIN".into(), "NET_ADMIN".into()];
    config.security().seccomp = None;
    let ended = node.run_to_end(&pod, config, |_| {}).await;
    let map = format!("         0    {FIRST}      65536\n");
    let owners = "0:0\n0:0\n65534:65534\n65534:65534\n0:0\n1000:1000\n";
    let expected =
        format!("{map}{map}0\n{owners}userns\n0\nkept by the image\n1\nmounted\n0\nlinked\nkept\n");
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    let mut config = node.container(&pod.config, "sleeper", &image, &["sleep", "4245"]);
    config.namespaces().userns_options = own();
    config.namespaces().pid = NamespaceMode::Container.into();
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    assert_eq!(
        node.cri.sh(&running.container, "id -u; cat /proc/self/uid_map").await,
        format!("1000\n{map}")
    );
    let status = node.cri.pod_status(&pod.id).await.unwrap();
    let shown = status.linux.unwrap().namespaces.unwrap().options.unwrap().userns_options;
    assert_eq!(shown, own());
    node.cri.stop(&running.container, 1).await.unwrap();
    node.remove(&pod.id).await;
    node.cri.remove_image(&image).await.unwrap();
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn volumes_show_their_owners_as_mapped() {
    let Some(node) = start().await else { return };
    node.image("busybox").await;
    let pod = run_pod(&node, "idmap", |_| {}).await;
    let volume = node.world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "x").unwrap();
    chown(volume.join("file"), Some(7), Some(8)).unwrap();
    let reference = node.push("configured");
    node.cri.pull(&reference).await.unwrap();
    let said = node
        .script(&pod, "stat -c %u:%g /v /v/file /raw /image; touch /v/new", |config| {
            config.namespaces().userns_options = own();
            let mount = config.mount(&volume, "/v");
            mount.uid_mappings = vec![IdMapping { host_id: FIRST, container_id: 0, length: 65_536 }];
            mount.gid_mappings = mount.uid_mappings.clone();
            config.mount(&node.world.dir().join("config.toml"), "/raw");
            config.mounts.push(Mount {
                container_path: "/image".into(),
                image: Some(pinnace_conformance::cri::image_spec(&reference)),
                readonly: true,
                ..Mount::default()
            });
        })
        .await;
    assert_eq!(said, "0:0\n7:8\n65534:65534\n0:0\n");
    let made = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "what the pod's root makes is root's in the volume");
    node.remove(&pod.id).await;
}

#[tokio::test]
async fn pod_shares_its_pid_namespace_or_the_hosts_network() {
    let Some(node) = start().await else { return };
    node.image("busybox").await;
    let shared = run_pod(&node, "shared", |config| config.namespaces().pid = NamespaceMode::Pod.into()).await;
    let said = node
        .script(&shared, "cat /proc/1/comm; stat -c %u /proc/1; ls /proc/1/root 2>&1 || true", |config| {
            config.namespaces().userns_options = own();
            config.namespaces().pid = NamespaceMode::Pod.into();
        })
        .await;
    assert!(said.starts_with("pinnace-init\n") && said.contains("Permission denied"), "{said}");
    node.remove(&shared.id).await;
    let host = run_pod(&node, "host", |config| config.on_host_network()).await;
    let script = "readlink /proc/self/ns/net; touch /sys/kernel/x 2>&1 || true; [ -d /sys/class/net/lo ]; cat /proc/self/uid_map";
    let said = node
        .script(&host, script, |config| {
            config.namespaces().userns_options = own();
            config.namespaces().network = NamespaceMode::Node.into();
        })
        .await;
    let namespace = fs::read_link(format!("/proc/{}/ns/net", node.world.keeper())).unwrap();
    assert!(said.starts_with(&format!("{}\n", namespace.display())), "{said}");
    assert!(said.contains("Read-only") && said.contains(&FIRST.to_string()), "{said}");
    node.remove(&host.id).await;
}

#[tokio::test]
async fn mapping_that_cannot_be_is_refused() {
    let Some(node) = start().await else { return };
    let image = node.image("busybox").await;
    let pod = run_pod(&node, "right", |_| {}).await;
    let before = node.baseline().await;
    for change in [
        (|user| user.mode = NamespaceMode::Container.into()) as fn(&mut UserNamespace),
        |user| user.mode = NamespaceMode::Target.into(),
        |user| user.uids.clear(),
        |user| user.gids.push(IdMapping { host_id: 5, container_id: 70_000, length: 1 }),
        |user| user.uids[0].container_id = 1,
        |user| user.gids[0].length = 0,
        |user| user.gids[0].host_id = u32::MAX,
    ] {
        let mut config = node.pod("wrong");
        let user = config.namespaces().userns_options.insert(own().unwrap());
        change(user);
        node.assert_fails(node.cri.run_pod(&config).await, Code::InvalidArgument, "userns_options");
    }
    for options in
        [None, Some(UserNamespace { uids: vec![IdMapping { length: 9, ..mapping() }], ..own().unwrap() })]
    {
        let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
        config.namespaces().userns_options = options;
        let answer = node.cri.create(&pod.id, &pod.config, &config).await;
        node.assert_fails(answer, Code::InvalidArgument, "userns_options");
    }
    node.assert_nothing_left(&before);
}
