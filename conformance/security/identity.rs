//! As whom and with which rights a process runs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use pinnace_conformance::cri::{ContainerConfigParts as _, failure};
use pinnace_conformance::images::Layer;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use serde_json::json;
use tonic::Code;

use crate::ground::{Canary, attempt, field, image, push};

/// Accounts whose names are digits belong to root in the image; numbers are numbers and never wrap.
#[tokio::test]
async fn digits_in_user_are_a_number_or_an_error() {
    let Some(node) = Node::start() else { return };
    let pod = node.run_pod("digits", |_| {}).await;
    let numbers =
        ["1000", "4294967296", "2147483648", "18446744073709551616", "-1", "1x", "0x0", "4294967295"];
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    for number in numbers {
        passwd.push_str(&format!("{number}:x:0:0:root too:/:/bin/sh\n"));
    }
    let layer =
        Layer::new().file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, "root:x:0:\n1000:x:0:\n");
    for (number, (user, expected)) in [
        ("1000", Some("1000:0")),
        ("1000:1000", Some("1000:1000")),
        ("4294967296", None),
        ("2147483648:0", None),
        ("18446744073709551616", None),
        ("4294967295", None),
        ("0:4294967296", None),
        ("-1", None),
        ("1000:-1", None),
    ]
    .into_iter()
    .enumerate()
    {
        let id = image(&node, &format!("digits-{number}"), layer.clone(), json!({ "User": user })).await;
        let outcome =
            attempt(&node, &pod, &format!("c{number}"), &id, "echo ids $(id -u):$(id -g)", |_| {}).await;
        match expected {
            Some(ids) => assert!(outcome.text().contains(&format!("ids {ids}\n")), "{user}: {outcome:?}"),
            None => assert!(outcome.is_refused(), "{user}: {outcome:?}"),
        }
    }
    // The kubelet asks for the user before it starts anything, and must not be told 0 of these either.
    for (number, user) in ["4294967296", "18446744073709551616"].into_iter().enumerate() {
        let reference = push(&node, &format!("asked-{number}"), layer.clone(), json!({ "User": user }));
        node.cri.pull(&reference).await.unwrap();
        let told = node.cri.image(&reference).await.unwrap().expect("the image");
        assert_ne!(told.uid.map(|uid| uid.value), Some(0), "{user}");
        assert!(told.uid.is_none_or(|uid| u32::try_from(uid.value).is_ok()), "{user}");
    }
}

/// No process starts with inheritable or ambient capabilities, and files with them give nothing.
#[tokio::test]
async fn inheritable_capabilities_are_nobody_s() {
    let Some(node) = Node::start() else { return };
    // Version 2 of the attribute: nothing permitted, everything inheritable, effective (capabilities(7)).
    let attribute = [1, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 1, 0, 0];
    let busybox =
        fs::read(pinnace_conformance::images::debian::unpacked("busybox-static").join("bin/busybox"));
    let layer = Layer::new()
        .file("busybox-capable", 0o755, busybox.unwrap())
        .last_xattr("security.capability", &attribute);
    let id = image(&node, "inheritable", layer, json!({})).await;
    let pod = node.run_pod("inheritable", |_| {}).await;
    for uid in [0, 1000] {
        let mut config = node.container(
            &pod.config,
            &format!("u{uid}"),
            &id,
            &["/bin/sh", "-c", "cat /proc/self/status; sleep 600"],
        );
        config.security().run_as_user = Some(Int64Value { value: uid });
        config.capabilities().add_capabilities = vec!["NET_ADMIN".into()];
        let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
        for command in ["/bin/busybox", "/busybox-capable"] {
            let said =
                node.cri.exec(&running.container, &[command, "cat", "/proc/self/status"], 10).await.unwrap();
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let zero = "0000000000000000";
            assert_eq!(field(&said, "CapInh"), zero, "{uid} {command}");
            assert_eq!(field(&said, "CapAmb"), zero, "{uid} {command}");
            if uid != 0 {
                assert_eq!(field(&said, "CapEff"), zero, "{uid} {command}");
                assert_eq!(field(&said, "CapPrm"), zero, "{uid} {command}");
            }
        }
    }
}

/// Bits that take rights away from a group hold for those who have it as their primary one: it is a supplementary one,
/// too, which no setgid program takes from them.
#[tokio::test]
async fn negative_permissions_of_the_primary_group_hold() {
    let Some(node) = Node::start() else { return };
    let layer = Layer::new().file("closed", 0o604, "not for the group").last_owner(0, 1000);
    let id = image(&node, "negative", layer, json!({ "User": "1234:1000" })).await;
    let pod = node.run_pod("negative", |_| {}).await;
    for (name, user, group) in [("image", None, None), ("request", Some(1235), Some(1000))] {
        let number = |value: Option<i64>| value.map(|value| Int64Value { value });
        let mut config = node.container(&pod.config, name, &id, &["/bin/sleep", "600"]);
        (config.security().run_as_user, config.security().run_as_group) = (number(user), number(group));
        let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
        let done = node.cri.exec(&running.container, &["/bin/cat", "/closed"], 10).await.unwrap();
        assert_ne!(done.exit_code, 0, "{name}");
        assert!(done.stdout.is_empty(), "{name}");
        for process in ["self", "1"] {
            let status = node.cri.sh(&running.container, &format!("cat /proc/{process}/status")).await;
            let groups = field(&status, "Groups");
            assert!(groups.split_whitespace().any(|group| group == "1000"), "{name} {process}: {groups}");
        }
    }
}

