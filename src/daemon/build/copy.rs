//! COPY and ADD: files of a tree become a layer.

use std::collections::BTreeSet;
use std::io::BufWriter;
use std::os::fd::{AsFd, BorrowedFd};

use pinnace_build::apply::absolute;
use pinnace_build::pattern::Pattern;
use pinnace_spec::user;
use pinnace_store::archive::{Entry, EntryKind, Writer, Xattrs};
use pinnace_store::{Algorithm, DiffId, LayerIngest, Lease, Store};
use rustix::fs::{self, FileType, OFlags, Stat};

use super::archive;
use super::key::Key;
use super::tree::{self, Found, shown};
use crate::error::Error;

const BUFFER_BYTES: usize = 256 << 10;

/// A COPY or ADD with its words in place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) keyword: &'static str,
    pub(crate) sources: Vec<String>,
    /// Files whose content stands in the Dockerfile: name and content.
    pub(crate) documents: Vec<(String, Vec<u8>)>,
    pub(crate) destination: String,
    pub(crate) working_dir: String,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<u32>,
    pub(crate) parents: bool,
    pub(crate) excludes: Vec<Pattern>,
    /// Archives among the sources are unpacked.
    pub(crate) unpack: bool,
    /// Files keep their owners: they come from another image.
    pub(crate) keep_owners: bool,
}

/// A source that was found: its path in the tree, and what of it the destination keeps.
#[derive(Debug)]
pub(crate) struct Selected {
    path: String,
    is_directory: bool,
    /// Directories above it that are kept, with `--parents`.
    kept: String,
}

impl Plan {
    /// Finds the sources.
    pub(crate) fn select(&self, root: BorrowedFd<'_>) -> Result<Vec<Selected>, Error> {
        let mut selected = Vec::new();
        for source in &self.sources {
            let (skipped, pattern) = match source.split_once("/./") {
                Some((before, after)) if self.parents => (format!("{before}/"), format!("{before}/{after}")),
                _ => (String::new(), source.clone()),
            };
            let found = tree::glob(root, &pattern)?;
            if found.is_empty() {
                return Err(Error::State {
                    subject: format!("{source:?}"),
                    state: "not found".to_owned(),
                    hint: "a source is below the context, and .dockerignore does not leave it out".to_owned(),
                });
            }
            for path in found {
                let Some(stat) = tree::look(root, &path)? else { continue };
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let skipped = pinnace_build::ignore::clean(&skipped);
                let below = path.strip_prefix(skipped.as_str()).unwrap_or(&path).trim_start_matches('/');
                let kept = match (self.parents, is_directory) {
                    (false, _) => String::new(),
                    (true, true) => below.to_owned(),
                    (true, false) => below.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned(),
                };
                selected.push(Selected { path, is_directory, kept });
            }
        }
        Ok(selected)
    }

    /// Adds what the step takes to its key: names, modes, owners, content; never times.
    pub(crate) fn digest(
        &self,
        root: Option<BorrowedFd<'_>>,
        selected: &[Selected],
        key: &mut Key,
    ) -> Result<(), Error> {
        key.text(&self.destination);
        key.text(&self.working_dir);
        key.text(self.chown.as_deref().unwrap_or_default());
        key.text(&format!("{:?} {} {} {:?}", self.chmod, self.parents, self.unpack, self.excludes));
        for (name, content) in &self.documents {
            key.text(name);
            key.add(content);
        }
        for source in selected {
            let Some(root) = root else { continue };
            key.text(&source.kept);
            // The name of a directory does not arrive, that of a file may.
            key.text(if source.is_directory { "" } else { base(&source.path) });
            hash(root, &source.path, &self.excludes, key)?;
        }
        Ok(())
    }

