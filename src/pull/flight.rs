//! One operation for everyone who wants its result.
//!
//! ```text
//!  start ──► running ──► result for all who wait
//!              │
//!              └─ the last one leaves ──► aborted
//! ```
//!
//! A flight is found by its key only while it runs: who comes after the result starts anew.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The running operations of one kind.
pub(crate) struct Flights<K: Eq + Hash, V, P> {
    running: Mutex<Running<K, V, P>>,
    runtime: Handle,
}

/// A running operation, with a number that tells it from later ones with its key.
type Entry<K, V, P> = (u64, Weak<Flight<K, V, P>>);

struct Running<K: Eq + Hash, V, P> {
    by_key: HashMap<K, Entry<K, V, P>>,
    next: u64,
}

/// A place in a running operation. Dropping the last place aborts it.
pub(crate) struct Flight<K: Eq + Hash, V, P> {
    flights: Arc<Flights<K, V, P>>,
    key: K,
    number: u64,
    result: watch::Receiver<Option<V>>,
    progress: watch::Receiver<P>,
    abort: AbortHandle,
}

impl<K, V, P> Flights<K, V, P>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    P: Send + Sync + 'static,
{
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { running: Mutex::new(Running { by_key: HashMap::new(), next: 0 }), runtime })
    }

    /// Joins the operation with that key, or starts it. The flag tells whether it was started.
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: K,
        progress: P,
        start: impl FnOnce(watch::Sender<P>) -> F,
    ) -> (Arc<Flight<K, V, P>>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running();
        if let Some(flight) = running.by_key.get(&key).and_then(|(_, flight)| flight.upgrade()) {
            return (flight, false);
        }
        running.next += 1;
        let number = running.next;
        let (result_tx, result) = watch::channel(None);
        let (progress_tx, progress) = watch::channel(progress);
        let operation = start(progress_tx);
        let listing = Listing { flights: Arc::clone(self), key: key.clone(), number };
        let task = self.runtime.spawn(async move {
            let listing = listing;
            let value = operation.await;
            // Not to be found any more before the result is out: a result is for those who waited.
            drop(listing);
            result_tx.send_replace(Some(value));
        });
        let flight = Arc::new(Flight {
            flights: Arc::clone(self),
            key: key.clone(),
            number,
            result,
            progress,
            abort: task.abort_handle(),
        });
        running.by_key.insert(key, (number, Arc::downgrade(&flight)));
        (flight, true)
    }
}

impl<K, V, P> Flights<K, V, P>
where
    K: Eq + Hash,
{
    fn forget(&self, key: &K, number: u64) {
        let mut running = self.running();
        if running.by_key.get(key).is_some_and(|(present, _)| *present == number) {
            running.by_key.remove(key);
        }
    }

    /// Those that are on their way. The lock is free again when they are dropped, which needs it.
    pub(crate) fn running_flights(&self) -> Vec<Arc<Flight<K, V, P>>> {
        self.running().by_key.values().filter_map(|(_, flight)| flight.upgrade()).collect()
    }

    fn running(&self) -> MutexGuard<'_, Running<K, V, P>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V, P> Flight<K, V, P>
where
    K: Eq + Hash,
    V: Clone,
    P: Clone,
{
    /// The result; nothing if the operation died without one.
    pub(crate) async fn result(&self) -> Option<V> {
        let mut result = self.result.clone();
        let value = result.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }

    /// By what it is found.
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Changes of the operation's progress.
    pub(crate) fn progress(&self) -> watch::Receiver<P> {
        self.progress.clone()
    }
}

/// Makes an operation impossible to find when it ends, however it ends.
struct Listing<K: Eq + Hash, V, P> {
    flights: Arc<Flights<K, V, P>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V, P> Drop for Listing<K, V, P> {
    fn drop(&mut self) {
        self.flights.forget(&self.key, self.number);
    }
}

impl<K, V, P> Drop for Flight<K, V, P>
where
    K: Eq + Hash,
{
    fn drop(&mut self) {
        self.flights.forget(&self.key, self.number);
        // Without effect on an operation that is over.
        self.abort.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    type Numbers = Flights<&'static str, usize, ()>;

    struct CountOnDrop(Arc<AtomicUsize>);
    impl Drop for CountOnDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn joiners_share_one_run_and_latecomers_start_anew() {
        let flights: Arc<Numbers> = Flights::new(Handle::current());
        let go = Arc::new(Notify::new());
        let starts = Arc::new(AtomicUsize::new(0));
        let join = || {
            let (go, starts) = (Arc::clone(&go), Arc::clone(&starts));
            flights.join("a", (), move |_| async move {
                let number = starts.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                number
            })
        };
        let (first, started) = join();
        let (second, started_again) = join();
        assert!(started && !started_again);
        go.notify_one();
        assert_eq!((first.result().await, second.result().await), (Some(0), Some(0)));
        let (third, started) = join();
        assert!(started, "the old result is still held, but not handed out");
        go.notify_one();
        assert_eq!(third.result().await, Some(1));
        assert_eq!(first.result().await, Some(0));
    }

    #[tokio::test]
    async fn the_last_to_leave_cancels() {
        let flights: Arc<Numbers> = Flights::new(Handle::current());
        let dropped = Arc::new(AtomicUsize::new(0));
        let join = || {
            let guard = CountOnDrop(Arc::clone(&dropped));
            flights.join("a", (), move |_| async move {
                let _guard = guard;
                std::future::pending().await
            })
        };
        let (first, _) = join();
        let (second, _) = join();
        assert_eq!(dropped.swap(0, Ordering::SeqCst), 1, "the second operation was never started");
        drop(first);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        drop(second);
        let (third, started) = join();
        assert!(started);
        while dropped.load(Ordering::SeqCst) < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(third);
    }

    #[tokio::test]
    async fn a_panic_is_no_result() {
        let flights: Arc<Numbers> = Flights::new(Handle::current());
        let (dead, _) = flights.join("a", (), |_| async { panic!("on purpose") });
        assert_eq!(dead.result().await, None);
        let (alive, started) = flights.join("a", (), |_| async { 1 });
        assert!(started, "a dead operation is not joined");
        assert_eq!(alive.result().await, Some(1));
    }
}
