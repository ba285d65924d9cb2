//! Attached clients.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use crate::harness::*;
use pinnace_launcher::protocol::{Attach, ContainerRef, Detached, Reply, Request, Resize};

fn attach(pod: &mut Pod, id: &str, lossless: bool) -> (File, File, File) {
    let (in_read, in_write) = rustix::pipe::pipe().unwrap();
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let (err_read, err_write) = rustix::pipe::pipe().unwrap();
    let request = Attach {
        container_id: id.to_owned(),
        stdin: Some(0),
        stdout: Some(1),
        stderr: Some(2),
        lossless,
        attach_id: 0,
    };
    let fds: [OwnedFd; 3] = [in_read, out_write, err_write];
    pod.call(Request::Attach(request), &fds.each_ref().map(AsFd::as_fd)).unwrap();
    (in_write.into(), out_read.into(), err_read.into())
}

fn held(pod: &mut Pod, id: &str, script: &str, change: impl FnOnce(&mut Planned)) {
    let mut planned = Planned::shell(pod.image.path(), script);
    planned.plan.hold = true;
    planned.stdio().stdin = true;
    pod.log_to(id, &mut planned);
    change(&mut planned);
    pod.launch(id, &planned).unwrap();
}

fn start(pod: &mut Pod, id: &str) {
    pod.call(Request::Start(ContainerRef { container_id: id.to_owned() }), &[]).unwrap();
}

fn rest(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn clients_get_copies_and_feed_stdin() {
    let mut pod = Pod::new();
    held(&mut pod, "c1", "cat; echo done >&2", |planned| planned.stdio().stdin_once = true);
    let (mut input, out, err) = attach(&mut pod, "c1", true);
    let (other_input, other_out, _other_err) = attach(&mut pod, "c1", false);
    drop(other_input);
    // The end of one client's input ends the container's: stdin_once. The first to end it counts.
    let mut planned_input = vec![b'x'; 300_000];
    planned_input.push(b'\n');
    start(&mut pod, "c1");
    let _ = input.write_all(&planned_input);
    drop(input);
    pod.exit("c1");
    assert_eq!(rest(err), "done\n");
    let _ = (rest(out), rest(other_out));
}

#[test]
fn everything_fed_comes_out_again() {
    let mut pod = Pod::new();
    held(&mut pod, "c1", "cat", |planned| planned.stdio().stdin_once = true);
    let (mut input, out, _err) = attach(&mut pod, "c1", true);
    start(&mut pod, "c1");
    let text: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
    let expected = text.clone();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let received = rest(out);
    writer.join().unwrap();
    assert_eq!(pod.exit("c1").code, 0);
    assert_eq!(received.len(), expected.len());
    assert!(received == expected, "a lossless copy differs");
    assert!(pod.content("c1") == expected, "the log differs");
}

#[test]
fn stdin_stays_open_unless_it_is_for_once() {
    let mut pod = Pod::new();
    held(&mut pod, "c1", "read a; echo $a; read b; echo $b", |_| {});
    start(&mut pod, "c1");
    for word in ["one\n", "two\n"] {
        let (mut input, mut out, _err) = attach(&mut pod, "c1", true);
        input.write_all(word.as_bytes()).unwrap();
        let mut echoed = [0; 4];
        out.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, word.as_bytes());
    }
    assert_eq!(pod.exit("c1").code, 0);
}

#[test]
fn a_client_that_does_not_read_stalls_nobody() {
    let mut pod = Pod::new();
    held(&mut pod, "c1", "yes 0123456789 | head -c 4000000", |_| {});
    let (_input, lazy, _err) = attach(&mut pod, "c1", false);
    start(&mut pod, "c1");
    assert_eq!(pod.exit("c1").code, 0);
    assert_eq!(pod.content("c1").len(), 4_000_000 + usize::from(4_000_000 % 11 == 0));
    // What it was sent is a prefix of whole chunks, and then the end.
    assert!(rest(lazy).starts_with("0123456789\n0123456789\n"));

    // One that went away without a word.
    held(&mut pod, "c2", "seq 1 10000", |_| {});
    drop(attach(&mut pod, "c2", true));
    start(&mut pod, "c2");
    assert_eq!(pod.exit("c2").code, 0);
    assert!(pod.content("c2").ends_with("\n10000\n"));
}

