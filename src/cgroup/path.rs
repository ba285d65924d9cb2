//! [`CgroupPath`]: where a cgroup lies inside every hierarchy, proven harmless once.

use std::fmt;
use std::str::FromStr;

use crate::error::{CgroupError, Result};

/// NAME_MAX of kernfs.
const NAME_BYTES: usize = 255;
/// Keeps `mount point + path + interface file` below PATH_MAX.
const PATH_BYTES: usize = 3072;
/// Deeper than any kubelet or systemd tree; the kernel's own walk is linear in this.
const DEPTH: usize = 64;
const SLICE: &str = ".slice";

/// An absolute path inside a cgroup hierarchy: `/kubepods/burstable/pod1/c1`.
///
/// No empty, `.` or `..` component, no control character, bounded in length and depth.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// The root of the hierarchy.
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// The child of that name.
    pub fn join(&self, name: &str) -> Result<Self> {
        let joined = if self.is_root() { format!("/{name}") } else { format!("{}/{name}", self.0) };
        if name.is_empty() || name.contains('/') {
            return Err(invalid(name, "a name is not empty and has no slash"));
        }
        joined.parse()
    }

    /// The directory above, none for the root.
    pub fn parent(&self) -> Option<Self> {
        let cut = self.0.rfind('/').filter(|_| !self.is_root())?;
        Some(Self(if cut == 0 { "/".to_owned() } else { self.0[..cut].to_owned() }))
    }

    /// The last component, none for the root.
    pub fn name(&self) -> Option<&str> {
        self.0.rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// Whether this is the root of the hierarchy.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// With its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the leading slash, for *at calls below a mount's directory; empty for the root.
    pub(crate) fn relative(&self) -> &str {
        &self.0[1..]
    }

    /// Every ancestor below the root, nearest to the root first, without the path itself.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &str> {
        let relative = self.relative();
        relative.match_indices('/').map(move |(end, _)| &relative[..end])
    }

    /// Where systemd keeps a slice: each dash is a level, so `a-b.slice` is `/a.slice/a-b.slice`
    /// (systemd.slice(5)). `-.slice` is the root.
    pub fn from_slice(slice: &str) -> Result<Self> {
        let Some(stem) = slice.strip_suffix(SLICE) else {
            return Err(invalid(slice, "a slice ends in .slice"));
        };
        if stem == "-" {
            return Ok(Self::root());
        }
        let mut path = Self::root();
        let mut prefix = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return Err(invalid(slice, "a slice has no empty part between dashes"));
            }
            prefix.push_str(part);
            path = path.join(&format!("{prefix}{SLICE}"))?;
            prefix.push('-');
        }
        Ok(path)
    }

    /// The cgroup of a sandbox or container below the parent that a CRI client names.
    ///
    /// A parent in systemd form (`kubepods-pod1.slice`, with or without directories before it) gives
    /// `…/<prefix>-<id>.scope`; any other parent is a plain path and gives `…/<id>`.
    pub fn for_container(cgroup_parent: &str, prefix: &str, id: &str) -> Result<Self> {
        let last = cgroup_parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if last.ends_with(SLICE) {
            Self::from_slice(last)?.join(&format!("{prefix}-{id}.scope"))
        } else if cgroup_parent.is_empty() {
            Self::root().join(prefix)?.join(id)
        } else {
            cgroup_parent.parse::<Self>()?.join(id)
        }
    }
}

impl FromStr for CgroupPath {
    type Err = CgroupError;

