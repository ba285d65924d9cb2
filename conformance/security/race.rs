//! A sibling that changes a shared volume while a container is being started on it.

use std::fs;
use std::os::unix::fs::symlink;

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _};
use pinnace_conformance::node::Node;

use crate::ground::{Canary, Outcome, Racer, SECRET, attempt, rounds};

/// Below a raced directory mounts land inside or nowhere, and no directory is made on the host.
#[tokio::test]
async fn race_of_mount_points_stays_inside() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("race", |_| {}).await;
    let (shared, payload) = (node.world.dir().join("shared"), node.world.dir().join("payload"));
    fs::create_dir_all(shared.join("dir")).unwrap();
    fs::create_dir(&payload).unwrap();
    symlink(canary.climbing(), shared.join("link")).unwrap();
    let racer = Racer::swapping(&shared, "dir", "link");
    let mut ran = 0;
    for round in 0..rounds() {
        let outcome =
            attempt(&node, &pod, &format!("c{round}"), &image, "cat /v/*/file /v/file; true", |config| {
                config.mount(&shared, "/v");
                for n in 0..6 {
                    config.mount(&payload, &format!("/v/dir/made-{round}-{n}/deep"));
                }
            })
            .await;
        assert!(!outcome.text().contains(SECRET), "{outcome:?}");
        ran += usize::from(!outcome.is_refused());
    }
    assert!(racer.stop() > 1000, "there was no race");
    assert!(ran > 0, "nothing was ever started");
    assert_eq!(fs::read_dir(&payload).unwrap().count(), 0);
    canary.assert_untouched(&node);
}

/// The source of a mount is exchanged for a link between its check and its use.
#[tokio::test]
async fn race_of_mount_sources_shows_one_of_the_two() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("sources", |_| {}).await;
    let shared = node.world.dir().join("shared");
    fs::create_dir_all(shared.join("dir")).unwrap();
    fs::write(shared.join("dir/mine"), "mine").unwrap();
    // What a link leads to is the volume, too: a magic link leads to what the runtime itself has open.
    symlink("/proc/self/root", shared.join("link")).unwrap();
    let racer = Racer::swapping(&shared, "dir", "link");
    for round in 0..rounds() {
        let outcome = attempt(&node, &pod, &format!("c{round}"), &image, "ls /v", |config| {
            config.mount(&shared.join("dir"), "/v").readonly = true;
        })
        .await;
        if let Outcome::Ran(ended) = &outcome {
            assert_eq!(ended.stdout, "mine\n", "{outcome:?}");
        }
    }
    assert!(racer.stop() > 1000, "there was no race");
    canary.assert_untouched(&node);
}

/// /dev and what hides the kernel's files come from a volume that a sibling changes.
#[tokio::test]
async fn race_of_dev_neither_unmasks_nor_leaks() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("dev", |_| {}).await;
    let dev = node.world.dir().join("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("trap")).unwrap();
    symlink(canary.at("/file"), dev.join("null")).unwrap();
    symlink(canary.at("/file"), dev.join("console")).unwrap();
    let racer = Racer::swapping(&dev, "trap", "null");
    let script = "wc -c </proc/timer_list; wc -c </proc/uptime; stat -c %t:%T /proc/uptime
                  echo '|/bad' >/proc/uptime; echo '|/bad' >/proc/sys/kernel/core_pattern; true";
    for round in 0..rounds() {
        for tty in [false, true] {
            let outcome = attempt(&node, &pod, &format!("c{round}-{tty}"), &image, script, |config| {
                config.mount(&dev, "/dev");
                config.tty = tty;
                config.security().masked_paths = vec!["/proc/timer_list".into(), "/proc/uptime".into()];
            })
            .await;
            if let Outcome::Ran(ended) = &outcome {
                let said: Vec<_> = ended.stdout.lines().map(str::trim).collect();
                assert!(said.contains(&"1:3") && said.contains(&"0"), "{outcome:?}");
            }
            assert!(!outcome.text().contains(SECRET), "{outcome:?}");
        }
    }
    assert!(racer.stop() > 1000, "there was no race");
    canary.assert_untouched(&node);
}

/// Labels and sysctls are written through the runtime's own procfs, not where the container's mounts lead.
#[tokio::test]
async fn race_of_procfs_redirects_no_write() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node
        .run_pod("procfs", |config| {
            config.linux().sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "4321".into());
        })
        .await;
    let farm = node.world.dir().join("farm");
    fs::create_dir_all(farm.join("real")).unwrap();
    for name in ["current", "exec", "fscreate", "keycreate", "sockcreate"] {
        symlink(canary.at("/file"), farm.join("real").join(name)).unwrap();
    }
    symlink(canary.climbing(), farm.join("link")).unwrap();
    let racer = Racer::swapping(&farm, "real", "link");
    for round in 0..rounds() {
        for target in ["/proc/self/attr", "/proc/thread-self", "/proc/sys", "/proc", "/proc/1/attr"] {
            let name = format!("c{round}{}", target.replace('/', "-"));
            let outcome = attempt(&node, &pod, &name, &image, "cat /proc/sys/kernel/osrelease", |config| {
                config.mount(&farm.join("real"), target);
            })
            .await;
            assert!(!outcome.text().contains(SECRET), "{target}: {outcome:?}");
        }
        if round >= 5 {
            break;
        }
    }
    drop(racer);
    let start = node.script(&pod, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", |_| {}).await;
    assert_eq!(start, "4321\n", "the sysctl went elsewhere");
    canary.assert_untouched(&node);
}

/// Names of a container's files change while they are removed.
#[tokio::test]
async fn race_of_removal_removes_nothing_else() {
    let Some(node) = Node::start() else { return };
    let canary = Canary::new(&node.world);
    let image = node.image("busybox").await;
    let pod = node.run_pod("removal", |_| {}).await;
    let script = format!(
        "mkdir -p /d/e; touch /d/e/f; ln -s {0} /link; mv /d /x; ln -s {0} /d; mkdir /tmp/t; ln -s {0} /tmp/t/l",
        canary.at("")
    );
    for round in 0..rounds() / 4 {
        let outcome = attempt(&node, &pod, &format!("c{round}"), &image, &script, |_| {}).await;
        assert!(!outcome.is_refused(), "{outcome:?}");
    }
    node.remove(&pod.id).await;
    canary.assert_untouched(&node);
}
