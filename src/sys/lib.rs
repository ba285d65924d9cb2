//! Every unsafe block: system calls that no safe crate offers.

pub mod activation;
pub mod bpf;
pub mod seccomp;
