//! Debian packages as the source of programs: fetched once by apt into the cache, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache_dir;

/// The package's file, fetched if the cache has none.
pub fn package(name: &str) -> PathBuf {
    let dir = cache_dir().join("packages");
    fs::create_dir_all(&dir).expect("make the package cache");
    let cached = || {
        let names = fs::read_dir(&dir).expect("read the package cache").flatten().map(|entry| entry.path());
        let wanted = format!("{name}_");
        let mut found: Vec<_> = names
            .filter(|path| path.extension().is_some_and(|e| e == "deb"))
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&wanted)))
            .collect();
        found.sort();
        found.pop()
    };
    locked(&dir.join("lock"), || {
        cached().unwrap_or_else(|| {
            // Into a directory of its own, so that a broken download never looks like a package.
            let fetch = tempfile::tempdir_in(&dir).expect("temporary directory");
            run(Command::new("apt-get").args(["--quiet", "download", name]).current_dir(fetch.path()));
            for file in fs::read_dir(fetch.path()).expect("read what apt fetched").flatten() {
                fs::rename(file.path(), dir.join(file.file_name())).expect("move a package into the cache");
            }
            cached().unwrap_or_else(|| panic!("apt-get download {name} fetched nothing"))
        })
    })
}

/// The tar of a package's files.
pub fn tar(name: &str) -> Vec<u8> {
    run(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package(name)))
}

/// A package's files, unpacked in the cache.
pub fn unpacked(name: &str) -> PathBuf {
    let package = package(name);
    let dir = package.with_extension("unpacked");
    locked(&cache_dir().join("packages/lock"), || {
        if !dir.exists() {
            let fresh = package.with_extension("unpacking");
            let _ = fs::remove_dir_all(&fresh);
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&fresh));
            fs::rename(&fresh, &dir).expect("move an unpacked package into place");
        }
    });
    dir
}

/// Does something while no other test process does anything under the same lock.
pub fn locked<T>(lock: &Path, work: impl FnOnce() -> T) -> T {
    let file = fs::File::options().create(true).truncate(false).write(true).open(lock).expect("open a lock");
    file.lock().expect("lock");
    work()
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    output.stdout
}
