//! Devices of the Container Device Interface: described by files on the node, asked for by name.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use pinnace_conformance::cri::{ContainerConfigParts as _, failure};
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

fn directories(node: &Node) -> [PathBuf; 2] {
    ["etc-cdi", "run-cdi"].map(|name| node.world.dir().join(name))
}

/// A node that reads descriptions from two directories of its own; there is none yet.
fn start() -> Option<Node> {
    Node::start_in(|world, config| {
        let of = |name: &str| world.dir().join(name);
        format!("{config}[container]\ncdi_spec_dirs = [{:?}, {:?}]\n", of("etc-cdi"), of("run-cdi"))
    })
}

fn describe(directory: &Path, file: &str, devices: &str) {
    fs::create_dir_all(directory).unwrap();
    let text = format!(r#"{{"cdiVersion":"0.6.0","kind":"vendor.com/gpu","devices":[{devices}]}}"#);
    fs::write(directory.join(file), text).unwrap();
}

fn ask(config: &mut ContainerConfig, names: &[&str]) {
    config.cdi_devices = names.iter().map(|name| CdiDevice { name: (*name).to_owned() }).collect();
}

#[tokio::test]
async fn device_is_what_its_file_says() {
    let Some(node) = start() else { return };
    node.image("busybox").await;
    let [low, high] = directories(&node);
    let data = node.world.dir().join("library");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("lib"), "a library").unwrap();
    let mount =
        format!(r#""mounts":[{{"hostPath":{data:?},"containerPath":"/usr/vendor","options":["ro"]}}]"#);
    describe(
        &low,
        "vendor.json",
        &format!(
            r#"{{"name":"0","containerEdits":{{"env":["GPU=zero"],
                "deviceNodes":[{{"path":"/dev/gpu0","hostPath":"/dev/zero","fileMode":432,"permissions":"r"}}],
                {mount},"additionalGids":[4711]}}}},
               {{"name":"1","containerEdits":{{"env":["SECOND=one"]}}}}"#
        ),
    );
    let pod = node.run_pod("cdi", |_| {}).await;
    let script = "echo $GPU $SECOND; stat -c '%F %a %t:%T' /dev/gpu0; head -c 2 /dev/gpu0 | wc -c
                  cat /usr/vendor/lib; echo; (echo >/usr/vendor/x) 2>&1 || true; id -G";
    let said =
        node.script(&pod, script, |config| ask(config, &["vendor.com/gpu=0", "vendor.com/gpu=1"])).await;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..4], ["zero one", "character special file 660 1:5", "2", "a library"], "{said}");
    assert!(lines[4].contains("Read-only file system"), "{said}");
    assert!(lines[5].split(' ').any(|group| group == "4711"), "{said}");

    // What another directory says goes before it, from now on; the same through an annotation, as older plugins ask.
    describe(&high, "driver.json", r#"{"name":"0","containerEdits":{"env":["GPU=new"]}}"#);
    let annotated = |config: &mut ContainerConfig| {
        config.annotations.insert("cdi.k8s.io/plugin_gpu".into(), "vendor.com/gpu=0,vendor.com/gpu=1".into());
    };
    assert_eq!(
        node.script(&pod, "echo $GPU $SECOND; ls /dev/gpu0 2>&1 || true", annotated).await,
        "new one\nls: /dev/gpu0: No such file or directory\n"
    );
    fs::remove_file(high.join("driver.json")).unwrap();
    assert_eq!(node.script(&pod, "echo $GPU", annotated).await, "zero\n");

    // A user who is not root owns what he was given, unless the file says who does.
    let owner = node
        .script(&pod, "stat -c %u:%g /dev/gpu0", |config| {
            ask(config, &["vendor.com/gpu=0"]);
            config.security().run_as_user = Some(Int64Value { value: 1234 });
            config.security().run_as_group = Some(Int64Value { value: 5678 });
        })
        .await;
    assert_eq!(owner, "1234:5678\n");
    node.remove(&pod.id).await;
}

#[tokio::test]
async fn device_that_cannot_be_given_is_an_error_that_names_it() {
    let Some(node) = start() else { return };
    let before = node.baseline().await;
    let [low, high] = directories(&node);
    describe(
        &low,
        "vendor.json",
        r#"{"name":"hooked","containerEdits":{"hooks":[{"hookName":"prestart","path":"/bin/hook"}]}},
           {"name":"rdt","containerEdits":{"intelRdt":{"closID":"gold"}}},
           {"name":"unplugged","containerEdits":{"deviceNodes":[{"path":"/dev/no-gpu"}]}},
           {"name":"good","containerEdits":{"env":["A=B"]}}"#,
    );
    for file in ["one.json", "two.json"] {
        describe(&high, file, r#"{"name":"twice","containerEdits":{}}"#);
    }
    fs::write(high.join("broken.yaml"), "kind: [").unwrap();
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("wrong", |_| {}).await;
    let cases: [(&str, Code, &[&str]); 8] = [
        ("vendor.com/gpu=absent", Code::NotFound, &["vendor.com/gpu=absent", "etc-cdi", "broken.yaml"]),
        ("vendor.com/gpu=twice", Code::FailedPrecondition, &["vendor.com/gpu=twice", "one.json", "two.json"]),
        (
            "vendor.com/gpu=hooked",
            Code::FailedPrecondition,
            &["gpu=hooked", "vendor.json", "prestart", "/bin/hook"],
        ),
        ("vendor.com/gpu=rdt", Code::FailedPrecondition, &["gpu=rdt", "vendor.json", "intelRdt"]),
        (
            "vendor.com/gpu=unplugged",
            Code::FailedPrecondition,
            &["gpu=unplugged", "vendor.json", "/dev/no-gpu"],
        ),
        ("gpu", Code::InvalidArgument, &["\"gpu\"", "vendor/class=name"]),
        ("vendor.com/gpu=../x", Code::InvalidArgument, &["../x"]),
        ("", Code::InvalidArgument, &["vendor/class=name"]),
    ];
    for (name, code, named) in cases {
        for annotated in [false, true] {
            let mut config = node.container(&pod.config, "main", &image, &["true"]);
            if annotated {
                config.annotations = HashMap::from([("cdi.k8s.io/x".into(), name.into())]);
            } else {
                ask(&mut config, &["vendor.com/gpu=good", name]);
            }
            let (got, text) = failure(node.cri.create(&pod.id, &pod.config, &config).await);
            assert_eq!(got, code, "{name}: {text}");
            for part in named {
                assert!(text.contains(part), "{name}: {part:?} is not named in {text:?}");
            }
        }
    }
    assert_eq!(node.cri.containers().await.unwrap(), []);
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

/// A pod's own annotations are not a container's: the kubelet passes on what device plugins say, and only that.
#[tokio::test]
async fn pods_annotations_give_no_device() {
    let Some(node) = start() else { return };
    node.image("busybox").await;
    let [low, _] = directories(&node);
    describe(&low, "vendor.json", r#"{"name":"0","containerEdits":{"env":["GPU=zero"]}}"#);
    let pod = node
        .run_pod("annotated", |config| {
            config.annotations.insert("cdi.k8s.io/gpu".into(), "vendor.com/gpu=0".into());
        })
        .await;
    assert_eq!(node.script(&pod, "echo ${GPU:-none}", |_| {}).await, "none\n");
}
