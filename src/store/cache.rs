//! What builds remember: steps by key, each with the layer that it made.
//!
//! ```text
//! cache/<key>     one step, JSON
//! ```
//! A remembered step keeps its layer from being collected. Records are not flushed: a step that a power cut takes is done
//! again, and one whose layer is gone is forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Inner;
use crate::digest::DiffId;
use crate::dir::{Dir, Flush};
use crate::error::{Error, Result};
use crate::lease::Lease;

const RECORD_VERSION: u32 = 1;
const RECORD_BYTES: u64 = 1 << 20;
const KEY_DIGITS: usize = 64;

/// A step of a build that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    version: u32,
    /// What the step is a function of, as 64 hex digits.
    pub key: String,
    /// What it made; nothing for a step that only changes the configuration.
    pub layer: Option<DiffId>,
    /// When it was done, as the image's history says (RFC 3339).
    pub created: String,
    /// The instruction, for people.
    pub description: String,
    /// When it was last of use, in seconds since the epoch.
    pub used_at: u64,
}

impl CachedStep {
    /// A step that was just done.
    pub fn new(
        key: String,
        layer: Option<DiffId>,
        created: String,
        description: String,
        used_at: u64,
    ) -> Self {
        Self { version: RECORD_VERSION, key, layer, created, description, used_at }
    }
}

/// Steps in memory, by key.
pub(crate) type Steps = BTreeMap<String, Arc<CachedStep>>;

fn is_key(key: &str) -> bool {
    key.len() == KEY_DIGITS && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads the records; what is none, or has lost its layer, is removed.
pub(crate) fn load(cache: &Dir, has_layer: impl Fn(&DiffId) -> bool) -> Result<Steps> {
    let mut steps = Steps::new();
    for name in cache.names()? {
        let bytes = if is_key(&name) { cache.read(&name, RECORD_BYTES)? } else { None };
        let step = bytes.and_then(|bytes| serde_json::from_slice::<CachedStep>(&bytes).ok());
        match step.filter(|step| step.version == RECORD_VERSION && step.key == name) {
            Some(step) if step.layer.as_ref().is_none_or(&has_layer) => {
                steps.insert(name, Arc::new(step));
            }
            _ => drop(cache.remove_file(&name)?),
        }
    }
    Ok(steps)
}

impl Inner {
    pub(crate) fn cached_step(&self, lease: &Lease, key: &str) -> Option<Arc<CachedStep>> {
        let step = self.state().cache.get(key).cloned()?;
        // Held before anybody relies on it; a damaged layer is none.
        match &step.layer {
            Some(layer) => lease.hold_layer(layer).map(|_| step),
            None => Some(step),
        }
    }

    pub(crate) fn remember_step(&self, step: CachedStep) -> Result<()> {
        let path = || self.cache.entry(&step.key);
        if !is_key(&step.key) {
            return Err(Error::BadKey(step.key.chars().take(KEY_DIGITS).collect()));
        }
        let bytes = serde_json::to_vec(&step).map_err(|source| Error::Record { path: path(), source })?;
        self.cache.replace(&step.key, &bytes, Flush::No)?;
        self.state().cache.insert(step.key.clone(), Arc::new(step));
        Ok(())
    }

    /// Forgets the steps that `drop` names; answers how many.
    pub(crate) fn forget_steps(&self, doomed: impl Fn(&CachedStep) -> bool) -> Result<usize> {
        let keys: Vec<String> = {
            let mut state = self.state();
            let keys: Vec<_> =
                state.cache.values().filter(|step| doomed(step)).map(|step| step.key.clone()).collect();
            keys.iter().for_each(|key| drop(state.cache.remove(key)));
            keys
        };
        for key in &keys {
            self.cache.remove_file(key)?;
        }
        Ok(keys.len())
    }
}
