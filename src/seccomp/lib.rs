//! OCI seccomp profiles compiled to classic BPF.
//!
//! ```text
//! LinuxSeccomp ──rules──► per architecture: ranges of system call numbers ──assemble──► Program
//!                                                                              │
//!   load arch ─ x86_64 ─► load nr ─ binary tree over ranges ─► return action    │ as_bytes()
//!             ├ x86 ────► …                                 └► argument tests   ▼
//!             └ other ──► kill                                            seccomp(2), in the child
//! ```
//!
//! What a profile means, where the specification leaves it open:
//!
//! - Of several entries for one call, the first whose argument conditions hold decides, then the first without
//!   conditions, then the default action. Conditions of one entry are joined by *and*; if two of them name the
//!   same argument, by *or*, as runc reads it.
//! - Names that no architecture of the profile has are ignored: profiles list calls of other kernels.
//! - Calls newer than every call that the profile names fail with ENOSYS rather than with a restrictive default,
//!   so that a C library falls back as on an older kernel (as runc does).
//! - On 32-bit x86, socketcall(2) and ipc(2) stand for calls that have their own number as well. An entry
//!   without conditions holds for both forms. The multiplexer passes the other arguments by pointer, where no
//!   filter can see them: an entry with conditions that forbids is then taken to hold, one that permits is not.
//! - An architecture that the profile does not list is killed; so is the number range of x32 if that is not listed.

mod arch;
mod assemble;
pub mod default;
mod error;
mod kernel;
pub mod localhost;
mod program;
mod rules;

#[cfg(test)]
mod compile_tests;

pub use error::{Code, SeccompError};
pub use kernel::KernelVersion;
pub use program::{Instruction, Program, ProgramCache, compile};
