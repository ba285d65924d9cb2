//! The lifecycle of the runtime spec, and its errors.

use std::fs;

use serde_json::json;

use crate::ground::{Machine, text};

#[test]
fn create_start_state_kill_delete() {
    let Some(machine) = Machine::new("create_start_state_kill_delete") else { return };
    let bundle = machine.bundle("b", &["sh", "-c", "echo begun; exec sleep 100"], |config| {
        config["annotations"] = json!({ "org.example.key": "value" });
    });
    let pid_file = bundle.join("pid");
    let output = bundle.join("output");
    let file = fs::File::create(&output).unwrap();
    let created = machine
        .command(&["create", "--bundle", text(&bundle), "--pid-file", text(&pid_file), "c1"])
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .status()
        .unwrap();
    assert!(created.success(), "{}", fs::read_to_string(&output).unwrap());
    let state = machine.state("c1");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "c1");
    assert_eq!(state["bundle"], text(&bundle));
    assert_eq!(state["annotations"], json!({ "org.example.key": "value" }));
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
    assert_eq!(fs::read_to_string(&output).unwrap(), "", "the program ran before its start");

    machine.oci(&["start", "c1"]).ok();
    machine.until("c1", "running");
    assert_eq!(machine.state("c1")["pid"], state["pid"]);
    assert!(machine.oci(&["list", "-q"]).ok().lines().eq(["c1"]));
    let listed = machine.oci(&["ps", "--format", "json", "c1"]).ok();
    assert_eq!(listed.trim(), format!("[{}]", state["pid"]));
    assert_eq!(machine.oci(&["exec", "c1", "sh", "-c", "echo inside; exit 7"]).code, 7);
    machine.oci(&["pause", "c1"]).ok();
    machine.until("c1", "paused");
    machine.oci(&["exec", "c1", "true"]).refused("paused");
    machine.oci(&["resume", "c1"]).ok();
    machine.until("c1", "running");
    machine.oci(&["kill", "c1", "KILL"]).ok();
    machine.until("c1", "stopped");
    assert_eq!(machine.state("c1")["pid"], 0);
    machine.oci(&["delete", "c1"]).ok();
    assert_eq!(fs::read_to_string(&output).unwrap(), "begun\n");
    machine.assert_nothing_left();
}

/// Each operation where the spec does not allow it: an error that says what the container is, and no effect.
#[test]
fn operations_out_of_order() {
    let Some(machine) = Machine::new("operations_out_of_order") else { return };
    let bundle = machine.bundle("b", &["sleep", "100"], |_| {});
    for verb in ["state", "start", "kill", "delete", "pause", "resume", "ps"] {
        machine.oci(&[verb, "ghost"]).refused("does not exist");
        assert_ne!(machine.oci(&[verb]).code, 0, "{verb} without an id");
    }
    assert_ne!(machine.oci(&["create"]).code, 0, "create without an id");
    machine.oci(&["create", "--bundle", text(&bundle), "../c1"]).refused("container id");
    machine.oci(&["create", "--bundle", "/nowhere", "c1"]).refused("/nowhere");
    machine.oci(&["create", "--bundle", text(&bundle), "--no-pivot", "c1"]).refused("--no-pivot");
    machine.oci(&["--systemd-cgroup", "create", "--bundle", text(&bundle), "c1"]).refused("--systemd-cgroup");

    machine.create("c1", &bundle).0.ok();
    machine.create("c1", &bundle).0.refused("exists already");
    machine.oci(&["delete", "c1"]).refused("it is created");
    machine.oci(&["resume", "c1"]).refused("it is created");
    assert_eq!(machine.state("c1")["status"], "created");
    machine.oci(&["start", "c1"]).ok();
    machine.oci(&["start", "c1"]).refused("it is running");
    machine.oci(&["delete", "c1"]).refused("it is running");
    assert_eq!(machine.state("c1")["status"], "running");
    machine.oci(&["kill", "c1", "NONSENSE"]).refused("NONSENSE");
    machine.oci(&["kill", "c1", "9"]).ok();
    machine.until("c1", "stopped");
    machine.oci(&["start", "c1"]).refused("it is stopped");
    machine.oci(&["kill", "c1"]).refused("it is stopped");
    machine.oci(&["exec", "c1", "true"]).refused("it is stopped");
    machine.oci(&["delete", "c1"]).ok();
    machine.oci(&["delete", "--force", "c1"]).ok();
    // A created one is killed by its signal as any other, and its id is free again.
    machine.create("c1", &bundle).0.ok();
    machine.oci(&["kill", "c1", "KILL"]).ok();
    machine.until("c1", "stopped");
    machine.oci(&["delete", "c1"]).ok();
    machine.create("c1", &bundle).0.ok();
    machine.oci(&["delete", "--force", "c1"]).ok();
    machine.assert_nothing_left();
}

