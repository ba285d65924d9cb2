//! A network's plugins one after the other, and the ledger kept right while they run.
//!
//! ```text
//! add ─► ledger: owed ─► ADD 1 ─► ADD 2 ─► … ─► ledger: with result
//!                          └─ fails ─► DEL … 2, 1 ─► ledger: struck out, or still owed
//! del ─► DEL n … 2, 1 ─► ledger: struck out, or still owed
//! ```
//! Adds and deletes of different pods run side by side; GC runs alone, as the specification demands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::RwLock;

use crate::error::{NetworkFailure, PluginError, code};
use crate::ledger::{Ledger, LedgerError, NetnsIdentity, Owed};
use crate::list::{NetworkList, PluginConfig};
use crate::plugin::{Invocation, Operation, Plugins, Request, ValidAttachment};
use crate::result::CniResult;
use crate::version::Version;

/// Why an attachment was not made, or not taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A plugin failed.
    #[error(transparent)]
    Network(#[from] NetworkFailure),
    /// What is owed could not be written down.
    #[error("ledger of attachments")]
    Ledger(#[from] LedgerError),
    /// A thread for files could not be had.
    #[error("write the ledger of attachments")]
    Thread(#[from] tokio::task::JoinError),
}

/// Runs plugins.
#[derive(Debug)]
pub struct Chain {
    plugins: Plugins,
    ledger: Ledger,
    timeout: Duration,
    alone: RwLock<()>,
    failed_dels: AtomicU64,
}

impl Chain {
    /// Each call of a plugin has `timeout`.
    #[must_use]
    pub fn new(plugins: Plugins, ledger: Ledger, timeout: Duration) -> Self {
        Self { plugins, ledger, timeout, alone: RwLock::new(()), failed_dels: AtomicU64::new(0) }
    }

    /// What is owed.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How many DELs have failed so far.
    pub fn failed_dels(&self) -> u64 {
        self.failed_dels.load(Ordering::Relaxed)
    }

    /// Attaches. After an error everything was deleted again, or is owed.
    pub async fn add(&self, list: Arc<NetworkList>, invocation: Invocation) -> Result<Owed, ChainError> {
        let _turn = self.alone.read().await;
        let netns = invocation.netns.as_deref().and_then(|path| NetnsIdentity::of(path).ok());
        let mut owed = Owed { list: NetworkList::clone(&list), invocation, netns, result: None };
        let native = self.plugins.native(&list).cloned();
        if native.is_none() {
            self.write(&owed, true).await?;
        } else {
            // All that outlives a power cut of what our code makes are files of addresses, made after this entry and flushed
            // by nobody: the entry gets to the disk no later than they do, and the pod need not wait for it.
            self.write(&owed, false).await?;
            let (ledger, entry) = (self.ledger.clone(), owed.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = ledger.flush(&entry) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(sandbox_id = entry.invocation.container_id, error, "ledger not flushed");
                }
            });
        }
        let told = Arc::new(owed.invocation.clone());
        for plugin in &list.plugins {
            let request = self.request(&list, plugin, Some(&told), owed.result.as_ref());
            let added = match &native {
                Some(native) => native.add(request).await,
                None => self.plugins.find(&list, plugin).add(request).await,
            };
            match added {
                Ok(result) => owed.result = Some(result),
                Err(source) => {
                    let failure = failure(Operation::Add, &list, source);
                    // DEL is told what there was when ADD failed.
                    if let Err(error) = self.del_in_turn(&owed).await {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(
                            sandbox_id = told.container_id,
                            error,
                            "DEL after a failed ADD is owed"
                        );
                    }
                    return Err(failure.into());
                }
            }
        }
        self.write(&owed, false).await?;
        Ok(owed)
    }

    /// The namespace of an attachment is at another path from now on: that is what DEL and CHECK are told.
    pub async fn move_namespace(&self, owed: &mut Owed, path: PathBuf) -> Result<(), ChainError> {
        let text = path.display().to_string();
        let before = owed.invocation.netns.replace(path);
        for interface in owed.result.iter_mut().flat_map(|result| &mut result.interfaces) {
            if before.as_deref().is_some_and(|before| before == Path::new(&interface.sandbox)) {
                interface.sandbox.clone_from(&text);
            }
        }
        self.write(owed, false).await
    }

    /// Detaches. After an error the DEL is still owed.
    pub async fn del(&self, owed: &Owed) -> Result<(), ChainError> {
        let _turn = self.alone.read().await;
        self.del_in_turn(owed).await
    }

    /// Takes away what leads to the pod, where that can be done apart from the rest: DEL is to follow when the pod's
    /// namespace is gone. False where it cannot, and nothing was done.
    pub async fn withdraw(&self, owed: &Owed) -> Result<bool, ChainError> {
        let list = &owed.list;
        let Some(native) = self.plugins.native(list) else { return Ok(false) };
        // DEL has to be told which port it is that goes.
        let Some(result) = owed.result.as_ref().filter(|_| list.cni_version >= Version::V0_4_0) else {
            return Ok(false);
        };
        let _turn = self.alone.read().await;
        let told = Arc::new(owed.invocation_now());
        for plugin in list.plugins.iter().rev() {
            let request = self.request(list, plugin, Some(&told), Some(result));
            native.withdraw(request).await.map_err(|error| failure(Operation::Del, list, error))?;
        }
        Ok(true)
    }

    async fn del_in_turn(&self, owed: &Owed) -> Result<(), ChainError> {
        let list = &owed.list;
        let told = Arc::new(owed.invocation_now());
        // Results are passed to DEL since 0.4.0.
        let result = owed.result.as_ref().filter(|_| list.cni_version >= Version::V0_4_0);
        let mut first = None;
        for plugin in list.plugins.iter().rev() {
            let request = self.request(list, plugin, Some(&told), result);
            match self.plugins.find(list, plugin).del(request).await {
                Ok(()) => {}
                Err(error) if error.code() == Some(code::UNKNOWN_CONTAINER) => {}
                // The others give back what they can all the same; all are called again later.
                Err(error) => {
                    first.get_or_insert(failure(Operation::Del, list, error));
                }
            }
        }
        if let Some(failure) = first {
            self.failed_dels.fetch_add(1, Ordering::Relaxed);
            return Err(failure.into());
        }
        let (ledger, struck) = (self.ledger.clone(), owed.clone());
        Ok(tokio::task::spawn_blocking(move || ledger.clear(&struck)).await??)
    }

    /// Looks whether an attachment is as it was made, if the network can tell.
    pub async fn check(&self, owed: &Owed) -> Result<(), ChainError> {
        let list = &owed.list;
        if list.disable_check || list.cni_version < Version::V0_4_0 {
            return Ok(());
        }
        let _turn = self.alone.read().await;
        let told = Arc::new(owed.invocation.clone());
        for plugin in &list.plugins {
            let request = self.request(list, plugin, Some(&told), owed.result.as_ref());
            let checked = self.plugins.find(list, plugin).check(request).await;
            checked.map_err(|error| failure(Operation::Check, list, error))?;
        }
        Ok(())
    }

    /// Whether ADD would work, if the network can tell.
    pub async fn status(&self, list: &NetworkList) -> Result<(), NetworkFailure> {
        if list.cni_version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &list.plugins {
            let request = self.request(list, plugin, None, None);
            let status = self.plugins.find(list, plugin).status(request).await;
            status.map_err(|error| failure(Operation::Status, list, error))?;
        }
        Ok(())
    }

    /// Has what belongs to no entry of the ledger cleared, if the network can; every failure is returned. Does nothing, and
    /// returns none, while other operations are under way: they would have to wait for all of it.
    pub async fn gc(&self, list: &NetworkList) -> Result<Option<Vec<NetworkFailure>>, ChainError> {
        if list.disable_gc || list.cni_version < Version::V1_1_0 {
            return Ok(Some(Vec::new()));
        }
        let Ok(_alone) = self.alone.try_write() else { return Ok(None) };
        let ledger = self.ledger.clone();
        let (owed, broken) = tokio::task::spawn_blocking(move || ledger.read()).await??;
        if let Some(unreadable) = broken.into_iter().next() {
            // What it attaches would be taken for nobody's.
            return Err(unreadable.into());
        }
        let valid = owed.into_iter().filter(|owed| owed.list.name == list.name).map(|owed| {
            let Invocation { container_id, ifname, .. } = owed.invocation;
            ValidAttachment { container_id, ifname }
        });
        let valid = serde_json::to_value(valid.collect::<Vec<_>>()).expect("texts are always JSON");
        let mut failures = Vec::new();
        for plugin in &list.plugins {
            let mut request = self.request(list, plugin, None, None);
            request.config.insert("cni.dev/valid-attachments".to_owned(), valid.clone());
            if let Err(error) = self.plugins.find(list, plugin).gc(request).await {
                failures.push(failure(Operation::Gc, list, error));
            }
        }
        Ok(Some(failures))
    }

    async fn write(&self, owed: &Owed, durable: bool) -> Result<(), ChainError> {
        let (ledger, owed) = (self.ledger.clone(), owed.clone());
        Ok(tokio::task::spawn_blocking(move || ledger.write(&owed, durable)).await??)
    }

    fn request(
        &self,
        list: &NetworkList,
        plugin: &PluginConfig,
        invocation: Option<&Arc<Invocation>>,
        prev_result: Option<&CniResult>,
    ) -> Request {
        Request {
            config: derive(list, plugin, invocation.map(Arc::as_ref), prev_result),
            cni_version: list.cni_version,
            prev_result: prev_result.cloned(),
            invocation: invocation.cloned(),
            timeout: self.timeout,
        }
    }
}

