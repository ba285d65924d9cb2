//! What a node holds, counted before and after, so that a test can say: nothing was left behind.
//!
//! A [`Ledger`] has one line per thing: a mount, a network namespace, a link, a cgroup, a process, a file, an open
//! file or thread of the daemon. Things that come in numbers (descriptors, threads) are counted by kind.
//! [`Ledger::settled`] waits until a later ledger equals an earlier one, because some things are allowed to
//! be taken down just after the call that ends them has answered, and returns the difference if that does
//! not happen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::poll;
use crate::world::World;

/// What is counted.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    /// The machine.
    pub world: &'a World,
    /// The daemon's process, whose descriptors and threads count.
    pub daemon: Option<u32>,
    /// Directories whose files count.
    pub places: Vec<PathBuf>,
    /// Beginnings of paths whose files do not count, such as the layers of an image that stays.
    pub except: Vec<PathBuf>,
}

/// Everything that was there at one moment: kind and name, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<(Kind, String), usize>);

/// Kinds of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Mount,
    HostMount,
    NetworkNamespace,
    Link,
    Firewall,
    Cgroup,
    Process,
    File,
    Descriptor,
    Thread,
}

impl Ledger {
    /// Counts now.
    pub fn take(scope: &Scope<'_>) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.mounts(scope);
        ledger.network(scope);
        for cgroup in scope.world.cgroups() {
            ledger.cgroups(&cgroup.dir, &cgroup.dir, &cgroup.mountpoint);
        }
        ledger.processes(scope);
        for place in &scope.places {
            ledger.files(place, &scope.except);
        }
        if let Some(daemon) = scope.daemon {
            ledger.daemon(daemon);
        }
        ledger
    }

    /// Waits until what there is equals this ledger again; the difference if it does not within `limit`.
    pub fn settled(&self, scope: &Scope<'_>, limit: Duration) -> Result<(), String> {
        let mut now = Ledger::default();
        let equal = poll(limit, || {
            now = Ledger::take(scope);
            (now == *self).then_some(())
        });
        equal.ok_or_else(|| self.difference(&now))
    }

    /// The lines that differ, as text: `+` is there now and was not, `-` was there and is not.
    pub fn difference(&self, now: &Ledger) -> String {
        let mut text = String::new();
        let keys: BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        for key in keys {
            let (before, after) =
                (self.0.get(key).copied().unwrap_or(0), now.0.get(key).copied().unwrap_or(0));
            let (kind, name) = key;
            match (before, after) {
                (before, after) if before == after => {}
                (0, 1) => text.push_str(&format!("+ {kind}: {name}\n")),
                (1, 0) => text.push_str(&format!("- {kind}: {name}\n")),
                (before, after) => {
                    text.push_str(&format!("± {kind}: {name}: {before} before, {after} now\n"))
                }
            }
        }
        text
    }

    /// The same without what a daemon has by itself, which a new one has differently.
    #[must_use]
    pub fn without_daemon(&self) -> Ledger {
        let own = |kind: &Kind| matches!(kind, Kind::Descriptor | Kind::Thread);
        Ledger(
            self.0
                .iter()
                .filter(|((kind, _), _)| !own(kind))
                .map(|(key, &count)| (key.clone(), count))
                .collect(),
        )
    }

    fn add(&mut self, kind: Kind, name: impl Into<String>) {
        *self.0.entry((kind, name.into())).or_default() += 1;
    }

    /// Mounts in every mount namespace of the world beyond those that the world began with, and those of this machine that mention the world's
    /// directory, of which there must never be any.
    fn mounts(&mut self, scope: &Scope<'_>) {
        let dir = scope.world.dir().to_string_lossy();
        let mut inherited = BTreeMap::<String, usize>::new();
        for line in scope.world.inherited_mounts().lines() {
            *inherited.entry(mount_name(line)).or_default() += 1;
        }
        let mut namespaces = BTreeSet::new();
        for pid in pids(scope.world) {
            // Containers have mount namespaces of their own; those end with their processes, which count
            // themselves. The daemon's and its monitors' are what matters.
            let proc = scope.world.inside("/proc").join(pid.to_string());
            let Ok(namespace) = fs::read_link(proc.join("ns/mnt")) else { continue };
            if !namespaces.insert(namespace) {
                continue;
            }
            // Those of the real machine are not the world's: they go when their directories are removed out there.
            let mut known = inherited.clone();
            for line in fs::read_to_string(proc.join("mountinfo")).unwrap_or_default().lines() {
                let name = mount_name(line);
                match known.get_mut(&name) {
                    Some(left) if *left > 0 => *left -= 1,
                    _ => self.add(Kind::Mount, name),
                }
            }
        }
        let own = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in own.lines().filter(|line| line.contains(&*dir)) {
            self.add(Kind::HostMount, mount_name(line));
        }
    }

