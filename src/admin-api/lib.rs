//! The gRPC API of our own: what the program's verbs ask of the daemon beyond the CRI. Generated from
//! the files of `proto/admin/`, which document it.
//!
//! A service for each kind of thing: [`v1::images_server::Images`] is the trait to implement,
//! [`v1::images_client::ImagesClient`] calls it. It is served on the CRI's socket.

/// The package `pinnace.admin.v1`.
// A message that begins a stream is larger than its pieces, and comes once.
#[allow(missing_docs, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("pinnace.admin.v1");
}
