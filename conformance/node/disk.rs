//! A disk that gets full: a pull says so and leaves nothing, and what is there goes on.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use pinnace_conformance::cri::Cri;
use pinnace_conformance::daemon::Daemon;
use pinnace_conformance::images::catalog;
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::Registry;
use pinnace_conformance::skip;
use pinnace_conformance::world::World;
use tonic::Code;

/// Files in the store that belong to layers, blobs and beginnings.
fn content(node: &Node) -> Vec<String> {
    let root = node.world.inside(&node.daemon.root);
    let of = |dir: &str| {
        let entries = fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
        entries.map(|entry| format!("{dir}/{}", entry.file_name().to_string_lossy())).collect::<Vec<_>>()
    };
    ["store/layers", "store/blobs", "store/images", "store/work", "pull"].into_iter().flat_map(of).collect()
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_and_is_forgotten() {
    let world = match World::new() {
        Ok(world) => Arc::new(world),
        Err(reason) => return skip("a_full_disk_leaves_nothing_and_is_forgotten", &reason),
    };
    let root = world.dir().join("root");
    world.sh(&format!("mkdir {0}; mount -t tmpfs -o size=96M,mode=0700 none {0}", root.display()));
    let registry = Registry::start(world.clone());
    let daemon = Daemon::start(world.clone(), &Node::config(&world));
    let cri = Cri::new(&daemon.socket);
    let node = Node::of(cri, daemon, registry, catalog::layout(), world);
    let running = node.run_script("runs", "exec sleep 1000").await;
    let before = content(&node);
    let large = node.push("nginx");
    // Somebody else takes the space: less is left than what the store keeps free.
    node.world.sh(&format!("head -c 31000000 /dev/zero > {}/somebody-else", root.display()));
    for _ in 0..3 {
        node.assert_fails(node.cri.pull(&large).await, Code::ResourceExhausted, &large);
    }
    // Threads that were at work on other layers notice a moment later.
    let mut left = Vec::new();
    for _ in 0..200 {
        left = content(&node);
        left.retain(|file| !before.contains(file));
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(node.cri.list_images().await.unwrap().len(), 1);
    assert_eq!(node.cri.sh(&running.container, "echo alive").await, "alive\n");
    node.world.sh(&format!("rm {}/somebody-else", root.display()));
    assert_eq!(node.cri.pull(&large).await.unwrap(), node.images.image_id("nginx"));
}
