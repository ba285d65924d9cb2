//! Files of seccomp profiles: regular, short, and below the configured root (rules R1 and R10).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path};

use pinnace_seccomp::localhost::MOST_BYTES;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::error::Error;

const FIELD: &str = "config.linux.security_context.seccomp.localhost_ref";

/// Neither a pipe nor a terminal gets hold of who opens it.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The file that a request names. Below a root no link leads out of it.
pub fn of_request(root: Option<&Path>, reference: &str) -> Result<Vec<u8>, Error> {
    let path = Path::new(reference);
    let Some(root) = root else {
        if !path.is_absolute() {
            let reason =
                format!("{reference:?} is not absolute, and no container.seccomp_profile_root is set");
            return Err(Error::invalid(FIELD, reason));
        }
        return of_host(path);
    };
    let outside = || Error::invalid(FIELD, format!("{reference:?} is not below {}", root.display()));
    let relative = if path.is_absolute() { path.strip_prefix(root).map_err(|_| outside())? } else { path };
    if relative.as_os_str().is_empty()
        || !relative.components().all(|part| matches!(part, Component::Normal(_)))
    {
        return Err(outside());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, root, flags, Mode::empty());
    let opened =
        opened.map_err(|errno| Error::io("open container.seccomp_profile_root", root)(errno.into()))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(opened.as_fd(), relative, FLAGS, Mode::empty(), resolve) {
        Ok(file) => read(file, path),
        Err(Errno::XDEV | Errno::LOOP) => Err(outside()),
        Err(errno) => Err(Error::io("read seccomp profile", path)(errno.into())),
    }
}

/// A file that the host's administrator names.
pub fn of_host(path: &Path) -> Result<Vec<u8>, Error> {
    let file = openat(CWD, path, FLAGS, Mode::empty());
    read(file.map_err(|errno| Error::io("read seccomp profile", path)(errno.into()))?, path)
}

fn read(file: OwnedFd, path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::io("read seccomp profile", path)(error);
    let wrong = |reason: &str| Error::invalid(FIELD, format!("{}: {reason}", path.display()));
    let stat = fstat(&file).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong("is not a regular file"));
    }
    let most = MOST_BYTES as u64;
    let mut bytes = Vec::new();
    File::from(file).take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MOST_BYTES {
        return Err(wrong("is larger than 1 MiB"));
    }
    Ok(bytes)
}
