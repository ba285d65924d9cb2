//! A profile resolved for its architectures: which decision each system call number leads to.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

use crate::arch::{Architecture, X32_BIT};
use crate::error::SeccompError;

/// SECCOMP_RET_*, linux/seccomp.h.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0x0000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const USER_NOTIF: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// MAX_ERRNO: larger ones would not look like errors to the caller.
const MOST_ERRNO: u32 = 4095;
const ARGUMENTS: usize = 6;

/// One comparison of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Condition {
    pub(crate) argument: usize,
    pub(crate) comparison: Comparison,
}

/// Unsigned, 64 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Comparison {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    MaskedEqual { mask: u64, value: u64 },
}

/// All conditions hold: this action.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) action: u32,
}

/// What a system call number leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Decision {
    /// Tried in order; all of them have conditions.
    pub(crate) rules: Vec<Rule>,
    /// If none holds.
    pub(crate) otherwise: u32,
}

impl Decision {
    fn always(action: u32) -> Self {
        Self { rules: Vec::new(), otherwise: action }
    }
}

/// Every number from `start` up to the next segment's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: u32,
    pub(crate) decision: Decision,
}

/// One value of `seccomp_data.arch`, with segments over all numbers in ascending order, the first at 0.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) audit: u32,
    pub(crate) segments: Vec<Segment>,
}

/// A resolved profile.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The native architecture first.
    pub(crate) sections: Vec<Section>,
    /// For every other architecture.
    pub(crate) foreign: u32,
    pub(crate) notifies: bool,
}

impl Rules {
    pub(crate) fn resolve(profile: &LinuxSeccomp) -> Result<Self, SeccompError> {
        let native = Architecture::native().ok_or(SeccompError::Architecture)?;
        let listed =
            profile.architectures().iter().flatten().filter_map(|&arch| Architecture::from_spec(arch));
        let listed: BTreeSet<Architecture> = listed.chain([native]).collect();
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        if default == USER_NOTIF {
            return Err(SeccompError::Notify { reason: "it cannot be the default action" });
        }
        let mut notifies = false;
        for entry in profile.syscalls().iter().flatten() {
            if entry.action() == LinuxSeccompAction::ScmpActNotify {
                notifies = true;
                // The descriptor could never be handed over: that takes a write.
                if entry.names().iter().any(|name| name == "write") {
                    return Err(SeccompError::Notify { reason: "write cannot be notified" });
                }
            }
        }
        if notifies && profile.listener_path().is_none() {
            return Err(SeccompError::Notify { reason: "the profile has no listenerPath" });
        }
        let mut sections: Vec<Section> = Vec::new();
        for &arch in &listed {
            if arch == Architecture::X32 {
                // Part of x86_64's section.
                continue;
            }
            let mut points = BTreeMap::new();
            add(&mut points, arch, profile, default)?;
            if arch == Architecture::X86_64 {
                if listed.contains(&Architecture::X32) {
                    add(&mut points, Architecture::X32, profile, default)?;
                } else {
                    points.insert((X32_BIT, u32::MAX - 1), Decision::always(KILL_PROCESS));
                }
            }
            let section = Section { audit: arch.audit(), segments: segments(points, default) };
            if arch == native { sections.insert(0, section) } else { sections.push(section) }
        }
        Ok(Self { sections, foreign: KILL_PROCESS, notifies })
    }
}

type Points = BTreeMap<(u32, u32), Decision>;

