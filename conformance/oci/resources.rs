//! Limits and the devices that may be opened.

use std::fs;

use serde_json::json;

use crate::ground::Machine;

#[test]
fn cgroup_limits_are_set_changed_and_gone() {
    let Some(machine) = Machine::new("cgroup_limits_are_set_changed_and_gone") else { return };
    let bundle = machine.bundle("b", &["sleep", "100"], |config| {
        config["linux"]["cgroupsPath"] = json!("/testing/oci/c1");
        let resources = &mut config["linux"]["resources"];
        resources["pids"] = json!({ "limit": 50 });
        resources["memory"] = json!({ "limit": 64 << 20 });
    });
    machine.create("c1", &bundle).0.ok();
    let cgroup = |controller: &str| machine.world.cgroup(controller, "/testing/oci/c1").unwrap();
    let read = |controller: &str, file: &str| {
        fs::read_to_string(cgroup(controller).join(file)).unwrap().trim().to_owned()
    };
    let memory = if machine.world.is_cgroup_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    assert_eq!((read("pids", "pids.max"), read("memory", memory)), ("50".to_owned(), (64 << 20).to_string()));
    machine.oci(&["update", "--pids-limit", "60", "--memory", "134217728", "c1"]).ok();
    assert_eq!(
        (read("pids", "pids.max"), read("memory", memory)),
        ("60".to_owned(), (128 << 20).to_string())
    );
    let file = bundle.join("resources.json");
    fs::write(&file, r#"{"pids":{"limit":70}}"#).unwrap();
    machine.oci(&["update", "--resources", file.to_str().unwrap(), "c1"]).ok();
    assert_eq!(read("pids", "pids.max"), "70");
    machine.oci(&["update", "--cpuset-cpus", "0;1", "c1"]).refused("cpu");
    machine.oci(&["delete", "--force", "c1"]).ok();
    assert!(!cgroup("pids").exists() && !cgroup("memory").exists());
    machine.assert_nothing_left();
}

/// `linux_devices`, `linux_cgroups_devices`, `linux_cgroups_relative_pids`.
#[test]
fn devices_are_made_and_allowed() {
    let Some(machine) = Machine::new("devices_are_made_and_allowed") else { return };
    let script = "cat /proc/self/cgroup | grep -c testdir; stat -c '%t:%T %a %u' /dev/given; head -c1 /dev/given; \
                  (head -c1 /dev/denied) 2>&1";
    let bundle = machine.bundle("b", &["sh", "-c", script], |config| {
        config["linux"]["cgroupsPath"] = json!("testdir/container");
        // The cgroup is seen by its whole path in the host's cgroup namespace alone.
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|it| it["type"] != "cgroup");
        config["linux"]["devices"] = json!([
            { "path": "/dev/given", "type": "c", "major": 1, "minor": 5, "fileMode": 432, "uid": 7, "gid": 0 },
            { "path": "/dev/denied", "type": "c", "major": 1, "minor": 11, "fileMode": 438 },
        ]);
    });
    let said = machine.run("c1", &bundle);
    let mut lines = said.lines();
    assert_ne!(lines.next(), Some("0"), "{said}");
    assert_eq!(lines.next(), Some("1:5 660 7"), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
    machine.assert_nothing_left();
}
