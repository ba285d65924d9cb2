//! Why a profile cannot be used.

/// A profile was refused. There is no weaker filter to fall back to: the container must not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// A profile file is empty, too large or not a profile.
    #[error("seccomp profile: {reason}")]
    Document {
        /// What is wrong.
        reason: &'static str,
    },
    /// A profile file is not JSON of the right form.
    #[error("seccomp profile is not valid")]
    Json(#[from] serde_json::Error),
    /// A condition names an argument that no system call has.
    #[error("seccomp rule for {syscall}: argument {index} does not exist")]
    ArgumentIndex {
        /// First name of the rule.
        syscall: String,
        /// The index given.
        index: usize,
    },
    /// An error number that the kernel would cut off.
    #[error("seccomp errnoRet {errno} is larger than {most}")]
    Errno {
        /// The value given.
        errno: u32,
        /// The largest possible.
        most: u32,
    },
    /// An action that cannot work where it is.
    #[error("seccomp action SCMP_ACT_NOTIFY: {reason}")]
    Notify {
        /// Why not.
        reason: &'static str,
    },
    /// This build knows no system call table for the machine.
    #[error("seccomp filters are not supported on this architecture")]
    Architecture,
    /// The program would not be taken by the kernel.
    #[error("seccomp program of {instructions} instructions is longer than the kernel's {most}")]
    TooLong {
        /// Length reached.
        instructions: usize,
        /// The kernel's limit.
        most: usize,
    },
    /// The version of the running kernel cannot be told.
    #[error("kernel version {text:?} cannot be parsed")]
    KernelVersion {
        /// As read.
        text: String,
    },
}

/// What a caller can do about a [`SeccompError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The profile is wrong.
    InvalidArgument,
    /// The machine cannot do it.
    FailedPrecondition,
}

impl SeccompError {
    /// The class of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Architecture | Self::KernelVersion { .. } => Code::FailedPrecondition,
            Self::Document { .. }
            | Self::Json(_)
            | Self::ArgumentIndex { .. }
            | Self::Errno { .. }
            | Self::Notify { .. }
            | Self::TooLong { .. } => Code::InvalidArgument,
        }
    }
}
