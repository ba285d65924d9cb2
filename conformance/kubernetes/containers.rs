//! Containers of a pod over time: init containers, sidecars, restarts.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ground::{Ground, IDLE, busybox, idle};

/// A directory of the node for one pod, and the volume that it is for a manifest.
pub fn host_directory(ground: &Ground, name: &str) -> (std::path::PathBuf, Value) {
    let dir = ground.world.dir().join("host").join(name);
    fs::create_dir_all(&dir).unwrap();
    let volume = json!({ "name": "host", "hostPath": { "path": dir, "type": "Directory" } });
    (dir, volume)
}

/// A container with a volume mounted.
pub fn mounted(mut container: Value, volume: &str, at: &str) -> Value {
    let mount = json!({ "name": volume, "mountPath": at });
    match container["volumeMounts"].as_array_mut() {
        Some(mounts) => mounts.push(mount),
        None => container["volumeMounts"] = json!([mount]),
    }
    container
}

pub async fn init_containers_run_in_order(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "init");
    let at = |container| mounted(container, "host", "/d");
    let spec = json!({
        "restartPolicy": "OnFailure",
        "volumes": [volume],
        "initContainers": [
            at(busybox("first", "sleep 1; echo first >>/d/log")),
            at(busybox("second", "[ -e /d/tried ] || { touch /d/tried; exit 3; }; echo second >>/d/log")),
        ],
        "containers": [at(busybox("main", "echo main >>/d/log"))],
    });
    ground.deploy("init", spec).await;
    let seen = ground.ended("init").await;
    assert_eq!(seen.phase(), "Succeeded");
    assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "first\nsecond\nmain\n");
    assert_eq!((seen.restarts("first"), seen.restarts("second")), (0, 1), "{seen:?}");
    assert!(seen.is("Initialized"), "{seen:?}");
    ground.remove("init").await;
}

