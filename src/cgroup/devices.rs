//! [`DeviceRules`]: which devices a cgroup may make, read and write, with nothing allowed to begin with.
//!
//! The OCI rules are read in order, each one granting or taking access bits on the devices it names. Denying
//! everything is the base whatever the list says: a list without a leading `deny a` must not become a
//! block-list (GHSA-g54h-m393-cpwq).

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{CgroupError, Result};

/// Longest list that is taken; a pod with every GPU of a big machine has a few hundred.
const MOST_RULES: usize = 1024;
/// `dev_t` has 12 bits of major and 20 of minor.
const MOST_MAJOR: u32 = (1 << 12) - 1;
const MOST_MINOR: u32 = (1 << 20) - 1;

/// Block or character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// Block.
    Block,
    /// Character.
    Char,
}

/// A set of `m`, `r` and `w`, in the kernel's numbering (`BPF_DEVCG_ACC_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// mknod(2).
    pub const MKNOD: Self = Self(1);
    /// Open for reading.
    pub const READ: Self = Self(2);
    /// Open for writing.
    pub const WRITE: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the other.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the sets have something in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        text.chars().try_fold(Self::NONE, |set, letter| {
            Some(set.with(match letter {
                'm' => Self::MKNOD,
                'r' => Self::READ,
                'w' => Self::WRITE,
                _ => return None,
            }))
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::MKNOD, 'm')] {
            if self.overlaps(bit) {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// One rule, in canonical form: one kind, numbers or wildcards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) kind: DeviceKind,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) access: Access,
}

impl Rule {
    fn matches(&self, kind: DeviceKind, major: u32, minor: u32) -> bool {
        self.kind == kind
            && self.major.is_none_or(|own| own == major)
            && self.minor.is_none_or(|own| own == minor)
    }

    fn is_whole(&self) -> bool {
        self.major.is_none() && self.minor.is_none() && self.access == Access::ALL
    }
}

/// An ordered rule list over a base of "nothing is allowed".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceRules(Vec<Rule>);

impl DeviceRules {
    /// Nothing allowed.
    pub fn deny_all() -> Self {
        Self::default()
    }

    /// From the OCI list, in its order.
    pub fn from_spec(rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        if rules.len() > MOST_RULES {
            return Err(refused(&rules.len().to_string(), "more than 1024 rules"));
        }
        let mut canonical = Vec::with_capacity(rules.len() + 1);
        for rule in rules {
            let text = describe(rule);
            let major =
                number(rule.major(), MOST_MAJOR).ok_or_else(|| refused(&text, "major out of range"))?;
            let minor =
                number(rule.minor(), MOST_MINOR).ok_or_else(|| refused(&text, "minor out of range"))?;
            // An absent access string means all (runtime-spec, config-linux.md, allowed device list).
            let access = match rule.access() {
                None => Access::ALL,
                Some(text) if text.is_empty() => Access::ALL,
                Some(access) => {
                    Access::parse(access).ok_or_else(|| refused(&text, "access is a set of r, w and m"))?
                }
            };
            // The kernel's own `a` ignores numbers and access (device-cgroup); here it means both kinds.
            let kinds: &[DeviceKind] = match rule.typ().unwrap_or_default() {
                LinuxDeviceType::A => &[DeviceKind::Block, DeviceKind::Char],
                LinuxDeviceType::B => &[DeviceKind::Block],
                LinuxDeviceType::C | LinuxDeviceType::U => &[DeviceKind::Char],
                LinuxDeviceType::P => return Err(refused(&text, "a FIFO is not a device")),
            };
            canonical.extend(kinds.iter().map(|&kind| Rule {
                allow: rule.allow(),
                kind,
                major,
                minor,
                access,
            }));
        }
        // `c 1:*` and `c *:3` meet in one device each; the v2 table has an entry for every such meeting.
        let half = |major: bool, minor: bool| {
            canonical
                .iter()
                .filter(|rule| rule.major.is_some() == major && rule.minor.is_some() == minor)
                .count()
        };
        if half(true, false) * half(false, true) > MOST_RULES {
            return Err(refused(&rules.len().to_string(), "too many rules with one wildcard"));
        }
        Ok(Self(canonical))
    }

    /// Whether every bit of `access` is granted: for each bit, by the last rule that says anything about it.
    pub fn allows(&self, kind: DeviceKind, major: u32, minor: u32, access: Access) -> bool {
        let mut open = access;
        if access.is_empty() {
            return false;
        }
        for rule in self.0.iter().rev().filter(|rule| rule.matches(kind, major, minor)) {
            if !rule.allow && rule.access.overlaps(open) {
                return false;
            }
            open = open.without(rule.access);
            if open.is_empty() {
                return true;
            }
        }
        false
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// What to write to `devices.deny` and `devices.allow` of a v1 cgroup, in order.
    ///
    /// v1 keeps one default and a set of exact exceptions to it, so a rule that takes back a part of a wider
    /// one ("all but this") cannot be expressed, and the kernel would quietly ignore it: that is an error here.
    pub(crate) fn v1_lines(&self) -> Result<Vec<(&'static str, String)>> {
        // One table per kind: default, and exceptions to it.
        let mut tables =
            BTreeMap::from([(DeviceKind::Block, Table::default()), (DeviceKind::Char, Table::default())]);
        for rule in &self.0 {
            if let Some(table) = tables.get_mut(&rule.kind) {
                table.apply(rule)?;
            }
        }
        let [block, char] = [&tables[&DeviceKind::Block], &tables[&DeviceKind::Char]];
        // The kernel's default is for both kinds at once. When only one kind is open, it becomes a wildcard
        // exception, which is only the same if that kind has no exceptions of its own.
        let open = block.allow_by_default && char.allow_by_default;
        let mut lines = vec![(if open { "devices.allow" } else { "devices.deny" }, "a".to_owned())];
        for (kind, table) in &tables {
            if table.allow_by_default && !open {
                if !table.exceptions.is_empty() {
                    return Err(refused(&format!("{kind:?}"), CANNOT_EXPRESS));
                }
                lines.push(("devices.allow", line(*kind, None, None, Access::ALL)));
                continue;
            }
            let file = if open { "devices.deny" } else { "devices.allow" };
            for (&(major, minor), &access) in &table.exceptions {
                lines.push((file, line(*kind, major, minor, access)));
            }
        }
        Ok(lines)
    }
}

const CANNOT_EXPRESS: &str = "it takes back a part of a wider rule, which cgroup v1 cannot express";

/// One kind's half of a v1 device cgroup.
#[derive(Debug, Default)]
struct Table {
    allow_by_default: bool,
    exceptions: BTreeMap<(Option<u32>, Option<u32>), Access>,
}

impl Table {
    fn apply(&mut self, rule: &Rule) -> Result<()> {
        if rule.is_whole() {
            self.allow_by_default = rule.allow;
            self.exceptions.clear();
            return Ok(());
        }
        let key = (rule.major, rule.minor);
        if rule.allow != self.allow_by_default {
            let access = self.exceptions.entry(key).or_insert(rule.access);
            *access = access.with(rule.access);
            return Ok(());
        }
        // Back to the default for these bits: exceptions inside the rule shrink, a wider one is in the way.
        for (&(major, minor), access) in &mut self.exceptions {
            if !access.overlaps(rule.access) || !intersect(key, (major, minor)) {
                continue;
            }
            if !covers(key, (major, minor)) {
                let text = line(rule.kind, rule.major, rule.minor, rule.access);
                return Err(refused(&text, CANNOT_EXPRESS));
            }
            *access = access.without(rule.access);
        }
        self.exceptions.retain(|_, access| !access.is_empty());
        Ok(())
    }
}

fn covers(outer: (Option<u32>, Option<u32>), inner: (Option<u32>, Option<u32>)) -> bool {
    let part = |outer: Option<u32>, inner: Option<u32>| outer.is_none() || outer == inner;
    part(outer.0, inner.0) && part(outer.1, inner.1)
}

fn intersect(left: (Option<u32>, Option<u32>), right: (Option<u32>, Option<u32>)) -> bool {
    let part = |left: Option<u32>, right: Option<u32>| left.is_none() || right.is_none() || left == right;
    part(left.0, right.0) && part(left.1, right.1)
}

fn line(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: Access) -> String {
    let letter = match kind {
        DeviceKind::Block => 'b',
        DeviceKind::Char => 'c',
    };
    let part = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    format!("{letter} {}:{} {access}", part(major), part(minor))
}

/// Absent and -1 are wildcards. `None` when out of range.
fn number(given: Option<i64>, most: u32) -> Option<Option<u32>> {
    match given {
        None | Some(-1) => Some(None),
        Some(number) => u32::try_from(number).ok().filter(|&number| number <= most).map(Some),
    }
}

fn describe(rule: &LinuxDeviceCgroup) -> String {
    let part = |number: Option<i64>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let access: String = rule.access().iter().flat_map(|access| access.chars()).take(16).collect();
    let kind = rule.typ().unwrap_or_default();
    format!("{} {}:{} {access}", kind.as_str(), part(rule.major()), part(rule.minor()))
}

fn refused(value: &str, reason: &'static str) -> CgroupError {
    CgroupError::InvalidResource { field: "devices".to_owned(), value: value.to_owned(), reason }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    /// `allow c 1:3 rwm`, as an OCI rule.
    pub(crate) fn rule(text: &str) -> LinuxDeviceCgroup {
        let mut words = text.split(' ');
        let allow = words.next() == Some("allow");
        let typ = words.next().unwrap().parse::<LinuxDeviceType>().unwrap();
        let (major, minor) = words.next().unwrap().split_once(':').unwrap();
        let part = |text: &str| if text == "*" { -1 } else { text.parse::<i64>().unwrap() };
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .major(part(major))
            .minor(part(minor))
            .access(words.next().unwrap())
            .build()
            .unwrap()
    }

    pub(crate) fn rules(texts: &[&str]) -> DeviceRules {
        DeviceRules::from_spec(&texts.iter().map(|text| rule(text)).collect::<Vec<_>>()).unwrap()
    }

    fn v1(texts: &[&str]) -> String {
        let lines = rules(texts).v1_lines().unwrap();
        lines.iter().map(|(file, line)| format!("{file} {line}")).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        let none = DeviceRules::deny_all();
        assert!(!none.allows(DeviceKind::Char, 1, 3, Access::READ));
        let only_null = rules(&["allow c 1:3 rwm"]);
        assert!(only_null.allows(DeviceKind::Char, 1, 3, Access::ALL));
        assert!(!only_null.allows(DeviceKind::Char, 1, 1, Access::READ));
        assert!(!only_null.allows(DeviceKind::Block, 1, 3, Access::READ));
    }

    #[test]
    fn the_last_word_on_each_bit_counts() {
        let some = rules(&["allow c *:* rwm", "deny c 1:* w", "allow c 1:3 w", "deny a 5:5 m"]);
        assert!(some.allows(DeviceKind::Char, 1, 3, Access::ALL));
        assert!(some.allows(DeviceKind::Char, 1, 4, Access::READ));
        assert!(!some.allows(DeviceKind::Char, 1, 4, Access::READ.with(Access::WRITE)));
        assert!(!some.allows(DeviceKind::Char, 5, 5, Access::MKNOD));
        assert!(some.allows(DeviceKind::Char, 5, 5, Access::READ));
    }

    #[test]
    fn v1_starts_from_nothing() {
        assert_eq!(v1(&[]), "devices.deny a");
        assert_eq!(
            v1(&["deny a *:* rwm", "allow c *:* m", "allow c 1:3 rw", "allow c 1:3 m"]),
            "devices.deny a; devices.allow c *:* m; devices.allow c 1:3 rwm"
        );
        assert_eq!(v1(&["allow a *:* rwm"]), "devices.allow a");
        assert_eq!(v1(&["allow a *:* rwm", "deny b 8:0 w"]), "devices.allow a; devices.deny b 8:0 w");
        assert_eq!(v1(&["allow b *:* rwm"]), "devices.deny a; devices.allow b *:* rwm");
        assert_eq!(v1(&["allow c 1:3 rwm", "deny c 1:* w"]), "devices.deny a; devices.allow c 1:3 rm");
    }

    #[test]
    fn v1_refuses_what_the_kernel_would_ignore() {
        for texts in [&["allow c *:* m", "deny c 1:5 m"][..], &["allow c 1:* rw", "deny c *:3 r"]] {
            assert!(rules(texts).v1_lines().is_err(), "{texts:?}");
        }
    }

    #[test]
    fn bad_rules_are_refused() {
        for text in
            ["allow c 4096:0 r", "allow c 1:1048576 r", "allow c -2:0 r", "allow c 1:3 x", "allow p 1:3 r"]
        {
            assert!(DeviceRules::from_spec(&[rule(text)]).is_err(), "{text}");
        }
        assert!(DeviceRules::from_spec(&vec![rule("allow c 1:3 r"); 1025]).is_err());
    }
}