/// A configuration that cannot become a container leaves nothing, and one that is changed later has no effect.
#[test]
fn configurations_are_read_once_and_wholly() {
    let Some(machine) = Machine::new("configurations_are_read_once_and_wholly") else { return };
    let bundle = machine.bundle("b", &["echo", "first"], |_| {});
    let config = fs::read_to_string(bundle.join("config.json")).unwrap();
    machine.create("c1", &bundle).0.ok();
    fs::write(bundle.join("config.json"), config.replace("first", "second")).unwrap();
    machine.oci(&["start", "c1"]).ok();
    machine.until("c1", "stopped");
    machine.oci(&["delete", "c1"]).ok();
    assert_eq!(fs::read_to_string(bundle.join("output-c1")).unwrap(), "first\n");
    for (from, to, words) in [
        ("\"ociVersion\":\"1.2.1\"", "\"ociVersion\":\"2.0.0\"", "ociVersion"),
        ("\"path\":\"rootfs\"", "\"path\":\"nowhere\"", "root.path"),
        ("\"cwd\":\"/\"", "\"cwd\":\"relative\"", "process.cwd"),
        ("\"args\":[\"echo\",\"first\"]", "\"args\":[]", "process.args"),
        ("{", "", "config.json"),
    ] {
        assert!(config.contains(from), "{from} is not in {config}");
        fs::write(bundle.join("config.json"), config.replacen(from, to, 1)).unwrap();
        machine.create("c1", &bundle).0.refused(words);
        machine.oci(&["state", "c1"]).refused("does not exist");
    }
    machine.assert_nothing_left();
}

/// A program that cannot be executed: the start says why, and the container is stopped.
#[test]
fn programs_that_cannot_be_executed() {
    let Some(machine) = Machine::new("programs_that_cannot_be_executed") else { return };
    let bundle = machine.bundle("missing", &["no-such-program"], |_| {});
    machine.create("c1", &bundle).0.refused("no-such-program");
    let bundle = machine.bundle("text", &["/data/text"], |_| {});
    let path = bundle.join("rootfs/data/text");
    fs::write(&path, "not a program").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    machine.create("c2", &bundle).0.ok();
    machine.oci(&["start", "c2"]).refused("wrong architecture");
    machine.until("c2", "stopped");
    machine.oci(&["delete", "c2"]).ok();
    machine.assert_nothing_left();
}

/// Sixty lives leave nothing of theirs.
#[test]
fn sixty_lives() {
    let Some(machine) = Machine::new("sixty_lives") else { return };
    let bundle = machine.bundle("b", &["sleep", "100"], |_| {});
    let program = pinnace_conformance::daemon::program();
    // One shell for all of it: entering the world costs more than the container does.
    let script = format!(
        r#"oci() {{ {} oci --root /run/oci-state "$@"; }}
        for round in $(seq 60); do
            oci create --bundle {} life-$round >/dev/null 2>&1 </dev/null
            oci start life-$round
            oci kill life-$round KILL
            while ! oci state life-$round | grep -q '"stopped"'; do sleep 0.01; done
            oci delete life-$round
        done"#,
        program.display(),
        bundle.display()
    );
    machine.world.sh(&script);
    machine.assert_nothing_left();
}
