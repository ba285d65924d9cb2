//! Requests that ask for more than a pod may have.

use std::collections::HashSet;
use std::fs;

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _, failure};
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

use crate::ground::{Canary, attempt};

/// Sysctls of namespaces that the pod shares with the host.
#[tokio::test]
async fn sysctls_of_the_host_s_namespaces_are_refused() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    for (number, (key, network, ipc)) in [
        ("net.ipv4.ip_forward", true, false),
        ("net.ipv4.ip_unprivileged_port_start", true, false),
        ("net/core/somaxconn", true, false),
        ("kernel.shmmni", false, true),
        ("kernel.msgmax", false, true),
        ("fs.mqueue.msg_max", false, true),
        ("kernel.core_pattern", false, false),
        ("kernel.core_pattern", true, true),
        ("vm.panic_on_oom", false, false),
        ("fs.file-max", false, false),
        ("net.ipv4/../../kernel/core_pattern", false, false),
        ("kernel.shm../core_pattern", false, false),
        ("../sys/kernel/core_pattern", false, false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = node.pod(&format!("sysctl-{number}"));
        if network {
            config.on_host_network();
        }
        if ipc {
            config.namespaces().ipc = NamespaceMode::Node.into();
        }
        config.linux().sysctls.insert(key.into(), "1".into());
        let (code, text) = failure(node.cri.run_pod(&config).await);
        assert!(matches!(code, Code::InvalidArgument | Code::FailedPrecondition), "{key}: {code:?} {text}");
    }
    assert!(node.cri.pods().await.unwrap().is_empty());
    canary.assert_untouched(&node);
}

/// One value for one key: separators of other programs' command lines mean nothing here.
#[tokio::test]
async fn sysctl_values_inject_no_other_sysctl() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    for (number, value) in [
        "1+kernel.core_pattern=|/bad",
        "1\nkernel.core_pattern=|/bad",
        "1\0kernel.core_pattern=|/bad",
        "1,kernel.core_pattern=|/bad",
        "1 -w kernel.core_pattern=|/bad",
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = node.pod(&format!("inject-{number}"));
        config.linux().sysctls.insert("kernel.shm_rmid_forced".into(), value.into());
        failure(node.cri.run_pod(&config).await);
        let mut config = node.pod(&format!("key-{number}"));
        config.linux().sysctls.insert(format!("kernel.shm_rmid_forced={value}"), "1".into());
        failure(node.cri.run_pod(&config).await);
        canary.assert_untouched(&node);
    }
    assert!(node.cri.pods().await.unwrap().is_empty());
}

