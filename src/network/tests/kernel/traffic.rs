//! Packets between pods, the machine and the outside.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::world::{
    Pod, Server, ask, ask_within, eventually, foreign_netns, inside, ip, machine, open, options, outside,
    range,
};

#[test]
fn pods_reach_each_other_and_their_gateway_at_once() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let gateway_server = Server::start("::".parse().unwrap(), 0);
        let one = Pod::start(&network, "one", &[]);
        let server = one.serve(0);
        // The kernel answers solicitations a moment after it has given the address, later where it is busy.
        eventually("the first pod is in its solicited-node group", || {
            let groups = one.inside(|| std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap());
            groups.contains("ff0200000000000000000001ff000002")
        });

        let started = Instant::now();
        let two = Pod::start(&network, "two", &[]);
        two.inside(|| {
            assert_eq!(ask(one.v4(), server.port()).unwrap(), two.v4());
            assert_eq!(ask(one.v6(), server.port()).unwrap(), two.v6());
            assert_eq!(ask("10.88.0.1".parse().unwrap(), gateway_server.port()).unwrap(), two.v4());
            assert_eq!(ask("fd00:88::1".parse().unwrap(), gateway_server.port()).unwrap(), two.v6());
        });
        // A single lost packet would cost a second.
        assert!(started.elapsed() < Duration::from_millis(800), "{:?}", started.elapsed());
        // And the other way round: the machine to the pod.
        assert_eq!(ask(one.v4(), server.port()).unwrap(), "10.88.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(ask(one.v6(), server.port()).unwrap(), "fd00:88::1".parse::<IpAddr>().unwrap());
        let pinged = two.inside(|| ping(one.v4()));
        assert!(pinged, "no echo");
    });
}

#[test]
fn the_interface_inside_is_as_recorded() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let _outside = outside();
        let network = open(dir.path());
        let pod = Pod::start(&network, "pod", &[]);
        let attachment = &pod.attachment;
        assert_eq!(attachment.sandbox_ifname, "eth0");
        assert_eq!(attachment.mtu, 1400, "the uplink's");
        let text = pod.inside(|| ip(&["-o", "address", "show", "dev", "eth0"]));
        assert!(text.contains("inet 10.88.0.2/16 brd 10.88.255.255 scope global eth0"), "{text}");
        assert!(text.contains("inet6 fd00:88::2/64 scope global nodad"), "{text}");
        // The link-local address is made and settled by the kernel on its own time, without detection of duplicates.
        eventually("no address is tentative", || {
            !pod.inside(|| ip(&["address", "show", "dev", "eth0"])).contains("tentative")
        });
        let link = pod.inside(|| ip(&["link", "show", "dev", "eth0"]));
        assert!(link.contains("0a:58:0a:58:00:02") && link.contains("mtu 1400"), "{link}");
        let routes = pod.inside(|| ip(&["route"]));
        assert!(routes.contains("default via 10.88.0.1 dev eth0"), "{routes}");
        assert!(pod.inside(|| ip(&["-6", "route"])).contains("default via fd00:88::1 dev eth0"));
        assert!(pod.inside(|| ip(&["link", "show", "dev", "lo"])).contains("LOOPBACK,UP"));
        let port = ip(&["-d", "link", "show", "dev", &attachment.host_ifname]);
        assert!(port.contains("master pinnace0") && port.contains("hairpin on"), "{port}");
        assert!(port.contains("alias pinnace sandbox pod"), "{port}");
        // CVE-2020-10749: nobody on the bridge can make himself the pod's router.
        for (key, value) in [("accept_ra", "0"), ("disable_ipv6", "0")] {
            let path = format!("/proc/sys/net/ipv6/conf/eth0/{key}");
            assert_eq!(pod.inside(|| std::fs::read_to_string(&path).unwrap()).trim(), value, "{key}");
        }
        assert_eq!(
            std::fs::read_to_string("/proc/sys/net/ipv6/conf/pinnace0/accept_ra").unwrap().trim(),
            "0"
        );
    });
}

#[test]
fn a_network_without_ipv6_has_none_inside() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        options.ranges = vec![range("10.99.0.0/24")];
        let network = pinnace_network::Network::open(options).unwrap();
        network.recover([]).unwrap();
        let pod = Pod::start(&network, "pod", &[]);
        assert!(!pod.inside(|| ip(&["address", "show", "dev", "eth0"])).contains("inet6"));
        assert!(pod.inside(|| ip(&["address", "show", "dev", "lo"])).contains("::1/128"));
        let server = pod.serve(0);
        assert_eq!(ask(pod.v4(), server.port()).unwrap(), "10.99.0.1".parse::<IpAddr>().unwrap());
    });
}

