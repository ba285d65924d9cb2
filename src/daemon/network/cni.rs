//! The network of a CNI configuration: which it is, ADD, and DELs until they have succeeded.
//!
//! ```text
//! attach ─► Attached ─► detach ─► Paying ─┬─► struck out of the ledger
//!              ▲                          └─► owed ─► pay_forever, with growing pauses
//!            found (after a restart)       whatever the ledger has and nobody claims ─┘
//! ```
//! The ledger on disk says what is owed, so that nothing depends on this memory; the memory says for whom nothing is to be
//! paid yet, and who is paying already.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use pinnace_cni::{
    Chain, Interface, Invocation, IpConfig, Ledger, LedgerError, Loaded, NetworkList, NotReady, Owed, Plugins,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::native::Standard;
use crate::config::{CniMode, Config};
use crate::error::Error;
use crate::table::lock;

/// Pauses between attempts to pay: the first, doubled each time, and the last.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How many sandboxes are paid for at once.
const PAID_AT_ONCE: usize = 8;

/// How a sandbox is connected by plugins, as its record has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CniAttachment {
    /// The network.
    pub network: String,
    /// The interface inside.
    pub ifname: String,
    /// Interfaces that plugins made, the host's too.
    pub interfaces: Vec<Interface>,
    /// Addresses of the interface inside, in the plugins' order.
    pub addresses: Vec<IpConfig>,
}

impl CniAttachment {
    /// The addresses, the primary one first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.addresses.iter().map(|ip| ip.address.addr())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Lives, or is being attached.
    Attached,
    /// Somebody is calling DEL.
    Paying,
}

/// Networks by configuration.
#[derive(Debug)]
pub struct Cni {
    conf_dirs: Vec<PathBuf>,
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
    plugins: Plugins,
    chain: Chain,
    loaded: Mutex<Loaded>,
    configured: AtomicBool,
    turns: Mutex<HashMap<String, Turn>>,
    more_owed: Notify,
}

impl Cni {
    /// Reads what there is, and opens the ledger.
    pub fn open(config: &Config) -> Result<Self, LedgerError> {
        let cni = &config.cni;
        let mut plugins = Plugins::new(cni.bin_dirs.clone());
        if cni.native {
            plugins = plugins.with_native(Arc::new(Standard::default()));
        }
        let ledger = Ledger::open(config.daemon.root.join("cni"))?;
        let this = Self {
            // DELs may be owed from when there was another mode.
            conf_dirs: if cni.mode == CniMode::BuiltIn { Vec::new() } else { cni.conf_dirs.clone() },
            bin_dirs: cni.bin_dirs.clone(),
            timeout: cni.timeout,
            chain: Chain::new(plugins.clone(), ledger, cni.timeout),
            plugins,
            loaded: Mutex::default(),
            configured: AtomicBool::new(false),
            turns: Mutex::default(),
            more_owed: Notify::new(),
        };
        this.take(Loaded::read(&this.conf_dirs));
        Ok(this)
    }

    /// Whether there is or was any file that looks like a configuration.
    pub fn was_configured(&self) -> bool {
        self.configured.load(Ordering::Relaxed)
    }

    /// Reads the directories again if something in them has changed.
    pub fn refresh(&self) {
        let changed = lock(&self.loaded).reread_if_changed(&self.conf_dirs);
        if let Some(next) = changed {
            self.take(next);
        }
    }

    fn take(&self, next: Loaded) {
        for problem in &next.problems {
            tracing::warn!(path = %problem.path.display(), reason = problem.reason, kept = problem.kept, "CNI configuration");
        }
        if let Some(list) = &next.network {
            let refusal = self.plugins.refusal(list);
            tracing::info!(
                network = list.name,
                file = %list.source.display(),
                natively = refusal.is_none(),
                why = refusal,
                "CNI network of pods"
            );
        }
        if next.found_any {
            self.configured.store(true, Ordering::Relaxed);
        }
        *lock(&self.loaded) = next;
    }

    /// The network of pods that come now.
    pub fn network(&self) -> Result<Arc<NetworkList>, NotReady> {
        lock(&self.loaded).ready(&self.conf_dirs)
    }

    /// What tools read of the configuration, and how its last loading went.
    pub fn status(&self) -> (Value, String) {
        let loaded = lock(&self.loaded);
        let networks: Vec<Value> = loaded
            .network
            .iter()
            .map(|list| {
                let plugins = list.plugins.iter().map(|plugin| {
                    json!({"Network": {"type": plugin.kind.as_str()}, "Source": Value::Object(plugin.raw.clone()).to_string()})
                });
                let refusal = self.plugins.refusal(list);
                json!({
                    "Config": {
                        "Name": list.name,
                        "CNIVersion": list.cni_version.as_str(),
                        "Plugins": plugins.collect::<Vec<_>>(),
                        "Source": Value::Object(list.raw.clone()).to_string(),
                    },
                    "IFName": pinnace_network::SANDBOX_IFNAME,
                    "file": list.source,
                    "native": refusal.is_none(),
                    "whyNotNative": refusal,
                })
            })
            .collect();
        let config = json!({
            "PluginDirs": self.bin_dirs,
            "PluginConfDir": self.conf_dirs.first(),
            "confDirs": self.conf_dirs,
            "PluginMaxConfNum": 1,
            "Prefix": "eth",
            "Networks": networks,
            "failedDels": self.chain.failed_dels(),
        });
        let problem = |problem: &pinnace_cni::Problem| {
            let kept = if problem.kept { " (what it said before is used)" } else { "" };
            format!("{}: {}{kept}", problem.path.display(), problem.reason)
        };
        let status = match loaded.ready(&self.conf_dirs) {
            Err(not) => not.0,
            Ok(_) if loaded.problems.is_empty() => "OK".to_owned(),
            Ok(_) => loaded.problems.iter().map(problem).collect::<Vec<_>>().join("; "),
        };
        (config, status)
    }

