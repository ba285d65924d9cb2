//! Settings below /proc/sys/net, of the network namespace of the calling thread.
//!
//! procfs resolves `/proc/sys/net` by the namespace of the task that opens the file, so a thread that entered a
//! pod's namespace writes the pod's settings and no other.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Why a setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{call} {path}")]
pub struct SysctlError {
    call: &'static str,
    path: String,
    #[source]
    source: Errno,
}

impl SysctlError {
    /// Whether the kernel has no such setting, e.g. because IPv6 is not in it.
    pub fn is_absent(&self) -> bool {
        self.source == Errno::NOENT
    }
}

/// Reads a setting, e.g. `ipv4/ip_forward`.
pub fn read(key: &str) -> Result<String, SysctlError> {
    let path = format!("/proc/sys/net/{key}");
    let failed = |call| move |source| (call, source);
    let mut value = [0u8; 64];
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open"))
        .and_then(|file| rustix::io::read(&file, &mut value).map_err(failed("read")))
        .map(|length| String::from_utf8_lossy(&value[..length]).trim().to_owned())
        .map_err(|(call, source)| SysctlError { call, path, source })
}

/// Writes a setting.
pub fn write(key: &str, value: &str) -> Result<(), SysctlError> {
    let path = format!("/proc/sys/net/{key}");
    let failed = |call| move |source| (call, source);
    rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open"))
        .and_then(|file| rustix::io::write(&file, value.as_bytes()).map_err(failed("write")))
        .map(|_| ())
        .map_err(|(call, source)| SysctlError { call, path, source })
}

/// The names below a directory of settings, e.g. the interfaces in `ipv6/conf`.
pub fn children(key: &str) -> Result<Vec<String>, SysctlError> {
    let path = format!("/proc/sys/net/{key}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = rustix::fs::open(&path, flags, Mode::empty()).and_then(rustix::fs::Dir::new);
    let names = entries.and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>, _>>()
    });
    match names {
        Ok(names) => Ok(names.into_iter().filter(|name| name != "." && name != "..").collect()),
        Err(source) => Err(SysctlError { call: "list", path, source }),
    }
}

/// Writes a setting unless it has the value already, so that a read-only /proc/sys is no obstacle then.
pub fn ensure(key: &str, value: &str) -> Result<(), SysctlError> {
    if read(key)? == value { Ok(()) } else { write(key, value) }
}

/// Like [`write()`], but a kernel without the setting is content too.
pub fn write_if_present(key: &str, value: &str) -> Result<(), SysctlError> {
    match write(key, value) {
        Err(error) if error.is_absent() => Ok(()),
        result => result,
    }
}
