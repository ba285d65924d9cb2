//! Mounts of EROFS layers: one superblock per layer and node, whoever uses it.
//!
//! Every mount of the same files makes a superblock with a page cache of its own, so a layer is
//! mounted once and every container gets that one. The mounts are kept in a mount namespace that
//! holds nothing else and that outlives this process:
//!
//! ```text
//! run/pin/ (tmpfs)    with the next line the only trace in the host's mount table
//!   mounts            the namespace, pinned: a bind mount of its file
//!   └ / (tmpfs)
//!     ├ sha256-<hex>/ a layer
//!     └ sha256-<hex>/
//! ```
//!
//! The pin is in a private mount of its own: /run is shared on most nodes, and the file of a mount
//! namespace cannot propagate (`copy_tree` of fs/namespace.c).
//!
//! Only a thread of its own ever is in that namespace. It hands out clones that are attached
//! nowhere (open_tree(2) with OPEN_TREE_CLONE); those can be lower layers of overlayfs or be
//! attached elsewhere. Where the kernel's overlayfs wants paths, the thread puts overlays together
//! too ([`assembly`](crate::assembly)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_sys::mount::{Attributes, PRIVATE, Reach, change};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use rustix::thread::CpuSet;

use crate::assembly::{self, Plan};
use crate::dir::Dir;
use crate::error::{Error, Result};

const PIN: &str = "pin";
const NAMESPACE_FILE: &str = "mounts";
/// For error texts.
const NAMESPACE: &str = "the layer mount namespace";
/// NSFS_MAGIC of include/uapi/linux/magic.h.
const NSFS: u64 = 0x6e73_6673;
pub(crate) const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_EMPTY_PATH);

/// The thread that is in the private mount namespace.
#[derive(Debug)]
pub(crate) struct Mounts {
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

/// How the thread gets into its namespace.
enum Entry {
    /// The one that an earlier process has pinned.
    Pinned(OwnedFd),
    /// A new one.
    New,
    /// A new one, made on that CPU; afterwards the thread may run where it was allowed to.
    NewOn { cpu: usize, allowed: CpuSet },
}

type Answer<T> = SyncSender<Result<T>>;

enum Request {
    /// A clone of the mount of that name, if there is one.
    Clone {
        name: String,
        answer: Answer<Option<OwnedFd>>,
    },
    /// Attaches a mount under that name and answers a clone.
    Attach {
        name: String,
        mount: OwnedFd,
        answer: Answer<OwnedFd>,
    },
    /// Lets go of the mount of that name, if there is one.
    Detach {
        name: String,
        answer: Answer<()>,
    },
    List {
        answer: Answer<Vec<String>>,
    },
    /// Makes an overlay.
    Assemble {
        plan: Plan,
        answer: Answer<OwnedFd>,
    },
}

impl Mounts {
    /// Enters the namespace pinned under `run`, or makes and pins one.
    pub(crate) fn open(run: &Dir) -> Result<Self> {
        if let Some(namespace) = pinned(run)? {
            return Self::enter(Entry::Pinned(namespace)).map(|(mounts, _)| mounts);
        }
        // The kernel lets a namespace be pinned only in an older one, and since 6.18 it takes the numbers that it
        // compares from batches, one batch a CPU: a newer namespace made on another CPU can have a lower number than
        // ours. On the CPU where ours was made every later one is higher, so one of the CPUs succeeds.
        let allowed = rustix::thread::sched_getaffinity(None)
            .map_err(Error::io("read the CPU affinity for", run.entry(PIN)))?;
        let mut outcome = Err(Error::MountThread);
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
            let (mounts, namespace) = Self::enter(Entry::NewOn { cpu, allowed })?;
            outcome = pin(run, namespace.as_fd()).map(|()| mounts);
            if !matches!(&outcome, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput)
            {
                break;
            }
        }
        outcome
    }

    /// Makes a namespace that ends with this.
    pub(crate) fn unpinned() -> Result<Self> {
        Self::enter(Entry::New).map(|(mounts, _)| mounts)
    }

