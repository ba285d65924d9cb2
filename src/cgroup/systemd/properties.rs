//! Limits as properties of a unit (systemd.resource-control(5)), so that systemd, when it applies what it knows of a
//! unit, applies what we have written.

use zbus::{OwnedVariant, Variant};

use super::unit::Scope;
use crate::error::{CgroupError, Result};
use crate::setting::Setting;

/// "No limit" in all numbers of systemd.
const INFINITY: u64 = u64::MAX;
const SECOND_US: u64 = 1_000_000;
/// systemd writes a quota down in whole percents of a CPU, cut off.
const PERCENT_US: u64 = SECOND_US / 100;
/// The kernel's default, for a quota without a period.
const PERIOD_US: u64 = 100_000;
/// No machine has so many CPUs or memory nodes.
const MOST_BITS: usize = 8192;
/// The first systemd with AllowedCPUs; CPUQuotaPeriodUSec came two before.
const CPUSET_SINCE: u32 = 244;

/// A property's name and value.
pub(super) type Property = (&'static str, OwnedVariant);

/// Of the unit itself, whatever its limits.
pub(super) fn scope(scope: &Scope, description: &str, pid: u32) -> Vec<Property> {
    vec![
        ("Description", text(description)),
        ("Slice", text(scope.slice())),
        // Its inside is ours: sessions have groups there.
        ("Delegate", flag(true)),
        // Not stopped with everything else at shutdown: the kubelet ends pods in their order, before.
        ("DefaultDependencies", flag(false)),
        // A scope that has failed (an OOM kill) is not kept to be looked at.
        ("CollectMode", text("inactive-or-failed")),
        ("MemoryAccounting", flag(true)),
        ("CPUAccounting", flag(true)),
        ("TasksAccounting", flag(true)),
        ("PIDs", owned(Variant::from(vec![pid]))),
    ]
}

/// Of the files that are to be written; `quota` and period complete. What has no property is left out.
pub(super) fn limits(settings: &[Setting], systemd_version: u32) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for setting in settings.iter().filter(|setting| setting.line.is_none()) {
        let value = setting.value.as_str();
        let number = || number(&setting.file, value);
        match setting.file.as_str() {
            "cpu.weight" => properties.push(("CPUWeight", count(number()?))),
            "cpu.max" => {
                let (quota, period) = quota(&setting.file, value)?;
                properties.push(("CPUQuotaPerSecUSec", count(quota)));
                if systemd_version >= CPUSET_SINCE {
                    properties.push(("CPUQuotaPeriodUSec", count(period)));
                }
            }
            "memory.max" => properties.push(("MemoryMax", count(number()?))),
            "memory.high" => properties.push(("MemoryHigh", count(number()?))),
            "memory.low" => properties.push(("MemoryLow", count(number()?))),
            "memory.min" => properties.push(("MemoryMin", count(number()?))),
            "memory.swap.max" => properties.push(("MemorySwapMax", count(number()?))),
            "pids.max" => properties.push(("TasksMax", count(number()?))),
            "io.weight" => {
                properties.push((
                    "IOWeight",
                    count(self::number(&setting.file, value.trim_start_matches("default "))?),
                ));
            }
            "cpuset.cpus" if systemd_version >= CPUSET_SINCE => {
                properties.push(("AllowedCPUs", mask(&setting.file, value)?));
            }
            "cpuset.mems" if systemd_version >= CPUSET_SINCE => {
                properties.push(("AllowedMemoryNodes", mask(&setting.file, value)?));
            }
            _ => {}
        }
    }
    Ok(properties)
}

/// What a new unit has where its limits say nothing: systemd's own default is a part of what the machine can do.
pub(super) fn without_defaults(properties: &mut Vec<Property>) {
    if !properties.iter().any(|(name, _)| *name == "TasksMax") {
        properties.push(("TasksMax", count(INFINITY)));
    }
}

/// `max 100000` or `50000 100000`: microseconds per second, and the period.
fn quota(file: &str, value: &str) -> Result<(u64, u64)> {
    let mut fields = value.split_whitespace();
    let quota = number(file, fields.next().unwrap_or_default())?;
    let period = fields.next().map_or(Ok(PERIOD_US), |period| number(file, period))?;
    if quota == INFINITY {
        return Ok((INFINITY, period));
    }
    let per_second = u128::from(quota) * u128::from(SECOND_US) / u128::from(period.max(1));
    let per_second = u64::try_from(per_second).unwrap_or(INFINITY - PERCENT_US);
    Ok((per_second.div_ceil(PERCENT_US).saturating_mul(PERCENT_US), period))
}

fn number(file: &str, value: &str) -> Result<u64> {
    match value.trim() {
        "max" => Ok(INFINITY),
        digits => digits.parse().map_err(|_| malformed(file, value)),
    }
}