#[test]
fn the_outside_sees_the_machine_not_the_pod() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = outside();
        let server = inside(outside.as_fd(), || Server::start("::".parse().unwrap(), 0));
        let network = open(dir.path());
        assert!(network.warnings().is_empty(), "{:?}", network.warnings());
        let pod = Pod::start(&network, "pod", &[]);
        pod.inside(|| {
            let far = "192.0.2.2".parse().unwrap();
            assert_eq!(ask(far, server.port()).unwrap(), "192.0.2.1".parse::<IpAddr>().unwrap());
            let far = "2001:db8::2".parse().unwrap();
            assert_eq!(ask(far, server.port()).unwrap(), "2001:db8::1".parse::<IpAddr>().unwrap());
        });
    });
}

#[test]
fn a_direct_block_sees_the_pod() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = outside();
        let server = inside(outside.as_fd(), || {
            ip(&["route", "add", "10.88.0.0/16", "via", "192.0.2.1"]);
            Server::start("::".parse().unwrap(), 0)
        });
        let mut options = options(dir.path());
        options.direct = vec!["192.0.2.0/24".parse().unwrap()];
        let network = pinnace_network::Network::open(options).unwrap();
        network.recover([]).unwrap();
        let pod = Pod::start(&network, "pod", &[]);
        assert_eq!(pod.inside(|| ask("192.0.2.2".parse().unwrap(), server.port())).unwrap(), pod.v4());
    });
}

#[test]
fn a_namespace_made_elsewhere_is_taken_up() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let foreign = foreign_netns();
        let mut netns = network.enter_netns(foreign.try_clone().unwrap()).unwrap();
        let attachment = network.attach("foreign", &mut netns, &[]).unwrap();
        let server = inside(foreign.as_fd(), || Server::start("::".parse().unwrap(), 0));
        for address in attachment.ips() {
            ask(address, server.port()).unwrap();
        }
    });
}

#[test]
fn pods_cannot_reach_the_loopback_of_the_machine() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let secret = Server::start("127.0.0.1".parse().unwrap(), 0);
        let pod = Pod::start(&network, "pod", &[]);
        // CVE-2020-8558: packets to 127.0.0.1 sent through the bridge.
        pod.inside(|| {
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            ip(&["route", "flush", "table", "local"]);
            ip(&["route", "add", "127.0.0.1", "via", "10.88.0.1"]);
            let loopback = "127.0.0.1".parse().unwrap();
            assert!(ask_within(loopback, secret.port(), Duration::from_millis(500)).is_err());
        });
    });
}

#[test]
fn counters_are_seen_from_inside() {
    machine(|| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(dir.path());
        let pod = Pod::start(&network, "pod", &[]);
        let server = pod.serve(0);
        let before = network.counters().unwrap();
        assert_eq!(before.len(), 1);
        assert_eq!(before[0].0, "pod");
        ask(pod.v4(), server.port()).unwrap();
        let inside = pod.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = inside.lines().find(|line| line.trim().starts_with("eth0:")).unwrap().to_owned();
        let fields: Vec<u64> = line.split_whitespace().skip(1).map(|field| field.parse().unwrap()).collect();
        let after = network.counters().unwrap()[0].1;
        assert!(after.rx_bytes > before[0].1.rx_bytes && after.tx_packets > before[0].1.tx_packets);
        assert!(after.rx_bytes >= fields[0] && after.tx_bytes >= fields[8], "{after:?} {fields:?}");
        assert!(
            after.rx_bytes < fields[0] + 2000 && after.tx_bytes < fields[8] + 2000,
            "{after:?} {fields:?}"
        );
    });
}

/// One ICMP echo.
fn ping(address: IpAddr) -> bool {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).unwrap();
    let timeout = Some(Duration::from_secs(2));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, timeout).unwrap();
    // Type 8, code 0, checksum over the four words.
    let mut request = [8u8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let checksum = !(0x0800u16 + 0x1234 + 1);
    request[2..4].copy_from_slice(&checksum.to_be_bytes());
    sendto(&socket, &request, SendFlags::empty(), &std::net::SocketAddr::new(address, 0)).unwrap();
    let mut buffer = [0u8; 128];
    while let Ok((length, _)) = recv(&socket, &mut buffer, RecvFlags::empty()) {
        if length >= 28 && buffer[20] == 0 && buffer[24..26] == [0x12, 0x34] {
            return true;
        }
    }
    false
}
