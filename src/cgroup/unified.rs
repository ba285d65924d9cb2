//! What only the v2 tree has: controllers to enable on the way down, and a file that tells of changes.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::detect::Mount;
use crate::error::Result;
use crate::file;
use crate::path::CgroupPath;

const CONTROLLERS: &str = "cgroup.controllers";
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

/// Gives a new leaf every controller that the root has, as far as the levels in between allow it. A level that
/// refuses (it has processes of its own) shows when a limit's file is missing.
pub(crate) fn enable_controllers(mount: &Mount, leaf: &CgroupPath, wanted: &BTreeSet<String>) -> Result<()> {
    let read = |relative: &str, name: &str| {
        let path = below(relative, name);
        file::read_text(mount.dir(), &path).map_err(|errno| mount.failed("read", &path, errno))
    };
    // The common case: a sibling came before.
    if has_all(&read(leaf.relative(), CONTROLLERS)?, wanted) {
        return Ok(());
    }
    for level in std::iter::once("").chain(leaf.ancestors()) {
        let offered = read(level, CONTROLLERS)?;
        let enabled = read(level, SUBTREE_CONTROL)?;
        let enabled: BTreeSet<&str> = enabled.split_whitespace().collect();
        let missing: Vec<String> = offered
            .split_whitespace()
            .filter(|name| wanted.contains(*name) && !enabled.contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        if missing.is_empty() {
            continue;
        }
        let control = below(level, SUBTREE_CONTROL);
        if file::write_text(mount.dir(), &control, &missing.join(" ")).is_ok() {
            continue;
        }
        // One of them is refused (cpu, while realtime processes run): the others still count.
        for one in &missing {
            if let Err(errno) = file::write_text(mount.dir(), &control, one) {
                tracing::debug!(path = %mount.path.join(&control).display(), value = one, %errno, "controller not enabled");
            }
        }
    }
    Ok(())
}

fn has_all(list: &str, wanted: &BTreeSet<String>) -> bool {
    let list: BTreeSet<&str> = list.split_whitespace().collect();
    wanted.iter().all(|name| list.contains(name.as_str()))
}

fn below(relative: &str, name: &str) -> String {
    if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") }
}

/// Waits until `cgroup.events` changes (populated, frozen) or the time is over. Without the file, just waits.
pub(crate) fn wait_for_change(mount: &Mount, relative: &str, patience: Duration) {
    let events = below(relative, "cgroup.events");
    let Ok(file) = file::open(mount.dir(), &events, OFlags::RDONLY) else {
        std::thread::sleep(patience);
        return;
    };
    // Reading arms the notification; a state that is final already needs none.
    let mut text = [0; 256];
    let count = rustix::io::read(&file, &mut text).unwrap_or(0);
    if !String::from_utf8_lossy(&text[..count]).contains("populated 1") {
        std::thread::sleep(patience);
        return;
    }
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    // An interrupted poll is a short wait; the caller looks again anyway.
    let _ = poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout));
}
