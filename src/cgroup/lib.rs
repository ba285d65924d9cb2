//! Cgroups v1, v2 and systemd behind one type.
