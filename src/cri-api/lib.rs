//! The CRI v1 gRPC API: messages, clients and servers generated from `proto/api.proto`.
//!
//! - [`v1::runtime_service_server::RuntimeService`] and [`v1::image_service_server::ImageService`] are the
//!   traits to implement; a method that is left out answers `Unimplemented`.
//! - [`v1::runtime_service_client::RuntimeServiceClient`] and
//!   [`v1::image_service_client::ImageServiceClient`] call them.
//! - [`DESCRIPTORS`] is the encoded `FileDescriptorSet`, for comparing and for reflection.
//!
//! Nothing generated prints a secret: `Debug` of [`v1::AuthConfig`], and so of everything that holds one,
//! says which fields are set and not what they are.

use std::fmt;

/// The package `runtime.v1`.
#[allow(missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The encoded `FileDescriptorSet` of the whole API.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("descriptors");

/// Largest message a peer may send. The kubelet limits itself to this and gRPC's default of 4 MiB is too
/// small for the lists of a full node.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &Secret(&self.password))
            .field("auth", &Secret(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &Secret(&self.identity_token))
            .field("registry_token", &Secret(&self.registry_token))
            .finish()
    }
}

/// Prints whether a secret is present.
struct Secret<'a>(&'a str);

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "unset" } else { "redacted" })
    }
}

#[cfg(test)]
mod tests {
    use super::v1::{AuthConfig, ImageSpec, PullImageRequest};

    #[test]
    fn debug_of_a_pull_request_names_no_secret() {
        let request = PullImageRequest {
            image: Some(ImageSpec { image: "example.com/app:1".into(), ..ImageSpec::default() }),
            auth: Some(AuthConfig {
                username: "reader".into(),
                password: "secret-1".into(),
                auth: "secret-2".into(),
                server_address: "example.com".into(),
                identity_token: "secret-3".into(),
                registry_token: String::new(),
            }),
            sandbox_config: None,
        };
        for text in [format!("{request:?}"), format!("{request:#?}")] {
            assert!(!text.contains("secret-"), "{text}");
            assert!(text.contains("reader") && text.contains("redacted") && text.contains("unset"), "{text}");
        }
    }
}
