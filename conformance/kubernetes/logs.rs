//! Logs of containers: through the kubelet's API, and what rotation makes of them.

use std::fs;
use std::io::Read as _;
use std::time::Duration;

use pinnace_conformance::log;
use serde_json::json;

use crate::ground::{Ground, busybox};

pub async fn logs_through_the_api(ground: &Ground) {
    let script = "echo run; for i in 1 2 3 4 5; do echo out $i; done; echo err >&2; printf unfinished
        until [ -e /tmp/more ]; do sleep 0.1; done; echo; echo more; until [ -e /tmp/end ]; do sleep 0.1; done; exit 4";
    ground.deploy("logs", json!({ "containers": [busybox("main", script)] })).await;
    ground.until("logs", "running", |seen| seen.running("main").then_some(())).await;
    let path = "/containerLogs/default/logs-node/main";
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while !ground.get(path).contains("err\n") {
        assert!(tokio::time::Instant::now() < end, "{}", ground.get(path));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let all = ground.get(path);
    for line in ["run\n", "out 1\nout 2\nout 3\nout 4\nout 5\n", "err\n"] {
        assert!(all.contains(line), "{all}");
    }
    assert_eq!(ground.get(&format!("{path}?limitBytes=5")), "run\no");
    let stamped = ground.get(&format!("{path}?timestamps=true&limitBytes=20"));
    assert!(stamped.starts_with("20") && stamped.contains('T'), "{stamped}");
    assert_eq!(ground.get(&format!("{path}?sinceTime=2100-01-01T00:00:00Z")), "");
    assert!(ground.curl(&["--fail"], &format!("{path}?previous=true")).is_err());
    assert!(ground.curl(&["--fail"], "/containerLogs/default/logs-node/none").is_err());

    // Who follows sees what comes, to the end of the container.
    let mut follow = ground.world.command("curl");
    follow.args(["--silent", "--insecure", "--no-buffer", "--noproxy", "*", "--max-time", "60"]);
    follow.arg(format!("{}{path}?follow=true&tailLines=2", crate::ground::API));
    let follow = tokio::task::spawn_blocking(move || follow.output().unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    ground.sh("logs", "main", "touch /tmp/more").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ground.sh("logs", "main", "touch /tmp/end").await;
    let followed = follow.await.unwrap();
    let followed = String::from_utf8_lossy(&followed.stdout).into_owned();
    assert!(followed.ends_with("unfinished\nmore\n"), "{followed:?}");

    ground
        .until("logs", "a restart", |seen| {
            (seen.restarts("main") >= 1 && seen.last("main").is_some()).then_some(())
        })
        .await;
    let previous = ground.get(&format!("{path}?previous=true"));
    assert!(previous.ends_with("more\n"), "{previous}");
    ground.remove("logs").await;
}

pub async fn logs_are_rotated_without_a_gap(ground: &Ground) {
    const LINES: usize = 6000;
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo \"number $i of a line that is neither short nor long\"; i=$((i + 1))
         [ $((i % 300)) != 0 ] || sleep 1; done; echo done; while :; do sleep 0.2; done"
    );
    let mut container = busybox("main", &script);
    container["command"][1] = "-ec".into();
    ground.deploy("rotation", json!({ "containers": [container] })).await;
    ground.until("rotation", "running", |seen| seen.running("main").then_some(())).await;
    let path = "/containerLogs/default/rotation-node/main?tailLines=1";
    let end = tokio::time::Instant::now() + Duration::from_secs(120);
    while ground.get(path) != "done\n" {
        assert!(tokio::time::Instant::now() < end, "{}", ground.get(path));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The last rotation may still be going on.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let dir = ground.log_directory("rotation", "main").await;
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    // 0.log is the newest; the others end in their time.
    files.sort_by_key(|path| (path.extension().is_some_and(|ext| ext == "log"), path.clone()));
    assert!((2..=3).contains(&files.len()), "{files:?}");
    assert!(files.iter().any(|file| file.extension().is_some_and(|ext| ext == "gz")), "{files:?}");
    let mut lines = Vec::new();
    for file in &files {
        let mut bytes = fs::read(file).unwrap();
        if file.extension().is_some_and(|ext| ext == "gz") {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&*bytes).read_to_end(&mut plain).unwrap();
            bytes = plain;
        }
        let plain = tempfile::NamedTempFile::new().unwrap();
        fs::write(plain.path(), bytes).unwrap();
        let entries = log::read(plain.path()).unwrap();
        let text = log::stream(&entries, "stdout");
        let text = String::from_utf8(text).unwrap();
        lines.extend(text.lines().filter_map(|line| line.split(' ').nth(1)?.parse::<usize>().ok()));
    }
    assert_eq!(lines.last(), Some(&(LINES - 1)), "{files:?}");
    let gap = lines.windows(2).find(|pair| pair[0] + 1 != pair[1]);
    assert_eq!(gap, None, "{files:?}");
    assert!(lines.len() < LINES, "nothing was dropped: {files:?}");
    ground.remove("rotation").await;
}
