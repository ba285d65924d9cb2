//! The systemd cgroup driver: containers are scopes, whatever is done to systemd and to the daemon.

use std::fs;
use std::path::Path;
use std::time::Instant;

use pinnace_conformance::process::poll;
use pinnace_cri_api::v1::*;

use crate::ground::{Host, LIMIT, cgroup, container, gone, may_change, pod, scope, sh, show, slice};

const MIB: i64 = 1 << 20;

fn limited(resources: &mut LinuxContainerResources) {
    resources.memory_limit_in_bytes = 64 * MIB;
    resources.cpu_quota = 50_000;
    resources.cpu_period = 100_000;
    resources.cpu_shares = 512;
    resources.cpuset_cpus = "0".to_owned();
    resources.unified =
        [("pids.max".to_owned(), "77".to_owned()), ("memory.high".to_owned(), "60000000".to_owned())].into();
}

fn file(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .trim()
        .to_owned()
}

fn assert_limited(directory: &Path) {
    assert_eq!(file(directory, "memory.max"), "67108864");
    assert_eq!(file(directory, "memory.high"), "59998208");
    assert_eq!(file(directory, "cpu.max"), "50000 100000");
    assert_eq!(file(directory, "cpu.weight"), "59");
    assert_eq!(file(directory, "pids.max"), "77");
    assert_eq!(file(directory, "cpuset.cpus"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_a_scope_with_its_limits() {
    if !may_change("a_container_is_a_scope_with_its_limits") {
        return;
    }
    let host = Host::start("").await;
    let answer = host.cri.runtime().runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.linux.unwrap().cgroup_driver(), CgroupDriver::Systemd);
    let pod = host.pod("scope-1");
    let script = "cat /proc/self/cgroup; exec sleep 1000";
    let (id, main) = host.run(&pod, &container(&host.images.busybox, script, limited)).await;
    let scope = scope(&main);
    assert_eq!(show(&scope, "ActiveState"), "active");
    assert_eq!(show(&scope, "Slice"), slice("scope-1"));
    assert_eq!(show(&scope, "Delegate"), "yes");
    let expected = format!("/kubepods.slice/kubepods-burstable.slice/{}/{scope}", slice("scope-1"));
    assert_eq!(show(&scope, "ControlGroup"), expected);
    for (property, value) in [
        ("MemoryMax", "67108864"),
        ("MemoryHigh", "60000000"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUWeight", "59"),
        ("TasksMax", "77"),
        ("AllowedCPUs", "0"),
    ] {
        assert_eq!(show(&scope, property), value, "{property}");
    }
    assert_limited(&cgroup(&scope));
    // Sessions are groups below, which delegation allows.
    let said = host.cri.exec(&main, &["sh", "-c", "echo in $(nproc)"], 30).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "in 1");
    host.cri.stop(&main, 0).await.unwrap();
    gone(&scope);
    host.cri.remove_pod(&id).await.unwrap();
    sh(&format!("systemctl stop {}", slice("scope-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_and_reexec_of_systemd_change_nothing() {
    if !may_change("reload_and_reexec_of_systemd_change_nothing") {
        return;
    }
    let host = Host::start("").await;
    let pod = host.pod("reload-1");
    let (id, main) = host.run(&pod, &container(&host.images.busybox, "exec sleep 1000", limited)).await;
    let directory = cgroup(&scope(&main));
    let device = "mknod /tmp/mem c 1 1; cat /tmp/mem 2>&1 | head -c 100; head -c 1 /dev/zero | wc -c";
    for verb in ["daemon-reload", "daemon-reexec", "daemon-reload"] {
        sh(&format!("systemctl {verb}"));
        assert_limited(&directory);
        let said = host.cri.exec(&main, &["sh", "-c", device], 60).await.unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("Operation not permitted") && said.ends_with("1\n"), "after {verb}: {said}");
        assert_eq!(show(&scope(&main), "ActiveState"), "active", "after {verb}");
    }
    // The connection has been made anew, and takes new limits and new containers.
    let mut change = LinuxContainerResources { memory_limit_in_bytes: 80 * MIB, ..Default::default() };
    change.cpu_quota = 12_500;
    change.cpu_period = 100_000;
    let request = UpdateContainerResourcesRequest {
        container_id: main.clone(),
        linux: Some(change),
        ..Default::default()
    };
    host.cri.runtime().update_container_resources(request).await.unwrap();
    assert_eq!(file(&directory, "memory.max"), (80 * MIB).to_string());
    assert_eq!(file(&directory, "cpu.max"), "12500 100000");
    assert_eq!(show(&scope(&main), "MemoryMax"), (80 * MIB).to_string());
    // In whole percents, not less than was asked for.
    assert_eq!(show(&scope(&main), "CPUQuotaPerSecUSec"), "130ms");
    sh("systemctl daemon-reload");
    assert_eq!(file(&directory, "memory.max"), (80 * MIB).to_string());
    // While systemd is away, too.
    let reexec = tokio::task::spawn_blocking(|| sh("systemctl daemon-reexec"));
    let mut config = container(&host.images.busybox, "exec sleep 1000", limited);
    config.metadata.as_mut().unwrap().name = "second".to_owned();
    let second = host.cri.create(&id, &pod, &config).await.unwrap();
    host.cri.start(&second).await.unwrap();
    reexec.await.unwrap();
    assert_eq!(show(&scope(&second), "ActiveState"), "active");
    assert_limited(&cgroup(&scope(&second)));
    host.cri.remove_pod(&id).await.unwrap();
    gone(&scope(&main));
    sh(&format!("systemctl stop {}", slice("reload-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_oom_kill_is_told_and_none_is_invented() {
    if !may_change("every_oom_kill_is_told_and_none_is_invented") {
        return;
    }
    let host = Host::start("").await;
    let pod = host.pod("oom-1");
    let id = host.cri.run_pod(&pod).await.unwrap();
    for round in 0..10 {
        let mut config = container(&host.images.busybox, "exec tail /dev/zero", |resources| {
            resources.memory_limit_in_bytes = 16 * MIB;
            resources.memory_swap_limit_in_bytes = 16 * MIB;
        });
        config.metadata.as_mut().unwrap().name = format!("oom-{round}");
        let victim = host.cri.create(&id, &pod, &config).await.unwrap();
        host.cri.start(&victim).await.unwrap();
        let status = host.cri.exited(&victim).await;
        assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137), "round {round}");
        gone(&scope(&victim));

        let mut config = container(&host.images.busybox, "trap '' TERM; sleep 1000", |_| {});
        config.metadata.as_mut().unwrap().name = format!("killed-{round}");
        let killed = host.cri.create(&id, &pod, &config).await.unwrap();
        host.cri.start(&killed).await.unwrap();
        host.cri.stop(&killed, 0).await.unwrap();
        let status = host.cri.exited(&killed).await;
        assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 137), "round {round}");
    }
    host.cri.remove_pod(&id).await.unwrap();
    sh(&format!("systemctl stop {}", slice("oom-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_systemd_stops_is_an_exit() {
    if !may_change("a_scope_that_systemd_stops_is_an_exit") {
        return;
    }
    let host = Host::start("").await;
    let pod = host.pod("stop-1");
    let script = "trap 'exit 3' TERM; while :; do sleep 0.1; done";
    let (id, main) = host.run(&pod, &container(&host.images.busybox, script, |_| {})).await;
    // The handler is set when the loop runs.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    sh(&format!("systemctl stop {}", scope(&main)));
    let status = host.cri.exited(&main).await;
    assert_eq!(status.exit_code, 3, "{status:?}");
    gone(&scope(&main));
    let pods = host.cri.pod_status(&id).await.unwrap();
    assert_eq!(pods.state(), PodSandboxState::SandboxReady);
    host.cri.remove(&main).await.unwrap();
    host.cri.remove_pod(&id).await.unwrap();
    sh(&format!("systemctl stop {}", slice("stop-1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_and_started_again_finds_its_scopes() {
    if !may_change("a_daemon_killed_and_started_again_finds_its_scopes") {
        return;
    }
    let host = Host::start("").await;
    let pod = host.pod("kill-1");
    let script = "until [ -e /tmp/go ]; do sleep 0.2; done; exit 5";
    let (id, main) = host.run(&pod, &container(&host.images.busybox, script, limited)).await;
    host.kill();
    assert_eq!(show(&scope(&main), "ActiveState"), "active");
    assert_limited(&cgroup(&scope(&main)));
    host.serve();
    assert_eq!(host.cri.status(&main).await.unwrap().state(), ContainerState::ContainerRunning);
    let request = UpdateContainerResourcesRequest {
        container_id: main.clone(),
        linux: Some(LinuxContainerResources { memory_limit_in_bytes: 70 * MIB, ..Default::default() }),
        ..Default::default()
    };
    host.cri.runtime().update_container_resources(request).await.unwrap();
    assert_eq!(show(&scope(&main), "MemoryMax"), (70 * MIB).to_string());
    host.cri.exec(&main, &["touch", "/tmp/go"], 60).await.unwrap();
    assert_eq!(host.cri.exited(&main).await.exit_code, 5);
    gone(&scope(&main));
    host.cri.remove_pod(&id).await.unwrap();
    sh(&format!("systemctl stop {}", slice("kill-1")));

    // Killed in the middle of starts: a container runs in a scope or has not begun, and nothing is left.
    for round in 0..5u64 {
        let pod = host.pod(&format!("cut-{round}"));
        let id = host.cri.run_pod(&pod).await.unwrap();
        let config = container(&host.images.busybox, "exec sleep 1000", limited);
        let main = host.cri.create(&id, &pod, &config).await.unwrap();
        let (cri, starting) = (host.cri.clone(), main.clone());
        let start = tokio::spawn(async move { cri.start(&starting).await });
        tokio::time::sleep(std::time::Duration::from_millis(60 * round)).await;
        host.kill();
        let _ = start.await;
        host.serve();
        let status = host.cri.status(&main).await.unwrap();
        // systemd hears of the end of a killed process in its own time.
        if status.state() == ContainerState::ContainerRunning {
            assert_eq!(show(&scope(&main), "ActiveState"), "active", "round {round}: {status:?}");
        } else {
            gone(&scope(&main));
        }
        host.cri.remove_pod(&id).await.unwrap();
        gone(&scope(&main));
        sh(&format!("systemctl stop {} 2>/dev/null; true", slice(&format!("cut-{round}"))));
    }
    assert_eq!(sh("find /sys/fs/cgroup -name 'pinnace-*.scope'"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_parent_has_a_slice_that_goes_with_it() {
    if !may_change("a_pod_without_parent_has_a_slice_that_goes_with_it") {
        return;
    }
    let host = Host::start("").await;
    let pod = pod("own-1", host.dir.path());
    let (id, main) = host.run(&pod, &container(&host.images.busybox, "exec sleep 1000", |_| {})).await;
    let slice = format!("pinnace-{id}.slice");
    assert_eq!(show(&scope(&main), "Slice"), slice);
    assert_eq!(show(&slice, "ActiveState"), "active");
    let directory = cgroup(&slice);
    assert_eq!(directory, Path::new("/sys/fs/cgroup/pinnace.slice").join(&slice));
    // Ours (`container.pids_limit`), not systemd's default, which is a part of what the machine can do.
    assert_eq!(file(&cgroup(&scope(&main)), "pids.max"), "32768");
    let stats = PodSandboxStatsRequest { pod_sandbox_id: id.clone() };
    let stats = host.cri.runtime().pod_sandbox_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.linux.unwrap().memory.unwrap().working_set_bytes.unwrap().value > 0);
    host.cri.remove_pod(&id).await.unwrap();
    gone(&slice);
    assert!(poll(LIMIT, || (!directory.exists()).then_some(())).is_some());
    // A plain parent is a plain directory, with this driver also.
    let mut plain = crate::ground::pod("plain-1", host.dir.path());
    plain.linux.as_mut().unwrap().cgroup_parent = "/pw-plain".to_owned();
    let (id, main) = host.run(&plain, &container(&host.images.busybox, "exec sleep 1000", |_| {})).await;
    assert!(Path::new("/sys/fs/cgroup/pw-plain").join(&main).exists());
    host.cri.remove_pod(&id).await.unwrap();
    fs::remove_dir("/sys/fs/cgroup/pw-plain").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_leaves_no_scope() {
    if !may_change("a_start_that_fails_leaves_no_scope") {
        return;
    }
    let host = Host::start("[container]\ncgroup_driver = \"systemd\"\n").await;
    let pod = host.pod("fail-1");
    let id = host.cri.run_pod(&pod).await.unwrap();
    let mut config = container(&host.images.busybox, "", limited);
    config.command = vec!["/no/such/program".to_owned()];
    let main = host.cri.create(&id, &pod, &config).await.unwrap();
    let refused = host.cri.start(&main).await.unwrap_err();
    assert!(refused.message().contains("/no/such/program"), "{refused:?}");
    let status = host.cri.status(&main).await.unwrap();
    assert_eq!((status.reason.as_str(), status.exit_code), ("StartError", 128), "{status:?}");
    gone(&scope(&main));
    host.cri.remove_pod(&id).await.unwrap();
    let mut plain = pod;
    plain.linux.as_mut().unwrap().cgroup_parent = "/kubepods/pod1".to_owned();
    let refused = host.cri.run_pod(&plain).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
}

/// Not a test of a limit: prints what a scope costs beside a directory.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout)]
async fn what_a_scope_costs() {
    if !may_change("what_a_scope_costs") {
        return;
    }
    for driver in ["systemd", "cgroupfs"] {
        let host = Host::start(&format!("[container]\ncgroup_driver = \"{driver}\"\n")).await;
        let pod = host.pod("cost-1");
        let id = host.cri.run_pod(&pod).await.unwrap();
        let mut took = Vec::new();
        for round in 0..12 {
            let mut config = container(&host.images.busybox, "exec sleep 1000", limited);
            config.metadata.as_mut().unwrap().name = format!("c{round}");
            let one = host.cri.create(&id, &pod, &config).await.unwrap();
            let begun = Instant::now();
            host.cri.start(&one).await.unwrap();
            took.push(begun.elapsed());
            host.cri.remove(&one).await.unwrap();
        }
        took.sort_unstable();
        println!("StartContainer, {driver}: median {:?}, fastest {:?}", took[took.len() / 2], took[0]);
        host.cri.remove_pod(&id).await.unwrap();
        sh(&format!("systemctl stop {} 2>/dev/null; true", slice("cost-1")));
    }
}
