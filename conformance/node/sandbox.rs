//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox.

use std::time::{Duration, SystemTime};

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _};
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

#[tokio::test]
async fn ready_pod_is_described_as_it_was_asked_for() {
    let Some(node) = Node::start() else { return };
    let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let pod = node
        .run_pod("described", |config| {
            config.labels.insert("empty".into(), String::new());
            config.annotations.insert("text".into(), "ünïcode {\"json\": true}\n".into());
        })
        .await;
    let end = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let status = node.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(status.id, pod.id);
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    let created = Duration::from_nanos(status.created_at.try_into().unwrap());
    assert!(start <= created && created <= end, "{created:?}");
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.network(), NamespaceMode::Pod);
    assert_eq!(options.pid(), NamespaceMode::Container);

    let listed = node.cri.pods().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, pod.id);
    assert_eq!(listed[0].labels, pod.config.labels);
    assert_eq!(listed[0].annotations, pod.config.annotations);
    assert_eq!(listed[0].created_at, status.created_at);
}

#[tokio::test]
async fn list_is_filtered_by_everything_at_once() {
    let Some(node) = Node::start() else { return };
    let one = node.run_pod("one", |config| drop(config.labels.insert("tier".into(), "front".into()))).await;
    let two = node.run_pod("two", |config| drop(config.labels.insert("tier".into(), "back".into()))).await;
    node.cri.stop_pod(&two.id).await.unwrap();
    let list = async |id: &str, state: Option<PodSandboxState>, label: &str| {
        let filter = PodSandboxFilter {
            id: id.into(),
            state: state.map(|state| PodSandboxStateValue { state: state.into() }),
            label_selector: label.split_once('=').into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
        };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let items = node.cri.runtime().list_pod_sandbox(request).await.unwrap().into_inner().items;
        let mut ids: Vec<_> = items.into_iter().map(|item| item.id).collect();
        ids.sort();
        ids
    };
    let mut both = vec![one.id.clone(), two.id.clone()];
    both.sort();
    let (ready, stopped) = (Some(PodSandboxState::SandboxReady), Some(PodSandboxState::SandboxNotready));
    assert_eq!(list("", None, "").await, both);
    assert_eq!(list("", ready, "").await, [&*one.id]);
    assert_eq!(list("", stopped, "").await, [&*two.id]);
    assert_eq!(list("", None, "tier=back").await, [&*two.id]);
    assert_eq!(list("", None, "tier=").await, [""; 0]);
    assert_eq!(list(&one.id, None, "").await, [&*one.id]);
    assert_eq!(list(&one.id[..20], None, "").await, [&*one.id], "a unique prefix");
    assert_eq!(list(&one.id, None, "tier=back").await, [""; 0]);
    assert_eq!(list("no-such-id", None, "").await, [""; 0]);
}

#[tokio::test]
async fn stop_kills_everything_and_can_be_repeated() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("stopped", "trap '' TERM; while :; do sleep 0.05; done").await;
    node.cri.stop_pod(&running.pod).await.unwrap();
    let status = node.cri.pod_status(&running.pod).await.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    let container = node.cri.status(&running.container).await.unwrap();
    assert_eq!((container.state(), container.exit_code), (ContainerState::ContainerExited, 137));
    node.cri.stop_pod(&running.pod).await.unwrap();
    let pod = node.pod("stopped");
    let config = node.container(&pod, "late", &container.image_id, &["true"]);
    let late = node.cri.create(&running.pod, &pod, &config).await;
    node.assert_fails(late, Code::FailedPrecondition, &running.pod);
    node.cri.remove_pod(&running.pod).await.unwrap();
    node.cri.remove_pod(&running.pod).await.unwrap();
    node.assert_fails(node.cri.pod_status(&running.pod).await, Code::NotFound, &running.pod);
    node.assert_fails(node.cri.status(&running.container).await, Code::NotFound, &running.container);
    assert_eq!(node.cri.pods().await.unwrap(), []);
    assert_eq!(node.cri.containers().await.unwrap(), []);
}

