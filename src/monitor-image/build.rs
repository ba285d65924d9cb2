//! Builds `pinnace-monitor` with its own profile: cargo has no profile per package.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// What the outer cargo tells its children and an inner one must not hear: flags and wrappers of the outer build.
const OUTER: [&str; 7] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "CARGO_MAKEFLAGS",
];

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn main() {
    let source = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for watched in ["launcher", "sys", "../Cargo.toml", "../Cargo.lock", "../.cargo/config.toml"] {
        tell(&format!("rerun-if-changed={}", source.join(watched).display()));
    }
    // A directory of its own: the outer build holds the lock of the shared one.
    let directory = PathBuf::from(variable("OUT_DIR")).join("monitor");
    let target = variable("TARGET");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(&source)
        .args(["build", "--package", "pinnace-launcher", "--bin", "pinnace-monitor"])
        .args(["--profile", "monitor", "--locked", "--quiet", "--target", &target])
        .arg("--target-dir")
        .arg(&directory);
    for name in OUTER {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building pinnace-monitor: {status}"),
        Err(error) => panic!("running cargo for pinnace-monitor: {error}"),
    }
    let program = directory.join(target).join("monitor").join("pinnace-monitor");
    tell(&format!("rustc-env=PINNACE_MONITOR={}", program.display()));
}

/// The one thing a build script has to print.
#[allow(clippy::print_stdout)]
fn tell(instruction: &str) {
    println!("cargo:{instruction}");
}
