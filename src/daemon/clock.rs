//! Time as the CRI wants it.

use std::time::{SystemTime, UNIX_EPOCH};

/// `CLOCK_REALTIME` in nanoseconds since the epoch; enough until the year 2262.
pub fn realtime_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Now, as image configs have it: RFC 3339 in UTC.
pub fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}
