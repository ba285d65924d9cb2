//! The Debian package: installed, upgraded under running pods, removed, installed again, purged.

use std::fs;
use std::path::Path;

use pinnace_conformance::cri::Cri;
use pinnace_conformance::process::poll;
use pinnace_conformance::skip;
use pinnace_cri_api::v1::*;

use crate::ground::{Images, LIMIT, container, may_change, pod, scope, sh, show};

const SERVICE: &str = "pinnace.service";
const CONFIG: &str = "/etc/pinnace/config.toml";

#[tokio::test(flavor = "multi_thread")]
async fn the_package_keeps_pods_through_an_upgrade_and_leaves_nothing_after_a_purge() {
    let name = "the_package_keeps_pods_through_an_upgrade_and_leaves_nothing_after_a_purge";
    if !may_change(name) {
        return;
    }
    let (Ok(first), Ok(second)) = (std::env::var("PINNACE_DEB"), std::env::var("PINNACE_DEB_NEXT")) else {
        skip(name, "PINNACE_DEB and PINNACE_DEB_NEXT do not name two versions of the package");
        return;
    };
    let images = Images::serve().await;
    let dir = tempfile::Builder::new().prefix("pw-package-").tempdir_in("/run").unwrap();
    let cri = Cri::new(Path::new("/run/pinnace/pinnace.sock"));

    sh(&format!("dpkg --install {first}"));
    serving().await;
    assert_eq!(sh("systemctl is-enabled pinnace"), "enabled");
    assert_eq!(sh("stat -c %a:%U /run/pinnace /var/lib/pinnace | sort -u"), "700:root");
    assert_eq!(sh("pinnace serve --check-config"), "OK");
    assert!(sh("pinnace version").contains("pinnace"), "{}", sh("pinnace version"));
    let answer = cri.runtime().runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.linux.unwrap().cgroup_driver(), CgroupDriver::Systemd);

    cri.pull(&images.busybox).await.unwrap();
    let config = pod("packaged", dir.path());
    let id = cri.run_pod(&config).await.unwrap();
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";
    let main = cri.create(&id, &config, &container(&images.busybox, script, |_| {})).await.unwrap();
    cri.start(&main).await.unwrap();
    let processes =
        sh(&format!("cat /sys/fs/cgroup{}/cgroup.procs | head -1", show(&scope(&main), "ControlGroup")));
    let alive = || Path::new(&format!("/proc/{processes}")).exists();

    // An administrator's change survives, and the container does not notice.
    let mut text = fs::read_to_string(CONFIG).unwrap();
    text.push_str("\n[metrics_of_a_typo]\n");
    fs::write(CONFIG, &text).unwrap();
    let daemon = show(SERVICE, "MainPID");
    sh(&format!("dpkg --install --force-confold {second}"));
    assert_eq!(show(SERVICE, "MainPID"), daemon, "a wrong configuration has ended the daemon");
    fs::write(CONFIG, text.replace("[metrics_of_a_typo]", "# kept")).unwrap();
    sh(&format!("dpkg --install --force-confold {second}"));
    serving().await;
    assert_ne!(show(SERVICE, "MainPID"), daemon, "the daemon is the old one");
    assert!(fs::read_to_string(CONFIG).unwrap().contains("# kept"));
    assert!(alive(), "the container ended with the upgrade");
    assert_eq!(cri.status(&main).await.unwrap().state(), ContainerState::ContainerRunning);
    assert_eq!(cri.sh(&main, "echo still here").await.trim(), "still here");
    let log = Path::new(&config.log_directory).join("main/0.log");
    let lines: Vec<u64> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing: {lines:?}");

    // Removed: the daemon is gone, the pod and the configuration are not.
    sh("dpkg --remove pinnace");
    assert_eq!(show(SERVICE, "ActiveState"), "inactive");
    assert!(!Path::new("/usr/bin/pinnace").exists() && Path::new(CONFIG).exists());
    assert!(alive(), "the container ended with the removal");
    sh(&format!("dpkg --install {first}"));
    serving().await;
    assert_eq!(cri.status(&main).await.unwrap().state(), ContainerState::ContainerRunning);

    // Purged with a pod running: nothing is left of it.
    sh("dpkg --purge pinnace");
    assert!(poll(LIMIT, || (!alive()).then_some(())).is_some(), "the container lives");
    for path in ["/etc/pinnace", "/var/lib/pinnace", "/run/pinnace", "/usr/bin/pinnace"] {
        assert!(!Path::new(path).exists(), "{path} is there");
    }
    let none = poll(LIMIT, || sh("find /sys/fs/cgroup -name 'pinnace*'").is_empty().then_some(()));
    assert!(none.is_some(), "{}", sh("find /sys/fs/cgroup -name 'pinnace*'"));
    assert_eq!(sh("grep -c pinnace /proc/self/mountinfo; true"), "0");
    assert_eq!(sh("ps -eo comm | grep -c '^pinnace'; true"), "0", "{}", sh("ps -ef"));
    assert_eq!(sh("ls /lib/systemd/system /etc/systemd/system | grep -c pinnace; true"), "0");
}

/// Waits until the service is there; a start that is repeated counts.
async fn serving() {
    let active = poll(LIMIT, || (show(SERVICE, "ActiveState") == "active").then_some(()));
    assert!(active.is_some(), "{}", sh("journalctl -n 40 --no-pager -u pinnace"));
}