/// What is written into accounts or environment has one line.
#[tokio::test]
async fn line_breaks_make_no_accounts() {
    let Some(node) = Node::start() else { return };
    let pod = node.run_pod("lines", |_| {}).await;
    let root = "root2::0:0::/:/bin/sh";
    let plain = node.image("busybox").await;
    for (number, value) in
        [format!("/x\n{root}"), format!("/x\\n{root}"), format!("/x\r{root}"), "/x:/bin/sh".into()]
            .into_iter()
            .enumerate()
    {
        for (kind, config) in
            [("env", json!({ "Env": [format!("HOME={value}")] })), ("user", json!({ "User": value }))]
        {
            let reference = push(&node, &format!("lines-{kind}-{number}"), Layer::new(), config);
            let Ok(id) = node.cri.pull(&reference).await else { continue };
            let outcome =
                attempt(&node, &pod, &format!("{kind}-{number}"), &id, "cat /etc/passwd", |_| {}).await;
            assert!(!outcome.text().contains("root2") || outcome.is_refused(), "{value:?}: {outcome:?}");
        }
        let outcome = attempt(&node, &pod, &format!("asked-{number}"), &plain, "cat /etc/passwd", |config| {
            config.env("HOME", &value);
            config.security().run_as_user = Some(Int64Value { value: 4321 });
        })
        .await;
        assert!(!outcome.text().contains("root2") || outcome.is_refused(), "{value:?}: {outcome:?}");
    }
}

/// State is closed to the host's other users, so that no setuid file of an image is theirs to run.
#[tokio::test]
async fn state_is_closed_to_other_users() {
    let Some(mut node) = Node::start() else { return };
    let layer = Layer::new().file("setuid", 0o4755, "x");
    let id = image(&node, "setuid", layer, json!({})).await;
    let pod = node.run_pod("closed", |_| {}).await;
    let config = node.container(&pod.config, "main", &id, &["/bin/sleep", "600"]);
    node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let places = [node.daemon.root.clone(), node.daemon.run.clone()];
    let closed = |node: &Node| {
        for place in &places {
            let inside = node.world.inside(place);
            assert_eq!(fs::metadata(&inside).unwrap().mode() & 0o077, 0, "{}", place.display());
            let script = format!(
                "setpriv --reuid 1000 --regid 1000 --clear-groups ls {} 2>&1 || true",
                place.display()
            );
            assert!(node.world.sh(&script).contains("Permission denied"), "{}", place.display());
        }
    };
    closed(&node);
    // As an older version, or a careless hand, left it.
    node.daemon.kill();
    for place in &places {
        fs::set_permissions(node.world.inside(place), fs::Permissions::from_mode(0o711)).unwrap();
    }
    node.restart();
    closed(&node);
}

/// Labels of volumes are the host's: without SELinux nothing is relabelled, with it only what may be.
#[tokio::test]
async fn relabelling_leaves_the_host_s_files_alone() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("relabel", |_| {}).await;
    for target in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"] {
        let name = format!("c{}", target.replace('/', "-"));
        attempt(&node, &pod, &name, &image, "true", |config| {
            let mount = config.mount(&canary.path().join("file"), target);
            (mount.selinux_relabel, mount.readonly) = (true, true);
        })
        .await;
    }
    canary.assert_untouched(&node);
}

/// A file system whose owner is a user of the pod opens nothing that is root's.
#[tokio::test]
async fn users_of_the_request_are_bounded() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("bounded", |_| {}).await;
    let volume = node.world.dir().join("owned");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("roots"), "x").unwrap();
    fs::set_permissions(volume.join("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(&volume, Some(1000), Some(1000)).unwrap();
    for value in [1 << 32, (1 << 32) + 1000, i64::MAX, -1, i64::MIN] {
        for field in ["user", "group", "supplemental"] {
            let mut config = node.container(&pod.config, "main", &image, &["cat", "/v/roots"]);
            config.mount(&volume, "/v");
            let security = config.security();
            security.run_as_user = Some(Int64Value { value: 1000 });
            match field {
                "user" => security.run_as_user = Some(Int64Value { value }),
                "group" => security.run_as_group = Some(Int64Value { value }),
                _ => security.supplemental_groups = vec![value],
            }
            let (code, text) = failure(node.cri.create(&pod.id, &pod.config, &config).await);
            assert_eq!(code, Code::InvalidArgument, "{field} {value}: {text}");
            assert!(text.contains(&value.to_string()), "{text}");
        }
    }
}
