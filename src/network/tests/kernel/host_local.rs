//! CNI's own `host-local`, where it is installed: it sees our addresses and we see its.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use pinnace_network::Ipam;

use crate::world::range;

const PLUGIN: &str = "/usr/lib/cni/host-local";

#[test]
fn host_local_and_we_share_a_directory() {
    if !Path::new(PLUGIN).exists() {
        println!("skipped: {PLUGIN} is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ranges = [range("10.1.0.0/29"), range("fd00:1::/64")];
    let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
    ipam.allocate("ours", "eth0", &ranges).unwrap();

    let theirs = run("ADD", "theirs", dir.path());
    assert!(theirs.contains("10.1.0.3/29") && theirs.contains("fd00:1::3/64"), "{theirs}");
    let next: Vec<String> =
        ipam.allocate("next", "eth0", &ranges).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(next, ["10.1.0.4/29", "fd00:1::4/64"]);
    // It releases what we gave, and we what it gave.
    run("DEL", "ours", dir.path());
    assert!(!dir.path().join("pods/10.1.0.2").exists());
    let mut ipam = Ipam::open(dir.path(), "pods").unwrap();
    ipam.release("theirs").unwrap();
    assert!(!dir.path().join("pods/10.1.0.3").exists());
    let again = run("ADD", "again", dir.path());
    assert!(again.contains("10.1.0.5/29"), "{again}");
}

fn run(command: &str, container: &str, dir: &Path) -> String {
    let config = format!(
        r#"{{"cniVersion":"0.4.0","name":"pods","type":"bridge","ipam":{{"type":"host-local","dataDir":"{}",
        "ranges":[[{{"subnet":"10.1.0.0/29"}}],[{{"subnet":"fd00:1::/64"}}]]}}}}"#,
        dir.display()
    );
    let mut child = Command::new(PLUGIN)
        .env_clear()
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text
}