    /// Makes the layer.
    pub(crate) fn write(
        &self,
        store: &Store,
        lease: &Lease,
        root: Option<BorrowedFd<'_>>,
        selected: &[Selected],
        rootfs: BorrowedFd<'_>,
        times: Times,
    ) -> Result<DiffId, Error> {
        let destination = absolute(&self.working_dir, &self.destination);
        let real = tree::real_path(rootfs, &destination)?;
        let existing = if real.is_empty() { Some(FileType::Directory) } else { kind_at(rootfs, &real)? };
        let named_directory =
            self.destination.ends_with('/') || self.destination.ends_with("/.") || self.destination == ".";
        let count = selected.len() + self.documents.len();
        if count > 1 && !named_directory {
            return Err(Error::invalid(
                self.keyword,
                "with more than one source file, the destination must be a directory and end with a /",
            ));
        }
        let into_directory = named_directory || existing == Some(FileType::Directory) || self.parents;
        if existing.is_some_and(|kind| kind != FileType::Directory) && named_directory {
            return Err(Error::invalid(self.keyword, format!("{destination} is not a directory")));
        }
        let owner = self.chown.as_deref().map(|text| owner(rootfs, text)).transpose()?;
        let ingest = store.ingest_layer(lease, Algorithm::Sha256)?;
        let out = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, ingest));
        let mut layer = Layer {
            out,
            rootfs,
            times,
            owner,
            chmod: self.chmod,
            keep_owners: self.keep_owners,
            made: BTreeSet::new(),
        };
        for source in selected {
            let Some(root) = root else { continue };
            let mut at = real.clone();
            if !source.kept.is_empty() {
                at = join(&at, &source.kept);
            }
            let is_archive = self.unpack && !source.is_directory && archive::is_archive(root, &source.path)?;
            if is_archive {
                layer.directory(&at)?;
                let file =
                    tree::open(root, &source.path, OFlags::RDONLY).map_err(io_error("open", &source.path))?;
                archive::unpack(file.into(), &source.path, &at, &mut layer)?;
            } else if source.is_directory {
                if existing.is_some_and(|kind| kind != FileType::Directory) {
                    return Err(Error::invalid(
                        self.keyword,
                        format!("cannot copy a directory to {destination}, which is none"),
                    ));
                }
                layer.tree(root, &source.path, &at, &self.excludes)?;
            } else {
                let target = if into_directory { join(&at, base(&source.path)) } else { at.clone() };
                if target.is_empty() {
                    return Err(Error::invalid(self.keyword, "the root is a directory"));
                }
                layer.above(&target)?;
                layer.tree(root, &source.path, &target, &self.excludes)?;
            }
        }
        for (name, content) in &self.documents {
            let target = if into_directory { join(&real, name) } else { real.clone() };
            layer.above(&target)?;
            layer.document(&target, content)?;
        }
        layer.finish()
    }
}

/// Times of what a step makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Now, in seconds since the epoch.
    pub(crate) now: i64,
    /// Later times are set back to this one.
    pub(crate) most: Option<i64>,
}

impl Times {
    pub(crate) fn of(self, time: i64) -> i64 {
        self.most.map_or(time, |most| time.min(most))
    }
}

/// A layer that is being written.
pub(crate) struct Layer<'a> {
    out: Writer<BufWriter<LayerIngest>>,
    rootfs: BorrowedFd<'a>,
    times: Times,
    owner: Option<(u32, u32)>,
    chmod: Option<u32>,
    keep_owners: bool,
    /// Directories that are in it.
    made: BTreeSet<String>,
}

