//! CNI: networks that an administrator describes and plugins make.
//!
//! ```text
//! *.conflist ──► NetworkList ──► Plugins: a program (exec) or code of ours, one after the other
//!                                   │ CniResult, in the form of 1.1 whatever is spoken
//! Chain: ADD in order, DEL in reverse ◄──► Ledger: an entry from before ADD until DEL has succeeded
//! ```
//! A plugin is a stranger: what it reads is bounded by what its kind needs, what it writes and how long it takes by
//! constants, and whatever it does concerns the pod it was called for and no other.

mod chain;
mod directory;
mod error;
mod exec;
mod ledger;
mod list;
mod plugin;
mod result;
mod version;

pub use crate::chain::{Chain, ChainError};
pub use crate::directory::{FileError, Loaded, NotReady, Problem};
pub use crate::error::{NetworkFailure, PluginError, code};
pub use crate::exec::ExecPlugin;
pub use crate::ledger::{Ledger, LedgerError, NetnsIdentity, Owed};
pub use crate::list::{CONFIG_BYTES_MAX, ListError, NetworkList, PluginConfig, PluginType};
pub use crate::plugin::{Invocation, Native, Operation, Plugin, Plugins, Request, ValidAttachment};
pub use crate::result::{CniResult, Dns, Interface, IpConfig, ResultError, Route};
pub use crate::version::{UnknownVersion, Version};
