//! The configurations, and what has to pass with each.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use serde_json::{Value, json};

use crate::executor::{By, List, Target, add, add_after, check, del, programs_installed, skip};
use crate::snapshot::{self, Snapshot};
use crate::world::{
    Server, answer_datagrams, ask, ask_datagram, foreign_netns, inside, ip, machine, outside,
};

const MACHINE: [u8; 4] = [192, 0, 2, 1];
const OUTSIDE: [u8; 4] = [192, 0, 2, 2];

/// A pod on a machine with an outside.
struct World<'a> {
    outside: &'a OwnedFd,
    pod: &'a OwnedFd,
}

/// Runs a list in both ways, and compares; removes it in all four ways, and looks for what is left.
fn compare(list: List, traffic: impl Fn(&World<'_>) + Sync) {
    if !programs_installed() {
        return;
    }
    let mut seen: Vec<(By, String, Snapshot)> = Vec::new();
    // Some of the programs fail at checking what they made themselves; that is theirs.
    let mut programs_check = true;
    for added_by in [By::Programs, By::Native] {
        for removed_by in [By::Programs, By::Native] {
            let dir = tempfile::tempdir().unwrap();
            let list = with_data_dir(&list, dir.path());
            let mut taken = None;
            machine(|| {
                let outside = outside();
                let pod = foreign_netns();
                let path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
                let target = Target { container: "0123456789abcdef".to_owned(), netns: path.into() };
                let result =
                    add(added_by, &list, &target).unwrap_or_else(|e| panic!("{added_by:?} ADD: {e}"));
                let shown = snapshot::result(&result, &target.netns);
                let shot = snapshot::take(pod.as_fd(), dir.path());
                traffic(&World { outside: &outside, pod: &pod });
                // Programs check what the native ones made, and the other way round.
                let checked = check(removed_by, &list, &target, &result);
                if (added_by, removed_by) == (By::Programs, By::Programs) {
                    programs_check = checked.is_ok();
                } else if removed_by == By::Native || programs_check {
                    checked.unwrap_or_else(|e| panic!("{removed_by:?} CHECK of what {added_by:?} made: {e}"));
                }
                // The second time there is nothing; the programs' word for that is not ours to test.
                for _ in 0..if removed_by == By::Native { 2 } else { 1 } {
                    del(removed_by, &list, &target, &result)
                        .unwrap_or_else(|e| panic!("{removed_by:?} DEL of what {added_by:?} made: {e}"));
                }
                nothing_left(&format!("{added_by:?} then {removed_by:?}"), &pod, dir.path());
                taken = Some((shown, shot));
            });
            let (shown, shot) = taken.unwrap();
            seen.push((added_by, shown, shot));
        }
    }
    let (_, result, reference) = &seen[0];
    for (by, shown, shot) in &seen[1..] {
        assert_eq!(shown, result, "result of {by:?}");
        let difference = snapshot::difference(reference, shot);
        assert!(difference.is_empty(), "Programs against {by:?}:\n{difference}");
    }
}

fn nothing_left(ways: &str, pod: &OwnedFd, dir: &Path) {
    let links = crate::world::links();
    assert!(!links.iter().any(|name| snapshot::is_port(name) && !gateway_of_vlan(name)), "{ways}: {links:?}");
    assert!(!links.iter().any(|name| name.starts_with("bwp")), "{ways}: {links:?}");
    assert!(!inside(pod.as_fd(), crate::world::links).contains(&"eth0".to_owned()), "{ways}");
    let taken = snapshot::take(pod.as_fd(), dir);
    for key in ["iptables", "ip6tables"] {
        let own = taken[key].lines().filter(|line| line.contains("CNI-") && !line.contains("CNI-HOSTPORT"));
        assert_eq!(own.count(), 0, "{ways}: {}", taken[key]);
        assert!(!taken[key].contains("CNI-DN-"), "{ways}: {}", taken[key]);
    }
    let files =
        taken["files"].lines().filter(|line| !line.contains("lock") && !line.contains("last_reserved"));
    assert_eq!(files.count(), 0, "{ways}: {}", taken["files"]);
}

/// The pair of a VLAN's gateway belongs to the bridge and stays with it.
fn gateway_of_vlan(name: &str) -> bool {
    let details = ip(&["-oneline", "link", "show", name]);
    details.contains("@cni0.")
}

pub fn with_data_dir(list: &List, dir: &Path) -> List {
    let mut list = list.clone();
    for plugin in &mut list.plugins {
        if let Some(ipam) = plugin.get_mut("ipam") {
            ipam["dataDir"] = dir.display().to_string().into();
        }
    }
    list
}

fn list(plugins: &[Value]) -> List {
    List { version: "1.0.0", name: "pods", plugins: plugins.to_vec(), capabilities: json!({}) }
}

/// A `bridge` with some keys more.
fn bridge(more: &Value, ipam: &Value) -> Value {
    let mut config = json!({"type": "bridge", "bridge": "cni0"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    if !ipam.is_null() {
        let mut addresses = json!({"type": "host-local"});
        addresses.as_object_mut().unwrap().extend(ipam.as_object().unwrap().clone());
        config["ipam"] = addresses;
    }
    config
}

fn v4() -> Value {
    json!({"ranges": [[{"subnet": "10.9.0.0/24"}]]})
}

fn dual() -> Value {
    json!({"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]})
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The pod reaches the outside and is seen as the machine.
fn masqueraded(world: &World<'_>, outside: &str, machine: &str) {
    let server = inside(world.outside.as_fd(), || Server::start(address("::"), 0));
    let seen = inside(world.pod.as_fd(), || ask(address(outside), server.port()));
    assert_eq!(seen.unwrap(), address(machine));
}

#[test]
fn addresses_only() {
    compare(list(&[bridge(&json!({}), &v4())]), |_| ());
}

#[test]
fn gateway_and_default_route() {
    compare(list(&[bridge(&json!({"isDefaultGateway": true}), &v4())]), |world| {
        let server = Server::start(address("::"), 0);
        let seen = inside(world.pod.as_fd(), || ask(address("10.9.0.1"), server.port()));
        assert_eq!(seen.unwrap(), address("10.9.0.2"));
    });
}

#[test]
fn masquerading() {
    let config = bridge(&json!({"isDefaultGateway": true, "ipMasq": true}), &v4());
    compare(list(&[config]), |world| masqueraded(world, "192.0.2.2", "192.0.2.1"));
}

#[test]
fn dual_stack_with_masquerading() {
    let config = bridge(&json!({"isDefaultGateway": true, "ipMasq": true, "hairpinMode": true}), &dual());
    compare(list(&[config]), |world| {
        masqueraded(world, "192.0.2.2", "192.0.2.1");
        masqueraded(world, "2001:db8::2", "2001:db8::1");
    });
}

#[test]
fn routes_mtu_promiscuous_and_an_old_version() {
    let mut addresses = v4();
    addresses["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24", "gw": "10.9.0.77"}]);
    let more =
        json!({"isGateway": true, "mtu": 1400, "promiscMode": true, "dns": {"nameservers": ["192.0.2.53"]}});
    let mut list = list(&[bridge(&more, &addresses)]);
    list.version = "0.3.1";
    compare(list, |world| {
        let server = inside(world.outside.as_fd(), || {
            ip(&["route", "add", "10.9.0.0/24", "via", "192.0.2.1"]);
            Server::start(address("::"), 0)
        });
        let seen = inside(world.pod.as_fd(), || ask(OUTSIDE.into(), server.port()));
        assert_eq!(seen.unwrap(), address("10.9.0.2"));
    });
}

#[test]
fn ranges_in_one_set_and_a_gateway_of_their_own() {
    let first = json!({"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.40", "rangeEnd": "10.9.0.50", "gateway": "10.9.0.254"});
    let addresses = json!({"ranges": [[first, {"subnet": "10.10.0.0/24"}]]});
    compare(list(&[bridge(&json!({"isDefaultGateway": true}), &addresses)]), |_| ());
}

#[test]
fn a_single_range_and_two_addresses_of_one_family() {
    let addresses = json!({"subnet": "10.9.0.0/24", "ranges": [[{"subnet": "10.10.0.0/24"}]]});
    // With ipMasq the program cannot delete what it made: the chain is still led to by the other address.
    compare(list(&[bridge(&json!({"isGateway": true, "forceAddress": true}), &addresses)]), |_| ());
}

#[test]
fn addresses_and_hardware_address_that_the_pod_asks_for() {
    let mut config =
        bridge(&json!({"isDefaultGateway": true, "capabilities": {"ips": true, "mac": true}}), &dual());
    config["args"] = json!({"cni": {"ips": ["10.9.0.99"]}});
    let mut list = list(&[config]);
    list.capabilities = json!({"ips": ["fd09::99/64"], "mac": "0a:58:00:00:00:77"});
    compare(list, |_| ());
}

#[test]
fn ranges_from_the_runtime() {
    let config = bridge(&json!({"isDefaultGateway": true, "capabilities": {"ipRanges": true}}), &json!({}));
    let mut list = list(&[config]);
    list.capabilities = json!({"ipRanges": [[{"subnet": "10.44.0.0/24"}], [{"subnet": "fd44::/64"}]]});
    compare(list, |_| ());
}

#[test]
fn frames_only() {
    compare(list(&[bridge(&json!({"hairpinMode": true}), &Value::Null)]), |_| ());
}

#[test]
fn a_vlan_with_a_gateway() {
    if !kernel_filters_vlans() {
        skip("this kernel's bridges do not filter VLANs");
        return;
    }
    let config = bridge(&json!({"isDefaultGateway": true, "ipMasq": true, "vlan": 100}), &v4());
    compare(list(&[config]), |world| masqueraded(world, "192.0.2.2", "192.0.2.1"));
}

#[test]
fn doubled_addresses_are_detected() {
    compare(list(&[bridge(&json!({"isGateway": true, "enabledad": true}), &dual())]), |_| ());
}

#[test]
fn loopback_in_a_list() {
    let plugins = [bridge(&json!({"isDefaultGateway": true}), &v4()), json!({"type": "loopback"})];
    compare(list(&plugins), |world| {
        let server = inside(world.pod.as_fd(), || Server::start(address("127.0.0.1"), 0));
        assert!(inside(world.pod.as_fd(), || ask(address("127.0.0.1"), server.port())).is_ok());
    });
    compare(list(&[json!({"type": "loopback"})]), |_| ());
}

fn kernel_filters_vlans() -> bool {
    let mut made = false;
    machine(|| {
        let arguments = ["link", "add", "try0", "type", "bridge", "vlan_filtering", "1"];
        made = std::process::Command::new("ip").args(arguments).output().unwrap().status.success();
    });
    made
}

pub fn port_mappings(more: &Value, mappings: Value) -> List {
    let mut portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    portmap.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let addresses = bridge(&json!({"isDefaultGateway": true, "ipMasq": true, "hairpinMode": true}), &dual());
    let mut list = list(&[addresses, portmap]);
    list.capabilities = json!({"portMappings": mappings});
    list
}

#[test]
fn host_ports() {
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 8132, "containerPort": 132, "protocol": "sctp"},
    ]);
    compare(port_mappings(&json!({}), mappings), |world| {
        let _server = inside(world.pod.as_fd(), || Server::start(address("::"), 80));
        inside(world.pod.as_fd(), || answer_datagrams(53));
        for machine in ["192.0.2.1", "2001:db8::1"] {
            let machine = address(machine);
            let from_outside = inside(world.outside.as_fd(), || ask(machine, 8080)).unwrap();
            assert_eq!(from_outside.is_ipv4(), machine.is_ipv4(), "{from_outside}");
            let hairpin = inside(world.pod.as_fd(), || ask(machine, 8080));
            assert!(hairpin.is_ok(), "hairpin by {machine}: {hairpin:?}");
            assert!(ask(machine, 8080).is_ok(), "from the machine by {machine}");
            let datagram = inside(world.outside.as_fd(), || ask_datagram(machine, 8053));
            assert!(datagram.is_ok(), "datagram by {machine}: {datagram:?}");
        }
        assert!(ask(address("127.0.0.1"), 8080).is_ok(), "from the machine's loopback");
    });
}

#[test]
fn host_ports_of_one_address_and_many_ports() {
    let mut mappings = vec![
        json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}),
        json!({"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:db8::1"}),
        json!({"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"}),
    ];
    mappings
        .extend((9000..9020).map(|port| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"})));
    compare(port_mappings(&json!({"markMasqBit": 5}), mappings.into()), |world| {
        let _server = inside(world.pod.as_fd(), || Server::start(address("::"), 80));
        let asked = |machine: &str, port| inside(world.outside.as_fd(), || ask(address(machine), port));
        assert!(asked("192.0.2.1", 8080).is_ok());
        assert!(asked("2001:db8::1", 8081).is_ok());
        assert!(asked("192.0.2.1", 8082).is_ok());
        assert!(asked("192.0.2.1", 9019).is_ok());
        assert!(asked("192.0.2.1", 8081).is_err());
        assert!(asked("2001:db8::1", 8080).is_err());
    });
}

#[test]
fn host_ports_without_masquerading() {
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    compare(port_mappings(&json!({"snat": false}), mappings), |world| {
        let _server = inside(world.pod.as_fd(), || Server::start(address("::"), 80));
        assert!(inside(world.outside.as_fd(), || ask(MACHINE.into(), 8080)).is_ok());
    });
}

/// `iptables -C` finds every rule that was made natively: adding them again by program adds nothing.
#[test]
fn programs_recognise_the_rules() {
    if !programs_installed() {
        return;
    }
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 8132, "containerPort": 132, "protocol": "sctp"},
    ]);
    let dir = tempfile::tempdir().unwrap();
    let list = with_data_dir(&port_mappings(&json!({}), mappings), dir.path());
    machine(|| {
        let _outside = outside();
        let pod = foreign_netns();
        let path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
        let target = Target { container: "0123456789abcdef".to_owned(), netns: path.into() };
        let result = add(By::Native, &list, &target).unwrap();
        let before = snapshot::take(pod.as_fd(), dir.path());
        let portmap = List { plugins: vec![list.plugins[1].clone()], ..list.clone() };
        add_after(By::Programs, &portmap, &target, &result).unwrap();
        let after = snapshot::take(pod.as_fd(), dir.path());
        assert_eq!(after["iptables"], before["iptables"]);
        assert_eq!(after["ip6tables"], before["ip6tables"]);
        // And natively again: what is left of an earlier attempt is replaced.
        add_after(By::Native, &portmap, &target, &result).unwrap();
        let after = snapshot::take(pod.as_fd(), dir.path());
        assert_eq!(after["iptables"], before["iptables"]);
        del(By::Native, &list, &target, &result).unwrap();
        nothing_left("native, twice", &pod, dir.path());
    });
}

