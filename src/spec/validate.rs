//! Bounds for what hostile specs, images and requests may hold.
//!
//! Every text that reaches a system call passes through here once: no NUL (a path would end early), no line break where a
//! line-oriented file or log could be forged, no more bytes than the kernel takes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// `PATH_MAX`, the terminating NUL included.
pub const PATH_BYTES: usize = 4096;
/// `MAX_ARG_STRLEN`: one string of argv or the environment, the terminating NUL included (execve(2)).
pub const STRING_BYTES: usize = 128 * 1024;
/// Most that execve(2) ever takes for argv and environment together, pointers included: 3/4 of 8 MiB.
pub const EXEC_BYTES: usize = 6 * 1024 * 1024;
/// `NGROUPS_MAX`.
pub const GROUPS: usize = 65_536;
/// Mounts of one container; each costs a descriptor.
pub const MOUNTS: usize = 1024;
/// Devices of one container. A privileged one gets every device of the host.
pub const DEVICES: usize = 16_384;
/// Sysctls of one pod.
pub const SYSCTLS: usize = 1024;
/// Masked or read-only paths of one container; a large machine has two per processor.
pub const HIDDEN_PATHS: usize = 16_384;

/// An absolute path without NUL, lexically cleaned: `.` and doubled slashes vanish, `..` takes its parent away.
///
/// Symbolic links play no part: the result is resolved inside the container's root by whoever uses it.
pub fn container_path(field: &str, path: &Path) -> Result<PathBuf, Error> {
    bounded_path(field, path)?;
    if !path.is_absolute() {
        return Err(Error::invalid(field, format!("path {path:?} is not absolute")));
    }
    let mut clean: Vec<&[u8]> = Vec::new();
    for part in path.as_os_str().as_bytes().split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                clean.pop();
            }
            name if name.len() > 255 => {
                return Err(Error::invalid(field, "a name in the path is longer than 255 bytes"));
            }
            name => clean.push(name),
        }
    }
    let mut joined = vec![b'/'];
    joined.extend(clean.join(&b'/'));
    Ok(PathBuf::from(OsString::from_vec(joined)))
}

/// An absolute host path without NUL, otherwise as given: the host's own links and `..` mean what they mean there.
pub fn host_path(field: &str, path: &Path) -> Result<(), Error> {
    bounded_path(field, path)?;
    if path.is_absolute() {
        Ok(())
    } else {
        Err(Error::invalid(field, format!("path {path:?} is not absolute")))
    }
}

/// A log path below its directory: relative, no `..`, a file name at its end (CVE-2025-0750).
pub fn log_path(field: &str, path: &Path) -> Result<(), Error> {
    bounded_path(field, path)?;
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/") || bytes.iter().any(|byte| *byte < 0x20 || *byte == 0x7f) {
        return Err(Error::invalid(field, format!("{path:?} is not the name of a file")));
    }
    if bytes.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
        return Err(Error::invalid(field, format!("{path:?} must stay below the log directory")));
    }
    Ok(())
}

/// A working directory: [`container_path`] that does not lead through the runtime's own descriptors (CVE-2024-21626).
///
/// The launcher checks again after `chdir(2)`, where links count; this gives the plain attack a plain answer.
pub fn working_directory(field: &str, path: &Path) -> Result<PathBuf, Error> {
    let path = container_path(field, path)?;
    let parts: Vec<&[u8]> = path.as_os_str().as_bytes().split(|byte| *byte == b'/').skip(1).collect();
    let magic = matches!(
        parts.as_slice(),
        [b"proc", _, b"task", _, b"fd" | b"root" | b"cwd" | b"map_files", ..]
            | [b"proc", _, b"fd" | b"root" | b"cwd" | b"map_files", ..]
            | [b"dev", b"fd", ..]
    );
    if magic {
        return Err(Error::invalid(field, format!("{path:?} leads through a process's descriptors")));
    }
    Ok(path)
}

