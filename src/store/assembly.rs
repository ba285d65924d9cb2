//! Overlay mounts that are put together by path.
//!
//! Before Linux 6.13 overlayfs takes its layers as paths only, and before 6.15 they have to be in
//! the mount namespace of the caller (`clone_private_mount` of fs/namespace.c). The thread of
//! [`mounts`](crate::mounts) is where the layers are; what else an overlay needs is attached there
//! as long as the call takes:
//!
//! ```text
//! /overlay (tmpfs)
//!   base/         a clone of the store's root
//!   0, 1, ...     lower layers, top first: links to /sha256-<hex> or into base/, or mounts
//!   upper, work   links into base/, so that both are in one mount
//!   made/         the overlay
//! ```
//!
//! overlayfs keeps mounts of its own, so all of this goes when the overlay is made. It is made by
//! mount(2) in that directory: fsconfig(2) takes 255 bytes at most and appends layers only since
//! Linux 6.8, mount(2) takes a page, which is enough for 500 names like these.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use pinnace_sys::mount::{Attributes, PRIVATE, RDONLY, Reach, change};
use rustix::fs::{self, Mode};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, MoveMountFlags};

use crate::error::{Error, Result};
use crate::mounts::{CLONE, detach, mount_fault, tmpfs};

/// In the private namespace. No name of a layer is that short.
const PLACE: &str = "overlay";
const BASE: &str = "base";
const UPPER: &str = "upper";
const WORK: &str = "work";
const MADE: &str = "made";
/// mount(2) takes one page of options, with the terminator.
const OPTION_BYTES: usize = 4095;

/// An overlay to be made by the mount thread.
#[derive(Debug)]
pub(crate) struct Plan {
    /// For error texts.
    pub(crate) subject: String,
    /// A clone of the directory that paths start from.
    pub(crate) base: OwnedFd,
    /// Top layer first.
    pub(crate) lowers: Vec<Part>,
    /// The upper and the work directory, below the base.
    pub(crate) upper: Option<(String, String)>,
    /// Mount options besides the layers.
    pub(crate) options: Vec<String>,
    pub(crate) read_only: bool,
}

/// Where a lower layer is.
#[derive(Debug)]
pub(crate) enum Part {
    /// Attached in the private namespace under that name.
    Attached(String),
    /// Below the base.
    Below(String),
    /// A mount that is attached nowhere and that nobody else uses.
    Detached(Arc<OwnedFd>),
}

/// Makes an overlay that is attached nowhere. Runs on the mount thread.
pub(crate) fn assemble(root: &OwnedFd, plan: &Plan) -> Result<OwnedFd> {
    let subject = plan.subject.as_str();
    // A process that was killed in between may have left one.
    detach(root, PLACE)?;
    let made = make(root, plan);
    rustix::process::fchdir(root).map_err(mount_fault("change to the root", subject))?;
    detach(root, PLACE)?;
    let made = made?;
    if plan.read_only {
        change(made.as_fd(), Reach::Mount, &Attributes::setting(RDONLY))
            .map_err(mount_fault("make read-only", subject))?;
    }
    Ok(made)
}

fn make(root: &OwnedFd, plan: &Plan) -> Result<OwnedFd> {
    let fault = |step| mount_fault(step, &plan.subject);
    let place = tmpfs(&plan.subject)?;
    let directory = |at: &OwnedFd, name: &str| fs::mkdirat(at, name, Mode::from_raw_mode(0o700));
    let attach = |mount: &OwnedFd, at: &OwnedFd, name: &str| {
        directory(at, name)?;
        mount::move_mount(mount, "", at, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    };
    attach(&place, root, PLACE).map_err(fault("attach tmpfs"))?;
    // What is mounted below the store's root from now on is none of ours.
    change(plan.base.as_fd(), Reach::Mount, &Attributes::propagating(PRIVATE))
        .map_err(fault("make the store's root private"))?;
    attach(&plan.base, &place, BASE).map_err(fault("attach the store's root"))?;
    for (index, lower) in plan.lowers.iter().enumerate() {
        let name = index.to_string();
        match lower {
            Part::Attached(layer) => fs::symlinkat(format!("/{layer}"), &place, name),
            Part::Below(path) => fs::symlinkat(format!("{BASE}/{path}"), &place, name),
            Part::Detached(mount) => attach(mount, &place, &name),
        }
        .map_err(fault("attach a layer"))?;
    }
    if let Some((upper, work)) = &plan.upper {
        fs::symlinkat(format!("{BASE}/{upper}"), &place, UPPER)
            .and_then(|()| fs::symlinkat(format!("{BASE}/{work}"), &place, WORK))
            .map_err(fault("attach the writable layer"))?;
    }
    directory(&place, MADE).map_err(fault("mkdir"))?;
    rustix::process::fchdir(&place).map_err(fault("change to tmpfs"))?;
    let options = options(plan)?;
    #[allow(
        clippy::disallowed_methods,
        reason = "the working directory is a tmpfs of this private namespace"
    )]
    mount::mount("pinnace", MADE, "overlay", MountFlags::empty(), options.as_c_str())
        .map_err(fault("mount overlay"))?;
    mount::open_tree(&place, MADE, CLONE).map_err(fault("open_tree"))
}

fn options(plan: &Plan) -> Result<CString> {
    let lowers: Vec<String> = (0..plan.lowers.len()).map(|index| index.to_string()).collect();
    let mut options = vec![format!("lowerdir={}", lowers.join(":"))];
    if plan.upper.is_some() {
        options.push(format!("upperdir={UPPER},workdir={WORK}"));
    }
    options.extend(plan.options.iter().cloned());
    let options = options.join(",");
    if options.len() > OPTION_BYTES {
        return Err(Error::Limit { what: "length of the mount options", limit: OPTION_BYTES as u64 });
    }
    CString::new(options).map_err(|_| mount_fault("set options", &plan.subject)(Errno::INVAL))
}
