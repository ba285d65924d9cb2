//! What is being pulled now, and what all pulls have come to.

use std::sync::atomic::{AtomicU64, Ordering};

use pinnace_registry::Reference;
use tokio::sync::watch;

use crate::progress::Progress;
use crate::puller::{Outcome, Puller};

/// A pull that is under way.
#[derive(Clone, Debug)]
pub struct Running {
    /// The image.
    pub reference: Reference,
    /// Changes of its progress; watching it does not keep the pull going.
    pub progress: watch::Receiver<Progress>,
}

/// Since the start of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pulls that were started; those that joined another one are not counted.
    pub started: u64,
    /// Those that ended with an image.
    pub succeeded: u64,
    /// Those that ended with an error.
    pub failed: u64,
    /// Compressed bytes of layers that pulls with an image have fetched.
    pub fetched_bytes: u64,
}

/// The same, being counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    started: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    fetched_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn begin(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, outcome: &Outcome) {
        match outcome {
            Ok(pulled) => {
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                self.fetched_bytes.fetch_add(pulled.fetched_bytes, Ordering::Relaxed);
            }
            Err(_) => drop(self.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn read(&self) -> Totals {
        Totals {
            started: self.started.load(Ordering::Relaxed),
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            fetched_bytes: self.fetched_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Puller {
    /// The pulls that are under way, whoever asked for them, by their references.
    pub fn running(&self) -> Vec<Running> {
        let flights = self.pulls().running_flights().into_iter();
        let mut running: Vec<Running> = flights
            .map(|flight| Running { reference: flight.key().reference.clone(), progress: flight.progress() })
            .collect();
        running.sort_by_cached_key(|pull| pull.reference.to_string());
        running
    }

    /// What all pulls have come to.
    pub fn totals(&self) -> Totals {
        self.counters().read()
    }
}
