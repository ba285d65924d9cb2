//! What callers need beyond the spec: terminals, descriptors, foreground, exec's ways, what the runtime says of itself.

use std::fs;
use std::io::{IoSliceMut, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::ground::{Ended, Machine, text};

fn master(listener: &UnixListener) -> (String, OwnedFd) {
    let (stream, _) = listener.accept().unwrap();
    let mut bytes = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    (String::from_utf8_lossy(&bytes[..message.bytes]).into_owned(), fd.expect("a descriptor"))
}

/// Everything until the terminal's other end closes.
fn drain(master: OwnedFd) -> String {
    let mut said = Vec::new();
    // EIO is its end.
    let _ = fs::File::from(master).read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn terminals_over_the_console_socket() {
    let Some(machine) = Machine::new("terminals_over_the_console_socket") else { return };
    let bundle = machine.bundle("b", &["sh", "-c", "test -t 0 && stty size && sleep 100"], |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({ "height": 12, "width": 34 });
    });
    machine.create("c1", &bundle).0.refused("--console-socket");
    let socket = bundle.join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let at = ["--console-socket", text(&socket)];
    machine.oci(&["create", "--bundle", text(&bundle), at[0], at[1], "c1"]).ok();
    let (name, terminal) = master(&listener);
    assert!(name.starts_with("/dev/pts/"), "{name}");
    machine.oci(&["start", "c1"]).ok();
    machine
        .oci(&["exec", "--detach", "--tty", at[0], at[1], "c1", "sh", "-c", "test -t 1 && echo session"])
        .ok();
    assert_eq!(drain(master(&listener).1), "session\r\n");
    machine.oci(&["kill", "c1", "KILL"]).ok();
    assert_eq!(drain(terminal), "12 34\r\n");
    machine.until("c1", "stopped");
    machine.oci(&["delete", "c1"]).ok();
    machine.assert_nothing_left();
}

#[test]
fn foreground_and_detached() {
    let Some(machine) = Machine::new("foreground_and_detached") else { return };
    let bundle = machine.bundle("b", &["sh", "-c", "cat; echo to stderr >&2; exit 9"], |_| {});
    let mut child = machine
        .command(&["run", "--bundle", text(&bundle), "c1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from stdin\n").unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!(
        (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
        (9, "from stdin\n", "to stderr\n")
    );
    machine.oci(&["state", "c1"]).refused("does not exist");

    let bundle = machine.bundle("detached", &["sleep", "100"], |_| {});
    machine.oci(&["run", "--detach", "--bundle", text(&bundle), "c2"]).ok();
    machine.until("c2", "running");
    machine.oci(&["kill", "--all", "c2", "KILL"]).ok();
    machine.until("c2", "stopped");
    machine.oci(&["delete", "c2"]).ok();
    let bundle = machine.bundle("none", &["no-such"], |_| {});
    assert_eq!(machine.oci(&["run", "--bundle", text(&bundle), "c3"]).code, 255);
    machine.assert_nothing_left();
}

#[test]
fn exec_by_flags_and_by_file() {
    let Some(machine) = Machine::new("exec_by_flags_and_by_file") else { return };
    let bundle = machine.bundle("b", &["sleep", "100"], |_| {});
    machine.create("c1", &bundle).0.ok();
    // Already before its start.
    assert_eq!(machine.oci(&["exec", "c1", "cat", "/proc/1/comm"]).ok().trim(), "pinnace-monitor");
    machine.oci(&["start", "c1"]).ok();
    let script = "echo $WORD; id -u; id -g; pwd; cat /proc/1/comm; grep -c . /proc/self/cgroup; exit 5";
    let flags = ["--env", "WORD=x y", "--user", "5:6", "--cwd", "/tmp"];
    let ended = machine.oci(&[&["exec"], &flags[..], &["c1", "sh", "-c", script]].concat());
    assert_eq!(ended.code, 5, "{ended:?}");
    assert!(ended.stdout.starts_with("x y\n5\n6\n/tmp\nsleep\n"), "{ended:?}");
    let file = bundle.join("process.json");
    let process = json!({
        "args": ["sh", "-c", "echo $0 $A; exit 6"], "cwd": "/", "env": ["A=b", "PATH=/bin"],
        "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
    });
    fs::write(&file, process.to_string()).unwrap();
    let ended = machine.oci(&["exec", "--process", text(&file), "c1"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (6, "sh b\n"), "{ended:?}");
    machine.oci(&["exec", "c1", "no-such-program"]).refused("no-such-program");
    assert_eq!(machine.oci(&["exec", "c1", "sh", "-c", "kill -TERM $$"]).code, 143);
    let pid_file = bundle.join("pid");
    machine.oci(&["exec", "--detach", "--pid-file", text(&pid_file), "c1", "sleep", "50"]).ok();
    let pid = fs::read_to_string(&pid_file).unwrap();
    let listed: Vec<i64> =
        serde_json::from_str(&machine.oci(&["ps", "--format", "json", "c1"]).ok()).unwrap();
    assert!(listed.contains(&pid.parse().unwrap()) && listed.len() == 2, "{pid} is not in {listed:?}");
    machine.oci(&["delete", "--force", "c1"]).ok();
    machine.assert_nothing_left();
}

/// Also a program that is over before the runtime is: whoever started the runtime reaps it.
#[test]
fn the_caller_reaps_and_descriptors_are_handed_on() {
    let Some(machine) = Machine::new("the_caller_reaps_and_descriptors_are_handed_on") else { return };
    let bundle = machine.bundle("b", &["sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd | grep -c ."], |_| {});
    let given = bundle.join("given");
    fs::write(&given, "third\n").unwrap();
    let program = pinnace_conformance::daemon::program();
    let script = format!(
        "cd {0}; exec 3<given 4<given 5<given; {1} oci --root /run/oci-state run --preserve-fds 2 c1",
        text(&bundle),
        program.display()
    );
    // 0 to 4, and the one by which ls reads the directory.
    assert_eq!(machine.world.sh(&script), "third\nthird\n6\n");

    let bundle = machine.bundle("short", &["sh", "-c", "exit 11"], |_| {});
    let long = machine.bundle("long", &["sleep", "100"], |_| {});
    // A subreaper that is handed the children of a runtime, as a shim is.
    let script = format!(
        r#"import ctypes, os, subprocess
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
oci = ["{0}", "oci", "--root", "/run/oci-state"]
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
subprocess.run(oci + ["create", "--bundle", "{1}", "--pid-file", "/run/pid", "c1"], **quiet)
subprocess.run(oci + ["start", "c1"], **quiet)
print(os.waitstatus_to_exitcode(os.waitpid(int(open("/run/pid").read()), 0)[1]))
subprocess.run(oci + ["delete", "c1"], **quiet)
subprocess.run(oci + ["run", "--detach", "--bundle", "{2}", "--pid-file", "/run/pid", "c2"], **quiet)
for code in range(20):
    subprocess.run(oci + ["exec", "--detach", "--pid-file", "/run/exec", "c2", "sh", "-c", "exit %d" % code], **quiet)
    assert os.waitstatus_to_exitcode(os.waitpid(int(open("/run/exec").read()), 0)[1]) == code
subprocess.run(oci + ["kill", "c2", "KILL"], **quiet)
print(os.waitstatus_to_exitcode(os.waitpid(int(open("/run/pid").read()), 0)[1]))
subprocess.run(oci + ["delete", "c2"], **quiet)
"#,
        program.display(),
        bundle.display(),
        long.display()
    );
    let path = machine.world.dir().join("reaper.py");
    fs::write(&path, script).unwrap();
    assert_eq!(machine.world.sh(&format!("python3 {}", path.display())), "11\n-9\n");
    machine.assert_nothing_left();
}

#[test]
fn what_it_says_of_itself() {
    let Some(machine) = Machine::new("what_it_says_of_itself") else { return };
    let features: Value = serde_json::from_str(&machine.oci(&["features"]).ok()).unwrap();
    assert!(features["hooks"].as_array().unwrap().contains(&json!("createContainer")));
    assert!(features["linux"]["namespaces"].as_array().unwrap().contains(&json!("user")));
    assert!(machine.oci(&["--version"]).ok().contains("spec: 1."));
    // By another name it is this command line alone.
    let link = machine.world.dir().join("pinnace-oci");
    std::os::unix::fs::symlink(pinnace_conformance::daemon::program(), &link).unwrap();
    assert!(machine.world.sh(&format!("{} --version", link.display())).starts_with("pinnace-oci version"));
    let log = machine.world.dir().join("log");
    machine.oci(&["--log", text(&log), "--log-format", "json", "state", "ghost"]).refused("ghost");
    let line: Value = serde_json::from_str(fs::read_to_string(log).unwrap().trim()).unwrap();
    assert_eq!((&line["level"], line["msg"].as_str().unwrap().contains("ghost")), (&json!("error"), true));
}
