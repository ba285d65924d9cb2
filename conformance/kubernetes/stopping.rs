//! How containers end: hooks, grace, messages.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::containers::{host_directory, mounted};
use crate::ground::{Ground, busybox, idle};

pub async fn a_stop_runs_the_hook_and_leaves_time(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "graceful");
    let script =
        "trap 'echo told >>/d/log; sleep 1; echo ends >>/d/log; exit 0' TERM\nwhile :; do sleep 0.1; done";
    let mut container = mounted(busybox("main", script), "host", "/d");
    container["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sh", "-c", "echo hook >>/d/log; sleep 1; echo hook ends >>/d/log"] } } });
    let spec = json!({ "terminationGracePeriodSeconds": 30, "volumes": [volume], "containers": [container] });
    ground.deploy("graceful", spec).await;
    ground.ready("graceful").await;
    let begun = Instant::now();
    ground.remove("graceful").await;
    assert!(begun.elapsed() < Duration::from_secs(28), "it took the whole grace: {:?}", begun.elapsed());
    assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "hook\nhook ends\ntold\nends\n");
}

pub async fn who_does_not_listen_is_killed_after_the_grace(ground: &Ground) {
    let (dir, volume) = host_directory(ground, "deaf");
    let script = "trap 'date +%s >/d/told' TERM\nwhile :; do date +%s >/d/alive; sleep 0.1; done";
    let spec = json!({
        "terminationGracePeriodSeconds": 4,
        "volumes": [volume],
        "containers": [mounted(busybox("main", script), "host", "/d")],
    });
    ground.deploy("deaf", spec).await;
    ground.ready("deaf").await;
    ground.remove("deaf").await;
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap().trim().parse::<u64>().unwrap();
    let lived = read("alive") - read("told");
    assert!((3..=8).contains(&lived), "{lived} s");
}

pub async fn hooks_after_the_start(ground: &Ground) {
    let hook = |script: &str| json!({ "postStart": { "exec": { "command": ["sh", "-c", script] } } });
    let mut good = busybox("good", "until [ -e /tmp/hook ]; do sleep 0.1; done; while :; do sleep 0.2; done");
    good["lifecycle"] = hook("touch /tmp/hook; sleep 1; touch /tmp/hooked");
    let mut http = busybox("http", "mkdir /www; touch /www/started; exec httpd -f -v -p 8085 -h /www");
    http["lifecycle"] = json!({
        // The hook may come before the server listens.
        "postStart": { "sleep": { "seconds": 1 } },
        "preStop": { "httpGet": { "path": "/started", "port": 8085 } },
    });
    ground.deploy("hooks", json!({ "containers": [good, http] })).await;
    ground.ready("hooks").await;
    assert_eq!(ground.sh("hooks", "good", "ls /tmp/hooked").await, "/tmp/hooked\n");

    let mut bad = idle("bad");
    bad["lifecycle"] = hook("echo the hook fails >&2; exit 5");
    ground.deploy("hook-fails", json!({ "containers": [bad] })).await;
    ground
        .until("hook-fails", "a container ended by its hook", |seen| {
            (seen.last("bad").is_some() || seen.terminated("bad").is_some()).then_some(())
        })
        .await;
    ground.remove("hook-fails").await;
    let log = ground.log_directory("hooks", "http").await.join("0.log");
    // Read through a descriptor: the directory goes with the pod.
    let mut file = fs::File::open(&log).unwrap();
    ground.remove("hooks").await;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut file, &mut text).unwrap();
    assert!(text.contains("started") || text.contains("response:200"), "{text}");
}

pub async fn termination_messages(ground: &Ground) {
    let mut file = busybox("file", "echo by file >/dev/termination-log; exit 1");
    file["terminationMessagePolicy"] = "File".into();
    let mut path = busybox("path", "mkdir -p /m; printf elsewhere >/m/message");
    path["terminationMessagePath"] = "/m/message".into();
    let mut fallback = busybox("fallback", "for i in 1 2 3; do echo line $i; done; exit 2");
    fallback["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    let mut fine = busybox("fine", "echo all is fine");
    fine["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    let mut large = busybox("large", "head -c 20000 /dev/zero | tr '\\0' x >/dev/termination-log");
    large["terminationMessagePolicy"] = "File".into();
    let spec = json!({ "restartPolicy": "Never", "containers": [file, path, fallback, fine, large] });
    ground.deploy("messages", spec).await;
    let seen = ground.ended("messages").await;
    let message = |name: &str| seen.terminated(name).unwrap()["message"].as_str().unwrap_or_default();
    assert_eq!(message("file"), "by file\n");
    assert_eq!(message("path"), "elsewhere");
    assert_eq!(message("fallback"), "line 1\nline 2\nline 3\n");
    assert_eq!(message("fine"), "");
    assert!(
        message("large").starts_with("xxxx") && message("large").len() <= 4096,
        "{}",
        message("large").len()
    );
    ground.remove("messages").await;
}
