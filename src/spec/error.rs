//! What can be wrong with a spec, with the machine it is meant for, or with a host file it names.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::{cdi, image, user};

/// Class of an error: what the caller may do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is wrong and stays wrong.
    InvalidArgument,
    /// Something that the request names does not exist.
    NotFound,
    /// The request is sound; this machine or its present state cannot serve it.
    FailedPrecondition,
    /// Neither the request nor the machine's configuration explains it.
    Internal,
}

/// Why a spec cannot be built or lowered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field holds what no machine can run.
    #[error("{field}: {reason}")]
    Invalid {
        /// Field, in the words of the OCI runtime spec.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field asks for what pinnace does not do; ignoring it would run something else than was asked for.
    #[error("{field}: {feature} is not supported")]
    Unsupported {
        /// Field, in the words of the OCI runtime spec.
        field: String,
        /// What it asks for.
        feature: String,
    },
    /// A field asks for what this machine lacks.
    #[error("{field}: {reason}")]
    Unmet {
        /// Field, in the words of the OCI runtime spec.
        field: String,
        /// What is missing.
        reason: String,
    },
    /// The host file of a bind mount cannot be opened.
    #[error("mount {}: source {}", destination.display(), path.display())]
    MountSource {
        /// Path in the container.
        destination: PathBuf,
        /// Path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A mount cannot be prepared.
    #[error("mount {}: {call} {}", destination.display(), path.display())]
    MountTree {
        /// Path in the container.
        destination: PathBuf,
        /// Path on the host.
        path: PathBuf,
        /// System call.
        call: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A namespace file cannot be opened.
    #[error("linux.namespaces: {kind} namespace {}", path.display())]
    Namespace {
        /// `network`, `ipc`, ...
        kind: &'static str,
        /// Path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A host device cannot be read.
    #[error("device {}", path.display())]
    Device {
        /// Path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// A fact about this machine cannot be read.
    #[error("read {path}")]
    Fact {
        /// File below `/proc` or `/sys`.
        path: &'static str,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The seccomp profile cannot be compiled.
    #[error("linux.seccomp")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A device of the Container Device Interface cannot be given.
    #[error(transparent)]
    Cdi(#[from] cdi::Error),
    /// The user cannot be determined.
    #[error(transparent)]
    User(#[from] user::Error),
    /// The image's configuration cannot be used.
    #[error(transparent)]
    Image(#[from] image::Error),
}

impl Error {
    /// Class of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::Seccomp(_) => Code::InvalidArgument,
            Self::Unsupported { .. } | Self::Unmet { .. } => Code::FailedPrecondition,
            Self::MountSource { errno, .. } | Self::Namespace { errno, .. } | Self::Device { errno, .. } => {
                match *errno {
                    Errno::NOENT | Errno::NOTDIR => Code::NotFound,
                    Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL => Code::InvalidArgument,
                    Errno::MFILE | Errno::NFILE | Errno::NOMEM => Code::Internal,
                    _ => Code::FailedPrecondition,
                }
            }
            Self::MountTree { errno, .. } => match *errno {
                Errno::INVAL | Errno::PERM | Errno::NOSYS => Code::FailedPrecondition,
                _ => Code::Internal,
            },
            Self::Fact { .. } => Code::Internal,
            Self::Cdi(error) => error.code(),
            Self::User(error) => error.code(),
            Self::Image(error) => error.code(),
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, feature: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), feature: feature.into() }
    }

    pub(crate) fn unmet(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unmet { field: field.into(), reason: reason.into() }
    }
}
