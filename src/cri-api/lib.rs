//! The CRI v1 gRPC API, generated from proto/.
