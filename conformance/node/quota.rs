//! The limit of writable layers: a program that writes beyond it is told, and what layers take is asked of the file
//! system, not walked.

use std::sync::Arc;

use pinnace_conformance::cri::Cri;
use pinnace_conformance::daemon::Daemon;
use pinnace_conformance::images::catalog;
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::Registry;
use pinnace_conformance::skip;
use pinnace_conformance::world::World;
use pinnace_cri_api::v1::*;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 16 * MIB;

/// A node whose root directory is on a file system of its own.
fn node(test: &str, make: &str) -> Option<Node> {
    let world = match World::new() {
        Ok(world) => Arc::new(world),
        Err(reason) => {
            skip(test, &reason);
            return None;
        }
    };
    // The loop device goes with the mount, and that with the world.
    let script = format!(
        "cd {0}; truncate -s 512M disk; {make} disk >/dev/null; mkdir root; mount -o loop,prjquota disk root",
        world.dir().display()
    );
    let mounted = world.command("sh").args(["-ec", &script]).output().unwrap();
    if !mounted.status.success() {
        let reason = String::from_utf8_lossy(&mounted.stderr);
        skip(test, &format!("no project quota: {}", reason.lines().next().unwrap_or("mount fails")));
        return None;
    }
    let registry = Registry::start(world.clone());
    let config = Node::config(&world) + "[container]\nwritable_layer_limit = \"16MiB\"\n";
    let daemon = Daemon::start(world.clone(), &config);
    let cri = Cri::new(&daemon.socket);
    Some(Node::of(cri, daemon, registry, catalog::layout(), world))
}

async fn layer(node: &Node, id: &str) -> (u64, u64) {
    let request = ContainerStatsRequest { container_id: id.into() };
    let stats = node.cri.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let layer = stats.writable_layer.unwrap();
    (layer.used_bytes.unwrap().value, layer.inodes_used.unwrap().value)
}

async fn all_layers(node: &Node) -> u64 {
    let info = node.cri.images().image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    info.container_filesystems[0].used_bytes.unwrap().value
}

/// What writes beyond the limit is told, root or not; its neighbour is not; what is removed comes back.
async fn limits_hold(node: Option<Node>) {
    let Some(mut node) = node else { return };
    let first = node.run_script("full", "echo started; exec sleep 1000").await;
    let second = node.run_script("neighbour", "exec sleep 1000").await;
    assert_eq!(node.cri.sh(&first.container, "head -c 8388608 /dev/zero > /half && echo ok").await, "ok\n");
    let (bytes, inodes) = layer(&node, &first.container).await;
    assert!(
        (8 * MIB..9 * MIB).contains(&bytes) && (2..40).contains(&inodes),
        "{bytes} bytes, {inodes} inodes"
    );
    let beyond = "dd if=/dev/zero of=/more bs=1M count=20 2>/dev/shm/error || echo $?; cat /dev/shm/error";
    let told = node.cri.sh(&first.container, beyond).await;
    assert!(told.starts_with("1\n"), "{told}");
    assert!(told.contains("quota exceeded") || told.contains("No space left"), "{told}");
    let (bytes, _) = layer(&node, &first.container).await;
    assert!((LIMIT - MIB..=LIMIT).contains(&bytes), "{bytes} bytes");
    // df in the container tells what there is to be had.
    let size = node.cri.sh(&first.container, "df -k / | tail -n 1 | awk '{print $2}'").await;
    assert_eq!(size.trim().parse::<u64>().unwrap(), LIMIT / 1024);
    // A neighbour has a limit of its own, and it survives a restart of the daemon.
    node.daemon.kill();
    node.restart();
    assert_eq!(node.cri.sh(&second.container, "head -c 12000000 /dev/zero > /mine && echo ok").await, "ok\n");
    let told = node
        .cri
        .sh(&second.container, "(head -c 12000000 /dev/zero > /too-much) 2>/dev/null || echo $?")
        .await;
    assert_eq!(told, "1\n");
    assert!(all_layers(&node).await > 2 * (LIMIT - MIB));
    // Space comes back to the container that gives it up.
    assert_eq!(
        node.cri.sh(&first.container, "rm /more /half; head -c 8388608 /dev/zero > /again && echo ok").await,
        "ok\n"
    );
    node.remove(&first.pod).await;
    node.remove(&second.pod).await;
    let mut left = u64::MAX;
    for _ in 0..100 {
        left = all_layers(&node).await;
        if left == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(left, 0);
    // A project of one that is gone carries nothing over.
    let third = node.run_script("third", "exec sleep 1000").await;
    assert_eq!(node.cri.sh(&third.container, "head -c 12000000 /dev/zero > /mine && echo ok").await, "ok\n");
}

#[tokio::test]
async fn a_writable_layer_is_limited_on_ext4() {
    limits_hold(node("a_writable_layer_is_limited_on_ext4", "mkfs.ext4 -q -O quota,project")).await;
}

#[tokio::test]
async fn a_writable_layer_is_limited_on_xfs() {
    limits_hold(node("a_writable_layer_is_limited_on_xfs", "mkfs.xfs -q")).await;
}

#[test]
fn a_limit_that_cannot_hold_is_refused_at_start() {
    let world = match World::new() {
        Ok(world) => Arc::new(world),
        Err(reason) => return skip("a_limit_that_cannot_hold_is_refused_at_start", &reason),
    };
    let dir = world.dir();
    // No file system of memory counts projects.
    world.sh(&format!("mkdir {0}/root; mount -t tmpfs none {0}/root", dir.display()));
    let config = dir.join("config.toml");
    let limit = "[container]\nwritable_layer_limit = \"16MiB\"\n[cni]\nmode = \"built-in\"\n";
    std::fs::write(&config, limit).unwrap();
    let mut serve = world.command(pinnace_conformance::daemon::program());
    serve.args(["serve", "--config"]).arg(&config).arg("--root").arg(dir.join("root"));
    let output = serve.arg("--run").arg(dir.join("run")).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    for part in ["container.writable_layer_limit", "no project quota", "prjquota"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}
