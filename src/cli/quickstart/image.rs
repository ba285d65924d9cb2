//! An image that holds nothing but this program.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use pinnace_registry::server::{Content, Server};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Numeric, as in many images that need no user database; 65534 is nobody everywhere.
const USER: &str = "65534:65534";

const REPOSITORY: &str = "quickstart/page";
const TAG: &str = "1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image with one layer, ready to be served.
#[derive(Debug)]
pub struct Image {
    /// The layer's size before compression.
    pub layer_bytes: u64,
    /// What a pull transfers.
    pub blob_bytes: usize,
    content: Content,
}

impl Image {
    /// Packs `/proc/self/exe`, which is static and so runs alone.
    pub fn of_this_program() -> anyhow::Result<Image> {
        let mut program = File::open("/proc/self/exe").context("open this program")?;
        let mut tar = tar::Builder::new(Both::new());
        for (path, mode) in
            [("bin/", 0o755), ("dev/", 0o755), ("proc/", 0o555), ("sys/", 0o555), ("tmp/", 0o1777)]
        {
            tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), path, io::empty())?;
        }
        let size = program.metadata()?.len();
        tar.append_data(&mut header(tar::EntryType::Regular, 0o755, size), "bin/pinnace", &mut program)?;
        let (layer_bytes, diff_id, packed) = tar.into_inner()?.finish()?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "User": USER,
                "Env": ["PATH=/bin"],
                "Entrypoint": ["pinnace", "quickstart-inside"],
                "Cmd": ["page"],
                "WorkingDir": "/",
                "StopSignal": "SIGTERM",
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created_by": "pinnace quickstart" }],
        }))?;
        let mut content = Content::default();
        let mut blob_bytes = config.len() + packed.len();
        let mut add = |media_type: &str, bytes: Vec<u8>| {
            let size = bytes.len();
            json!({ "mediaType": media_type, "digest": content.add_blob(bytes).to_string(), "size": size })
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": add("application/vnd.oci.image.config.v1+json", config),
            "layers": [add("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        }))?;
        blob_bytes += manifest.len();
        let digest = content.add_manifest(MANIFEST, manifest);
        content.tag(REPOSITORY, TAG, digest);
        Ok(Image { layer_bytes, blob_bytes, content })
    }

    /// Puts it into a registry on loopback, which ends when it is dropped.
    pub async fn serve(self) -> anyhow::Result<Server> {
        Server::start(self.content).await.context("listen on loopback")
    }

    /// Its name in that registry.
    pub fn reference(registry: &Server) -> String {
        format!("{}/{REPOSITORY}:{TAG}", registry.registry())
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Hashes a tar (its diffID) and compresses it in one pass.
struct Both {
    hash: Sha256,
    bytes: u64,
    packed: GzEncoder<Vec<u8>>,
}

impl Both {
    fn new() -> Both {
        Both { hash: Sha256::new(), bytes: 0, packed: GzEncoder::new(Vec::new(), Compression::fast()) }
    }

    fn finish(self) -> io::Result<(u64, String, Vec<u8>)> {
        Ok((self.bytes, format!("sha256:{}", hex::encode(self.hash.finalize())), self.packed.finish()?))
    }
}

impl Write for Both {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.packed.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.packed.flush()
    }
}
