//! TLS per server: which roots, which client certificate, and whether certificates are checked.
//!
//! The ring provider is named in every configuration; nothing depends on a process-wide default.

use std::fmt;
use std::sync::Arc;

use pinnace_store::{Algorithm, Digest, Hasher};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// How one server is authenticated, and how we authenticate to it.
#[derive(Clone, Default)]
pub(crate) struct TlsPolicy {
    /// Trusted besides the system's roots.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// Our certificate chain and its key.
    pub(crate) client: Option<(Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>)>,
    /// Whether any certificate will do; only ever by the administrator's word for this one host.
    pub(crate) skip_verify: bool,
}

impl TlsPolicy {
    /// The policy for another server that this one sends us to: the administrator's roots hold,
    /// our certificate and the permission to skip checks do not (CVE-2019-10214).
    pub(crate) fn for_others(&self) -> Self {
        Self { roots: self.roots.clone(), client: None, skip_verify: false }
    }

    /// A name for everything in the policy.
    pub(crate) fn fingerprint(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut add = |part: &[u8]| {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        };
        add(&[u8::from(self.skip_verify)]);
        for root in &self.roots {
            add(root);
        }
        if let Some((chain, key)) = &self.client {
            add(b"client");
            for certificate in chain {
                add(certificate);
            }
            add(key.secret_der());
        }
        hasher.finish()
    }

    /// The configuration that carries the policy out.
    pub(crate) fn client_config(&self) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = if self.skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            let mut roots = system_roots();
            for root in &self.roots {
                roots.add(root.clone())?;
            }
            builder.with_root_certificates(roots)
        };
        let mut config = match &self.client {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        // HTTP/1.1: a connection per layer, so that one lost packet holds up one layer only.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsPolicy")
            .field("roots", &self.roots.len())
            .field("client", &self.client.is_some())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

/// The roots of the host; Mozilla's, as of our build, on a host without any.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!(%error, "a system root certificate was passed over");
    }
    roots.add_parsable_certificates(native.certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Accepts any certificate, but still requires that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
