//! Cuts the power under a working store, thousands of times, and looks at what is left.
//!
//! ```text
//! powercut [--cuts 2000] [--seed 1] [--steps 40]        as root
//! ```
//! A store works on an ext4 file system on a disk that records every write and every flush. Then the disk is set back:
//! to every flush, and to moments in between, where writes since the last flush are lost, kept out of order or torn.
//! Each time the file system is mounted again, which replays its journal, the store is opened as after a boot, and all
//! of it is read: no layer is torn, no image lacks a part, and what was promised to be durable is there.

mod disk;
mod random;
mod workload;

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use disk::{BLOCK, Disk, Event};
use nix::sched::{CloneFlags, unshare};
use pinnace_store::{Durability, LayerForm, Repair, Store};
use random::Random;
use rustix::mount::{MountPropagationFlags, mount_change};
use workload::Promise;

/// Anything that ends a run.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

const DISK_BYTES: u64 = 96 << 20;

struct Plan {
    cuts: usize,
    seed: u64,
    steps: usize,
}

fn main() -> ExitCode {
    let told = |message: String| {
        let _ = writeln!(io::stderr(), "powercut: {message}");
    };
    let plan = match plan(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(error) => {
            told(error.to_string());
            return ExitCode::from(64);
        }
    };
    match apart(move || every_kind(&plan)) {
        Ok(lines) => {
            let _ = writeln!(io::stdout(), "{}", lines.join("\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            told(error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn plan(arguments: impl Iterator<Item = String>) -> Result<Plan, Fault> {
    let mut plan = Plan { cuts: 2000, seed: 1, steps: 40 };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a number"))?;
        match argument.as_str() {
            "--cuts" => plan.cuts = value.parse()?,
            "--seed" => plan.seed = value.parse()?,
            "--steps" => plan.steps = value.parse()?,
            _ => return Err(format!("unknown argument {argument}").into()),
        }
    }
    Ok(plan)
}

/// Runs on a thread with a mount namespace of its own.
fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        work()
    });
    thread.join().map_err(|_| "the run panicked")?
}

/// Both forms, durable at once and later; each gets its share of the cuts.
fn every_kind(plan: &Plan) -> Result<Vec<String>, Fault> {
    let kinds = [
        (LayerForm::TarErofs, Durability::Eager, 4),
        (LayerForm::TarErofs, Durability::Background, 4),
        (LayerForm::Directory, Durability::Eager, 1),
        (LayerForm::Directory, Durability::Background, 1),
    ];
    let mut lines = Vec::new();
    for (form, durability, share) in kinds {
        let cuts = (plan.cuts * share).div_ceil(10);
        let outcome = one_kind(form, durability, cuts, plan)
            .map_err(|error| format!("{form} {durability:?} seed {}: {error}", plan.seed))?;
        lines.push(format!("{form} {durability:?}: {outcome}"));
    }
    Ok(lines)
}

struct Place {
    dir: tempfile::TempDir,
    mount: PathBuf,
}

impl Place {
    fn new() -> Result<(Self, Disk), Fault> {
        let dir = tempfile::Builder::new().prefix("pw-cut-").tempdir()?;
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount)?;
        let image = dir.path().join("fresh");
        std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image)
            .output()?;
        if !made.status.success() {
            return Err(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let base = std::fs::read(&image)?;
        std::fs::remove_file(&image)?;
        let disk = Disk::serve(base, &dir.path().join("disk"))?;
        Ok((Self { dir, mount }, disk))
    }

    fn run(&self, serial: usize) -> PathBuf {
        self.dir.path().join(format!("run{serial}"))
    }
}

/// What the cuts have seen.
#[derive(Debug, Default)]
struct Seen {
    cuts: usize,
    layers: usize,
    images: usize,
    lost_layers: usize,
    lost_images: usize,
}

fn one_kind(form: LayerForm, durability: Durability, cuts: usize, plan: &Plan) -> Result<String, Fault> {
    let mut random = Random::new(plan.seed);
    let (place, disk) = Place::new()?;
    let mounted = disk.mount(&place.mount)?;
    let promises =
        workload::run(&disk, &place.mount, &place.run(0), form, durability, plan.steps, &mut random)?;
    drop(mounted);
    let events = disk.take_log();
    let flushes = events.iter().filter(|event| matches!(event, Event::Flush)).count();
    let mut seen = Seen::default();
    let mut settled = 0;
    for position in positions(&events, cuts, &mut random) {
        let flush = events[..position].iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        for event in &events[settled..flush] {
            if let Event::Write(offset, bytes) = event {
                disk.settle(*offset, bytes);
            }
        }
        settled = settled.max(flush);
        let kept = survivors(&events[flush..position], &mut random);
        disk.reset(kept.iter().map(|(offset, bytes)| (*offset, *bytes)));
        look(&disk, &place, form, durability, position, &promises, &mut seen)
            .map_err(|error| format!("cut at event {position} of {}: {error}", events.len()))?;
    }
    let Seen { cuts, layers, images, lost_layers, lost_images } = seen;
    Ok(format!(
        "{cuts} cuts in {} writes and {flushes} flushes: {layers} layers and {images} images whole, \
         {lost_layers} layers and {lost_images} images taken out at start, 0 torn",
        events.len() - flushes
    ))
}