/// `KEY=value` as the kernel and a shell can take it.
///
/// `HOME` ends up in line-oriented files of programs inside the container, so no line break and no colon there
/// (CVE-2022-4318); other values may have several lines, which certificates and scripts use.
pub fn env_entry(field: &str, entry: &[u8]) -> Result<(), Error> {
    let equals = entry.iter().position(|byte| *byte == b'=');
    let Some((key, value)) = equals.filter(|at| *at > 0).map(|at| (&entry[..at], &entry[at + 1..])) else {
        return Err(Error::invalid(field, format!("{:?} is not KEY=value", Shown(entry))));
    };
    if key.iter().any(|byte| *byte < 0x20 || *byte == 0x7f) {
        return Err(Error::invalid(field, format!("{:?} has a control character in its key", Shown(entry))));
    }
    if value.contains(&0) {
        return Err(Error::invalid(field, format!("{:?} has a NUL byte", Shown(key))));
    }
    if key == b"HOME" && value.iter().any(|byte| matches!(byte, b'\n' | b'\r' | b':')) {
        return Err(Error::invalid(field, "HOME has a line break or a colon"));
    }
    if entry.len() >= STRING_BYTES {
        return Err(Error::invalid(field, format!("{:?} is longer than 128 KiB", Shown(key))));
    }
    Ok(())
}

/// argv: at least a program, no NUL, no more than execve(2) takes.
pub fn args(field: &str, args: &[impl AsRef<[u8]>]) -> Result<(), Error> {
    match args.first() {
        None => return Err(Error::invalid(field, "no command is given")),
        Some(program) if program.as_ref().is_empty() => {
            return Err(Error::invalid(field, "the command is an empty string"));
        }
        Some(_) => {}
    }
    for (index, arg) in args.iter().enumerate() {
        let arg = arg.as_ref();
        if arg.contains(&0) {
            return Err(Error::invalid(field, format!("argument {index} has a NUL byte")));
        }
        if arg.len() >= STRING_BYTES {
            return Err(Error::invalid(field, format!("argument {index} is longer than 128 KiB")));
        }
    }
    Ok(())
}

/// argv and environment together fit what execve(2) takes.
pub fn exec_size(field: &str, args: &[Vec<u8>], env: &[Vec<u8>]) -> Result<(), Error> {
    let bytes: usize = args.iter().chain(env).map(|text| text.len() + 1 + size_of::<usize>()).sum();
    if bytes > EXEC_BYTES {
        return Err(Error::invalid(
            field,
            format!("arguments and environment take {bytes} bytes, 6 MiB at most"),
        ));
    }
    Ok(())
}

/// One line of text that is written to a kernel file or label: no NUL, no line break, at most `limit` bytes.
pub fn line(field: &str, text: &str, limit: usize) -> Result<(), Error> {
    if text.bytes().any(|byte| matches!(byte, 0 | b'\n' | b'\r')) {
        return Err(Error::invalid(field, "has a NUL byte or a line break"));
    }
    if text.len() > limit {
        return Err(Error::invalid(field, format!("is longer than {limit} bytes")));
    }
    Ok(())
}

fn bounded_path(field: &str, path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Error::invalid(field, "path is empty"));
    }
    if bytes.contains(&0) {
        return Err(Error::invalid(field, "path has a NUL byte"));
    }
    if bytes.len() >= PATH_BYTES {
        return Err(Error::invalid(field, "path is longer than 4095 bytes"));
    }
    Ok(())
}

