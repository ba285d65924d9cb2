//! Launch, end, hold, reconnect, shut down.

use std::fs;
use std::os::fd::AsFd;

use prost::Message;

use crate::harness::*;
use pinnace_launcher::client;
use pinnace_launcher::protocol::{ContainerRef, Exited, Reply, Request, Setup, Shutdown, exit_record_name};

#[test]
fn a_container_runs_and_its_end_is_known() {
    let mut pod = Pod::new();
    let (output, exited) = pod.run("c1", "echo hello; exit 7");
    assert_eq!(output, "hello\n");
    assert_eq!((exited.code, exited.signal, exited.oom_killed), (7, 0, false));
    assert!(exited.started_at_ns > 0 && exited.finished_at_ns >= exited.started_at_ns);

    let record = fs::read(pod.run.path().join(exit_record_name("c1"))).unwrap();
    assert_eq!(Exited::decode(record.as_slice()).unwrap(), exited);
    assert_eq!(pod.hello().containers[0].exit.as_ref(), Some(&exited));
    pod.forget("c1").unwrap();
    assert!(!pod.run.path().join(exit_record_name("c1")).exists());
    assert!(pod.hello().containers.is_empty());
}

#[test]
fn signals_end_containers() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    // PID 1 of a namespace ignores what it has no handler for, except SIGKILL from outside.
    let planned = Planned::shell(&image, "trap 'exit 3' TERM; while :; do sleep 0.01; done");
    pod.launch("c1", &planned).unwrap();
    assert_eq!(pod.forget("c1").unwrap_err().stage, "state");
    // The trap may not have been set when execve has just succeeded.
    std::thread::sleep(std::time::Duration::from_millis(300));
    pod.kill("c1", 15).unwrap();
    assert_eq!(pod.exit("c1").code, 3);

    pod.launch("c2", &Planned::new(&image, &["sleep", "60"])).unwrap();
    pod.kill("c2", 9).unwrap();
    let exited = pod.exit("c2");
    assert_eq!((exited.code, exited.signal, exited.oom_killed), (137, 9, false));
    assert_eq!(pod.kill("c2", 9).unwrap_err().stage, "state");
    assert_eq!(pod.kill("c3", 9).unwrap_err().stage, "container");
}

#[test]
fn a_held_container_waits_for_its_start() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::shell(&image, "echo started");
    planned.plan.hold = true;
    pod.log_to("c1", &mut planned);
    let launched = pod.launch("c1", &planned).unwrap();
    assert_eq!(launched.started_at_ns, 0);
    let state = pod.hello();
    assert!(state.containers[0].held && state.containers[0].pid == launched.pid);
    assert_eq!(pod.log("c1"), "");

    let start = |id: &str| Request::Start(ContainerRef { container_id: id.to_owned() });
    match pod.call(start("c1"), &[]).unwrap() {
        Reply::Launched(started) => assert!(started.pid == launched.pid && started.started_at_ns > 0),
        other => panic!("{other:?}"),
    }
    assert_eq!(pod.exit("c1").code, 0);
    assert_eq!(pod.content("c1"), "started\n");
    assert_eq!(pod.call(start("c1"), &[]).unwrap_err().stage, "state");

    // Killed while held: it has ended without having started.
    let mut planned = Planned::shell(&image, "echo started");
    planned.plan.hold = true;
    pod.launch("c2", &planned).unwrap();
    pod.kill("c2", 9).unwrap();
    let exited = pod.exit("c2");
    assert_eq!((exited.code, exited.started_at_ns), (137, 0));

    // The program is missing: the start fails, and nothing is left.
    let mut planned = Planned::new(&image, &["/nowhere"]);
    planned.plan.hold = true;
    pod.launch("c3", &planned).unwrap();
    let failure = pod.call(start("c3"), &[]).unwrap_err();
    assert_eq!((failure.stage.as_str(), failure.errno), ("exec", 2));
    assert_eq!(pod.forget("c3").map(|_| ()), Ok(()));
    assert_eq!(pod.hello().containers.len(), 2);
}