/// Where to cut, in order: at flushes and in between.
fn positions(events: &[Event], cuts: usize, random: &mut Random) -> Vec<usize> {
    let at_flush: Vec<usize> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| matches!(event, Event::Flush))
        .map(|(index, _)| index)
        .collect();
    let mut chosen: Vec<usize> = (0..cuts)
        .map(|cut| {
            // Right before a flush, when most is at stake; right after one; anywhere.
            let flush = at_flush.get(random.below(at_flush.len())).copied().unwrap_or(0);
            match cut % 4 {
                0 | 1 => flush,
                2 => flush + 1,
                _ => random.below(events.len() + 1),
            }
        })
        .collect();
    chosen.sort_unstable();
    chosen
}

/// The parts of writes after the last flush that a disk happens to have kept.
fn survivors<'a>(events: &'a [Event], random: &mut Random) -> Vec<(u64, &'a [u8])> {
    let chance = [0, 30, 60, 90, 100][random.below(5)];
    let mut kept = Vec::new();
    for event in events {
        let Event::Write(offset, bytes) = event else { continue };
        for (index, block) in bytes.chunks(BLOCK).enumerate() {
            let at = offset + (index * BLOCK) as u64;
            if random.percent(chance) {
                // Now and then sector by sector.
                let torn = chance < 100 && random.percent(5);
                let whole = if torn { random.below(block.len() / 512 + 1) * 512 } else { block.len() };
                kept.push((at, &block[..whole]));
            }
        }
    }
    kept
}

/// Boots from what the disk holds and reads everything.
fn look(
    disk: &Disk,
    place: &Place,
    form: LayerForm,
    durability: Durability,
    position: usize,
    promises: &[Promise],
    seen: &mut Seen,
) -> Result<(), Fault> {
    let mounted = disk.mount(&place.mount)?;
    seen.cuts += 1;
    let run = place.run(seen.cuts);
    let root = place.mount.join("store");
    let store = Store::open(workload::options(&root, &run, form, durability))?;
    let outcome = examine(&store, &root, position, promises, seen);
    store.release_pins()?;
    drop(store);
    drop(mounted);
    std::fs::remove_dir_all(run)?;
    outcome
}

fn examine(
    store: &Store,
    root: &Path,
    position: usize,
    promises: &[Promise],
    seen: &mut Seen,
) -> Result<(), Fault> {
    seen.lost_layers += store.recovered().removed_layers.len();
    seen.lost_images += store.recovered().removed_images.len();
    let report = store.fsck(Repair::No)?;
    if !report.findings.is_empty() {
        return Err(format!("the store's own check: {:?}", report.findings).into());
    }
    let layers: HashSet<_> = store.layers().into_iter().map(|info| info.diff_id).collect();
    for info in store.layers() {
        seen.layers += 1;
        let diff_id = info.diff_id;
        // Not by the store's word: the bytes on disk, and the files as a container would see them.
        if info.form == LayerForm::TarErofs {
            let tar = std::fs::read(root.join(format!("layers/sha256-{}/layer.tar", diff_id.hex())))?;
            if hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&tar)) != diff_id.hex() {
                return Err(format!("layer {diff_id} is torn").into());
            }
        }
        let files = workload::verify_files(&store.layer_root(&diff_id)?)
            .map_err(|error| format!("layer {diff_id}: {error}"))?;
        if files as u64 != info.entries {
            return Err(format!("layer {diff_id} has {files} of {} files", info.entries).into());
        }
    }
    for image in store.images() {
        seen.images += 1;
        if let Some(missing) = image.layers.iter().find(|layer| !layers.contains(layer)) {
            return Err(format!("image {} is listed and lacks layer {missing}", image.id).into());
        }
        for digest in image.manifests.iter().map(|manifest| manifest.digest).chain([*image.id.digest()]) {
            store.blob(&digest)?;
        }
    }
    for promise in promises {
        let holds = promise.from <= position && promise.until.is_none_or(|until| position <= until);
        if holds && store.image(&promise.image.to_string()).is_none() {
            return Err(format!("image {} was durable since event {}", promise.image, promise.from).into());
        }
        if holds && promise.layers.iter().any(|layer| !layers.contains(layer)) {
            return Err(format!("a layer of image {} was durable", promise.image).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_torn() {
        apart(|| every_kind(&Plan { cuts: 30, seed: 7, steps: 8 })).unwrap();
    }

    /// The instrument itself: files that are renamed into place without a flush do get torn.
    #[test]
    fn what_is_not_flushed_is_seen_torn() {
        let torn = apart(|| {
            let mut random = Random::new(3);
            let (place, disk) = Place::new()?;
            let mounted = disk.mount(&place.mount)?;
            for index in 0..30 {
                let text = random.bytes(20_000);
                std::fs::write(place.mount.join("new"), &text)?;
                std::fs::rename(place.mount.join("new"), place.mount.join(format!("file{index}")))?;
                std::fs::File::create(place.mount.join("noise"))?.sync_all()?;
            }
            drop(mounted);
            let events = disk.take_log();
            let (mut torn, mut settled) = (0, 0);
            for position in positions(&events, 20, &mut random) {
                let flush = events[..position].iter().rposition(|e| matches!(e, Event::Flush)).unwrap_or(0);
                for event in &events[settled..flush.max(settled)] {
                    if let Event::Write(offset, bytes) = event {
                        disk.settle(*offset, bytes);
                    }
                }
                settled = settled.max(flush);
                disk.reset(std::iter::empty());
                let mounted = disk.mount(&place.mount)?;
                for entry in std::fs::read_dir(&place.mount)? {
                    let entry = entry?;
                    let named = entry.file_name().to_string_lossy().starts_with("file");
                    torn += usize::from(named && entry.metadata()?.len() != 20_000);
                }
                drop(mounted);
            }
            Ok(torn)
        });
        assert!(torn.unwrap() > 0, "a disk that loses nothing proves nothing");
    }
}
