//! How far a pull has come.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pinnace_store::Digest;

/// The time over which a speed is measured.
const METER_SPAN: Duration = Duration::from_secs(5);

/// What is happening to a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing yet.
    #[default]
    Waiting,
    /// Its bytes arrive and are unpacked.
    Fetching,
    /// All bytes are here; the last of them are being unpacked and verified.
    Finishing,
    /// It is in the store.
    Done,
    /// It was in the store before.
    Present,
}

/// How far one layer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer's blob.
    pub digest: Digest,
    /// Compressed bytes that have arrived.
    pub done_bytes: u64,
    /// Compressed bytes that there are.
    pub total_bytes: u64,
    /// What is happening.
    pub phase: Phase,
}

/// How far a pull has come; no layers before the manifest is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The layers, base first, each blob once.
    pub layers: Vec<LayerProgress>,
}

impl Progress {
    /// Compressed bytes that have arrived or were here before.
    pub fn done_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.done_bytes).sum()
    }

    /// Compressed bytes of the image.
    pub fn total_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.total_bytes).sum()
    }
}

/// Speed from totals that were read now and then.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Adds what has arrived in all by now, and answers bytes per second of the last few seconds.
    pub fn sample(&mut self, done_bytes: u64, now: Instant) -> u64 {
        // What was here before makes a jump that is no speed.
        if self.samples.back().is_none_or(|(_, before)| *before == 0) {
            self.samples.clear();
        }
        self.samples.push_back((now, done_bytes));
        while self.samples.len() > 2 && now.duration_since(self.samples[0].0) > METER_SPAN {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let millis = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX);
        done_bytes.saturating_sub(before).saturating_mul(1000).checked_div(millis).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_of_the_last_seconds() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut meter = Meter::default();
        assert_eq!(meter.sample(0, at(0)), 0);
        // Most of it was here before.
        assert_eq!(meter.sample(1_000_000, at(1)), 0);
        assert_eq!(meter.sample(1_001_000, at(2)), 1000);
        assert_eq!(meter.sample(1_003_000, at(3)), 1500);
        for second in 4..20 {
            meter.sample(1_003_000, at(second));
        }
        assert_eq!(meter.sample(1_003_000, at(20)), 0, "a stall is seen");
    }
}
