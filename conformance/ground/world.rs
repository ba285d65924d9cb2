//! A world is private, and nothing of it stays.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use pinnace_conformance::process::{children, poll};
use pinnace_conformance::skip;
use pinnace_conformance::world::World;

/// A world, or nothing where this process may not make one.
pub fn world() -> Option<World> {
    let made = World::new();
    made.map_err(|reason| skip(std::thread::current().name().unwrap_or("test"), &reason)).ok()
}

#[test]
fn every_namespace_differs_from_ours() {
    let Some(world) = world() else { return };
    for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let inside = world.sh(&format!("readlink /proc/self/ns/{kind}"));
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside.trim(), ours.to_string_lossy(), "{kind}");
    }
}

#[test]
fn mounts_and_links_stay_inside() {
    let Some(world) = world() else { return };
    let dir = world.dir().join("mounted");
    fs::create_dir(&dir).unwrap();
    world.sh(&format!(
        "mount -t tmpfs tmpfs {0}; echo inside >{0}/file; ip link add pw0 type bridge",
        dir.display()
    ));
    assert!(!dir.join("file").exists(), "a mount of the world reached this machine");
    assert_eq!(fs::read_to_string(world.inside(dir.join("file"))).unwrap(), "inside\n");
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    assert!(!links.contains("pw0:"), "{links}");
    assert!(world.sh("ls /sys/class/net").contains("pw0"));
}

#[test]
fn loopback_ports_do_not_clash() {
    let (Some(one), Some(two)) = (world(), world()) else { return };
    let listen = |world: &World| world.in_network(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 5000)).unwrap());
    let (first, second) = (listen(&one), listen(&two));
    let address = first.local_addr().unwrap();
    assert_eq!(address, second.local_addr().unwrap());
    assert!(one.connect(address).is_ok() && two.connect(address).is_ok());
}

#[test]
fn processes_are_in_the_worlds_cgroups() {
    let Some(world) = world() else { return };
    let seen = world.sh("cat /proc/self/cgroup");
    for line in seen.lines().filter(|line| !line.is_empty()) {
        let path = line.splitn(3, ':').nth(2).unwrap();
        assert!(path == "/" || path == "/init", "{line}");
    }
    for cgroup in world.cgroups() {
        let file = if cgroup.v1_options.is_empty() { "init/cgroup.procs" } else { "cgroup.procs" };
        let members = fs::read_to_string(cgroup.dir.join(file)).unwrap();
        assert!(members.lines().any(|pid| pid == world.keeper().to_string()), "{cgroup:?}: {members}");
        let inside = world.inside(&cgroup.mountpoint);
        assert!(inside.join(file).exists(), "{} is not mounted inside", cgroup.mountpoint.display());
    }
}

#[test]
fn limits_can_be_set_inside() {
    let Some(world) = world() else { return };
    let dir = world.cgroup("pids", "limited").expect("a pids controller");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("pids.max"), "7").unwrap();
    let read = world
        .sh("cat /sys/fs/cgroup/pids/limited/pids.max 2>/dev/null || cat /sys/fs/cgroup/limited/pids.max");
    assert_eq!(read, "7\n");
}

#[test]
fn orphans_are_reaped() {
    let Some(world) = world() else { return };
    // The orphan ends only after its parent, so that process 1 must collect it.
    world.sh("(sh -c 'sleep 0.05; exit 3' &) ; sleep 0.2");
    let zombies = world.sh("grep -h '^State:.*Z' /proc/[0-9]*/status || true");
    assert_eq!(zombies, "");
}

#[test]
fn nothing_of_it_stays() {
    let Some(world) = world() else { return };
    let (dir, keeper) = (world.dir().to_path_buf(), world.keeper());
    let cgroups: Vec<PathBuf> = world.cgroups().iter().map(|cgroup| cgroup.dir.clone()).collect();
    // A process that ignores SIGTERM, in a cgroup of its own, with a mount on top.
    world.sh(
        "mkdir -p /run/x; mount -t tmpfs tmpfs /run/x
         for d in /sys/fs/cgroup/pids /sys/fs/cgroup; do [ ! -w $d/cgroup.procs ] || mkdir $d/deep $d/deep/er; done
         setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 100; done' >/dev/null 2>&1 &",
    );
    let inside: Vec<_> = fs::read_dir(world.inside("/proc")).unwrap().flatten().collect();
    assert!(!inside.is_empty() && !children(keeper).is_empty());
    drop(world);
    assert!(!dir.exists(), "{} is there", dir.display());
    assert!(!PathBuf::from(format!("/proc/{keeper}")).exists(), "the keeper lives");
    for cgroup in cgroups {
        assert!(!cgroup.exists(), "{} is there", cgroup.display());
    }
}

#[test]
fn it_ends_when_its_test_is_killed() {
    let Some(mut world) = world() else { return };
    let keeper = PathBuf::from(format!("/proc/{}", world.keeper()));
    assert!(keeper.exists());
    world.abandon();
    let ended = poll(Duration::from_secs(5), || (!keeper.exists()).then_some(()));
    assert!(ended.is_some(), "the keeper lives without its test");
}
