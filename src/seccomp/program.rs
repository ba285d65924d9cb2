//! [`Program`]: what the kernel loads; and a cache of programs, because compiling one costs more than a pod start
//! should.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::{Capability, LinuxSeccomp, LinuxSeccompFilterFlag};

use crate::assemble::assemble;
use crate::default;
use crate::error::SeccompError;
use crate::kernel::KernelVersion;
use crate::rules::Rules;

/// BPF_MAXINSNS.
pub(crate) const MOST_INSTRUCTIONS: usize = 4096;
/// Distinct profiles that are kept; a node has a handful.
const MOST_PROGRAMS: usize = 64;

const FLAG_TSYNC: u32 = 1;
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// One classic BPF instruction, `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Instruction {
    fn to_bytes(self) -> [u8; 8] {
        let [code0, code1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        [code0, code1, self.jt, self.jf, k0, k1, k2, k3]
    }

    fn from_bytes([code0, code1, jt, jf, k0, k1, k2, k3]: [u8; 8]) -> Self {
        let code = u16::from_ne_bytes([code0, code1]);
        Self { code, jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
    }
}

/// A compiled profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    bytes: Arc<[u8]>,
    flags: u32,
}

impl Program {
    /// The instructions as seccomp(2) wants them: eight bytes each, native byte order.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, shared.
    pub fn bytes(&self) -> Arc<[u8]> {
        Arc::clone(&self.bytes)
    }

    /// The instructions one by one.
    pub fn instructions(&self) -> impl ExactSizeIterator<Item = Instruction> + '_ {
        let (chunks, _) = self.bytes.as_chunks::<8>();
        chunks.iter().map(|&chunk| Instruction::from_bytes(chunk))
    }

    /// `SECCOMP_FILTER_FLAG_*` to load it with.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Whether loading it gives a listener descriptor, for the agent at the profile's `listenerPath`.
    pub fn notifies(&self) -> bool {
        self.flags & FLAG_NEW_LISTENER != 0
    }
}

/// Compiles a profile. An error means that the container must not start.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    let rules = Rules::resolve(profile)?;
    let instructions = assemble(&rules);
    if instructions.len() > MOST_INSTRUCTIONS {
        return Err(SeccompError::TooLong { instructions: instructions.len(), most: MOST_INSTRUCTIONS });
    }
    let bytes = instructions.into_iter().flat_map(Instruction::to_bytes).collect();
    // Without flags, as runc: no speculative-store-bypass penalty just because a filter is there.
    let mut flags = if profile.flags().is_none() { FLAG_SPEC_ALLOW } else { 0 };
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
        };
    }
    if rules.notifies {
        flags |= FLAG_NEW_LISTENER;
    } else {
        // The kernel refuses it without a listener.
        flags &= !FLAG_WAIT_KILLABLE_RECV;
    }
    Ok(Program { bytes, flags })
}

/// Compiled programs by profile. Shared by reference; a profile that is equal to an earlier one costs a lookup.
#[derive(Debug, Default)]
pub struct ProgramCache {
    /// By the profile's JSON: equal text is an equal profile.
    by_profile: Mutex<HashMap<Vec<u8>, Arc<Program>>>,
    by_capabilities: Mutex<HashMap<(u64, KernelVersion), Arc<Program>>>,
}

impl ProgramCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// The program of a profile.
    pub fn compile(&self, profile: &LinuxSeccomp) -> Result<Arc<Program>, SeccompError> {
        let key = serde_json::to_vec(profile)?;
        cached(&self.by_profile, key, || compile(profile))
    }

    /// The program of the default profile, without building the profile if it is known.
    pub fn runtime_default<'a>(
        &self,
        capabilities: impl IntoIterator<Item = &'a Capability>,
        kernel: KernelVersion,
    ) -> Result<Arc<Program>, SeccompError> {
        let capabilities = default::Relevant::from_iter(capabilities);
        let key = (capabilities.bits(), kernel);
        cached(&self.by_capabilities, key, || compile(&default::profile_for(capabilities, kernel)))
    }
}

fn cached<K: std::hash::Hash + Eq>(
    programs: &Mutex<HashMap<K, Arc<Program>>>,
    key: K,
    compile: impl FnOnce() -> Result<Program, SeccompError>,
) -> Result<Arc<Program>, SeccompError> {
    // A panic elsewhere cannot leave the map half-changed: insertion is the only change.
    let lock = || programs.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lock().get(&key) {
        return Ok(Arc::clone(known));
    }
    let program = Arc::new(compile()?);
    let mut known = lock();
    if known.len() >= MOST_PROGRAMS {
        known.clear();
    }
    known.insert(key, Arc::clone(&program));
    Ok(program)
}
