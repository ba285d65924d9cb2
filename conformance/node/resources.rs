//! Limits: what is asked for is what the kernel has, and what happens at the limit is told.

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _};
use pinnace_conformance::node::{Node, Running};
use pinnace_cri_api::v1::*;
use tonic::Code;

const MIB: i64 = 1 << 20;

/// A file of the cgroup of the container that sleeps for 4245 seconds: of v1 by controller, of v2 by its other name.
fn cgroup_file(node: &Node, controller: &str, v1: &str, v2: &str) -> String {
    let pid = node.world.sh("grep -lzx 424[5] /proc/[0-9]*/cmdline | tail -1");
    let proc = node.world.inside(pid.trim().trim_end_matches("/cmdline"));
    let cgroups = std::fs::read_to_string(proc.join("cgroup")).unwrap();
    let of = |wanted: &str| {
        cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            controllers.split(',').any(|name| name == wanted).then_some(path.to_string())
        })
    };
    // Seen from here the path begins at our root of the hierarchy; the world's own part is its directory's.
    let (path, file) = of(controller).map_or_else(|| (of("").expect("a v2 path"), v2), |path| (path, v1));
    let world = node.world.cgroup(controller, "").expect("a hierarchy");
    let name = world.file_name().unwrap().to_string_lossy().into_owned();
    let inside = path.split_once(&*name).map_or(&*path, |(_, inside)| inside);
    let file = world.join(inside.trim_start_matches('/')).join(file);
    std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        .trim()
        .to_string()
}

async fn sleeping(node: &Node, name: &str, change: impl FnOnce(&mut ContainerConfig)) -> Running {
    let image = node.image("busybox").await;
    let pod = node.pod(name);
    let mut config = node.container(&pod, "main", &image, &["sleep", "4245"]);
    change(&mut config);
    node.run(&pod, &config).await.unwrap_or_else(|status| panic!("run {name}: {status:?}"))
}

async fn update(node: &Node, id: &str, linux: LinuxContainerResources) -> Result<(), tonic::Status> {
    let request =
        UpdateContainerResourcesRequest { container_id: id.into(), linux: Some(linux), ..Default::default() };
    node.cri.runtime().update_container_resources(request).await.map(drop)
}

#[tokio::test]
async fn limits_are_in_force_and_can_be_changed() {
    let Some(node) = Node::start() else { return };
    let running = sleeping(&node, "limits", |config| {
        let resources = config.resources();
        (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (50_000, 25_000, 512);
        resources.memory_limit_in_bytes = 64 * MIB;
        resources.cpuset_cpus = "0".into();
        resources.oom_score_adj = 321;
    })
    .await;
    let v2 = node.world.is_cgroup_v2();
    let read = |controller, v1, v2| cgroup_file(&node, controller, v1, v2);
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (64 * MIB).to_string());
    if v2 {
        assert_eq!(read("cpu", "", "cpu.max"), "25000 50000");
    } else {
        assert_eq!(read("cpu", "cpu.cfs_quota_us", ""), "25000");
        assert_eq!(read("cpu", "cpu.cfs_period_us", ""), "50000");
        assert_eq!(read("cpu", "cpu.shares", ""), "512");
    }
    assert_eq!(read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(node.cri.sh(&running.container, "cat /proc/1/oom_score_adj").await, "321\n");
    let status = node.cri.status(&running.container).await.unwrap();
    let reported = status.resources.unwrap().linux.unwrap();
    assert_eq!((reported.cpu_quota, reported.memory_limit_in_bytes), (25_000, 64 * MIB));

    // What is zero or empty stays as it is.
    let change =
        LinuxContainerResources { memory_limit_in_bytes: 96 * MIB, cpu_quota: 30_000, ..Default::default() };
    update(&node, &running.container, change).await.unwrap();
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (96 * MIB).to_string());
    if v2 {
        assert_eq!(read("cpu", "", "cpu.max"), "30000 50000");
    } else {
        assert_eq!(read("cpu", "cpu.cfs_quota_us", ""), "30000");
        assert_eq!(read("cpu", "cpu.shares", ""), "512");
    }
    let status = node.cri.status(&running.container).await.unwrap();
    let reported = status.resources.unwrap().linux.unwrap();
    assert_eq!((reported.cpu_quota, reported.memory_limit_in_bytes), (30_000, 96 * MIB));
    assert_eq!((reported.cpu_period, reported.cpu_shares, &*reported.cpuset_cpus), (50_000, 512, "0"));
    node.remove(&running.pod).await;
}