impl Layer<'_> {
    /// An entry as it is.
    pub(crate) fn entry(
        &mut self,
        entry: &Entry<'_>,
        content: Option<&mut dyn std::io::Read>,
    ) -> Result<(), Error> {
        let entry = Entry {
            uid: self.owner.map_or(entry.uid, |(uid, _)| uid),
            gid: self.owner.map_or(entry.gid, |(_, gid)| gid),
            mtime: self.times.of(entry.mtime),
            ..*entry
        };
        if entry.kind == EntryKind::Directory {
            self.made.insert(shown(entry.path));
        }
        let written = match content {
            Some(content) => self.out.file(&entry, content),
            None => self.out.entry(&entry),
        };
        written.map_err(Error::io("write a layer with", shown(entry.path)))
    }

    /// The directories above a path, as they are, or as they are made.
    pub(crate) fn above(&mut self, path: &str) -> Result<(), Error> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    /// A directory and those above it, as they are, or as they are made.
    pub(crate) fn directory(&mut self, path: &str) -> Result<(), Error> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for prefix in ends.filter_map(|end| path.get(..end)).filter(|prefix| !prefix.is_empty()) {
            if self.made.contains(prefix) {
                continue;
            }
            let known = match tree::open(self.rootfs, prefix, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => {
                    let stat = fs::fstat(&dir).map_err(io_error("look at", prefix))?;
                    let xattrs =
                        pinnace_store::archive::xattrs(dir.as_fd()).map_err(io_error("look at", prefix))?;
                    Some((stat, xattrs))
                }
                Err(_) => None,
            };
            let none = Xattrs::new();
            let entry = match &known {
                Some((stat, xattrs)) => described(prefix.as_bytes(), EntryKind::Directory, stat, xattrs),
                None => Entry {
                    path: prefix.as_bytes(),
                    kind: EntryKind::Directory,
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                    mtime: self.times.of(self.times.now),
                    xattrs: &none,
                },
            };
            self.made.insert(prefix.to_owned());
            self.out.entry(&entry).map_err(Error::io("write a layer with", prefix))?;
        }
        Ok(())
    }

    /// A file or the content of a directory, to this path.
    fn tree(
        &mut self,
        root: BorrowedFd<'_>,
        source: &str,
        at: &str,
        excludes: &[Pattern],
    ) -> Result<(), Error> {
        let target_exists = at.is_empty() || kind_at(self.rootfs, at)? == Some(FileType::Directory);
        let mut links = std::collections::HashMap::<(u64, u64), Vec<u8>>::new();
        tree::walk(root, source, excludes, &mut |found: Found<'_>| {
            let path = match (at.is_empty(), found.path.is_empty()) {
                (true, _) => found.path.to_vec(),
                (false, true) => at.as_bytes().to_vec(),
                (false, false) => [at.as_bytes(), b"/", found.path].concat(),
            };
            let is_top = found.path.is_empty();
            if is_top && found.kind == FileType::Directory {
                // A directory that is there stays as it is; one that is not becomes like the source.
                if target_exists {
                    return self.directory(at);
                }
                self.above(at)?;
            }
            if path.is_empty() {
                return Ok(());
            }
            let linked = found.stat.st_nlink > 1 && found.kind != FileType::Directory;
            let first = links.get(&(found.stat.st_dev, found.stat.st_ino)).cloned().filter(|_| linked);
            if linked && first.is_none() {
                links.insert((found.stat.st_dev, found.stat.st_ino), path.clone());
            }
            let device = (fs::major(found.stat.st_rdev), fs::minor(found.stat.st_rdev));
            let kind = match (&first, found.kind) {
                (Some(first), _) => EntryKind::HardLink(first),
                (None, FileType::RegularFile) => {
                    EntryKind::File { size: u64::try_from(found.stat.st_size).unwrap_or(0) }
                }
                (None, FileType::Directory) => EntryKind::Directory,
                (None, FileType::Symlink) => EntryKind::Symlink(&found.target),
                (None, FileType::CharacterDevice) => EntryKind::Char { major: device.0, minor: device.1 },
                (None, FileType::BlockDevice) => EntryKind::Block { major: device.0, minor: device.1 },
                (None, FileType::Fifo) => EntryKind::Fifo,
                (None, _) => return Ok(()),
            };
            let mut entry = described(&path, kind, &found.stat, &found.xattrs);
            if !self.keep_owners {
                (entry.uid, entry.gid) = (0, 0);
            }
            if let Some(mode) = self.chmod.filter(|_| found.kind != FileType::Symlink) {
                entry.mode = mode;
            }
            let is_file = matches!(kind, EntryKind::File { .. });
            let mut content = found.content.filter(|_| is_file);
            self.entry(&entry, content.as_mut().map(|file| file as &mut dyn std::io::Read))
        })
    }

    fn document(&mut self, path: &str, content: &[u8]) -> Result<(), Error> {
        let kind = EntryKind::File { size: content.len() as u64 };
        let mode = self.chmod.unwrap_or(0o644);
        let entry =
            Entry { path: path.as_bytes(), kind, mode, uid: 0, gid: 0, mtime: self.times.now, xattrs: &[] };
        self.entry(&entry, Some(&mut { content }))
    }

    fn finish(self) -> Result<DiffId, Error> {
        let ended =
            self.out.finish().and_then(|out| out.into_inner().map_err(std::io::IntoInnerError::into_error));
        let ingest = ended.map_err(Error::io("write", "a layer"))?;
        Ok(ingest.finish_new()?.diff_id)
    }
}

