//! Names: which unit a cgroup is.

use crate::error::{CgroupError, Result};
use crate::path::CgroupPath;

/// UNIT_NAME_MAX of systemd, without the NUL.
const UNIT_NAME_BYTES: usize = 255;
const SCOPE: &str = ".scope";
const SLICE: &str = ".slice";

/// A scope and the slice that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    name: String,
    slice: String,
}

impl Scope {
    /// The scope whose cgroup this is; none if systemd would not have put a scope there, which includes every path that
    /// is a plain one.
    pub fn of(path: &CgroupPath) -> Option<Self> {
        let name = path.name().filter(|name| is_unit(name, SCOPE))?;
        let parent = path.parent()?;
        let slice = slice_of(&parent)?;
        Some(Self { name: name.to_owned(), slice })
    }

    /// `pinnace-<id>.scope`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The slice that it is in, `-.slice` for the root.
    pub fn slice(&self) -> &str {
        &self.slice
    }
}

/// The slice whose cgroup this is, if it is one of systemd's form.
pub(crate) fn slice_of(path: &CgroupPath) -> Option<String> {
    let Some(name) = path.name() else { return Some("-.slice".to_owned()) };
    let own = is_unit(name, SLICE) && CgroupPath::from_slice(name).is_ok_and(|expected| expected == *path);
    own.then(|| name.to_owned())
}

impl CgroupPath {
    /// The directory of a parent that a CRI client names: a slice by its name, which is expanded, whatever directories
    /// come before it; anything else is a path.
    pub fn of_parent(cgroup_parent: &str) -> Result<Self> {
        let last = cgroup_parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if last.ends_with(SLICE) { Self::from_slice(last) } else { cgroup_parent.parse() }
    }

    /// A group of its own below such a parent: `<parent>-<name>.slice` below a slice, else a directory of that name.
    /// A dash of the name, which would be a level of slices, becomes an underscore, as the kubelet does it.
    pub fn group_below(cgroup_parent: &str, name: &str) -> Result<Self> {
        let parent = Self::of_parent(cgroup_parent)?;
        let Some(stem) = slice_of(&parent).filter(|_| cgroup_parent.ends_with(SLICE)) else {
            return parent.join(name);
        };
        let name = name.replace('-', "_");
        let slice = match stem.trim_end_matches(SLICE) {
            "-" => format!("{name}{SLICE}"),
            stem => format!("{stem}-{name}{SLICE}"),
        };
        if is_unit(&slice, SLICE) {
            Self::from_slice(&slice)
        } else {
            Err(CgroupError::InvalidPath { path: slice, reason: "not the name of a unit" })
        }
    }
}

/// Whether systemd takes it as the name of a unit of that kind (systemd.unit(5)).
fn is_unit(name: &str, suffix: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\' | b'@');
    name.len() <= UNIT_NAME_BYTES
        && name.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty() && stem.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(path: &str) -> Option<(String, String)> {
        Scope::of(&path.parse().unwrap()).map(|scope| (scope.name, scope.slice))
    }

    #[test]
    fn a_container_of_the_kubelet_is_a_scope_in_its_pods_slice() {
        let uid = "0b8d5b8e_8f0c_4f5c_9d1b_6a4f3c2d1e00";
        let slice = format!("kubepods-burstable-pod{uid}.slice");
        let path = CgroupPath::for_container(&slice, "pinnace", "c1").unwrap();
        assert_eq!(
            path.as_str(),
            format!("/kubepods.slice/kubepods-burstable.slice/{slice}/pinnace-c1.scope")
        );
        let scope = Scope::of(&path).unwrap();
        assert_eq!((scope.name(), scope.slice()), ("pinnace-c1.scope", slice.as_str()));
        // Guaranteed pods have no class between; some clients give the slice with its directories.
        let whole = "/kubepods.slice/kubepods-pod1_2.slice";
        let path = CgroupPath::for_container(whole, "pinnace", "c1").unwrap();
        assert_eq!(path.as_str(), format!("{whole}/pinnace-c1.scope"));
        assert_eq!(CgroupPath::of_parent(whole).unwrap().as_str(), whole);
        assert_eq!(CgroupPath::of_parent("kubepods-pod1_2.slice").unwrap().as_str(), whole);
    }

    #[test]
    fn what_systemd_would_have_elsewhere_is_no_scope() {
        assert_eq!(scope("/pinnace-c1.scope"), Some(("pinnace-c1.scope".into(), "-.slice".into())));
        for plain in [
            "/kubepods/pod1/c1",
            "/kubepods/pinnace-c1.scope",
            "/a.slice/b.slice/pinnace-c1.scope",
            "/a.slice/a-b.slice/c",
            "/a.slice/.scope",
            "/a.slice/pinnace c1.scope",
        ] {
            assert_eq!(scope(plain), None, "{plain}");
        }
        let long = format!("/a.slice/{}.scope", "x".repeat(249));
        assert!(scope(&long).is_some());
    }

    #[test]
    fn pods_without_a_parent_have_a_slice_or_a_directory_of_their_own() {
        let below = |parent, name| CgroupPath::group_below(parent, name).unwrap().to_string();
        assert_eq!(below("pinnace.slice", "p1"), "/pinnace.slice/pinnace-p1.slice");
        assert_eq!(below("a-b.slice", "p-1"), "/a.slice/a-b.slice/a-b-p_1.slice");
        assert_eq!(below("-.slice", "p1"), "/p1.slice");
        assert_eq!(below("/pinnace", "p1"), "/pinnace/p1");
        assert_eq!(below("/pinnace/", "p-1"), "/pinnace/p-1");
        for (parent, name) in [("pinnace.slice", "p 1"), ("pinnace.slice", ""), ("/p", ".."), ("p", "x")] {
            assert!(CgroupPath::group_below(parent, name).is_err(), "{parent} {name}");
        }
        assert!(CgroupPath::group_below("pinnace.slice", &"x".repeat(250)).is_err());
    }

    #[test]
    fn a_slice_is_recognised_by_its_place() {
        let slice = |path: &str| slice_of(&path.parse().unwrap());
        assert_eq!(slice("/a.slice/a-b.slice"), Some("a-b.slice".to_owned()));
        assert_eq!(slice("/"), Some("-.slice".to_owned()));
        assert_eq!((slice("/a-b.slice"), slice("/x/a.slice"), slice("/a")), (None, None, None));
    }
}
