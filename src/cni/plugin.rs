//! What a plugin is: something that adds, deletes and checks attachments, be it a program or code of ours.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::PluginError;
use crate::exec::ExecPlugin;
use crate::list::{NetworkList, PluginConfig};
use crate::result::CniResult;
use crate::version::Version;

/// The operations of CNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Attach.
    Add,
    /// Detach; repeated, it does nothing.
    Del,
    /// Look whether an attachment is as it was made.
    Check,
    /// Clear what belongs to no attachment.
    Gc,
    /// Tell whether ADD would work.
    Status,
    /// Tell which versions are spoken.
    Version,
}

impl Operation {
    /// As in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Add => "ADD",
            Operation::Del => "DEL",
            Operation::Check => "CHECK",
            Operation::Gc => "GC",
            Operation::Status => "STATUS",
            Operation::Version => "VERSION",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is told about one attachment; the same for ADD, CHECK and DEL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Invocation {
    /// `CNI_CONTAINERID`: the sandbox.
    pub container_id: String,
    /// `CNI_NETNS`; none when the namespace is gone.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: the interface inside.
    pub ifname: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// Values for plugins that declare the capability: portMappings, bandwidth, ipRanges, dns, cgroupPath, ...
    pub capability_args: BTreeMap<String, Value>,
}

/// One call of one plugin.
#[derive(Debug, Clone)]
pub struct Request {
    /// The derived configuration: name, cniVersion, runtimeConfig, prevResult and what the list says.
    pub config: Map<String, Value>,
    /// The version that is spoken.
    pub cni_version: Version,
    /// The result so far, as in `config`.
    pub prev_result: Option<CniResult>,
    /// The attachment; none for GC, STATUS and VERSION.
    pub invocation: Option<Arc<Invocation>>,
    /// How long the call may take.
    pub timeout: Duration,
}

/// An attachment as GC is told of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID` of its ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `CNI_IFNAME` of its ADD.
    pub ifname: String,
}

/// A plugin. What blocks must do so off the runtime's threads.
pub trait Plugin: Send + Sync + Debug {
    /// Attaches.
    fn add(&self, request: Request) -> BoxFuture<'_, Result<CniResult, PluginError>>;
    /// Detaches; also when nothing is attached and when the namespace is gone.
    fn del(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>>;
    /// Looks whether the attachment is as the previous result says.
    fn check(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>>;
    /// Clears what belongs to none of `cni.dev/valid-attachments` of the configuration.
    fn gc(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>>;
    /// Tells whether ADD would work.
    fn status(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>>;
    /// Which versions it speaks.
    fn version(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, PluginError>>;
}

/// Code that takes the place of programs: of all plugins of a list, or of none.
pub trait Native: Plugin {
    /// Why this list is left to its programs; none if it is executed here.
    fn refusal(&self, list: &NetworkList) -> Option<String>;
    /// The part of DEL that cannot wait until the pod's namespace is gone; the devices inside go with that. DEL follows.
    fn withdraw(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>>;
}

/// Where plugins are found.
#[derive(Debug, Clone, Default)]
pub struct Plugins {
    bin_dirs: Vec<PathBuf>,
    native: Option<Arc<dyn Native>>,
}

impl Plugins {
    /// Programs in these directories, the first that has one wins.
    #[must_use]
    pub fn new(bin_dirs: Vec<PathBuf>) -> Self {
        Self { bin_dirs, native: None }
    }

    /// Code that takes the place of programs where it can.
    #[must_use]
    pub fn with_native(mut self, native: Arc<dyn Native>) -> Self {
        self.native = Some(native);
        self
    }

    /// Why the plugins of this list are programs; none if they are not.
    #[must_use]
    pub fn refusal(&self, list: &NetworkList) -> Option<String> {
        match &self.native {
            None => Some("native execution is switched off".to_owned()),
            Some(native) => native.refusal(list),
        }
    }

    /// What executes this list here, if it is not left to its programs.
    #[must_use]
    pub fn native(&self, list: &NetworkList) -> Option<&Arc<dyn Native>> {
        self.native.as_ref().filter(|native| native.refusal(list).is_none())
    }

    /// A plugin of a list. What an attachment was made with need not be what takes it away: both keep the same things.
    #[must_use]
    pub fn find(&self, list: &NetworkList, plugin: &PluginConfig) -> Arc<dyn Plugin> {
        match self.native(list) {
            Some(native) => Arc::clone(native) as Arc<dyn Plugin>,
            None => Arc::new(ExecPlugin::new(plugin.kind.clone(), self.bin_dirs.clone())),
        }
    }
}