/// A layer with one directory, if it is not there yet.
pub(crate) fn make_directory(
    store: &Store,
    lease: &Lease,
    rootfs: BorrowedFd<'_>,
    path: &str,
    times: Times,
) -> Result<Option<DiffId>, Error> {
    let real = tree::real_path(rootfs, path)?;
    match if real.is_empty() { Some(FileType::Directory) } else { kind_at(rootfs, &real)? } {
        Some(FileType::Directory) => return Ok(None),
        Some(_) => return Err(Error::invalid("WORKDIR", format!("{path} is not a directory"))),
        None => {}
    }
    let ingest = store.ingest_layer(lease, Algorithm::Sha256)?;
    let out = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, ingest));
    let mut layer =
        Layer { out, rootfs, times, owner: None, chmod: None, keep_owners: false, made: BTreeSet::new() };
    layer.directory(&real)?;
    layer.finish().map(Some)
}

/// Adds a file or directory to a key.
pub(crate) fn hash(
    root: BorrowedFd<'_>,
    path: &str,
    excludes: &[Pattern],
    key: &mut Key,
) -> Result<(), Error> {
    tree::walk(root, path, excludes, &mut |found: Found<'_>| {
        key.add(found.path);
        let stat = &found.stat;
        key.text(&format!("{:o} {} {} {:x}", stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev));
        key.add(&found.target);
        for (name, value) in &found.xattrs {
            key.add(name);
            key.add(value);
        }
        if let Some(mut content) = found.content {
            let mut hasher = pinnace_store::Hasher::new(Algorithm::Sha256);
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                let count = std::io::Read::read(&mut content, &mut buffer)
                    .map_err(Error::io("read", shown(found.path)))?;
                if count == 0 {
                    break;
                }
                hasher.update(buffer.get(..count).unwrap_or_default());
            }
            key.text(&hasher.finish().hex());
        }
        Ok(())
    })
}

fn described<'a>(path: &'a [u8], kind: EntryKind<'a>, stat: &Stat, xattrs: &'a Xattrs) -> Entry<'a> {
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        xattrs,
    }
}

fn kind_at(rootfs: BorrowedFd<'_>, path: &str) -> Result<Option<FileType>, Error> {
    Ok(tree::look(rootfs, path)?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
}

fn io_error(op: &'static str, path: &str) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::io(op, path)(errno.into())
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `user`, `user:group`, by name in the image's accounts or by number; a number alone is the group too.
fn owner(rootfs: BorrowedFd<'_>, text: &str) -> Result<(u32, u32), Error> {
    if let Ok(id) = text.parse::<u32>() {
        return Ok((id, id));
    }
    let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
    if let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) {
        return Ok((uid, gid));
    }
    let user = user::resolve(rootfs, &user::Request { image_user: text, ..user::Request::default() })?;
    Ok((user.uid, user.gid))
}
