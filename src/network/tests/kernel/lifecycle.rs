//! Attach, detach, restart, and what is left of them.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use pinnace_network::{Code, Network};

use crate::world::{
    Pod, address_files, ask, eventually, inside, ip, links, machine, nft, open, options, outside, range, tcp,
};

fn veths() -> usize {
    links().iter().filter(|name| name.starts_with("veth")).count()
}

#[test]
fn two_hundred_pods_leave_nothing() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let mut seen = BTreeSet::new();
        for n in 0..200u16 {
            let pod = Pod::start(&network, &format!("pod-{n}"), &[tcp("", 10_000 + n, 80)]);
            assert!(seen.insert(pod.v4()), "{} was given twice", pod.v4());
            pod.stop(&network);
        }
        eventually("nothing is pending", || network.pending() == 0);
        assert_eq!(veths(), 0);
        assert_eq!(address_files(dir.path()), Vec::<String>::new());
        if let Some(text) = nft(&["list", "table", "inet", "pinnace"]) {
            assert!(!text.contains("elements"), "{text}");
        }
        let counters = network.pool();
        assert_eq!(counters.hits + counters.misses, 200);
        network.shutdown();
    });
}

#[test]
fn pods_attached_at_once_do_not_disturb_each_other() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let pods: Vec<Pod> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8u16)
                .map(|t| {
                    let network = &network;
                    scope.spawn(move || {
                        let start = |n: u16| {
                            let port = tcp("", 10_000 + t * 100 + n, 80);
                            Pod::start(network, &format!("pod-{t}-{n}"), &[port])
                        };
                        (0..8).map(start).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let addresses: BTreeSet<_> = pods.iter().flat_map(|pod| pod.attachment.ips()).collect();
        assert_eq!(addresses.len(), 128);
        assert_eq!(network.counters().unwrap().len(), 64);
        for pod in pods.iter().step_by(9) {
            let server = pod.serve(0);
            ask(pod.v4(), server.port()).unwrap();
        }
        thread::scope(|scope| {
            for pod in pods {
                let network = &network;
                scope.spawn(move || pod.stop(network));
            }
        });
        eventually("nothing is pending", || network.pending() == 0);
        assert_eq!((veths(), address_files(dir.path()).len()), (0, 0));
    });
}

#[test]
fn an_address_is_not_given_again_before_its_device_is_gone() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        // The gateway and two pods.
        options.ranges = vec![range("10.88.0.0/30").between(v4(2), v4(2)).unwrap()];
        options.linger = Duration::from_millis(400);
        let network = Network::open(options).unwrap();
        network.recover([]).unwrap();
        let first = Pod::start(&network, "first", &[]);
        let mut netns = network.take_netns().unwrap();
        let error = network.attach("second", &mut netns, &[]).unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "no free address in 10.88.0.0/30 (10.88.0.2 to 10.88.0.2): 1 are taken");

        // Someone still holds the namespace: the device stays until the grace period ends, and the address with it. Who
        // wants an address meanwhile waits for it.
        let held = first.netns.try_clone().unwrap();
        let device = first.attachment.host_ifname.clone();
        first.stop(&network);
        assert_eq!(network.pending(), 1);
        assert!(links().contains(&device));
        network.attach("second", &mut netns, &[]).unwrap();
        assert!(!links().contains(&device));
        assert!(!inside(held.as_fd(), links).contains(&"eth0".to_owned()));
        eventually("the departure was accounted", || network.pending() == 0);
    });
}

#[test]
fn a_sandbox_that_comes_back_waits_for_its_device_of_before() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let first = Pod::start(&network, "pod", &[]);
        // Its device does not go by itself.
        let _held = first.netns.try_clone().unwrap();
        first.stop(&network);
        assert_eq!(network.pending(), 1);
        let second = Pod::start(&network, "pod", &[]);
        assert_eq!(network.pending(), 0);
        let server = second.serve(0);
        ask(second.v4(), server.port()).unwrap();
        second.stop(&network);
        eventually("nothing is pending", || network.pending() == 0);
    });
}

fn v4(last: u8) -> std::net::IpAddr {
    [10, 88, 0, last].into()
}

