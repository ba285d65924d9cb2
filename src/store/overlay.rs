//! Root file systems: overlay mounts that are put together from descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::error::{Error, Result};
use crate::mounts::{context_fault, mount_fault};

/// `OVL_MAX_STACK` of fs/overlayfs/params.h.
pub(crate) const MAX_LOWERS: usize = 500;

/// The parts of an overlay.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// For error texts.
    pub(crate) subject: &'a str,
    /// Top layer first.
    pub(crate) lowers: &'a [BorrowedFd<'a>],
    pub(crate) upper: Option<Upper<'a>>,
    pub(crate) read_only: bool,
    /// SELinux `context=` of everything in the mount.
    pub(crate) selinux_context: Option<&'a str>,
}

/// The writable part.
#[derive(Debug)]
pub(crate) struct Upper<'a> {
    pub(crate) upper: BorrowedFd<'a>,
    pub(crate) work: BorrowedFd<'a>,
    pub(crate) volatile: bool,
}

impl Overlay<'_> {
    /// Mounts the overlay; the mount is attached nowhere.
    pub(crate) fn mount(&self) -> Result<OwnedFd> {
        let subject = self.subject;
        if self.lowers.len() > MAX_LOWERS {
            return Err(Error::TooManyLayers { count: self.lowers.len(), limit: MAX_LOWERS });
        }
        let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(mount_fault("fsopen overlay", subject))?;
        let fault = |step| context_fault(step, subject, context.as_fd());
        // Shown as the source in mountinfo.
        mount::fsconfig_set_string(&context, "source", "pinnace").map_err(fault("set source"))?;
        for lower in self.lowers {
            mount::fsconfig_set_fd(&context, "lowerdir+", lower).map_err(fault("set lowerdir+"))?;
        }
        if let Some(upper) = &self.upper {
            mount::fsconfig_set_fd(&context, "upperdir", upper.upper).map_err(fault("set upperdir"))?;
            mount::fsconfig_set_fd(&context, "workdir", upper.work).map_err(fault("set workdir"))?;
            if upper.volatile {
                mount::fsconfig_set_flag(&context, "volatile").map_err(fault("set volatile"))?;
            }
        }
        // The upper directory stays a plain difference that can be exported: no redirects, no
        // data elsewhere, no index. What the host's module parameters say does not matter.
        for (option, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")] {
            mount::fsconfig_set_string(&context, option, value).map_err(fault("set options"))?;
        }
        if let Some(label) = self.selinux_context {
            mount::fsconfig_set_string(&context, "context", label).map_err(fault("set context"))?;
        }
        mount::fsconfig_create(&context).map_err(fault("create overlay"))?;
        let mut attributes = MountAttrFlags::empty();
        if self.read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(mount_fault("fsmount", subject))
    }
}

/// A clone of the mount that `fd` is in, rooted at `fd`, attached nowhere.
pub(crate) fn detached_clone(subject: &str, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    mount::open_tree(fd, "", flags).map_err(mount_fault("open_tree", subject))
}

/// A clone whose owners are mapped through a user namespace.
pub(crate) fn idmapped_clone(
    subject: &str,
    fd: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let clone = detached_clone(subject, fd)?;
    map_owners(subject, clone.as_fd(), user_namespace)?;
    Ok(clone)
}

/// Maps the owners in a mount that nobody uses yet.
pub(crate) fn map_owners(subject: &str, mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<()> {
    use pinnace_sys::mount::{Attributes, Reach, change};
    change(mount, Reach::Mount, &Attributes::default().mapped(user_namespace))
        .map_err(mount_fault("map owners", subject))
}
