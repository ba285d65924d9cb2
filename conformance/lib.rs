//! Black-box suites: the real program, real gRPC, a real kernel.
//!
//! This library is the ground that the suites stand on. A test makes a [`world::World`], which is a private
//! machine inside this one, runs a registry ([`registry`]) and the program ([`daemon`]) in it, talks to the
//! program as the kubelet does ([`cri`]), and at the end proves that nothing was left behind ([`leak`]).
//! [`node::Node`] is all of that in one value. Nothing is mocked and nothing is global, so that tests run side
//! by side.
//!
//! ```text
//! test process ──gRPC, unix socket──► pinnace serve ──HTTP(S), loopback of the world──► docker-registry
//!      │                                   │                                                  ▲
//!      └── World: mount, PID, network, IPC, UTS, cgroup namespaces, one directory ────────────┘
//! ```
//! The harness panics when the ground itself gives way (a namespace cannot be made, a package cannot be had):
//! there is nobody who could handle that, and the message is what matters.

#![allow(clippy::large_futures, reason = "a test awaits one future on a stack of its own")]

pub mod api_server;
pub mod cri;
pub mod daemon;
pub mod go;
pub mod images;
pub mod leak;
pub mod log;
pub mod node;
pub mod process;
pub mod registry;
pub mod serve;
pub mod streams;
pub mod terminal;
pub mod world;

use std::path::PathBuf;

/// Says that a test did not run and why. `conformance/run` fails on skips it does not expect.
#[allow(clippy::print_stderr)]
pub fn skip(test: &str, reason: &str) {
    // Written past the capture of the test harness, which swallows the output of tests that pass.
    use std::io::Write as _;
    let line = format!("SKIP {test}: {reason}\n");
    if std::io::stderr().write_all(line.as_bytes()).is_err() {
        eprint!("{line}");
    }
}

/// Where packages and images are kept between runs: `PINNACE_TEST_CACHE`, else a directory beside the build.
#[must_use]
pub fn cache_dir() -> PathBuf {
    let dir = std::env::var_os("PINNACE_TEST_CACHE").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
                || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")),
                PathBuf::from,
            );
            target.join("conformance")
        },
        PathBuf::from,
    );
    std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}