    fn enter(entry: Entry) -> Result<(Self, OwnedFd)> {
        let (requests, inbox) = sync_channel(16);
        let (ready, entered) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-mounts".to_owned())
            .spawn(move || match enter(entry) {
                Ok((root, namespace)) => {
                    // The receiver waits below; if it is gone, so is the need for this thread.
                    if ready.send(Ok(namespace)).is_ok() {
                        serve(&root, &inbox);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .map_err(|source| Error::Io { op: "start a thread for", path: NAMESPACE_FILE.into(), source })?;
        let mounts = Self { requests: Some(requests), thread: Some(thread) };
        let namespace = entered.recv().map_err(|_| Error::MountThread)??;
        Ok((mounts, namespace))
    }

    pub(crate) fn clone_of(&self, name: &str) -> Result<Option<OwnedFd>> {
        self.ask(|answer| Request::Clone { name: name.to_owned(), answer })
    }

    pub(crate) fn attach(&self, name: &str, mount: OwnedFd) -> Result<OwnedFd> {
        self.ask(|answer| Request::Attach { name: name.to_owned(), mount, answer })
    }

    pub(crate) fn detach(&self, name: &str) -> Result<()> {
        self.ask(|answer| Request::Detach { name: name.to_owned(), answer })
    }

    pub(crate) fn names(&self) -> Result<Vec<String>> {
        self.ask(|answer| Request::List { answer })
    }

    /// Makes an overlay that is attached nowhere.
    pub(crate) fn assemble(&self, plan: Plan) -> Result<OwnedFd> {
        self.ask(|answer| Request::Assemble { plan, answer })
    }

    fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T> {
        let (answer, reply) = sync_channel(1);
        let requests = self.requests.as_ref().ok_or(Error::MountThread)?;
        requests.send(request(answer)).map_err(|_| Error::MountThread)?;
        reply.recv().map_err(|_| Error::MountThread)?
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the mount thread panicked");
        }
    }
}

/// Whether a namespace is pinned under `run`.
pub(crate) fn is_pinned(run: &Dir) -> Result<bool> {
    pinned(run).map(|namespace| namespace.is_some())
}

/// Removes the pin under `run`. Layers that a container uses stay mounted until it ends.
pub(crate) fn unpin(run: &Dir) -> Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match mount::unmount(pin_path(run), flags) {
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(Error::io("unmount", run.entry(PIN))(errno)),
    }
    match fs::unlinkat(run, PIN, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("remove", run.entry(PIN))(errno)),
    }
}

/// The pin by way of the run directory's descriptor: the text is short and cannot be led astray.
fn pin_path(run: &Dir) -> String {
    format!("/proc/self/fd/{}/{PIN}", run.as_fd().as_raw_fd())
}

fn pinned(run: &Dir) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match fs::openat(run, format!("{PIN}/{NAMESPACE_FILE}"), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::io("open", run.entry(PIN))(errno)),
    };
    let stat = fs::fstatfs(&fd).map_err(Error::io("look at", run.entry(PIN)))?;
    let kind = u64::try_from(stat.f_type).unwrap_or(0);
    Ok((kind == NSFS).then_some(fd))
}

fn pin(run: &Dir, namespace: BorrowedFd<'_>) -> Result<()> {
    // What an earlier process has left half-done.
    unpin(run)?;
    let pinned = bind(run, namespace);
    if pinned.is_err() {
        unpin(run)?;
    }
    pinned
}

