//! AppArmor, where the kernel has it: the profile of our own, others, none, and nothing in between.

use std::fs;

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _};
use pinnace_conformance::node::{Node, Pod};
use pinnace_conformance::skip;
use pinnace_cri_api::v1::SecurityProfile;
use pinnace_cri_api::v1::security_profile::ProfileType;

use crate::ground::{Canary, attempt};

const CURRENT: &str = "cat /proc/self/attr/apparmor/current 2>/dev/null || cat /proc/self/attr/current";

/// A node with AppArmor and the parser, or says why there is none.
fn node(test: &str) -> Option<Node> {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if !enabled.starts_with('Y') {
        skip(test, "the kernel runs without AppArmor");
        return None;
    }
    if !["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"]
        .iter()
        .any(|path| fs::exists(path).unwrap_or(false))
    {
        skip(test, "apparmor_parser is not installed");
        return None;
    }
    Node::start()
}

fn profile(kind: ProfileType, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() })
}

async fn said(node: &Node, pod: &Pod, script: &str, asked: Option<SecurityProfile>) -> String {
    node.script(pod, script, |config| config.security().apparmor = asked).await
}

/// Every container has the profile that was asked for, exec sessions too, and its rules are in force.
#[tokio::test]
async fn apparmor_profile_is_the_one_asked_for() {
    let Some(node) = node("apparmor_profile_is_the_one_asked_for") else { return };
    node.image("busybox").await;
    let pod = node.run_pod("apparmor", |_| {}).await;
    let ours = "pinnace-default (enforce)";
    assert_eq!(said(&node, &pod, CURRENT, None).await.trim(), "unconfined", "nothing asked for");
    assert_eq!(said(&node, &pod, CURRENT, profile(ProfileType::RuntimeDefault, "")).await.trim(), ours);
    let unconfined = said(&node, &pod, CURRENT, profile(ProfileType::Unconfined, "")).await;
    assert_eq!(unconfined.trim(), "unconfined");

    // A profile of the host's administrator: no file of that name can be made.
    let name = format!("pinnace-test-{}", std::process::id());
    let text =
        format!("profile {name} flags=(attach_disconnected) {{ file, capability, deny /denied w, }}\n");
    let file = node.world.dir().join("profile");
    fs::write(&file, text).unwrap();
    let path = file.display();
    node.world.sh(&format!("apparmor_parser --replace --skip-cache {path}"));
    let script = format!("{CURRENT}; (echo x >/denied) 2>&1 || true; echo x >/allowed && echo written");
    let local = said(&node, &pod, &script, profile(ProfileType::Localhost, &name)).await;
    node.world.sh(&format!("apparmor_parser --remove {path}"));
    assert!(local.starts_with(&format!("{name} (enforce)")), "{local}");
    assert!(local.contains("Permission denied") && local.contains("written"), "{local}");

    let image = node.images.image_id("busybox");
    let mut config = node.container(&pod.config, "session", &image, &["sleep", "600"]);
    config.security().apparmor = profile(ProfileType::RuntimeDefault, "");
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    assert_eq!(node.cri.sh(&running.container, CURRENT).await.trim(), ours, "a session");
}

/// A profile that is not loaded is an error, never a container without one.
#[tokio::test]
async fn apparmor_profile_that_is_not_loaded_is_refused() {
    let Some(node) = node("apparmor_profile_that_is_not_loaded_is_refused") else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("absent", |_| {}).await;
    for name in ["no-such-profile", "pinnace-default (enforce)", "pinnace-defaul", "a b", "x\ny", "../x"] {
        let outcome = attempt(&node, &pod, "main", &image, CURRENT, |config| {
            config.security().apparmor = profile(ProfileType::Localhost, name);
        })
        .await;
        assert!(outcome.is_refused(), "{name:?}: {outcome:?}");
    }
}

/// With every capability and no seccomp profile, the profile still keeps mounts and the kernel's files away.
#[tokio::test]
async fn apparmor_profile_keeps_the_kernel_s_files_away() {
    let Some(node) = node("apparmor_profile_keeps_the_kernel_s_files_away") else { return };
    let canary = Canary::new(&node.world);
    node.image("busybox").await;
    let pod = node.run_pod("kept", |config| config.security().seccomp = None).await;
    let script = "mkdir /m; mount -t tmpfs tmpfs /m 2>/dev/null && echo MOUNTED
                  mount -o remount,rw /sys 2>/dev/null && echo REMOUNTED
                  for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/vm/panic_on_oom \
                      /proc/irq/default_smp_affinity /sys/kernel/profiling /proc/sys/kernel/dmesg_restrict /proc/sys/fs/file-max; do
                    [ -e $f ] || continue
                    cat $f 2>/dev/null >/tmp/value; (cat /tmp/value >$f) 2>/dev/null && echo WROTE $f
                  done
                  head -c 1 /proc/kcore >/dev/null 2>&1 && echo READ
                  cat /proc/sys/kernel/shmmni >/tmp/own; (cat /tmp/own >/proc/sys/kernel/shmmni) && echo own ipc
                  sleep 100 & kill $! && echo own signal; ls -l /proc/self/exe >/dev/null && echo own process";
    let said = node
        .script(&pod, script, |config| {
            config.security().seccomp = None;
            config.security().apparmor = profile(ProfileType::RuntimeDefault, "");
            config.capabilities().add_capabilities = vec!["ALL".into()];
            config.security().masked_paths.clear();
            config.security().readonly_paths.clear();
        })
        .await;
    assert_eq!(said, "own ipc\nown signal\nown process\n");
    canary.assert_untouched(&node);
}
