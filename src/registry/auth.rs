//! Credentials as the kubelet sends them, and where they may go.
//!
//! A secret belongs to the registry of the image that is pulled. It is sent to that registry's own
//! origin (scheme, host and port) and to its token service, and nowhere else: not to a mirror, not
//! to the target of a redirect.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pinnace_store::{Algorithm, Digest, Hasher};

/// Longest value of one credential field.
const FIELD_MAX: usize = 64 << 10;

/// Docker's files carry base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why credentials cannot be used. No variant shows a part of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// `auth` is not base64 of `user:password`.
    #[error("credential field \"auth\" is not base64 of user:password")]
    Encoding,
    /// A field is absurdly long.
    #[error("credential field {field:?} is longer than {FIELD_MAX} bytes")]
    TooLong {
        /// Its name.
        field: &'static str,
    },
    /// A field has characters that no header can carry.
    #[error("credential field {field:?} has control characters")]
    Characters {
        /// Its name.
        field: &'static str,
    },
}

/// The fields of CRI's `AuthConfig`.
#[derive(Clone, Default)]
pub struct AuthFields {
    /// User name for `password`.
    pub username: String,
    /// Password of `username`.
    pub password: String,
    /// base64 of `username:password`.
    pub auth: String,
    /// The registry that the credentials are for; any if empty.
    pub server_address: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token, sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Secret {
    Password { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

/// Credentials for one pull.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Auth {
    secret: Secret,
    server: Option<String>,
}

impl Auth {
    /// A user name and password for whatever registry the image is from.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            secret: Secret::Password { username: username.into(), password: password.into() },
            server: None,
        }
    }

    /// Chooses from the fields of `AuthConfig` in containerd's order: user name and password,
    /// identity token, `auth`, registry token. Nothing if all are empty.
    pub fn from_fields(fields: &AuthFields) -> Result<Option<Self>, Error> {
        for (field, value) in [
            ("username", &fields.username),
            ("password", &fields.password),
            ("auth", &fields.auth),
            ("server_address", &fields.server_address),
            ("identity_token", &fields.identity_token),
            ("registry_token", &fields.registry_token),
        ] {
            if value.len() > FIELD_MAX {
                return Err(Error::TooLong { field });
            }
        }
        for (field, value) in
            [("identity_token", &fields.identity_token), ("registry_token", &fields.registry_token)]
        {
            if value.chars().any(char::is_control) {
                return Err(Error::Characters { field });
            }
        }
        let secret = if !fields.username.is_empty() {
            Secret::Password { username: fields.username.clone(), password: fields.password.clone() }
        } else if !fields.identity_token.is_empty() {
            Secret::IdentityToken(fields.identity_token.clone())
        } else if !fields.auth.is_empty() {
            decode(&fields.auth)?
        } else if !fields.registry_token.is_empty() {
            Secret::RegistryToken(fields.registry_token.clone())
        } else {
            return Ok(None);
        };
        let server = fields.server_address.trim();
        Ok(Some(Self { secret, server: (!server.is_empty()).then(|| server.to_owned()) }))
    }

    /// Whether the secret may be sent to the registry named `host[:port]` in references.
    pub(crate) fn is_for(&self, registry: &str) -> bool {
        self.server.as_deref().is_none_or(|server| canonical(server) == canonical(registry))
    }

