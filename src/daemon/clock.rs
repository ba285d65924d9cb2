//! Time as the CRI wants it, and as the daemon spends it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `CLOCK_REALTIME` in nanoseconds since the epoch; enough until the year 2262.
pub fn realtime_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Now, as image configs have it: RFC 3339 in UTC.
pub fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}

/// CPU time that this process has had.
pub fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The same of a time in seconds since the epoch.
pub fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}