fn failure(operation: Operation, list: &NetworkList, source: PluginError) -> NetworkFailure {
    NetworkFailure { operation, network: list.name.clone(), source }
}

/// What a plugin is told: its configuration, and what the runtime adds. What only the runtime may say is taken out first.
fn derive(
    list: &NetworkList,
    plugin: &PluginConfig,
    invocation: Option<&Invocation>,
    prev_result: Option<&CniResult>,
) -> Map<String, Value> {
    let mut config = plugin.raw.clone();
    config.retain(|key, _| {
        !key.starts_with("cni.dev/")
            && !["capabilities", "runtimeConfig", "prevResult"].contains(&key.as_str())
    });
    config.insert("name".to_owned(), list.name.as_str().into());
    config.insert("cniVersion".to_owned(), list.cni_version.as_str().into());
    if let Some(invocation) = invocation {
        let wanted = plugin.capabilities.iter().filter(|(_, wanted)| **wanted);
        let told = wanted
            .filter_map(|(name, _)| Some((name.clone(), invocation.capability_args.get(name)?.clone())));
        let runtime: Map<String, Value> = told.collect();
        if !runtime.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
    }
    if let Some(result) = prev_result {
        config.insert("prevResult".to_owned(), Value::Object(result.to_map(list.cni_version)));
    }
    config
}
