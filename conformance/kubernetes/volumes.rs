//! Volumes that need no API server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::containers::{host_directory, mounted};
use crate::ground::{Ground, busybox, image};

pub async fn host_paths(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "hostpath");
    fs::write(dir.join("file"), "from the node\n").unwrap();
    let made = dir.join("made/here");
    let output = ground
        .script("hostpath", "cat /d/file /single; echo back >/d/back; echo x >/made/x; ls /fifo", |spec| {
            let container = mounted(spec["containers"][0].clone(), "host", "/d");
            let container = mounted(mounted(container, "single", "/single"), "made", "/made");
            spec["containers"][0] = mounted(container, "device", "/fifo");
            spec["volumes"] = json!([
                volume,
                { "name": "single", "hostPath": { "path": dir.join("file"), "type": "File" } },
                { "name": "made", "hostPath": { "path": made, "type": "DirectoryOrCreate" } },
                { "name": "device", "hostPath": { "path": "/dev/null", "type": "CharDevice" } },
            ]);
        })
        .await;
    assert_eq!(output, "from the node\nfrom the node\n/fifo\n");
    assert_eq!(fs::read_to_string(dir.join("back")).unwrap(), "back\n");
    assert_eq!(fs::read_to_string(made.join("x")).unwrap(), "x\n");
}

pub async fn empty_directories(ground: &Ground) {
    let container = |name: &str, script: &str| {
        let container = mounted(busybox(name, script), "disk", "/disk");
        mounted(container, "memory", "/memory")
    };
    let reader = "until [ -e /disk/x ] && [ -e /memory/x ]; do sleep 0.1; done; cat /disk/x /memory/x
        stat -c %a /disk; grep ' /memory ' /proc/mounts | cut -d' ' -f3
        df -k /memory | tail -1 | awk '{ print $2 }'";
    let spec = json!({
        "restartPolicy": "Never",
        "volumes": [
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
        ],
        "containers": [container("writer", "echo d >/disk/x; echo m >/memory/x"), container("reader", reader)],
    });
    ground.deploy("emptydir", spec).await;
    let seen = ground.ended("emptydir").await;
    assert_eq!(seen.phase(), "Succeeded", "{}", ground.output("emptydir", "reader"));
    assert_eq!(ground.output("emptydir", "reader"), "d\nm\n777\ntmpfs\n8192\n");
    let root = ground.world.dir().join("kubelet/root/pods");
    let uid = seen.object()["metadata"]["uid"].as_str().unwrap().to_string();
    assert!(root.join(&uid).exists());
    ground.remove("emptydir").await;
    // The kubelet takes volumes down behind its pod.
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while root.join(&uid).exists() || ground.world.sh("cat /proc/self/mounts").contains(&uid) {
        assert!(tokio::time::Instant::now() < end, "volumes of {uid} are left");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}

/// Projected volumes are made the same way, and the kubelet refuses them without an API server.
pub async fn downward_api(ground: &Ground) {
    let metadata = json!({ "labels": { "app": "down" }, "annotations": { "note": "two words" } });
    let script =
        "echo $NAME $IP_OF_NODE $LIMIT; [ -n \"$IP\" ]; cat /down/labels; echo; grep note /down/notes
        cat /down/cpu; echo; cat /down/part/name; echo; stat -L -c %a /down/part/name";
    let mut container = mounted(busybox("main", script), "down", "/down");
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    container["env"] = json!([
        { "name": "NAME", "valueFrom": field("metadata.name") },
        { "name": "IP", "valueFrom": field("status.podIP") },
        { "name": "IP_OF_NODE", "valueFrom": field("status.hostIP") },
        { "name": "LIMIT", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } } },
    ]);
    container["resources"] = json!({ "limits": { "memory": "64Mi", "cpu": "250m" } });
    let items = json!([
        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "notes", "fieldRef": { "fieldPath": "metadata.annotations" } },
        { "path": "cpu", "resourceFieldRef": { "containerName": "main", "resource": "limits.cpu", "divisor": "1m" } },
        { "path": "part/name", "fieldRef": { "fieldPath": "metadata.name" }, "mode": 0o440 },
    ]);
    let spec = json!({
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            { "name": "down", "downwardAPI": { "items": items } },
        ],
    });
    ground.deploy_with("downward", metadata, spec).await;
    let seen = ground.ended("downward").await;
    let output = ground.output("downward", "main");
    assert_eq!(seen.phase(), "Succeeded", "{output}\n{seen:?}");
    let expected = format!(
        "downward-node {} 67108864\napp=\"down\"\nnote=\"two words\"\n250\ndownward-node\n440\n",
        crate::kubelet::ADDRESS
    );
    assert_eq!(output, expected);
    ground.remove("downward").await;
}

