//! Which network pods get: the first good list in the configured directories.
//!
//! Files are taken directory by directory, in lexical order of their names. A file that is no network is set aside with
//! its reason. If it was one before, the network that it described stays: half a write must not send pods elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::list::{CONFIG_BYTES_MAX, ListError, NetworkList};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("read")]
    Io(#[from] io::Error),
    /// It is larger than any configuration.
    #[error("larger than {CONFIG_BYTES_MAX} bytes")]
    TooLarge,
    /// It is no file.
    #[error("not a regular file")]
    NotAFile,
    /// It is no network.
    #[error(transparent)]
    List(#[from] ListError),
}

/// A file or directory that was set aside, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub path: PathBuf,
    /// Why, with all causes.
    pub reason: String,
    /// What it described before is still used.
    pub kept: bool,
}

/// What the directories hold.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The network of pods.
    pub network: Option<Arc<NetworkList>>,
    /// What was set aside.
    pub problems: Vec<Problem>,
    /// Whether there is any file that looks like a configuration.
    pub found_any: bool,
    good: BTreeMap<PathBuf, Arc<NetworkList>>,
    seen: Vec<Stamp>,
}

/// What changes when a file does, be it replaced or written in place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: PathBuf) -> Option<Self> {
        let found = std::fs::metadata(&path).ok()?;
        Some(Self {
            path,
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// The files of directories, and those of directories below, in which plugins of a network can be.
    fn all(dirs: &[PathBuf]) -> Vec<Self> {
        let entries = |dir: &PathBuf| {
            let found = dir.read_dir().into_iter().flatten().flatten();
            let mut paths: Vec<_> = found.map(|entry| entry.path()).collect();
            paths.sort();
            paths
        };
        let mut all = Vec::new();
        for dir in dirs {
            for path in entries(dir) {
                if path.is_dir() {
                    all.extend(entries(&path).into_iter().filter_map(Stamp::of));
                }
                all.extend(Stamp::of(path));
            }
        }
        all
    }
}

impl Loaded {
    /// Reads the directories. One that does not exist is empty.
    #[must_use]
    pub fn read(dirs: &[PathBuf]) -> Self {
        Loaded::default().reread(dirs)
    }

    /// Reads them again, knowing what was there before.
    #[must_use]
    pub fn reread(&self, dirs: &[PathBuf]) -> Self {
        // Before the reading: what changes in between is read again.
        let mut next = Loaded { seen: Stamp::all(dirs), ..Loaded::default() };
        for dir in dirs {
            let files = match candidates(dir) {
                Ok(files) => files,
                Err(error) => {
                    next.problems.push(Problem { path: dir.clone(), reason: reason(&error), kept: false });
                    continue;
                }
            };
            for path in files {
                next.found_any = true;
                match read_network(&path) {
                    Ok(list) => {
                        next.good.insert(path.clone(), Arc::new(list));
                    }
                    // Gone between the listing and the reading.
                    Err(FileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        let before = self.good.get(&path);
                        next.problems.push(Problem {
                            path: path.clone(),
                            reason: reason(&error),
                            kept: before.is_some(),
                        });
                        if let Some(before) = before {
                            next.good.insert(path.clone(), Arc::clone(before));
                        }
                    }
                }
                if next.network.is_none() {
                    next.network = next.good.get(&path).cloned();
                }
            }
        }
        next
    }

    /// Reads them again if a file has changed since.
    #[must_use]
    pub fn reread_if_changed(&self, dirs: &[PathBuf]) -> Option<Self> {
        (Stamp::all(dirs) != self.seen).then(|| self.reread(dirs))
    }

    /// Why there is no network, in the words that operators of other runtimes know.
    pub fn ready(&self, dirs: &[PathBuf]) -> Result<Arc<NetworkList>, NotReady> {
        self.network.clone().ok_or_else(|| {
            let dirs = dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
            let problems = self
                .problems
                .iter()
                .map(|problem| format!("; {}: {}", problem.path.display(), problem.reason));
            NotReady(format!(
                "cni config uninitialized: no network config found in {dirs}{}",
                problems.collect::<String>()
            ))
        })
    }
}

/// There is no network that pods could be attached to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(pub String);

impl NotReady {
    /// The reason that the kubelet shows with the condition.
    pub const REASON: &'static str = "NetworkPluginNotReady";
}

fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn candidates(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match dir.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // Not `path.extension()`, to which a file called `.conf` has none: neither is a network.
        if matches!(path.extension().and_then(|it| it.to_str()), Some("conflist" | "conf" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_network(path: &Path) -> Result<NetworkList, FileError> {
    let bytes = read_bounded(path)?;
    if path.extension().is_some_and(|extension| extension != "conflist") {
        return Ok(NetworkList::parse_single(&bytes, path)?);
    }
    let mut list = NetworkList::parse_list(&bytes, path)?;
    if !list.load_only_inlined_plugins
        && let Some(parent) = path.parent()
    {
        // The name was checked to be a single component.
        let siblings = candidates(&parent.join(&list.name))?;
        for sibling in siblings.iter().filter(|path| path.extension().is_some_and(|it| it == "conf")) {
            list.append(&read_bounded(sibling)?)?;
        }
    }
    list.check_complete()?;
    Ok(list)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, FileError> {
    use rustix::fs::{Mode, OFlags};
    // A fifo must not make us wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    if !file.metadata()?.is_file() {
        return Err(FileError::NotAFile);
    }
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > CONFIG_BYTES_MAX) {
        return Err(FileError::TooLarge);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"ptp"}}]}}"#)
    }

    fn name(loaded: &Loaded) -> Option<&str> {
        loaded.network.as_ref().map(|network| network.name.as_str())
    }

    #[test]
    fn first_good_file_is_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("absent")];
        assert!(!Loaded::read(&dirs).found_any);
        std::fs::write(dir.path().join("20-b.conflist"), list("b")).unwrap();
        std::fs::write(dir.path().join("10-a.conflist"), "{").unwrap();
        std::fs::write(dir.path().join("00-readme"), list("readme")).unwrap();
        let loaded = Loaded::read(&dirs);
        assert_eq!(name(&loaded), Some("b"));
        assert_eq!(loaded.problems.len(), 1);
        assert!(loaded.problems[0].reason.contains("EOF"), "{:?}", loaded.problems);
        std::fs::write(dir.path().join("05-c.conf"), r#"{"cniVersion":"0.4.0","name":"c","type":"bridge"}"#)
            .unwrap();
        assert_eq!(name(&loaded.reread(&dirs)), Some("c"));
    }

    #[test]
    fn garbage_does_not_take_a_network_away_and_removal_does() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        let file = dir.path().join("10-a.conflist");
        std::fs::write(&file, list("a")).unwrap();
        std::fs::write(dir.path().join("20-b.conflist"), list("b")).unwrap();
        let loaded = Loaded::read(&dirs);
        for garbage in [r#"{"name":"a","plu"#, "", "[]", r#"{"name":"../a","plugins":[{"type":"x"}]}"#] {
            std::fs::write(&file, garbage).unwrap();
            let again = loaded.reread(&dirs).reread(&dirs);
            assert_eq!(name(&again), Some("a"), "{garbage}");
            assert!(again.problems[0].kept, "{:?}", again.problems);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(name(&loaded.reread(&dirs)), Some("b"));
    }

    #[test]
    fn every_change_of_a_file_is_seen_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("later")];
        let file = dir.path().join("10-a.conflist");
        std::fs::write(&file, "{").unwrap();
        let mut loaded = Loaded::read(&dirs);
        let mut changed = |what: &str| match loaded.reread_if_changed(&dirs) {
            Some(next) => loaded = next,
            None => panic!("{what} is not seen"),
        };
        std::fs::write(&file, list("a")).unwrap();
        changed("a file written in place");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/10-more.conf"), r#"{"type":"tuning"}"#).unwrap();
        changed("a plugin in the network's directory");
        std::fs::create_dir(dir.path().join("later")).unwrap();
        std::fs::write(dir.path().join("later/1.conf"), "{").unwrap();
        changed("a directory that was not there");
        std::fs::remove_file(&file).unwrap();
        changed("a file that is gone");
        assert!(loaded.reread_if_changed(&dirs).is_none());
    }

    #[test]
    fn readiness_names_directory_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        std::fs::write(dir.path().join("10-a.conflist"), vec![b' '; (1 << 20) + 1]).unwrap();
        std::fs::create_dir(dir.path().join("11-dir.conf")).unwrap();
        let refused = Loaded::read(&dirs).ready(&dirs).unwrap_err().to_string();
        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        assert!(refused.contains("10-a.conflist: larger than 1048576 bytes"), "{refused}");
        assert!(refused.contains("11-dir.conf: not a regular file"), "{refused}");
    }

    #[test]
    fn plugins_of_the_networks_directory_are_appended_unless_forbidden() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/10-more.conf"), r#"{"type":"tuning"}"#).unwrap();
        let file = dir.path().join("10-a.conflist");
        std::fs::write(&file, list("a")).unwrap();
        assert_eq!(Loaded::read(&dirs).network.unwrap().plugins.len(), 2);
        std::fs::write(&file, list("a").replace("{\"cni", "{\"loadOnlyInlinedPlugins\":true,\"cni")).unwrap();
        assert_eq!(Loaded::read(&dirs).network.unwrap().plugins.len(), 1);
    }
}