    /// Whether the secret says what server it is for.
    pub(crate) fn is_bound(&self) -> bool {
        self.server.is_some()
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl Secret {
    /// A name for this secret that can be a key in memory without being the secret.
    pub(crate) fn fingerprint(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let (kind, first, second) = match self {
            Self::Password { username, password } => ("password", username.as_str(), password.as_str()),
            Self::IdentityToken(token) => ("identity", token.as_str(), ""),
            Self::RegistryToken(token) => ("registry", token.as_str(), ""),
        };
        for part in [kind, first, second] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("server", &self.server).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// `Basic` credentials as RFC 7617 §2 writes them.
pub(crate) fn basic_value(username: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
}

fn decode(auth: &str) -> Result<Secret, Error> {
    let bytes = BASE64.decode(auth.trim()).map_err(|_| Error::Encoding)?;
    let text = String::from_utf8(bytes).map_err(|_| Error::Encoding)?;
    let (username, password) = text.split_once(':').ok_or(Error::Encoding)?;
    // Docker pads the password with NUL bytes.
    let password = password.trim_end_matches('\0');
    Ok(Secret::Password { username: username.to_owned(), password: password.to_owned() })
}

/// The registry that a server address means: Docker writes `https://index.docker.io/v1/`.
pub(crate) fn canonical(server: &str) -> String {
    let (scheme, rest) = match server.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("https", server),
    };
    let authority = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let default_port = if scheme.eq_ignore_ascii_case("http") { ":80" } else { ":443" };
    let authority = authority.strip_suffix(default_port).unwrap_or(&authority);
    match authority {
        "index.docker.io" | "registry-1.docker.io" | "registry.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(edit: impl FnOnce(&mut AuthFields)) -> AuthFields {
        let mut fields = AuthFields::default();
        edit(&mut fields);
        fields
    }

    fn password(auth: &Auth) -> (&str, &str) {
        match auth.secret() {
            Secret::Password { username, password } => (username, password),
            _ => panic!("not a password"),
        }
    }

    #[test]
    fn the_fields_have_an_order() {
        assert_eq!(Auth::from_fields(&AuthFields::default()), Ok(None));
        let all = fields(|f| {
            f.username = "u".into();
            f.password = "p".into();
            f.auth = "eDp5".into();
            f.identity_token = "i".into();
            f.registry_token = "r".into();
        });
        assert_eq!(password(&Auth::from_fields(&all).unwrap().unwrap()), ("u", "p"));
        let auth =
            Auth::from_fields(&AuthFields { username: String::new(), ..all.clone() }).unwrap().unwrap();
        assert!(matches!(auth.secret(), Secret::IdentityToken(token) if token == "i"));
        let auth = Auth::from_fields(&fields(|f| f.auth = "eDp5".into())).unwrap().unwrap();
        assert_eq!(password(&auth), ("x", "y"));
        let auth = Auth::from_fields(&fields(|f| f.registry_token = "r".into())).unwrap().unwrap();
        assert!(matches!(auth.secret(), Secret::RegistryToken(token) if token == "r"));
    }

    #[test]
    fn base64_is_read_as_docker_writes_it() {
        let decoded = |text: &str| Auth::from_fields(&fields(|f| f.auth = text.into()));
        for text in ["dTpwOnE=", "dTpwOnE", "dTpwOnEA", "dTpwOnEAAAA="] {
            assert_eq!(password(&decoded(text).unwrap().unwrap()), ("u", "p:q"), "{text}");
        }
        for text in ["%%%", "dQ==", "/////w=="] {
            assert_eq!(decoded(text), Err(Error::Encoding), "{text}");
        }
    }

    #[test]
    fn a_server_address_limits_the_secret() {
        let bound = |server: &str| {
            Auth::from_fields(&fields(|f| {
                f.username = "u".into();
                f.server_address = server.into();
            }))
            .unwrap()
            .unwrap()
        };
        assert!(bound("").is_for("anything.io"));
        assert!(bound("https://index.docker.io/v1/").is_for("docker.io"));
        assert!(bound("quay.io").is_for("quay.io"));
        assert!(bound("https://Quay.io:443/v2/").is_for("quay.io"));
        assert!(bound("localhost:5000").is_for("localhost:5000"));
        assert!(!bound("localhost:5000").is_for("localhost:5001"));
        assert!(!bound("quay.io").is_for("evil.quay.io"));
        assert!(!bound("quay.io.evil.io").is_for("quay.io"));
        assert!(!bound("quay.io").is_for("docker.io"));
    }

    #[test]
    fn nothing_prints_a_secret() {
        let marker = "s3cr3t";
        let fields = fields(|f| {
            f.username = "user".into();
            f.password = marker.into();
            f.auth = marker.into();
            f.identity_token = marker.into();
            f.registry_token = marker.into();
        });
        let auth = Auth::from_fields(&fields).unwrap().unwrap();
        let shown = format!("{fields:?} {auth:?} {:?} {:?}", auth.secret(), auth.secret().fingerprint());
        assert!(!shown.contains(marker) && !shown.contains("user\""), "{shown}");
        let bad =
            Auth::from_fields(&AuthFields { auth: marker.into(), ..AuthFields::default() }).unwrap_err();
        assert!(!format!("{bad:?} {bad}").contains(marker));
        let injected = AuthFields { registry_token: "a\r\nX: y".into(), ..AuthFields::default() };
        assert_eq!(Auth::from_fields(&injected), Err(Error::Characters { field: "registry_token" }));
    }
}