#[tokio::test]
async fn update_that_cannot_be_is_refused_whole() {
    let Some(node) = Node::start() else { return };
    let running =
        sleeping(&node, "refused", |config| config.resources().memory_limit_in_bytes = 64 * MIB).await;
    let before = node.cri.status(&running.container).await.unwrap();
    let wrong =
        LinuxContainerResources { cpu_quota: 20_000, cpuset_cpus: "4000".into(), ..Default::default() };
    let answer = update(&node, &running.container, wrong).await;
    assert!(pinnace_conformance::cri::failure(answer).1.contains("4000"));
    assert_eq!(node.cri.status(&running.container).await.unwrap(), before, "part of the update was applied");
    let quota = cgroup_file(&node, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "-1" || quota.starts_with("max"), "part of the update is in force: {quota}");
    let unknown = "c".repeat(64);
    let answer =
        update(&node, &unknown, LinuxContainerResources { cpu_shares: 2, ..Default::default() }).await;
    node.assert_fails(answer, Code::NotFound, &unknown);
}

/// A change of what is no cgroup file belongs to the whole as well: with a score that nobody may have, limits stay too.
#[tokio::test]
async fn update_reaches_the_oom_score_of_what_runs() {
    let Some(node) = Node::start() else { return };
    let running = sleeping(&node, "score", |config| {
        config.resources().memory_limit_in_bytes = 64 * MIB;
        config.resources().oom_score_adj = 500;
    })
    .await;
    let change = LinuxContainerResources { oom_score_adj: 600, ..Default::default() };
    update(&node, &running.container, change).await.unwrap();
    assert_eq!(
        node.cri.sh(&running.container, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await,
        "600\n600\n"
    );
    let before = node.cri.status(&running.container).await.unwrap();
    // The record cannot be replaced: its name is taken by a directory.
    let obstacle = node.daemon.run.join("containers").join(&running.container).join("container.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    let change = LinuxContainerResources {
        oom_score_adj: 700,
        memory_limit_in_bytes: 96 * MIB,
        cpu_quota: 20_000,
        ..Default::default()
    };
    let (_, text) =
        pinnace_conformance::cri::failure(update(&node, &running.container, change.clone()).await);
    assert!(text.contains("container.json"), "{text}");
    assert_eq!(node.cri.status(&running.container).await.unwrap(), before, "part of the update is shown");
    let limit = || cgroup_file(&node, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit(), (64 * MIB).to_string(), "part of the update is in force");
    let quota = cgroup_file(&node, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "-1" || quota.starts_with("max"), "part of the update is in force: {quota}");
    assert_eq!(
        node.cri.sh(&running.container, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await,
        "600\n600\n"
    );
    std::fs::remove_dir(&obstacle).unwrap();
    update(&node, &running.container, change).await.unwrap();
    assert_eq!(limit(), (96 * MIB).to_string());
}

#[tokio::test]
async fn processes_are_limited_where_configured() {
    let change = |config: String| config + "[container]\npids_limit = 20\n";
    let Some(node) = Node::start_changed(change) else { return };
    let running = sleeping(&node, "pids", |_| {}).await;
    assert_eq!(cgroup_file(&node, "pids", "pids.max", "pids.max"), "20");
    let script = "for i in $(seq 40); do sleep 5 & done 2>&1; true";
    let done = node.cri.exec(&running.container, &["sh", "-c", script], 30).await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("fork"), "{said}");
    // An update does not lose it.
    update(&node, &running.container, LinuxContainerResources { cpu_shares: 99, ..Default::default() })
        .await
        .unwrap();
    assert_eq!(cgroup_file(&node, "pids", "pids.max", "pids.max"), "20");
    node.cri.stop(&running.container, 0).await.unwrap();
}

/// Where the kernel limits huge pages the limit is there; elsewhere there are none to be limited.
#[tokio::test]
async fn huge_pages_are_limited_where_the_kernel_can() {
    let Some(node) = Node::start() else { return };
    let limit = |page_size: &str, limit: u64| HugepageLimit { page_size: page_size.into(), limit };
    let running = sleeping(&node, "pages", |config| {
        config.resources().hugepage_limits = vec![limit("2MB", 4 << 20)];
    })
    .await;
    let status = node.cri.status(&running.container).await.unwrap();
    let reported = status.resources.unwrap().linux.unwrap();
    assert_eq!(reported.hugepage_limits, [limit("2MB", 4 << 20)]);
    let controllers = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let has = controllers.lines().any(|line| line.starts_with("hugetlb\t") && line.ends_with("\t1"));
    let mounted = node.world.cgroups().iter().any(|cgroup| cgroup.v1_options.contains("hugetlb"));
    let sized = std::path::Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists();
    if has && sized && (mounted || node.world.is_cgroup_v2()) {
        let file = cgroup_file(&node, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max");
        assert_eq!(file, (4 << 20).to_string());
    }
    for wrong in ["2XB", "../2MB", ""] {
        let change = LinuxContainerResources { hugepage_limits: vec![limit(wrong, 1)], ..Default::default() };
        node.assert_fails(update(&node, &running.container, change).await, Code::InvalidArgument, "pageSize");
    }
}

#[tokio::test]
async fn created_container_can_be_updated() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("created", |_| {}).await;
    let config = node.container(&pod.config, "main", &image, &["sleep", "4245"]);
    let id = node.cri.create(&pod.id, &pod.config, &config).await.unwrap();
    let change = LinuxContainerResources { memory_limit_in_bytes: 48 * MIB, ..Default::default() };
    update(&node, &id, change).await.unwrap();
    node.cri.start(&id).await.unwrap();
    let limit = cgroup_file(&node, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (48 * MIB).to_string());
}

#[tokio::test]
async fn memory_beyond_the_limit_is_oom_killed() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("oom", |_| {}).await;
    let limit = |config: &mut ContainerConfig| {
        config.resources().memory_limit_in_bytes = 24 * MIB;
        config.resources().memory_swap_limit_in_bytes = 24 * MIB;
    };
    let eat = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    // The first process dies at once: nobody may look at its cgroup too late. Beside each, one that is not out of memory.
    for round in 0..10 {
        let command = ["sh", "-c", &format!("exec {eat}")];
        let eats = node.container(&pod.config, &format!("eats-{round}"), &image, &command);
        let fails = node.container(&pod.config, &format!("fails-{round}"), &image, &["false"]);
        let (eats, fails) =
            tokio::join!(node.run_to_end(&pod, eats, limit), node.run_to_end(&pod, fails, limit));
        assert_eq!((eats.status.exit_code, &*eats.status.reason), (137, "OOMKilled"), "round {round}");
        assert_eq!((fails.status.exit_code, &*fails.status.reason), (1, "Error"), "round {round}");
    }
    // Killed, but not by the kernel; and ended by itself after a child was killed.
    let config = node.container(&pod.config, "killed", &image, &["sh", "-c", "kill -9 $$"]);
    let ended = node
        .run_to_end(&pod, config, |config| {
            limit(config);
            config.namespaces().pid = NamespaceMode::Node.into();
        })
        .await;
    assert_eq!((ended.status.exit_code, &*ended.status.reason), (137, "Error"));
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn exec_counts_in_the_containers_cgroup() {
    let Some(node) = Node::start() else { return };
    let running = sleeping(&node, "exec", |config| config.resources().memory_limit_in_bytes = 24 * MIB).await;
    let eat = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"];
    let done = node.cri.exec(&running.container, &eat, 30).await.unwrap();
    assert_ne!(done.exit_code, 0, "a command had more memory than its container");
    let own = node.cri.sh(&running.container, "cat /proc/self/cgroup | grep -v ':memory:\\|::' | sort").await;
    let first = node.cri.sh(&running.container, "cat /proc/1/cgroup | grep -v ':memory:\\|::' | sort").await;
    assert_eq!(own, first);
}

async fn update_pod(node: &Node, request: UpdatePodSandboxResourcesRequest) -> Result<(), tonic::Status> {
    node.cri.runtime().update_pod_sandbox_resources(request).await.map(drop)
}

/// What the pod's record says of its size.
async fn pod_size(node: &Node, id: &str) -> serde_json::Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
    let answer = node.cri.runtime().pod_sandbox_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let config = &info["record"]["config"];
    serde_json::json!([config["overhead"]["cpu_shares"], config["resources"]["memory_limit_bytes"]])
}

