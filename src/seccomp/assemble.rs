//! Classic BPF from resolved rules.
//!
//! Jumps only go forward, and a conditional one reaches 255 instructions. So the program is put together from its
//! end: the target of every jump exists already, its distance is known, and a target that is too far away gets
//! a stepping stone (an unconditional jump, or another copy of a return).

use std::collections::HashMap;

use crate::program::Instruction;
use crate::rules::{Comparison, Condition, Decision, Rules, Segment};

/// linux/bpf_common.h.
mod op {
    pub(super) const LOAD: u16 = 0x20;
    pub(super) const AND: u16 = 0x54;
    pub(super) const JUMP: u16 = 0x05;
    pub(super) const JUMP_EQUAL: u16 = 0x15;
    pub(super) const JUMP_GREATER: u16 = 0x25;
    pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35;
    pub(super) const RETURN: u16 = 0x06;
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// The reach of a conditional jump.
const REACH: usize = 255;

pub(crate) fn assemble(rules: &Rules) -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    let mut entry = Target::Return(rules.foreign);
    // The last test is made first, so that the native architecture is tested first.
    for section in rules.sections.iter().rev() {
        let tree = assembler.tree(&section.segments);
        let tree = assembler.label(tree);
        let start = assembler.load(NUMBER, tree);
        entry = Target::At(assembler.branch(op::JUMP_EQUAL, section.audit, Target::At(start), entry));
    }
    let first = assembler.label(entry);
    assembler.load(ARCH, first);
    assembler.reversed.reverse();
    assembler.reversed
}

/// Where to go: an instruction, counted from the program's end, or the end itself.
#[derive(Clone, Copy, Debug)]
enum Target {
    At(usize),
    Return(u32),
}

#[derive(Default)]
struct Assembler {
    reversed: Vec<Instruction>,
    /// The nearest return of each value.
    returns: HashMap<u32, usize>,
    /// The nearest start of the argument tests of each decision.
    decisions: HashMap<Decision, usize>,
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> usize {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// Instructions between one pushed after `slack` others and the target.
    fn distance(&self, target: usize, slack: usize) -> usize {
        self.reversed.len() + slack - target - 1
    }

    /// The target as an instruction that one pushed after at most `slack` others can reach.
    fn near(&mut self, target: Target, slack: usize) -> usize {
        match target {
            Target::At(label) if self.distance(label, slack) <= REACH => label,
            Target::At(label) => {
                let k = u32::try_from(self.distance(label, 0)).unwrap_or(u32::MAX);
                self.push(op::JUMP, k, 0, 0)
            }
            Target::Return(value) => match self.returns.get(&value) {
                Some(&label) if self.distance(label, slack) <= REACH => label,
                _ => {
                    let label = self.push(op::RETURN, value, 0, 0);
                    self.returns.insert(value, label);
                    label
                }
            },
        }
    }

    /// The target as the very next instruction's label: adds a jump or a return if it is not.
    fn label(&mut self, target: Target) -> usize {
        let last = self.reversed.len().checked_sub(1);
        match target {
            Target::At(label) if Some(label) == last => label,
            Target::At(label) => {
                let k = u32::try_from(self.distance(label, 0)).unwrap_or(u32::MAX);
                self.push(op::JUMP, k, 0, 0)
            }
            Target::Return(value) => {
                let label = self.push(op::RETURN, value, 0, 0);
                self.returns.insert(value, label);
                label
            }
        }
    }

    /// Loads a word and goes on at the instruction that was pushed last.
    fn load(&mut self, offset: u32, next: usize) -> usize {
        debug_assert_eq!(next + 1, self.reversed.len());
        self.push(op::LOAD, offset, 0, 0)
    }

    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> usize {
        let yes = self.near(yes, 1);
        let no = self.near(no, 0);
        let jump = |label: usize| u8::try_from(self.distance(label, 0)).unwrap_or(u8::MAX);
        let (jt, jf) = (jump(yes), jump(no));
        self.push(code, k, jt, jf)
    }

    /// A balanced tree of comparisons of the loaded number.
    fn tree(&mut self, segments: &[Segment]) -> Target {
        match segments {
            [] => Target::Return(0),
            [only] => self.decision(&only.decision),
            _ => {
                let (low, high) = segments.split_at(segments.len() / 2);
                let above = self.tree(high);
                let below = self.tree(low);
                let boundary = high.first().map_or(0, |segment| segment.start);
                Target::At(self.branch(op::JUMP_GREATER_EQUAL, boundary, above, below))
            }
        }
    }

    /// The argument tests of a decision; they load what they need and end in a return.
    fn decision(&mut self, decision: &Decision) -> Target {
        if let Some(&label) = self.decisions.get(decision) {
            return Target::At(label);
        }
        let mut next = Target::Return(decision.otherwise);
        for rule in decision.rules.iter().rev() {
            let mut holds = Target::Return(rule.action);
            for condition in rule.conditions.iter().rev() {
                holds = self.condition(*condition, holds, next);
            }
            next = holds;
        }
        if let Target::At(label) = next {
            self.decisions.insert(decision.clone(), label);
        }
        next
    }

    fn condition(&mut self, condition: Condition, yes: Target, no: Target) -> Target {
        let argument = u32::try_from(condition.argument).unwrap_or(0);
        // Every architecture that is supported is little endian.
        let low = ARGUMENTS + 8 * argument;
        let high = low + 4;
        let (code, value, yes, no) = match condition.comparison {
            Comparison::Equal(value) => return self.masked(low, u64::MAX, value, yes, no),
            Comparison::NotEqual(value) => return self.masked(low, u64::MAX, value, no, yes),
            Comparison::MaskedEqual { mask, value } => return self.masked(low, mask, value, yes, no),
            Comparison::Greater(value) => (op::JUMP_GREATER, value, yes, no),
            Comparison::GreaterOrEqual(value) => (op::JUMP_GREATER_EQUAL, value, yes, no),
            Comparison::Less(value) => (op::JUMP_GREATER_EQUAL, value, no, yes),
            Comparison::LessOrEqual(value) => (op::JUMP_GREATER, value, no, yes),
        };
        let [value_high, value_low] = halves(value);
        let low_test = self.branch(code, value_low, yes, no);
        let low_load = self.load(low, low_test);
        let equal = self.branch(op::JUMP_EQUAL, value_high, Target::At(low_load), no);
        let greater = self.branch(op::JUMP_GREATER, value_high, yes, Target::At(equal));
        Target::At(self.load(high, greater))
    }

    fn masked(&mut self, low: u32, mask: u64, value: u64, yes: Target, no: Target) -> Target {
        let mut target = yes;
        for (offset, mask, value) in
            [(low, halves(mask)[1], halves(value)[1]), (low + 4, halves(mask)[0], halves(value)[0])]
        {
            // A half that is not looked at always holds. (With value bits outside of the mask nothing does.)
            if mask == 0 && value == 0 {
                continue;
            }
            let mut start = self.branch(op::JUMP_EQUAL, value, target, no);
            if mask != u32::MAX {
                start = self.push(op::AND, mask, 0, 0);
            }
            target = Target::At(self.load(offset, start));
        }
        target
    }
}

fn halves(value: u64) -> [u32; 2] {
    [value >> 32, value & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(u32::MAX))
}