/// Without an API server the kubelet knows of no runtime handler, and so of none that can recursive read-only mounts: what
/// may be recursive is not, and what must be is refused by it.
pub async fn read_only_file_systems(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "readonly");
    fs::create_dir_all(dir.join("sub")).unwrap();
    ground.world.sh(&format!("mount -t tmpfs tmpfs {}", dir.join("sub").display()));
    let script = "denied() { ! touch $1 2>/tmp/why; grep -q 'Read-only file system' /tmp/why; }
        denied /root/x; denied /plain/x; denied /deep/x
        touch /plain/sub/x; touch /tmp/x; echo all denied";
    let output = ground
        .script("readonly", script, |spec| {
            spec["volumes"] = json!([volume, { "name": "tmp", "emptyDir": {} }]);
            let container = &mut spec["containers"][0];
            container["securityContext"] = json!({ "readOnlyRootFilesystem": true });
            container["volumeMounts"] = json!([
                { "name": "tmp", "mountPath": "/tmp" },
                { "name": "host", "mountPath": "/plain", "readOnly": true },
                { "name": "host", "mountPath": "/deep", "readOnly": true, "recursiveReadOnly": "IfPossible" },
            ]);
        })
        .await;
    assert_eq!(output, "all denied\n");
    ground.world.sh(&format!("umount {}", dir.join("sub").display()));
}

pub async fn sub_paths_and_propagation(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "subpath");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let script = "echo sub >/sub/x; echo expanded >/expanded/y
        until [ -e /shared/late/seen ]; do sleep 0.1; done; cat /shared/late/seen";
    let mut spec =
        json!({ "restartPolicy": "Never", "volumes": [volume], "containers": [busybox("main", script)] });
    spec["containers"][0]["env"] =
        json!([{ "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }]);
    spec["containers"][0]["volumeMounts"] = json!([
        { "name": "host", "mountPath": "/sub", "subPath": "below/here" },
        { "name": "host", "mountPath": "/expanded", "subPathExpr": "$(POD)" },
        { "name": "host", "mountPath": "/shared", "mountPropagation": "HostToContainer" },
    ]);
    ground.deploy("subpath", spec).await;
    ground.until("subpath", "running", |seen| seen.running("main").then_some(())).await;
    let late = dir.join("late");
    ground
        .world
        .sh(&format!("mkdir -p {0}; mount -t tmpfs tmpfs {0}; echo propagated >{0}/seen", late.display()));
    let seen = ground.ended("subpath").await;
    assert_eq!(seen.phase(), "Succeeded", "{seen:?}");
    assert_eq!(ground.output("subpath", "main"), "propagated\n");
    assert_eq!(fs::read_to_string(dir.join("below/here/x")).unwrap(), "sub\n");
    assert_eq!(fs::read_to_string(dir.join("subpath-node/y")).unwrap(), "expanded\n");
    ground.remove("subpath").await;
    ground.world.sh(&format!("umount {}", late.display()));
}

pub async fn image_volumes(ground: &Ground) {
    let reference = image("nginx");
    let script =
        "cat /image/srv/index.html /srv/index.html; ! touch /image/x 2>/dev/null; ls /image/usr/sbin/nginx";
    let mut spec = json!({ "restartPolicy": "Never", "containers": [busybox("main", script)] });
    spec["volumes"] =
        json!([{ "name": "image", "image": { "reference": reference, "pullPolicy": "IfNotPresent" } }]);
    spec["containers"][0]["volumeMounts"] = json!([
        { "name": "image", "mountPath": "/image" },
        { "name": "image", "mountPath": "/srv", "subPath": "srv" },
    ]);
    ground.deploy("imagevolume", spec).await;
    let seen = ground.ended("imagevolume").await;
    let output = ground.output("imagevolume", "main");
    assert_eq!(seen.phase(), "Succeeded", "{output}\n{seen:?}");
    assert_eq!(output, "nginx in a pod\nnginx in a pod\n/image/usr/sbin/nginx\n");
    ground.remove("imagevolume").await;
}
