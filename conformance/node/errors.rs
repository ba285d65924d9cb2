//! Everything a caller can get wrong: the right code, a text that names the subject, nothing left behind.

use pinnace_conformance::cri::failure;
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

#[tokio::test]
async fn container_that_cannot_be_created() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let nothing = node.image("nothing").await;
    let pod = node.run_pod("errors", |_| {}).await;
    let absent = format!("sha256:{}", "0".repeat(64));
    type Change = fn(&mut ContainerConfig);
    type Case<'a> = (&'a str, &'a str, &'a [&'a str], Code, &'a str, Change);
    let cases: [Case<'_>; 10] = [
        ("unknown image", &absent, &["true"], Code::NotFound, &absent, |_| {}),
        ("never pulled", "example.com/app:1", &["true"], Code::NotFound, "example.com/app:1", |_| {}),
        ("no image", "", &["true"], Code::InvalidArgument, "image", |_| {}),
        ("unknown handler", &image, &["true"], Code::InvalidArgument, "runtime_handler", |c| {
            c.image.as_mut().unwrap().runtime_handler = "gvisor".into();
        }),
        ("nothing to run", &nothing, &[], Code::InvalidArgument, "command", |_| {}),
        ("no metadata", &image, &["true"], Code::InvalidArgument, "metadata", |c| c.metadata = None),
        ("no name", &image, &["true"], Code::InvalidArgument, "name", |c| {
            c.metadata.as_mut().unwrap().name.clear();
        }),
        ("environment", &image, &["true"], Code::InvalidArgument, "A=B", |c| {
            c.envs.push(KeyValue { key: "A=B".into(), value: b"x".to_vec() });
        }),
        ("device", &image, &["true"], Code::InvalidArgument, "permissions", |c| {
            c.devices.push(Device {
                container_path: "/dev/null2".into(),
                host_path: "/dev/null".into(),
                permissions: "rwx".into(),
            });
        }),
        ("stop signal", &image, &["true"], Code::InvalidArgument, "99", |c| c.stop_signal = 99),
    ];
    for (name, image, command, code, subject, change) in cases {
        let mut config = node.container(&pod.config, "main", image, command);
        change(&mut config);
        let (got, text) = failure(node.cri.create(&pod.id, &pod.config, &config).await);
        assert_eq!(got, code, "{name}: {text}");
        assert!(text.contains(subject), "{name}: {subject:?} is not named in {text:?}");
    }
    let unknown = "a".repeat(64);
    let config = node.container(&pod.config, "main", &image, &["true"]);
    let answer = node.cri.create(&unknown, &pod.config, &config).await;
    node.assert_fails(answer, Code::NotFound, &unknown);
    assert_eq!(node.cri.containers().await.unwrap(), []);
    node.remove(&pod.id).await;
    node.cri.remove_image(&nothing).await.unwrap();
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn container_that_cannot_be_started() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("start", |_| {}).await;
    for (index, command) in
        ["/no/such/command", "no-such-command", "/etc", "/etc/passwd"].into_iter().enumerate()
    {
        let config = node.container(&pod.config, &format!("c{index}"), &image, &[command]);
        let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
        let (code, text) = failure(node.cri.start(&id).await);
        let codes = [Code::InvalidArgument, Code::NotFound, Code::FailedPrecondition, Code::PermissionDenied];
        assert!(codes.contains(&code), "{code:?} {text}");
        assert!(text.contains(command), "{command} is not named in {text}");
        let status = node.cri.status(&id).await.unwrap();
        assert_eq!(
            (status.state(), &*status.reason),
            (ContainerState::ContainerExited, "StartError"),
            "{command}"
        );
        assert!(status.message.contains(command) && status.exit_code == 128, "{status:?}");
        assert!(status.finished_at > 0);
        node.cri.remove(&id).await.unwrap();
    }
    let unknown = "a".repeat(64);
    node.assert_fails(node.cri.start(&unknown).await, Code::NotFound, &unknown);
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn working_directory_that_is_a_file() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("directory", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["pwd"]);
    config.working_dir = "/etc/passwd".into();
    let (_, text) = failure(node.run_in(&pod.id, &pod.config, &config).await);
    assert!(text.contains("/etc/passwd"), "{text}");
}

#[tokio::test]
async fn prefix_of_an_id_names_one_thing() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("prefix", |_| {}).await;
    let mut ids = Vec::new();
    // With 17 ids two begin with the same digit.
    for index in 0..17 {
        let config = node.container(&pod.config, &format!("c{index}"), &image, &["true"]);
        ids.push(node.cri.create(&pod.id, &pod.config, &config).await.unwrap());
    }
    for id in &ids {
        assert_eq!(node.cri.status(&id[..32]).await.unwrap().id, *id);
    }
    ids.sort();
    let shared = ids.windows(2).find(|pair| pair[0][..1] == pair[1][..1]).expect("two ids share a digit");
    let (code, text) = failure(node.cri.status(&shared[0][..1]).await);
    assert!(
        [Code::InvalidArgument, Code::NotFound].contains(&code) && text.contains("ambiguous"),
        "{code:?} {text}"
    );
}
