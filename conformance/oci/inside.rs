//! What a container is, seen from inside.

use std::fs;

use serde_json::{Value, json};

use crate::ground::{Machine, text};

fn namespaces(config: &mut Value, change: impl Fn(&mut Vec<Value>)) {
    let list = config["linux"]["namespaces"].as_array_mut().unwrap();
    change(list);
}

fn drop_namespace(config: &mut Value, kind: &str) {
    namespaces(config, |list| list.retain(|namespace| namespace["type"] != kind));
}

#[test]
fn hostname_and_mounts_and_paths() {
    let Some(machine) = Machine::new("hostname_and_mounts_and_paths") else { return };
    let script = "hostname; cat /etc/fromhost; (echo x >/data/ro/y) 2>&1; cat /proc/kcore 2>/dev/null | head -c1; \
                  (echo x >/proc/sys/kernel/shm_rmid_forced) 2>&1; stat -c %t:%T /dev/null /dev/zero /dev/full; \
                  readlink /dev/fd; mount | grep -c 'tmpfs.*size=1024k'";
    let bundle = machine.bundle("b", &["sh", "-c", script], |config| {
        config["hostname"] = json!("runtime-test");
        let mounts = config["mounts"].as_array_mut().unwrap();
        // A relative source is the bundle's.
        mounts.push(json!({ "destination": "/etc/fromhost", "source": "given", "options": ["bind", "ro"] }));
        mounts.push(json!({ "destination": "/data/ro", "type": "bind", "source": "tree", "options": ["rbind", "ro"] }));
        mounts.push(json!({ "destination": "/data/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] }));
    });
    fs::write(bundle.join("given"), "from the host\n").unwrap();
    fs::create_dir(bundle.join("tree")).unwrap();
    let said = machine.run("c1", &bundle);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(&lines[..2], ["runtime-test", "from the host"], "{said}");
    assert!(lines[2].contains("Read-only") && lines[3].contains("Read-only"), "{said}");
    assert_eq!(&lines[4..], ["1:3", "1:5", "1:7", "/proc/self/fd", "1"], "{said}");
    machine.assert_nothing_left();
}

#[test]
fn process_user_capabilities_limits() {
    let Some(machine) = Machine::new("process_user_capabilities_limits") else { return };
    let script = "id -u; id -g; id -G; grep -E 'Cap(Eff|Prm|Bnd|Amb)|NoNewPrivs' /proc/self/status; umask; \
                  grep 'open files' /proc/self/limits; cat /proc/self/oom_score_adj; echo $VALUE; pwd";
    let bundle = machine.bundle("b", &["sh", "-c", script], |config| {
        let process = &mut config["process"];
        process["user"] = json!({ "uid": 10, "gid": 20, "additionalGids": [30, 40], "umask": 63 });
        let chown = ["CAP_CHOWN"];
        process["capabilities"] =
            json!({ "bounding": chown, "permitted": chown, "effective": chown, "inheritable": chown, "ambient": chown });
        process["noNewPrivileges"] = json!(true);
        process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
        process["oomScoreAdj"] = json!(100);
        process["env"] = json!(["PATH=/bin", "VALUE=some value"]);
        process["cwd"] = json!("/made/here");
    });
    let said = machine.run("c1", &bundle);
    for expected in [
        "10\n20\n20 30 40\n",
        "CapPrm:\t0000000000000001",
        "CapEff:\t0000000000000001",
        "CapBnd:\t0000000000000001",
        "CapAmb:\t0000000000000001",
        "NoNewPrivs:\t1",
        "0077\n",
        "100\nsome value\n/made/here\n",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let limits = said.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(limits.split_whitespace().skip(3).take(2).eq(["100", "200"]), "{limits}");
}

/// `linux_ns_nopath`, `linux_ns_path`, `linux_ns_path_type`, `linux_ns_itype`.
#[test]
fn namespaces_fresh_joined_and_the_hosts() {
    let Some(machine) = Machine::new("namespaces_fresh_joined_and_the_hosts") else { return };
    let kinds = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup"), ("pid", "pid")];
    let list = "for n in net ipc uts cgroup pid; do readlink /proc/self/ns/$n; done";
    let host = machine.world.sh(list);
    let fresh = machine.run("fresh", &machine.bundle("fresh", &["sh", "-c", list], |_| {}));
    for (ours, theirs) in fresh.lines().zip(host.lines()) {
        assert_ne!(ours, theirs);
    }
    let bundle = machine.bundle("host", &["sh", "-c", list], |config| {
        kinds.iter().for_each(|(kind, _)| drop_namespace(config, kind));
        config["hostname"] = json!("");
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/sys");
    });
    assert_eq!(machine.run("host", &bundle), host);

    let holder = machine.bundle("holder", &["sleep", "100"], |_| {});
    machine.create("holder", &holder).0.ok();
    machine.oci(&["start", "holder"]).ok();
    let pid = machine.state("holder")["pid"].clone();
    let held =
        machine.world.sh(&format!("for n in net ipc uts cgroup pid; do readlink /proc/{pid}/ns/$n; done"));
    let bundle = machine.bundle("joined", &["sh", "-c", list], |config| {
        namespaces(config, |list| {
            for namespace in list {
                let kind = namespace["type"].as_str().unwrap().to_owned();
                if let Some((_, file)) = kinds.iter().find(|(known, _)| *known == kind) {
                    namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
                }
            }
        });
        config["hostname"] = json!("");
        config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/sys");
    });
    assert_eq!(machine.run("joined", &bundle), held);
    let bundle = machine.bundle("wrong", &["true"], |config| {
        namespaces(config, |list| {
            list.iter_mut()
                .filter(|it| it["type"] == "ipc")
                .for_each(|it| it["path"] = json!(format!("/proc/{pid}/ns/net")));
        });
    });
    machine.create("wrong", &bundle).0.refused("is not a ipc namespace");
    machine.oci(&["delete", "--force", "holder"]).ok();
    machine.assert_nothing_left();
}

/// `linux_uid_mappings`.
#[test]
fn user_namespace_with_id_maps() {
    let Some(machine) = Machine::new("user_namespace_with_id_maps") else { return };
    let script = "id -u; cat /proc/self/uid_map; touch /data/mine; exec sleep 100";
    let bundle = machine.bundle("b", &["sh", "-c", script], |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    machine.world.sh(&format!("chown -R 100000:100000 {0}/rootfs; chmod 711 {0}", text(&bundle)));
    let (created, output) = machine.create("c1", &bundle);
    created.ok();
    machine.oci(&["start", "c1"]).ok();
    let inside = machine.oci(&["exec", "c1", "sh", "-c", "id -u; touch /data/later"]);
    assert_eq!(inside.stdout, "0\n", "{inside:?}");
    let said = fs::read_to_string(output).unwrap();
    assert!(said.split_whitespace().eq(["0", "0", "100000", "65536"]), "{said}");
    let owners =
        machine.world.sh(&format!("stat -c %u {0}/mine {0}/later", text(&bundle.join("rootfs/data"))));
    assert_eq!(owners, "100000\n100000\n");
    machine.oci(&["delete", "--force", "c1"]).ok();
    machine.assert_nothing_left();
}

#[test]
fn seccomp_and_sysctl() {
    let Some(machine) = Machine::new("seccomp_and_sysctl") else { return };
    let script = "(mkdir /data/new) 2>&1; cat /proc/sys/net/ipv4/ip_forward; grep Seccomp: /proc/self/status";
    let bundle = machine.bundle("b", &["sh", "-c", script], |config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
        });
        config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    });
    let said = machine.run("c1", &bundle);
    assert!(said.contains("Operation not permitted") && said.contains("\n1\nSeccomp:\t2"), "{said}");
    let bundle = machine.bundle("wrong", &["true"], |config| {
        config["linux"]["sysctl"] = json!({ "kernel.core_pattern": "x" });
    });
    machine.create("c1", &bundle).0.refused("kernel.core_pattern");
    machine.assert_nothing_left();
}
