//! Root file systems: overlay mounts, from descriptors where the kernel takes them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::assembly::{Part, Plan};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::mounts::{CLONE, Mounts, context_fault, mount_fault};

/// `OVL_MAX_STACK` of fs/overlayfs/params.h.
pub(crate) const MAX_LOWERS: usize = 500;

/// The upper directory stays a plain difference that can be exported: no redirects, no data
/// elsewhere, no index. What the host's module parameters say does not matter.
const PLAIN: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// How the kernel is told what an overlay is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// By descriptor: Linux 6.13, and 6.15 for mounts that are attached nowhere.
    Descriptors,
    /// By path, in the private mount namespace.
    Paths,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptors",
            Self::Paths => "paths",
        })
    }
}

/// A lower layer.
#[derive(Clone, Debug)]
pub(crate) struct Lower {
    pub(crate) root: Arc<OwnedFd>,
    pub(crate) place: Place,
}

/// Where a lower layer can be found by path.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Among the mounts of the private namespace, under that name.
    Mounts(String),
    /// Below the store's root.
    Store(String),
    /// Nowhere: a mount that was made for this overlay.
    Nowhere,
}

/// The parts of an overlay.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    /// For error texts.
    pub(crate) subject: &'a str,
    /// Top layer first.
    pub(crate) lowers: &'a [Lower],
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
    /// The same two below the store's root.
    pub(crate) upper_path: String,
    pub(crate) work_path: String,
    pub(crate) volatile: bool,
}

impl Overlay<'_> {
    /// Mounts the overlay from descriptors; the mount is attached nowhere.
    pub(crate) fn mount_descriptors(&self) -> Result<OwnedFd> {
        let subject = self.subject;
        self.check_height()?;
        let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(mount_fault("fsopen overlay", subject))?;
        let fault = |step| context_fault(step, subject, context.as_fd());
        // Shown as the source in mountinfo.
        mount::fsconfig_set_string(&context, "source", "pinnace").map_err(fault("set source"))?;
        for lower in self.lowers {
            mount::fsconfig_set_fd(&context, "lowerdir+", lower.root.as_fd())
                .map_err(fault("set lowerdir+"))?;
        }
        if let Some(upper) = &self.upper {
            mount::fsconfig_set_fd(&context, "upperdir", upper.upper).map_err(fault("set upperdir"))?;
            mount::fsconfig_set_fd(&context, "workdir", upper.work).map_err(fault("set workdir"))?;
            if upper.volatile {
                mount::fsconfig_set_flag(&context, "volatile").map_err(fault("set volatile"))?;
            }
        }
        for (option, value) in PLAIN {
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

    /// Mounts the overlay by paths below the store's root; the mount is attached nowhere.
    pub(crate) fn mount_paths(&self, mounts: &Mounts, store: &Dir) -> Result<OwnedFd> {
        self.check_height()?;
        let part = |lower: &Lower| match &lower.place {
            Place::Mounts(name) => Part::Attached(name.clone()),
            Place::Store(path) => Part::Below(path.clone()),
            Place::Nowhere => Part::Detached(Arc::clone(&lower.root)),
        };
        let mut options: Vec<String> =
            PLAIN.iter().map(|(option, value)| format!("{option}={value}")).collect();
        if self.upper.as_ref().is_some_and(|upper| upper.volatile) {
            options.push("volatile".to_owned());
        }
        if let Some(label) = self.selinux_context {
            // Labels have commas, hence the quotation marks; nothing in a label may end them.
            if label.contains('"') {
                return Err(mount_fault("set context", self.subject)(Errno::INVAL));
            }
            options.push(format!("context=\"{label}\""));
        }
        mounts.assemble(Plan {
            subject: self.subject.to_owned(),
            base: detached_clone(self.subject, store.as_fd())?,
            lowers: self.lowers.iter().map(part).collect(),
            upper: self.upper.as_ref().map(|upper| (upper.upper_path.clone(), upper.work_path.clone())),
            options,
            read_only: self.read_only,
        })
    }

    fn check_height(&self) -> Result<()> {
        if self.lowers.len() > MAX_LOWERS {
            return Err(Error::TooManyLayers { count: self.lowers.len(), limit: MAX_LOWERS });
        }
        Ok(())
    }
}

/// A clone of the mount that `fd` is in, rooted at `fd`, attached nowhere.
pub(crate) fn detached_clone(subject: &str, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    mount::open_tree(fd, "", CLONE).map_err(mount_fault("open_tree", subject))
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