    fn from_str(path: &str) -> Result<Self> {
        let Some(relative) = path.strip_prefix('/') else {
            return Err(invalid(path, "it must be absolute"));
        };
        let relative = relative.strip_suffix('/').unwrap_or(relative);
        if relative.is_empty() {
            return if path.len() == 1 { Ok(Self::root()) } else { Err(invalid(path, "an empty component")) };
        }
        if relative.len() > PATH_BYTES {
            return Err(invalid(path, "longer than 3072 bytes"));
        }
        let mut depth = 0;
        for component in relative.split('/') {
            depth += 1;
            match component {
                "" => return Err(invalid(path, "an empty component")),
                "." | ".." => return Err(invalid(path, "`.` and `..` are not allowed")),
                _ if component.len() > NAME_BYTES => {
                    return Err(invalid(path, "a component longer than 255 bytes"));
                }
                // NUL ends the path for the kernel; a newline would forge lines of /proc/<pid>/cgroup.
                _ if component.chars().any(char::is_control) => {
                    return Err(invalid(path, "a control character"));
                }
                // `pod1/memory.max` would be a directory where an interface file is expected.
                _ if component.starts_with("cgroup.") || component == "tasks" => {
                    return Err(invalid(path, "the name of an interface file"));
                }
                _ => {}
            }
        }
        if depth > DEPTH {
            return Err(invalid(path, "deeper than 64 levels"));
        }
        Ok(Self(format!("/{relative}")))
    }
}

impl TryFrom<&str> for CgroupPath {
    type Error = CgroupError;

    fn try_from(path: &str) -> Result<Self> {
        path.parse()
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn invalid(path: &str, reason: &'static str) -> CgroupError {
    // A hostile path may be megabytes; an error message need not be.
    CgroupError::InvalidPath { path: path.chars().take(NAME_BYTES).collect(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        text.parse().unwrap()
    }

    #[test]
    fn takes_what_kubelet_sends() {
        assert_eq!(path("/kubepods/burstable/pod1-2").as_str(), "/kubepods/burstable/pod1-2");
        assert_eq!(path("/kubepods/").as_str(), "/kubepods");
        assert!(path("/").is_root());
    }

    #[test]
    fn refuses_escapes_and_oversize() {
        let long_name = format!("/{}", "x".repeat(256));
        let long_path = "/x".repeat(1600);
        let deep = "/x".repeat(65);
        for bad in [
            "",
            "x",
            "x/y",
            "..",
            "/..",
            "/a/../b",
            "/a/./b",
            "//",
            "//a",
            "/a//b",
            "/a\0b",
            "/a\nb",
            "/a/tasks",
            "/a/cgroup.procs",
            &long_name,
            &long_path,
            &deep,
        ] {
            assert!(bad.parse::<CgroupPath>().is_err(), "{bad:?}");
        }
        for bad in ["", "..", "a/b", "/a", "a\0"] {
            assert!(path("/p").join(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn walks_up_and_down() {
        let leaf = path("/a/b/c");
        assert_eq!(leaf.parent(), Some(path("/a/b")));
        assert_eq!(path("/a").parent(), Some(CgroupPath::root()));
        assert_eq!(CgroupPath::root().parent(), None);
        assert_eq!(leaf.name(), Some("c"));
        assert_eq!(CgroupPath::root().name(), None);
        assert_eq!(leaf.ancestors().collect::<Vec<_>>(), ["a", "a/b"]);
    }

    #[test]
    fn slices_become_directories() {
        let slice = |text| CgroupPath::from_slice(text).unwrap().to_string();
        assert_eq!(slice("system.slice"), "/system.slice");
        assert_eq!(slice("a-b-c.slice"), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice("-.slice"), "/");
        for bad in ["", ".slice", "a", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice", "..slice/x.slice"] {
            assert!(CgroupPath::from_slice(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn containers_lie_below_the_parent_of_either_driver() {
        let container = |parent| CgroupPath::for_container(parent, "cri-pinnace", "c1").unwrap().to_string();
        assert_eq!(container("/kubepods/pod1"), "/kubepods/pod1/c1");
        assert_eq!(
            container("kubepods-pod1.slice"),
            "/kubepods.slice/kubepods-pod1.slice/cri-pinnace-c1.scope"
        );
        assert_eq!(
            container("/kubepods.slice/kubepods-pod1.slice"),
            "/kubepods.slice/kubepods-pod1.slice/cri-pinnace-c1.scope"
        );
        assert_eq!(container(""), "/cri-pinnace/c1");
        assert!(CgroupPath::for_container("/a/../..", "p", "c").is_err());
        assert!(CgroupPath::for_container("/a", "p", "../c").is_err());
    }
}
