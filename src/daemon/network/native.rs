//! The standard plugins as code of ours, in the place of their programs.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use pinnace_cni::{CniResult, NetworkList, Plugin, PluginError, Request};
use pinnace_network::native::{Call, Native, NativeError, VERSIONS};
use serde_json::Value;

use crate::table::lock;

/// All of them; which one is meant is said by each configuration.
#[derive(Debug, Clone, Default)]
pub struct Standard {
    /// Opened when it is first needed: most nodes have no configuration of CNI.
    open: Arc<Mutex<Option<Arc<Native>>>>,
}

impl Standard {
    /// Runs `work` where it may block. It goes on when nobody waits for it any more.
    fn run<T: Send + 'static>(
        &self,
        request: Request,
        work: impl FnOnce(&Native, Call<'_>) -> Result<T, NativeError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, PluginError>> {
        let this = self.clone();
        Box::pin(async move {
            let kind = request.config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
            let failed = |reason: String| PluginError::Native { kind: kind.clone(), reason };
            let worked = tokio::task::spawn_blocking(move || {
                let native = this.native().map_err(|error| chain(&error))?;
                let told = request.invocation.as_deref();
                let args = told.map(|told| {
                    let pairs = told.args.iter().map(|(key, value)| format!("{key}={value}"));
                    pairs.collect::<Vec<_>>().join(";")
                });
                let config = Value::Object(request.config);
                let call = Call {
                    container: told.map_or("", |told| &told.container_id),
                    netns: told.and_then(|told| told.netns.as_deref()),
                    ifname: told.map_or("", |told| &told.ifname),
                    args: args.as_deref().unwrap_or_default(),
                    config: &config,
                };
                work(&native, call).map_err(|error| chain(&error))
            });
            match worked.await {
                Ok(worked) => worked.map_err(failed),
                Err(lost) => Err(failed(lost.to_string())),
            }
        })
    }

    fn native(&self) -> Result<Arc<Native>, pinnace_network::NetlinkError> {
        let mut open = lock(&self.open);
        if let Some(native) = &*open {
            return Ok(Arc::clone(native));
        }
        Ok(Arc::clone(open.insert(Arc::new(Native::open()?))))
    }
}

impl pinnace_cni::Native for Standard {
    fn refusal(&self, list: &NetworkList) -> Option<String> {
        list.plugins.iter().find_map(|plugin| {
            if plugin.raw.get("native") == Some(&Value::Bool(false)) {
                return Some(format!("`native` is false in plugin {}", plugin.kind));
            }
            let mut config = plugin.raw.clone();
            config.insert("name".to_owned(), list.name.as_str().into());
            config.insert("cniVersion".to_owned(), list.cni_version.as_str().into());
            Native::supports(&Value::Object(config)).err().map(|reason| format!("no native {reason}"))
        })
    }

    fn withdraw(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        self.run(request, |native, call| native.withdraw(call))
    }
}

impl Plugin for Standard {
    fn add(&self, request: Request) -> BoxFuture<'_, Result<CniResult, PluginError>> {
        let version = request.cni_version;
        let added = self.run(request, |native, call| native.add(call));
        Box::pin(async move {
            let result = added.await?;
            let output = result.to_string();
            CniResult::parse(output.as_bytes(), version)
                .map_err(|source| PluginError::Native { kind: "result".to_owned(), reason: chain(&source) })
        })
    }

    fn del(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        self.run(request, |native, call| native.del(call))
    }

    fn check(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        self.run(request, |native, call| native.check(call))
    }

    fn gc(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        self.run(request, |native, call| native.gc(call.config))
    }

    fn status(&self, _: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        Box::pin(async { Ok(()) })
    }

    fn version(&self, _: Request) -> BoxFuture<'_, Result<Vec<String>, PluginError>> {
        Box::pin(async { Ok(VERSIONS.map(str::to_owned).into()) })
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}
