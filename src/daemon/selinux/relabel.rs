//! Labels of files: a volume that is to be relabelled, and files of our own. By descriptor, no link is followed on the way
//! down (rule R1), and what the machine itself lives in is never relabelled (CVE-2021-43816).

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, openat, setxattr};
use rustix::io::Errno;

use crate::error::Error;

const ATTRIBUTE: &str = "security.selinux";

/// Deeper trees than this are nobody's volume.
const DEPTH: usize = 256;

/// Whoever relabels these takes the machine down; what is below them can be a volume.
const NEVER: [&str; 25] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Labels a file, or a directory with everything in it. What has the label already is left alone, and so is a file system
/// that has no labels.
pub fn tree(path: &Path, label: &str) -> Result<(), Error> {
    let failed = |errno: Errno| Error::io("relabel", path)(errno.into());
    // The source itself may be a link, as it may be for the mount.
    let top = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let real = std::fs::read_link(proc_path(top.as_fd())).map_err(Error::io("relabel", path))?;
    let kernels = ["/proc", "/sys", "/dev"].iter().any(|kernels| real.starts_with(kernels));
    if kernels || NEVER.iter().any(|never| real == Path::new(never)) {
        let reason = format!("{} is the machine's own and is not relabelled", real.display());
        return Err(Error::invalid("config.mounts.selinux_relabel", reason));
    }
    match descend(top, &real, label, DEPTH) {
        Err((_, Errno::NOTSUP)) | Ok(()) => Ok(()),
        Err((path, errno)) => Err(Error::io("relabel", path)(errno.into())),
    }
}

/// Labels a file of our own, or a directory of our own with everything in it.
pub fn file(path: &Path, label: &str) -> Result<(), Error> {
    let failed = |path: &Path, errno: Errno| Error::io("label", path)(errno.into());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(path, errno))?;
    match descend(opened, path, label, DEPTH) {
        Err((_, Errno::NOTSUP)) | Ok(()) => Ok(()),
        Err((path, errno)) => Err(failed(&path, errno)),
    }
}

fn descend(file: OwnedFd, path: &Path, label: &str, depth: usize) -> Result<(), (PathBuf, Errno)> {
    let at = |errno: Errno| (path.to_owned(), errno);
    set(file.as_fd(), label).map_err(at)?;
    if FileType::from_raw_mode(fstat(&file).map_err(at)?.st_mode) != FileType::Directory {
        return Ok(());
    }
    let depth = depth.checked_sub(1).ok_or_else(|| at(Errno::LOOP))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat(&file, ".", flags, Mode::empty()).map_err(at)?;
    let mut names = Vec::new();
    for entry in Dir::new(readable).map_err(at)? {
        let name = entry.map_err(at)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    for name in names {
        let below = path.join(OsStr::from_bytes(&name));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&file, name.as_slice(), flags, Mode::empty()) {
            // Files come and go.
            Err(Errno::NOENT) => {}
            opened => descend(opened.map_err(|errno| (below.clone(), errno))?, &below, label, depth)?,
        }
    }
    Ok(())
}

fn set(file: BorrowedFd<'_>, label: &str) -> Result<(), Errno> {
    // By the descriptor's own link: an O_PATH descriptor takes no attribute itself.
    let path = proc_path(file);
    let mut now = [0_u8; 4096];
    let known = getxattr(&path, ATTRIBUTE, &mut now[..]).ok().and_then(|length| now.get(..length));
    if known.is_some_and(|known| known.strip_suffix(b"\0").unwrap_or(known) == label.as_bytes()) {
        return Ok(());
    }
    setxattr(&path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty())
}

fn proc_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(path: &Path) -> Option<String> {
        let mut value = [0_u8; 256];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        Some(String::from_utf8_lossy(&value[..length]).into_owned())
    }

    #[test]
    fn a_volume_is_labelled_whole_and_nothing_else() {
        let (volume, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(volume.path().join("deep/er")).unwrap();
        for file in ["one", "deep/two", "deep/er/three"] {
            std::fs::write(volume.path().join(file), "x").unwrap();
        }
        std::fs::write(outside.path().join("canary"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), volume.path().join("deep/link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("canary"), volume.path().join("link")).unwrap();
        let wanted = "system_u:object_r:container_file_t:s0:c1,c2";
        if let Err(error) = tree(volume.path(), wanted) {
            // Only root sets this attribute where SELinux is off.
            assert!(error.chain().contains("not permitted"), "{}", error.chain());
            return;
        }
        if label(volume.path()).is_none() {
            return;
        }
        for file in ["", "one", "deep", "deep/two", "deep/er", "deep/er/three", "link", "deep/link"] {
            assert_eq!(label(&volume.path().join(file)).as_deref(), Some(wanted), "{file}");
        }
        assert_eq!(label(outside.path()), None);
        assert_eq!(label(&outside.path().join("canary")), None);
        // A link as the source leads where the mount leads.
        tree(&volume.path().join("link"), wanted).unwrap();
        assert_eq!(label(&outside.path().join("canary")).as_deref(), Some(wanted));
        assert_eq!(label(outside.path()), None);
    }

    #[test]
    fn the_machine_is_not_relabelled() {
        for path in ["/", "/etc", "/usr", "/var/../etc/", "/proc/self/fd", "/sys/kernel", "/dev/null"] {
            let error = tree(Path::new(path), "u:r:t:s0").unwrap_err();
            assert!(error.chain().contains("is not relabelled"), "{path}: {}", error.chain());
        }
        assert!(tree(Path::new("/no/such/volume"), "u:r:t:s0").is_err());
    }
}
