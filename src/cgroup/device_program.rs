//! Device rules as an eBPF program, for cgroup v2, which has no devices controller.
//!
//! The ordered rules become a table from devices to allowed access bits, most exact entry first: `c 1:3`, then
//! `c 1:*` and `c *:3`, then `c *:*`. The program looks for the first entry that matches and ends there, which
//! keeps the kernel's verifier linear in the number of rules.
//!
//! ```text
//! r2 type   r3 access   r4 major   r5 minor   r0 verdict
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use pinnace_sys::bpf::{self, Instruction};
use rustix::io::Errno;

use crate::devices::{Access, DeviceKind, DeviceRules, Rule};
use crate::error::{CgroupError, Result};

/// By which a later process recognises our program among those of systemd and others.
const NAME: &str = "pinnace_device";

/// Operation codes of the kernel's instruction-set document: class | source | operation.
mod op {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const MOVE_REGISTER: u8 = 0xbf;
    pub(super) const MOVE: u8 = 0xb7;
    pub(super) const SHIFT_RIGHT: u8 = 0x77;
    pub(super) const AND: u8 = 0x57;
    pub(super) const JUMP_NOT_EQUAL: u8 = 0x55;
    pub(super) const JUMP_IF_ANY: u8 = 0x45;
    pub(super) const EXIT: u8 = 0x95;
}

const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Rule lists whose programs are kept; containers of a node share a few.
const MOST_PROGRAMS: usize = 16;

/// Loaded programs by their rules: verifying one costs more than the rest of making a cgroup, and one program may
/// be attached to any number of cgroups.
#[derive(Debug, Default)]
pub(crate) struct Programs(Mutex<HashMap<DeviceRules, Arc<OwnedFd>>>);

impl Programs {
    fn load(&self, rules: &DeviceRules) -> std::result::Result<Arc<OwnedFd>, Errno> {
        // A panic elsewhere cannot leave the map half-changed: insertion is the only change.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(rules) {
            return Ok(Arc::clone(known));
        }
        let program = Arc::new(bpf::load_device_program(&compile(rules), NAME)?);
        let mut known = lock();
        if known.len() >= MOST_PROGRAMS {
            known.clear();
        }
        known.insert(rules.clone(), Arc::clone(&program));
        Ok(program)
    }
}

/// Attaches a filter to a cgroup v2 directory, in place of an earlier one of ours.
pub(crate) fn attach(
    programs: &Programs,
    cgroup: BorrowedFd<'_>,
    path: &Path,
    rules: &DeviceRules,
) -> Result<()> {
    let failed =
        |operation| move |errno| CgroupError::DeviceProgram { operation, path: path.to_owned(), errno };
    let program = programs.load(rules).map_err(failed("load"))?;
    let mut old = own_programs(cgroup).map_err(failed("list"))?.into_iter();
    // One of them is replaced atomically; should there be more, the intersection holds until they are gone.
    let replaced = old.next();
    let replacing = replaced.as_ref().map(AsFd::as_fd);
    bpf::attach_device_program(cgroup, program.as_fd(), replacing).map_err(failed("attach"))?;
    for extra in old {
        bpf::detach_device_program(cgroup, extra.as_fd()).map_err(failed("detach"))?;
    }
    Ok(())
}

fn own_programs(cgroup: BorrowedFd<'_>) -> std::result::Result<Vec<OwnedFd>, Errno> {
    let mut own = Vec::new();
    for id in bpf::attached_device_programs(cgroup)? {
        let program = match bpf::open_program(id) {
            Ok(program) => program,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        if bpf::program_name(program.as_fd())? == NAME {
            own.push(program);
        }
    }
    Ok(own)
}

pub(crate) fn compile(rules: &DeviceRules) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
    let mut program = vec![
        memory(KIND, 0),
        Instruction { code: op::MOVE_REGISTER, registers: ACCESS | KIND << 4, offset: 0, immediate: 0 },
        plain(op::SHIFT_RIGHT, ACCESS, 16),
        plain(op::AND, KIND, 0xffff),
        memory(MAJOR, 4),
        memory(MINOR, 8),
    ];
    // Whoever asks for nothing gets nothing.
    program.push(Instruction { offset: 2, ..plain(op::JUMP_NOT_EQUAL, ACCESS, 0) });
    program.extend(verdict(false));
    for (devices, access) in table(rules) {
        program.extend(entry(devices, access));
    }
    program.extend(verdict(false));
    program
}

/// A device, or all devices that no more exact entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Devices {
    /// Exact numbers first, that is what sorts the table.
    wildcards: usize,
    kind: DeviceKind,
    major: Option<u32>,
    minor: Option<u32>,
}

fn devices(kind: DeviceKind, major: Option<u32>, minor: Option<u32>) -> Devices {
    let wildcards = usize::from(major.is_none()) + usize::from(minor.is_none());
    Devices { wildcards, kind, major, minor }
}

/// Every combination of numbers that the rules tell apart, with what they come to there.
fn table(rules: &DeviceRules) -> BTreeMap<Devices, Access> {
    let rules = rules.rules();
    let mut keys: BTreeSet<Devices> =
        rules.iter().map(|rule| devices(rule.kind, rule.major, rule.minor)).collect();
    // `c 1:*` and `c *:3` meet in `c 1:3`, which may be decided by both.
    for one in rules.iter().filter(|rule| rule.major.is_some() && rule.minor.is_none()) {
        for other in rules.iter().filter(|rule| rule.kind == one.kind && rule.major.is_none()) {
            keys.insert(devices(one.kind, one.major, other.minor));
        }
    }
    keys.into_iter().map(|key| (key, granted(rules, key))).collect()
}

