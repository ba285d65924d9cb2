//! [`Cgroup`]: one path in every hierarchy, from mkdir to rmdir.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, chmodat, mkdirat, unlinkat};
use rustix::io::{Errno, retry_on_intr, write};

use crate::detect::{Hierarchy, Kind, Mode, Mount};
use crate::devices::DeviceRules;
use crate::error::{CgroupError, Result};
use crate::path::CgroupPath;
use crate::setting::{self, Place, Setting, Undo};
use crate::{device_program, file, unified, v1, v2};

/// Containers may look at their own limits whoever they run as.
const DIRECTORY_MODE: u32 = 0o755;
/// A wait for the kernel to reap grows from the first to the second.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// What a new cgroup limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    resources: &'a LinuxResources,
    filter_devices: bool,
    write_values: bool,
}

impl<'a> Limits<'a> {
    /// For a container: its resources, and only the devices that its rules allow (none without rules).
    pub fn container(resources: &'a LinuxResources) -> Self {
        Self { resources, filter_devices: true, write_values: true }
    }

    /// For a pod, or for a privileged container: its resources; devices stay as the parent has them.
    pub fn group(resources: &'a LinuxResources) -> Self {
        Self { resources, filter_devices: false, write_values: true }
    }

    /// Checked now, but written later, by [`Cgroup::update`]: for a cgroup that systemd does not know of yet, whose
    /// controllers it takes away when a unit beside it ends.
    pub fn values_later(self) -> Self {
        Self { write_values: false, ..self }
    }
}

/// The values that a cgroup had before an update.
#[derive(Debug)]
pub struct Previous(Vec<Setting>);

/// Descriptors by which a new process gets into a cgroup.
#[derive(Debug)]
pub struct JoinFds {
    /// v1: `tasks` of every hierarchy, write-only. The child, while it has one thread, writes `0` to each.
    pub tasks: Vec<OwnedFd>,
    /// v2, and the v2 tree of a hybrid: a directory for clone3 with CLONE_INTO_CGROUP.
    pub clone_into: Option<OwnedFd>,
}

/// A cgroup in all hierarchies of the machine. Holds no descriptor; dropping it does nothing.
#[derive(Clone, Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    path: CgroupPath,
}