#[tokio::test]
async fn remove_without_stop_stops_first() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let running = node.run_script("removed", "while :; do sleep 0.05; done").await;
    node.cri.remove_pod(&running.pod).await.unwrap();
    assert_eq!(node.cri.pods().await.unwrap(), []);
    assert_eq!(node.cri.containers().await.unwrap(), []);
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn unknown_pod_can_be_stopped_and_removed() {
    let Some(node) = Node::start() else { return };
    let unknown = "f".repeat(64);
    node.cri.stop_pod(&unknown).await.unwrap();
    node.cri.remove_pod(&unknown).await.unwrap();
    node.assert_fails(node.cri.pod_status(&unknown).await, Code::NotFound, &unknown);
}

#[tokio::test]
async fn name_is_taken_until_the_pod_is_removed() {
    let Some(node) = Node::start() else { return };
    let pod = node.run_pod("taken", |_| {}).await;
    node.assert_fails(node.cri.run_pod(&pod.config).await, Code::AlreadyExists, "taken");
    let mut second = pod.config.clone();
    second.metadata.as_mut().unwrap().attempt = 1;
    let other = node.cri.run_pod(&second).await.unwrap();
    assert_ne!(other, pod.id);
    node.remove(&pod.id).await;
    let again = node.cri.run_pod(&pod.config).await.unwrap();
    assert_ne!(again, pod.id);
    assert_eq!(node.cri.pods().await.unwrap().len(), 2);
}

#[tokio::test]
async fn call_that_is_repeated_while_it_runs_makes_one_pod() {
    let Some(node) = Node::start() else { return };
    let config = node.pod("once");
    let (one, two) = tokio::join!(node.cri.run_pod(&config), node.cri.run_pod(&config));
    let ids: Vec<_> = [one, two].into_iter().flatten().collect();
    assert!(!ids.is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(node.cri.pods().await.unwrap().len(), 1);
}

#[tokio::test]
async fn call_whose_answer_was_lost_can_be_repeated() {
    let Some(node) = Node::start() else { return };
    for (round, deadline) in [1, 2, 4, 8, 16, 32].into_iter().enumerate() {
        let config = node.pod(&format!("lost-{round}"));
        let lost = tokio::time::timeout(Duration::from_millis(deadline), node.cri.run_pod(&config)).await;
        let id = match lost {
            Ok(answer) => answer.unwrap(),
            Err(_) => match node.cri.run_pod(&config).await {
                Ok(id) => id,
                // The answer was under way already: the pod is there for the kubelet to find.
                Err(status) if status.code() == Code::AlreadyExists => {
                    node.cri.pods().await.unwrap()[0].id.clone()
                }
                Err(status) => panic!("after {deadline} ms: {status:?}"),
            },
        };
        assert_eq!(node.cri.pods().await.unwrap().len(), 1, "after {deadline} ms");
        node.remove(&id).await;
    }
}

#[tokio::test]
async fn wrong_configurations_are_refused_by_field() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    type Change = fn(&mut PodSandboxConfig);
    let changes: [(&str, Change); 10] = [
        ("metadata", |config| config.metadata = None),
        ("metadata.name", |config| config.metadata.as_mut().unwrap().name.clear()),
        ("metadata.namespace", |config| config.metadata.as_mut().unwrap().namespace.clear()),
        ("metadata.uid", |config| config.metadata.as_mut().unwrap().uid.clear()),
        ("hostname", |config| config.hostname = "x".repeat(65)),
        ("log_directory", |config| config.log_directory = "relative/logs".into()),
        ("run_as_group", |config| config.security().run_as_group = Some(Int64Value { value: 5 })),
        ("network", |config| config.namespaces().network = NamespaceMode::Container.into()),
        ("sysctls", |config| drop(config.linux().sysctls.insert("kernel.panic".into(), "1".into()))),
        ("host_port", |config| {
            config.port_mappings.push(PortMapping {
                container_port: 80,
                host_port: 70_000,
                ..PortMapping::default()
            });
        }),
    ];
    for (field, change) in changes {
        let mut config = node.pod("wrong");
        change(&mut config);
        let answer = node.cri.run_pod(&config).await;
        let (code, text) = pinnace_conformance::cri::failure(answer);
        assert_eq!(code, Code::InvalidArgument, "{field}: {text}");
        let names = [field, "kernel.panic", "70000"];
        assert!(names.iter().any(|name| text.contains(name)), "{field} is not named: {text}");
    }
    let request = RunPodSandboxRequest { config: Some(node.pod("wrong")), runtime_handler: "no-such".into() };
    let answer = node.cri.runtime().run_pod_sandbox(request).await;
    node.assert_fails(answer, Code::InvalidArgument, "no-such");
    assert_eq!(node.cri.pods().await.unwrap(), []);
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn sysctls_hold_in_the_pod_only() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node
        .run_pod("sysctls", |config| {
            config.linux().sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
            config.linux().sysctls.insert("net.core.somaxconn".into(), "321".into());
        })
        .await;
    let read = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn";
    assert_eq!(node.script(&pod, read, |_| {}).await, "1\n321\n");
    assert_ne!(node.world.sh(read), "1\n321\n");
}

