//! What an attempt has finished but no image has taken: kept for a while, then collected.
//!
//! Every hold on new content is a [`Keep`]. Whoever makes the content part of something that lasts
//! settles it. If that never happens, because a pull failed or was cancelled at any moment, the
//! end of the hold starts the period of grace, and the store collects after it. An image that is
//! recorded with that content ends the period at once: from then on the image holds it, and removing
//! the image gives the space back.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pinnace_store::{Digest, Lease, Store};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How many blobs of given-up images are remembered at most.
const HOPELESS_BLOBS: usize = 10_000;

/// Ends holds that nobody settled.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Store,
    grace: Duration,
    runtime: Handle,
    graces: Mutex<Vec<(Vec<Digest>, CancellationToken)>>,
    hopeless: Mutex<HashSet<Digest>>,
}

/// A hold on content of the store.
#[derive(Debug)]
pub(crate) struct Keep {
    lease: Lease,
    content: Vec<Digest>,
    loose: AtomicBool,
    keeper: Arc<Keeper>,
}

impl Keeper {
    pub(crate) fn new(store: Store, grace: Duration, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { store, grace, runtime, graces: Mutex::default(), hopeless: Mutex::default() })
    }

    /// A hold for the layers with these blobs, or with these diffIDs where no blob is known.
    pub(crate) fn hold(self: &Arc<Self>, content: Vec<Digest>) -> Keep {
        Keep { lease: self.store.lease(), content, loose: AtomicBool::new(false), keeper: Arc::clone(self) }
    }

    /// An image with these blobs and diffIDs was recorded: whoever kept nothing else need not keep it.
    pub(crate) fn recorded(&self, image: &HashSet<Digest>) {
        self.graces().retain(|(content, end)| {
            let stays = content.iter().any(|blob| !image.contains(blob));
            if !stays {
                end.cancel();
            }
            stays
        });
    }

    /// An image with these blobs is not what it claims to be, or there is no room for it. Another attempt would end the same
    /// way, so nothing is kept for it, also of layers that are still on their way out.
    pub(crate) fn give_up(&self, image: &HashSet<Digest>) {
        let mut hopeless = lock(&self.hopeless);
        if hopeless.len() > HOPELESS_BLOBS {
            hopeless.clear();
        }
        hopeless.extend(image);
        drop(hopeless);
        self.recorded(image);
    }

    /// Whether the blob is of an image that was given up.
    pub(crate) fn is_hopeless(&self, blob: &Digest) -> bool {
        lock(&self.hopeless).contains(blob)
    }

    /// An image with these blobs is tried, maybe again.
    pub(crate) fn hope(&self, image: &HashSet<Digest>) {
        lock(&self.hopeless).retain(|blob| !image.contains(blob));
    }

    fn graces(&self) -> MutexGuard<'_, Vec<(Vec<Digest>, CancellationToken)>> {
        lock(&self.graces)
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
        let is_hopeless = self.content.iter().all(|blob| keeper.is_hopeless(blob));
        let grace = if is_hopeless { Duration::ZERO } else { keeper.grace };
        let end = CancellationToken::new();
        keeper.graces().push((std::mem::take(&mut self.content), end.clone()));
        self.keeper.runtime.spawn(async move {
            // Ended from outside or by time: either way nobody needs to hear of it any more.
            let _ = tokio::time::timeout(grace, end.cancelled()).await;
            end.cancel();
            keeper.graces().retain(|(_, end)| !end.is_cancelled());
            drop(lease);
            let store = keeper.store.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.gc()).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "collect after an unfinished pull");
            }
        });
    }
}

/// Each critical section is a statement: a panic in one leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
