//! Sizes, durations and times as people write and read them, in docker's forms.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};

/// Bytes: a number with b, k, m, g or t (of 1024), with or without a further b.
pub fn parse_bytes(text: &str) -> anyhow::Result<i64> {
    let wrong = || format!("{text:?} is no size: write it as 64m, 1.5g or a number of bytes");
    let lower = text.trim().to_lowercase();
    let number = lower.trim_end_matches("ib").trim_end_matches('b');
    let (number, unit) = match number.chars().last().with_context(wrong)? {
        'k' => (&number[..number.len() - 1], 1_u64 << 10),
        'm' => (&number[..number.len() - 1], 1 << 20),
        'g' => (&number[..number.len() - 1], 1 << 30),
        't' => (&number[..number.len() - 1], 1 << 40),
        _ => (number, 1),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().ok().with_context(wrong)?;
    let digits = part.get(..part.len().min(6)).unwrap_or_default();
    let numerator: u64 = digits.parse().ok().with_context(wrong)?;
    let denominator = 10_u64.pow(u32::try_from(digits.len())?);
    let bytes = whole.checked_mul(unit).with_context(wrong)?;
    let bytes = bytes.checked_add(numerator.saturating_mul(unit) / denominator).with_context(wrong)?;
    i64::try_from(bytes).ok().with_context(wrong)
}

/// As [`parse_bytes`]; -1 is no limit.
pub fn parse_bytes_or_unlimited(text: &str) -> anyhow::Result<i64> {
    if text == "-1" { Ok(-1) } else { parse_bytes(text) }
}

/// CPUs as a decimal number, in 10⁻⁹.
pub fn parse_cpus(text: &str) -> anyhow::Result<i64> {
    let wrong = || format!("{text:?} is no number of CPUs: write it as 2 or 0.5");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part = format!("{part:0<9}");
    if part.len() > 9 {
        bail!(wrong());
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let nano: i64 = format!("{whole}{part}").parse().ok().with_context(wrong)?;
    if nano < 0 { Err(anyhow!(wrong())) } else { Ok(nano) }
}

/// A duration as Go writes it: 1h30m, 10s, 500ms, 1.5s.
pub fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let wrong = || format!("{text:?} is no duration: write it as 10s, 1m30s or 500ms");
    let mut rest = text;
    let mut sum = Duration::ZERO;
    if text.is_empty() {
        bail!(wrong());
    }
    if text == "0" {
        return Ok(sum);
    }
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').with_context(wrong)?;
        let number: f64 = rest[..end].parse().ok().with_context(wrong)?;
        rest = &rest[end..];
        let end = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => bail!(wrong()),
        };
        rest = &rest[end..];
        sum += Duration::try_from_secs_f64(number * unit).ok().with_context(wrong)?;
    }
    Ok(sum)
}

/// Nanoseconds since the epoch, for what is now.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A moment: RFC 3339, a date, seconds since the epoch, or a duration before now. Nanoseconds since the epoch.
pub fn parse_time(text: &str) -> anyhow::Result<i64> {
    if text.parse::<u64>().is_err()
        && let Ok(ago) = parse_duration(text)
    {
        return Ok(now_ns().saturating_sub(i64::try_from(ago.as_nanos())?));
    }
    if let Some((seconds, part)) = text.split_once('.').or(Some((text, "")))
        && let Ok(seconds) = seconds.parse::<i64>()
        && let Ok(part) = format!("{part:0<9}").get(..9).unwrap_or_default().parse::<i64>()
    {
        return Ok(seconds.saturating_mul(1_000_000_000).saturating_add(part));
    }
    let with_zone = [text.to_owned(), format!("{text}Z"), format!("{text}T00:00:00Z"), format!("{text}:00Z")];
    let parsed = with_zone.iter().find_map(|text| text.parse::<jiff::Timestamp>().ok());
    let parsed = parsed.with_context(|| {
        format!(
            "{text:?} is no time: write it as 2026-01-31T12:00:00Z, as 10m, or as seconds since the epoch"
        )
    })?;
    Ok(i64::try_from(parsed.as_nanosecond())?)
}

/// How long, in docker's words.
pub fn duration(ns: i64) -> String {
    crate::human::duration(ns / 1_000_000_000)
}

/// How long ago.
pub fn ago(at_ns: i64) -> String {
    format!("{} ago", duration(now_ns().saturating_sub(at_ns)))
}

/// A size in units of 1024.
pub fn binary_size(bytes: u64) -> String {
    let (base, units) = (1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]);
    let mut unit = 1_u64;
    for name in units {
        if bytes / unit < base {
            let (whole, rest) = (bytes / unit, bytes % unit);
            let thousandths = u64::try_from(u128::from(rest) * 1000 / u128::from(unit)).unwrap_or(0);
            let text = match whole {
                0..10 => format!("{whole}.{thousandths:03}"),
                10..100 => format!("{whole}.{:02}", thousandths / 10),
                100..1000 => format!("{whole}.{}", thousandths / 100),
                _ => whole.to_string(),
            };
            let text =
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
            return format!("{text}{name}");
        }
        unit = unit.saturating_mul(base);
    }
    format!("{bytes}B")
}

/// RFC 3339, in UTC.
pub fn time(at_ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(at_ns.into()).map(|at| format!("{at:.9}")).unwrap_or_default()
}

/// Docker's form in lists.
pub fn date(at_ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(at_ns.into()) {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("64m", 64 << 20), ("1.5g", 3 << 29), ("10", 10), ("2kb", 2048), ("1KiB", 1024)]
        {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "m", "-1", "1x", "1.m"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(binary_size(3 << 19), "1.5MiB");
    }

    #[test]
    fn durations_and_times() {
        assert_eq!(parse_duration("1m30.5s").unwrap(), Duration::from_millis(90_500));
        assert!(parse_duration("10").is_err() && parse_duration("s").is_err());
        assert_eq!(parse_time("1.5").unwrap(), 1_500_000_000);
        assert_eq!(parse_time("1970-01-02").unwrap(), 86_400_000_000_000);
        assert!(parse_time("10s").unwrap() < now_ns());
        assert_eq!(parse_cpus("1.5").unwrap(), 1_500_000_000);
        let second = 1_000_000_000;
        for (seconds, text) in
            [(0, "Less than a second"), (5, "5 seconds"), (61, "About a minute"), (7200, "2 hours")]
        {
            assert_eq!(duration(seconds * second), text);
        }
    }
}