#[test]
fn detach_is_idempotent_and_quick() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        network.detach("never-there", None).unwrap();
        assert_eq!(network.pending(), 0);
        let pod = Pod::start(&network, "pod", &[]);
        let attachment = pod.attachment.clone();
        let started = Instant::now();
        network.detach("pod", Some(&attachment)).unwrap();
        network.detach("pod", None).unwrap();
        network.detach("pod", Some(&attachment)).unwrap();
        assert!(started.elapsed() < Duration::from_millis(15), "{:?}", started.elapsed());
        drop(pod);
        eventually("nothing is pending", || network.pending() == 0);
        network.detach("pod", Some(&attachment)).unwrap();
        eventually("nothing is pending", || network.pending() == 0);
        for bad in ["", "a/b", "..", "a b", "x\n", &"x".repeat(129)] {
            let result = network.detach(bad, None);
            assert!(result.is_err() || bad == "..", "{bad:?}");
        }
    });
}

#[test]
fn a_restart_keeps_the_living_and_releases_the_dead() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let living = Pod::start(&network, "living", &[tcp("", 8080, 80)]);
        let dead = Pod::start(&network, "dead", &[tcp("", 8081, 80)]);
        let gone = Pod::start(&network, "gone", &[]);
        let (dead_ip, gone_ip) = (dead.v4(), gone.v4());
        drop(network);
        drop(gone);
        // A crash between the creation of an address file and the writing of it.
        std::fs::write(dir.path().join("networks/pinnace/10.88.0.77"), "").unwrap();
        // And a file of the living one was lost.
        std::fs::remove_file(dir.path().join("networks/pinnace").join(living.v4().to_string())).unwrap();

        let network = Network::open(options(dir.path())).unwrap();
        network.recover([("living", &living.attachment)]).unwrap();
        eventually("the dead are released", || network.pending() == 0);
        let mut files = address_files(dir.path());
        files.sort();
        assert_eq!(files, ["10.88.0.2", "fd00:88::2"]);
        assert_eq!(veths(), 1);
        assert!(inside(dead.netns.as_fd(), links).iter().all(|name| name != "eth0"));
        let server = living.serve(80);
        ask("127.0.0.1".parse().unwrap(), 8080).unwrap();
        ask(living.v4(), server.port()).unwrap();

        // The walk goes on where it was.
        let next = Pod::start(&network, "next", &[]);
        assert!(![living.v4(), dead_ip, gone_ip].contains(&next.v4()));
        let mut netns = network.take_netns().unwrap();
        let again = network.attach("living", &mut netns, &[]).unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
    });
}

#[test]
fn a_step_that_fails_undoes_the_others() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let mut netns = network.take_netns().unwrap();
        inside(netns.fd(), || ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "x"]));
        let error = network.attach("pod", &mut netns, &[tcp("", 8080, 80)]).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("create veth veth"), "{cause}");
        eventually("nothing is pending", || network.pending() == 0);
        assert_eq!((veths(), address_files(dir.path()).len()), (0, 0));
        // The port is free again.
        Pod::start(&network, "other", &[tcp("", 8080, 80)]);
    });
}

#[test]
fn a_bridge_that_is_deleted_comes_back() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        ip(&["link", "delete", "pinnace0"]);
        let pod = Pod::start(&network, "pod", &[tcp("", 8080, 80)]);
        let server = pod.serve(80);
        ask(pod.v4(), server.port()).unwrap();
        ask(pod.v6(), server.port()).unwrap();
        ask("127.0.0.1".parse().unwrap(), 8080).unwrap();
        network.ready().unwrap();

        ip(&["link", "delete", "pinnace0"]);
        eventually("the bridge is back", || {
            network.ready().is_ok() && links().contains(&"pinnace0".to_owned())
        });
    });
}

