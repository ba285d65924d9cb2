//! Measures pulls: `measure serve TAG BLOB...` is a registry in memory whose layers are the given
//! files (`*.tar` with `*.tar.gz` or `*.tar.zst` beside it), `measure pull STORE REFERENCE...`
//! pulls into a fresh store and prints wall time, processor time and memory.
//!
//! ```text
//! measure serve app:1 one.tar.gz two.tar.gz &          prints 127.0.0.1:40123/app:1
//! measure pull /dev/shm/store 127.0.0.1:40123/app:1
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinnace_pull::{Options, PullRequest, Puller};
use pinnace_registry::manifest::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST};
use pinnace_registry::server::{Content, Server};
use pinnace_registry::{Client, Descriptor};
use pinnace_store::{Digest, Store};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", tag, blobs @ ..] => serve(tag, blobs).await,
        ["pull", store, references @ ..] => pull(Path::new(store), references).await,
        _ => println!("usage: measure serve TAG BLOB... | measure pull STORE REFERENCE..."),
    }
}

async fn serve(tag: &str, blobs: &[&str]) {
    let mut content = Content::default();
    let mut diff_ids = Vec::new();
    let mut layers = Vec::new();
    for path in blobs {
        let tar = std::fs::read(Path::new(path).with_extension("")).unwrap();
        diff_ids.push(Digest::sha256(&tar).to_string());
        let blob = std::fs::read(path).unwrap();
        let media_type = if path.ends_with(".zst") { OCI_LAYER_ZSTD } else { OCI_LAYER_GZIP };
        layers.push(Descriptor::of(media_type, &blob));
        content.add_blob(blob);
    }
    let config = serde_json::json!({
        "architecture": pinnace_registry::Platform::host().architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_descriptor = Descriptor::of(OCI_CONFIG, config.as_bytes());
    content.add_blob(config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config_descriptor, "layers": layers,
    });
    let manifest = content.add_manifest(OCI_MANIFEST, manifest.to_string());
    let (repository, name) = tag.split_once(':').unwrap();
    content.tag(repository, name, manifest);
    let server = Server::start(content).await.unwrap();
    println!("{}/{tag}", server.registry());
    std::future::pending().await
}

async fn pull(dir: &Path, references: &[&str]) {
    let store = Store::open(pinnace_store::Options::new(dir.join("store"), dir.join("run"))).unwrap();
    let client = Client::new(pinnace_registry::Options {
        hosts_dirs: Vec::new(),
        registries_files: Vec::new(),
        auth_files: Vec::new(),
        ..Default::default()
    })
    .unwrap();
    let puller = Puller::new(store.clone(), Arc::new(client), Options::default());
    for reference in references {
        let before = processor_time();
        let started = Instant::now();
        let pulled = puller.pull(PullRequest::new(reference.parse().unwrap())).await.unwrap();
        let wall = started.elapsed();
        let processor = processor_time() - before;
        let flush_started = Instant::now();
        store.flush();
        let flush = flush_started.elapsed();
        // What is given back is given back in the background.
        tokio::time::sleep(Duration::from_millis(100)).await;
        println!(
            "{reference}: {} layers, {:.1} MB compressed, wall {:.3} s, processor {:.3} s, flush after {:.3} s, \
             memory {} MB, peak {} MB",
            pulled.record.layers.len(),
            pulled.fetched_bytes as f64 / 1e6,
            wall.as_secs_f64(),
            processor.as_secs_f64(),
            flush.as_secs_f64(),
            memory_kb("VmRSS:") / 1000,
            memory_kb("VmHWM:") / 1000,
        );
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

fn memory_kb(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