#[test]
fn what_cannot_be_executed_is_told_apart() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    fs::write(image.join("script"), "#!/missing/interpreter\n").unwrap();
    fs::write(image.join("text"), "hello").unwrap();
    fs::write(image.join("bin/data"), "hello").unwrap();
    for name in ["script", "text"] {
        fs::set_permissions(image.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for (command, errno, words) in [
        ("nosuch", 2, "not found in $PATH"),
        ("/bin/nosuch", 2, "no such file"),
        ("/script", 2, "interpreter"),
        ("/text", 8, "architecture"),
        ("data", 13, "Permission denied"),
        ("/bin", 13, "Permission denied"),
        ("", 2, "no program"),
    ] {
        let failure = pod.launch("c1", &Planned::new(&image, &[command])).unwrap_err();
        assert_eq!((failure.stage.as_str(), failure.errno), ("exec", errno), "{command}: {failure}");
        assert!(failure.to_string().contains(words), "{command}: {failure}");
    }
    assert!(pod.hello().containers.is_empty());
    assert!(pod.events.is_empty(), "a launch that failed has no end: {:?}", pod.events);
}

#[test]
fn a_daemon_that_comes_back_finds_what_happened() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned =
        Planned::shell(&image, "while ! test -e /tmp/go; do sleep 0.01; done; echo late; exit 5");
    pod.log_to("c1", &mut planned);
    let pid = pod.launch("c1", &planned).unwrap().pid;
    // kill -9 of the daemon: the connection is gone.
    pod.connection = None;
    fs::write(image.join("tmp/go"), "").unwrap();
    let record = pod.run.path().join(exit_record_name("c1"));
    eventually("the exit record is there", || record.exists());
    assert_eq!(pod.content("c1"), "late\n");

    let run = open_directory(pod.run.path());
    pod.connection = Some(client::connect(run.as_fd()).unwrap());
    let state = pod.hello();
    assert!(state.ready);
    assert_eq!(state.containers[0].exit.as_ref().unwrap().code, 5);

    // Two at once, both hear of it; the old container's number is not the new one's.
    let second = client::connect(run.as_fd()).unwrap();
    second.call(1, Request::Hello(Default::default()), &[], LIMIT, |_| panic!("no event yet")).unwrap();
    let (_, exited) = pod.run("c2", "exit 6");
    let message = second.recv_within(LIMIT).unwrap();
    assert_eq!(message.reply, Some(Reply::Exited(exited)));
    assert!(pid > 0);
}

#[test]
fn the_monitor_ends_when_told_and_not_before() {
    let mut pod = Pod::with(|setup| setup.share_pid = true);
    let image = pod.image.path().to_owned();
    pod.launch("c1", &Planned::new(&image, &["sleep", "60"])).unwrap();
    assert_eq!(pod.call(Request::Shutdown(Shutdown::default()), &[]).unwrap_err().stage, "state");
    pod.kill("c1", 9).unwrap();
    pod.exit("c1");
    pod.call(Request::Shutdown(Shutdown::default()), &[]).unwrap();
    assert!(pod.child.wait().unwrap().success());
    assert!(!pod.run.path().join("monitor.sock").exists());
    pod.connection = None;
}

#[test]
fn an_abandoned_monitor_ends() {
    // Never set up, connection closed.
    let mut pod = Pod::unset();
    pod.connection = None;
    assert!(pod.child.wait().unwrap().success());

    // Set up, but its run directory has gone and nobody is connected.
    let mut pod = Pod::new();
    fs::remove_dir_all(pod.run.path()).unwrap();
    pod.connection = None;
    assert!(pod.child.wait().unwrap().success());
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut pod = Pod::unset();
    let image = pod.image.path().to_owned();
    assert_eq!(pod.launch("c1", &Planned::new(&image, &["true"])).unwrap_err().stage, "state");
    // A setup without its directory; after that nothing is done half.
    let failure = pod.call(Request::Setup(Setup::default()), &[]).unwrap_err();
    assert_eq!(failure.stage, "protocol");

    let mut pod = Pod::new();
    assert_eq!(pod.call(Request::Setup(Setup::default()), &[]).unwrap_err().stage, "state");
    for id in ["", "..", "a/b", "../x", "a b", &"x".repeat(129)] {
        let failure = pod.launch(id, &Planned::new(&image, &["true"])).unwrap_err();
        assert_eq!(failure.stage, "container", "{id}");
    }
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.rootfs = 99;
    assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "protocol");
    let mut planned = Planned::new(&image, &["true"]);
    planned.plan.namespaces.as_mut().unwrap().create = 0x100;
    assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "namespace");
    let planned = Planned::new(&image, &["sleep", "60"]);
    pod.launch("c1", &planned).unwrap();
    let planned = Planned::new(&image, &["sleep", "60"]);
    assert_eq!(pod.launch("c1", &planned).unwrap_err().stage, "container");
}

