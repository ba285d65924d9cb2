//! The server's certificate: read at the start, and again when one of its files changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::error::Error;
use crate::options::TlsFiles;

/// How often the files are looked at, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What tells a changed file from an unchanged one.
type Stamp = Vec<(SystemTime, u64)>;

/// The current certificate.
#[derive(Debug)]
pub(crate) struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    stamp: Stamp,
    looked: Instant,
}

impl Tls {
    pub fn read(files: TlsFiles) -> Result<Tls, Error> {
        let stamp = stamp(&files)?;
        let config = Arc::new(config(&files)?);
        Ok(Tls { files, current: Mutex::new(Current { config, stamp, looked: Instant::now() }) })
    }

    /// What a new connection is accepted with. Files that cannot be used leave the last good ones in force.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK_INTERVAL {
            current.looked = Instant::now();
            match self.reread(&current.stamp) {
                Ok(None) => {}
                Ok(Some((stamp, config))) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "streaming certificate read again");
                    current.stamp = stamp;
                    current.config = config;
                }
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(%error, cause, "streaming certificate stays as it was");
                }
            }
        }
        TlsAcceptor::from(current.config.clone())
    }

    fn reread(&self, before: &Stamp) -> Result<Option<(Stamp, Arc<ServerConfig>)>, Error> {
        let stamp = stamp(&self.files)?;
        if stamp == *before {
            return Ok(None);
        }
        Ok(Some((stamp, Arc::new(config(&self.files)?))))
    }
}

fn stamp(files: &TlsFiles) -> Result<Stamp, Error> {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_authorities.as_ref()];
    let look = |path: &PathBuf| {
        let failed = |source: io::Error| Error::TlsFileStatus { path: path.clone(), source };
        let metadata = fs::metadata(path).map_err(failed)?;
        Ok((metadata.modified().map_err(failed)?, metadata.len()))
    };
    paths.into_iter().flatten().map(look).collect()
}

fn config(files: &TlsFiles) -> Result<ServerConfig, Error> {
    let unusable = |source| Error::TlsSet { certificate: files.certificate.clone(), source };
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| Error::TlsFile { path: files.key.clone(), source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut authorities = RootCertStore::empty();
            for certificate in certificates(path)? {
                authorities.add(certificate).map_err(unusable)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
                .build()
                .map_err(|source| Error::TlsAuthorities { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |source| Error::TlsFile { path: path.to_owned(), source };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if all.is_empty() { Err(failed(rustls_pki_types::pem::Error::NoItemsFound)) } else { Ok(all) }
}