#[test]
fn a_lossless_client_slows_the_container_down() {
    let mut pod = Pod::new();
    held(&mut pod, "c1", "yes 0123456789 | head -c 4000000; echo end >&2", |_| {});
    let (_input, slow, _err) = attach(&mut pod, "c1", true);
    start(&mut pod, "c1");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!pod.log("c1").contains(" stderr "), "the container did not wait");
    assert_eq!(rest(slow).len(), 4_000_000);
    assert_eq!(pod.exit("c1").code, 0);
}

#[test]
fn a_terminal_is_one_stream_with_a_size() {
    let mut pod = Pod::new();
    let script = "stty size; tty=$(readlink /proc/self/fd/0); echo $tty; stat -c %t:%T /dev/console $tty
        read a; stty size; echo err >&2; test -t 1 && echo tty; cat </dev/tty";
    held(&mut pod, "c1", script, |planned| {
        let process = planned.process();
        (process.terminal, process.rows, process.columns) = (true, 24, 80);
    });
    let (mut input, mut out, err) = attach(&mut pod, "c1", true);
    start(&mut pod, "c1");
    let mut seen = String::new();
    let mut until = |end: &str| {
        while !seen.contains(end) {
            let mut bytes = [0; 256];
            let length = out.read(&mut bytes).unwrap();
            assert!(length > 0, "ended after {seen}");
            seen.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
        seen.clone()
    };
    let first = until("88:0\r\n88:0\r\n");
    assert!(first.starts_with("24 80\r\n/dev/pts/0\r\n"), "{first}");
    let resize = Resize { container_id: "c1".to_owned(), exec_id: String::new(), rows: 50, columns: 132 };
    pod.call(Request::Resize(resize), &[]).unwrap();
    input.write_all(b"go\n").unwrap();
    until("50 132\r\nerr\r\ntty\r\n");
    // ^D ends the input of a terminal.
    input.write_all(b"\x04").unwrap();
    assert_eq!(pod.exit("c1").code, 0);
    assert_eq!(rest(err), "", "a terminal has no stderr");
    assert!(pod.log("c1").contains(" stdout F tty\r\n"));
    let log = pod.log("c1");
    assert!(log.lines().all(|line| line.contains(" stdout ")), "{log}");

    let resize = Resize { container_id: "c1".to_owned(), ..Resize::default() };
    assert_eq!(pod.call(Request::Resize(resize), &[]).unwrap_err().stage, "state");
}

/// The next event that tells the end of an attachment.
fn detached(pod: &mut Pod) -> Detached {
    loop {
        match pod.connection.as_ref().unwrap().recv_within(LIMIT).unwrap().reply {
            Some(Reply::Detached(detached)) => return detached,
            Some(Reply::Exited(exited)) => pod.events.push_back(exited),
            other => panic!("not an event: {other:?}"),
        }
    }
}

#[test]
fn the_end_of_an_attachment_is_told_with_what_it_missed() {
    let mut pod = Pod::new();
    let (_, slow) = {
        let (attach_id, script) = (7, "yes 0123456789 | head -c 4000000");
        held(&mut pod, "c1", script, |_| {});
        let (out_read, out_write) = rustix::pipe::pipe().unwrap();
        let request =
            Attach { container_id: "c1".to_owned(), stdout: Some(0), attach_id, ..Attach::default() };
        pod.call(Request::Attach(request), &[out_write.as_fd()]).unwrap();
        drop(out_write);
        start(&mut pod, "c1");
        (pod.exit("c1"), File::from(out_read))
    };
    let received = rest(slow).len() as u64;
    let told = detached(&mut pod);
    assert_eq!((told.attach_id, told.lost_bytes), (7, 4_000_000 - received));
    assert!(told.lost_bytes > 3_000_000);
    pod.forget("c1").unwrap();

    held(&mut pod, "c2", "echo hello", |_| {});
    let (out_read, out_write) = rustix::pipe::pipe().unwrap();
    let request =
        Attach { container_id: "c2".to_owned(), stdout: Some(0), attach_id: 8, ..Attach::default() };
    pod.call(Request::Attach(request), &[out_write.as_fd()]).unwrap();
    drop(out_write);
    start(&mut pod, "c2");
    assert_eq!(rest(File::from(out_read)), "hello\n");
    assert_eq!(detached(&mut pod), Detached { attach_id: 8, lost_bytes: 0 });
}