    /// ADD. After an error everything was deleted again, or is owed.
    pub async fn attach(
        self: &Arc<Self>,
        list: Arc<NetworkList>,
        invocation: Invocation,
    ) -> Result<CniAttachment, Error> {
        let (id, ifname) = (invocation.container_id.clone(), invocation.ifname.clone());
        let network = list.name.clone();
        lock(&self.turns).insert(id.clone(), Turn::Attached);
        let owed = match self.chain.add(list, invocation).await {
            Ok(owed) => owed,
            Err(error) => {
                lock(&self.turns).remove(&id);
                // If DEL has failed too.
                self.more_owed.notify_one();
                return Err(error.into());
            }
        };
        let Owed { result: Some(result), .. } = owed else {
            return Err(self.without_address(&id, network).await);
        };
        let addresses: Vec<IpConfig> = result.addresses_of(&ifname).cloned().collect();
        if addresses.is_empty() {
            return Err(self.without_address(&id, network).await);
        }
        Ok(CniAttachment { network, ifname, interfaces: result.interfaces, addresses })
    }

    async fn without_address(self: &Arc<Self>, id: &str, network: String) -> Error {
        self.detach(id).await;
        Error::NoAddress { network }
    }

    /// A sandbox of an earlier daemon is attached.
    pub fn found(&self, id: &str) {
        lock(&self.turns).insert(id.to_owned(), Turn::Attached);
    }

    /// DEL for a sandbox that is attached. Returns when it is paid, has failed, or takes too long; it goes on then.
    pub async fn detach(self: &Arc<Self>, id: &str) {
        match lock(&self.turns).get_mut(id) {
            Some(turn @ Turn::Attached) => *turn = Turn::Paying,
            Some(Turn::Paying) | None => return,
        }
        let (this, paid_for) = (Arc::clone(self), id.to_owned());
        let paying = tokio::spawn(async move {
            if !this.pay(&paid_for).await {
                this.more_owed.notify_one();
            }
        });
        if tokio::time::timeout(self.timeout, paying).await.is_err() {
            tracing::warn!(sandbox_id = id, limit = ?self.timeout, "DEL takes too long and is not waited for");
        }
    }

    /// Calls DEL for everything that is owed for a sandbox, whose turn the caller has; the turn ends with it.
    async fn pay(&self, id: &str) -> bool {
        let (ledger, of) = (self.chain.ledger().clone(), id.to_owned());
        let found = tokio::task::spawn_blocking(move || ledger.of(&of)).await;
        let mut paid = true;
        match found {
            Ok(Ok((owed, broken))) => {
                for error in broken {
                    tracing::error!(
                        sandbox_id = id,
                        error = &error as &dyn std::error::Error,
                        "DEL cannot be paid"
                    );
                }
                for owed in owed {
                    if let Err(error) = self.chain.del(&owed).await {
                        let error = Error::from(error);
                        tracing::warn!(sandbox_id = id, error = error.chain(), "DEL failed and is owed");
                        paid = false;
                    }
                }
            }
            Ok(Err(error)) => {
                tracing::error!(
                    sandbox_id = id,
                    error = &error as &dyn std::error::Error,
                    "read what is owed"
                );
                paid = false;
            }
            Err(error) => {
                tracing::error!(sandbox_id = id, %error, "read what is owed");
                paid = false;
            }
        }
        lock(&self.turns).remove(id);
        paid
    }

    /// Pays what nobody claims; how many sandboxes are still owed for.
    async fn pay_all(&self) -> usize {
        let ledger = self.chain.ledger().clone();
        let owed = match tokio::task::spawn_blocking(move || ledger.read()).await {
            Ok(Ok((owed, _))) => owed,
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "read what is owed");
                return 1;
            }
            Err(_) => return 1,
        };
        let mut ids: BTreeSet<String> = owed.into_iter().map(|owed| owed.invocation.container_id).collect();
        {
            let mut turns = lock(&self.turns);
            ids.retain(|id| !turns.contains_key(id));
            turns.extend(ids.iter().map(|id| (id.clone(), Turn::Paying)));
        }
        let paid = futures_util::stream::iter(ids)
            .map(|id| async move { self.pay(&id).await })
            .buffer_unordered(PAID_AT_ONCE);
        paid.filter(|paid| std::future::ready(!paid)).count().await
    }

    /// Pays what is owed from before, has the plugins clear what nobody knows of, then pays whenever a DEL has failed.
    pub async fn pay_forever(&self) {
        let (mut pause, mut uncleared) = (PAUSE_FIRST, true);
        loop {
            let left = self.pay_all().await;
            if left == 0 && uncleared {
                uncleared = !self.clear().await;
            }
            tokio::select! {
                () = self.more_owed.notified() => {
                    pause = PAUSE_FIRST;
                    tokio::time::sleep(pause).await;
                }
                () = tokio::time::sleep(pause), if left != 0 || uncleared => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// GC; whether that was done, as far as it can be.
    async fn clear(&self) -> bool {
        let Ok(list) = self.network() else { return true };
        match self.chain.gc(&list).await {
            Ok(None) => false,
            Ok(Some(failures)) => {
                for failure in failures {
                    tracing::warn!(error = &failure as &dyn std::error::Error, "GC");
                }
                true
            }
            Err(error) => {
                tracing::warn!(error = Error::from(error).chain(), "GC");
                true
            }
        }
    }
}
