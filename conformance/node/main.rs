//! The node: the real program driven as the kubelet drives it.
fn main() {}