#[test]
fn large_plans_and_many_descriptors_arrive() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    let mut planned = Planned::shell(&image, "env | wc -c; ls /m | wc -l");
    let value = "v".repeat(100_000);
    planned.process().env.extend((0..6).map(|n| format!("BIG{n}={value}").into_bytes()));
    let file = tempfile::NamedTempFile::new().unwrap();
    for n in 0..600 {
        let slot = planned.slot(tree(file.path()));
        planned.plan.mounts.push(pinnace_launcher::plan::Mount {
            target: format!("/m/{n}").into_bytes(),
            source: Some(pinnace_launcher::plan::MountSource::Tree(slot)),
            ..Default::default()
        });
    }
    let before = pod.open_descriptors();
    let (output, exited) = pod.run_planned("c1", planned).unwrap();
    assert_eq!(exited.code, 0);
    let numbers: Vec<usize> = output.lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(numbers[0] > 600_000);
    assert_eq!(numbers[1], 600);
    pod.forget("c1").unwrap();
    assert_eq!(pod.open_descriptors(), before);
}

#[test]
fn many_launches_leak_nothing() {
    let mut pod = Pod::new();
    let image = pod.image.path().to_owned();
    // What the setup and a first launch leave on its way out is gone when the count stays the same.
    pod.launch("first", &Planned::new(&image, &["true"])).unwrap();
    assert_eq!(pod.exit("first").code, 0);
    pod.forget("first").unwrap();
    let before = pod.settled_descriptors();
    for round in 0..200 {
        let id = format!("c{round}");
        // One in ten fails.
        if round % 10 == 9 {
            pod.launch(&id, &Planned::new(&image, &["nosuch"])).unwrap_err();
            continue;
        }
        let mut planned = Planned::new(&image, &["true"]);
        pod.log_to(&id, &mut planned);
        pod.launch(&id, &planned).unwrap();
        assert_eq!(pod.exit(&id).code, 0);
        pod.forget(&id).unwrap();
    }
    assert_eq!(pod.settled_descriptors(), before, "descriptors");
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.child.id())).unwrap();
    assert_eq!(children, "");
}

#[test]
fn launches_do_not_wait_for_each_other() {
    let pod = Pod::new();
    let image = pod.image.path().to_owned();
    let planned: Vec<_> = (0..8).map(|_| Planned::new(&image, &["sleep", "0.2"])).collect();
    let connection = pod.connection.as_ref().unwrap();
    for (n, planned) in planned.iter().enumerate() {
        let fds: Vec<_> = planned.fds.iter().map(AsFd::as_fd).collect();
        let launch = pinnace_launcher::protocol::Launch {
            container_id: format!("c{n}"),
            plan: Some(planned.plan.clone()),
        };
        let id = 100 + n as u64;
        let message = pinnace_launcher::protocol::ToMonitor { id, request: Some(Request::Launch(launch)) };
        connection.send(&message, &fds).unwrap();
    }
    let mut launched = 0;
    let mut exited = 0;
    while exited < 8 {
        match connection.recv_within(LIMIT).unwrap().reply.unwrap() {
            Reply::Launched(_) => launched += 1,
            Reply::Exited(_) => exited += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(launched, 8);
}
