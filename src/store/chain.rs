//! Chains: what a list of layers means as one file system.
//!
//! Layers are stored without knowledge of what they are stacked on. Four things can only be said
//! about a chain:
//!
//! - the same layer twice: overlayfs refuses that; the lower one has no effect, so it is dropped;
//! - a layer with an opaque root hides all below it: they are dropped;
//! - a directory that a layer implies without an entry looks like the same directory further down.
//!   overlayfs takes the attributes of a merged directory from the top layer that has it, so a
//!   chain where this matters gets a *fixup*: a small top layer with just those directories;
//! - a directory with whiteouts that no other layer has: overlayfs hides whiteouts only where it
//!   merges directories and lists them as broken files elsewhere. The fixup gets that directory
//!   too, so that there is something to merge.
//!
//! ```text
//! chains/<hex of the chain>/     the directories, nothing else
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::{self, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::Inner;
use crate::digest::DiffId;
use crate::error::{Error, Result};
use crate::layer::ingest::Work;
use crate::layer::{Layer, Ownership};

const TREE: &str = "tree";
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DEFAULT: Ownership = Ownership { mode: 0o755, uid: 0, gid: 0 };

/// The layers of a chain that count, top first.
pub(crate) struct Stack {
    pub(crate) layers: Vec<Arc<Layer>>,
}

impl Stack {
    /// From the layers base first.
    pub(crate) fn of(base_first: &[Arc<Layer>]) -> Self {
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        for layer in base_first.iter().rev() {
            if seen.insert(layer.info.diff_id) {
                layers.push(Arc::clone(layer));
            }
            if layer.info.root_opaque {
                break;
            }
        }
        Self { layers }
    }

    /// The layer that says how the root looks, and how.
    pub(crate) fn root(&self) -> (Option<usize>, Ownership) {
        let explicit = self.layers.iter().position(|layer| layer.info.root.is_some());
        let ownership = explicit.and_then(|index| self.layers.get(index)?.info.root).unwrap_or(DEFAULT);
        (explicit, ownership)
    }

    pub(crate) fn may_need_fixup(&self) -> bool {
        // Below the base layer there is nothing that an implied directory could look like.
        self.layers.iter().rev().skip(1).any(|layer| !layer.info.implicit.is_empty())
            || self.layers.iter().any(|layer| !layer.info.with_whiteouts.is_empty())
    }

    /// A name for this stack.
    pub(crate) fn name(&self) -> String {
        let mut hasher = crate::digest::Hasher::new(crate::digest::Algorithm::Sha256);
        for layer in &self.layers {
            hasher.update(layer.info.diff_id.to_string().as_bytes());
            hasher.update(b"\n");
        }
        hasher.finish().hex()
    }
}

/// How a directory looks.
struct Look {
    ownership: Ownership,
    times: Timestamps,
    xattrs: Vec<(CString, Vec<u8>)>,
}

impl Look {
    fn is_default(&self) -> bool {
        self.ownership == DEFAULT && self.xattrs.is_empty()
    }
}

/// What one layer says about a path.
enum Answer {
    Nothing,
    /// Something that is not a directory is there or on the way: nothing below is visible.
    Hidden,
    Directory {
        dir: OwnedFd,
        /// Nothing further down is visible.
        opaque: bool,
    },
}

impl Inner {
    /// The fixup of a stack, if it needs one: its name and a descriptor of it.
    pub(crate) fn fixup(
        self: &Arc<Self>,
        stack: &Stack,
        roots: &[Arc<OwnedFd>],
    ) -> Result<Option<(String, Arc<OwnedFd>)>> {
        if !stack.may_need_fixup() {
            return Ok(None);
        }
        let name = stack.name();
        let mut known = self.fixups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fixup) = known.get(&name) {
            return Ok(fixup.clone().map(|fd| (name, fd)));
        }
        let looks = looks(stack, roots).map_err(Error::io("look through the layers of", &name))?;
        let fixup = if looks.is_empty() {
            None
        } else {
            if !self.chains.contains(&name)? {
                let work = Work::new(self)?;
                let tree = work.dir.create(TREE)?;
                build(tree.as_fd(), &looks).map_err(Error::io("build", tree.path()))?;
                work.dir.rename(TREE, &self.chains, &name)?;
            }
            let dir = self.chains.open(&name)?;
            Some(Arc::new(fs::openat(&dir, ".", DIRECTORY, Mode::empty()).map_err(Error::io("open", &name))?))
        };
        known.insert(name.clone(), fixup.clone());
        Ok(fixup.map(|fd| (name, fd)))
    }

    pub(crate) fn layers_of(&self, diff_ids: &[DiffId]) -> Result<Vec<Arc<Layer>>> {
        let state = self.state();
        let found = diff_ids
            .iter()
            .map(|diff_id| state.layers.get(diff_id).cloned().ok_or(Error::LayerNotFound(*diff_id)));
        found.collect()
    }
}

