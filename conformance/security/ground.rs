//! What attacks need: a canary on the host, a racing sibling, images as an attacker makes them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use pinnace_conformance::images::{Layer, Layout};
use pinnace_conformance::node::{Ended, Node, Pod};
use pinnace_conformance::registry::PLAIN;
use pinnace_conformance::world::World;
use pinnace_cri_api::v1::ContainerConfig;
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use serde_json::Value;

/// What is written in the canary, and nowhere else.
pub const SECRET: &str = "a secret of the host";

/// Values of the host that an escape would change first.
const KERNEL_VALUES: [&str; 4] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/shmmni",
];

/// A part of the host that nobody but the host has to do with, and what it was before the attack.
pub struct Canary {
    path: PathBuf,
    table: PathBuf,
    before: BTreeMap<String, String>,
    mounts: Vec<String>,
    values: Vec<String>,
}

impl Canary {
    pub fn new(world: &World) -> Canary {
        let path = world.dir().join("canary");
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("dir")).unwrap();
        fs::write(path.join("file"), SECRET).unwrap();
        fs::write(path.join("dir/ptmx"), SECRET).unwrap();
        fs::write(path.join("setuid"), SECRET).unwrap();
        fs::set_permissions(path.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("file", path.join("link")).unwrap();
        rustix::fs::mknodat(CWD, path.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        rustix::fs::setxattr(path.join("file"), "trusted.canary", b"alive", XattrFlags::empty()).unwrap();
        let table = PathBuf::from(format!("/proc/{}/mountinfo", world.keeper()));
        let before = photograph(&path);
        let (mounts, values) = (mounts(&table), values());
        Canary { path, table, before, mounts, values }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path as text, with something appended.
    pub fn at(&self, rest: &str) -> String {
        format!("{}{rest}", self.path.display())
    }

    /// The same from a working directory that is at most eight levels below the root.
    pub fn climbing(&self) -> String {
        format!("../../../../../../../..{}", self.path.display())
    }

    /// Fails unless everything is what it was, the host's mount table too.
    #[track_caller]
    pub fn assert_untouched(&self, node: &Node) {
        assert_eq!(photograph(&self.path), self.before, "the canary was touched");
        assert_eq!(values(), self.values, "a value of the host's kernel was changed");
        let mounts = mounts(&self.table);
        let own = [&node.daemon.root, &node.daemon.run].map(|place| place.display().to_string());
        let new: Vec<_> = mounts
            .iter()
            .filter(|line| !self.mounts.contains(line))
            .filter(|line| {
                !own.iter().any(|place| line.contains(place.as_str())) && !line.contains("/run/netns")
            })
            .collect();
        assert!(new.is_empty(), "new in the host's mount table: {new:#?}");
        node.daemon.process();
    }
}

fn mounts(table: &Path) -> Vec<String> {
    fs::read_to_string(table).unwrap().lines().map(String::from).collect()
}

fn values() -> Vec<String> {
    KERNEL_VALUES.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
}

/// Everything of a tree that a foreign hand could change.
fn photograph(top: &Path) -> BTreeMap<String, String> {
    fn visit(path: &Path, seen: &mut BTreeMap<String, String>) {
        let meta = fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let mut facts = format!(
            "inode {} mode {:o} owner {}:{} links {} changed {}.{} modified {}.{}",
            meta.ino(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.ctime(),
            meta.ctime_nsec(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if kind.is_file() {
            let mut value = [0_u8; 64];
            let marked = rustix::fs::getxattr(path, "trusted.canary", &mut value).unwrap_or(0);
            facts.push_str(&format!(" content {:?} marked {marked}", fs::read(path).unwrap()));
        } else if kind.is_symlink() {
            facts.push_str(&format!(" to {:?}", fs::read_link(path).unwrap()));
        } else if kind.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                visit(&entry.unwrap().path(), seen);
            }
        } else {
            assert!(kind.is_fifo());
        }
        seen.insert(path.display().to_string(), facts);
    }
    let mut seen = BTreeMap::new();
    visit(top, &mut seen);
    seen
}

/// A sibling that exchanges two names of a shared volume all the time.
pub struct Racer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Racer {
    pub fn swapping(volume: &Path, one: &'static str, other: &'static str) -> Racer {
        let stop = Arc::new(AtomicBool::new(false));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let volume = rustix::fs::open(volume, flags, Mode::empty()).unwrap();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !stopped.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&volume, one, &volume, other, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
                // On one processor the victim must come to run between two exchanges.
                if swaps % 16 == 0 {
                    std::thread::yield_now();
                }
            }
            swaps
        });
        Racer { stop, thread: Some(thread) }
    }

    /// Ends it; how often it exchanged the names.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How many rounds a race goes: `PINNACE_RACE_ROUNDS`, else few.
pub fn rounds() -> usize {
    std::env::var("PINNACE_RACE_ROUNDS")
        .map_or(25, |text| text.parse().expect("PINNACE_RACE_ROUNDS is a number"))
}

/// Pushes and pulls busybox with another layer on top and other configuration; the image's id.
pub async fn image(node: &Node, name: &str, layer: Layer, config: Value) -> String {
    let reference = push(node, name, layer, config);
    node.cri.pull(&reference).await.unwrap_or_else(|status| panic!("pull {reference}: {status:?}"))
}

/// Pushes busybox with another layer on top and other configuration; the reference.
pub fn push(node: &Node, name: &str, layer: Layer, config: Value) -> String {
    let layout = Layout::create(&node.world.dir().join(format!("layout-{name}")));
    layout.tag(name, &layout.image_upon(&node.images, "busybox", &layer, &config));
    node.registry.push(&layout, name, name, "1");
    format!("{PLAIN}/{name}:1")
}

/// How an attack ended.
#[derive(Debug)]
pub enum Outcome {
    /// The runtime refused, with this text.
    Refused(String),
    /// The container ran, inside of its root.
    Ran(Box<Ended>),
}

impl Outcome {
    /// Everything that was said to the attacker.
    pub fn text(&self) -> String {
        match self {
            Outcome::Refused(text) => text.clone(),
            Outcome::Ran(ended) => format!("{}{}", ended.stdout, ended.stderr),
        }
    }

    pub fn is_refused(&self) -> bool {
        matches!(self, Outcome::Refused(_))
    }
}

/// Creates, starts and waits for a container, whatever becomes of it, and removes it.
pub async fn attempt(
    node: &Node,
    pod: &Pod,
    name: &str,
    image: &str,
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Outcome {
    let mut config = node.container(&pod.config, name, image, &["/bin/sh", "-c", script]);
    change(&mut config);
    let id = match node.cri.create(&pod.id, &pod.config, &config).await {
        Ok(id) => id,
        Err(status) => return Outcome::Refused(status.message().into()),
    };
    let outcome = match node.cri.start(&id).await {
        Err(status) => Outcome::Refused(status.message().into()),
        Ok(()) => {
            let status = node.cri.exited(&id).await;
            let log = node.log_path(&pod.config, &config);
            let entries = pinnace_conformance::log::read(&log).unwrap_or_default();
            let text = |stream: &str| {
                String::from_utf8_lossy(&pinnace_conformance::log::stream(&entries, stream)).into_owned()
            };
            let (stdout, stderr) = (text("stdout"), text("stderr"));
            let _ = fs::remove_file(&log);
            Outcome::Ran(Box::new(Ended { container: id.clone(), status, stdout, stderr }))
        }
    };
    node.cri.remove(&id).await.unwrap();
    outcome
}

/// The values of a line of /proc/self/status.
pub fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}