#[test]
fn no_host_ports() {
    compare(port_mappings(&json!({}), json!([])), |_| ());
}

fn shaped(more: &Value, limits: Option<Value>) -> List {
    let mut bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    bandwidth.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut list = list(&[bridge(&json!({"isDefaultGateway": true}), &v4()), bandwidth]);
    if let Some(limits) = limits {
        list.capabilities = json!({"bandwidth": limits});
    }
    list
}

#[test]
fn bandwidth_of_the_pod() {
    let limits = json!({
        "ingressRate": 40_000_000, "ingressBurst": 800_000, "egressRate": 40_000_000, "egressBurst": 800_000,
    });
    compare(shaped(&json!({}), Some(limits)), |world| {
        for from_pod in [false, true] {
            let rate = transfer(world, from_pod);
            assert!(
                (1_500_000..6_500_000).contains(&rate),
                "{rate} bytes in a second, from the pod: {from_pod}"
            );
        }
    });
}

#[test]
fn bandwidth_of_the_configuration_and_of_nobody() {
    let own = json!({"ingressRate": 80_000_000, "ingressBurst": 8_000_000});
    compare(shaped(&own, None), |_| ());
    let limits = json!({"ingressRate": 0, "ingressBurst": 0, "egressRate": 40_000_000_000u64, "egressBurst": 80_000_000});
    compare(shaped(&json!({}), Some(limits)), |_| ());
    compare(shaped(&json!({}), None), |_| ());
}

