//! What a container sees and uses of the machine: devices, the kernel's files, control groups.

use std::fs;

use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::Device;

use crate::ground::{Canary, Outcome, attempt};

/// A node can be made, but opens only if it was allowed: the list is not a list of what is forbidden.
#[tokio::test]
async fn devices_that_were_not_given_do_not_open() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("devices", |_| {}).await;
    let script = "for d in 'c 1 1' 'c 1 2' 'c 1 4' 'c 1 11' 'c 10 1' 'b 8 0' 'b 7 0' 'b 254 0' 'c 10 229' 'c 10 232'; do
                    rm -f /n; mknod /n $d && dd if=/n of=/dev/null count=1 2>&1 | grep -q 'not permitted' && echo shut || echo OPEN $d
                  done; mknod /own c 1 3 && echo x >/own && echo null works";
    for (name, devices) in [
        ("none", vec![]),
        // Nothing but an allowing rule (GHSA-g54h-m393-cpwq).
        (
            "one",
            vec![Device {
                host_path: "/dev/full".into(),
                container_path: "/dev/full2".into(),
                permissions: "rwm".into(),
            }],
        ),
    ] {
        let outcome = attempt(&node, &pod, name, &image, script, |config| config.devices = devices).await;
        let said = outcome.text();
        assert_eq!(said.matches("shut").count(), 10, "{outcome:?}");
        assert!(said.contains("null works"), "{outcome:?}");
    }
}

/// Counters that tell about neighbours and keys.
#[tokio::test]
async fn side_channels_of_the_kernel_are_hidden() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("channels", |_| {}).await;
    let script = "for f in /proc/interrupts /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats; do
                    [ -e $f ] && [ \"$(head -c 100 $f 2>/dev/null | wc -c)\" != 0 ] && echo OPEN $f
                  done
                  for d in /sys/firmware /sys/devices/virtual/powercap /proc/acpi /proc/asound /proc/scsi \
                           /sys/devices/system/cpu/cpu*/thermal_throttle; do
                    [ -d $d ] && [ \"$(ls $d | wc -l)\" != 0 ] && echo OPEN $d
                  done; echo ended";
    let said = node.script(&pod, script, |_| {}).await;
    assert_eq!(said, "ended\n");
    let firmware = fs::read_dir("/proc/scsi").is_ok() || fs::read_dir("/sys/firmware").is_ok();
    assert!(firmware, "this machine has nothing to hide");
    let outcome = attempt(&node, &pod, "writes", &image, "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern \
        /proc/irq/default_smp_affinity /sys/kernel/profiling /sys/kernel/mm/ksm/run; do (echo x >$f) 2>/dev/null && echo WROTE $f; done; true", |_| {}).await;
    assert!(!outcome.text().contains("WROTE"), "{outcome:?}");
}

/// The control groups of a container can be seen and not changed: no release agent, no other group's limits.
#[tokio::test]
async fn control_groups_are_read_only_and_one_s_own() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("cgroups", |_| {}).await;
    let script = "cd /sys/fs/cgroup; for d in . *; do
                    [ -d $d ] && mkdir $d/made 2>&1 | grep -q 'Read-only' || echo MADE $d
                    (echo 1 >$d/notify_on_release) 2>/dev/null && echo WROTE $d
                    (echo /bad >$d/release_agent) 2>/dev/null && echo WROTE $d
                    (echo 0 >$d/cgroup.procs) 2>/dev/null && echo JOINED $d
                  done; mkdir /m; mount -t cgroup -o rdma cgroup /m 2>/dev/null && echo MOUNTED; unshare -UrC true 2>/dev/null && echo UNSHARED
                  grep -v ':/$' /proc/self/cgroup";
    let outcome = attempt(&node, &pod, "main", &image, script, |config| {
        // Directories only: the loop asks each.
        config.command[2] = config.command[2]
            .replace("for d in . *; do", "for d in . $(find . -maxdepth 1 -mindepth 1 -type d); do");
    })
    .await;
    let said = outcome.text();
    for bad in ["MADE", "WROTE", "JOINED", "MOUNTED", "UNSHARED", "kubepods"] {
        assert!(!said.contains(bad), "{outcome:?}");
    }
    assert!(matches!(outcome, Outcome::Ran(_)), "{outcome:?}");
    canary.assert_untouched(&node);
}

/// Every process of a pod is below the cgroup that the kubelet gave, and so under its limits.
#[tokio::test]
async fn processes_are_below_the_pod_s_cgroup() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("below", "sleep 4711 & exec sleep 600").await;
    node.cri.exec(&running.container, &["sh", "-c", "sleep 4712 >/dev/null 2>&1 &"], 5).await.unwrap();
    let controller = if node.world.is_cgroup_v2() { "" } else { "memory" };
    let parent = node.world.cgroup(controller, "kubepods/besteffort/poduid-below").unwrap();
    let mut inside = Vec::new();
    fn collect(dir: &std::path::Path, pids: &mut Vec<u32>) {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            collect(&entry.path(), pids);
        }
    }
    collect(&parent, &mut inside);
    let of = |text: &str| {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let matching =
            processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line == text.replace(' ', "\0").into_bytes()
                    && fs::read_link(format!("/proc/{pid}/ns/net")).ok()
                        == inside
                            .first()
                            .and_then(|first| fs::read_link(format!("/proc/{first}/ns/net")).ok())
            });
        matching.collect::<Vec<_>>()
    };
    for text in ["sleep\x00600\0", "sleep\x004711\0", "sleep\x004712\0"] {
        let found = of(text);
        assert_eq!(found.len(), 1, "{text:?}");
        assert!(found.iter().all(|pid| inside.contains(pid)), "{text:?} is not below {}", parent.display());
    }
}
