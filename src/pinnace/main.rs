//! A Kubernetes container runtime in one program.
fn main() {}