#[tokio::test]
async fn namespaces_are_shared_as_asked() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let namespaces = "for name in ipc uts net pid; do readlink /proc/self/ns/$name; done";
    let ids = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
    let with_pid =
        |mode: NamespaceMode| move |config: &mut ContainerConfig| config.namespaces().pid = mode.into();

    // Everything but the PID namespace is the pod's.
    let pod = node.run_pod("own-pid", |_| {}).await;
    let one = ids(&node.script(&pod, namespaces, |_| {}).await);
    let two = ids(&node.script(&pod, namespaces, |_| {}).await);
    let host = ids(&node.world.sh(namespaces));
    assert_eq!(one[..3], two[..3]);
    assert!((0..4).all(|index| one[index] != host[index]), "{one:?} {host:?}");
    assert_eq!(node.script(&pod, "echo $$", |_| {}).await, "1\n");
    // What a client says that says nothing is what the pod has.
    assert_eq!(node.script(&pod, "echo $$", with_pid(NamespaceMode::Pod)).await, "1\n");

    let pod = node.run_pod("pod-pid", |config| config.namespaces().pid = NamespaceMode::Pod.into()).await;
    let one = ids(&node.script(&pod, namespaces, with_pid(NamespaceMode::Pod)).await);
    let two = ids(&node.script(&pod, namespaces, with_pid(NamespaceMode::Pod)).await);
    assert_eq!(one, two);
    assert_ne!(one[3], host[3]);
    assert_ne!(node.script(&pod, "echo $$", with_pid(NamespaceMode::Pod)).await, "1\n");

    let pod = node
        .run_pod("node", |config| {
            config.namespaces().pid = NamespaceMode::Node.into();
            config.namespaces().ipc = NamespaceMode::Node.into();
        })
        .await;
    let change = |config: &mut ContainerConfig| {
        config.namespaces().pid = NamespaceMode::Node.into();
        config.namespaces().ipc = NamespaceMode::Node.into();
    };
    let one = ids(&node.script(&pod, namespaces, change).await);
    assert_eq!((&one[0], &one[3]), (&host[0], &host[3]));
    let one = ids(&node.script(&pod, namespaces, with_pid(NamespaceMode::Pod)).await);
    assert_eq!(one[3], host[3]);
}

#[tokio::test]
async fn pid_namespace_of_another_container_can_be_joined() {
    let Some(node) = Node::start() else { return };
    let target = node.run_script("target", "trap 'exit 0' TERM; while :; do sleep 0.05; done").await;
    let pod = pinnace_conformance::node::Pod { id: target.pod.clone(), config: node.pod("target") };
    let join = |id: String| {
        move |config: &mut ContainerConfig| {
            config.namespaces().pid = NamespaceMode::Target.into();
            config.namespaces().target_id = id;
        }
    };
    let seen = node.script(&pod, "cat /proc/1/cmdline | tr '\\0' ' '", join(target.container.clone())).await;
    assert!(seen.contains("trap"), "process 1 is not the target's: {seen}");
    // Gone, and in another pod.
    let image = node.images.image_id("busybox");
    let other = node.run_pod("other", |_| {}).await;
    let mut config = node.container(&other.config, "joins", &image, &["true"]);
    join(target.container.clone())(&mut config);
    let answer = node.cri.create(&other.id, &other.config, &config).await;
    let (code, text) = pinnace_conformance::cri::failure(answer);
    assert!(
        [Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound].contains(&code),
        "{code:?} {text}"
    );
    node.cri.stop(&target.container, 5).await.unwrap();
    let answer = node.cri.create(&pod.id, &pod.config, &config).await;
    assert!(pinnace_conformance::cri::failure(answer).1.contains(&target.container));
}