/// The access bits that the rules grant, in their order.
fn granted(rules: &[Rule], key: Devices) -> Access {
    let covers = |rule: Option<u32>, key: Option<u32>| rule.is_none() || rule == key;
    rules
        .iter()
        .filter(|rule| {
            rule.kind == key.kind && covers(rule.major, key.major) && covers(rule.minor, key.minor)
        })
        .fold(
            Access::NONE,
            |granted, rule| {
                if rule.allow { granted.with(rule.access) } else { granted.without(rule.access) }
            },
        )
}

/// One entry of the table: conditions that jump past its end, then the verdict.
fn entry(devices: Devices, granted: Access) -> Vec<Instruction> {
    let denied = Access::ALL.without(granted);
    let effect = if denied.is_empty() {
        verdict(true).to_vec()
    } else if granted.is_empty() {
        verdict(false).to_vec()
    } else {
        let any_denied = plain(op::JUMP_IF_ANY, ACCESS, i32::from(denied.bits()));
        let mut effect = vec![Instruction { offset: 2, ..any_denied }];
        effect.extend(verdict(true));
        effect.extend(verdict(false));
        effect
    };
    let kind = match devices.kind {
        DeviceKind::Block => 1,
        DeviceKind::Char => 2,
    };
    let mut conditions = vec![(KIND, kind)];
    conditions.extend(devices.major.map(|major| (MAJOR, immediate(major))));
    conditions.extend(devices.minor.map(|minor| (MINOR, immediate(minor))));
    let mut entry = Vec::with_capacity(conditions.len() + effect.len());
    for (index, &(register, value)) in conditions.iter().enumerate() {
        // Past the remaining conditions and the effect; at most seven.
        let past = conditions.len() - index - 1 + effect.len();
        let offset = i16::try_from(past).unwrap_or(i16::MAX);
        entry.push(Instruction { offset, ..plain(op::JUMP_NOT_EQUAL, register, value) });
    }
    entry.extend(effect);
    entry
}

fn verdict(allow: bool) -> [Instruction; 2] {
    [plain(op::MOVE, VERDICT, i32::from(allow)), plain(op::EXIT, 0, 0)]
}

fn memory(register: u8, offset: i16) -> Instruction {
    Instruction { code: op::LOAD_WORD, registers: register | CONTEXT << 4, offset, immediate: 0 }
}

fn plain(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

/// Rules hold device numbers of at most 20 bits.
fn immediate(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::rules;
    use proptest::prelude::*;

    /// Runs the subset of eBPF that `compile` emits.
    fn run(program: &[Instruction], context: [u32; 3]) -> bool {
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let value = i64::from(immediate).cast_unsigned();
            let mut jump = false;
            match code {
                op::LOAD_WORD => {
                    registers[to] = u64::from(context[usize::try_from(offset).unwrap() / 4]);
                }
                op::MOVE_REGISTER => registers[to] = registers[from],
                op::MOVE => registers[to] = value,
                op::SHIFT_RIGHT => registers[to] >>= value,
                op::AND => registers[to] &= value,
                op::JUMP_NOT_EQUAL => jump = registers[to] != value,
                op::JUMP_IF_ANY => jump = registers[to] & value != 0,
                op::EXIT => return registers[0] == 1,
                _ => panic!("code {code:#x}"),
            }
            at += 1 + if jump { usize::try_from(offset).unwrap() } else { 0 };
        }
    }

    fn texts() -> impl Strategy<Value = Vec<String>> {
        let part = prop_oneof![Just("*".to_owned()), (0u32..3).prop_map(|number| number.to_string())];
        let access = prop_oneof![Just("r"), Just("w"), Just("m"), Just("rw"), Just("rm"), Just("rwm")];
        let rule = ("allow|deny", "[abc]", part.clone(), part, access)
            .prop_map(|(verb, kind, major, minor, access)| format!("{verb} {kind} {major}:{minor} {access}"));
        proptest::collection::vec(rule, 0..12)
    }

    proptest! {
        #[test]
        fn the_program_decides_as_the_rules_do(
            texts in texts(), kind in 1u32..3, major in 0u32..4, minor in 0u32..4, access in 1u32..8,
        ) {
            let rules = rules(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let asked = [Access::MKNOD, Access::READ, Access::WRITE]
                .into_iter()
                .filter(|bit| access & u32::from(bit.bits()) != 0)
                .reduce(Access::with)
                .unwrap();
            let kind_asked = if kind == 1 { DeviceKind::Block } else { DeviceKind::Char };
            prop_assert_eq!(
                run(&compile(&rules), [access << 16 | kind, major, minor]),
                rules.allows(kind_asked, major, minor, asked)
            );
        }
    }

    #[test]
    fn the_kernel_takes_every_shape() {
        for texts in [
            &[][..],
            &["allow a *:* rwm"],
            &["deny a *:* rwm", "allow c *:* m", "allow c 1:3 rw", "deny c 1:* w", "allow b 4095:1048575 r"],
        ] {
            bpf::load_device_program(&compile(&rules(texts)), NAME).unwrap();
        }
        let many: Vec<String> = (0..1000).map(|minor| format!("allow c 195:{minor} rw")).collect();
        let many = rules(&many.iter().map(String::as_str).collect::<Vec<_>>());
        bpf::load_device_program(&compile(&many), NAME).unwrap();
    }
}
