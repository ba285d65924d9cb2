//! Space of layers that are removed but whose files are still being unlinked.
//!
//! Unlinking a large file takes the kernel a while: its pages and its extents go one by one. Nobody waits for that to
//! learn that an image is gone, but what the images take is only told less when the disk has it back.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::usage::Usage;

#[derive(Debug, Default)]
pub(crate) struct Dying {
    usage: Mutex<Usage>,
    changed: Condvar,
}

/// The part of one layer; it ends with this.
#[derive(Debug)]
pub(crate) struct Part {
    of: Arc<Dying>,
    usage: Usage,
}

impl Dying {
    pub(crate) fn add(self: &Arc<Self>, usage: Usage) -> Part {
        *self.lock() += usage;
        Part { of: Arc::clone(self), usage }
    }

    /// What is left after at most that long.
    pub(crate) fn settle(&self, patience: Duration) -> Usage {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, |left| *left != Usage::default());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut left = self.of.lock();
        left.bytes = left.bytes.saturating_sub(self.usage.bytes);
        left.inodes = left.inodes.saturating_sub(self.usage.inodes);
        self.of.changed.notify_all();
    }
}
