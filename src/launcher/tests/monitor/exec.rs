//! Exec sessions.

use std::fs;
use std::os::fd::AsFd;

use crate::harness::*;
use pinnace_launcher::plan::{Capabilities, Stdio};
use pinnace_launcher::protocol::{Exec, Reply, Request};

fn sleeper(pod: &mut Pod, id: &str) {
    let image = pod.image.path().to_owned();
    pod.launch(id, &Planned::new(&image, &["sleep", "600"])).unwrap();
}

#[test]
fn a_session_is_in_the_container() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::new(&image, &["sleep", "600"]);
    planned.plan.namespaces.as_mut().unwrap().create = NEWCGROUP | NEWNET;
    let pid = pod.launch("c1", &planned).unwrap().pid;
    let kinds = ["mnt", "pid", "ipc", "uts", "net", "cgroup"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind};")).concat();
    let (output, exited) = pod.exec("c1", process(&["sh", "-c", &script])).unwrap();
    assert_eq!(exited.code, 0, "{output}");
    let of = |pid: &str, kind: &str| {
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
    };
    for (kind, inside) in kinds.iter().zip(output.lines()) {
        assert_eq!(inside, of(&pid.to_string(), kind), "{kind}");
        assert_ne!(inside, of("self", kind), "{kind}");
    }
    let (output, _) = pod.exec("c1", process(&["sh", "-c", "ls /; pwd; echo $$; hostname"])).unwrap();
    assert!(output.starts_with("bin\ndev\netc\nproc\nsys\ntmp\n/\n"), "{output}");
    assert!(output.ends_with("\npod\n"), "{output}");
}

#[test]
fn a_session_ends_as_its_program_does() {
    let mut pod = Pod::new();
    sleeper(&mut pod, "c1");
    let (_, exited) = pod.exec("c1", process(&["sh", "-c", "exit 9"])).unwrap();
    assert_eq!((exited.code, exited.container_id.as_str()), (9, "c1"));
    let (_, exited) = pod.exec("c1", process(&["sh", "-c", "kill -9 $$"])).unwrap();
    assert_eq!((exited.code, exited.signal), (137, 9));
    for (command, errno) in [("nosuch", 2), ("/etc", 13)] {
        let failure = pod.exec("c1", process(&[command])).unwrap_err();
        assert_eq!((failure.stage.as_str(), failure.errno), ("exec", errno));
    }
    let mut missing = process(&["true"]);
    missing.cwd = b"/no/such".to_vec();
    assert_eq!(pod.exec("c1", missing).unwrap_err().stage, "cwd");
    assert_eq!(pod.exec("nobody", process(&["true"])).unwrap_err().stage, "container");

    pod.kill("c1", 9).unwrap();
    pod.exit("c1");
    assert_eq!(pod.exec("c1", process(&["true"])).unwrap_err().stage, "state");
}

#[test]
fn a_session_has_its_own_identity_and_only_its_descriptors() {
    let mut pod = Pod::new();
    sleeper(&mut pod, "c1");
    let mut user = process(&["sh", "-c", "id; ls /proc/self/fd; cat /proc/self/status"]);
    (user.uid, user.gid, user.groups) = (1000, 1001, vec![1001, 1002]);
    user.capabilities = Some(Capabilities { bounding: DEFAULT_CAPABILITIES, ..Capabilities::default() });
    let (output, _) = pod.exec("c1", user).unwrap();
    assert!(output.starts_with("uid=1000 gid=1001 groups=1001,1002\n0\n1\n2\n3\n"), "{output}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(output.contains(&format!("{set}:\t0000000000000000\n")), "{output}");
    }
    assert!(output.contains("NoNewPrivs:\t1\n"), "{output}");
}

#[test]
fn hundreds_of_sessions_leak_nothing() {
    let mut pod = Pod::new();
    sleeper(&mut pod, "c1");
    let before = pod.open_descriptors();
    for _ in 0..100 {
        assert_eq!(pod.exec("c1", process(&["true"])).unwrap().1.code, 0);
    }
    pod.exec("c1", process(&["nosuch"])).unwrap_err();
    assert_eq!(pod.open_descriptors(), before);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.child.id())).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "{children}");
}

#[test]
fn orphans_of_a_session_are_reaped() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::new(&image, &["sleep", "600"]);
    planned.plan.namespaces.as_mut().unwrap().host_pid = true;
    pod.launch("c1", &planned).unwrap();
    // The shell ends at once, its child outlives it and comes to the monitor.
    pod.exec("c1", process(&["sh", "-c", "sleep 0.3 >/dev/null 2>&1 &"])).unwrap();
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", pod.child.id());
        fs::read_to_string(path).unwrap().split_whitespace().count()
    };
    eventually("the orphan has come", || children() == 2);
    eventually("the orphan has been reaped", || children() == 1);
}

#[test]
fn a_session_with_a_terminal_is_copied() {
    let mut pod = Pod::new();
    sleeper(&mut pod, "c1");
    let (in_read, in_write) = rustix::pipe::pipe().unwrap();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let mut process = process(&["sh", "-c", "stty size; read line; echo got:$line; test -t 0 && echo tty"]);
    (process.terminal, process.rows, process.columns) = (true, 40, 120);
    let exec = Exec {
        exec_id: "e1".to_owned(),
        container_id: "c1".to_owned(),
        process: Some(process),
        cgroup: None,
        stdio: Some(Stdio { stdin_slot: Some(0), stdout_slot: Some(1), ..Stdio::default() }),
    };
    let reply = pod.call(Request::Exec(exec), &[in_read.as_fd(), out_write.as_fd()]).unwrap();
    assert!(matches!(reply, Reply::Launched(_)));
    drop((in_read, out_write));
    // Typed only now, or the echo might come first.
    let mut first = [0; 8];
    let mut out_read = fs::File::from(out_read);
    std::io::Read::read_exact(&mut out_read, &mut first).unwrap();
    assert_eq!(&first, b"40 120\r\n");
    rustix::io::write(&in_write, b"hello\n").unwrap();
    assert_eq!(pod.exit_of("c1", "e1").code, 0);
    let output = std::io::read_to_string(out_read).unwrap();
    assert_eq!(output, "hello\r\ngot:hello\r\ntty\r\n");
}
