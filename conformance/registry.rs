//! Debian's `docker-registry` in a world, over plain HTTP, over TLS with a CA of its own, and with passwords.
//!
//! Up to four processes share one store of blobs, so that what was pushed over the plain one can be pulled
//! from all: [`PLAIN`], [`TLS`], [`MUTUAL`], [`PASSWORD`]. Every world has a loopback of its own, so the ports never clash.

use std::fmt;
use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;

use crate::images::{Descriptor, INDEX, Layout, MANIFEST, debian};
use crate::process::{Process, poll, wait_at_most};
use crate::world::World;

/// Plain HTTP, nobody asked.
pub const PLAIN: &str = "127.0.0.1:5000";
/// TLS, with a certificate of [`Registry::ca`].
pub const TLS: &str = "registry.test:5443";
/// The same, for clients with a certificate of [`Registry::ca`] only: [`Registry::client`].
pub const MUTUAL: &str = "registry.test:5444";
/// Plain HTTP, with [`USERNAME`] and [`PASSWORD_TEXT`].
pub const PASSWORD: &str = "127.0.0.1:5001";
/// Nobody listens here.
pub const DOWN: &str = "127.0.0.1:5999";

/// User of [`PASSWORD`].
pub const USERNAME: &str = "reader";
/// Password of [`PASSWORD`].
pub const PASSWORD_TEXT: &str = "correct-horse";
/// The same as the registry wants it, by bcrypt.
const HTPASSWD: &str = "reader:$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS\n";

const LIMIT: Duration = Duration::from_secs(20);

/// Registries of one world.
pub struct Registry {
    world: Arc<World>,
    dir: PathBuf,
    running: Vec<(Child, Process)>,
}

impl Registry {
    /// Starts the plain one.
    pub fn start(world: Arc<World>) -> Registry {
        let dir = world.dir().join("registry");
        fs::create_dir_all(dir.join("blobs")).expect("make the registry's directory");
        let mut registry = Registry { world, dir, running: Vec::new() };
        registry.serve("plain", 5000, "");
        registry
    }

    /// Starts the one with TLS; makes its CA.
    pub fn start_tls(&mut self) {
        self.make_certificates();
        let dir = self.dir.display();
        let tls = format!("  tls: {{certificate: {dir}/server.crt, key: {dir}/server.key}}\n");
        self.serve("tls", 5443, &tls);
    }

    /// Starts the one that wants a certificate; [`Registry::start_tls`] has made it.
    pub fn start_mutual(&mut self) {
        let dir = self.dir.display();
        let tls = format!(
            "  tls: {{certificate: {dir}/server.crt, key: {dir}/server.key, clientcas: [{dir}/ca.crt]}}\n"
        );
        self.serve("mutual", 5444, &tls);
    }