pub async fn sidecars_start_first_and_end_last(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "sidecar");
    let at = |container| mounted(container, "host", "/d");
    let script = "trap 'echo side ends >>/d/log; exit 0' TERM\nsleep 1; echo side >>/d/log; touch /tmp/up\n\
                  while :; do sleep 0.1; done";
    let mut side = at(busybox("side", script));
    side["restartPolicy"] = "Always".into();
    side["startupProbe"] = json!({ "exec": { "command": ["test", "-e", "/tmp/up"] }, "periodSeconds": 1, "failureThreshold": 100 });
    let spec = json!({
        "restartPolicy": "Never",
        "volumes": [volume],
        "initContainers": [side, at(busybox("init", "echo init >>/d/log"))],
        "containers": [at(busybox("main", "echo main >>/d/log; until [ -e /d/end ]; do sleep 0.1; done; echo main ends >>/d/log"))],
    });
    ground.deploy("sidecar", spec).await;
    ground.until("sidecar", "main running", |seen| seen.running("main").then_some(())).await;
    let log = || fs::read_to_string(dir.join("log")).unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while log() != "side\ninit\nmain\n" {
        assert!(tokio::time::Instant::now() < end, "{}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fs::write(dir.join("end"), "").unwrap();
    let seen = ground.ended("sidecar").await;
    assert_eq!(seen.phase(), "Succeeded", "{seen:?}");
    assert_eq!(log(), "side\ninit\nmain\nmain ends\nside ends\n");
    ground.remove("sidecar").await;
}

pub async fn a_sidecar_that_ends_is_started_again(ground: &Ground) {
    let mut side = idle("side");
    side["restartPolicy"] = "Always".into();
    let spec = json!({ "restartPolicy": "Never", "initContainers": [side], "containers": [idle("main")] });
    ground.deploy("sidecar-again", spec).await;
    ground.ready("sidecar-again").await;
    ground.sh("sidecar-again", "side", "kill -TERM 1").await;
    let seen = ground
        .until("sidecar-again", "the sidecar again", |seen| {
            (seen.restarts("side") == 1 && seen.running("side")).then(|| seen.clone())
        })
        .await;
    assert_eq!(seen.restarts("main"), 0, "{seen:?}");
    assert!(seen.running("main"), "{seen:?}");
    ground.remove("sidecar-again").await;
}

pub async fn restart_policies(ground: &Ground) {
    let containers = json!([busybox("good", "exit 0"), busybox("bad", "exit 7")]);
    let mut one_good = containers.clone();
    // Fails once.
    let (_, volume) = host_directory(ground, "policy");
    one_good[1] = mounted(busybox("bad", "[ -e /d/tried ] || { touch /d/tried; exit 7; }"), "host", "/d");
    for (policy, containers) in [("Never", &containers), ("OnFailure", &one_good), ("Always", &containers)] {
        let name = format!("policy-{}", policy.to_lowercase());
        ground
            .deploy(&name, json!({ "restartPolicy": policy, "volumes": [volume], "containers": containers }))
            .await;
    }
    let seen = ground.ended("policy-never").await;
    assert_eq!(seen.phase(), "Failed", "{seen:?}");
    assert_eq!((seen.restarts("good"), seen.restarts("bad")), (0, 0), "{seen:?}");
    let (good, bad) = (seen.terminated("good").unwrap(), seen.terminated("bad").unwrap());
    assert_eq!((&good["exitCode"], &good["reason"]), (&0.into(), &"Completed".into()));
    assert_eq!((&bad["exitCode"], &bad["reason"]), (&7.into(), &"Error".into()));
    assert!(bad["startedAt"].as_str().unwrap() <= bad["finishedAt"].as_str().unwrap(), "{bad}");

    let seen = ground.ended("policy-onfailure").await;
    assert_eq!(seen.phase(), "Succeeded", "{seen:?}");
    assert_eq!((seen.restarts("good"), seen.restarts("bad")), (0, 1), "{seen:?}");

    ground
        .until("policy-always", "restarts of both", |seen| {
            (seen.restarts("good") >= 1 && seen.restarts("bad") >= 1).then_some(())
        })
        .await;
    for policy in ["never", "onfailure", "always"] {
        ground.remove(&format!("policy-{policy}")).await;
    }
}

pub async fn a_container_that_crashes_backs_off(ground: &Ground) {
    ground.deploy("backoff", json!({ "containers": [busybox("crash", "exit 9"), idle("calm")] })).await;
    let seen = ground
        .until("backoff", "CrashLoopBackOff", |seen| {
            let waiting = &seen.container("crash")["state"]["waiting"];
            (waiting["reason"] == "CrashLoopBackOff" && seen.restarts("crash") >= 1).then(|| seen.clone())
        })
        .await;
    assert_eq!(seen.last("crash").unwrap()["exitCode"], 9, "{seen:?}");
    assert_eq!(seen.phase(), "Running", "{seen:?}");
    ground.until("backoff", "a second restart", |seen| (seen.restarts("crash") >= 2).then_some(())).await;
    assert_eq!(ground.now("backoff").restarts("calm"), 0);
    // The kubelet keeps the last dead container of each and removes the others.
    let name = format!("backoff-{}", crate::ground::NODE);
    let end = tokio::time::Instant::now() + Duration::from_secs(90);
    loop {
        let all = ground.cri().await.containers().await.unwrap();
        let of_pod = all.iter().filter(|c| {
            c.labels.get("io.kubernetes.pod.name") == Some(&name)
                && c.labels.get("io.kubernetes.container.name").is_some_and(|container| container == "crash")
        });
        let count = of_pod.count();
        if (1..=2).contains(&count) {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{count} dead containers");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    ground.remove("backoff").await;
}

pub async fn what_cannot_start_says_why(ground: &Ground) {
    let mut missing = busybox("missing", IDLE);
    missing["command"] = json!(["/no/such/program"]);
    let mut absent = idle("absent");
    absent["image"] = crate::ground::image("no-such-image").into();
    ground.deploy("cannot", json!({ "containers": [missing, absent] })).await;
    let why = |container: &'static str, reasons: &'static [&'static str], text: &'static str| {
        move |seen: &crate::ground::Seen| {
            let status = seen.container(container);
            let states = [
                &status["state"]["waiting"],
                &status["state"]["terminated"],
                &status["lastState"]["terminated"],
            ];
            let matches = |state: &&&Value| {
                reasons.iter().any(|reason| state["reason"] == *reason)
                    && state["message"].as_str().is_some_and(|message| message.contains(text))
            };
            states.iter().find(matches).map(|_| ())
        }
    };
    let reasons = &["StartError", "RunContainerError", "ContainerCannotRun", "CreateContainerError"];
    ground.until("cannot", "the program's name", why("missing", reasons, "/no/such/program")).await;
    ground
        .until(
            "cannot",
            "the image's name",
            why("absent", &["ErrImagePull", "ImagePullBackOff"], "no-such-image"),
        )
        .await;
    ground.remove("cannot").await;
}
