//! Exec sessions.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

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
        foreign: None,
        external: None,
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

/// A session in the harness's first container, with a terminal; the ends of its streams that a daemon has.
fn on_a_terminal(pod: &mut Pod, exec_id: &str, script: &str) -> (OwnedFd, fs::File) {
    let (in_read, in_write) = rustix::pipe::pipe().unwrap();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let mut process = process(&["sh", "-c", script]);
    process.terminal = true;
    let exec = Exec {
        exec_id: exec_id.to_owned(),
        container_id: "c1".to_owned(),
        process: Some(process),
        cgroup: None,
        foreign: None,
        external: None,
        stdio: Some(Stdio { stdin_slot: Some(0), stdout_slot: Some(1), ..Stdio::default() }),
    };
    let reply = pod.call(Request::Exec(exec), &[in_read.as_fd(), out_write.as_fd()]).unwrap();
    assert!(matches!(reply, Reply::Launched(_)));
    (in_write, fs::File::from(out_read))
}

#[test]
fn a_terminal_that_nobody_reads_is_hung_up() {
    let mut pod = Pod::new();
    sleeper(&mut pod, "c1");
    // Idle, and in the middle of output.
    for (exec_id, script) in [("e1", "sleep 600"), ("e2", "yes")] {
        let streams = on_a_terminal(&mut pod, exec_id, script);
        drop(streams);
        assert_eq!(pod.exit_of("c1", exec_id).signal, 1, "{script}");
    }
    // The end of its input alone is not the end of a session.
    let (input, mut output) = on_a_terminal(&mut pod, "e3", "sleep 0.2; echo still here");
    drop(input);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut output, &mut said).unwrap();
    assert_eq!(said, "still here\r\n");
    assert_eq!(pod.exit_of("c1", "e3").code, 0);
}

#[test]
fn sessions_end_with_the_connection_that_asked_for_them() {
    let mut pod = Pod::new();
    sleeper(&mut pod, "c1");
    let second = pinnace_launcher::client::connect(open_directory(pod.run.path()).as_fd()).unwrap();
    let exec = Exec {
        exec_id: "e1".to_owned(),
        container_id: "c1".to_owned(),
        process: Some(process(&["sleep", "600"])),
        ..Exec::default()
    };
    second.call(1, Request::Exec(exec), &[], LIMIT, drop).unwrap();
    let sessions = pod.hello().sessions;
    assert_eq!(sessions.len(), 1);
    assert_eq!((sessions[0].container_id.as_str(), sessions[0].exec_id.as_str()), ("c1", "e1"));
    drop(second);
    assert_eq!(pod.exit_of("c1", "e1").signal, 1);
    let state = pod.hello();
    assert!(state.sessions.is_empty());
    assert!(state.containers[0].exit.is_none(), "the container goes on");
}

#[test]
fn sockets_are_in_the_pods_network() {
    let mut pod = Pod::new();
    let connection = pod.connection.as_ref().unwrap();
    let request = Request::Sockets(pinnace_launcher::protocol::WantedSockets {});
    connection.send(&pinnace_launcher::protocol::ToMonitor { id: 99, request: Some(request) }, &[]).unwrap();
    let (reply, sockets) = loop {
        match connection.recv().unwrap() {
            pinnace_launcher::client::Event::Message(message, fds) => break (message.reply, fds),
            _ => std::thread::sleep(std::time::Duration::from_millis(1)),
        }
    };
    let Some(Reply::Sockets(slots)) = reply else { panic!("{reply:?}") };
    assert_eq!((slots.ipv4, slots.ipv6), (Some(0), Some(1)));
    assert_eq!(sockets.len(), 2);
    // This pod is on the host's network: a listener of this process is reached.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!() };
    let _ = rustix::net::connect(&sockets[0], &std::net::SocketAddr::V4(address));
    listener.accept().unwrap();
    drop(sockets);
    // The monitor has kept no copy.
    eventually("the sockets are closed", || {
        let dir = format!("/proc/{}/fd", pod.child.id());
        let links = fs::read_dir(dir).unwrap().flatten().map(|entry| fs::read_link(entry.path()));
        links.flatten().filter(|link| link.to_string_lossy().starts_with("socket:")).count() == 2
    });
    pod.hello();
}
