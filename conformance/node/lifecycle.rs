//! CreateContainer, StartContainer, StopContainer, RemoveContainer, ContainerStatus, ListContainers.

use std::time::{Duration, Instant};

use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

/// Ends with 7 on SIGTERM, and says so.
const POLITE: &str = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
/// Ends only by SIGKILL.
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.05; done";

/// Waits until a container has written a line, that is, until its traps are set.
async fn ready(running: &pinnace_conformance::node::Running) {
    let end = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&running.log).unwrap_or_default().contains("ready") {
        assert!(Instant::now() < end, "the container says nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn states_follow_each_other() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.image("busybox").await;
    let pod = node.run_pod("states", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["sh", "-c", "read line; exit 3"]);
    config.annotations.insert("text".into(), "ünïcode\n".into());
    config.stdin = true;
    let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    let created = node.cri.status(&id).await.unwrap();
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!(created.created_at > 0);
    assert_eq!((created.started_at, created.finished_at, created.exit_code), (0, 0, 0));
    assert_eq!(created.metadata, config.metadata);
    assert_eq!((&created.labels, &created.annotations), (&config.labels, &config.annotations));
    assert_eq!(created.image.as_ref().unwrap().user_specified_image, image);
    assert_eq!(created.image_id, image);
    assert!(created.image_ref.contains("busybox@sha256:"), "{}", created.image_ref);
    assert_eq!(created.log_path, node.log_path(&pod.config, &config).display().to_string());
    assert_eq!(created.stop_signal(), Signal::Sigterm);

    node.cri.start(&id).await.unwrap();
    let running = node.cri.status(&id).await.unwrap();
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at && running.finished_at == 0);
    assert_eq!(running.user.as_ref().unwrap().linux.as_ref().unwrap().uid, 0);
    assert!(node.log_path(&pod.config, &config).exists(), "the kubelet links to the log at once");
    node.assert_fails(node.cri.start(&id).await, Code::FailedPrecondition, &id);

    node.cri.stop(&id, 0).await.unwrap();
    let exited = node.cri.status(&id).await.unwrap();
    assert_eq!(exited.state(), ContainerState::ContainerExited);
    assert_eq!((exited.exit_code, &*exited.reason), (137, "Error"));
    assert!(exited.finished_at >= exited.started_at && exited.started_at == running.started_at);
    node.assert_fails(node.cri.start(&id).await, Code::FailedPrecondition, &id);

    node.cri.remove(&id).await.unwrap();
    node.assert_fails(node.cri.status(&id).await, Code::NotFound, &id);
    assert_eq!(node.cri.containers().await.unwrap(), []);
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn exit_codes_and_reasons() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("codes", |_| {}).await;
    for (index, (script, code, reason)) in [
        ("exit 0", 0, "Completed"),
        ("exit 1", 1, "Error"),
        ("exit 255", 255, "Error"),
        ("kill -ABRT $$", 134, "Error"),
        // Process 1 of a PID namespace gets no signal it has no handler for; exec'ed in a child it does.
        ("sh -c 'kill -KILL $$'", 137, "Error"),
        ("trap 'exit 9' USR1; kill -USR1 $$", 9, "Error"),
    ]
    .into_iter()
    .enumerate()
    {
        // In the pod's PID namespace, so that the process is not process 1.
        let config = node.container(&pod.config, &format!("c{index}"), &image, &["sh", "-c", script]);
        let ended = node
            .run_to_end(&pod, config, |config| {
                use pinnace_conformance::cri::ContainerConfigParts as _;
                config.namespaces().pid = NamespaceMode::Node.into();
            })
            .await;
        assert_eq!((ended.status.exit_code, &*ended.status.reason), (code, reason), "{script}");
    }
}

