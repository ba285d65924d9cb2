//! Sizes and times for people, in Docker's words.

use std::time::{SystemTime, UNIX_EPOCH};

/// `1.23MB`: units of 1000, three digits. The digits after the point are cut where they say nothing.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut unit, mut scale) = (0, 1_u64);
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        unit += 1;
        scale *= 1000;
    }
    let name = UNITS.get(unit).unwrap_or(&"PB");
    let (whole, rest) = (bytes / scale, bytes % scale);
    let digits = match whole {
        0..10 => 2,
        10..100 => 1,
        _ => 0,
    };
    let fraction = u128::from(rest) * 10_u128.pow(digits) / u128::from(scale);
    let fraction = format!("{fraction:0width$}", width = digits as usize);
    let fraction = fraction.trim_end_matches('0');
    if unit == 0 || digits == 0 || fraction.is_empty() {
        format!("{whole}{name}")
    } else {
        format!("{whole}.{fraction}{name}")
    }
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// `5 minutes ago`
pub fn ago(seconds_since_epoch: i64) -> String {
    format!("{} ago", duration(now().saturating_sub(seconds_since_epoch)))
}

/// `5 minutes`, rounded as Docker does it.
pub fn duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    let days = hours / 24;
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours <= 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{days} days"),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", days / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// Twelve digits of an id.
pub fn short(id: &str) -> String {
    id.split_once(':').map_or(id, |(_, hex)| hex).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_s() {
        for (bytes, expected) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_230, "1.23kB"),
            (12_340_000, "12.3MB"),
            (123_900_000, "123MB"),
            (4_261_550, "4.26MB"),
            (2_000_000_000, "2GB"),
            (u64::MAX, "18446PB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn times_are_docker_s() {
        for (seconds, expected) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3700, "About an hour"),
            (2 * 3600, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 86400, "3 days"),
            (20 * 86400, "2 weeks"),
            (100 * 86400, "3 months"),
            (900 * 86400, "2 years"),
        ] {
            assert_eq!(duration(seconds), expected, "{seconds}");
        }
    }
}