/// Shows the beginning of bytes, escaped.
struct Shown<'a>(&'a [u8]);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 64;
        let head = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "\"{}\"", head.escape_ascii())?;
        if self.0.len() > SHOWN { f.write_str("...") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn container_paths_are_cleaned() {
        let cases = [
            ("/", Some("/")),
            ("/data", Some("/data")),
            ("//data///x/", Some("/data/x")),
            ("/a/./b/../c", Some("/a/c")),
            ("/../../etc", Some("/etc")),
            ("/..", Some("/")),
            ("", None),
            ("data", None),
            ("./data", None),
            ("/a\0b", None),
        ];
        for (given, expected) in cases {
            let cleaned = container_path("f", Path::new(given)).ok();
            assert_eq!(cleaned.as_deref(), expected.map(Path::new), "{given:?}");
        }
        let long = format!("/{}", "a/".repeat(2100));
        assert!(container_path("f", Path::new(&long)).is_err());
        assert!(container_path("f", Path::new(&format!("/{}", "n".repeat(256)))).is_err());
    }

    #[test]
    fn working_directories_never_name_descriptors() {
        for refused in [
            "/proc/self/fd/7",
            "/proc/self/fd",
            "/proc/thread-self/fd/3/../..//../../proc/self/fd/3",
            "/proc/1/root",
            "/proc/42/cwd/x",
            "/proc/self/task/1/fd/3",
            "/x/../proc/self/fd/9",
            "/dev/fd/3",
            "relative",
        ] {
            assert!(working_directory("process.cwd", Path::new(refused)).is_err(), "{refused}");
        }
        for taken in ["/", "/srv", "/proc", "/procfs/self/fd", "/home/fd"] {
            assert!(working_directory("process.cwd", Path::new(taken)).is_ok(), "{taken}");
        }
    }

    #[test]
    fn log_paths_stay_below() {
        for refused in ["", "/x", "..", "a/../b", "../x", "a//b", "a/", "./a", "a\nb", "a\0"] {
            assert!(log_path("log_path", Path::new(refused)).is_err(), "{refused:?}");
        }
        for taken in ["0.log", "nginx/0.log", "..x/...", "a b.log"] {
            assert!(log_path("log_path", Path::new(taken)).is_ok(), "{taken:?}");
        }
    }

    #[test]
    fn env_entries() {
        for refused in [
            &b"HOME"[..],
            b"*",
            b"=x",
            b"",
            b"A",
            b"A=\0",
            b"A\0B=x",
            b"A\nB=x",
            b"HOME=/root\nx:0:0",
            b"HOME=/\r",
            b"HOME=/a:b",
        ] {
            assert!(env_entry("env", refused).is_err(), "{:?}", Shown(refused));
        }
        for taken in [
            &b"A="[..],
            b"A=b=c",
            b"CERT=-----BEGIN\nxyz\n",
            b"HOME=/root",
            b"PATH=/bin:/sbin",
            b"B=\xff\xfe",
        ] {
            assert!(env_entry("env", taken).is_ok(), "{:?}", Shown(taken));
        }
        let long = [b"A=".to_vec(), vec![b'x'; STRING_BYTES]].concat();
        assert!(env_entry("env", &long).is_err());
        assert!(env_entry("env", &long[..STRING_BYTES - 1]).is_ok());
    }

    #[test]
    fn args_have_bounds() {
        let none: [&str; 0] = [];
        assert!(args("args", &none).is_err());
        assert!(args("args", &[""]).is_err());
        assert!(args("args", &["sh", "a\0b"]).is_err());
        assert!(args("args", &["sh", ""]).is_ok());
        let many = vec![vec![b'x'; 1000]; 7000];
        assert!(exec_size("args", &many, &[]).is_err());
        assert!(exec_size("args", &many[..6000], &[]).is_ok());
    }

    proptest! {
        #[test]
        fn cleaning_is_idempotent_and_has_no_dots(text in "(/|\\.|\\.\\.|[a-z]{1,3}){0,20}") {
            let path = format!("/{text}");
            let once = container_path("f", Path::new(&path)).unwrap();
            prop_assert_eq!(&container_path("f", &once).unwrap(), &once);
            let text = once.to_str().unwrap();
            prop_assert!(text.starts_with('/'));
            prop_assert!(text == "/" || text[1..].split('/').all(|part| !matches!(part, "" | "." | "..")));
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let accepted = env_entry("env", &bytes).is_ok();
            prop_assert!(!accepted || (!bytes.contains(&0) && bytes.iter().position(|b| *b == b'=') > Some(0)));
        }
    }
}
