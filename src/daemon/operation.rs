//! Operations that outlive the call that began them.
//!
//! tonic drops a handler's future when its client goes away, and dropping is cancelling: a mutation that ran inside the
//! handler could stop at any await. So each mutation is a task of its own that the handler only waits for, and a call that
//! asks for the same thing again while it runs waits for the same task (the kubelet repeats RunPodSandbox and
//! CreateContainer with the same name when its deadline passes).

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use tokio_util::task::TaskTracker;

use crate::error::{Code, Error};
use crate::table::lock;

type Outcome<T> = Result<T, (Code, String)>;
type Joint<T> = Shared<BoxFuture<'static, Outcome<T>>>;

/// Running operations of one kind, by what they make.
#[derive(Debug)]
pub struct Operations<K, T: Clone> {
    running: Arc<Mutex<HashMap<K, Joint<T>>>>,
    tasks: TaskTracker,
}

impl<K, T> Operations<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// None running; tasks are accounted in `tasks`.
    pub fn new(tasks: TaskTracker) -> Self {
        Self { running: Arc::default(), tasks }
    }

    /// Runs `operation` to its end whatever becomes of the caller, or joins the one that runs for `key`.
    pub async fn run<F>(&self, key: K, operation: F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let joint = {
            let mut running = lock(&self.running);
            match running.get(&key) {
                Some(joint) => joint.clone(),
                None => {
                    let table = Arc::clone(&self.running);
                    let own = key.clone();
                    let task = self.tasks.spawn(async move {
                        let result = operation.await;
                        lock(&table).remove(&own);
                        result.map_err(|error| (error.code(), error.chain()))
                    });
                    let joint = async move {
                        task.await.unwrap_or_else(|lost| Err((Code::Internal, Error::from(lost).chain())))
                    }
                    .boxed()
                    .shared();
                    running.insert(key, joint.clone());
                    joint
                }
            }
        };
        joint.await.map_err(|(code, message)| Error::Joined { code, message })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_second_call_joins_and_a_dropped_call_does_not_stop_it() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let operations = Arc::new(Operations::new(TaskTracker::new()));
        let work = || async {
            RUNS.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(7)
        };
        let dropped = tokio::time::timeout(Duration::from_millis(5), operations.run("pod", work())).await;
        assert!(dropped.is_err());
        assert_eq!(operations.run("pod", work()).await.unwrap(), 7);
        assert_eq!(RUNS.load(Ordering::SeqCst), 1);
        assert_eq!(operations.run("pod", work()).await.unwrap(), 7);
        assert_eq!(RUNS.load(Ordering::SeqCst), 2);
    }
}
