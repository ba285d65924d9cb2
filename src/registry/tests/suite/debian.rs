//! Debian's `docker-registry`, where it is installed: plain, with TLS, and with a password.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pinnace_registry::manifest::OCI_MANIFEST;
use pinnace_registry::server::Content;
use pinnace_registry::{Auth, Client, ErrorKind, Options, Reference};
use pinnace_store::Digest;

use crate::world::*;

const PROGRAM: &str = "/usr/bin/docker-registry";
/// bcrypt of [`SECRET`].
const HTPASSWD: &str = "someone:$2y$05$abcdefghijklmnopqrstuuVa44NIfK8Ld2DvTt4qb9a3r1J0IMQMW\n";

struct DockerRegistry {
    process: Child,
    port: u16,
}

impl DockerRegistry {
    fn start(dir: &Path, extra: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n{extra}",
            dir.join("data").display()
        );
        let path = dir.join(format!("config-{port}.yml"));
        std::fs::write(&path, config).unwrap();
        let process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { process, port };
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return this;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not listen");
    }

    fn reference(&self, host: &str) -> Reference {
        format!("{host}:{}/test/image", self.port).parse().unwrap()
    }

    /// Pushes by the distribution specification's shortest way.
    async fn push(&self, image: &Image, layer: &[u8], config: &str) {
        let http = plain_http();
        let base = format!("http://127.0.0.1:{}", self.port);
        for bytes in [layer, config.as_bytes()] {
            let start = http.post(format!("{base}/v2/test/image/blobs/uploads/")).send().await.unwrap();
            let location = start.headers()["location"].to_str().unwrap().to_owned();
            let digest = Digest::sha256(bytes);
            let join = if location.contains('?') { '&' } else { '?' };
            let put = http.put(format!("{location}{join}digest={digest}")).body(bytes.to_vec());
            assert_eq!(put.send().await.unwrap().status(), 201);
        }
        let manifest = http
            .put(format!("{base}/v2/test/image/manifests/latest"))
            .header("content-type", OCI_MANIFEST)
            .body(image.manifest_text.clone());
        assert_eq!(manifest.send().await.unwrap().status(), 201);
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A client without any trust: for plain HTTP only.
fn plain_http() -> reqwest::Client {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy().build().unwrap()
}

async fn pull(
    client: &Client,
    reference: &Reference,
    auth: Option<&Auth>,
) -> Result<Digest, pinnace_registry::Error> {
    let repository = client.repository(reference, auth)?;
    let found = repository.resolve().await?;
    let layer = &found.manifest.layers[0];
    let bytes = collect(repository.fetch_blob(layer, 0)).await?;
    assert_eq!(Digest::sha256(&bytes), layer.digest);
    let tail = collect(repository.fetch_blob(layer, 1000)).await?;
    assert_eq!(tail, bytes[1000..]);
    assert_eq!(repository.claimed_digest().await?, Some(found.target.digest));
    Ok(found.target.digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_in_three_guises() {
    if !Path::new(PROGRAM).exists() {
        println!("skipped: {PROGRAM} is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut content = Content::default();
    let layer: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = add_image(&mut content, &[layer.clone().into()]);

    let plain = DockerRegistry::start(dir.path(), "");
    let config = image.config_text.clone();
    plain.push(&image, &layer, &config).await;
    let client = client();
    assert_eq!(pull(&client, &plain.reference("127.0.0.1"), None).await.unwrap(), image.manifest);
    assert_eq!(pull(&client, &plain.reference("localhost"), None).await.unwrap(), image.manifest);
    let missing = format!("127.0.0.1:{}/test/none", plain.port).parse().unwrap();
    expect_kind(client.resolve(&missing, None).await, ErrorKind::NotFound, "MANIFEST_UNKNOWN");

    let password = dir.path().join("htpasswd");
    std::fs::write(&password, HTPASSWD).unwrap();
    let auth_config = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", password.display());
    let guarded = DockerRegistry::start(dir.path(), &auth_config);
    let reference = guarded.reference("127.0.0.1");
    assert_eq!(pull(&client, &reference, Some(&auth())).await.unwrap(), image.manifest);
    expect_kind(pull(&client, &reference, None).await, ErrorKind::Unauthorized, "required");
    let wrong = Auth::basic(USER, "wrong");
    expect_kind(pull(&client, &reference, Some(&wrong)).await, ErrorKind::Unauthorized, "not accepted");

    let (authority, key) = certificates(dir.path());
    let tls = format!("  tls: {{certificate: {}, key: {}}}\n", dir.path().join("server.pem").display(), key);
    let secure = DockerRegistry::start(dir.path(), &tls);
    let hosts = dir.path().join("certs.d");
    let place = hosts.join(format!("localhost:{}", secure.port));
    std::fs::create_dir_all(&place).unwrap();
    let server = format!("server = \"https://localhost:{}\"\n", secure.port);
    let configure =
        |extra: &str| std::fs::write(place.join("hosts.toml"), format!("{server}{extra}")).unwrap();
    let client = Client::new(Options { hosts_dirs: vec![hosts], ..options() }).unwrap();
    let reference = secure.reference("localhost");
    configure("");
    expect_kind(pull(&client, &reference, None).await, ErrorKind::Unavailable, "UnknownIssuer");
    configure(&format!("ca = \"{authority}\"\n"));
    assert_eq!(pull(&client, &reference, None).await.unwrap(), image.manifest);
    configure("skip_verify = true\n");
    assert_eq!(pull(&client, &reference, None).await.unwrap(), image.manifest);
}

/// A private authority and a certificate of it for localhost; the paths of authority and key.
fn certificates(dir: &Path) -> (String, String) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = params.signed_by(&key, &authority).unwrap();
    std::fs::write(dir.join("server.pem"), server.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    (dir.join("ca.pem").display().to_string(), dir.join("key.pem").display().to_string())
}
