//! What an operation of the daemon can fail with, and which gRPC code that is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pinnace_launcher::protocol::Failure;

use crate::container::stuck::Stuck;
use crate::id::SandboxId;

/// Meaning of an error to a caller; the gRPC codes that the daemon uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The named thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request itself is wrong.
    InvalidArgument,
    /// The request is right, but not in this state.
    FailedPrecondition,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// Credentials do not suffice.
    PermissionDenied,
    /// A quota or the disk is exhausted.
    ResourceExhausted,
    /// Something outside did not answer; trying again may help.
    Unavailable,
    /// Time ran out.
    DeadlineExceeded,
    /// Data did not match its digest.
    DataLoss,
    /// This program does not do that.
    Unimplemented,
    /// Given up because the caller or the daemon went away.
    Cancelled,
    /// None of the above.
    Internal,
}

/// An operation failed. The text names the subject; the reason is its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No sandbox with that id.
    #[error("sandbox {0:?} not found")]
    SandboxNotFound(String),
    /// No container with that id.
    #[error("container {0:?} not found")]
    ContainerNotFound(String),
    /// No such image here.
    #[error("image {0:?} not found; pull it first")]
    ImageNotFound(String),
    /// An image could not be mounted as a volume. The kubelet knows the error by its first word.
    #[error("{IMAGE_VOLUME}: image {image:?} at {destination}")]
    ImageVolume {
        /// As asked for.
        image: String,
        /// Path in the container.
        destination: String,
        /// Why not.
        source: Box<Error>,
    },
    /// No container of the command line with that name or id.
    #[error("no such container: {name:?}{hint}")]
    NoSuchContainer {
        /// What was given.
        name: String,
        /// A name that is like it, in words.
        hint: String,
    },
    /// No volume of that name.
    #[error("no such volume: {0:?}")]
    NoSuchVolume(String),
    /// The name is somebody's.
    #[error("{kind} {name:?} is used by {holder}")]
    Taken {
        /// What the name is of.
        kind: &'static str,
        /// Name.
        name: String,
        /// Its holder.
        holder: String,
    },
    /// An id prefix names several things.
    #[error("{kind} id {prefix:?} is ambiguous")]
    AmbiguousId {
        /// `sandbox`, `container` or `image`.
        kind: &'static str,
        /// What was given.
        prefix: String,
    },
    /// A live sandbox has this name.
    #[error("sandbox name {name} is used by {holder}")]
    SandboxNameTaken {
        /// Name.
        name: String,
        /// Its holder.
        holder: String,
    },
    /// A live container of the sandbox has this name.
    #[error("container name {name} is used by {holder} in sandbox {sandbox}")]
    ContainerNameTaken {
        /// Name and attempt.
        name: String,
        /// Its holder.
        holder: String,
        /// Their sandbox.
        sandbox: SandboxId,
    },
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not in this state.
    #[error("{subject} is {state}: {hint}")]
    State {
        /// What.
        subject: String,
        /// Its state.
        state: String,
        /// What would be needed.
        hint: String,
    },
    /// Part of the operation failed.
    #[error("{what}")]
    In {
        /// The operation and its subject.
        what: String,
        /// Why.
        source: Box<Error>,
    },
    /// The monitor or the init process reported a failure.
    #[error("{}", describe(.0))]
    Launch(Failure),
    /// The monitor answered something else than what it was asked.
    #[error("the monitor of sandbox {sandbox} answered out of turn: {reply}")]
    Unexpected {
        /// Its sandbox.
        sandbox: SandboxId,
        /// What it said.
        reply: String,
    },
    /// The monitor went away.
    #[error("the monitor of sandbox {0} is gone")]
    MonitorGone(SandboxId),
    /// Time ran out.
    #[error("{what} did not end within {limit:?}")]
    Deadline {
        /// The operation.
        what: String,
        /// Its limit.
        limit: Duration,
    },
    /// Processes that were killed and have not ended.
    #[error(
        "killed, but after {limit:?} {}; it ends when what it waits for answers: try again, or mend that",
        list(processes)
    )]
    Undead {
        /// Those that are left.
        processes: Vec<Stuck>,
        /// How long they were waited for.
        limit: Duration,
    },
    /// The caller went away, and what it had begun for itself was ended.
    #[error("the caller went away")]
    CallerGone,
    /// No address of the pod's loopback interface took the connection.
    #[error("port {port} of sandbox {sandbox}: {}", refused(refusals))]
    NotConnected {
        /// Its sandbox.
        sandbox: SandboxId,
        /// The port.
        port: u16,
        /// What each address said.
        refusals: Vec<(std::net::IpAddr, std::io::Error)>,
    },
    /// An attached client was too slow for the output.
    #[error(
        "{bytes} bytes of output of container {container} are missing here, for they were not taken in time; \
         its log has them"
    )]
    OutputMissed {
        /// Its container.
        container: crate::id::ContainerId,
        /// How many.
        bytes: u64,
    },
    /// No URL for streams.
    #[error(transparent)]
    Streaming(#[from] pinnace_streaming::TokenError),
    /// The daemon is going down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// An internal task was lost.
    #[error("an operation ended without a result")]
    Lost(#[from] tokio::task::JoinError),
    /// An operation that this call had joined failed; its error, in words.
    #[error("{message}")]
    Joined {
        /// Code of the original.
        code: Code,
        /// Text of the original.
        message: String,
    },
    /// System call on a path.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Record on disk.
    #[error(transparent)]
    Record(#[from] crate::record::Error),
    /// Layer store.
    #[error(transparent)]
    Store(#[from] pinnace_store::Error),
    /// Pull.
    #[error(transparent)]
    Pull(#[from] Arc<pinnace_pull::Error>),
    /// Push.
    #[error(transparent)]
    Push(#[from] Box<pinnace_push::Error>),
    /// An archive of images.
    #[error(transparent)]
    Archive(#[from] Box<pinnace_archive::Error>),
    /// Something is wrong with a Dockerfile, or one of its steps has failed; with the lines that it is about.
    #[error("{excerpt}")]
    Dockerfile {
        /// The lines, and what is wrong or which instruction has failed.
        excerpt: String,
        /// Why it has failed.
        source: Option<Box<Error>>,
    },
    /// A program of a build has failed.
    #[error("process {command:?} {outcome}")]
    Process {
        /// Its first line.
        command: String,
        /// How.
        outcome: String,
    },
    /// Something that is in use, in Docker's words.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Registries and their configuration.
    #[error(transparent)]
    Registry(#[from] pinnace_registry::Error),
    /// Image reference.
    #[error(transparent)]
    Reference(#[from] pinnace_registry::reference::ParseError),
    /// Pod network.
    #[error(transparent)]
    Network(#[from] pinnace_network::NetworkError),
    /// There is no network that pods could be attached to.
    #[error(transparent)]
    NetworkNotReady(#[from] pinnace_cni::NotReady),
    /// The plugins of a network.
    #[error(transparent)]
    Cni(#[from] pinnace_cni::ChainError),
    /// The plugins of a network have succeeded, and the pod has no address.
    #[error("ADD of network {network} gave the pod no address")]
    NoAddress {
        /// The network.
        network: String,
    },
    /// Cgroup.
    #[error(transparent)]
    Cgroup(#[from] pinnace_cgroup::CgroupError),
    /// Seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] pinnace_seccomp::SeccompError),
    /// Credentials of a pull.
    #[error(transparent)]
    Auth(#[from] pinnace_registry::auth::Error),
    /// OCI spec.
    #[error(transparent)]
    Spec(#[from] pinnace_spec::Error),
    /// User namespace.
    #[error(transparent)]
    Namespaces(#[from] pinnace_launcher::namespaces::Error),
    /// Talking to the monitor.
    #[error(transparent)]
    Launcher(#[from] pinnace_launcher::client::Error),
}

/// Reasons that the kubelet reads from the beginning of a message.
pub const IMAGE_VOLUME: &str = "ImageVolumeMountFailed";

fn refused(refusals: &[(std::net::IpAddr, std::io::Error)]) -> String {
    let texts = refusals.iter().map(|(address, error)| format!("connect to {address}: {error}"));
    texts.collect::<Vec<_>>().join("; ")
}

/// `stage: syscall path: errno: message`, whatever is there.
fn describe(failure: &Failure) -> String {
    let mut parts = vec![failure.stage.clone()];
    let path = String::from_utf8_lossy(&failure.path);
    match (failure.syscall.is_empty(), path.is_empty()) {
        (false, false) => parts.push(format!("{} {path}", failure.syscall)),
        (false, true) => parts.push(failure.syscall.clone()),
        (true, false) => parts.push(path.into_owned()),
        (true, true) => {}
    }
    if failure.errno != 0 {
        parts.push(std::io::Error::from_raw_os_error(failure.errno).to_string());
    }
    if !failure.message.is_empty() {
        parts.push(failure.message.clone());
    }
    parts.join(": ")
}

fn list(processes: &[Stuck]) -> String {
    processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// What it means to the caller.
    pub fn code(&self) -> Code {
        match self {
            Self::SandboxNotFound(_)
            | Self::ContainerNotFound(_)
            | Self::ImageNotFound(_)
            | Self::NoSuchContainer { .. }
            | Self::NoSuchVolume(_) => Code::NotFound,
            Self::AmbiguousId { .. } | Self::Invalid { .. } | Self::Reference(_) | Self::Auth(_) => {
                Code::InvalidArgument
            }
            Self::SandboxNameTaken { .. } | Self::ContainerNameTaken { .. } | Self::Taken { .. } => {
                Code::AlreadyExists
            }
            Self::State { .. } => Code::FailedPrecondition,
            Self::In { source, .. } | Self::ImageVolume { source, .. } => source.code(),
            Self::Launch(failure) => launch_code(failure),
            Self::MonitorGone(_) | Self::ShuttingDown | Self::NotConnected { .. } => Code::Unavailable,
            Self::OutputMissed { .. } => Code::DataLoss,
            Self::Streaming(pinnace_streaming::TokenError::TooMany { .. }) => Code::ResourceExhausted,
            Self::Deadline { .. } | Self::Undead { .. } => Code::DeadlineExceeded,
            Self::CallerGone => Code::Cancelled,
            Self::Joined { code, .. } => *code,
            Self::Io { source, .. } | Self::Record(crate::record::Error::Io { source, .. }) => {
                io_code(source)
            }
            Self::Record(crate::record::Error::Json { .. }) => Code::DataLoss,
            Self::Store(error) => store_code(error),
            Self::Pull(error) => pull_code(error),
            Self::Push(error) => push_code(error),
            Self::Archive(error) => archive_code(error),
            Self::Conflict(_) | Self::Process { .. } => Code::FailedPrecondition,
            Self::Dockerfile { source, .. } => {
                source.as_ref().map_or(Code::InvalidArgument, |source| source.code())
            }
            Self::Registry(error) => registry_code(error.kind()),
            Self::Network(error) => network_code(error),
            Self::NetworkNotReady(_) => Code::Unavailable,
            Self::Cni(error) => cni_code(error),
            Self::NoAddress { .. } => Code::FailedPrecondition,
            Self::Cgroup(error) => cgroup_code(error),
            Self::Seccomp(_) => Code::InvalidArgument,
            Self::Namespaces(_) => Code::FailedPrecondition,
            Self::Spec(error) => spec_code(error),
            Self::Unexpected { .. } | Self::Lost(_) | Self::Launcher(_) | Self::Streaming(_) => {
                Code::Internal
            }
        }
    }

    /// A request field that is wrong.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// An answer that does not fit its question.
    pub fn unexpected(sandbox: &SandboxId, reply: &pinnace_launcher::protocol::Reply) -> Self {
        Self::Unexpected { sandbox: sandbox.clone(), reply: format!("{reply:?}") }
    }

    /// Adds what was being done.
    pub fn within(self, what: impl Into<String>) -> Self {
        Self::In { what: what.into(), source: Box::new(self) }
    }

    /// A failed system call on a path.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// The whole chain on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let part = error.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            source = error.source();
        }
        text
    }
}

/// Names the operation that failed.
pub trait Within<T> {
    /// Adds what was being done, with its subject.
    fn within(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Within<T> for Result<T, E> {
    fn within(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| error.into().within(what()))
    }
}

/// A program or path of the image that is not as the request says is the caller's to mend; the rest is ours.
fn launch_code(failure: &Failure) -> Code {
    match failure.stage.as_str() {
        "exec" | "cwd" => match io_code(&std::io::Error::from_raw_os_error(failure.errno)) {
            Code::Internal => Code::InvalidArgument,
            code => code,
        },
        "container" => Code::NotFound,
        "state" => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

fn io_code(error: &std::io::Error) -> Code {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

fn store_code(error: &pinnace_store::Error) -> Code {
    use pinnace_store::Code as Store;
    match error.code() {
        Store::NotFound => Code::NotFound,
        Store::AlreadyExists => Code::AlreadyExists,
        Store::InvalidArgument => Code::InvalidArgument,
        Store::FailedPrecondition => Code::FailedPrecondition,
        Store::ResourceExhausted => Code::ResourceExhausted,
        Store::DataLoss => Code::DataLoss,
        Store::Internal => Code::Internal,
    }
}

fn network_code(error: &pinnace_network::NetworkError) -> Code {
    use pinnace_network::Code as Network;
    match error.code() {
        Network::InvalidArgument => Code::InvalidArgument,
        Network::AlreadyExists => Code::AlreadyExists,
        Network::ResourceExhausted => Code::ResourceExhausted,
        Network::Unavailable => Code::Unavailable,
        Network::FailedPrecondition => Code::FailedPrecondition,
        Network::Internal => Code::Internal,
    }
}

/// What is wrong with a plugin is the administrator's to mend.
fn cni_code(error: &pinnace_cni::ChainError) -> Code {
    use pinnace_cni::{ChainError, PluginError, code};
    let ChainError::Network(failure) = error else { return Code::Internal };
    match &failure.source {
        PluginError::TimedOut { .. } => Code::DeadlineExceeded,
        PluginError::NotFound { .. } => Code::FailedPrecondition,
        refused if refused.code() == Some(code::TRY_AGAIN_LATER) => Code::Unavailable,
        _ => Code::Internal,
    }
}

fn cgroup_code(error: &pinnace_cgroup::CgroupError) -> Code {
    use pinnace_cgroup::Code as Cgroup;
    match error.code() {
        Cgroup::InvalidArgument => Code::InvalidArgument,
        Cgroup::NotFound => Code::NotFound,
        Cgroup::AlreadyExists => Code::AlreadyExists,
        Cgroup::FailedPrecondition => Code::FailedPrecondition,
        Cgroup::ResourceExhausted => Code::ResourceExhausted,
        Cgroup::DeadlineExceeded => Code::DeadlineExceeded,
        Cgroup::Internal => Code::Internal,
    }
}

fn spec_code(error: &pinnace_spec::Error) -> Code {
    use pinnace_spec::Code as Spec;
    match error.code() {
        Spec::InvalidArgument => Code::InvalidArgument,
        Spec::NotFound => Code::NotFound,
        Spec::FailedPrecondition => Code::FailedPrecondition,
        Spec::Internal => Code::Internal,
    }
}

fn registry_code(kind: pinnace_registry::ErrorKind) -> Code {
    use pinnace_registry::ErrorKind as Registry;
    match kind {
        Registry::InvalidArgument => Code::InvalidArgument,
        Registry::NotFound => Code::NotFound,
        Registry::Unauthorized => Code::Unauthenticated,
        Registry::Forbidden => Code::PermissionDenied,
        Registry::RateLimited => Code::ResourceExhausted,
        Registry::Unavailable => Code::Unavailable,
        Registry::Timeout => Code::DeadlineExceeded,
        Registry::DataLoss => Code::DataLoss,
        Registry::Configuration | Registry::InvalidImage | Registry::Refused => Code::FailedPrecondition,
    }
}

fn pull_code(error: &pinnace_pull::Error) -> Code {
    use pinnace_pull::ErrorKind as Pull;
    match error.kind() {
        Pull::Registry(registry) => registry_code(registry),
        Pull::InvalidImage => Code::FailedPrecondition,
        Pull::DataLoss => Code::DataLoss,
        Pull::ResourceExhausted => Code::ResourceExhausted,
        Pull::Cancelled => Code::Cancelled,
        Pull::Internal => Code::Internal,
    }
}

fn push_code(error: &pinnace_push::Error) -> Code {
    match error {
        pinnace_push::Error::Registry(error) => registry_code(error.kind()),
        pinnace_push::Error::Store(error) => store_code(error),
        pinnace_push::Error::Compress { source, .. } => io_code(source),
        pinnace_push::Error::Damaged(_) => Code::DataLoss,
        pinnace_push::Error::ByDigest => Code::InvalidArgument,
        pinnace_push::Error::Manifest(_) => Code::Internal,
        pinnace_push::Error::Cancelled => Code::Cancelled,
    }
}

fn archive_code(error: &pinnace_archive::Error) -> Code {
    use pinnace_archive::Error as Archive;
    match error {
        Archive::Store(error) => store_code(error),
        Archive::Layer { source, .. } => store_code(source),
        Archive::Write(source) => io_code(source),
        Archive::Digest { .. } => Code::DataLoss,
        Archive::Platform { .. } => Code::NotFound,
        Archive::Limit { .. } => Code::ResourceExhausted,
        Archive::Read(_)
        | Archive::Compression(_)
        | Archive::NoImage
        | Archive::Missing { .. }
        | Archive::Json { .. }
        | Archive::Document { .. }
        | Archive::LayerCount { .. } => Code::InvalidArgument,
    }
}

impl From<pinnace_push::Error> for Error {
    fn from(error: pinnace_push::Error) -> Self {
        Self::Push(Box::new(error))
    }
}

impl From<pinnace_archive::Error> for Error {
    fn from(error: pinnace_archive::Error) -> Self {
        Self::Archive(Box::new(error))
    }
}

impl From<pinnace_spec::image::Error> for Error {
    fn from(error: pinnace_spec::image::Error) -> Self {
        Self::Spec(error.into())
    }
}

impl From<pinnace_spec::cdi::Error> for Error {
    fn from(error: pinnace_spec::cdi::Error) -> Self {
        Self::Spec(error.into())
    }
}

impl From<pinnace_spec::user::Error> for Error {
    fn from(error: pinnace_spec::user::Error) -> Self {
        Self::Spec(error.into())
    }
}
