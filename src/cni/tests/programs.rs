//! The reference plugins as programs, in network namespaces of the test's own.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]
#![allow(clippy::print_stderr, reason = "a skip is said aloud")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use pinnace_cni::{Chain, Invocation, Ledger, NetworkList, Plugins};
use serde_json::{Value, json};

const BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// A namespace as a path, held by a thread that waits in it until the sender goes.
fn namespace() -> (PathBuf, mpsc::Sender<()>) {
    let (told, path) = mpsc::channel();
    let (hold, held) = mpsc::channel::<()>();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let tid = nix::unistd::gettid();
        told.send(format!("/proc/{}/task/{tid}/ns/net", std::process::id()).into()).unwrap();
        let _ = held.recv();
    });
    (path.recv().unwrap(), hold)
}

/// Adds, checks and deletes within a host of its own; returns the addresses that the pod had.
fn round_trip(version: &str, plugins: &Value) -> Vec<String> {
    let text = json!({"cniVersion": version, "name": "net", "plugins": plugins}).to_string();
    let dir = tempfile::tempdir().unwrap();
    let text = text.replace("DATA", dir.path().join("addresses").to_str().unwrap());
    thread::spawn(move || {
        // The host: programs inherit the namespace of the thread that starts them.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let list = Arc::new(NetworkList::parse_list(text.as_bytes(), Path::new("x")).unwrap());
            let ledger = Ledger::open(dir.path().join("results")).unwrap();
            let chain =
                Chain::new(Plugins::new(BIN_DIRS.map(PathBuf::from).into()), ledger, Duration::from_secs(60));
            let (netns, hold) = namespace();
            let invocation = Invocation {
                container_id: "pod1".to_owned(),
                netns: Some(netns.clone()),
                ifname: "eth0".to_owned(),
                args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
                capability_args: Default::default(),
            };
            let owed = chain.add(list, invocation).await.unwrap();
            chain.check(&owed).await.unwrap();
            let inside = fs::read_to_string(netns.with_file_name("../net/dev")).unwrap();
            assert!(inside.contains("eth0:"), "{inside}");
            let taken = || {
                fs::read_dir(dir.path().join("addresses/net"))
                    .unwrap()
                    .flatten()
                    .any(|file| file.file_name().to_string_lossy().starts_with("10."))
            };
            assert!(taken(), "no address is taken");
            // The pod dies before its DEL, as after a reboot.
            drop(hold);
            while netns.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(owed.invocation_now().netns, None);
            chain.del(&owed).await.unwrap();
            assert!(!taken(), "the address is still taken");
            assert!(chain.ledger().read().unwrap().0.is_empty());
            let result = owed.result.unwrap();
            result.addresses_of("eth0").map(|ip| ip.address.to_string()).collect()
        })
    })
    .join()
    .unwrap()
}

fn can_run(test: &str) -> bool {
    let installed = BIN_DIRS.iter().any(|dir| Path::new(dir).join("bridge").exists());
    if !installed {
        eprintln!("SKIP {test}: containernetworking-plugins is not installed");
    }
    installed
}

#[test]
fn reference_plugins_attach_and_detach() {
    if !can_run("reference_plugins_attach_and_detach") {
        return;
    }
    let ipam = json!({"type": "host-local", "dataDir": "DATA", "subnet": "10.9.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]});
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let bridge = json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ipam});
        let tuning = json!({"type": "tuning", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}});
        assert_eq!(round_trip(version, &json!([bridge, tuning])), ["10.9.0.2/24"], "{version}");
        let ptp = json!({"type": "ptp", "ipam": ipam});
        assert_eq!(round_trip(version, &json!([ptp])), ["10.9.0.2/24"], "{version}");
    }
}
