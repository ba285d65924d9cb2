//! How much CPU is used now, from a counter that only grows.

use std::time::{Duration, Instant};

/// Shortest time over which a rate is taken: shorter ones measure the scheduler.
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    cpu_ns: u64,
}

/// The last two readings that are at least [`WINDOW`] apart.
#[derive(Debug, Default)]
pub struct CpuWindow {
    older: Option<Reading>,
    newer: Option<Reading>,
}

impl CpuWindow {
    /// Takes a reading and tells the rate in cores × 10⁹. Before there are two readings it is that since the beginning,
    /// which is `age` ago, so that the first asking has an answer too.
    pub fn rate(&mut self, at: Instant, cpu_ns: u64, age: Duration) -> u64 {
        match self.newer {
            Some(newer) if at.saturating_duration_since(newer.at) < WINDOW => {}
            newer => {
                self.older = newer;
                self.newer = Some(Reading { at, cpu_ns });
            }
        }
        let (used_ns, time) = match (self.older, self.newer) {
            (Some(older), Some(newer)) => {
                (newer.cpu_ns.saturating_sub(older.cpu_ns), newer.at.saturating_duration_since(older.at))
            }
            _ => (cpu_ns, age),
        };
        let rate = u128::from(used_ns) * 1_000_000_000 / time.as_nanos().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_window() {
        let mut window = CpuWindow::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        // Half a core since it began two seconds ago.
        assert_eq!(window.rate(start, 1_000_000_000, 2 * second), 500_000_000);
        // Too early for a rate of its own.
        assert_eq!(window.rate(start + second / 2, 1_500_000_000, 5 * second / 2), 600_000_000);
        assert_eq!(window.rate(start + 2 * second, 5_000_000_000, 4 * second), 2_000_000_000);
        // Asked again at once, it does not change.
        assert_eq!(window.rate(start + 2 * second + second / 10, 9_000_000_000, 4 * second), 2_000_000_000);
        assert_eq!(window.rate(start + 4 * second, 5_000_000_000, 6 * second), 0);
        // A counter that went back is no rate at all.
        assert_eq!(window.rate(start + 6 * second, 1, 8 * second), 0);
    }
}