impl Cgroup {
    /// Makes the cgroup, and missing parents, in every hierarchy and sets its limits. What was made is
    /// removed again when a step fails.
    pub fn create(hierarchy: &Hierarchy, path: &CgroupPath, limits: &Limits<'_>) -> Result<Self> {
        if path.is_root() {
            return Err(is_root(path));
        }
        // Everything that can be wrong with the input, before anything is made.
        let mut settings = settings(hierarchy, limits.resources)?;
        let devices = limits.filter_devices.then(|| rules(limits.resources)).transpose()?;
        let cgroup = Self { hierarchy: hierarchy.clone(), path: path.clone() };
        let mut made = Vec::new();
        let outcome = cgroup.make(&mut made).and_then(|()| {
            if !limits.write_values {
                settings.clear();
            }
            cgroup.keep_quota(&mut settings)?;
            setting::write_all(&settings, Undo::Never, |controller| cgroup.place(controller))?;
            devices.as_ref().map_or(Ok(()), |rules| cgroup.set_devices(rules))
        });
        if let Err(error) = outcome {
            for (mount, relative) in made.iter().rev() {
                if let Err(errno) = unlinkat(mount.dir(), *relative, AtFlags::REMOVEDIR) {
                    tracing::warn!(path = %mount.path.join(relative).display(), %errno, "half-made cgroup stays");
                }
            }
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Gives it the controllers again that it was made with.
    pub(crate) fn enable_controllers(&self) -> Result<()> {
        match self.hierarchy.v2().filter(|_| self.hierarchy.mode() == Mode::Unified) {
            Some(mount) => {
                unified::enable_controllers(mount, &self.path, self.hierarchy.unified_controllers())
            }
            None => Ok(()),
        }
    }

    /// The cgroup at that path, which exists in at least one hierarchy.
    pub fn open(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Self> {
        let cgroup = Self { hierarchy: hierarchy.clone(), path: path.clone() };
        if cgroup.exists()? { Ok(cgroup) } else { Err(CgroupError::NotFound { path: path.to_string() }) }
    }

    /// Its path inside the hierarchies.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// The hierarchies it lies in.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> Result<bool> {
        for mount in self.hierarchy.mounts() {
            match self.directory(mount) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(mount.failed("open", self.relative(), errno)),
            }
        }
        Ok(false)
    }

    /// Opens what a child needs to join. Every hierarchy must have the cgroup.
    pub fn join_fds(&self) -> Result<JoinFds> {
        let mut join = JoinFds { tasks: Vec::new(), clone_into: None };
        for mount in self.hierarchy.mounts() {
            let opened = match mount.kind {
                Kind::V1 => file::open(mount.dir(), &format!("{}/tasks", self.relative()), OFlags::WRONLY),
                Kind::V2 => self.directory(mount),
            };
            let fd = opened.map_err(|errno| mount.failed("open", self.relative(), errno))?;
            match mount.kind {
                Kind::V1 => join.tasks.push(fd),
                Kind::V2 => join.clone_into = Some(fd),
            }
        }
        Ok(join)
    }

    /// Changes limits; what the resources leave out stays. On failure the old values are written back.
    /// Devices are not touched, see [`Cgroup::set_devices`].
    pub fn update(&self, resources: &LinuxResources) -> Result<Previous> {
        if !self.exists()? {
            return Err(CgroupError::NotFound { path: self.path.to_string() });
        }
        let settings = self.settings(resources)?;
        self.check_usage(resources)?;
        let previous = setting::write_all(&settings, Undo::OnFailure, |controller| self.place(controller))?;
        Ok(Previous(previous))
    }

    /// Takes an update back, when what it was part of has failed elsewhere.
    pub fn revert(&self, previous: &Previous) -> Result<()> {
        setting::write_all(&previous.0, Undo::Never, |controller| self.place(controller)).map(drop)
    }

    /// Whether it can limit what this controller limits.
    pub fn is_limited_by(hierarchy: &Hierarchy, controller: &str) -> bool {
        match hierarchy.mode() {
            Mode::Unified => hierarchy.unified_controllers().contains(controller),
            Mode::Legacy | Mode::Hybrid => hierarchy.v1(controller).is_some(),
        }
    }

    /// Every file that the resources set, quota and period complete.
    pub(crate) fn settings(&self, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let mut settings = settings(&self.hierarchy, resources)?;
        self.keep_quota(&mut settings)?;
        Ok(settings)
    }

    /// Replaces the device filter. On v2 atomically; on v1 there is a moment without any device, and the kernel
    /// refuses when the cgroup has children.
    pub fn set_devices(&self, rules: &DeviceRules) -> Result<()> {
        if self.hierarchy.mode() == Mode::Unified {
            let Some(mount) = self.hierarchy.v2() else { return Err(CgroupError::NoHierarchy) };
            let directory = file::open(mount.dir(), self.relative(), OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|errno| mount.failed("open", self.relative(), errno))?;
            let path = mount.path.join(self.relative());
            return device_program::attach(self.hierarchy.device_programs(), directory.as_fd(), &path, rules);
        }
        let Some(mount) = self.hierarchy.v1("devices") else {
            return Err(CgroupError::ControllerUnavailable {
                controller: "devices".to_owned(),
                path: self.relative().into(),
            });
        };
        // In order: what is allowed comes after everything was denied.
        let mut open: Option<(&str, OwnedFd)> = None;
        for (name, line) in rules.v1_lines()? {
            let path = format!("{}/{name}", self.relative());
            if open.as_ref().is_none_or(|(opened, _)| *opened != name) {
                let fd = file::open(mount.dir(), &path, OFlags::WRONLY)
                    .map_err(|errno| mount.failed("open", &path, errno))?;
                open = Some((name, fd));
            }
            let Some((_, fd)) = &open else { continue };
            retry_on_intr(|| write(fd, line.as_bytes())).map_err(|errno| CgroupError::Write {
                controller: "devices".to_owned(),
                path: mount.path.join(&path),
                value: line,
                errno,
            })?;
        }
        Ok(())
    }

    /// Removes the cgroup and everything below it from every hierarchy; that it is gone already is success.
    ///
    /// While processes that were killed are still being reaped the kernel refuses; `patience` bounds how long
    /// that is waited for, and the error names a process that stays.
    pub fn remove(&self, patience: Duration) -> Result<()> {
        if self.path.is_root() {
            return Err(is_root(&self.path));
        }
        let deadline = Instant::now() + patience;
        let mut wait = SHORTEST_WAIT;
        loop {
            let mut busy = None;
            for mount in self.hierarchy.mounts() {
                match remove_tree(mount, self.relative()) {
                    Ok(()) => {}
                    Err(Errno::BUSY | Errno::NOTEMPTY) => busy = Some(mount),
                    Err(errno) => return Err(mount.failed("rmdir", self.relative(), errno)),
                }
            }
            let Some(mount) = busy else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let pid = self.pids()?.first().map(|pid| pid.as_raw_nonzero().get());
                return Err(CgroupError::Busy { path: mount.path.join(self.relative()), pid });
            }
            match self.hierarchy.v2() {
                Some(unified) => unified::wait_for_change(unified, self.relative(), wait.min(left)),
                None => std::thread::sleep(wait.min(left)),
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// The cgroup at another path of the same hierarchies.
    pub(crate) fn at(&self, path: CgroupPath) -> Self {
        Self { hierarchy: self.hierarchy.clone(), path }
    }

    pub(crate) fn relative(&self) -> &str {
        self.path.relative()
    }

    /// An O_PATH descriptor of the directory.
    fn directory(&self, mount: &Mount) -> std::result::Result<OwnedFd, Errno> {
        let relative = if self.path.is_root() { "." } else { self.relative() };
        file::open(mount.dir(), relative, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The mount that has a controller's files.
    pub(crate) fn mount(&self, controller: &str) -> Option<&Mount> {
        match self.hierarchy.mode() {
            Mode::Unified => self.hierarchy.v2(),
            Mode::Legacy | Mode::Hybrid => self.hierarchy.v1(controller),
        }
    }

    fn place(&self, controller: &str) -> Option<Place<'_>> {
        let mount = self.mount(controller)?;
        Some(Place { dir: mount.dir(), relative: self.relative(), base: &mount.path })
    }

    /// Makes the directories, noting each one made.
    fn make<'a>(&'a self, made: &mut Vec<(&'a Mount, &'a str)>) -> Result<()> {
        for mount in self.hierarchy.mounts() {
            let leaf = self.relative();
            let mut outcome = mkdirat(mount.dir(), leaf, DIRECTORY_MODE.into());
            if outcome == Err(Errno::NOENT) {
                for ancestor in self.path.ancestors() {
                    match mkdirat(mount.dir(), ancestor, DIRECTORY_MODE.into()) {
                        Ok(()) => {
                            made.push((mount, ancestor));
                            prepare(mount, ancestor)?;
                        }
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(mount.failed("mkdir", ancestor, errno)),
                    }
                }
                outcome = mkdirat(mount.dir(), leaf, DIRECTORY_MODE.into());
            }
            match outcome {
                Ok(()) => {}
                Err(Errno::EXIST) => return Err(CgroupError::AlreadyExists { path: mount.path.join(leaf) }),
                Err(errno) => return Err(mount.failed("mkdir", leaf, errno)),
            }
            made.push((mount, leaf));
            prepare(mount, leaf)?;
        }
        self.enable_controllers()
    }

    /// Completes a `cpu.max` that gives a period only.
    fn keep_quota(&self, settings: &mut [Setting]) -> Result<()> {
        for setting in settings.iter_mut().filter(|setting| setting.file == "cpu.max") {
            if let Some(period) = setting.value.strip_prefix(v2::KEEP_QUOTA) {
                // None before systemd knows of it.
                let now = self.read("cpu", "cpu.max").unwrap_or_default();
                let quota = now.split_whitespace().next().unwrap_or("max");
                setting.value = format!("{quota}{period}");
            }
        }
        Ok(())
    }

    fn check_usage(&self, resources: &LinuxResources) -> Result<()> {
        let Some(memory) = resources.memory() else { return Ok(()) };
        if memory.check_before_update() != Some(true) {
            return Ok(());
        }
        // -1 is no limit, 0 no change.
        let Some(limit_bytes) =
            memory.limit().and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit > 0)
        else {
            return Ok(());
        };
        let file = match self.hierarchy.mode() {
            Mode::Unified => "memory.current",
            Mode::Legacy | Mode::Hybrid => "memory.usage_in_bytes",
        };
        let text = self.read("memory", file)?;
        let usage_bytes = text.trim().parse().map_err(|_| CgroupError::Malformed {
            file: PathBuf::from(self.relative()).join(file),
            line: text.trim().to_owned(),
        })?;
        if limit_bytes < usage_bytes {
            Err(CgroupError::BelowUsage { limit_bytes, usage_bytes })
        } else {
            Ok(())
        }
    }

    /// A controller's interface file.
    pub(crate) fn read(&self, controller: &str, name: &str) -> Result<String> {
        let file = format!("{}/{name}", self.relative());
        let Some(mount) = self.mount(controller) else {
            return Err(CgroupError::ControllerUnavailable {
                controller: controller.to_owned(),
                path: file.into(),
            });
        };
        file::read_text(mount.dir(), &file).map_err(|errno| mount.failed("read", &file, errno))
    }
}

fn settings(hierarchy: &Hierarchy, resources: &LinuxResources) -> Result<Vec<Setting>> {
    match hierarchy.mode() {
        Mode::Unified => v2::settings(resources, hierarchy.unified_controllers()),
        Mode::Legacy | Mode::Hybrid => v1::settings(resources),
    }
}

fn rules(resources: &LinuxResources) -> Result<DeviceRules> {
    resources.devices().as_deref().map_or_else(|| Ok(DeviceRules::deny_all()), DeviceRules::from_spec)
}

fn is_root(path: &CgroupPath) -> CgroupError {
    CgroupError::InvalidPath {
        path: path.to_string(),
        reason: "the root cgroup is not ours to make or remove",
    }
}

/// What a new directory needs before it can be used.
fn prepare(mount: &Mount, relative: &str) -> Result<()> {
    // Whatever the umask made of it: the daemon's is 077.
    chmodat(mount.dir(), relative, DIRECTORY_MODE.into(), AtFlags::empty())
        .map_err(|errno| mount.failed("chmod", relative, errno))?;
    if mount.kind == Kind::V1 && mount.has("cpuset") {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            inherit(mount.dir(), relative, file).map_err(|errno| mount.failed("prepare", relative, errno))?;
        }
    }
    Ok(())
}

/// A v1 cpuset starts empty and takes no process until it has CPUs and memory nodes: copies its parent's
/// list, where that is empty too (made by someone else) after filling it the same way.
fn inherit(dir: BorrowedFd<'_>, relative: &str, name: &str) -> std::result::Result<String, Errno> {
    let own = if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") };
    let list = file::read_text(dir, &own)?;
    if !list.trim().is_empty() || relative.is_empty() {
        return Ok(list);
    }
    let parent = relative.rfind('/').map_or("", |cut| &relative[..cut]);
    let list = inherit(dir, parent, name)?;
    file::write_text(dir, &own, list.trim())?;
    Ok(list)
}

/// rmdir, children first. Gone already is fine.
fn remove_tree(mount: &Mount, relative: &str) -> std::result::Result<(), Errno> {
    match unlinkat(mount.dir(), relative, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    let children = match children(mount.dir(), relative) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        other => other?,
    };
    if children.is_empty() {
        return Err(Errno::BUSY);
    }
    for child in children {
        remove_tree(mount, &format!("{relative}/{child}"))?;
    }
    match unlinkat(mount.dir(), relative, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Names of the child cgroups.
pub(crate) fn children(dir: BorrowedFd<'_>, relative: &str) -> std::result::Result<BTreeSet<String>, Errno> {
    let directory = file::open(dir, relative, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = BTreeSet::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.insert(name.into_owned());
        }
    }
    Ok(names)
}