/// Adds an architecture's calls, and the ranges where its future calls will be.
fn add(
    points: &mut Points,
    arch: Architecture,
    profile: &LinuxSeccomp,
    default: u32,
) -> Result<(), SeccompError> {
    let mut by_number: BTreeMap<u32, (Vec<Rule>, Option<u32>)> = BTreeMap::new();
    let mut carried_over: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut newest = None;
    for entry in profile.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        let alternatives = alternatives(entry)?;
        for name in entry.names() {
            let number = arch.number(name);
            if let Some(number) = number {
                if arch.is_common(number) {
                    newest = newest.max(Some(number));
                }
                let (rules, otherwise) = by_number.entry(number).or_default();
                add_rules(rules, otherwise, &alternatives, action);
            }
            let Some(other) = arch.multiplexed(name) else { continue };
            let Some(multiplexer) = arch.number(other.by) else { continue };
            // Conditions cannot be looked at there: only what restricts is carried over.
            if !alternatives.is_empty() && is_permissive(action) {
                continue;
            }
            let comparison = Comparison::MaskedEqual { mask: other.mask, value: other.call };
            let rules = carried_over.entry(multiplexer).or_default();
            rules.push(Rule { conditions: vec![Condition { argument: 0, comparison }], action });
        }
    }
    for (multiplexer, mut carried) in carried_over {
        let (rules, otherwise) = by_number.entry(multiplexer).or_default();
        // Whoever forbids the multiplexer by name means it.
        if otherwise.is_some_and(|action| !is_permissive(action)) {
            carried.retain(|rule| !is_permissive(rule.action));
        }
        rules.extend(carried);
    }
    for (number, (rules, otherwise)) in by_number {
        let decision = Decision { rules, otherwise: otherwise.unwrap_or(default) };
        points.insert((number, number), decision);
    }
    // A permissive default lets new calls through anyway, and one of ENOSYS needs no help.
    if let Some(newest) = newest.filter(|_| !is_permissive(default) && default != (ERRNO | ENOSYS)) {
        for range in arch.future(newest) {
            points.insert(range, Decision::always(ERRNO | ENOSYS));
        }
    }
    Ok(())
}

fn add_rules(
    rules: &mut Vec<Rule>,
    otherwise: &mut Option<u32>,
    alternatives: &[Vec<Condition>],
    action: u32,
) {
    if alternatives.is_empty() {
        otherwise.get_or_insert(action);
    }
    for conditions in alternatives {
        rules.push(Rule { conditions: conditions.clone(), action });
    }
}

/// The conditions of an entry as a list of alternatives; empty when it has none.
fn alternatives(entry: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut conditions = Vec::new();
    for arg in entry.args().iter().flatten() {
        if arg.index() >= ARGUMENTS {
            let syscall = entry.names().first().cloned().unwrap_or_default();
            return Err(SeccompError::ArgumentIndex { syscall, index: arg.index() });
        }
        conditions.push(Condition { argument: arg.index(), comparison: comparison(arg) });
    }
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let arguments: BTreeSet<usize> = conditions.iter().map(|condition| condition.argument).collect();
    if arguments.len() < conditions.len() {
        return Ok(conditions.into_iter().map(|condition| vec![condition]).collect());
    }
    Ok(vec![conditions])
}

fn comparison(arg: &LinuxSeccompArg) -> Comparison {
    let value = arg.value();
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Comparison::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Comparison::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Comparison::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpEq => Comparison::Equal(value),
        LinuxSeccompOperator::ScmpCmpGe => Comparison::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Comparison::Greater(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Comparison::MaskedEqual { mask: value, value: arg.value_two().unwrap_or(0) }
        }
    }
}

/// The value that the program returns.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = |most: u32| match errno.unwrap_or(EPERM) {
        errno if errno <= most => Ok(errno),
        errno => Err(SeccompError::Errno { errno, most }),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActErrno => ERRNO | data(MOST_ERRNO)?,
        LinuxSeccompAction::ScmpActTrace => TRACE | data(u32::from(u16::MAX))?,
        LinuxSeccompAction::ScmpActNotify => USER_NOTIF,
        LinuxSeccompAction::ScmpActLog => LOG,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
    })
}

/// Whether the call may be made, perhaps with someone watching.
fn is_permissive(action: u32) -> bool {
    (TRACE..KILL_PROCESS).contains(&action)
}

/// Fills the gaps with the default and joins neighbours that decide the same.
fn segments(points: Points, default: u32) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut push = |start: u32, decision: Decision| {
        if segments.last().is_none_or(|last| last.decision != decision) {
            segments.push(Segment { start, decision });
        }
    };
    let mut next = Some(0);
    for ((first, last), decision) in points {
        if first > last {
            continue;
        }
        if let Some(gap) = next.filter(|&gap| gap < first) {
            push(gap, Decision::always(default));
        }
        push(first, decision);
        next = last.checked_add(1);
    }
    if let Some(gap) = next {
        push(gap, Decision::always(default));
    }
    segments
}