    /// A client's certificate and its key, in PEM.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("client.crt"), self.dir.join("client.key"))
    }

    /// Starts the one with passwords.
    pub fn start_password(&mut self) {
        fs::write(self.dir.join("htpasswd"), HTPASSWD).expect("write htpasswd");
        let auth = format!("auth:\n  htpasswd: {{realm: test, path: {}/htpasswd}}\n", self.dir.display());
        self.serve("password", 5001, &auth);
    }

    /// The certificate of the CA, in PEM.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Pushes an image of a layout as `repository:tag`.
    pub fn push(&self, layout: &Layout, name: &str, repository: &str, tag: &str) {
        let top = layout.find(name);
        for child in layout.children(&top) {
            if child.media_type == MANIFEST {
                layout.children(&child).iter().for_each(|blob| self.push_blob(layout, repository, blob));
                self.push_manifest(layout, repository, &child.digest, &child);
            } else {
                self.push_blob(layout, repository, &child);
            }
        }
        self.push_manifest(layout, repository, tag, &top);
    }

    /// Changes a byte of a stored blob, so that its content no longer has its digest.
    pub fn corrupt(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").expect("sha256 digest");
        let path = self.dir.join(format!("blobs/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let mut bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn push_blob(&self, layout: &Layout, repository: &str, blob: &Descriptor) {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        if self.request("HEAD", &path, &[], &[]).status == 200 {
            return;
        }
        let upload = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[]);
        let location = upload.header("location").unwrap_or_else(|| panic!("no upload: {upload:?}"));
        let location = location.strip_prefix(&format!("http://{PLAIN}")).unwrap_or(location);
        let path = format!("{location}&digest={}", blob.digest);
        let headers = [("content-type", "application/octet-stream")];
        let done = self.request("PUT", &path, &headers, &layout.read(&blob.digest));
        assert_eq!(done.status, 201, "push {}: {done:?}", blob.digest);
    }

    fn push_manifest(&self, layout: &Layout, repository: &str, reference: &str, manifest: &Descriptor) {
        assert!([INDEX, MANIFEST].contains(&&*manifest.media_type), "{manifest:?}");
        let path = format!("/v2/{repository}/manifests/{reference}");
        let headers = [("content-type", &*manifest.media_type)];
        let done = self.request("PUT", &path, &headers, &layout.read(&manifest.digest));
        assert_eq!(done.status, 201, "push {repository}:{reference}: {done:?}");
    }

    /// One exchange with the plain registry: HTTP/1.1 on a connection of its own.
    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let address: SocketAddr = PLAIN.parse().expect("an address");
        let stream = self.world.connect(address).expect("connect to the registry");
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {PLAIN}\r\nconnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut writer = &stream;
        writer.write_all(request.as_bytes()).and_then(|()| writer.write_all(body)).expect("send a request");
        Response::read(BufReader::new(&stream))
    }

    fn serve(&mut self, name: &str, port: u16, more: &str) {
        let binary = debian::unpacked("docker-registry").join("usr/bin/docker-registry");
        let (http, other) = if more.starts_with(' ') { (more, "") } else { ("", more) };
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}/blobs}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: 127.0.0.1:{port}\n{http}{other}",
            self.dir.display(),
        );
        let file = self.dir.join(format!("{name}.yml"));
        fs::write(&file, config).expect("write the registry's configuration");
        let log = fs::File::create(self.dir.join(format!("{name}.log"))).expect("create the registry's log");
        let mut command = self.world.command(binary);
        command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("duplicate a file")).stderr(log);
        let started = self.world.spawn(&mut command);
        self.running.push(started);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let serving = poll(LIMIT, || self.world.connect(address).ok());
        let log = || fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
        assert!(serving.is_some(), "docker-registry does not serve: {}", log());
    }

    fn make_certificates(&self) {
        let write =
            |name: &str, text: String| fs::write(self.dir.join(name), text).expect("write a certificate");
        let ca_key = KeyPair::generate().expect("make a key");
        let mut ca = CertificateParams::new(Vec::new()).expect("certificate parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "CA of a test");
        write("ca.crt", ca.self_signed(&ca_key).expect("sign the CA").pem());
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().expect("make a key");
        let client = CertificateParams::new(["client.test".to_string()]).expect("certificate parameters");
        write("client.crt", client.signed_by(&key, &issuer).expect("sign").pem());
        write("client.key", key.serialize_pem());
        let key = KeyPair::generate().expect("make a key");
        let names = ["registry.test".to_string(), "localhost".into(), "127.0.0.1".into()];
        let server = CertificateParams::new(names).expect("certificate parameters");
        write("server.crt", server.signed_by(&key, &issuer).expect("sign").pem());
        write("server.key", key.serialize_pem());
    }

    /// Where the blobs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stops all of them.
    pub fn stop(&mut self) {
        for (mut child, process) in self.running.drain(..) {
            process.signal(Signal::KILL);
            let _ = wait_at_most(&mut child, LIMIT);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("dir", &self.dir).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    /// Shown when something went wrong.
    #[expect(dead_code, reason = "printed by Debug")]
    body: String,
}

impl Response {
    fn read(mut from: impl std::io::BufRead) -> Response {
        let mut line = || {
            let mut line = String::new();
            from.read_line(&mut line).expect("read a response");
            line.trim_end().to_string()
        };
        let status = line();
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let mut body = String::new();
        let _ = from.read_to_string(&mut body);
        Response { status: status.expect("a status line"), headers, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}
