//! Host files for bind mounts: opened once, now, and from then on held by descriptor (rules R1, R2).
//!
//! Links on the host are followed, as the kubelet and users expect of a host path. Between this and the mount nothing is
//! looked up by name again, so what is swapped under that name afterwards (CVE-2017-1002101) does not reach the container.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use pinnace_sys::mount as attr;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::options::{Attributes, Bind};
use crate::lower::MissingSource;
use crate::{Error, mountinfo, validate};

/// Names a bind mount in errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) destination: &'a Path,
    pub(crate) source: &'a Path,
}

impl Subject<'_> {
    fn source_error(self, errno: Errno) -> Error {
        Error::MountSource { destination: self.destination.to_owned(), path: self.source.to_owned(), errno }
    }

    fn tree_error(self, call: &'static str, errno: Errno) -> Error {
        Error::MountTree {
            destination: self.destination.to_owned(),
            path: self.source.to_owned(),
            call,
            errno,
        }
    }

    fn field(self) -> String {
        format!("mount {}", self.destination.display())
    }
}

/// Opens the source without reading it (`O_PATH`).
pub(crate) fn pin(subject: Subject<'_>, missing: MissingSource) -> Result<OwnedFd, Error> {
    validate::host_path(&subject.field(), subject.source)?;
    match open(CWD, subject.source.as_os_str()) {
        Err(Errno::NOENT) if missing == MissingSource::CreateDirectory => {
            create(subject.source).map_err(|errno| subject.source_error(errno))
        }
        opened => opened.map_err(|errno| subject.source_error(errno)),
    }
}

/// A detached copy of what is mounted at a pinned file.
pub(crate) fn clone(subject: Subject<'_>, pinned: BorrowedFd<'_>, reach: Bind) -> Result<OwnedFd, Error> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if reach == Bind::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(pinned, c"", flags).map_err(|errno| subject.tree_error("open_tree", errno))
}

/// Changes attributes of a detached tree that the plan cannot express.
pub(crate) fn change(
    subject: Subject<'_>,
    tree: BorrowedFd<'_>,
    reach: attr::Reach,
    attributes: &Attributes,
) -> Result<(), Error> {
    if attributes.is_empty() {
        return Ok(());
    }
    let mut change = attr::Attributes::setting(attributes.all_set());
    change.clear |= attributes.clear;
    if attributes.atime.is_some() {
        change.clear |= attr::ATIME;
    }
    attr::change(tree, reach, &change).map_err(|errno| subject.tree_error("mount_setattr", errno))
}

/// Shows the owners of a detached tree's files as a user namespace maps them; not those of what is mounted below, which
/// keep their own.
pub(crate) fn map_owners(
    subject: Subject<'_>,
    tree: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
) -> Result<(), Error> {
    let attributes = attr::Attributes::default().mapped(namespace);
    attr::change(tree, attr::Reach::Mount, &attributes)
        .map_err(|errno| subject.tree_error("mount_setattr of an id mapping", errno))
}

/// Mount events flow between host and container only if the host's mount takes part: `rshared` needs a shared one, `rslave`
/// a shared one or a slave. Without this check the container would run and silently never see a mount.
pub(crate) fn check_propagation(
    subject: Subject<'_>,
    pinned: BorrowedFd<'_>,
    propagation: u64,
) -> Result<(), Error> {
    if propagation != attr::SHARED && propagation != attr::SLAVE {
        return Ok(());
    }
    let id = rustix::fs::statx(pinned, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|errno| subject.tree_error("statx", errno))?
        .stx_mnt_id;
    let mounts =
        mountinfo::read().map_err(|error| Error::Fact { path: "/proc/thread-self/mountinfo", error })?;
    let mount = mounts.iter().find(|mount| mount.id == id);
    let (kind, sound) = if propagation == attr::SHARED {
        ("a shared", mount.is_some_and(|mount| mount.shared))
    } else {
        ("a shared or slave", mount.is_some_and(|mount| mount.shared || mount.slave))
    };
    if sound {
        return Ok(());
    }
    let at = mount.map_or("?", |mount| mount.mount_point.as_str());
    let source = subject.source.display();
    Err(Error::unmet(
        subject.field(),
        format!("source {source} is mounted at {at}, which is not {kind} mount"),
    ))
}

/// `mkdir -p` with mode 0755 whatever our umask is, as other runtimes do for a host path of a pod that does not exist.
fn create(path: &Path) -> Result<OwnedFd, Errno> {
    let mut at = open(CWD, OsStr::new("/"))?;
    for part in path.components() {
        let name: OsString = match part {
            Component::Normal(name) => name.to_owned(),
            Component::ParentDir => "..".into(),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
        };
        at = match open(at.as_fd(), &name) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => rustix::fs::chmodat(&at, &name, Mode::from_raw_mode(0o755), AtFlags::empty())?,
                    // Another container of the pod made it meanwhile, or a dangling link is there.
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open(at.as_fd(), &name)?
            }
            opened => opened?,
        };
    }
    Ok(at)
}

/// Links are followed; those of `/proc/<pid>/{fd,root,cwd,exe}` are not, for they would lead through this very process.
fn open(directory: BorrowedFd<'_>, path: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        directory,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
}

/// What `/proc` in a container may show: the root of a procfs, or one file of a short list over it.
///
/// Anything else mounted there could pose as the kernel to the runtime or to the container (CVE-2019-16884).
pub(crate) fn is_procfs_root(pinned: BorrowedFd<'_>) -> bool {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    const PROC_ROOT_INO: u64 = 1;
    let magic = rustix::fs::fstatfs(pinned).map(|stat| stat.f_type);
    let inode = rustix::fs::fstat(pinned).map(|stat| stat.st_ino);
    magic == Ok(PROC_SUPER_MAGIC) && inode == Ok(PROC_ROOT_INO)
}

/// Path as bytes of the plan.
pub(crate) fn bytes(path: PathBuf) -> Vec<u8> {
    std::os::unix::ffi::OsStringExt::into_vec(path.into_os_string())
}
