//! The leak checker reports each kind of thing that can be left behind, and nothing when nothing is.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use pinnace_conformance::leak::{Ledger, Scope};
use pinnace_conformance::process::Process;
use pinnace_conformance::world::World;
use rustix::process::Signal;

fn scope(world: &World) -> Scope<'_> {
    Scope {
        world,
        daemon: None,
        places: vec![world.dir().join("place")],
        except: vec![world.dir().join("place/kept")],
    }
}

/// Does something inside and returns what the checker says, and that it says nothing once it is undone.
fn report(world: &World, act: &str, undo: &str) -> String {
    let before = Ledger::take(&scope(world));
    world.sh(act);
    let said = before.settled(&scope(world), Duration::from_millis(100)).expect_err("a leak must be found");
    world.sh(undo);
    let after = before.settled(&scope(world), Duration::from_secs(5));
    assert_eq!(after, Ok(()), "after: {undo}");
    said
}

#[test]
fn every_kind_is_found() {
    let Some(world) = super::world::world() else { return };
    let dir = world.dir().display();
    fs::create_dir(world.dir().join("place")).unwrap();
    let found = |act: &str, undo: &str, expected: &str| {
        let said = report(&world, act, undo);
        assert!(said.lines().any(|line| line.contains(expected)), "{expected:?} is not in:\n{said}");
    };
    let file = format!("{dir}/place/leaf");
    found(&format!("echo >{file}"), &format!("rm {file}"), &format!("+ file: {file}"));
    let at = format!("{dir}/place");
    found(
        &format!("mount -t tmpfs tmpfs {at}"),
        &format!("umount {at}"),
        &format!("+ mount: {at} (tmpfs tmpfs, /)"),
    );
    // A link that is left in the namespace of the node, such as the host's half of a pair.
    found("ip link add left0 type veth peer name left1", "ip link del left0", "+ link: left1");
    found(
        "mkdir /run/netns; touch /run/netns/kept; unshare --net=/run/netns/kept true",
        "umount /run/netns/kept; rm -r /run/netns",
        "network namespace: /run/netns/kept",
    );
    // A chain of address translation, left without its pod.
    let (add, delete) = ("nft add table ip pw; nft add chain ip pw left", "nft delete table ip pw");
    found(add, delete, "+ firewall: table ip pw: chain left");
    let cgroup = if world.is_cgroup_v2() { "/sys/fs/cgroup/left" } else { "/sys/fs/cgroup/pids/left" };
    found(&format!("mkdir {cgroup}"), &format!("rmdir {cgroup}"), &format!("+ cgroup: {cgroup}"));
    let sleeper = "setsid sleep 1234 >/dev/null 2>&1 & echo $! >/run/sleeper";
    found(sleeper, "kill -9 $(cat /run/sleeper)", "sleep 1234");
}

#[test]
fn descriptors_and_threads_of_the_daemon_are_counted() {
    let Some(world) = super::world::world() else { return };
    let mut command = world.command("sh");
    // Stands in for a daemon: opens a file when told to.
    command.args(["-c", "read go; exec 7</dev/zero; echo opened; read go"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let (mut child, daemon) = world.spawn(&mut command);
    let scope = Scope { daemon: Some(daemon.pid), ..scope(&world) };
    let before = Ledger::take(&scope);
    use std::io::{Read as _, Write as _};
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    let said = before.settled(&scope, Duration::ZERO).unwrap_err();
    assert!(said.contains("descriptor of the daemon: /dev/zero"), "{said}");
    daemon.signal(Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn zombies_are_named() {
    let Some(world) = super::world::world() else { return };
    let before = Ledger::take(&scope(&world));
    // A parent that does not wait.
    let mut command = world.command("sh");
    command.args(["-c", "sleep 0 & exec sleep 1234"]).stdin(Stdio::null()).stdout(Stdio::null());
    let (mut child, parent) = world.spawn(&mut command);
    let said = pinnace_conformance::process::poll(Duration::from_secs(5), || {
        before.settled(&scope(&world), Duration::ZERO).err().filter(|said| said.contains("(zombie)"))
    });
    assert!(said.is_some());
    Process::signal(&parent, Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn what_is_excepted_is_not_counted() {
    let Some(world) = super::world::world() else { return };
    fs::create_dir_all(world.dir().join("place/kept")).unwrap();
    let before = Ledger::take(&scope(&world));
    fs::write(world.dir().join("place/kept/layer"), "bytes").unwrap();
    assert_eq!(before.settled(&scope(&world), Duration::ZERO), Ok(()));
}

#[test]
fn two_counts_of_a_quiet_world_agree() {
    let Some(world) = super::world::world() else { return };
    let first = Ledger::take(&scope(&world));
    let second = Ledger::take(&scope(&world));
    assert_eq!(first, second, "{}", first.difference(&second));
    // The command itself must be gone by then.
    assert!(Command::new(world.dir().join("enter")).arg("true").status().unwrap().success());
    assert_eq!(first.settled(&scope(&world), Duration::from_secs(2)), Ok(()));
}