/// Bytes in a second between the machine and the pod.
fn transfer(world: &World<'_>, from_pod: bool) -> u64 {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};
    const BYTES: usize = 5_000_000;

    let send = |mut stream: TcpStream| {
        let _ = stream.write_all(&vec![0; BYTES]);
    };
    let receive = |mut stream: TcpStream| {
        let mut buffer = [0; 16 * 1024];
        let started = Instant::now();
        let mut rest = 0u64;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            rest += u64::try_from(length).unwrap();
        }
        rest * 1000 / u64::try_from(started.elapsed().max(Duration::from_millis(1)).as_millis()).unwrap()
    };
    let listener = TcpListener::bind("10.9.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let machine = scope.spawn(move || {
            let stream = listener.accept().unwrap().0;
            if from_pod { receive(stream) } else { (send(stream), 0).1 }
        });
        let pod = inside(world.pod.as_fd(), || {
            let stream = TcpStream::connect(address).unwrap();
            if from_pod { (send(stream), 0).1 } else { receive(stream) }
        });
        pod.max(machine.join().unwrap())
    })
}

#[test]
fn both_refuse_what_cannot_be() {
    if !programs_installed() {
        return;
    }
    let full =
        json!({"ranges": [[{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.5"}]]});
    for (config, why) in [
        (bridge(&json!({"hairpinMode": true, "promiscMode": true}), &v4()), "hairpin and promiscuous"),
        (bridge(&json!({"bridge": "uplink"}), &v4()), "not a bridge"),
        (bridge(&json!({}), &json!({"ranges": [[{"subnet": "10.9.0.0/31"}]]})), "too small"),
        (bridge(&json!({}), &json!({"ranges": [[{"subnet": "10.9.0.7/24"}]]})), "host bits"),
        (bridge(&json!({}), &json!({"ranges": []})), "no ranges"),
        (
            bridge(&json!({"isGateway": true}), &json!({"subnet": "10.9.0.0/24", "gateway": "10.9.0.9"})),
            "the second gateway",
        ),
        (bridge(&json!({}), &full), "the second address"),
    ] {
        for by in [By::Programs, By::Native] {
            let dir = tempfile::tempdir().unwrap();
            let list = with_data_dir(&list(std::slice::from_ref(&config)), dir.path());
            machine(|| {
                let _outside = outside();
                if why == "the second gateway" {
                    ip(&["link", "add", "cni0", "type", "bridge"]);
                    ip(&["address", "add", "10.9.0.1/24", "dev", "cni0"]);
                }
                let pods: Vec<OwnedFd> = (0..2).map(|_| foreign_netns()).collect();
                let mut failures = 0;
                for (number, pod) in pods.iter().enumerate() {
                    let path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
                    let target = Target { container: format!("pod{number}"), netns: path.into() };
                    if add(by, &list, &target).is_err() {
                        failures += 1;
                        // What a failed ADD took is given back by itself or by DEL.
                        let _ = del(by, &list, &target, &Value::Null);
                        let files = snapshot::take(pod.as_fd(), dir.path())["files"].clone();
                        assert!(!files.contains(&format!("\"pod{number}")), "{by:?} {why}: {files}");
                    }
                }
                let wanted = if why == "the second address" { 1 } else { 2 };
                assert_eq!(failures, wanted, "{by:?}: {why}");
            });
        }
    }
}
