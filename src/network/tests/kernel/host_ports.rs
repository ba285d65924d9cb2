//! Host ports, from everywhere a connection can come from.

use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use pinnace_network::{Code, Network, PortMapping, Protocol};

use crate::world::{
    Pod, address_files, answer_datagrams, ask, ask_datagram, ask_within, eventually, inside, links, machine,
    nft, open, options, outside, tcp,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    a_host_port_leads_to_the_pod("1");
}

#[test]
fn a_host_port_leads_to_the_pod_without_br_netfilter() {
    a_host_port_leads_to_the_pod("0");
}

/// br_netfilter shows the rules what the bridge carries, too; Kubernetes wants it on, others have it off.
fn a_host_port_leads_to_the_pod(br_netfilter: &str) {
    machine(|| {
        for family in ["iptables", "ip6tables"] {
            // Absent where the module is not loaded, which is the same as off.
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), br_netfilter);
        }
        let dir = tempfile::tempdir().unwrap();
        let outside = outside();
        let network = open(dir.path());
        let pod = Pod::start(&network, "pod", &[tcp("", 8080, 80)]);
        let _server = pod.serve(80);
        let other = Pod::start(&network, "other", &[]);

        // The outside keeps its own address.
        inside(outside.as_fd(), || {
            assert_eq!(ask(address("192.0.2.1"), 8080).unwrap(), address("192.0.2.2"));
            assert_eq!(ask(address("2001:db8::1"), 8080).unwrap(), address("2001:db8::2"));
        });
        // The machine itself, its loopback included.
        assert_eq!(ask(address("127.0.0.1"), 8080).unwrap(), address("10.88.0.1"));
        for own in ["192.0.2.1", "10.88.0.1", "2001:db8::1", "fd00:88::1"] {
            ask(address(own), 8080).unwrap_or_else(|error| panic!("{own}: {error}"));
        }
        // Another pod, and the pod itself.
        for from in [&other, &pod] {
            from.inside(|| {
                for host in ["192.0.2.1", "10.88.0.1", "2001:db8::1", "fd00:88::1"] {
                    ask(address(host), 8080)
                        .unwrap_or_else(|error| panic!("{} to {host}: {error}", from.sandbox));
                }
            });
        }
        // Other ports are not forwarded.
        assert!(ask(address("127.0.0.1"), 8081).is_err());

        pod.stop(&network);
        assert!(ask_within(address("127.0.0.1"), 8080, Duration::from_millis(300)).is_err());
        inside(outside.as_fd(), || {
            assert!(ask_within(address("192.0.2.1"), 8080, Duration::from_millis(300)).is_err());
        });
    });
}

#[test]
fn udp_and_one_host_address() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = outside();
        let network = open(dir.path());
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp("", 5353, 53) };
        let sctp = PortMapping { protocol: Protocol::Sctp, ..tcp("", 5353, 53) };
        let pod = Pod::start(&network, "pod", &[udp, sctp, tcp("192.0.2.1", 5353, 53)]);
        pod.inside(|| answer_datagrams(53));
        let _server = pod.serve(53);
        inside(outside.as_fd(), || {
            assert_eq!(ask_datagram(address("192.0.2.1"), 5353).unwrap(), address("192.0.2.2"));
            assert_eq!(ask_datagram(address("2001:db8::1"), 5353).unwrap(), address("2001:db8::2"));
            assert_eq!(ask(address("192.0.2.1"), 5353).unwrap(), address("192.0.2.2"));
            assert!(ask(address("2001:db8::1"), 5353).is_err());
        });
        assert!(ask_datagram(address("127.0.0.1"), 5353).is_ok());
        assert!(ask(address("192.0.2.1"), 5353).is_ok());
        assert!(ask(address("127.0.0.1"), 5353).is_err(), "only at 192.0.2.1");
        if let Some(text) = nft(&["list", "table", "inet", "pinnace"]) {
            assert!(text.contains("sctp . 5353"), "{text}");
            assert!(text.contains("comment \"pod\""), "{text}");
        }
    });
}

#[test]
fn one_port_at_two_addresses_is_removed_without_touching_the_rest() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let pod = Pod::start(&network, "pod", &[tcp("127.0.0.1", 80, 80), tcp("10.88.0.1", 80, 80)]);
        let _server = pod.serve(80);
        for host in ["127.0.0.1", "10.88.0.1"] {
            ask(address(host), 80).unwrap();
        }
        let handle = || nft(&["-a", "list", "tables"]);
        let before = handle();
        pod.stop(&network);
        assert_eq!(handle(), before, "the table was made anew");
        assert!(ask_within(address("127.0.0.1"), 80, Duration::from_millis(300)).is_err());
    });
}

#[test]
fn a_client_with_a_fixed_source_port_follows_a_udp_host_port_to_the_new_pod() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = outside();
        let network = open(dir.path());
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp("", 5353, 53) };
        let client = inside(outside.as_fd(), || {
            let socket = std::net::UdpSocket::bind("192.0.2.2:40000").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.connect("192.0.2.1:5353").unwrap();
            socket
        });
        let ask = || {
            client.send(b"?").unwrap();
            client.recv(&mut [0; 64]).is_ok()
        };
        let first = Pod::start(&network, "first", &[udp]);
        first.inside(|| answer_datagrams(53));
        assert!(ask());
        first.stop(&network);
        eventually("the first is gone", || network.pending() == 0);
        ask();
        let second = Pod::start(&network, "second", &[udp]);
        second.inside(|| answer_datagrams(53));
        assert!(ask(), "the connection of the first pod is remembered");
    });
}