#[tokio::test]
async fn command_and_arguments_merge_with_the_images() {
    let Some(node) = Node::start() else { return };
    let image = node.image("configured").await;
    let pod = node.run_pod("merge", |_| {}).await;
    let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (index, (command, args, expected)) in [
        (&[][..], &[][..], "entry default arguments\n"),
        (&[], &["mine"], "entry mine\n"),
        (&["/bin/echo", "other"], &[], "other\n"),
        (&["/bin/echo"], &["all", "mine"], "all mine\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = node.container(&pod.config, &format!("c{index}"), &image, &[]);
        let ended = node
            .run_to_end(&pod, config, |config| (config.command, config.args) = (list(command), list(args)))
            .await;
        assert_eq!(ended.stdout, expected, "{command:?} {args:?}");
    }
}

#[tokio::test]
async fn environment_directory_and_user_come_from_the_image() {
    let Some(node) = Node::start() else { return };
    let image = node.image("configured").await;
    let pod = node.run_pod("environment", |_| {}).await;
    let script = "pwd; id -u; id -g; id -G; echo $COLOUR $SIZE $HOME; printf %s \"$RAW\" | od -An -tx1";
    let config = node.container(&pod.config, "main", &image, &["sh", "-euc", script]);
    let ended = node
        .run_to_end(&pod, config, |config| {
            config.envs.push(KeyValue { key: "SIZE".into(), value: "large".into() });
            config.envs.push(KeyValue { key: "RAW".into(), value: vec![0xff, b'=', 0x80] });
        })
        .await;
    let expected = "/srv/here\n1000\n1000\n1000 50 2000\nblue large /home/worker\n ff 3d 80\n";
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
    let config = node.container(&pod.config, "other", &image, &["pwd"]);
    let ended = node.run_to_end(&pod, config, |config| config.working_dir = "/made/for/it".into()).await;
    assert_eq!(ended.stdout, "/made/for/it\n");
}

#[tokio::test]
async fn stop_asks_first() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("polite", POLITE).await;
    ready(&running).await;
    node.cri.stop(&running.container, 30).await.unwrap();
    let status = node.cri.status(&running.container).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    assert!(std::fs::read_to_string(&running.log).unwrap().contains("asked"));
    node.cri.stop(&running.container, 30).await.unwrap();
}

/// The kernel drops a signal that the first process of a PID namespace does not handle yet.
#[tokio::test]
async fn stop_waits_for_a_program_that_has_only_just_begun() {
    let Some(node) = Node::start() else { return };
    let script = "sleep 0.5; trap 'exit 7' TERM; while :; do sleep 0.05; done";
    let running = node.run_script("begun", script).await;
    let asked = std::time::Instant::now();
    node.cri.stop(&running.container, 60).await.unwrap();
    let status = node.cri.status(&running.container).await.unwrap();
    assert_eq!((status.exit_code, &*status.reason), (7, "Error"));
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn stop_kills_after_the_grace_period() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("stubborn", STUBBORN).await;
    ready(&running).await;
    let start = Instant::now();
    node.cri.stop(&running.container, 1).await.unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(990) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(node.cri.status(&running.container).await.unwrap().exit_code, 137);
}

#[tokio::test]
async fn stop_without_grace_kills_at_once() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("at-once", POLITE).await;
    ready(&running).await;
    let start = Instant::now();
    node.cri.stop(&running.container, 0).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(node.cri.status(&running.container).await.unwrap().exit_code, 137);
}

#[tokio::test]
async fn shorter_stop_overtakes_a_longer_one() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("overtaken", STUBBORN).await;
    ready(&running).await;
    let start = Instant::now();
    let (long, short) = tokio::join!(node.cri.stop(&running.container, 60), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.cri.stop(&running.container, 0).await
    });
    long.unwrap();
    short.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn longer_stop_extends_no_shorter_one() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("kept", STUBBORN).await;
    ready(&running).await;
    let start = Instant::now();
    // The one that asked first is gone when the other comes: its deadline stays.
    let first = tokio::time::timeout(Duration::from_millis(200), node.cri.stop(&running.container, 2)).await;
    assert!(first.is_err());
    node.cri.stop(&running.container, 60).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(node.cri.status(&running.container).await.unwrap().exit_code, 137);
}

