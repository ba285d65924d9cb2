//! The reading half of a registry with one image, on loopback, for as long as a pull takes.
//!
//! `GET`/`HEAD` of `/v2/`, `/v2/NAME/manifests/REFERENCE` and `/v2/NAME/blobs/DIGEST` (OCI distribution spec, end-1 to
//! end-3). Ranges are not offered, which the spec allows.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Bytes and their name.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    /// What it is, for the manifest.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
}

/// What there is to read.
#[derive(Debug)]
pub struct Content {
    /// The repository.
    pub repository: &'static str,
    /// The name of the manifest besides its digest.
    pub tag: &'static str,
    /// The manifest.
    pub manifest: Blob,
    /// Configuration and layers.
    pub blobs: Vec<Blob>,
}

/// A registry that serves until it is dropped.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Registry {
    /// Starts to serve.
    pub async fn start(content: Content) -> anyhow::Result<Registry> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen on loopback")?;
        let address = listener.local_addr()?;
        let content = Arc::new(content);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let content = Arc::clone(&content);
                // A client that goes away is its own affair.
                tokio::spawn(async move { converse(stream, &content).await });
            }
        });
        Ok(Registry { address, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Answers requests on one connection until its end.
async fn converse(stream: TcpStream, content: &Content) -> std::io::Result<()> {
    const HEAD_BYTES_MAX: u64 = 64 << 10;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut lines = (&mut read).take(HEAD_BYTES_MAX).lines();
        let Some(request) = lines.next_line().await? else { return Ok(()) };
        while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let found = if matches!(method, "GET" | "HEAD") { content.find(path) } else { None };
        let (status, kind, digest, body) = match found {
            Some(blob) => ("200 OK", blob.media_type, blob.digest.as_str(), &blob.bytes[..]),
            None if path == "/v2/" => ("200 OK", "application/json", "", &b"{}"[..]),
            None => ("404 Not Found", "application/json", "", &br#"{"errors":[{"code":"NOT_FOUND"}]}"#[..]),
        };
        let mut head =
            format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n", body.len());
        if !digest.is_empty() {
            head += &format!("docker-content-digest: {digest}\r\n");
        }
        write.write_all((head + "\r\n").as_bytes()).await?;
        if method != "HEAD" {
            write.write_all(body).await?;
        }
    }
}

impl Content {
    fn find(&self, path: &str) -> Option<&Blob> {
        let path = path.split('?').next()?;
        let (kind, name) =
            path.strip_prefix("/v2/")?.strip_prefix(self.repository)?.strip_prefix('/')?.split_once('/')?;
        match kind {
            "manifests" if name == self.tag || name == self.manifest.digest => Some(&self.manifest),
            "blobs" => self.blobs.iter().find(|blob| blob.digest == name),
            _ => None,
        }
    }
}