/// The directories that need fixing, with their parents, by path.
fn looks(stack: &Stack, roots: &[Arc<OwnedFd>]) -> Result<BTreeMap<Vec<u8>, Look>, Errno> {
    let decoded = |paths: &[String]| paths.iter().filter_map(|path| hex::decode(path).ok()).collect();
    let implicit: Vec<HashSet<Vec<u8>>> =
        stack.layers.iter().map(|layer| decoded(&layer.info.implicit)).collect();
    let with_whiteouts: Vec<HashSet<Vec<u8>>> =
        stack.layers.iter().map(|layer| decoded(&layer.info.with_whiteouts)).collect();
    let mut looks = BTreeMap::new();
    for path in implicit.iter().flatten().collect::<HashSet<_>>() {
        // Only where the top layer that has the directory has it without an entry.
        let Some(effective) = effective(path, roots, &implicit)? else { continue };
        let look = effective.look.filter(|look| effective.top_is_implicit && !look.is_default());
        if let Some(look) = look {
            looks.insert(path.clone(), look);
        }
    }
    for path in with_whiteouts.iter().flatten().collect::<HashSet<_>>() {
        let Some(effective) = effective(path, roots, &implicit)? else { continue };
        if !is_merged(path, roots)? && !looks.contains_key(path) {
            looks.insert(path.clone(), effective.look.unwrap_or_else(default_look));
        }
    }
    // The parents become part of the top layer too, so they need their own look there.
    for path in looks.keys().cloned().collect::<Vec<_>>() {
        for (slash, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = path[..slash].to_vec();
            if let Entry::Vacant(place) = looks.entry(parent) {
                let look = effective(place.key(), roots, &implicit)?.and_then(|effective| effective.look);
                place.insert(look.unwrap_or_else(default_look));
            }
        }
    }
    Ok(looks)
}

fn default_look() -> Look {
    let time = Timespec { tv_sec: 0, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Look { ownership: DEFAULT, times, xattrs: Vec::new() }
}

/// A visible directory of the chain.
struct Effective {
    /// The top layer that has it has no entry for it.
    top_is_implicit: bool,
    /// How the first layer that has an entry says it looks.
    look: Option<Look>,
}

/// What a directory is in the chain; `None` if it is not visible.
fn effective(
    path: &[u8],
    roots: &[Arc<OwnedFd>],
    implicit: &[HashSet<Vec<u8>>],
) -> Result<Option<Effective>, Errno> {
    let mut top = None;
    for (root, implicit) in roots.iter().zip(implicit) {
        match ask(root.as_fd(), path)? {
            Answer::Nothing => {}
            Answer::Hidden => break,
            Answer::Directory { dir, opaque } => {
                let is_implicit = implicit.contains(path);
                let top_is_implicit = *top.get_or_insert(is_implicit);
                if !is_implicit {
                    return Ok(Some(Effective { top_is_implicit, look: Some(look(&dir)?) }));
                }
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(top.map(|top_is_implicit| Effective { top_is_implicit, look: None }))
}

/// Whether more than one layer shows through at a directory.
fn is_merged(path: &[u8], roots: &[Arc<OwnedFd>]) -> Result<bool, Errno> {
    let mut found = 0;
    for root in roots {
        match ask(root.as_fd(), path)? {
            Answer::Nothing => {}
            Answer::Hidden => break,
            Answer::Directory { opaque, .. } => {
                found += 1;
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(found > 1)
}

fn ask(root: BorrowedFd<'_>, path: &[u8]) -> Result<Answer, Errno> {
    let mut dir = fs::openat(root, ".", DIRECTORY, Mode::empty())?;
    let mut opaque = false;
    for name in path.split(|byte| *byte == b'/') {
        dir = match fs::openat(&dir, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            // An opaque parent without the name hides it as well.
            Err(Errno::NOENT) => return Ok(if opaque { Answer::Hidden } else { Answer::Nothing }),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Answer::Hidden),
            Err(errno) => return Err(errno),
        };
        let mut value = [0; 8];
        match fs::fgetxattr(&dir, c"trusted.overlay.opaque", &mut value) {
            Ok(count) => opaque |= value.get(..count) == Some(b"y"),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Answer::Directory { dir, opaque })
}

fn look(dir: &OwnedFd) -> Result<Look, Errno> {
    let stat: Stat = fs::fstat(dir)?;
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds };
    let mut names = vec![0_u8; 64 << 10];
    let length = match fs::flistxattr(dir, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno),
    };
    let mut xattrs = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut value = vec![0_u8; 64 << 10];
        let length = fs::fgetxattr(dir, &name, &mut value[..])?;
        value.truncate(length);
        xattrs.push((name, value));
    }
    let ownership = Ownership { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
    Ok(Look { ownership, times: Timestamps { last_access: time, last_modification: time }, xattrs })
}

fn build(top: BorrowedFd<'_>, looks: &BTreeMap<Vec<u8>, Look>) -> Result<(), Errno> {
    fs::fchmod(top, Mode::from_raw_mode(0o755))?;
    // In this order parents come before their children.
    for path in looks.keys() {
        fs::mkdirat(top, path.as_slice(), Mode::from_raw_mode(0o700))?;
    }
    for (path, look) in looks.iter().rev() {
        let dir = fs::openat(top, path.as_slice(), DIRECTORY, Mode::empty())?;
        let Ownership { mode, uid, gid } = look.ownership;
        fs::fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        for (name, value) in &look.xattrs {
            match fs::fsetxattr(&dir, name, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(errno) => return Err(errno),
            }
        }
        fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
        fs::futimens(&dir, &look.times)?;
    }
    Ok(())
}

/// The fixups of the chains that were asked for: `None` where none is needed.
pub(crate) type Fixups = std::collections::HashMap<String, Option<Arc<OwnedFd>>>;