#[tokio::test]
async fn stop_signal_is_the_pods_then_the_images() {
    let Some(node) = Node::start() else { return };
    let image = node.image("configured").await;
    let pod = node.run_pod("signals", |_| {}).await;
    let script = "trap 'exit 1' TERM; trap 'exit 10' USR1; trap 'exit 12' USR2; echo ready
                  while :; do sleep 0.05; done";
    for (name, signal, reported, code) in [
        ("image", Signal::RuntimeDefault, Signal::Sigusr1, 10),
        ("pod", Signal::Sigusr2, Signal::Sigusr2, 12),
    ] {
        let mut config = node.container(&pod.config, name, &image, &["sh", "-euc", script]);
        config.stop_signal = signal.into();
        let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
        ready(&running).await;
        node.cri.stop(&running.container, 20).await.unwrap();
        let status = node.cri.status(&running.container).await.unwrap();
        assert_eq!((status.exit_code, status.stop_signal()), (code, reported), "{name}");
    }
}

#[tokio::test]
async fn stop_and_remove_work_in_every_state() {
    let Some(node) = Node::start() else { return };
    let unknown = "e".repeat(64);
    node.cri.stop(&unknown, 1).await.unwrap();
    node.cri.remove(&unknown).await.unwrap();
    let image = node.image("busybox").await;
    let pod = node.run_pod("every", |_| {}).await;
    let before = node.baseline().await;
    let config = node.container(&pod.config, "main", &image, &["sh", "-euc", STUBBORN]);
    let log = node.log_path(&pod.config, &config);

    let created = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    node.cri.stop(&created, 1).await.unwrap();
    node.cri.remove(&created).await.unwrap();
    node.cri.remove(&created).await.unwrap();

    // The name is free again, and a running container can be removed.
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    node.cri.remove(&running.container).await.unwrap();
    node.cri.remove(&running.container).await.unwrap();
    assert!(log.exists(), "the log belongs to the kubelet");
    assert_eq!(node.cri.pod_status(&pod.id).await.unwrap().state(), PodSandboxState::SandboxReady);
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn name_and_attempt_are_unique_in_a_pod() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("names", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["true"]);
    let first = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    node.assert_fails(node.cri.create(&pod.id, &pod.config, &config).await, Code::AlreadyExists, "main");
    config.metadata.as_mut().unwrap().attempt = 1;
    let second = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    let other = node.run_pod("others", |_| {}).await;
    let third = node.cri.create(&other.id, &other.config, &config).await.unwrap();
    assert!(first != second && second != third);
}

#[tokio::test]
async fn call_whose_answer_was_lost_can_be_repeated() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("lost", |_| {}).await;
    for (round, deadline) in [1, 2, 4, 8, 16].into_iter().enumerate() {
        let config = node.container(&pod.config, &format!("c{round}"), &image, &["true"]);
        let create = node.cri.create(&pod.id, &pod.config, &config);
        let id = match tokio::time::timeout(Duration::from_millis(deadline), create).await {
            Ok(answer) => answer.unwrap(),
            Err(_) => match node.cri.create(&pod.id, &pod.config, &config).await {
                Ok(id) => id,
                // The answer was under way already: the container is there for the kubelet to find.
                Err(status) if status.code() == Code::AlreadyExists => {
                    let mut all = node.cri.containers().await.unwrap();
                    all.retain(|container| container.metadata == config.metadata);
                    all.pop().unwrap().id
                }
                Err(status) => panic!("after {deadline} ms: {status:?}"),
            },
        };
        node.cri.start(&id).await.unwrap();
        assert_eq!(node.cri.exited(&id).await.exit_code, 0);
        assert_eq!(node.cri.containers().await.unwrap().len(), round + 1, "after {deadline} ms");
    }
}

