//! OCI runtime spec: defaults, users, and lowering to a launch plan.