#[test]
fn a_conflict_names_the_pod_and_undoes_the_attach() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let first = Pod::start(&network, "first", &[tcp("", 8080, 80)]);
        let mut netns = network.take_netns().unwrap();
        let error = network.attach("second", &mut netns, &[tcp("127.0.0.1", 8080, 1)]).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "host port 127.0.0.1:8080/tcp is taken by sandbox first");
        eventually("addresses are released", || network.pending() == 0);
        assert_eq!(address_files(dir.path()).len(), 2);
        assert!(inside(netns.fd(), links).iter().all(|name| name != "eth0"));

        // The same namespace and name work with another port, and the port is free when its pod is stopped.
        first.stop(&network);
        network.attach("second", &mut netns, &[tcp("127.0.0.1", 8080, 1)]).unwrap();
    });
}

#[test]
fn rules_that_others_flush_come_back() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let _outside = outside();
        let network = open(dir.path());
        let pod = Pod::start(&network, "pod", &[tcp("", 8080, 80)]);
        let _server = pod.serve(80);
        ask(address("192.0.2.1"), 8080).unwrap();
        if nft(&["flush", "ruleset"]).is_none() {
            return;
        }
        eventually("the host port works again", || {
            ask_within(address("192.0.2.1"), 8080, Duration::from_millis(200)).is_ok()
        });
        // Also while the thread that watches has not seen it yet.
        nft(&["delete", "table", "inet", "pinnace"]);
        let next = Pod::start(&network, "next", &[tcp("", 8081, 81)]);
        let _server = next.serve(81);
        ask(address("192.0.2.1"), 8081).unwrap();
        nft(&["delete", "table", "inet", "pinnace"]);
        next.stop(&network);
        assert!(ask_within(address("192.0.2.1"), 8081, Duration::from_millis(300)).is_err());
        ask(address("192.0.2.1"), 8080).unwrap();
    });
}

#[test]
fn without_rules_pods_work_and_host_ports_say_why_not() {
    machine(|| {
        if nft(&["list", "tables"]).is_none() {
            return;
        }
        // A table of our name that belongs to another process: the kernel refuses every change of it.
        let mut owner = std::process::Command::new("/usr/sbin/nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut input = owner.stdin.take().unwrap();
        input.write_all(b"add table inet pinnace { flags owner; }\n").unwrap();
        eventually("the table is there", || nft(&["list", "tables"]).unwrap().contains("pinnace"));

        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let warning = &network.warnings()[0];
        assert_eq!(warning.reason, "PodRulesMissing");
        assert!(warning.message.contains("Operation not permitted"), "{}", warning.message);
        let pod = Pod::start(&network, "pod", &[]);
        let server = pod.serve(0);
        ask(pod.v4(), server.port()).unwrap();
        let mut netns = network.take_netns().unwrap();
        let error = network.attach("ports", &mut netns, &[tcp("", 8080, 80)]).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        eventually("nothing is pending", || network.pending() == 0);
        assert_eq!(address_files(dir.path()).len(), 2);

        // It heals when the table can be had, without anyone asking.
        drop(input);
        owner.wait().unwrap();
        eventually("the rules are made", || network.warnings().is_empty());
        network.attach("ports", &mut netns, &[tcp("", 8080, 80)]).unwrap();
    });
}

#[test]
fn other_tables_are_left_alone() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let theirs = ["table", "inet", "theirs"];
        if nft(&["add", "table", "inet", "theirs"]).is_none() {
            return;
        }
        nft(&["add", "chain", "inet", "theirs", "c", "{ type filter hook forward priority 0; }"]);
        nft(&["add", "rule", "inet", "theirs", "c", "tcp dport 1 accept"]);
        let before = nft(&[&["list"], &theirs[..]].concat()).unwrap();
        for _ in 0..2 {
            let network = open(dir.path());
            Pod::start(&network, "pod", &[tcp("", 8080, 80)]).stop(&network);
            eventually("the pod is gone", || network.pending() == 0);
        }
        assert_eq!(nft(&[&["list"], &theirs[..]].concat()).unwrap(), before);
        let tables = nft(&["list", "tables"]).unwrap();
        assert_eq!(tables.lines().count(), 2, "{tables}");
    });
}

#[test]
fn many_host_ports_survive_a_restart() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let mappings: Vec<PortMapping> = (0..3000).map(|n| tcp("", 20_000 + n, 80)).collect();
        let pod = Pod::start(&network, "pod", &mappings);
        let _server = pod.serve(80);
        ask(address("127.0.0.1"), 22_999).unwrap();
        drop(network);
        ask(address("127.0.0.1"), 20_000).unwrap();

        let network = Network::open(options(dir.path())).unwrap();
        network.recover([("pod", &pod.attachment)]).unwrap();
        ask(address("127.0.0.1"), 21_500).unwrap();
        let mut netns = network.take_netns().unwrap();
        let error = network.attach("next", &mut netns, &[tcp("", 22_000, 80)]).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);

        // A restart without the pod closes them.
        drop(network);
        open(dir.path());
        assert!(ask_within(address("127.0.0.1"), 21_500, Duration::from_millis(300)).is_err());
    });
}
