//! The node: the real program, driven as the kubelet drives it. One module per theme; every test has a machine, a
//! registry and a daemon of its own.

#![allow(clippy::large_futures, reason = "a test awaits one future on a stack of its own")]
#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod attach;
mod builds;
mod cdi;
mod clients;
mod cni;
mod concurrency;
mod crash;
mod devices;
mod disk;
mod errors;
mod events;
mod exec;
mod exec_sync;
mod handlers;
mod hung;
mod image_status;
mod images;
mod lifecycle;
mod local;
mod logs;
mod mounts;
mod network;
mod network_churn;
mod network_ports;
mod port_forward;
mod pull;
mod quota;
mod registries;
mod resources;
mod runtime;
mod sandbox;
mod security;
mod skopeo;
mod stats;
mod user_namespaces;
mod users;
mod volumes;

/// A file that is not declared above would be a suite that never runs.
#[test]
fn every_file_is_a_module() {
    let declared = include_str!("main.rs");
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/node");
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name == "main" || declared.contains(&format!("\nmod {name};\n")), "{}", path.display());
    }
}