#[tokio::test]
async fn pods_size_is_recorded_and_limits_nothing() {
    let Some(mut node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let size = |cpu_shares: i64, memory: i64| LinuxContainerResources {
        cpu_shares,
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    let pod = node
        .run_pod("size", |config| {
            config.linux().overhead = Some(size(11, 0));
            config.linux().resources = Some(size(0, 64 * MIB));
        })
        .await;
    assert_eq!(pod_size(&node, &pod.id).await, serde_json::json!([11, 64 * MIB]));
    let config = node.container(&pod.config, "main", &image, &["sleep", "4245"]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let limit = || cgroup_file(&node, "memory", "memory.limit_in_bytes", "memory.max");
    let unlimited = limit();
    let request = |id: &str, overhead, resources| UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        overhead,
        resources,
    };
    // What is left out stays.
    update_pod(&node, request(&pod.id, None, Some(size(0, 96 * MIB)))).await.unwrap();
    assert_eq!(pod_size(&node, &pod.id).await, serde_json::json!([11, 96 * MIB]));
    update_pod(&node, request(&pod.id, Some(size(12, 0)), None)).await.unwrap();
    assert_eq!(pod_size(&node, &pod.id).await, serde_json::json!([12, 96 * MIB]));
    assert_eq!(limit(), unlimited, "the pod's size is the kubelet's to enforce");
    let wrong = LinuxContainerResources { cpu_quota: -7, ..Default::default() };
    let answer = update_pod(&node, request(&pod.id, None, Some(wrong))).await;
    node.assert_fails(answer, Code::InvalidArgument, "resources.cpu_quota");
    let unknown = "e".repeat(64);
    node.assert_fails(update_pod(&node, request(&unknown, None, None)).await, Code::NotFound, &unknown);
    node.daemon.kill();
    node.restart();
    assert_eq!(pod_size(&node, &pod.id).await, serde_json::json!([12, 96 * MIB]), "after a restart");
    assert_eq!(node.cri.status(&running.container).await.unwrap().state(), ContainerState::ContainerRunning);
    node.cri.stop_pod(&pod.id).await.unwrap();
    let answer = update_pod(&node, request(&pod.id, None, None)).await;
    node.assert_fails(answer, Code::FailedPrecondition, &pod.id);
    node.cri.remove_pod(&pod.id).await.unwrap();
}

#[tokio::test]
async fn update_looks_at_the_linux_part_alone() {
    let Some(node) = Node::start() else { return };
    let running = sleeping(&node, "linux", |config| config.resources().cpu_shares = 512).await;
    let request = UpdateContainerResourcesRequest {
        container_id: running.container.clone(),
        linux: Some(LinuxContainerResources { cpu_shares: 600, ..Default::default() }),
        windows: Some(WindowsContainerResources::default()),
        annotations: [("io.kubernetes.cri-o.cpu-shares".into(), "2".into())].into(),
    };
    node.cri.runtime().update_container_resources(request).await.unwrap();
    let resources = node.cri.status(&running.container).await.unwrap().resources.unwrap();
    assert_eq!((resources.linux.unwrap().cpu_shares, resources.windows), (600, None));
    let request = PodSandboxStatsRequest { pod_sandbox_id: running.pod.clone() };
    let stats = node.cri.runtime().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.linux.is_some() && stats.windows.is_none());
    let request = UpdateContainerResourcesRequest { container_id: running.container, ..Default::default() };
    let answer = node.cri.runtime().update_container_resources(request).await;
    node.assert_fails(answer, Code::InvalidArgument, "linux");
}