fn bind(run: &Dir, namespace: BorrowedFd<'_>) -> Result<()> {
    let fault = |op| Error::io(op, run.entry(PIN));
    let place = tmpfs(PIN)?;
    fs::mkdirat(run, PIN, Mode::from_raw_mode(0o700)).map_err(fault("create"))?;
    mount::move_mount(&place, "", run, PIN, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(fault("mount a tmpfs at"))?;
    // Only now: a mount becomes shared when it is attached below a shared one.
    change(place.as_fd(), Reach::Mount, &Attributes::propagating(PRIVATE)).map_err(fault("make private"))?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    fs::openat(&place, NAMESPACE_FILE, flags, Mode::from_raw_mode(0o600))
        .map_err(fault("create a file in"))?;
    // A namespace file can be cloned like a directory (a bind mount), and attached to a file.
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let target = format!("/proc/self/fd/{}/{NAMESPACE_FILE}", place.as_raw_fd());
    #[allow(clippy::disallowed_methods, reason = "both paths are descriptors of our own")]
    mount::mount_bind(&source, target).map_err(fault("pin the mount namespace at"))
}

/// Runs on the thread: into the pinned namespace, or into a new one without anything in it.
fn enter(entry: Entry) -> Result<(OwnedFd, OwnedFd)> {
    let fault = |step| move |errno: nix::Error| namespace_fault(step)(Errno::from_raw_os_error(errno as i32));
    // Root and working directory become this thread's own; setns(2) asks for that.
    unshare(CloneFlags::CLONE_FS).map_err(fault("unshare(CLONE_FS)"))?;
    let namespace = match entry {
        Entry::Pinned(namespace) => {
            setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(fault("setns"))?;
            namespace
        }
        Entry::New => {
            unshare(CloneFlags::CLONE_NEWNS).map_err(fault("unshare(CLONE_NEWNS)"))?;
            emptied_namespace()?
        }
        Entry::NewOn { cpu, allowed } => {
            let mut only = CpuSet::new();
            only.set(cpu);
            rustix::thread::sched_setaffinity(None, &only).map_err(namespace_fault("move to a CPU"))?;
            unshare(CloneFlags::CLONE_NEWNS).map_err(fault("unshare(CLONE_NEWNS)"))?;
            rustix::thread::sched_setaffinity(None, &allowed).map_err(namespace_fault("leave a CPU"))?;
            emptied_namespace()?
        }
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::open("/", flags, Mode::empty()).map_err(namespace_fault("open the root"))?;
    Ok((root, namespace))
}

/// Empties the new namespace that this thread is in.
fn emptied_namespace() -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty())
        .map_err(namespace_fault("open the new namespace"))?;
    empty_the_namespace()?;
    Ok(namespace)
}

/// Replaces the copy of the host's mounts, which would keep them all alive, by an empty tmpfs.
fn empty_the_namespace() -> Result<()> {
    let recursive = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change("/", recursive).map_err(namespace_fault("make the namespace private"))?;
    let tmpfs = tmpfs(NAMESPACE)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    mount::move_mount(&tmpfs, "", fs::CWD, "/", flags).map_err(namespace_fault("attach tmpfs"))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up above the new one.
    rustix::process::fchdir(&tmpfs).map_err(namespace_fault("change to tmpfs"))?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            mount::unmount(".", flags).map_err(namespace_fault("unmount the old root"))?;
        }
        // A system that still runs from its initramfs: that root cannot be replaced, but covered.
        Err(Errno::INVAL) => rustix::process::chroot(".").map_err(namespace_fault("chroot"))?,
        Err(errno) => return Err(namespace_fault("pivot_root")(errno)),
    }
    rustix::process::chdir("/").map_err(namespace_fault("change to the root"))
}

/// An empty tmpfs that is attached nowhere.
pub(crate) fn tmpfs(subject: &str) -> Result<OwnedFd> {
    let context =
        mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(mount_fault("fsopen tmpfs", subject))?;
    mount::fsconfig_set_string(&context, "mode", "0700").map_err(mount_fault("set up tmpfs", subject))?;
    mount::fsconfig_create(&context).map_err(mount_fault("create tmpfs", subject))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(mount_fault("mount tmpfs", subject))
}

fn namespace_fault(step: &'static str) -> impl FnOnce(Errno) -> Error {
    mount_fault(step, NAMESPACE)
}

pub(crate) fn mount_fault(step: &'static str, subject: &str) -> impl FnOnce(Errno) -> Error {
    let subject = subject.to_owned();
    move |errno| Error::Mount { step, subject, kernel: String::new(), source: errno.into() }
}