    fn network(&mut self, scope: &Scope<'_>) {
        for pid in pids(scope.world) {
            let proc = scope.world.inside("/proc").join(pid.to_string());
            if let Ok(namespace) = fs::read_link(proc.join("ns/net")) {
                // Once per namespace, however many processes share it.
                self.0.insert((Kind::NetworkNamespace, format!("{} in use", namespace.display())), 1);
            }
        }
        for entry in entries(&scope.world.inside("/run/netns")) {
            self.add(Kind::NetworkNamespace, format!("/run/netns/{}", entry.file_name().to_string_lossy()));
        }
        for entry in entries(&scope.world.inside("/sys/class/net")) {
            self.add(Kind::Link, entry.file_name().to_string_lossy());
        }
        // Handles and counters change; what the rules say does not.
        let rules = scope.world.command("nft").args(["--stateless", "list", "ruleset"]).output();
        let rules = rules.map(|output| output.stdout).unwrap_or_default();
        let mut table = String::new();
        for line in String::from_utf8_lossy(&rules).lines() {
            if !line.starts_with([' ', '\t', '}']) {
                table = line.trim_end_matches('{').trim().to_string();
            } else if !line.trim().is_empty() {
                self.add(Kind::Firewall, format!("{table}: {}", line.trim()));
            }
        }
    }

    fn cgroups(&mut self, dir: &Path, root: &Path, mountpoint: &Path) {
        for entry in entries(dir) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                let inside = path.strip_prefix(root).unwrap_or(&path);
                self.add(Kind::Cgroup, mountpoint.join(inside).display().to_string());
                self.cgroups(&path, root, mountpoint);
            }
        }
    }

    fn processes(&mut self, scope: &Scope<'_>) {
        for pid in pids(scope.world) {
            let proc = scope.world.inside("/proc").join(pid.to_string());
            let Ok(stat) = fs::read_to_string(proc.join("stat")) else { continue };
            let Some((name, rest)) = stat.rsplit_once(')') else { continue };
            let state = if rest.trim_start().starts_with('Z') { " (zombie)" } else { "" };
            let name = name.split_once('(').map_or("", |(_, name)| name);
            let command = fs::read(proc.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            self.add(Kind::Process, format!("{name}{state} {}", command.trim()));
        }
    }

    fn files(&mut self, path: &Path, except: &[PathBuf]) {
        if except.iter().any(|prefix| path.starts_with(prefix)) {
            return;
        }
        let Ok(metadata) = fs::symlink_metadata(path) else { return };
        self.add(Kind::File, format!("{} {:o}", path.display(), metadata.mode() & 0o17_0000));
        if metadata.is_dir() {
            entries(path).iter().for_each(|entry| self.files(&entry.path(), except));
        }
    }

    /// Descriptors by what they refer to, without inode numbers, and threads by name. Two pools may grow and shrink
    /// by themselves: threads that are kept for blocking work, and connections to registries that are kept open.
    fn daemon(&mut self, pid: u32) {
        let kept = open_connections(pid);
        for entry in entries(Path::new(&format!("/proc/{pid}/fd"))) {
            if let Ok(target) = fs::read_link(entry.path()) {
                let target = target.to_string_lossy();
                if kept.contains(&*target) {
                    continue;
                }
                let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
                self.add(Kind::Descriptor, kind);
            }
        }
        for entry in entries(Path::new(&format!("/proc/{pid}/task"))) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if !name.is_empty() && !name.starts_with("tokio-") {
                self.add(Kind::Thread, name.trim());
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Mount => "mount",
            Kind::HostMount => "mount on the real machine",
            Kind::NetworkNamespace => "network namespace",
            Kind::Link => "link",
            Kind::Firewall => "firewall",
            Kind::Cgroup => "cgroup",
            Kind::Process => "process",
            Kind::File => "file",
            Kind::Descriptor => "descriptor of the daemon",
            Kind::Thread => "thread of the daemon",
        })
    }
}

/// Every process of the world, by its id inside, without the reader itself.
fn pids(world: &World) -> Vec<u32> {
    let names = entries(&world.inside("/proc")).into_iter().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).collect()
}

/// TCP connections of a process's network namespace that are open at both ends, as `/proc/PID/fd` names them.
fn open_connections(pid: u32) -> BTreeSet<String> {
    const ESTABLISHED: &str = "01";
    let mut names = BTreeSet::new();
    for file in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields.get(3) == Some(&ESTABLISHED) {
                names.extend(fields.get(9).map(|inode| format!("socket:[{inode}]")));
            }
        }
    }
    names
}

fn entries(dir: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(dir).into_iter().flatten().flatten().collect()
}

/// Mount point, root, type and source of a line of mountinfo; ids and options differ between equal mounts.
fn mount_name(line: &str) -> String {
    let (mount, filesystem) = line.split_once(" - ").unwrap_or((line, ""));
    let mount: Vec<_> = mount.split(' ').collect();
    let (root, at) = (mount.get(3).unwrap_or(&""), mount.get(4).unwrap_or(&""));
    let filesystem: Vec<_> = filesystem.split(' ').take(2).collect();
    format!("{at} ({}, {root})", filesystem.join(" "))
}
