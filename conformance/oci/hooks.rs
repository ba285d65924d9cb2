//! Hooks: when, where, with what on stdin, and what a failing one does.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::ground::{Machine, text};

/// A hook of the host that appends the state, its name and whether it sees some files to a log beside the bundle.
fn on_host(bundle: &str, name: &str) -> Value {
    let script = format!(
        "{{ echo {name}; cat; echo; [ -e /proc/1/root/keeper ] ; ls {bundle}/rootfs/proc 2>/dev/null | grep -c self; \
         readlink /proc/self/ns/net; }} >>{bundle}/hooks.log"
    );
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 10 }])
}

struct Told {
    name: String,
    state: Value,
    sees_proc: bool,
    network: String,
}

fn told(log: &Path) -> Vec<Told> {
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let one = |lines: &[&str]| Told {
        name: lines[0].to_owned(),
        state: serde_json::from_str(lines[1]).unwrap_or_else(|error| panic!("{error}: {log}")),
        sees_proc: lines[2] != "0",
        network: lines[3].to_owned(),
    };
    assert_eq!(lines.len() % 4, 0, "{log}");
    lines.chunks(4).map(one).collect()
}

#[test]
fn every_hook_in_its_place() {
    let Some(machine) = Machine::new("every_hook_in_its_place") else { return };
    let place = machine.world.dir().join("b").display().to_string();
    let bundle = machine.bundle("b", &["sh", "-c", "cat /data/started; exec sleep 100"], |config| {
        config["annotations"] = json!({ "key": "value" });
        config["hooks"] = json!({
            "prestart": on_host(&place, "prestart"),
            "createRuntime": on_host(&place, "createRuntime"),
            "createContainer": on_host(&place, "createContainer"),
            "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat >/data/started; hostname >>/data/started"] }],
            "poststart": on_host(&place, "poststart"),
            "poststop": on_host(&place, "poststop"),
        });
    });
    let log = bundle.join("hooks.log");
    let (created, output) = machine.create("c1", &bundle);
    created.ok();
    let host = machine.world.sh("readlink /proc/self/ns/net").trim().to_owned();
    let pid = machine.state("c1")["pid"].clone();
    let before = told(&log);
    assert_eq!(
        before.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(),
        ["prestart", "createRuntime", "createContainer"]
    );
    for hook in &before {
        let state = &hook.state;
        assert_eq!((&state["id"], &state["status"], &state["pid"]), (&json!("c1"), &json!("created"), &pid));
        assert_eq!(
            (&state["bundle"], &state["annotations"]),
            (&json!(text(&bundle)), &json!({ "key": "value" }))
        );
        let inside = hook.name == "createContainer";
        // In the container's namespaces its mounts are there, at the bundle's place, beside the host's files.
        assert_eq!(hook.sees_proc, inside, "{}", hook.name);
        assert_eq!(hook.network == host, !inside, "{}", hook.name);
    }
    assert!(!bundle.join("rootfs/data/started").exists());

    machine.oci(&["start", "c1"]).ok();
    let started = fs::read_to_string(bundle.join("rootfs/data/started")).unwrap();
    let (state, name) = started.rsplit_once('}').unwrap();
    let state: Value = serde_json::from_str(&format!("{state}}}")).unwrap();
    assert_eq!((&state["id"], &state["pid"], name.trim()), (&json!("c1"), &pid, "pinnace"));
    let after = told(&log);
    assert_eq!((after[3].name.as_str(), &after[3].state["status"]), ("poststart", &json!("running")));
    machine.oci(&["kill", "c1", "KILL"]).ok();
    machine.until("c1", "stopped");
    assert_eq!(told(&log).len(), 4);
    machine.oci(&["delete", "c1"]).ok();
    let last = told(&log).pop().unwrap();
    assert_eq!((last.name.as_str(), &last.state["status"]), ("poststop", &json!("stopped")));
    assert!(fs::read_to_string(output).unwrap().contains("\"id\":\"c1\""), "the hook came after the program");
    machine.assert_nothing_left();
}

#[test]
fn failing_hooks() {
    let Some(machine) = Machine::new("failing_hooks") else { return };
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo no room >&2; exit 3"] }]);
    let dir = machine.world.dir().display().to_string();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = machine.bundle(kind, &["true"], |config| {
            config["hooks"] =
                json!({ kind: failing, "poststop": on_host(&format!("{dir}/{kind}"), "poststop") });
        });
        let said = machine.create("c1", &bundle).0.refused("no room");
        assert!(said.contains(kind) && said.contains("exit status: 3"), "{said}");
        machine.oci(&["state", "c1"]).refused("does not exist");
        assert_eq!(told(&bundle.join("hooks.log"))[0].name, "poststop", "{kind}");
    }
    let bundle = machine.bundle("startContainer", &["touch", "/data/ran"], |config| {
        config["hooks"] = json!({ "startContainer": failing });
    });
    machine.create("c1", &bundle).0.ok();
    machine.oci(&["start", "c1"]).refused("no room");
    machine.until("c1", "stopped");
    assert!(!bundle.join("rootfs/data/ran").exists(), "the program ran");
    machine.oci(&["delete", "c1"]).ok();

    let slow = json!([{ "path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }]);
    let bundle = machine.bundle("late", &["true"], |config| {
        config["hooks"] = json!({ "poststart": failing, "poststop": failing, "createRuntime": [] });
    });
    machine.create("c1", &bundle).0.ok();
    let started = machine.oci(&["start", "c1"]);
    assert!(started.code == 0 && started.stderr.contains("no room"), "{started:?}");
    machine.until("c1", "stopped");
    let deleted = machine.oci(&["delete", "c1"]);
    assert!(deleted.code == 0 && deleted.stderr.contains("no room"), "{deleted:?}");
    let bundle = machine.bundle("slow", &["true"], |config| config["hooks"] = json!({ "prestart": slow }));
    machine.create("c1", &bundle).0.refused("did not end within 1000 ms");
    machine.assert_nothing_left();
}
