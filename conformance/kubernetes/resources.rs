//! Requests and limits: in the cgroup, changed in place, enforced.

use serde_json::{Value, json};

use crate::ground::{Ground, IDLE, busybox};

/// Prints what the container's cgroup allows: bytes of memory, CPU quota and period.
const LIMITS: &str = "cd /sys/fs/cgroup; if [ -e memory.max ]; then echo $(cat memory.max) $(cat cpu.max)
    else echo $(cat memory/memory.limit_in_bytes) $(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_period_us); fi";

fn limited(name: &str, script: &str, memory: &str, cpu: &str) -> Value {
    let mut container = busybox(name, script);
    container["resources"] =
        json!({ "limits": { "memory": memory, "cpu": cpu }, "requests": { "memory": "16Mi", "cpu": "50m" } });
    container
}

pub async fn limits_are_in_the_cgroup(ground: &Ground) {
    ground.deploy("limits", json!({ "containers": [limited("main", IDLE, "48Mi", "300m")] })).await;
    let seen = ground.ready("limits").await;
    assert_eq!(seen.object()["status"]["qosClass"], "Burstable", "{seen:?}");
    assert_eq!(ground.sh("limits", "main", LIMITS).await, "50331648 30000 100000\n");
    let resources = &seen.container("main")["resources"];
    assert_eq!(resources["limits"]["memory"], "48Mi", "{resources}");
    assert_eq!(resources["limits"]["cpu"], "300m", "{resources}");
    ground.remove("limits").await;
}

pub async fn resources_change_in_place(ground: &Ground) {
    // A manifest with a UID of its own stays the same pod when it changes.
    let metadata = json!({ "uid": "11111111-2222-3333-4444-555555555555" });
    let spec = |memory: &str, cpu: &str| json!({ "containers": [limited("main", IDLE, memory, cpu)] });
    ground.deploy_with("resize", metadata.clone(), spec("48Mi", "300m")).await;
    let before = ground.ready("resize").await;
    assert_eq!(ground.sh("resize", "main", LIMITS).await, "50331648 30000 100000\n");
    for (memory, cpu, expected) in
        [("96Mi", "500m", "100663296 50000 100000\n"), ("64Mi", "200m", "67108864 20000 100000\n")]
    {
        ground.deploy_with("resize", metadata.clone(), spec(memory, cpu)).await;
        let now = ground
            .until("resize", "the new limits", |seen| {
                let limits = &seen.container("main")["resources"]["limits"];
                (limits["memory"] == memory && limits["cpu"] == cpu).then(|| seen.clone())
            })
            .await;
        assert_eq!(now.id("main"), before.id("main"), "the container was replaced");
        assert_eq!(now.restarts("main"), 0);
        assert_eq!(ground.sh("resize", "main", LIMITS).await, expected);
    }
    ground
        .until("resize", "no resize under way", |seen| {
            (!seen.is("PodResizeInProgress") && !seen.is("PodResizePending")).then_some(())
        })
        .await;
    ground.remove("resize").await;
}

pub async fn an_edited_manifest_replaces_the_pod(ground: &Ground) {
    ground.deploy("edited", json!({ "containers": [limited("main", IDLE, "48Mi", "300m")] })).await;
    let before = ground.ready("edited").await;
    ground.deploy("edited", json!({ "containers": [limited("main", IDLE, "80Mi", "300m")] })).await;
    ground
        .until("edited", "another container", |seen| {
            let id = seen.container("main")["containerID"].as_str()?;
            (seen.is("Ready") && !id.ends_with(&before.id("main"))).then_some(())
        })
        .await;
    assert_eq!(ground.sh("edited", "main", LIMITS).await, "83886080 30000 100000\n");
    ground.remove("edited").await;
}

pub async fn too_much_memory_is_told_as_such(ground: &Ground) {
    let script = "sleep 1; exec tail -c 90000000 /dev/zero";
    let spec = json!({ "restartPolicy": "Never", "containers": [limited("main", script, "24Mi", "500m")] });
    ground.deploy("oom", spec).await;
    let seen = ground.ended("oom").await;
    let state = seen.terminated("main").unwrap();
    assert_eq!(state["reason"], "OOMKilled", "{state}: {}", ground.output("oom", "main"));
    ground.remove("oom").await;
}
