//! What can go wrong with a cgroup, with the controller, the path, the value and the errno.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

/// Result of a cgroup operation.
pub type Result<T> = std::result::Result<T, CgroupError>;

/// A failed cgroup operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// Nothing in this mount namespace's mount table is a cgroup file system.
    #[error("no cgroup file system is mounted")]
    NoHierarchy,
    /// A file of the kernel's has an unexpected form.
    #[error("{file}: cannot parse {line:?}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What was read.
        line: String,
    },
    /// A cgroup path or name was refused.
    #[error("cgroup path {path:?}: {reason}")]
    InvalidPath {
        /// As given.
        path: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The cgroup to create is there already.
    #[error("cgroup {path} already exists")]
    AlreadyExists {
        /// The directory.
        path: PathBuf,
    },
    /// The cgroup exists in no hierarchy.
    #[error("cgroup {path} does not exist")]
    NotFound {
        /// The path inside the hierarchies.
        path: String,
    },
    /// A directory or file operation failed.
    #[error("{operation} {path} ({controller} controller)")]
    Io {
        /// Verb: mkdir, open, read, rmdir.
        operation: &'static str,
        /// Controller or hierarchy.
        controller: String,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        errno: Errno,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {path} ({controller} controller)")]
    Write {
        /// Controller.
        controller: String,
        /// The interface file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        #[source]
        errno: Errno,
    },
    /// A limit needs a controller or an interface file that this machine, or this cgroup's parent, does not have.
    #[error("{path} does not exist: the {controller} controller is not available there")]
    ControllerUnavailable {
        /// Controller.
        controller: String,
        /// The interface file.
        path: PathBuf,
    },
    /// A resource value makes no sense, or cannot be expressed.
    #[error("resource {field} = {value:?}: {reason}")]
    InvalidResource {
        /// Name in the OCI runtime specification.
        field: String,
        /// As given.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// The new memory limit is below what is in use and the caller asked for a check.
    #[error("memory limit {limit_bytes} is below the current usage of {usage_bytes} bytes")]
    BelowUsage {
        /// The limit asked for.
        limit_bytes: u64,
        /// Usage at the time.
        usage_bytes: u64,
    },
    /// Loading or attaching the device filter failed.
    #[error("{operation} the device filter of {path}")]
    DeviceProgram {
        /// Verb: load, attach, list, detach.
        operation: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        errno: Errno,
    },
    /// Processes or child cgroups are still there after the time allowed.
    #[error("cgroup {path} is still in use{}", match .pid { Some(pid) => format!(" by pid {pid}"), None => String::new() })]
    Busy {
        /// The directory that could not be removed or emptied.
        path: PathBuf,
        /// A process that is still in it.
        pid: Option<i32>,
    },
    /// The cgroup did not reach the state within the time allowed.
    #[error("cgroup {path} is not {state} after {} ms", .waited.as_millis())]
    TimedOut {
        /// The directory.
        path: PathBuf,
        /// The state waited for.
        state: &'static str,
        /// How long.
        waited: Duration,
    },
    /// systemd did not do what it was asked for.
    #[error("{operation} {unit}: systemd: {message}")]
    Systemd {
        /// Verb: start, stop, change, reach systemd for.
        operation: &'static str,
        /// The unit.
        unit: String,
        /// What it says, or what the bus says.
        message: String,
    },
    /// This driver or cgroup mode cannot do that.
    #[error("{operation} is not possible with {with}")]
    Unsupported {
        /// What was asked for.
        operation: &'static str,
        /// Mode or driver.
        with: &'static str,
    },
}

/// What a caller can do about an [`CgroupError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The input is wrong.
    InvalidArgument,
    /// It is not there.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// The machine or the cgroup's state does not allow it.
    FailedPrecondition,
    /// The kernel has no room: cgroup depth, count or memory.
    ResourceExhausted,
    /// It did not end in time; trying again may help.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

impl CgroupError {
    /// The class of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidPath { .. } | Self::InvalidResource { .. } => Code::InvalidArgument,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::NotFound { .. } => Code::NotFound,
            Self::NoHierarchy
            | Self::ControllerUnavailable { .. }
            | Self::BelowUsage { .. }
            | Self::Unsupported { .. } => Code::FailedPrecondition,
            Self::Busy { .. } | Self::TimedOut { .. } => Code::DeadlineExceeded,
            Self::Write { errno: Errno::INVAL | Errno::RANGE, .. } => Code::InvalidArgument,
            Self::Write { errno: Errno::BUSY, .. } => Code::FailedPrecondition,
            Self::Io { errno: Errno::AGAIN | Errno::NOSPC | Errno::NOMEM, .. } => Code::ResourceExhausted,
            Self::Io { errno: Errno::NOENT | Errno::NODEV, .. } => Code::NotFound,
            Self::Io { .. }
            | Self::Write { .. }
            | Self::Malformed { .. }
            | Self::DeviceProgram { .. }
            | Self::Systemd { .. } => Code::Internal,
        }
    }
}