#[tokio::test]
async fn shared_memory_is_the_pods() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("shm", |_| {}).await;
    node.script(&pod, "echo shared >/dev/shm/file", |_| {}).await;
    let seen =
        node.script(&pod, "cat /dev/shm/file; stat -c %a /dev/shm; df -k /dev/shm | tail -1", |_| {}).await;
    let mut lines = seen.lines();
    assert_eq!((lines.next(), lines.next()), (Some("shared"), Some("1777")));
    let size: Vec<_> = lines.next().unwrap_or_default().split_whitespace().map(String::from).collect();
    assert_eq!(size[1], "65536", "64 MiB: {size:?}");
    let other = node.run_pod("other-shm", |_| {}).await;
    assert_eq!(node.script(&other, "ls /dev/shm", |_| {}).await, "");
}

/// There is no pause container here: what a pod says of one is checked, and nothing of it reaches the pod's containers.
#[tokio::test]
async fn what_is_said_of_a_pause_container_reaches_no_other() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    #[allow(deprecated)]
    let pod = node
        .run_pod("paused", |config| {
            config.windows = Some(WindowsPodSandboxConfig::default());
            let security = config.security();
            security.run_as_user = Some(Int64Value { value: 4711 });
            security.run_as_group = Some(Int64Value { value: 4712 });
            security.supplemental_groups = vec![4713];
            security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
            security.readonly_rootfs = true;
            security.seccomp = None;
            security.seccomp_profile_path = "localhost//no/such/profile".into();
            security.apparmor = Some(SecurityProfile {
                profile_type: security_profile::ProfileType::Unconfined.into(),
                localhost_ref: String::new(),
            });
        })
        .await;
    let script = "id -u; id -g; id -G | tr ' ' '\n' | grep -c 471 || true; echo x >/writable && echo written
                  grep ^Seccomp: /proc/self/status | tr -dc 0-9";
    assert_eq!(node.script(&pod, script, |_| {}).await, "0\n0\n0\nwritten\n2");
}

/// The pod's configuration is the one that it was run with, whatever a later call says it was; and what an image's name
/// carries along is nobody's control.
#[tokio::test]
async fn configuration_is_the_one_that_the_pod_was_run_with() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("kept", |_| {}).await;
    let mut other = node.pod("other");
    other.hostname = "elsewhere".into();
    other.on_host_network();
    other.security().privileged = true;
    let mut config = node.container(&pod.config, "main", &image, &["hostname"]);
    config.windows = Some(WindowsContainerConfig::default());
    config.image.as_mut().unwrap().annotations.insert("runtime".into(), "other".into());
    let id = node.cri.create(&pod.id, &other, &config).await.unwrap();
    node.cri.start(&id).await.unwrap();
    let status = node.cri.exited(&id).await;
    let log = node.log_path(&pod.config, &config);
    assert_eq!(status.log_path, log.display().to_string());
    assert_eq!(
        pinnace_conformance::log::stream(&pinnace_conformance::log::read(&log).unwrap(), "stdout"),
        b"kept\n"
    );
    assert!(status.image.unwrap().annotations.is_empty());
    let mut privileged = node.container(&pod.config, "privileged", &image, &["true"]);
    privileged.security().privileged = true;
    let answer = node.cri.create(&pod.id, &other, &privileged).await;
    node.assert_fails(answer, Code::InvalidArgument, "privileged");
    let answer = node.cri.create(&pod.id, &PodSandboxConfig::default(), &privileged).await;
    node.assert_fails(answer, Code::InvalidArgument, "privileged");
}