/// Annotations are data: neither limits nor systemd units nor hooks nor capabilities come of them.
#[tokio::test]
async fn annotations_change_nothing() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    node.image("busybox").await;
    let command = format!("touch {}", canary.at("/ran"));
    let hook = format!(r#"{{"prestart":[{{"path":"/bin/sh","args":["sh","-c","{command}"]}}]}}"#);
    let annotations: Vec<(String, String)> = [
        ("io.kubernetes.cri-o.UnifiedCgroup.main", "memory.max=max;pids.max=max"),
        ("io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw", "true"),
        ("io.kubernetes.cri-o.userns-mode", "auto:size=65536"),
        ("io.kubernetes.cri-o.Devices", "/dev/kmsg:/dev/kmsg:rwm"),
        ("io.kubernetes.cri-o.ShmSize", "1Ti"),
        ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
        ("org.systemd.property.ExecStartPre", &command),
        ("org.systemd.property.ExecStopPost", &command),
        ("org.systemd.property.MemoryMax", "uint64 18446744073709551615"),
        ("run.oci.hooks.stdout", &canary.at("/ran")),
        ("run.oci.systemd.subgroup", "/"),
        ("run.oci.handler", "krun"),
        ("run.oci.mount_context_type", "context"),
        ("io.containerd.hooks", &hook),
        ("org.criu.config", "/etc/criu"),
        ("io.podman.annotations.checkpoint.name", "x"),
        ("io.podman.annotations.privileged", "TRUE"),
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("io.kubernetes.cri.untrusted-workload", "true"),
        ("container.apparmor.security.beta.kubernetes.io/main", "unconfined"),
        ("container.seccomp.security.alpha.kubernetes.io/main", "unconfined"),
        ("seccomp.security.alpha.kubernetes.io/pod", "unconfined"),
        ("cdi.k8s.io/none", ""),
        ("blockio.resources.beta.kubernetes.io/pod", "x"),
        ("cpu-load-balancing.crio.io", "disable"),
        ("io.kubernetes.cri-o.seccompNotifierAction", "stop"),
        ("io.pinnace.privileged", "true"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let pod = node
        .run_pod("annotated", |config| {
            config.annotations.extend(annotations.iter().cloned());
            config.labels.extend(annotations.iter().cloned());
        })
        .await;
    let script = "grep -E '^(Cap|Seccomp:|NoNewPrivs|Uid|Gid)' /proc/self/status; ls /dev; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true
                  mkdir /sys/fs/cgroup/x 2>/dev/null && echo WROTE; cut -d' ' -f5,6 /proc/self/mountinfo";
    let limit = |config: &mut ContainerConfig| config.resources().memory_limit_in_bytes = 64 << 20;
    let plain = node.run_pod("plain", |_| {}).await;
    let expected = node.script(&plain, script, limit).await;
    let said = node
        .script(&pod, script, |config| {
            limit(config);
            // Of a container this one says something: which devices its device plugins give it.
            let others = annotations.iter().filter(|(key, _)| !key.starts_with("cdi.k8s.io/"));
            config.annotations.extend(others.cloned());
            config.labels.extend(annotations.iter().cloned());
        })
        .await;
    assert_eq!(said, expected);
    assert!(said.contains("67108864"), "{said}");
    node.remove(&pod.id).await;
    canary.assert_untouched(&node);
}

/// Lengths that overflow small fields of small messages.
#[tokio::test]
async fn long_requests_arrive_whole_or_are_refused() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("long", |_| {}).await;
    let hosts: HashSet<_> = ["pid", "mnt", "net", "ipc", "uts", "cgroup"]
        .into_iter()
        .map(|kind| {
            fs::read_link(format!("/proc/{}/ns/{kind}", node.world.keeper())).unwrap().display().to_string()
        })
        .collect();
    let script = "readlink /proc/self/ns/pid /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/cgroup
                  echo variables $(env | grep -c ^LONG)";
    // 16 bits and one page more or less; a string of the kernel's is at most 128 KiB long (execve(2)).
    for bytes in [60_000, 65_535, 65_536, 65_537, 100_000, 131_000, 140_000, 1 << 20] {
        for (kind, count) in [("one", 1), ("many", 9)] {
            let outcome = attempt(&node, &pod, &format!("{kind}-{bytes}"), &image, script, |config| {
                for number in 0..count {
                    config.env(&format!("LONG{number}"), &"/proc/1/ns/net:".repeat(bytes / 15));
                }
            })
            .await;
            let text = outcome.text();
            assert!(hosts.iter().all(|namespace| !text.contains(namespace.as_str())), "{bytes} {kind}");
            if !outcome.is_refused() {
                assert!(text.contains(&format!("variables {count}\n")), "{bytes} {kind}");
            }
            assert!(outcome.is_refused() || bytes < 140_000, "{bytes} {kind}");
        }
        let groups: Vec<i64> = (0..i64::try_from(bytes / 8).unwrap()).collect();
        let outcome = attempt(&node, &pod, &format!("groups-{bytes}"), &image, script, |config| {
            config.security().supplemental_groups = groups;
        })
        .await;
        let text = outcome.text();
        assert!(hosts.iter().all(|namespace| !text.contains(namespace.as_str())), "{bytes}");
    }
    node.cri.sh(&node.run_script("after", "sleep 100").await.container, "true").await;
}

/// Containers that are created at once from one image share nothing that changes.
#[tokio::test]
async fn concurrent_creations_keep_their_own_environment() {
    let Some(node) = Node::start() else { return };
    let image = node.image("configured").await;
    let pod = node.run_pod("concurrent", |_| {}).await;
    let made = (0..60).map(|number| {
        let mut config =
            node.container(&pod.config, &format!("c{number}"), &image, &["/bin/sh", "-c", "env"]);
        config.env("MINE", &format!("value-{number}"));
        config.env(&format!("ONLY{number}"), "1");
        let (node, pod) = (&node, &pod);
        async move {
            let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
            node.cri.exited(&running.container).await;
            let entries = pinnace_conformance::log::read(&running.log).unwrap();
            let text = String::from_utf8(pinnace_conformance::log::stream(&entries, "stdout")).unwrap();
            assert!(text.contains(&format!("MINE=value-{number}\n")), "{number}: {text}");
            assert_eq!(text.matches("ONLY").count(), 1, "{number}: {text}");
        }
    });
    futures_util::future::join_all(made).await;
}

/// Logs lie below the pod's directory; nothing is followed, unmounted or written elsewhere.
#[tokio::test]
async fn log_paths_reach_nothing_of_the_host() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("logs", |_| {}).await;
    let directory = std::path::Path::new(&pod.config.log_directory).to_owned();
    std::os::unix::fs::symlink(canary.path().join("file"), directory.join("link.log")).unwrap();
    std::os::unix::fs::symlink(canary.path(), directory.join("linked")).unwrap();
    fs::write(directory.join("plain.log"), "").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.join("pipe.log"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for (number, path) in [
        "link.log".to_owned(),
        "linked/file".to_owned(),
        "linked/new.log".to_owned(),
        "pipe.log".to_owned(),
        format!("..{}/new.log", canary.climbing()),
        canary.at("/new.log"),
        "/etc/passwd".to_owned(),
        "../../../new.log".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = attempt(&node, &pod, &format!("c{number}"), &image, "echo written", |config| {
            config.log_path.clone_from(&path);
        })
        .await;
        assert!(outcome.is_refused(), "{path}: {outcome:?}");
        canary.assert_untouched(&node);
    }
}
