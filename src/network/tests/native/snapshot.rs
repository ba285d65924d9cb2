//! What a list of plugins made, without what is random: indices, hardware addresses, names of ports.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::world::inside;

/// Everything, by what it is about.
pub type Snapshot = BTreeMap<String, String>;

/// Keys of `ip -json` and the others whose values are random or a matter of time.
const RANDOM: [&str; 30] = [
    "tentative",
    "ifindex",
    "link_index",
    "link_netnsid",
    "address",
    "permaddr",
    "bridge_id",
    "root_id",
    "designated_root",
    "valid_life_time",
    "preferred_life_time",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "stats64",
    "stats",
    "num_tx_queues",
    "num_rx_queues",
    "cost",
    "no",
    "port_id",
    "port_no",
    "message_age_timer",
    "forward_delay_timer",
    "hold_timer",
    "bridge_id_addr",
    "root_id_addr",
    "altnames",
    "designated_bridge",
];

pub fn take(pod: BorrowedFd<'_>, files: &Path) -> Snapshot {
    // A carrier that has just come counts a moment later, where a plugin does not wait for it.
    let carriers = || {
        let links: Value = serde_json::from_str(&run("ip", &["-json", "link"])).unwrap();
        links.as_array().unwrap().iter().all(|link| of_uplink(link) || link["operstate"] != "DOWN")
    };
    for _ in 0..200 {
        if carriers() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut snapshot = side("machine");
    snapshot.extend(inside(pod, || side("pod")));
    for (name, program) in [("iptables", "iptables-save"), ("ip6tables", "ip6tables-save")] {
        // `iptables-save` knows a table once any program has used it.
        snapshot.insert(name.to_owned(), strip_counters(&run(program, &["-t", "nat"])));
    }
    snapshot.insert("files".to_owned(), address_files(files));
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let value = std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap();
        snapshot.insert(format!("sysctl {key}"), value);
    }
    snapshot
}

/// A result as text, without what is random.
pub fn result(result: &Value, netns: &Path) -> String {
    let text = serde_json::to_string(result).unwrap().replace(&netns.display().to_string(), "NETNS");
    let mut result: Value = serde_json::from_str(&text).unwrap();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let given = interface["mac"] == "0a:58:00:00:00:77" || interface["mac"] == "00:00:00:00:00:00";
        if !given && interface["mac"].as_str().is_some_and(|mac| mac.len() == 17) {
            interface["mac"] = "MAC".into();
        }
        if is_port(interface["name"].as_str().unwrap_or_default()) {
            interface["name"] = "PORT".into();
        }
    }
    serde_json::to_string_pretty(&result).unwrap()
}

/// The parts in which two snapshots differ, as text.
pub fn difference(one: &Snapshot, other: &Snapshot) -> String {
    let lines = |snapshot: &Snapshot, key: &String| -> Vec<String> {
        snapshot.get(key).into_iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
    };
    let mut text = String::new();
    for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
        let (ours, theirs) = (lines(one, key), lines(other, key));
        if ours != theirs {
            text += &format!("{key}\n");
            text.extend(
                ours.iter().filter(|line| !theirs.contains(line)).map(|line| format!("  - {line}\n")),
            );
            text.extend(
                theirs.iter().filter(|line| !ours.contains(line)).map(|line| format!("  + {line}\n")),
            );
        }
    }
    text
}

fn side(name: &str) -> Snapshot {
    let mut side = Snapshot::new();
    for (what, program, arguments) in [
        ("links", "ip", &["-details", "-json", "link"] as &[&str]),
        ("addresses", "ip", &["-json", "address"]),
        ("routes", "ip", &["-json", "route", "show", "table", "all"]),
        ("routes6", "ip", &["-6", "-json", "route"]),
        ("neighbours", "ip", &["-json", "neighbour"]),
        ("ports", "bridge", &["-details", "-json", "link"]),
        ("vlans", "bridge", &["-json", "vlan"]),
        ("queues", "tc", &["-details", "-json", "qdisc", "show"]),
    ] {
        let mut value: Value = serde_json::from_str(&run(program, arguments)).unwrap_or_default();
        normalise(&mut value);
        let mut rows: Vec<String> = value
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| !of_uplink(row) && !of_link_local(row))
            .map(Value::to_string)
            .collect();
        rows.sort();
        side.insert(format!("{name} {what}"), rows.join("\n"));
    }
    for entry in std::fs::read_dir("/proc/thread-self/net/dev_snmp6").into_iter().flatten() {
        let interface = entry.unwrap().file_name().into_string().unwrap();
        let shown = if is_port(&interface) { "PORT" } else { &interface };
        for family in ["ipv4", "ipv6"] {
            side.insert(format!("{name} {family} settings of {shown}"), settings(family, &interface));
        }
        if is_port(&interface) {
            let filters = run("tc", &["-details", "filter", "show", "dev", &interface, "parent", "ffff:"]);
            let filters: Vec<String> = filters
                .lines()
                .map(|line| line.split(" installed ").next().unwrap().trim_end().to_owned())
                .filter(|line| !line.contains("index ") && !line.contains("Sent "))
                .collect();
            side.insert(format!("{name} filters of {shown}"), filters.join("\n"));
        }
    }
    side
}

/// The cable to the outside is the test's, and comes up when it pleases.
fn of_uplink(row: &Value) -> bool {
    ["ifname", "dev"].iter().any(|key| row[*key] == "uplink")
}

/// Routes of link-local addresses come when the kernel has found that nobody else has the address.
fn of_link_local(row: &Value) -> bool {
    row["dst"]
        .as_str()
        .is_some_and(|to| to == "LINK-LOCAL" || to.starts_with("fe80:") || to.starts_with("ff00:"))
}

fn settings(family: &str, interface: &str) -> String {
    let directory = format!("/proc/sys/net/{family}/conf/{interface}");
    let mut settings: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("stable_secret"))
        .map(|path| {
            let value = std::fs::read_to_string(&path).unwrap_or_default();
            format!("{}={}", path.file_name().unwrap().to_string_lossy(), value.trim())
        })
        .collect();
    settings.sort();
    settings.join("\n")
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !RANDOM.contains(&key.as_str()));
            map.values_mut().for_each(normalise);
        }
        Value::Array(list) => list.iter_mut().for_each(normalise),
        Value::String(text) => {
            if is_port(text) {
                *text = "PORT".to_owned();
            } else if text.starts_with("fe80:") && !text.contains('/') {
                *text = "LINK-LOCAL".to_owned();
            } else if text.starts_with("ff02::1:ff") {
                *text = "SOLICITED".to_owned();
            }
        }
        _ => {}
    }
}

/// The random names of ports: `veth` and eight hexadecimal digits.
pub fn is_port(name: &str) -> bool {
    name.strip_prefix("veth")
        .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn strip_counters(text: &str) -> String {
    let rules = text.lines().filter(|line| !line.starts_with('#'));
    let bare = rules.map(|line| line.split(" [").next().unwrap_or_default());
    // The order of chains is that of a hash table.
    let (mut chains, others): (Vec<&str>, Vec<&str>) = bare.partition(|line| line.starts_with(':'));
    chains.sort_unstable();
    let mut by_chain: Vec<&str> = others;
    by_chain.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
    [chains, by_chain].concat().join("\n")
}

fn address_files(directory: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let mut files: Vec<String> = walk(directory)
        .into_iter()
        .map(|path| {
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            format!("{name} {mode:o} {:?}", std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    files.join("\n")
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
