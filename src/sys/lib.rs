//! Every unsafe block: system calls that no safe crate offers.