fn serve(root: &OwnedFd, inbox: &Receiver<Request>) {
    // An answer that nobody waits for any more is dropped; a mount in it ends with that.
    while let Ok(request) = inbox.recv() {
        match request {
            Request::Clone { name, answer } => drop(answer.send(clone(root, &name))),
            Request::Attach { name, mount, answer } => drop(answer.send(attach(root, &name, &mount))),
            Request::Detach { name, answer } => drop(answer.send(detach(root, &name))),
            Request::List { answer } => drop(answer.send(names(root))),
            Request::Assemble { plan, answer } => drop(answer.send(assembly::assemble(root, &plan))),
        }
    }
}

fn clone(root: &OwnedFd, name: &str) -> Result<Option<OwnedFd>> {
    let place =
        match fs::openat(root, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(place) => place,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(mount_fault("open", name)(errno)),
        };
    // Without a mount on it, the directory is what an interrupted attach has left.
    let (own, above) = (mount_id(place.as_fd()), mount_id(root.as_fd()));
    if own.map_err(mount_fault("statx", name))? == above.map_err(mount_fault("statx", name))? {
        return Ok(None);
    }
    mount::open_tree(&place, "", CLONE).map(Some).map_err(mount_fault("open_tree", name))
}

fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    fs::statx(fd, "", flags, fs::StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
}

fn attach(root: &OwnedFd, name: &str, mount: &OwnedFd) -> Result<OwnedFd> {
    match fs::mkdirat(root, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(mount_fault("mkdir", name)(errno)),
    }
    mount::move_mount(mount, "", root, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(mount_fault("move_mount", name))?;
    clone(root, name)?.ok_or(Error::MountThread)
}

/// Lets go of the mount of that name and everything below it. Runs on the mount thread.
pub(crate) fn detach(root: &OwnedFd, name: &str) -> Result<()> {
    // The thread's root is this namespace's, and the name has no slash.
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match mount::unmount(format!("/{name}"), flags) {
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(mount_fault("unmount", name)(errno)),
    }
    match fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(mount_fault("rmdir", name)(errno)),
    }
}

fn names(root: &OwnedFd) -> Result<Vec<String>> {
    let entries = crate::dir::list(root.as_fd()).map_err(mount_fault("list", "/"))?;
    Ok(entries.into_iter().filter_map(|(name, _)| name.into_string().ok()).collect())
}

/// Mounts a layer, or several merged, from metadata and tars; the mount is attached nowhere yet.
pub(crate) fn mount_erofs(subject: &str, meta: &File, tars: &[File]) -> Result<OwnedFd> {
    let context =
        mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(mount_fault("fsopen erofs", subject))?;
    // Paths are limited to 255 bytes here; the magic links of our own descriptors are short.
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let step =
        |step, result: Result<(), Errno>| result.map_err(context_fault(step, subject, context.as_fd()));
    step("set source", mount::fsconfig_set_string(&context, "source", path(meta)))?;
    for tar in tars {
        step("set device", mount::fsconfig_set_string(&context, "device", path(tar)))?;
    }
    step("set ro", mount::fsconfig_set_flag(&context, "ro"))?;
    step("create erofs", mount::fsconfig_create(&context))?;
    mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(mount_fault("fsmount", subject))
}

/// An error together with what the kernel says about it on the context descriptor.
pub(crate) fn context_fault<'a>(
    step: &'static str,
    subject: &'a str,
    context: BorrowedFd<'a>,
) -> impl FnOnce(Errno) -> Error + 'a {
    move |errno| {
        let mut kernel = Vec::new();
        let mut buffer = [0; 512];
        // One message per read(2); ENODATA ends the list.
        while let Ok(count) = rustix::io::read(context, &mut buffer) {
            if count == 0 || kernel.len() > 4096 {
                break;
            }
            if !kernel.is_empty() {
                kernel.extend(b"; ");
            }
            kernel.extend(buffer[..count].trim_ascii_end());
        }
        let kernel = String::from_utf8_lossy(&kernel).into_owned();
        Error::Mount { step, subject: subject.to_owned(), kernel, source: errno.into() }
    }
}
