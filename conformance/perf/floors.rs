//! What a pull cannot do without, done by the best program there is for it: the floors of the pull rows.
//!
//! ```text
//! GET of every layer (curl) ─ hash of the blobs ─ inflate (igzip; also gzip) ─ hash of the tars ─ one sequential write
//! ```
//! Each is measured alone: wall-clock time and CPU time. Their CPU times together, shared by all CPUs, are what a perfect
//! pull would take.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use pinnace_conformance::registry::PLAIN;
use sha2::{Digest as _, Sha256};

use crate::content::{LARGE, Large};
use crate::report::Report;
use crate::runtime::Runtime;

/// Wall-clock time and CPU time of this process and the children that it has waited for.
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, Duration, T) {
    let cpu = || {
        [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
            .into_iter()
            .filter_map(|who| getrusage(who).ok())
            .flat_map(|usage| [usage.user_time(), usage.system_time()])
            .map(|time| {
                Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
            })
            .sum::<Duration>()
    };
    let (before, began) = (cpu(), Instant::now());
    let done = work();
    (began.elapsed(), cpu().saturating_sub(before), done)
}

/// Measures all of them once, with the content of the large image and the disk of a runtime; answers the time that they
/// allow.
pub fn measure(large: &Large, runtime: &Runtime, report: &mut Report) -> Duration {
    let layers: Vec<PathBuf> = large
        .layout
        .children(&large.layout.find(LARGE))
        .into_iter()
        .filter(|blob| blob.media_type.contains("tar"))
        .map(|blob| large.layout.dir().join("blobs").join(blob.digest.replace(':', "/")))
        .collect();
    let tars: Vec<Vec<u8>> = layers.iter().map(|layer| inflate("gzip", layer)).collect();
    let mut total = Duration::ZERO;
    let mut add = |what: &str, counts: bool, (wall, cpu, ()): (Duration, Duration, ())| {
        report.floor(what, wall, cpu);
        if counts {
            total += cpu;
        }
    };
    let urls: Vec<String> = layers
        .iter()
        .filter_map(|layer| Some(layer.file_name()?.to_string_lossy().into_owned()))
        .map(|hex| format!("http://{PLAIN}/v2/{LARGE}/blobs/sha256:{hex}"))
        .collect();
    add("GET of all layers by curl", true, timed(|| get(runtime, &urls)));
    add("sha256 of all blobs", true, timed(|| layers.iter().for_each(|layer| hash_file(layer))));
    add("gzip -dc of all layers", false, timed(|| layers.iter().for_each(|layer| discard("gzip", layer))));
    add("igzip -dc of all layers", true, timed(|| layers.iter().for_each(|layer| discard("igzip", layer))));
    add("sha256 of all tars", true, timed(|| tars.iter().for_each(|tar| hash_tar(tar))));
    let file = runtime.world.inside(runtime.world.dir().join("root/floor"));
    add("one sequential write of all tars", true, timed(|| write(&file, &tars)));
    fs::remove_file(&file).expect("remove what was written");
    runtime.settle();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let allowed = total / u32::try_from(cpus).unwrap_or(1);
    report.floor("all of it on all CPUs (with igzip)", allowed, total);
    allowed
}

fn get(runtime: &Runtime, urls: &[String]) {
    let status = runtime
        .world
        .command("curl")
        .args(["--silent", "--fail", "--parallel"])
        .args(urls.iter().flat_map(|url| ["--output", "/dev/null", url]))
        .status()
        .expect("run curl");
    assert!(status.success(), "curl: {status}");
}

fn hash_file(path: &Path) {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer).expect("read a layer") {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    std::hint::black_box(hash.finalize());
}

fn hash_tar(tar: &[u8]) {
    std::hint::black_box(Sha256::digest(tar));
}

fn program(name: &str, file: &Path, output: Stdio) -> std::process::Output {
    let mut command = Command::new(name);
    command.arg("-dc").stdin(File::open(file).expect("open a layer")).stdout(output);
    let done = command.output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(done.status.success(), "{name} -dc {}: {}", file.display(), done.status);
    done
}

fn discard(name: &str, file: &Path) {
    program(name, file, Stdio::null());
}

fn inflate(name: &str, file: &Path) -> Vec<u8> {
    program(name, file, Stdio::piped()).stdout
}

fn write(path: &Path, tars: &[Vec<u8>]) {
    let mut file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for piece in tars.iter().flat_map(|tar| tar.chunks(1 << 20)) {
        file.write_all(piece).expect("write a tar");
    }
}
