//! The images of the benchmark: one that only holds [the workload](../workload/main.rs), and large ones.
//!
//! The large one has about 500 MB in five gzip layers, made of this machine's own files in sorted order: shared
//! libraries (few and large), a language's library (many and small), documentation and data (text), programs, and a last
//! layer with a single file. The same files are there as zstd layers too, and as one fat gzip layer. The same machine gives the same image; how many bytes and files it has is printed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pinnace_conformance::cache_dir;
use pinnace_conformance::images::{Compression, Image, Layer, Layout};
use serde_json::json;

/// Name of the small image.
pub const WORKLOAD: &str = "workload";
/// Name of the large image.
pub const LARGE: &str = "large";

/// One of the large images.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Variant {
    /// Name in the layout and repository in the registry.
    #[serde(skip)]
    pub name: &'static str,
    /// As the report calls it.
    #[serde(skip)]
    pub label: &'static str,
    /// Bytes of its uncompressed layers.
    pub tar_bytes: u64,
    /// Bytes of its layers.
    pub packed_bytes: u64,
}

/// Names and labels of the variants.
const VARIANTS: [(&str, &str); 3] =
    [(LARGE, "large image, gzip"), ("large-zstd", "large image, zstd"), ("fat", "one fat layer, gzip")];

/// Where the files of the large image's layers come from, and how many bytes are taken at most.
const SOURCES: [(&[&str], usize); 4] = [
    (&["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"], 160 << 20),
    (
        &[
            "/usr/lib/python3",
            "/usr/lib/python3.11",
            "/usr/lib/python3.12",
            "/usr/lib/python3.13",
            "/usr/include",
        ],
        100 << 20,
    ),
    (&["/usr/share"], 110 << 20),
    (&["/usr/bin", "/usr/sbin", "/usr/local", "/usr/libexec"], 130 << 20),
];

/// Changes whenever the large image does.
const EDITION: u32 = 2;

/// The layout with the small image.
pub fn workload(dir: &Path) -> Layout {
    let program = std::env::current_exe().expect("this program's path").with_file_name("perf-workload");
    let program = fs::read(&program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let layer = ["bin", "dev", "etc", "proc", "sys", "tmp"]
        .iter()
        .fold(Layer::new(), |layer, path| layer.directory(path, 0o755))
        .file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
        .file("bin/workload", 0o755, program);
    let layout = Layout::create(dir);
    let config = json!({ "Env": ["PATH=/bin"], "Entrypoint": ["/bin/workload"], "Cmd": ["pause"] });
    let image = layout.image(&Image::new(vec![(layer, Compression::Gzip)], config));
    layout.tag(WORKLOAD, &image);
    layout
}

/// What the large images are.
#[derive(Debug)]
pub struct Large {
    /// Where they are.
    pub layout: Layout,
    /// Each of them.
    pub variants: Vec<Variant>,
    /// Files of each.
    pub files: u64,
}

/// The layout with the large images, from the cache if it is there.
pub fn large() -> Large {
    let dir = cache_dir().join(format!("perf-{EDITION}"));
    let note = dir.join("variants.json");
    if !note.exists() {
        let _ = fs::remove_dir_all(&dir);
        let layout = Layout::create(&dir);
        let (mut layers, mut fat, mut files) = (Vec::new(), Layer::new(), 0_u64);
        for (roots, limit) in SOURCES {
            let mut taken = Taken { layer: Layer::new(), bytes: 0, files: 0, limit };
            roots.iter().for_each(|root| taken.directory(Path::new(root)));
            files += taken.files;
            fat = fat.append(taken.layer.clone());
            layers.push(taken.layer);
        }
        layers.push(Layer::new().file("last", 0o644, "the last layer\n"));
        let mut variants = Vec::new();
        for (name, _) in VARIANTS {
            let (layers, compression) = match name {
                LARGE => (layers.clone(), Compression::Gzip),
                "fat" => (vec![fat.clone()], Compression::Gzip),
                _ => (layers.clone(), Compression::Zstd),
            };
            let tar_bytes = layers.iter().map(|layer| layer.tar().len() as u64).sum();
            let layers = layers.into_iter().map(|layer| (layer, compression)).collect();
            let image = layout.image(&Image::new(layers, json!({ "Cmd": ["/last"] })));
            layout.tag(name, &image);
            let blobs = layout.children(&layout.find(name));
            let packed_bytes = blobs.iter().map(|blob| blob.size).sum();
            variants.push(Variant { name: "", label: "", tar_bytes, packed_bytes });
        }
        let text = serde_json::to_string(&(variants, files)).expect("numbers are JSON");
        fs::write(&note, text).expect("write into the cache");
    }
    let text = fs::read_to_string(&note).expect("read from the cache");
    let (mut variants, files): (Vec<Variant>, u64) = serde_json::from_str(&text).expect("a note of ours");
    for (variant, (name, label)) in variants.iter_mut().zip(VARIANTS) {
        (variant.name, variant.label) = (name, label);
    }
    Large { layout: Layout::open(&dir), variants, files }
}

/// A layer that grows until it has enough.
struct Taken {
    layer: Layer,
    bytes: usize,
    files: u64,
    limit: usize,
}

impl Taken {
    fn directory(&mut self, dir: &Path) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        self.add(|layer| layer.directory(&name(dir), 0o755));
        for path in paths {
            if self.bytes >= self.limit {
                return;
            }
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                self.directory(&path);
            } else if let Ok(target) = fs::read_link(&path) {
                self.add(|layer| layer.symlink(&name(&path), &target.to_string_lossy()));
            } else if metadata.is_file()
                && let Ok(content) = fs::read(&path)
                && self.bytes + content.len() <= self.limit
            {
                self.bytes += content.len();
                self.files += 1;
                let mode = metadata.permissions().mode() & 0o777;
                self.add(|layer| layer.file(&name(&path), mode, content));
            }
        }
    }

    fn add(&mut self, entry: impl FnOnce(Layer) -> Layer) {
        self.layer = entry(std::mem::take(&mut self.layer));
    }
}

fn name(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}
