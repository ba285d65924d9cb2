//! The network of a CNI configuration: which it is, ADD, and DELs until they have succeeded.
//!
//! ```text
//! attach ─► Attached ─► detach ──────────────────────────► Paying ─┬─► struck out of the ledger
//!              ▲   └──► withdraw ─► Withdrawn ─► namespace_gone ─┘ └─► owed ─► pay_forever, with growing pauses
//!            found (after a restart)       whatever the ledger has and nobody claims ─┘
//! ```
//! Deleting a pod's device takes the kernel some 20 ms, in which it changes no other link; with its namespace it goes by
//! itself. So where the plugins are our own code, a stop only takes away what leads to the pod, and DEL, which gives the
//! addresses back, comes when the device has gone.
//!
//! The ledger on disk says what is owed, so that nothing depends on this memory; the memory says for whom nothing is to be
//! paid yet, and who is paying already.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use pinnace_cni::{
    Chain, ChainError, Interface, Invocation, IpConfig, Ledger, LedgerError, Loaded, NetworkList, NotReady,
    Owed, Plugins,
};
use pinnace_network::NetworkError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use super::native::Standard;
use crate::config::{CniMode, Config};
use crate::error::Error;
use crate::table::lock;

/// Pauses between attempts to pay: the first, doubled each time, and the last.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often plugins that can tell are asked whether ADD would work.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

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
    /// What a record has of an attachment.
    pub fn of(owed: Owed) -> Self {
        let Owed { list, invocation: Invocation { ifname, .. }, result, .. } = owed;
        let (addresses, interfaces) = result.map_or_else(Default::default, |result| {
            (result.addresses_of(&ifname).cloned().collect(), result.interfaces)
        });
        Self { network: list.name, ifname, interfaces, addresses }
    }

    /// The addresses, the primary one first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.addresses.iter().map(|ip| ip.address.addr())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Lives, or is being attached.
    Attached,
    /// Nothing leads to it any more; the rest waits until its namespace is gone.
    Withdrawn,
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
    /// What the plugins said last of why ADD would not work.
    unable: Mutex<Option<String>>,
    turns: Mutex<HashMap<String, Turn>>,
    turn_ended: Notify,
    /// For DELs in the background: each holds a thread until its device is gone.
    places: Semaphore,
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
            unable: Mutex::default(),
            turns: Mutex::default(),
            turn_ended: Notify::new(),
            places: Semaphore::new(PAID_AT_ONCE),
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
        *lock(&self.unable) = None;
        *lock(&self.loaded) = next;
    }

    /// The network of pods that come now.
    pub fn network(&self) -> Result<Arc<NetworkList>, NotReady> {
        lock(&self.loaded).ready(&self.conf_dirs)
    }

    /// Why pods that come now cannot be attached, as far as is known. Answers from memory.
    pub fn ready(&self) -> Result<(), NotReady> {
        self.network()?;
        match &*lock(&self.unable) {
            Some(reason) => Err(NotReady(reason.clone())),
            None => Ok(()),
        }
    }

    /// Asks the plugins whether ADD would work, now and again, for those who want to know at once.
    pub async fn ask_forever(&self) {
        loop {
            self.refresh();
            let unable = match self.network() {
                Ok(list) => {
                    let asked = self.chain.status(&list).await.map_err(ChainError::from);
                    asked.err().map(|error| Error::from(error).chain())
                }
                Err(_) => None,
            };
            let before = std::mem::replace(&mut *lock(&self.unable), unable.clone());
            if before != unable {
                tracing::info!(reason = unable.as_deref().unwrap_or("none"), "plugins that cannot add");
            }
            tokio::time::sleep(STATUS_INTERVAL).await;
        }
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
            "pendingDels": lock(&self.turns).values().filter(|turn| **turn == Turn::Paying).count(),
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

    /// Whether ADD of this list needs a namespace only, and no process that lives in it.
    pub fn is_native(&self, list: &NetworkList) -> bool {
        self.plugins.native(list).is_some()
    }

    /// ADD. After an error everything was deleted again, or is owed.
    pub async fn attach(
        self: &Arc<Self>,
        list: Arc<NetworkList>,
        invocation: Invocation,
    ) -> Result<Owed, Error> {
        let (id, ifname) = (invocation.container_id.clone(), invocation.ifname.clone());
        let network = list.name.clone();
        self.begin(&id).await?;
        let owed = match self.chain.add(list, invocation).await {
            Ok(owed) => owed,
            Err(error) => {
                lock(&self.turns).remove(&id);
                // If DEL has failed too.
                self.more_owed.notify_one();
                return Err(error.into());
            }
        };
        let has_address =
            owed.result.as_ref().is_some_and(|result| result.addresses_of(&ifname).next().is_some());
        if has_address {
            Ok(owed)
        } else {
            self.detach(&id).await;
            Err(Error::NoAddress { network })
        }
    }

    /// A sandbox that comes back at once, as a container that is restarted, waits until its DEL of before is paid.
    async fn begin(&self, id: &str) -> Result<(), Error> {
        let paid = async {
            loop {
                let ended = self.turn_ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                match lock(&self.turns).entry(id.to_owned()) {
                    Entry::Occupied(turn) if *turn.get() != Turn::Attached => {}
                    turn => {
                        turn.insert_entry(Turn::Attached);
                        return;
                    }
                }
                ended.await;
            }
        };
        let detaching = |_| NetworkError::Detaching { sandbox: id.to_owned() };
        Ok(tokio::time::timeout(self.timeout, paid).await.map_err(detaching)?)
    }

    /// The same for a list that [`Cni::is_native`], once the namespace has a process; `path` leads to it from now on.
    pub async fn move_namespace(&self, mut owed: Owed, path: PathBuf) -> Result<Owed, Error> {
        self.chain.move_namespace(&mut owed, path).await?;
        Ok(owed)
    }

    /// A sandbox of an earlier daemon is attached.
    pub fn found(&self, id: &str) {
        lock(&self.turns).insert(id.to_owned(), Turn::Attached);
    }

    /// DEL for a sandbox that is attached. Returns when it is paid, has failed, or takes too long; it goes on then.
    pub async fn detach(self: &Arc<Self>, id: &str) {
        match lock(&self.turns).get_mut(id) {
            Some(turn @ (Turn::Attached | Turn::Withdrawn)) => *turn = Turn::Paying,
            Some(Turn::Paying) | None => return,
        }
        let (this, paid_for) = (Arc::clone(self), id.to_owned());
        let paying = tokio::spawn(async move { this.pay_in_turn(&paid_for).await });
        if tokio::time::timeout(self.timeout, paying).await.is_err() {
            tracing::warn!(sandbox_id = id, limit = ?self.timeout, "DEL takes too long and is not waited for");
        }
    }

    /// Takes away what leads to a sandbox that is attached, if the rest of DEL can follow its namespace: then
    /// [`Cni::namespace_gone`] is to be told, and [`Cni::detach`] is not needed. Can be called again.
    pub async fn withdraw(&self, id: &str) -> bool {
        if !matches!(lock(&self.turns).get(id), Some(Turn::Attached | Turn::Withdrawn)) {
            return false;
        }
        let (ledger, of) = (self.chain.ledger().clone(), id.to_owned());
        let Ok(Ok((owed, broken))) = tokio::task::spawn_blocking(move || ledger.of(&of)).await else {
            return false;
        };
        if owed.is_empty() || !broken.is_empty() {
            return false;
        }
        for owed in &owed {
            match self.chain.withdraw(owed).await {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    let error = Error::from(error);
                    tracing::warn!(sandbox_id = id, error = error.chain(), "not withdrawn before DEL");
                    return false;
                }
            }
        }
        match lock(&self.turns).get_mut(id) {
            Some(turn @ (Turn::Attached | Turn::Withdrawn)) => *turn = Turn::Withdrawn,
            Some(Turn::Paying) | None => return false,
        }
        true
    }

    /// The namespace of a sandbox that was withdrawn has gone, or is about to: DEL is called in the background.
    pub fn namespace_gone(self: &Arc<Self>, id: &str) {
        match lock(&self.turns).get_mut(id) {
            Some(turn @ Turn::Withdrawn) => *turn = Turn::Paying,
            Some(Turn::Attached | Turn::Paying) | None => return,
        }
        let (this, paid_for) = (Arc::clone(self), id.to_owned());
        tokio::spawn(async move {
            // Never closed, so the place is always had.
            let _place = this.places.acquire().await;
            this.pay_in_turn(&paid_for).await;
        });
    }

    async fn pay_in_turn(&self, id: &str) {
        if !self.pay(id).await {
            self.more_owed.notify_one();
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
        self.turn_ended.notify_waiters();
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