#[tokio::test]
async fn list_is_filtered_by_everything_at_once() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("listed", |_| {}).await;
    let other = node.run_pod("other", |_| {}).await;
    let make = async |pod: &pinnace_conformance::node::Pod, name: &str, start: bool| {
        let config = node.container(&pod.config, name, &image, &["sh", "-c", "exit 0"]);
        let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
        if start {
            node.cri.start(&id).await.unwrap();
            node.cri.exited(&id).await;
        }
        id
    };
    let (one, two, three) =
        (make(&pod, "one", false).await, make(&pod, "two", true).await, make(&other, "one", false).await);
    let list = async |id: &str, state: Option<ContainerState>, pod: &str, label: &str| {
        let filter = ContainerFilter {
            id: id.into(),
            state: state.map(|state| ContainerStateValue { state: state.into() }),
            pod_sandbox_id: pod.into(),
            label_selector: label.split_once('=').into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
        };
        let answer = node.cri.runtime().list_containers(ListContainersRequest { filter: Some(filter) }).await;
        let mut ids: Vec<_> =
            answer.unwrap().into_inner().containers.into_iter().map(|item| item.id).collect();
        ids.sort();
        ids
    };
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    let (created, exited) = (Some(ContainerState::ContainerCreated), Some(ContainerState::ContainerExited));
    assert_eq!(list("", None, "", "").await, sorted(&[&one, &two, &three]));
    assert_eq!(list("", created, "", "").await, sorted(&[&one, &three]));
    assert_eq!(list("", exited, "", "").await, sorted(&[&two]));
    assert_eq!(list("", None, &pod.id, "").await, sorted(&[&one, &two]));
    assert_eq!(list("", created, &pod.id, "").await, sorted(&[&one]));
    assert_eq!(list("", None, "", "io.kubernetes.container.name=one").await, sorted(&[&one, &three]));
    assert_eq!(list(&two[..16], None, "", "").await, sorted(&[&two]));
    assert_eq!(list(&two, created, "", "").await, sorted(&[]));
    let listed = node.cri.containers().await.unwrap();
    let entry = listed.iter().find(|item| item.id == two).unwrap();
    let status = node.cri.status(&two).await.unwrap();
    assert_eq!((&entry.image_id, entry.created_at), (&image, status.created_at));
    assert!(!entry.image_ref.is_empty());
    assert_eq!((&entry.pod_sandbox_id, entry.state()), (&pod.id, ContainerState::ContainerExited));
}

#[tokio::test]
async fn many_short_lives_are_all_seen() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.image("busybox").await;
    let pod = node.run_pod("short", |_| {}).await;
    for index in 0..20 {
        let config = node.container(
            &pod.config,
            &format!("c{index}"),
            &image,
            &["sh", "-c", &format!("exit {index}")],
        );
        let ended = node.run_to_end(&pod, config, |_| {}).await;
        assert_eq!(ended.status.exit_code, index);
        node.cri.remove(&ended.container).await.unwrap();
    }
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn file_system_of_a_container_is_its_own() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("own", |_| {}).await;
    node.script(&pod, "echo mine >/file; rm /etc/group; echo more >>/etc/passwd", |_| {}).await;
    let script = "ls /file 2>/dev/null | wc -l; cat /etc/group | head -1; tail -1 /etc/passwd | cut -d: -f1";
    assert_eq!(node.script(&pod, script, |_| {}).await, "0\nroot:x:0:\nnobody\n");
}

#[tokio::test]
async fn orphans_do_not_outlive_their_container() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running =
        node.run_script("orphans", "(setsid sleep 4242 &) ; (setsid sleep 4243 &) ; sleep 0.1").await;
    node.cri.exited(&running.container).await;
    let left = || node.world.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 424[23]' || true");
    let gone = pinnace_conformance::process::poll(Duration::from_secs(5), || left().is_empty().then_some(()));
    assert!(gone.is_some(), "{}", left());
    node.remove(&running.pod).await;
    node.assert_nothing_left(&before);
}
