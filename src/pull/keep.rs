//! What an attempt has finished but no image has taken: kept for a while, then collected.
//!
//! Every hold on new content is a [`Keep`]. Whoever makes the content part of something that lasts
//! settles it. If that never happens, because a pull failed or was cancelled at any moment, the
//! end of the hold starts the period of grace, and the store collects after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pinnace_store::{Lease, Store};
use tokio::runtime::Handle;

/// Ends holds that nobody settled.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    grace: Duration,
    runtime: Handle,
}

/// A hold on content of the store.
#[derive(Debug)]
pub(crate) struct Keep {
    lease: Lease,
    loose: AtomicBool,
    keeper: Arc<Keeper>,
}

impl Keeper {
    pub(crate) fn new(store: Store, grace: Duration, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { store, grace, runtime })
    }

    /// A hold on nothing yet.
    pub(crate) fn hold(self: &Arc<Self>) -> Keep {
        Keep { lease: self.store.lease(), loose: AtomicBool::new(false), keeper: Arc::clone(self) }
    }
}

impl Keep {
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// There is something now that nobody else holds.
    pub(crate) fn loosen(&self) {
        self.loose.store(true, Ordering::Release);
    }

    /// Somebody else holds it all.
    pub(crate) fn settle(&self) {
        self.loose.store(false, Ordering::Release);
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        if !*self.loose.get_mut() {
            return;
        }
        let (lease, keeper) = (self.lease.clone(), Arc::clone(&self.keeper));
        self.keeper.runtime.spawn(async move {
            tokio::time::sleep(keeper.grace).await;
            drop(lease);
            let store = keeper.store.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.gc()).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "collect after an unfinished pull");
            }
        });
    }
}
