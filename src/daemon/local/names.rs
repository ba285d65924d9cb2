//! Names of containers: what they may be, and one for who has none.

use crate::error::Error;

/// Longest name.
const BYTES: usize = 128;

const LEFT: [&str; 48] = [
    "agile", "amber", "bold", "brave", "brisk", "calm", "clever", "crisp", "dapper", "deft", "eager",
    "early", "fair", "fleet", "fond", "frank", "gentle", "glad", "hardy", "honest", "jolly", "keen", "kind",
    "lively", "loyal", "lucid", "mellow", "merry", "mighty", "neat", "noble", "patient", "placid", "proud",
    "quick", "quiet", "ready", "rosy", "sharp", "silent", "sleek", "snug", "steady", "sturdy", "swift",
    "tidy", "vivid", "wise",
];

const RIGHT: [&str; 48] = [
    "anchor", "barque", "beacon", "bosun", "bow", "brig", "buoy", "cable", "canoe", "capstan", "clipper",
    "compass", "coxswain", "cutter", "dinghy", "dory", "ferry", "fleet", "galley", "gig", "halyard",
    "harbour", "helm", "jetty", "keel", "ketch", "lantern", "launch", "lugger", "mast", "mizzen", "mooring",
    "oar", "pilot", "prow", "quay", "rudder", "sail", "schooner", "sextant", "skiff", "sloop", "spar",
    "stern", "tender", "tiller", "wharf", "yawl",
];

/// A name: letters, digits, `_`, `.`, `-`; the first one is a letter or digit. A leading slash, as docker shows it, is
/// dropped.
pub fn check(name: &str) -> Result<String, Error> {
    let name = name.strip_prefix('/').unwrap_or(name);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if !first || !rest || name.len() > BYTES {
        let reason = format!("{name:?} is no name: only [a-zA-Z0-9][a-zA-Z0-9_.-]* of at most {BYTES} are");
        return Err(Error::invalid("name", reason));
    }
    Ok(name.to_owned())
}

/// A name by chance; the attempt number keeps many of them apart.
pub fn random(id: &str, attempt: u32) -> String {
    let number = u64::from_str_radix(id.get(..12).unwrap_or_default(), 16).unwrap_or_default();
    let number = number.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9));
    let pick = |list: &[&'static str], at: u64| {
        let length = u64::try_from(list.len()).unwrap_or(1);
        let index = usize::try_from(at % length).unwrap_or(0);
        list.get(index).copied().unwrap_or("plain")
    };
    let name = format!("{}_{}", pick(&LEFT, number), pick(&RIGHT, number / 48));
    if attempt < 8 { name } else { format!("{name}{attempt}") }
}

/// The known name that is most like a wrong one: at most two letters away, and not half of it.
pub fn like<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (wrong.chars().count() / 2).min(2);
    let by_distance = known.into_iter().map(|name| (distance(wrong, name), name));
    by_distance.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name)
}

/// Levenshtein's.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, letter) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, other) in right.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["web", "a", "web-1.b_c", "/web"] {
            assert_eq!(check(good).unwrap(), good.trim_start_matches('/'));
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for attempt in 0..20 {
            let name = random("0123456789abcdef", attempt);
            assert_eq!(check(&name).unwrap(), name);
        }
    }

    #[test]
    fn a_slip_is_recognised() {
        assert_eq!(like("wbe", ["db", "web"]), None);
        assert_eq!(like("webb", ["db", "web"]), Some("web"));
        assert_eq!(like("x", ["y"]), None);
    }
}
