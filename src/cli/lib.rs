//! The client verbs, over gRPC only.
