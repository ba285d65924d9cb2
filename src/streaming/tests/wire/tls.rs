//! TLS, and certificates that change under a running server.

use std::sync::Arc;
use std::time::Duration;

use pinnace_streaming::{Options, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Ground;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(authority: &Authority) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    (params.signed_by(&key, authority).unwrap(), key)
}

/// Asks for nothing and reads the answer's first line.
async fn ask(url: &str, server: &Authority, client: Option<&Authority>) -> std::io::Result<String> {
    let host = url.strip_prefix("https://").expect("an https URL").split('/').next().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(server.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let (certificate, key) = leaf(authority);
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
            builder.with_client_auth_cert(vec![certificate.der().clone()], key.into()).unwrap()
        }
    };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TcpStream::connect(host).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("tls.crt"),
        key: dir.path().join("tls.key"),
        client_authorities: Some(dir.path().join("clients.crt")),
    };
    let write = |server: &Authority, clients: &Authority| {
        let (certificate, key) = leaf(server);
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(dir.path().join("clients.crt"), clients.pem()).unwrap();
    };
    let (first, second, clients) = (authority(), authority(), authority());
    write(&first, &clients);
    let ground = Ground::with(Options { tls: Some(files.clone()), ..Options::default() }).await;
    let url = ground.exec("cat", "i");
    assert_eq!(ask(&url, &first, Some(&clients)).await.unwrap(), "HTTP/1.1 404");
    assert!(ask(&url, &first, None).await.is_err(), "no client certificate");
    assert!(ask(&url, &first, Some(&second)).await.is_err(), "a client of another authority");
    assert!(ask(&url, &second, Some(&clients)).await.is_err());

    write(&second, &clients);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(&url, &second, Some(&clients)).await.unwrap(), "HTTP/1.1 404");

    std::fs::write(&files.certificate, "nothing").unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(&url, &second, Some(&clients)).await.unwrap(), "HTTP/1.1 404", "the last good one stays");
}

#[tokio::test]
async fn files_that_are_no_certificate_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    std::fs::write(&path, "").unwrap();
    let files = TlsFiles { certificate: path.clone(), key: path, client_authorities: None };
    let options = Options { tls: Some(files), ..Options::default() };
    let runtime = Arc::new(crate::scripted::Scripted::default());
    let error = pinnace_streaming::Server::bind(options, runtime).await.unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
}