/// `0-3,7` as a bit per CPU, eight to a byte.
fn mask(file: &str, list: &str) -> Result<OwnedVariant> {
    let mut bytes = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |text: &str| text.parse().ok().filter(|&bit: &usize| bit < MOST_BITS);
        let (Some(first), Some(last)) = (parse(first), parse(last)) else {
            return Err(malformed(file, list));
        };
        for bit in first..=last {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0u8);
            }
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    Ok(owned(Variant::from(bytes)))
}

fn malformed(file: &str, value: &str) -> CgroupError {
    CgroupError::Malformed { file: file.into(), line: value.to_owned() }
}

fn count(value: u64) -> OwnedVariant {
    OwnedVariant::from(value)
}

fn flag(value: bool) -> OwnedVariant {
    OwnedVariant::from(value)
}

fn text(value: &str) -> OwnedVariant {
    owned(Variant::from(value))
}

fn owned(value: Variant<'_>) -> OwnedVariant {
    value.try_into_owned().expect("only descriptors cannot be copied")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, value: &str) -> Vec<(&'static str, String)> {
        let settings = [Setting::new("x", file, value)];
        let found = limits(&settings, 252).unwrap();
        found.into_iter().map(|(name, value)| (name, shown(&value))).collect()
    }

    fn shown(value: &Variant<'_>) -> String {
        match value {
            Variant::U64(INFINITY) => "infinity".to_owned(),
            Variant::U64(number) => number.to_string(),
            Variant::Array(bytes) => {
                let bits = bytes.iter().map(|byte| match byte {
                    Variant::U8(byte) => format!("{byte:08b}"),
                    other => format!("{other:?}"),
                });
                bits.collect::<Vec<_>>().join(" ")
            }
            other => format!("{other:?}"),
        }
    }

    fn one(name: &'static str, value: &str) -> Vec<(&'static str, String)> {
        vec![(name, value.to_owned())]
    }

    #[test]
    fn files_become_properties() {
        assert_eq!(of("memory.max", "67108864"), one("MemoryMax", "67108864"));
        assert_eq!(of("memory.max", "max"), one("MemoryMax", "infinity"));
        assert_eq!(of("memory.swap.max", "0"), one("MemorySwapMax", "0"));
        assert_eq!(of("memory.high", "1"), one("MemoryHigh", "1"));
        assert_eq!(of("cpu.weight", "39"), one("CPUWeight", "39"));
        assert_eq!(of("pids.max", "max"), one("TasksMax", "infinity"));
        assert_eq!(of("io.weight", "default 50"), one("IOWeight", "50"));
        assert_eq!(of("hugetlb.2MB.max", "0"), []);
        assert_eq!(of("memory.oom.group", "1"), []);
        assert!(limits(&[Setting::new("memory", "memory.max", "much")], 252).is_err());
    }

    #[test]
    fn quotas_are_whole_percents_never_less_than_asked() {
        let quota = |value| of("cpu.max", value).into_iter().map(|(_, value)| value).collect::<Vec<_>>();
        assert_eq!(quota("50000 100000"), ["500000", "100000"]);
        assert_eq!(quota("12500 100000"), ["130000", "100000"]);
        assert_eq!(quota("1000 100000"), ["10000", "100000"]);
        assert_eq!(quota("250000 100000"), ["2500000", "100000"]);
        assert_eq!(quota("max 50000"), ["infinity", "50000"]);
        assert_eq!(quota("20000"), ["200000", "100000"]);
        let old = limits(&[Setting::new("cpu", "cpu.max", "50000 100000")], 239).unwrap();
        assert_eq!(old.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["CPUQuotaPerSecUSec"]);
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(of("cpuset.cpus", "0-3,7"), one("AllowedCPUs", "10001111"));
        assert_eq!(of("cpuset.cpus", "0,8-9"), one("AllowedCPUs", "00000001 00000011"));
        assert_eq!(of("cpuset.mems", ""), one("AllowedMemoryNodes", ""));
        for bad in ["x", "1-", "-1", "0-9999999", "1,y"] {
            assert!(limits(&[Setting::new("cpuset", "cpuset.cpus", bad)], 252).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_scope_without_a_limit_of_tasks_has_none() {
        let mut properties = limits(&[Setting::new("memory", "memory.max", 5)], 252).unwrap();
        without_defaults(&mut properties);
        assert_eq!(properties.last().map(|(name, _)| *name), Some("TasksMax"));
        let mut properties = limits(&[Setting::new("pids", "pids.max", 5)], 252).unwrap();
        without_defaults(&mut properties);
        assert_eq!(properties.len(), 1);
    }
}
