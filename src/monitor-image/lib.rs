//! The monitor's program as bytes, so that `pinnace` is one file to install.
//!
//! The monitor is a program of its own because it stays resident beside every pod: without the daemon's async runtime, TLS
//! and gRPC it is a tenth of the size, and a panic in it aborts instead of unwinding across a clone. The build script
//! builds it with the profile `monitor`; the daemon runs it from a sealed memfd (CVE-2019-5736).

/// The ELF file of `pinnace-monitor`, static.
pub static BYTES: &[u8] = include_bytes!(env!("PINNACE_MONITOR"));