#[test]
fn a_name_that_is_taken_is_not_ready_with_the_reason() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        ip(&["link", "add", "pinnace0", "type", "veth", "peer", "name", "x"]);
        let network = Network::open(options(dir.path())).unwrap();
        let not_ready = network.ready().unwrap_err();
        assert_eq!(not_ready.reason, "NetworkPluginNotReady");
        assert_eq!(not_ready.message, "bridge pinnace0: pinnace0 exists and is not a bridge but veth");
        let mut netns = network.take_netns().unwrap();
        assert!(network.attach("pod", &mut netns, &[]).is_err());
        assert!(address_files(dir.path()).is_empty());
        ip(&["link", "delete", "pinnace0"]);
        network.attach("pod", &mut netns, &[]).unwrap();
        network.ready().unwrap();
    });
}

#[test]
fn an_existing_bridge_is_adopted() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        ip(&["link", "add", "pinnace0", "type", "bridge"]);
        ip(&["address", "add", "172.30.0.1/24", "dev", "pinnace0"]);
        for _ in 0..2 {
            drop(open(dir.path()));
            let text = ip(&["-o", "address", "show", "dev", "pinnace0"]);
            for address in ["172.30.0.1/24", "10.88.0.1/16", "fd00:88::1/64"] {
                assert_eq!(text.matches(address).count(), 1, "{text}");
            }
        }
        assert!(ip(&["link", "show", "pinnace0"]).contains("UP"));
    });
}

#[test]
fn the_pod_cidr_counts_for_new_pods_and_over_restarts() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = outside();
        let network = open(dir.path());
        let old = Pod::start(&network, "old", &[]);
        assert!(network.set_pod_cidr("10.244.3.0/24,10.244.4.0/24").is_err());
        network.set_pod_cidr("10.244.3.0/24").unwrap();
        let new = Pod::start(&network, "new", &[]);
        assert_eq!(new.v4(), std::net::IpAddr::from([10, 244, 3, 2]));
        assert!(!new.inside(|| ip(&["address", "show", "dev", "eth0"])).contains("inet6"));
        let server = inside(outside.as_fd(), || crate::world::Server::start("::".parse().unwrap(), 0));
        for pod in [&old, &new] {
            let seen = pod.inside(|| ask("192.0.2.2".parse().unwrap(), server.port())).unwrap();
            assert_eq!(seen, std::net::IpAddr::from([192, 0, 2, 1]), "{}", pod.sandbox);
        }
        let server = old.serve(0);
        new.inside(|| ask(old.v4(), server.port())).unwrap();

        drop(network);
        let network = Network::open(options(dir.path())).unwrap();
        network.recover([("old", &old.attachment), ("new", &new.attachment)]).unwrap();
        let gateways = || ip(&["-o", "address", "show", "dev", "pinnace0"]);
        assert!(
            gateways().contains("10.88.0.1/16") && gateways().contains("10.244.3.1/24"),
            "{}",
            gateways()
        );
        old.stop(&network);
        eventually("the old range is forgotten", || !gateways().contains("10.88.0.1/16"));
        let newer = Pod::start(&network, "newer", &[]);
        assert_eq!(newer.v4(), std::net::IpAddr::from([10, 244, 3, 3]));
    });
}

#[test]
fn a_pod_whose_holder_dies_takes_its_device_along() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let pod = Pod::start(&network, "pod", &[]);
        assert_eq!(veths(), 1);
        let attachment = pod.attachment.clone();
        drop(pod);
        eventually("the device is gone", || veths() == 0);
        // Nobody said that the pod is gone: it keeps its addresses.
        assert_eq!(address_files(dir.path()).len(), 2);
        network.detach("pod", Some(&attachment)).unwrap();
        eventually("the addresses are released", || address_files(dir.path()).is_empty());
    });
}

#[test]
fn an_ipv6_router_keeps_listening_to_its_own_router() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let _outside = outside();
        let key = "/proc/sys/net/ipv6/conf/uplink/accept_ra";
        assert_eq!(std::fs::read_to_string(key).unwrap().trim(), "1");
        let _network = open(dir.path());
        assert_eq!(std::fs::read_to_string(key).unwrap().trim(), "2");
        let on = |path| std::fs::read_to_string(path).unwrap().trim() == "1";
        assert!(on("/proc/sys/net/ipv6/conf/all/forwarding") && on("/proc/sys/net/ipv4/ip_forward"));
    });
}
