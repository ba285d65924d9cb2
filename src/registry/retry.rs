//! Trying again: when, how often, how long to wait.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::error::Problem;

/// Longest wait, also when a server asks for more: then the error says so at once.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Runs `step` until it succeeds, fails for good, or has been tried `attempts` times.
pub(crate) async fn with_backoff<T, F>(
    attempts: u32,
    first_wait: Duration,
    mut step: impl FnMut() -> F,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let mut attempt = 1;
    loop {
        match step().await {
            Ok(value) => return Ok(value),
            Err(problem) if attempt >= attempts || !problem.is_transient() => return Err(problem),
            Err(problem) => {
                let Some(wait) = wait(attempt, first_wait, problem.retry_after()) else {
                    return Err(problem);
                };
                tracing::debug!(
                    error = &problem as &dyn std::error::Error,
                    attempt,
                    wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                    "will try again"
                );
                tokio::time::sleep(wait).await;
                attempt += 1;
            }
        }
    }
}

/// The wait after a failed attempt; nothing if the server wants to be left alone for longer.
pub(crate) fn wait(attempt: u32, first: Duration, asked: Option<Duration>) -> Option<Duration> {
    if asked.is_some_and(|asked| asked > WAIT_MAX) {
        return None;
    }
    let doubled = first.saturating_mul(1 << (attempt - 1).min(10)).min(WAIT_MAX);
    // Between half and all of it, so that the nodes of a cluster do not come back together.
    let jittered = doubled.mul_f64(0.5 + 0.5 * unit_random());
    Some(asked.unwrap_or_default().max(jittered))
}

/// A number from 0 to 1; the seed of the standard library's hash maps is random enough for this.
fn unit_random() -> f64 {
    let hash = RandomState::new().build_hasher().finish();
    f64::from((hash >> 40) as u32 & 0xff_ffff) / f64::from(0x100_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_jitter() {
        let first = Duration::from_millis(100);
        for attempt in 1..20 {
            let full = first.saturating_mul(1 << (attempt - 1).min(10)).min(WAIT_MAX);
            let wait = wait(attempt, first, None).unwrap();
            assert!(wait >= full / 2 && wait <= full, "{attempt}: {wait:?}");
        }
    }

    #[test]
    fn servers_are_obeyed_within_reason() {
        let first = Duration::from_millis(1);
        assert!(wait(1, first, Some(Duration::from_secs(7))).unwrap() >= Duration::from_secs(7));
        assert_eq!(wait(1, first, Some(Duration::from_secs(3600))), None);
    }
}
