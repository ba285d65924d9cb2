//! CNI's standard plugins as code of ours, in the place of their programs.
//!
//! [`StandardPlugin`] is registered under the types of [`KINDS`]. Every call is decided by its configuration: what
//! [`Native`] does exactly it does, everything else goes to the program, and [`StandardPlugin::reasons`] says why. As
//! either removes what the other made, the decision may differ between ADD and DEL, e.g. after an update.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pinnace_cni::{CniResult, ExecPlugin, Plugin, PluginError, PluginType, Request, code};
use pinnace_network::native::{Call, Native, NativeError};
use serde_json::Value;

/// The plugins that are executed natively.
pub const KINDS: [&str; 4] = ["bridge", "portmap", "bandwidth", "loopback"];

/// One of the standard plugins.
#[derive(Debug)]
pub struct StandardPlugin {
    kind: PluginType,
    native: Arc<Native>,
    program: ExecPlugin,
    reasons: Mutex<BTreeSet<String>>,
}

impl StandardPlugin {
    /// The plugin of this type, whose program is in one of the directories.
    pub fn new(kind: PluginType, native: Arc<Native>, bin_dirs: Vec<PathBuf>) -> Self {
        let program = ExecPlugin::new(kind.clone(), bin_dirs);
        StandardPlugin { kind, native, program, reasons: Mutex::default() }
    }

    /// Why the program was executed so far.
    pub fn reasons(&self) -> Vec<String> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether the call is one of ours; notes the reason if not.
    fn is_native(&self, request: &Request) -> bool {
        let Err(unsupported) = Native::supports(&Value::Object(request.config.clone())) else {
            return true;
        };
        let reason = unsupported.to_string();
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.insert(reason.clone()) {
            tracing::info!(plugin = self.kind.as_str(), reason, "plugin is executed as a program");
        }
        false
    }

    /// Runs `work` where it may block.
    fn run<T: Send + 'static>(
        &self,
        request: Request,
        work: impl FnOnce(&Native, Call<'_>) -> Result<T, NativeError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, PluginError>> {
        let native = Arc::clone(&self.native);
        let refused = |message: String| PluginError::Refused {
            kind: self.kind.clone(),
            code: code::INTERNAL,
            message,
            details: String::new(),
        };
        async move {
            let worked = tokio::task::spawn_blocking(move || {
                let config = Value::Object(request.config);
                let pairs = request.invocation.iter().flat_map(|invocation| &invocation.args);
                let args = pairs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";");
                let invocation = request.invocation.as_deref();
                let call = Call {
                    container: invocation.map_or("", |invocation| &invocation.container_id),
                    netns: invocation.and_then(|invocation| invocation.netns.as_deref()),
                    ifname: invocation.map_or("", |invocation| &invocation.ifname),
                    args: &args,
                    config: &config,
                };
                work(&native, call)
            });
            match worked.await {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(error)) => Err(refused(chain(&error))),
                Err(panicked) => Err(refused(panicked.to_string())),
            }
        }
        .boxed()
    }
}

impl Plugin for StandardPlugin {
    fn add(&self, request: Request) -> BoxFuture<'_, Result<CniResult, PluginError>> {
        if !self.is_native(&request) {
            return self.program.add(request);
        }
        let version = request.cni_version;
        async move {
            let result = self.run(request, |native, call| native.add(call)).await?;
            let output = result.to_string();
            CniResult::parse(output.as_bytes(), version).map_err(|source| PluginError::Garbage {
                kind: self.kind.clone(),
                output,
                source,
            })
        }
        .boxed()
    }

    fn del(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        if !self.is_native(&request) {
            return self.program.del(request);
        }
        self.run(request, |native, call| native.del(call))
    }

    fn check(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        if !self.is_native(&request) {
            return self.program.check(request);
        }
        self.run(request, |native, call| native.check(call))
    }

    fn gc(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        if !self.is_native(&request) {
            return self.program.gc(request);
        }
        self.run(request, |native, call| native.gc(call.config))
    }

    fn status(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        // Nothing has to run for these plugins to work.
        if self.is_native(&request) { async { Ok(()) }.boxed() } else { self.program.status(request) }
    }

    fn version(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, PluginError>> {
        if !self.is_native(&request) {
            return self.program.version(request);
        }
        async { Ok(pinnace_network::native::VERSIONS.map(str::to_owned).to_vec()) }.boxed()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
