//! Making layers durable: the flushes and the marker.
//!
//! The marker file is created only after everything else of the layer was flushed, so no order in
//! which a file system persists things can show the marker without the data.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs;

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::layer::{DURABLE, INFO, LayerForm, META, TAR};

/// Flushes a layer directory and marks it.
pub(crate) fn make_durable(dir: &Dir, form: LayerForm) -> Result<()> {
    let flush = |name: &str| {
        let file: File = dir.open_file(name)?;
        fs::fdatasync(&file).map_err(Error::io("flush", dir.entry(name)))
    };
    match form {
        LayerForm::TarErofs => {
            flush(TAR)?;
            flush(META)?;
        }
        // There is no cheaper way to flush a tree of many files.
        LayerForm::Directory => fs::syncfs(dir).map_err(Error::io("flush the file system of", dir.path()))?,
    }
    flush(INFO)?;
    dir.flush()?;
    if !dir.contains(DURABLE)? {
        dir.create_file(DURABLE)?;
    }
    fs::fsync(dir.as_fd()).map_err(Error::io("flush", dir.path()))
}

/// A thread that does work in the background, in order.
#[derive(Debug)]
pub(crate) struct Background {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Background {
    pub(crate) fn start(name: &str) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut queue = own.lock();
            loop {
                if let Some(job) = queue.jobs.pop_front() {
                    queue.running = true;
                    drop(queue);
                    job();
                    queue = own.lock();
                    queue.running = false;
                    own.changed.notify_all();
                } else if queue.closed {
                    return;
                } else {
                    queue = own.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.lock().jobs.push_back(Box::new(job));
        self.shared.changed.notify_all();
    }

    /// Waits until nothing is left to do.
    pub(crate) fn wait(&self) {
        let mut queue = self.shared.lock();
        while queue.running || !queue.jobs.is_empty() {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Background {
    /// Ends after the jobs that are queued.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        let Some(thread) = self.thread.take() else { return };
        // The last reference to the store may end in a job, on that very thread.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("a background thread of the store panicked");
        }
    }
}
